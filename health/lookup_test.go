package health

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Each row plays answers of the name servers: "a b" is an answer with two
// addresses, "nx" says that there is none, "fail" is a failure, "3s" passes.
func TestLookupFollowsAddress(t *testing.T) {
	const hold = 30 * time.Second
	addr := map[string]netip.Addr{
		"a": netip.MustParseAddr("192.0.2.1"), "b": netip.MustParseAddr("192.0.2.2"), "c": netip.MustParseAddr("192.0.2.3"),
		"six": netip.MustParseAddr("2001:db8::1"),
	}
	for _, tt := range []struct {
		name, play string
		usable     string // addresses that may be tried
		left       bool   // the name leads elsewhere than to a
		stale      bool   // a may be another machine's
	}{
		{"nothing is known", "", "", false, true},
		{"an answer", "a", "a", false, false},
		{"in the order of every process", "c a b", "a b c", false, false},
		{"the families in the system's order", "six b a", "six a b", false, false},
		{"one answer without it", "a, b", "b", false, false},
		{"two at once", "a, b, b", "b", false, false},
		{"two, a second apart", "a, b, 1s, b", "b", true, false},
		{"it comes back between them", "a, b, 1s, a, b", "b", false, false},
		{"other addresses come and go", "a b, 1s, a c, 1s, a", "a", false, false},
		{"a part of the addresses at a time", "a b, 1s, b c, 1s, a c, 1s, b c, 20s, b c", "b c", false, false},
		{"and then for good", "a b, 1s, b c, 1s, a c, 1s, b c, 30s, b c", "b c", true, false},
		{"a part of them, ten minutes ago", "a b, b, 1s, a b, 11m, a b, 1s, b, 1s, b", "b", true, false},
		{"no such name", "nx", "", false, true},
		{"no such name for less than the hold", "a, nx, 29s, nx", "a", false, false},
		{"no such name for the hold", "a, nx, 30s, nx", "", false, true},
		{"no such name, and then a failure", "a, nx, 30s, fail", "", false, true},
		{"it exists again", "a, nx, 30s, nx, a", "a", false, false},
		{"failure", "fail", "", false, true},
		{"failure for less than ten minutes", "a, fail, 9m, fail", "a", false, false},
		{"failure for ten minutes", "a, fail, 10m, fail", "a", false, true},
		{"silence for ten minutes", "a, 10m", "a", false, true},
		{"an answer after all", "a, 20m, a", "a", false, false},
		{"without it for ten minutes", "a, b, 10m, b", "b", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var l Lookup
				for step := range strings.SplitSeq(tt.play, ", ") {
					if d, err := time.ParseDuration(step); err == nil {
						time.Sleep(d) // virtual
						continue
					}
					switch step {
					case "":
					case "nx":
						l.update(time.Now(), nil, "", nxdomain)
					case "fail":
						l.update(time.Now(), nil, "", servfail)
					default:
						var addrs []netip.Addr
						for name := range strings.FieldsSeq(step) {
							addrs = append(addrs, addr[name])
						}
						l.update(time.Now(), addrs, "test", nil)
					}
				}
				var want []netip.Addr
				for name := range strings.FieldsSeq(tt.usable) {
					want = append(want, addr[name])
				}
				got, err := l.Usable(hold)
				if !slices.Equal(got, want) || (err == nil) != (want != nil) {
					t.Errorf("after %q: Usable = %v, %v, want %v", tt.play, got, err, want)
				}
				if got := l.Left(addr["a"], hold); got != tt.left {
					t.Errorf("after %q: Left(a) = %v, want %v", tt.play, got, tt.left)
				}
				if got := l.Stale(addr["a"], hold); got != tt.stale {
					t.Errorf("after %q: Stale(a) = %v, want %v", tt.play, got, tt.stale)
				}
			})
		})
	}
}
