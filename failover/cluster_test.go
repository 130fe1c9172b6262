package failover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/cluster"
	"understudy/internal/boottime"
	"understudy/internal/proctest"
	"understudy/internal/role"
	"understudy/selector"
)

// shelf is a store in memory.
type shelf struct {
	mu       sync.Mutex // guards everything below
	revision int64
	keys     map[string]cluster.KeyValue
	away     bool
	watchers []func(cluster.KeyValue)
	doubts   []string // that were written
}

var errAway = errors.New("the store is away")

func (s *shelf) Read(context.Context, string) ([]cluster.KeyValue, error) { panic("nobody reads") }

func (s *shelf) Transact(_ context.Context, t cluster.Transaction) (cluster.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return cluster.Result{}, errAway
	}
	res := cluster.Result{OK: s.keys[t.Key].Revision == t.Expect}
	if res.OK {
		s.revision++
		if strings.HasSuffix(t.Key, "/doubt") {
			s.doubts = append(s.doubts, string(t.Value))
		}
		s.keys[t.Key] = cluster.KeyValue{Key: t.Key, Value: t.Value, Revision: s.revision}
		for _, changed := range s.watchers {
			go changed(s.keys[t.Key])
		}
	}
	res.Key = s.keys[t.Key]
	for key, kv := range s.keys {
		if t.Prefix != "" && strings.HasPrefix(key, t.Prefix) {
			res.Found = append(res.Found, kv)
		}
	}
	slices.SortFunc(res.Found, func(a, b cluster.KeyValue) int { return cmp.Compare(a.Key, b.Key) })
	return res, nil
}

func (s *shelf) Watch(ctx context.Context, prefix string, changed func(cluster.KeyValue)) error {
	s.mu.Lock()
	s.watchers = append(s.watchers, func(kv cluster.KeyValue) {
		if ctx.Err() == nil && strings.HasPrefix(kv.Key, prefix) {
			changed(kv)
		}
	})
	s.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (s *shelf) be(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

const hostA, hostB = "192.0.2.1:1", "192.0.2.2:1"

// circle is some conductors that agree, each with a stage of its own. Its clock is the
// real one: a lease is not virtual.
type circle struct {
	tb     testing.TB
	shelf  *shelf
	stages map[string]*stage
	all    map[string]*Conductor
	leases map[string]*cluster.Lease
	stops  map[string]func()
	logs   map[string]*strictLog
	said   map[string]cast // what hosts say to a member; without it there are no role checks
	rules  selector.RoleRules

	mu   sync.Mutex
	deaf bool // nobody grants anything
}

func newCircle(tb testing.TB, members ...string) *circle {
	tb.Helper()
	g := emptyCircle(tb)
	for _, name := range members {
		g.stages[name] = newStage()
		g.all[name], g.leases[name] = g.member(name, members, Config{})
	}
	for _, name := range members {
		g.run(name)
	}
	return g
}

func emptyCircle(tb testing.TB) *circle {
	tb.Helper()
	return &circle{
		tb: tb, shelf: &shelf{keys: map[string]cluster.KeyValue{}},
		stages: map[string]*stage{}, all: map[string]*Conductor{}, leases: map[string]*cluster.Lease{}, stops: map[string]func(){},
		logs: map[string]*strictLog{},
	}
}

// member makes one conductor.
func (g *circle) member(name string, roster []string, cfg Config) (*Conductor, *cluster.Lease) {
	g.tb.Helper()
	lease := new(cluster.Lease)
	s := g.stages[name]
	cfg.Name, cfg.Hosts, cfg.Gate, cfg.Scripts = "r", []string{hostA, hostB}, s, s
	cfg.Checks = []Check{{Name: "tcp", Run: s.connect, Interval: 50 * time.Millisecond, Timeout: 5 * time.Second}}
	if said := g.said[name]; said != nil {
		check := s.roleCheck(said, g.rules)
		check.Interval, check.Timeout = cfg.Checks[0].Interval, cfg.Checks[0].Timeout
		cfg.Checks = append(cfg.Checks, check)
	}
	cfg.FastInterval = 20 * time.Millisecond
	g.logs[name] = &strictLog{t: g.tb}
	cfg.Logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: g.logs[name], DisableTime: true})
	boot := uint64(time.Now().UnixNano())
	cfg.Cluster = &Cluster{
		Here: func() string { return fmt.Sprint("process ", boot) },
		Name: "test", Store: g.shelf, Lease: lease, DrainTimeout: time.Second,
		Machine: cluster.Config{
			Member: name, Boot: boot, Roster: roster, Settings: "s",
			Lease: time.Second, Heartbeat: 50 * time.Millisecond, Request: time.Second, Slack: 100 * time.Millisecond,
			Agree: cluster.Majority, OnStoreLoss: cluster.Failsafe,
		},
		Ask: func(ctx context.Context, member, _ string, life, version, boot uint64) (bool, error) {
			g.mu.Lock()
			deaf := g.deaf
			g.mu.Unlock()
			if deaf || g.all[member] == nil {
				return false, errAway
			}
			return g.all[member].Grants(ctx, name, life, version, boot), nil
		},
	}
	c, err := New(complete(cfg))
	if err != nil {
		g.tb.Fatal(err)
	}
	return c, lease
}

