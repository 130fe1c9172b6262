package failover

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy/internal/proctest"
	"understudy/selector"
)

// ordersOf returns the orders in the record of a conductor, a line each.
func ordersOf(c *Conductor) (all []string) {
	list, _ := c.Incidents()
	for _, i := range list {
		o := i.Order
		if o == nil {
			continue
		}
		line := fmt.Sprintf("%s of %q, %s: %s (%s)", i.Event, o.Host, i.Outcome, i.Reason, i.By)
		if !o.Until.IsZero() {
			line += fmt.Sprintf(", until %v later", o.Until.Sub(o.At).Round(time.Second))
		}
		if o.Result != "" {
			line += ": " + o.Result
		}
		if o.Remote {
			line += ", remote"
		}
		all = append(all, line)
	}
	return all
}

// Every order is in the record, with who and why, also after a restart. It counts as no
// election, and what expires was not ordered.
func TestOrdersAreRecorded(t *testing.T) {
	dir := t.TempDir()
	want := []string{
		`drill of "a", done: drill by ann: friday (ann): b would take over from a`,
		`drain of "b", done: drain by ann: new disk (ann)`,
		`drill of "a", failed: drill (): no host would take over from a`,
		`ready of "b", done: ready by bob (bob)`,
		`freeze of "", done: freeze by ann: audit (ann), until 1m0s later`,
		`freeze of "", done: freeze by ann (ann)`,
		`unfreeze of "", done: unfreeze by bob (bob)`,
		`schedule of "b", done: switch scheduled by ann: night (ann), until 1h0m0s later`,
		`cancel of "b", done: scheduled switch cancelled by bob (bob), until 58m0s later`,
		`drain of "a", done: drain by ann (ann)`,
	}
	for _, run := range []string{"first", "after a restart"} {
		synctest.Test(t, func(t *testing.T) {
			k, err := OpenStateFile(dir, "orders", nil)
			if err != nil {
				t.Fatal(err)
			}
			conduct(t, newStage(), Config{Hosts: []string{"a", "b"}, StateFile: k}, func(c *Conductor) {
				time.Sleep(10 * time.Second)
				if run == "first" {
					giveOrders(t, c)
				}
				if diff := cmp.Diff(want, ordersOf(c)); diff != "" {
					t.Errorf("%s: orders (-want +got):\n%s", run, diff)
				}
				for of := range c.Measure().Elections {
					if !slices.Contains(Kinds(), of.Event) {
						t.Errorf("%s: an order counts as the election %v", run, of)
					}
				}
			})
			k.Close()
		})
	}

	// A program that knows no orders finds only elections where it looks for them.
	k, err := OpenStateFile(dir, "orders", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	var events []selector.Kind
	for _, i := range k.loaded.Incidents {
		events = append(events, i.Event)
	}
	if diff := cmp.Diff([]selector.Kind{selector.Start, selector.Switchover, selector.Start}, events); diff != "" {
		t.Errorf("incidents in the state file (-want +got):\n%s", diff)
	}
}

// giveOrders gives one order of each kind, a minute apart.
func giveOrders(t *testing.T, c *Conductor) {
	t.Helper()
	ctx := t.Context()
	drill := func(q DrillRequest) error { _, err := c.Drill(ctx, q); return err }
	lock := func(k Lock) error { k.Since = time.Now(); return c.Lock(ctx, k) }
	for n, order := range []func() error{
		func() error { return drill(DrillRequest{By: "ann", Reason: "friday"}) },
		func() error { return lock(Lock{Kind: Drain, Host: "b", By: "ann", Reason: "new disk"}) },
		func() error { return drill(DrillRequest{}) },
		func() error { return c.Unlock(ctx, Lock{Kind: Drain, Host: "b", By: "bob"}) },
		func() error {
			return lock(Lock{Kind: Freeze, By: "ann", Reason: "audit", Until: time.Now().Add(time.Minute)})
		},
		func() error { return lock(Lock{Kind: Freeze, By: "ann"}) },
		func() error { return c.Unlock(ctx, Lock{Kind: Freeze, By: "bob"}) },
		func() error {
			_, err := c.Schedule(ctx, Scheduled{Host: "b", At: time.Now().Add(time.Hour), By: "ann", Reason: "night"})
			return err
		},
		func() error { _, err := c.CancelScheduled(ctx, "bob"); return err },
		func() error { return lock(Lock{Kind: Drain, Host: "a", By: "ann"}) },
	} {
		if err := order(); err != nil {
			t.Errorf("order %d: %v", n, err)
		}
		time.Sleep(2 * time.Minute)
	}
}

// Orders push no election out of the record, and elections no order.
func TestOrdersAndElectionsAreBoundedApart(t *testing.T) {
	var r history
	id := uint64(0)
	put := func(n int, o *Ordered) {
		for range n {
			id++
			r.put(Incident{ID: id, Order: o})
		}
	}
	put(incidentsKept+1, nil)
	put(3*incidentsKept, &Ordered{})
	put(1, nil)
	list, _ := r.all()
	elections, orders := r.split()
	if len(elections) != incidentsKept || elections[0].ID != 3 || elections[incidentsKept-1].ID != id {
		t.Errorf("%d elections from %d on, want the last %d", len(elections), elections[0].ID, incidentsKept)
	}
	if len(orders) != incidentsKept || orders[0].ID != id-incidentsKept {
		t.Errorf("%d orders from %d on, want the last %d", len(orders), orders[0].ID, incidentsKept)
	}
	if !slices.IsSortedFunc(list, func(a, b Incident) int { return int(a.ID) - int(b.ID) }) {
		t.Error("they are not in order")
	}
}

// The state of a program that knew no orders is read, and new orders follow.
func TestOrdersAfterAnOlderState(t *testing.T) {
	dir := t.TempDir()
	text := `{"version": 1, "epoch": 3, "locks": [{"kind": "freeze", "by": "ann", "since": "2026-11-27T07:00:00Z"}], "incidents": [{"id": 4, "event": "failover", "outcome": "open", "done": true}]}`
	if err := os.WriteFile(filepath.Join(dir, "orders.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := OpenStateFile(dir, "orders", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	conduct(t, newStage(), Config{Hosts: []string{"a", "b"}, StateFile: k}, func(c *Conductor) {
		proctest.Until(t, "a is primary", func() bool { return c.Snapshot().Primary == "a" })
		if err := c.Unlock(t.Context(), Lock{Kind: Freeze, By: "bob"}); err != nil {
			t.Fatal(err)
		}
		list, _ := c.Incidents()
		var got []string
		for _, i := range list {
			got = append(got, fmt.Sprint(i.ID, " ", i.Event))
		}
		if diff := cmp.Diff([]string{"4 failover", "5 start", "6 unfreeze"}, got); diff != "" {
			t.Errorf("record (-want +got):\n%s", diff)
		}
	})
}

// What differs between two lists of locks was ordered, except that locks expire, and that
// their end follows the clock.
func TestOrdersBetweenLocks(t *testing.T) {
	now := time.Now()
	held := locks{
		{Kind: Freeze, By: "ann", Since: now.Add(-time.Hour), Until: now},
		{Kind: Drain, Host: "a", By: "ann", Since: now.Add(-time.Hour), Until: now.Add(time.Hour)},
		{Kind: Drain, Host: "b", By: "ann", Since: now.Add(-time.Hour)},
		{Kind: Drain, Host: "c", By: "ann", Since: now.Add(-time.Hour)},
	}
	after := locks{
		{Kind: Drain, Host: "a", By: "ann", Since: now.Add(-time.Hour), Until: now.Add(2 * time.Hour)},
		{Kind: Drain, Host: "b", By: "bob", Reason: "mine", Since: now},
		{Kind: Drain, Host: "d", By: "bob", Since: now},
	}
	var got []string
	for _, i := range held.orders(after, now) {
		got = append(got, string(i.Event)+" "+i.Order.Host+": "+i.Reason)
	}
	if diff := cmp.Diff([]string{"ready c: ready", "drain b: drain by bob: mine", "drain d: drain by bob"}, got); diff != "" {
		t.Errorf("orders (-want +got):\n%s", diff)
	}
}

// A lock that is set or removed at another instance of a cluster is in the record of each,
// once. Only the first knows who removed it.
func TestRemoteOrdersAreRecorded(t *testing.T) {
	t.Parallel()
	g := newCircle(t, "x", "y")
	_, other := g.began()
	drain := Lock{Kind: Drain, Host: other, By: "ann", Reason: "new disk", Since: time.Now(), Until: time.Now().Add(time.Hour)}
	if err := g.all["x"].Lock(t.Context(), drain); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, "y knows of it", func() bool { return len(ordersOf(g.all["y"])) == 1 })
	if err := g.all["x"].Unlock(t.Context(), Lock{Kind: Drain, Host: other, By: "bob"}); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, "y knows of the end", func() bool { return len(ordersOf(g.all["y"])) == 2 })
	if err := g.all["y"].Lock(t.Context(), Lock{Kind: Freeze, By: "eve", Since: time.Now()}); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, "x knows of the last", func() bool { return len(ordersOf(g.all["x"])) == 3 })

	set := fmt.Sprintf(`drain of %q, done: drain by ann: new disk (ann), until 1h0m0s later`, other)
	for name, want := range map[string][]string{
		"x": {set, fmt.Sprintf(`ready of %q, done: ready by bob (bob)`, other), `freeze of "", done: freeze by eve (eve), remote`},
		"y": {set + ", remote", fmt.Sprintf(`ready of %q, done: ready (), remote`, other), `freeze of "", done: freeze by eve (eve)`},
	} {
		if diff := cmp.Diff(strings.Join(want, "\n"), strings.Join(ordersOf(g.all[name]), "\n")); diff != "" {
			t.Errorf("%s: orders (-want +got):\n%s", name, diff)
		}
	}
}

