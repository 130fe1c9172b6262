package selector

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	addrA = netip.MustParseAddr("192.0.2.1")
	addrB = netip.MustParseAddr("192.0.2.2")
	addrC = netip.MustParseAddr("192.0.2.3")
)

// network holds the addresses of the hosts of a world.
type network struct {
	w     *world
	leads []netip.Addr                 // the addresses of each name
	like  map[netip.Addr]func() string // the kind of the machine at each address, as in a timeline
	moved netip.Addr                   // where the last Switch went to
}

// becomes changes the machine at an address at a given time.
func (n *network) becomes(a netip.Addr, at time.Duration, kind string) {
	before := n.like[a]
	n.like[a] = func() string {
		if n.w.now >= at {
			return kind
		}
		return before()
	}
}

// check resolves and pins addresses as the owner of a Machine does.
func (n *network) check(a StartCheck, r *Result) {
	at := []netip.Addr{a.Addr}
	if a.Check == 0 && !a.Pinned {
		at = slices.Clone(n.leads)
		if i := slices.Index(at, a.Addr); i >= 0 {
			if a.Next {
				i++
			}
			at = slices.Concat(at[i:], at[:i])
		}
	}
	if len(at) == 0 {
		*r = Result{Unknown: true, NoAddress: true, Err: errors.New("no such host")}
		return
	}
	for _, addr := range at {
		*r = Result{OK: true, Addr: addr}
		switch kind := n.like[addr](); {
		case a.Check == 0 && kind == "refused":
			*r = Result{Err: errRefused, Addr: addr}
		case a.Check > 0 && kind != "up":
			*r = Result{Err: errPong}
		}
		if r.OK {
			break
		}
	}
}

func TestAddressIsPinned(t *testing.T) {
	http := []Check{{Name: "tcp"}, {Name: "http"}}
	for _, tt := range []struct {
		name   string
		checks []Check
		change func(n *network)
		story  string // elections
		at     netip.Addr
	}{
		{"the first", nil, func(*network) {}, "switch 1 start >db", addrA},
		{"the next that accepts connections", nil, func(n *network) { n.becomes(addrA, 0, "refused") }, "switch 1 start >db", addrB},
		{"the one that passes the other checks, too", http, func(n *network) {
			n.becomes(addrA, 0, "unwell")
			n.becomes(addrB, 0, "unwell")
		}, "switch 1 start >db", addrC},
		{"it stays although the one before it is back", nil, func(n *network) {
			n.becomes(addrA, 0, "refused")
			n.becomes(addrA, 5*time.Second, "up")
		}, "switch 1 start >db", addrB},
		{"another one by an election only", nil, func(n *network) { n.becomes(addrA, 10*time.Second, "refused") },
			"switch 1 start >db, lost db, switch 2 moved db>db", addrB},
		{"because of another check", http, func(n *network) {
			n.becomes(addrA, 10*time.Second, "unwell")
			n.becomes(addrB, 0, "unwell")
		}, "switch 1 start >db, lost db, switch 2 moved db>db", addrC},
		{"the same one again", nil, func(n *network) {
			n.becomes(addrA, 10*time.Second, "refused")
			n.becomes(addrA, 12*time.Second, "up")
			n.becomes(addrB, 0, "refused")
			n.becomes(addrC, 0, "refused")
		}, "switch 1 start >db, lost db, switch 2 reselect db>db", addrA},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, Config{Checks: tt.checks}, "db: up")
			n := w.network(addrA, addrB, addrC)
			tt.change(n)
			w.play(30 * time.Second)
			if got := elections(w); got != tt.story || n.moved != tt.at || w.m.Snapshot().Addr != tt.at {
				t.Errorf("%s at %v (%v), want %s at %v\n%s", got, n.moved, w.m.Snapshot().Addr, tt.story, tt.at, strings.Join(w.story, "\n"))
			}
		})
	}
}

// elections returns the elections of a story and their results.
func elections(w *world) string {
	var all []string
	for _, s := range w.story {
		if _, fact, _ := strings.Cut(s, " "); strings.HasPrefix(fact, "switch") || strings.HasPrefix(fact, "lost") || strings.Contains(fact, "->") {
			all = append(all, fact)
		}
	}
	return strings.Join(all, ", ")
}

func TestRelocated(t *testing.T) {
	for _, tt := range []struct {
		name  string
		locks Locks
		to    netip.Addr
		story string
	}{
		{"elsewhere", Locks{}, addrB, "switch 1 start >db, switch 2 moved db>db"},
		{"where it is", Locks{}, addrA, "switch 1 start >db"},
		{"frozen", Locks{Frozen: true}, addrB, "switch 1 start >db"},
		{"drained", Locks{Drained: []string{"db"}}, addrB, "switch 1 start >db"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, Config{Fall: 1}, "db: up")
			n := w.network(addrA, addrB)
			if tt.to == addrB && tt.locks.Drained == nil && !tt.locks.Frozen {
				// A check of the old address fails after the election has
				// ended.
				n.becomes(addrA, 5*time.Second, "refused")
			}
			w.play(5*time.Second + rtt/2)
			w.step(tt.locks)
			n.leads = []netip.Addr{addrB}
			w.step(Relocated{Host: "db", Addr: tt.to})
			w.play(30 * time.Second)
			if got := elections(w); got != tt.story || n.moved != tt.to && strings.Contains(tt.story, "moved") {
				t.Errorf("%s at %v, want %s at %v", got, n.moved, tt.story, tt.to)
			}
		})
	}
}

// A standby whose name resolves to no address is unknown and is not elected. A
// check that passes makes it usable again.
func TestHostWithoutAddressIsUnknown(t *testing.T) {
	w := newWorld(t, Config{}, "b: up", "a: up")
	n := w.network(addrA)
	both := w.names
	w.names = func(a StartCheck, r *Result) {
		n.leads = []netip.Addr{addrA}
		if a.Host == "a" && !a.Pinned && w.now >= 5*time.Second && w.now < 20*time.Second {
			n.leads = nil
		}
		both(a, r)
	}
	w.play(5 * time.Second)
	w.facts = true
	n.becomes(addrA, 10*time.Second, "refused") // both
	n.becomes(addrA, 15*time.Second, "up")
	w.play(30 * time.Second)
	const want = "switch 1 start >b, a up->unknown by tcp, b up->down by tcp, lost b, b down->up by tcp, switch 2 reselect b>b, a unknown->up by tcp"
	if got := elections(w); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// An address that will not be used again is down after one failure.
func TestFinalFailure(t *testing.T) {
	w := newWorld(t, Config{}, "a: up", "b: up")
	w.network(addrA)
	check := w.names
	w.names = func(a StartCheck, r *Result) {
		check(a, r)
		if a.Host == "a" && w.now >= 10*time.Second {
			*r = Result{Addr: addrA, Final: true, Err: errRefused}
		}
	}
	w.play(10*time.Second + 500*time.Millisecond)
	w.play(12 * time.Second)
	if got := elections(w); got != "switch 1 start >a, lost a, switch 2 failover a>b" || w.lost.After != 0 {
		t.Errorf("%s after %v, want a failover at once", got, w.lost.After)
	}
}
