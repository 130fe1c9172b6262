package daemon

import (
	"slices"
	"testing"
)

// The hosts of a relay have one number, and a host has the same one in all relays.
func TestPhases(t *testing.T) {
	var p phases
	ab, cd := p.of([]string{"a", "b"}), p.of([]string{"c", "d"})
	if ab[0] != ab[1] || cd[0] != cd[1] || ab[0] == cd[0] {
		t.Errorf("two relays have the numbers %v and %v, want one for each", ab, cd)
	}
	if got := p.of([]string{"new", "b", "d"}); !slices.Equal(got, []uint64{ab[1], ab[1], cd[1]}) {
		t.Errorf("a relay that shares b and d has %v, want %d for b and the new host, and %d for d", got, ab[1], cd[1])
	}
}