// A member that is added or forgotten is in the record of each instance that is there, with
// who and why, and marked where it was not ordered.
func TestRosterOrdersAreRecorded(t *testing.T) {
	t.Parallel()
	g := newCircle(t, "x", "y", "z")
	g.began()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := g.all["x"].ChangeRoster(t.Context(), RosterOrder{Member: "z", Forget: true, By: "ann", Reason: "old machine"}); err != nil {
			t.Error(err)
		}
	})
	proctest.Until(t, "the first is under way", func() bool { return g.all["y"].Status().Cluster.Record.Change.Name == "z" })
	if err := g.all["y"].ChangeRoster(t.Context(), RosterOrder{Member: "w", By: "bob"}); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	forget, add := "cluster-forget of z, done: cluster-forget by ann: old machine (ann)", "cluster-add of w, done: cluster-add by bob (bob)"
	for name, want := range map[string][]string{
		"x": {forget, add + ", remote"}, "y": {forget + ", remote", add}, "z": {forget + ", remote", add + ", remote"},
	} {
		var got []string
		proctest.Until(t, name+" has both", func() bool {
			got = nil
			list, _ := g.all[name].Incidents()
			for _, i := range list {
				if i.Order == nil {
					continue
				}
				text := fmt.Sprintf("%s of %s, %s: %s (%s)", i.Event, i.Order.Member, i.Outcome, i.Reason, i.By)
				if i.Order.Remote {
					text += ", remote"
				}
				if i.Order.At.IsZero() || i.Epoch == 0 {
					t.Errorf("%s: %+v", name, i)
				}
				got = append(got, text)
			}
			return len(got) >= 2
		})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: orders (-want +got):\n%s", name, diff)
		}
	}
}