func (g *circle) run(name string) {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.all[name].Run(ctx) }()
	g.stops[name] = sync.OnceFunc(func() {
		stop()
		if err := <-ended; err != nil {
			g.tb.Errorf("Run of %s: %v", name, err)
		}
	})
	g.tb.Cleanup(g.stops[name])
}

// serve waits until all serve a host, and returns the epoch.
func (g *circle) serve(host string) (epoch uint64) {
	g.tb.Helper()
	for name, c := range g.all {
		proctest.Until(g.tb, name+" serves "+host, func() bool { return c.Snapshot().Primary == host })
		epoch = c.Snapshot().Epoch
	}
	return epoch
}

// began returns which host was elected first, and the other one.
func (g *circle) began() (first, other string) {
	g.tb.Helper()
	proctest.Until(g.tb, "somebody serves", func() bool {
		for _, c := range g.all {
			if first = c.Snapshot().Primary; first != "" {
				return true
			}
		}
		return false
	})
	g.serve(first)
	if first == hostA {
		return hostA, hostB
	}
	return hostB, hostA
}

// count returns how often a line with the text is in the record of a stage.
func (g *circle) count(name, text string) (n int) {
	for _, line := range g.stages[name].events() {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// A member that has never seen the primary, and remembers nothing, knows it by the others: it
// does not take the primary of another cluster, or of a term that is over, for one of theirs.
func TestClusterSharesRoles(t *testing.T) {
	t.Parallel()
	for what, tt := range map[string]struct {
		fact role.Fact
		why  string
	}{
		"another cluster":     {role.Fact{Role: role.Primary, Term: 9, Identity: "theirs"}, "its identity theirs is not that of the cluster, ours"},
		"a term that is over": {fact(role.Primary, 2, 0), "it says primary in term 2, and " + hostA + " was primary in term 3"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			g := emptyCircle(t)
			g.said = map[string]cast{
				"x": {hostA: fact(role.Primary, 3, 0), hostB: fact(role.Replica, 3, 0)},
				"y": {hostB: tt.fact},
			}
			join := func(name string) {
				g.stages[name] = newStage()
				if name == "y" {
					g.stages[name].refusing[hostA] = true
				}
				g.all[name], g.leases[name] = g.member(name, []string{"x", "y"}, Config{})
				g.run(name)
			}
			join("x")
			g.serve(hostA)
			x := g.all["x"]
			proctest.Until(t, "the record has the role", func() bool {
				return x.Status().Cluster.Record.Fact == cluster.Fact{Host: hostA, Term: 3, Identity: "ours"}
			})
			join("y")
			proctest.Until(t, "y refuses "+hostB, func() bool {
				hosts := g.all["y"].Snapshot().Hosts
				return slices.ContainsFunc(hosts, func(h selector.Host) bool {
					return h.Name == hostB && slices.ContainsFunc(h.Checks, func(r selector.Record) bool {
						return r.Last.Err != nil && strings.Contains(r.Last.Err.Error(), tt.why)
					})
				})
			})
			if p := g.all["y"].Snapshot().Proposal; p.Host == hostB {
				t.Errorf("y proposes %+v", p)
			}
			if now := x.Snapshot(); now.Primary != hostA || now.Epoch != 1 {
				t.Errorf("x serves %q in epoch %d", now.Primary, now.Epoch)
			}
		})
	}
}

// Where every identity is accepted, none is shared.
func TestClusterSharesNoIdentity(t *testing.T) {
	t.Parallel()
	g := emptyCircle(t)
	g.rules.Identity = selector.AnyIdentity
	g.said = map[string]cast{"x": {hostA: fact(role.Primary, 3, 0), hostB: fact(role.Replica, 3, 0)}}
	g.stages["x"] = newStage()
	g.all["x"], g.leases["x"] = g.member("x", []string{"x"}, Config{})
	g.run("x")
	g.serve(hostA)
	proctest.Until(t, "the record has the term", func() bool { return g.all["x"].Status().Cluster.Record.Fact.Term == 3 })
	if got := g.all["x"].Status().Cluster.Record.Fact; got.Identity != "" {
		t.Errorf("the record has %+v", got)
	}
}

// What the clients of one member have noticed is checked by all at once, and comes back
// from none.
func TestClusterSharesSuspicion(t *testing.T) {
	t.Parallel()
	g := newCircle(t, "x", "y")
	first, _ := g.began()
	g.all["x"].Suspect(g.serve(first), errors.New("no answer"))
	suspected := func(name string) int { return strings.Count(g.logs[name].String(), "host suspected") }
	proctest.Until(t, "y suspects it too", func() bool { return suspected("y") > 0 })
	if log := g.logs["y"].String(); !strings.Contains(log, "suspected by the instance x") {
		t.Errorf("y does not name x:\n%s", log)
	}
	proctest.Until(t, "y suspects it no more", func() bool { return strings.Contains(g.logs["y"].String(), "suspicion cleared") })
	g.shelf.mu.Lock()
	defer g.shelf.mu.Unlock()
	if want := fmt.Sprintf(`{"member":"x","host":"%s"}`, first); !slices.Equal(g.shelf.doubts, []string{want}) {
		t.Errorf("suspicions %q, want %s", g.shelf.doubts, want)
	}
}

// What one member elects, all serve; what an operator orders at one holds for all.
func TestClusterSharesOrders(t *testing.T) {
	t.Parallel()
	g := newCircle(t, "x", "y", "z")
	first, other := g.began()

	lock := Lock{Kind: Freeze, Reason: "work", Since: time.Now()}
	if err := g.all["x"].Lock(t.Context(), lock); err != nil {
		t.Fatal(err)
	}
	for name, c := range g.all {
		proctest.Until(t, name+" is frozen", func() bool {
			k := c.Status().Lock(Freeze, "")
			return k != nil && k.Reason == "work" && c.Snapshot().Frozen
		})
	}
	if err := g.all["z"].Unlock(t.Context(), lock); err != nil {
		t.Fatal(err)
	}
	for name, c := range g.all {
		proctest.Until(t, name+" is not frozen", func() bool { return !c.Snapshot().Frozen })
	}

	// Two operators at the same time: no order overwrites the other.
	var both sync.WaitGroup
	for name, k := range map[string]Lock{"x": lock, "y": {Kind: Drain, Host: other, Since: time.Now()}} {
		both.Go(func() {
			if err := g.all[name].Lock(t.Context(), k); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	for name, c := range g.all {
		proctest.Until(t, name+" has both locks", func() bool {
			return c.Status().Lock(Freeze, "") != nil && c.Status().Lock(Drain, other) != nil
		})
	}
	for _, k := range []Lock{lock, {Kind: Drain, Host: other}} {
		if err := g.all["z"].Unlock(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range g.all {
		proctest.Until(t, name+" has no lock", func() bool { return len(c.Status().Locks) == 0 })
	}

	done, err := g.all["y"].Switch(t.Context(), SwitchRequest{Host: other, Drain: new(time.Duration(0))})
	if err != nil || done.Host != other || done.Epoch != 2 {
		t.Fatalf("switch: %+v, %v", done, err)
	}
	if n := g.serve(other); n != 2 {
		t.Errorf("they serve in epoch %d", n)
	}
	for name := range g.all {
		if g.count(name, "fence <2 but  grace 0s") != 1 || g.count(name, "open 2 "+other) != 1 {
			t.Errorf("%s: %q", name, g.stages[name].events())
		}
	}

	// A primary that is down for one stays; it is replaced when it is down for most.
	g.stages["x"].set(func() { g.stages["x"].refusing[other] = true })
	proctest.Until(t, "x is isolated", func() bool { return g.all["x"].Status().Cluster.Isolated })
	if text := g.all["x"].Status().Why(time.Now()); !strings.Contains(text, "isolated: 1 of 3 instances see "+other+" down") {
		t.Errorf("why: %s", text)
	}
	if now := g.all["y"].Snapshot(); now.Primary != other || now.Epoch != 2 {
		t.Errorf("y serves %s in epoch %d", now.Primary, now.Epoch)
	}
	g.stages["z"].set(func() { g.stages["z"].refusing[other] = true })
	if n := g.serve(first); n != 3 {
		t.Errorf("they serve in epoch %d", n)
	}
}

// A host that is down for most is not elected by one for which it is up, where there is
// another one.
func TestClusterElectsWhatMostSeeUp(t *testing.T) {
	t.Parallel()
	g := newCircle(t, "x", "y", "z")
	g.began()
	const third = "192.0.2.3:1"
	for name, c := range g.all {
		cfg := *c.cfg()
		cfg.Hosts = []string{hostA, hostB, third}
		if err := c.Reconfigure(t.Context(), cfg); err != nil {
			t.Fatal(name, err)
		}
	}
	if _, err := g.all["x"].Switch(t.Context(), SwitchRequest{Host: hostA, Drain: new(time.Duration(0))}); err != nil && !strings.Contains(err.Error(), "primary already") {
		t.Fatal(err)
	}
	g.serve(hostA)
	for _, name := range []string{"y", "z"} {
		g.stages[name].set(func() { g.stages[name].refusing[hostB] = true })
	}
	proctest.Until(t, "x knows", func() bool {
		return strings.Contains(g.all["x"].Status().WhyHost(hostB, time.Now()), "down for too many other instances")
	})
	for _, name := range []string{"x", "y", "z"} { // x comes first
		g.stages[name].set(func() { g.stages[name].refusing[hostA] = true })
	}
	g.serve(third)
}

// While the store is away, members that confirm each other go on; one that is alone ends
// its connections in time, and serves again in the same epoch.
func TestClusterWithoutItsStore(t *testing.T) {
	t.Parallel()
	g := newCircle(t, "x", "y")
	first, other := g.began()
	g.shelf.be(true)
	time.Sleep(2 * time.Second)
	for name := range g.all {
		const report = "the store of the cluster does not answer, and no other host can be elected: relay=r cluster=test on-store-loss=failsafe"
		proctest.Until(t, name+" says so", func() bool { return strings.Contains(g.logs[name].String(), report) })
	}
	for name, c := range g.all {
		if c.Snapshot().Primary != first || !g.leases[name].Holds(boottime.Now()) || g.count(name, "fence <2") != 0 {
			t.Errorf("%s with grants: %q", name, g.stages[name].events())
		}
	}
	if err := g.all["x"].Lock(t.Context(), Lock{Kind: Drain, Host: other, Since: time.Now()}); err == nil || !strings.Contains(err.Error(), "at this instance only") {
		t.Errorf("a lock without the store: %v", err)
	}

	g.mu.Lock()
	g.deaf = true
	g.mu.Unlock()
	for name, c := range g.all {
		proctest.Until(t, name+" ends its connections", func() bool {
			return c.Snapshot().Primary == "" && g.count(name, "fence <2 but  grace 0s") == 1 && !g.leases[name].Holds(boottime.Now())
		})
	}
	for name, other := range map[string]string{"x": "y", "y": "x"} {
		const reason = "the store does not answer, and to go on without it is not confirmed by "
		if log := g.logs[name].String(); !strings.Contains(log, `lease is over, all connections are reset: relay=r epoch=1 reason="`+reason+other+`"`) {
			t.Errorf("%s says:\n%s", name, log)
		}
		if text := g.all[name].Status().Cluster.String(); !strings.Contains(text, reason+other) || !strings.HasSuffix(text, "(the store is away)") || strings.Contains(text, "silent") {
			t.Errorf("the state of %s: %s", name, text)
		}
	}
	g.shelf.be(false)
	for name := range g.all {
		proctest.Until(t, name+" says that it is back", func() bool { return strings.Contains(g.logs[name].String(), "the store of the cluster answers again") })
	}
	if n := g.serve(first); n != 1 {
		t.Errorf("they serve in epoch %d", n)
	}
	proctest.Until(t, "y knows of the lock", func() bool { return g.all["y"].Status().Lock(Drain, other) != nil })
}

// Why the lease is over is said as it is, and nothing is said twice.
func TestClusterSaysWhy(t *testing.T) {
	t.Parallel()
	const off = "etcd at a: refused\nmember \"b\" at c: status 502: etcd at a: refused\nmember \"d\" at e: timeout"
	s := ClusterStatus{Failing: time.Now(), Error: off}
	s.Known, s.Record = true, cluster.Record{Version: 1, Open: true, Host: hostA, Roster: []string{"m"}}
	for want, set := range map[string]func(*ClusterStatus){
		"connects no client: the store does not answer; the store has served no request for 0s (etcd at a: refused; member \"d\" at e: timeout)": func(*ClusterStatus) {},
		"c does not answer this instance: member \"d\" at e: timeout; the store has served no request for 0s (etcd at a: refused)": func(s *ClusterStatus) {
			s.Members, s.Unanswered = []cluster.Other{{Name: "c", Known: true}}, map[string]string{"c": `member "d" at e: timeout`}
		},
		"the store does not answer, and on-store-loss is fence":                  func(s *ClusterStatus) { s.OnStoreLoss = cluster.Fence },
		"the store has not answered for longer than failsafe-limit":              func(s *ClusterStatus) { s.LimitOver, s.Missing = true, []string{"x"} },
		"this program did not run for that long, or the store answered too late": func(s *ClusterStatus) { s.Failing = time.Time{} },
	} {
		s := s
		set(&s)
		if text := s.String(); !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
}

// A change that its member does not complete failed because of that, and not because of
// the host.
func TestClusterDriverStops(t *testing.T) {
	t.Parallel()
	trigger := filepath.Join(t.TempDir(), "trigger")
	if err := os.WriteFile(trigger, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	g := emptyCircle(t)
	members := []string{"x", "y"}
	for _, name := range members {
		g.stages[name] = newStage()
		g.all[name], g.leases[name] = g.member(name, members, Config{Triggers: Triggers{Path: trigger, Timeout: time.Minute}})
	}
	for _, name := range members {
		g.run(name)
	}
	_, other := g.began()
	x := g.stages["x"]
	x.set(func() { x.pause["trigger "+other] = time.Minute })
	go func() { _, _ = g.all["x"].Switch(context.Background(), SwitchRequest{Host: other}) }()
	proctest.Until(t, "its trigger runs", func() bool { return g.count("x", "trigger "+other) == 1 })
	g.stops["x"]()
	delete(g.all, "x")
	g.serve(other)
	all, _ := g.all["y"].Incidents()
	for _, i := range all {
		if i.Epoch == 2 && (i.Outcome != Interrupted || i.Failure != "the instance that made the change did not complete it") {
			t.Errorf("epoch 2 ended with %s: %s", i.Outcome, i.Failure)
		}
	}
}

// A member that ends in order is not waited for, and the roster is changed by orders.
func TestClusterRoster(t *testing.T) {
	t.Parallel()
	g := newCircle(t, "x", "y")
	_, other := g.began()
	g.stops["y"]()
	delete(g.all, "y")
	proctest.Until(t, "x knows that y has ended", func() bool {
		m := g.all["x"].Status().Cluster.Members
		return len(m) == 1 && m[0].Member.Leaving
	})
	if _, err := g.all["x"].Switch(t.Context(), SwitchRequest{Host: other}); err != nil {
		t.Fatal(err)
	}
	if err := g.all["x"].ChangeRoster(t.Context(), RosterOrder{Member: "y", Forget: true}); err != nil {
		t.Fatal(err)
	}
	if roster := g.all["x"].Status().Cluster.Record.Roster; !slices.Equal(roster, []string{"x"}) {
		t.Errorf("roster %q", roster)
	}
	if err := g.all["x"].ChangeRoster(t.Context(), RosterOrder{Member: "w"}); err != nil {
		t.Fatal(err)
	}
	if roster := g.all["x"].Status().Cluster.Record.Roster; !slices.Equal(roster, []string{"x", "w"}) {
		t.Errorf("roster %q", roster)
	}
	if err := g.all["x"].ChangeRoster(t.Context(), RosterOrder{Member: "x", Forget: true}); err == nil {
		t.Error("x forgets itself")
	}
}

// A member that was forgotten itself changes the roster no more, and says so.
func TestClusterForgottenMember(t *testing.T) {
	t.Parallel()
	g := newCircle(t, "x", "y")
	g.began()
	if err := g.all["x"].ChangeRoster(t.Context(), RosterOrder{Member: "y", Forget: true}); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, "y knows", func() bool { return strings.Contains(g.all["y"].Status().Cluster.Trouble, "not in the roster") })
	if err := g.all["y"].ChangeRoster(t.Context(), RosterOrder{Member: "z"}); err == nil || err.Error() != "y is no member itself: order it at one that is (x)" {
		t.Errorf("y adds another one: %v", err)
	}
}

// A primary that is removed from the settings of all members is replaced, as soon as the
// last of them has the new ones.
func TestClusterPrimaryIsRemoved(t *testing.T) {
	t.Parallel()
	g := newCircle(t, "x", "y")
	first, other := g.began()
	for _, name := range []string{"x", "y"} {
		c := g.all[name]
		cfg := *c.cfg()
		agreement := *cfg.Cluster
		agreement.Machine.Settings = "without " + first
		cfg.Hosts, cfg.Cluster = []string{other, "192.0.2.3:3"}, &agreement
		if err := c.Reconfigure(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if name == "x" {
			proctest.Until(t, "x has lost the primary", func() bool { return c.Snapshot().Primary == "" })
			if y := g.all["y"].Snapshot(); y.Primary != first || y.Epoch != 1 {
				t.Errorf("with the old settings y serves %q in epoch %d", y.Primary, y.Epoch)
			}
		}
	}
	if epoch := g.serve(other); epoch != 2 {
		t.Errorf("they serve in epoch %d", epoch)
	}
}

// Triggers run at the member that makes the election, and nowhere else.
func TestClusterTriggers(t *testing.T) {
	t.Parallel()
	trigger := filepath.Join(t.TempDir(), "trigger")
	if err := os.WriteFile(trigger, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	g := newCircle(t)
	members := []string{"x", "y"}
	for _, name := range members {
		g.stages[name] = newStage()
		g.all[name], g.leases[name] = g.member(name, members, Config{Triggers: Triggers{Path: trigger}})
	}
	for _, name := range members {
		g.run(name)
	}
	first, other := g.began()
	if x, y := g.count("x", "trigger "+first), g.count("y", "trigger "+first); x+y != 1 {
		t.Errorf("at the start the trigger ran %d and %d times", x, y)
	}
	if _, err := g.all["y"].Switch(t.Context(), SwitchRequest{Host: other}); err != nil {
		t.Fatal(err)
	}
	g.serve(other)
	if x, y := g.count("x", "trigger "+other), g.count("y", "trigger "+other); x != 0 || y != 1 {
		t.Errorf("in the switch the trigger ran %d and %d times", x, y)
	}
}

// A store that knows less than the member remembers is not believed.
func TestClusterStoreGoesBack(t *testing.T) {
	t.Parallel()
	for cluster, believed := range map[string]bool{"test": false, "another": true, "": true} {
		g := newCircle(t)
		g.stages["x"] = newStage()
		c, _ := g.member("x", []string{"x"}, Config{StateFile: &StateFile{loaded: state{Epoch: 9, Cluster: cluster, Primary: hostB}, closed: true}})
		c.settings.Load().StateFile = nil // nothing is saved here
		g.all["x"] = c
		g.run("x")
		if believed {
			g.began()
			continue
		}
		proctest.Until(t, "it complains", func() bool { return strings.Contains(c.Status().Cluster.Trouble, "gone back in time") })
		if now := c.Snapshot(); now.Primary != "" || now.Phase != selector.Selecting {
			t.Errorf("it serves %q", now.Primary)
		}
	}
}

// A clock that runs wrong is an alarm, which names the member.
func TestClusterReportsWrongClock(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "event")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	g := newCircle(t)
	for _, name := range []string{"x", "y"} {
		g.stages[name] = newStage()
		g.all[name], g.leases[name] = g.member(name, []string{"x", "y"}, Config{Notices: Notices{Path: script}, NoticeScripts: g.stages[name]})
	}
	g.run("x")
	g.run("y")
	g.began()
	c := g.all["x"]
	err := c.request(t.Context(), func() selector.Event { // the last quarter of an hour, in which y's clock ran twice as fast
		now := boottime.Now()
		c.agree.clocks = cluster.NewClocks("x")
		entries := []cluster.Entry{{Name: "y", Member: cluster.Member{Boot: g.all["y"].agree.cfg.Machine.Boot}}}
		for ago := 15 * time.Minute; ago > 0; ago -= time.Second {
			entries[0].Member.Clock = now - 2*ago
			c.agree.clocks.Observe(now-ago, now-ago, entries)
		}
		return selector.Tick{}
	})
	if err != nil {
		t.Fatal(err)
	}
	const wrong = "the clock of y runs faster than that of x, by more than 1 %"
	proctest.Until(t, "it is noticed", func() bool { return c.Status().Cluster.Clocks == wrong })
	if text := c.Status().Cluster.String(); !strings.Contains(text, wrong) {
		t.Errorf("the state is %q", text)
	}
	proctest.Until(t, "it is reported", func() bool { return g.count("x", "UNDERSTUDY_REASON="+wrong) == 1 })
}

// What contradicts a cluster is an error.
func TestClusterContradictions(t *testing.T) {
	t.Parallel()
	s := newStage()
	cfg := complete(Config{
		Hosts: []string{"db1:5432", hostA}, Gate: s, Checks: []Check{{Name: "tcp", Run: s.connect}}, Cluster: &Cluster{Name: "c"},
	})
	cfg.Fence.Keep = true
	_, err := New(cfg)
	for _, want := range []string{"keep contradicts", `"db1:5432" is a name`, "store, lease and ask are required"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// Of two processes with the same name the one that goes on knows of the other, and says
// where it is, until the other has ended; and so does the one that is refused.
func TestClusterNameTwice(t *testing.T) {
	t.Parallel()
	g := newCircle(t, "x", "y")
	g.began()
	first, stage, log := g.all["x"], g.stages["x"], g.logs["x"]
	g.stages["x"] = newStage()
	twin, _ := g.member("x", []string{"x", "y"}, Config{})
	where := func(c *Conductor) string { return fmt.Sprint("process ", c.agree.cfg.Machine.Boot) }
	g.stages["x"], g.logs["x"] = stage, log
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- twin.Run(ctx) }()
	t.Cleanup(stop)

	proctest.Until(t, "the first knows of the twin", func() bool { return first.Status().Cluster.Rival == where(twin) })
	proctest.Until(t, "the twin knows of the first", func() bool {
		s := twin.Status().Cluster
		return s.Rival == where(first) && s.Trouble == `another process has the member name "x"`
	})
	s := first.Status().Cluster
	if want := "another process has the name x, too: " + where(twin); !strings.Contains(s.String(), want) || s.Trouble != "" || s.Lease <= 0 {
		t.Errorf("state %q, trouble %q, lease %v, want %q", s, s.Trouble, s.Lease, want)
	}
	if y := g.all["y"].Status().Cluster; y.Rival != "" {
		t.Errorf("y has a rival, too: %s", y.Rival)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	proctest.Until(t, "the twin is forgotten", func() bool { return first.Status().Cluster.Rival == "" })
}
