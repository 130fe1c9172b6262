package cluster

import "testing"

// A member that is being forgotten takes no part any more, whoever has ordered that.
func TestRosterOfARecord(t *testing.T) {
	r := Record{Roster: []string{"a", "b"}, Change: Change{Name: "b", Forget: true, By: "ann", Reason: "old machine"}}
	for name, want := range map[string]bool{"a": true, "b": false, "c": false} {
		if got := r.has(name); got != want {
			t.Errorf("has(%q) = %v, want %v", name, got, want)
		}
	}
	r.Change = Change{Name: "c", By: "ann"}
	if !r.has("b") || r.has("c") {
		t.Error("a member that is being added changes who takes part")
	}
}
