package cluster

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var labConfig = Config{
	Lease: 5 * time.Second, Heartbeat: time.Second, Request: time.Second, Slack: time.Second,
	Agree: Majority, OnStoreLoss: Failsafe,
}

// lab is a world in which everything works at once, except what a test stops.
type lab struct {
	*world
	t   *testing.T
	cfg Config
	net []message

	noStore, noPeers, hangs, noRun map[int]bool // by member

	reads func() // called when a member reads the keys of all
}

func newLab(t *testing.T, members int, cfg Config) *lab {
	t.Helper()
	l := &lab{t: t, cfg: cfg, noStore: map[int]bool{}, noPeers: map[int]bool{}, hangs: map[int]bool{}, noRun: map[int]bool{}}
	l.world = newWorld(members, unbroken, func(_ *world, m message) { l.net = append(l.net, m) })
	for i := range members {
		l.bear(i, cfg)
	}
	l.settle()
	return l
}

// settle lets everything happen that needs no time.
func (l *lab) settle() {
	for again := true; again; {
		again = false
		for len(l.net) > 0 {
			m := l.net[0]
			l.net = l.net[1:]
			if m.to < 0 && l.noStore[m.from] || m.to >= 0 && (l.noPeers[m.from] || l.noPeers[m.to] || l.nodes[m.to].stop) {
				continue
			}
			if w, write := m.request.(Write); write && w.Members && l.reads != nil {
				l.reads()
			}
			version := l.record.Version
			if m.answer = l.apply(m); m.answer != nil {
				l.deliver(m)
			}
			l.hint(m, version)
		}
		for i := range l.nodes {
			n := &l.nodes[i]
			if n.dead || n.stop {
				continue
			}
			switch {
			case n.ending != 0 && !l.hangs[i]:
				l.fenced(i)
			case n.running != 0 && !l.noRun[i]:
				epoch := n.running
				n.running = 0
				l.step(i, Ran{Epoch: epoch})
			case n.m.Wake() <= n.clock && n.m.now < n.clock:
				l.step(i, Tick{})
			default:
				continue
			}
			again = true
		}
	}
	if l.violation != "" {
		l.t.Fatal(l.violation)
	}
}

// hint reports a write to those who watch.
func (l *lab) hint(m message, version uint64) {
	for i := range l.nodes {
		n := &l.nodes[i]
		if n.dead || n.stop || l.noStore[i] || m.to >= 0 {
			continue
		}
		if l.record.Version != version {
			l.step(i, Changed{})
		}
	}
}

// run lets time pass.
func (l *lab) run(d time.Duration) {
	for range d / (100 * time.Millisecond) {
		for i := range l.nodes {
			l.nodes[i].clock += 100 * time.Millisecond
		}
		l.settle()
	}
}

// do passes an event to the machine of a member, and lets everything happen that
// needs no time but that of a driver to read the keys of the others again.
func (l *lab) do(i int, ev Event) {
	l.step(i, ev)
	l.settle()
	l.run(100 * time.Millisecond)
}

// state describes who serves what: "1a: mn" is epoch 1 at host a, through m and
// n.
func (l *lab) state() string {
	phase := "fence"
	if l.record.Open {
		phase = l.record.Host
	}
	var who []string
	for i := range l.nodes {
		if n := &l.nodes[i]; n.live && n.clock < n.lease {
			who = append(who, fmt.Sprintf("%s%d", name(i), n.epoch))
		}
	}
	return fmt.Sprintf("%d %s: %s", l.record.Epoch, phase, strings.Join(who, " "))
}

func (l *lab) want(state string) {
	l.t.Helper()
	if got := l.state(); got != state {
		l.t.Fatalf("the state is %q, want %q\nm: %+v", got, state, l.nodes[0].m)
	}
}

// order is a wish of an operator, which needs no agreement.
func order(host string) Want { return Want{Host: host, Event: "switchover", Agreed: true} }

func failover(host string) Want { return Want{Host: host, Event: "failover"} }

// With everybody alive a change takes no time but that of the messages.
func TestChange(t *testing.T) {
	l := newLab(t, 3, labConfig)
	l.want("1 a: m1 n1 o1")
	l.do(1, order("b"))
	l.want("2 b: m2 n2 o2")
	if r := l.record; r.Old != "a" || r.Driver != "n" || r.Event != "switchover" {
		t.Errorf("the record is %+v", r)
	}
	l.run(time.Minute)
	l.want("2 b: m2 n2 o2")
}

// Of many members each reads the keys of the others seldom, and at once when it
// matters what they say.
func TestManyRead(t *testing.T) {
	const members = 2 * keysABeat
	l := newLab(t, members, labConfig)
	l.run(10 * time.Second)
	read := 0
	l.reads = func() { read++ }
	l.run(20 * time.Second)
	if most := members * (20/2 + 1); read > most || read < members*(20/2-1) {
		t.Errorf("%d readings in 20s by %d members", read, members)
	}
	for i := range l.nodes {
		if s := l.nodes[i].m.Snapshot(); s.Fresh != members || s.Beat != 2*time.Second {
			t.Errorf("%s has heard of %d, and hears in %v", name(i), s.Fresh, s.Beat)
		}
	}

	for i := range l.nodes {
		l.do(i, Down{Hosts: []string{"a"}})
		l.do(i, failover("b"))
		if l.record.Epoch == 2 {
			break
		}
	}
	l.run(200 * time.Millisecond)
	if !l.record.Open || l.record.Host != "b" {
		t.Errorf("the record is %+v", l.record)
	}
}

// The first member makes the record of a cluster that has none.
func TestFirstRecord(t *testing.T) {
	l := newLab(t, 2, labConfig)
	l = &lab{t: t, cfg: l.cfg, world: l.world, noStore: l.noStore, noPeers: l.noPeers, hangs: l.hangs, noRun: l.noRun}
	roster := l.record.Roster
	l.world = newWorld(2, unbroken, func(_ *world, m message) { l.net = append(l.net, m) })
	for i := range l.nodes {
		l.bear(i, labConfig)
	}
	l.record = Record{}
	l.settle()
	l.do(0, order("a"))
	l.want("1 a: m1 n1")
	if !slices.Equal(l.record.Roster, roster) {
		t.Errorf("the roster is %q, want %q", l.record.Roster, roster)
	}
}

// A member that is dead, or hangs while it fences, is waited for until its lease
// is over, and no longer.
func TestBarrierIsBounded(t *testing.T) {
	for _, how := range []string{"dead", "hangs"} {
		t.Run(how, func(t *testing.T) {
			l := newLab(t, 3, labConfig)
			if how == "dead" {
				l.kill(2)
			} else {
				l.hangs[2] = true
			}
			l.do(0, order("b"))
			if w := l.nodes[0].m.Snapshot().Waiting; len(w) != 1 || w[0].Member != "o" || w[0].Most != labConfig.Wait() {
				t.Errorf("waits for %+v, want o", w)
			}
			l.run(labConfig.Wait() - 200*time.Millisecond)
			if l.record.Open {
				t.Fatalf("opened before the lease was over: %s", l.state())
			}
			l.run(400 * time.Millisecond)
			l.want("2 b: m2 n2")
		})
	}
}

// Connections that may finish are waited for.
func TestDrain(t *testing.T) {
	l := newLab(t, 2, labConfig)
	l.hangs[1] = true
	l.do(0, Want{Host: "b", Agreed: true, Drain: 20 * time.Second})
	l.run(15 * time.Second)
	l.want("2 fence: n1") // it has a lease, although the record is no longer open
	l.hangs[1] = false
	l.run(200 * time.Millisecond)
	l.want("2 b: m2 n2")
}

// A failover needs members enough that see the primary down; a dead one does not
// count.
func TestAgree(t *testing.T) {
	for _, tt := range []struct {
		agree   Agree
		members int
		down    string // members that see it down
		dead    string
		want    bool
	}{
		{Majority, 3, "m", "", false},
		{Majority, 3, "mn", "", true},
		{Majority, 3, "mn", "o", true},
		{Majority, 3, "m", "no", true},
		{Majority, 2, "m", "", false},
		{Majority, 2, "mn", "", true},
		{Majority, 2, "m", "n", true},
		{Any, 3, "m", "", true},
		{All, 3, "mn", "", false},
		{All, 3, "mno", "", true},
		{All, 3, "mn", "o", true},
	} {
		t.Run(fmt.Sprintf("%s of %d, down %q, dead %q", tt.agree, tt.members, tt.down, tt.dead), func(t *testing.T) {
			cfg := labConfig
			cfg.Agree = tt.agree
			l := newLab(t, tt.members, cfg)
			l.run(3 * time.Second)
			for i := range l.nodes {
				if strings.Contains(tt.dead, name(i)) {
					l.kill(i)
				}
			}
			l.run(5 * time.Second)
			for i := range l.nodes {
				if strings.Contains(tt.down, name(i)) {
					l.do(i, Down{Hosts: []string{"a"}})
				}
			}
			l.do(0, failover("b"))
			l.run(time.Second)
			if got := l.record.Epoch == 2; got != tt.want {
				t.Errorf("failover: %v, want %v", got, tt.want)
			}
			if s := l.nodes[0].m.Snapshot(); s.Isolated == tt.want {
				t.Errorf("isolated: %v", s.Isolated)
			}
		})
	}
}

// Members that see the primary down one after the other wait for no heartbeat: the last
// that is needed changes it.
func TestAgreeAtOnce(t *testing.T) {
	l := newLab(t, 3, labConfig)
	l.run(300 * time.Millisecond)
	for i := range 2 {
		l.do(i, Down{Hosts: []string{"a"}})
		l.do(i, failover("b"))
	}
	l.run(200 * time.Millisecond)
	l.want("2 b: m2 n2 o2")
}

// A host that too few members see up is unfit. A member that learns so when it is about to
// make it primary gives its owner the choice; wanted all the same, it becomes primary.
func TestUnfit(t *testing.T) {
	for _, tt := range []struct {
		agree Agree
		down  string // members that see b down
		dead  string
		unfit bool
	}{
		{Majority, "", "", false},
		{Majority, "n", "", false},
		{Majority, "no", "", true},
		{Majority, "no", "n", true},
		{Majority, "n", "o", true},
		{Any, "no", "", false},
		{All, "o", "", true},
		{All, "o", "o", false},
	} {
		t.Run(fmt.Sprintf("%s, down for %q, dead %q", tt.agree, tt.down, tt.dead), func(t *testing.T) {
			cfg := labConfig
			cfg.Agree = tt.agree
			l := newLab(t, 3, cfg)
			for i := range l.nodes {
				if strings.Contains(tt.dead, name(i)) {
					l.kill(i)
				}
			}
			l.run(5 * time.Second)
			for i := range l.nodes {
				hosts := []string{"a"}
				if strings.Contains(tt.down, name(i)) {
					hosts = []string{"a", "b"}
				}
				if !l.nodes[i].dead && i > 0 {
					l.do(i, Down{Hosts: hosts})
				}
			}
			l.do(0, Down{Hosts: []string{"a"}})
			m := l.nodes[0].m
			for i := range m.peers { // it has not read what the others see
				m.peers[i].Member.Down = nil
			}
			l.do(0, failover("b"))
			if done := l.record.Epoch == 2; done == tt.unfit || slices.Contains(m.Unfit(), "b") != tt.unfit {
				t.Fatalf("it is primary: %v, unfit %q", done, m.Unfit())
			}
			if !tt.unfit {
				return
			}
			if m.Wanted() != "" {
				t.Errorf("%s is still wanted", m.Wanted())
			}
			l.do(0, failover("b"))
			if l.record.Epoch != 2 || l.record.Host != "b" {
				t.Errorf("wanted again: %+v", l.record)
			}
		})
	}
}

// A member that wants another primary goes on wanting it until the others agree.
func TestAgreeLater(t *testing.T) {
	l := newLab(t, 2, labConfig)
	l.do(0, Down{Hosts: []string{"a"}})
	l.do(0, failover("b"))
	l.run(10 * time.Second)
	l.want("1 a: m1 n1")
	l.do(1, Down{Hosts: []string{"a"}})
	l.run(500 * time.Millisecond)
	l.want("2 b: m2 n2")
}

// Without the store all go on as long as all of them answer each other.
func TestStoreAway(t *testing.T) {
	away := func(l *lab) {
		for i := range l.nodes {
			l.noStore[i] = true
		}
	}
	t.Run("failsafe", func(t *testing.T) {
		l := newLab(t, 3, labConfig)
		away(l)
		l.run(time.Minute)
		l.want("1 a: m1 n1 o1")
		l.do(0, order("b")) // nothing can be agreed
		l.run(time.Minute)
		l.want("1 a: m1 n1 o1")
		l.noPeers[2] = true
		l.run(labConfig.Lease)
		l.want("1 a: ")
	})
	t.Run("limit", func(t *testing.T) {
		cfg := labConfig
		cfg.FailsafeLimit = 20 * time.Second
		l := newLab(t, 3, cfg)
		away(l)
		l.run(19 * time.Second)
		l.want("1 a: m1 n1 o1")
		l.run(2 * labConfig.Lease)
		l.want("1 a: ")
	})
	t.Run("fence", func(t *testing.T) {
		cfg := labConfig
		cfg.OnStoreLoss = Fence
		l := newLab(t, 3, cfg)
		away(l)
		l.run(labConfig.Lease)
		l.want("1 a: ")
		l.noStore = map[int]bool{}
		l.run(cfg.Request + cfg.Heartbeat)
		l.want("1 a: m1 n1 o1")
	})
	t.Run("one member only", func(t *testing.T) {
		l := newLab(t, 3, labConfig)
		l.noStore[2] = true
		l.run(time.Minute)
		l.want("1 a: m1 n1 o1")
		l.do(0, order("b"))
		l.run(labConfig.Wait() + 200*time.Millisecond)
		l.want("2 b: m2 n2") // and o was refused
	})
}

// A member that goes on without a lease must acknowledge, or be declared dead.
func TestKeep(t *testing.T) {
	cfg := labConfig
	cfg.OnStoreLoss = Keep
	l := newLab(t, 2, cfg)
	l.noStore[1] = true
	l.run(time.Hour)
	l.kill(1)
	l.do(0, order("b"))
	l.run(time.Hour)
	l.want("2 fence: ")
	l.do(0, Force{Epoch: 2})
	l.run(time.Second)
	l.want("2 b: m2")
}

// A driver that dies is followed by another one, with the next epoch.
func TestDriverDies(t *testing.T) {
	l := newLab(t, 3, labConfig)
	l.noRun[0] = true
	l.do(0, order("b"))
	l.want("2 fence: ")
	l.kill(0)
	l.do(1, order("b"))
	l.run(labConfig.Wait() - time.Second)
	l.want("2 fence: ")
	l.run(4*time.Second + labConfig.Wait()) // m has not acknowledged the new epoch either
	l.want("3 b: n3 o3")
}

// Triggers are killed with the lease of the driver, and run again in the next
// epoch only.
func TestTriggersEndWithLease(t *testing.T) {
	l := newLab(t, 2, labConfig)
	l.noRun[0] = true
	l.do(0, order("b"))
	l.noStore[0], l.noPeers[0] = true, true
	l.run(labConfig.Lease)
	if l.nodes[0].running != 0 {
		t.Error("the triggers go on without a lease")
	}
	l.noStore[0], l.noPeers[0], l.noRun[0] = false, false, false
	l.run(2 * time.Second)
	l.want("3 b: m3 n3")
}

// Triggers are killed when another member has taken over.
func TestTriggersEndWhenTakenOver(t *testing.T) {
	l := newLab(t, 2, labConfig)
	l.noRun[0] = true
	l.do(0, order("b"))
	if l.nodes[0].running != 2 {
		t.Fatal("the triggers do not run")
	}
	l.record.Version++
	l.record.Epoch++
	l.record.Driver, l.record.Boot, l.record.DriverBoot = "n", l.nodes[1].m.cfg.Boot, l.nodes[1].m.cfg.Boot
	l.do(0, Changed{})
	if l.nodes[0].running != 0 {
		t.Error("the triggers of the old driver go on")
	}
}

// A host whose triggers fail is not opened, and another one gets the next epoch.
func TestTriggersFail(t *testing.T) {
	l := newLab(t, 2, labConfig)
	l.noRun[0] = true
	l.do(0, order("b"))
	l.nodes[0].running = 0
	l.do(0, Ran{Epoch: 2, Failed: true})
	l.run(2 * labConfig.Wait())
	l.want("2 fence: ")
	l.noRun[0] = false
	l.do(0, order("a"))
	l.want("3 a: m3 n3")
}

func TestLeave(t *testing.T) {
	l := newLab(t, 2, labConfig)
	l.do(1, Leave{})
	if !l.nodes[1].dead {
		t.Fatal("n has not left")
	}
	l.do(0, order("b"))
	l.want("2 b: m2") // nobody waits for one that has left
	l.bear(1, labConfig)
	l.settle()
	l.want("2 b: m2 n2")
}

// A driver that leaves kills its triggers first: the others do not wait for one
// that has left, and run them in the next epoch.
func TestDriverLeavesWithTriggers(t *testing.T) {
	l := newLab(t, 2, labConfig)
	l.noRun[0] = true
	l.do(0, order("b"))
	if l.nodes[0].running != 2 {
		t.Fatal("the triggers do not run")
	}
	l.do(0, Leave{})
	if !l.nodes[0].dead {
		t.Fatal("m has not left")
	}
	l.run(2 * labConfig.Heartbeat)
	l.want("3 b: n3")
}

// A driver that learns only from the answer to its last write that everybody has
// acknowledged its fence does not run the triggers any more.
func TestDriverLeavesBeforeTriggers(t *testing.T) {
	l := newLab(t, 2, labConfig)
	l.hangs[1] = true
	l.do(0, order("b"))
	l.want("2 fence: n1")
	l.step(0, Leave{})
	last := l.net
	l.net = nil
	l.hangs[1] = false
	l.settle() // n acknowledges
	l.net = append(l.net, last...)
	l.settle()
	if !l.nodes[0].dead {
		t.Fatal("m has not left")
	}
	l.run(2 * labConfig.Heartbeat)
	l.want("3 b: n3")
}

// A life after one that was killed takes its key when it does not move, and
// acknowledges nothing for it before its lease is over.
func TestReborn(t *testing.T) {
	l := newLab(t, 2, labConfig)
	l.kill(1)
	l.bear(1, labConfig)
	l.run(labConfig.Heartbeat)
	l.want("1 a: m1")
	l.run(2 * labConfig.Heartbeat)
	l.want("1 a: m1 n1")
	l.do(0, order("b"))
	l.run(labConfig.Wait() - 500*time.Millisecond)
	l.want("2 fence: ")
	l.run(time.Second)
	l.want("2 b: m2 n2")
}

// Two processes with one name: the second does not take part.
func TestNameUsedTwice(t *testing.T) {
	l := newLab(t, 2, labConfig)
	cfg := labConfig
	cfg.Member, cfg.Boot, cfg.Roster, cfg.Settings = "m", 99, l.record.Roster, "s"
	second, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		l.run(100 * time.Millisecond)
		for _, a := range second.Step(l.nodes[0].clock, Tick{}) {
			switch a := a.(type) {
			case Write:
				second.Step(l.nodes[0].clock, l.apply(message{from: 0, to: -1, request: a}))
			default:
				t.Fatalf("the second one has the action %T", a)
			}
		}
	}
	if got := second.Snapshot().Trouble; !strings.Contains(got, `"m"`) {
		t.Errorf("its trouble is %q, want one that names m", got)
	}
	l.want("1 a: m1 n1")
}

// A store that was restored from an old backup is refused, in the same life and
// in the next.
func TestStoreGoesBack(t *testing.T) {
	l := newLab(t, 2, labConfig)
	old := l.record
	l.do(0, order("b"))
	l.record = old
	l.nodes[0].clock += time.Second
	m := l.nodes[0].m
	for _, a := range m.Step(l.nodes[0].clock, Tick{}) {
		if w, write := a.(Write); write {
			lease := m.Lease()
			m.Step(l.nodes[0].clock, l.apply(message{from: 0, to: -1, request: w}))
			if m.Lease() != lease {
				t.Error("the lease is extended")
			}
		}
	}
	if s := m.Snapshot(); !strings.Contains(s.Trouble, "back in time") {
		t.Errorf("trouble %q", s.Trouble)
	}
	if m.Grants("n", l.nodes[1].m.cfg.Boot, old.Version, old.Boot) {
		t.Error("a grant for a record that has come back")
	}

	cfg := labConfig
	cfg.Member, cfg.Boot, cfg.Roster, cfg.Settings, cfg.Epoch = "n", 99, old.Roster, "s", 2
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.Step(0, Wrote{OK: true, Own: Entry{Name: "n", Revision: 9, Member: Member{Boot: 99}}, Record: old, Revision: 1})
	if s := m.Snapshot(); !strings.Contains(s.Trouble, "back in time") || s.Live || s.Lease > 0 {
		t.Errorf("the next life: %+v", s)
	}
}

// A member with other settings neither opens nor drives, until all have them.
func TestSettings(t *testing.T) {
	l := newLab(t, 2, labConfig)
	l.do(1, SetSettings{"new"})
	l.do(1, order("b"))
	l.run(time.Minute)
	l.want("1 a: m1 n1")
	if got := l.nodes[1].m.Snapshot().Trouble; got != "the settings differ from those of the cluster: new here, s there" {
		t.Errorf("the trouble is %q", got)
	}
	l.do(0, order("b"))
	l.want("2 b: m2")
	l.do(0, SetSettings{"new"})
	l.run(5 * time.Second)
	l.want("2 b: m2 n2")
	if l.record.Settings != "new" {
		t.Errorf("the settings are %q", l.record.Settings)
	}
}

// An order that is given at one member holds for all.
func TestLocks(t *testing.T) {
	l := newLab(t, 2, labConfig)
	l.do(1, SetLocks{"frozen"})
	l.run(2 * time.Second)
	for i := range l.nodes {
		if got := l.nodes[i].m.Snapshot().Record.Locks; got != "frozen" {
			t.Errorf("%s knows the locks %q", name(i), got)
		}
	}
	l.do(0, order("b"))
	if l.record.Locks != "frozen" {
		t.Error("a change of the primary loses the locks")
	}
	l.want("2 b: m2 n2")
}

// What is known of the primary is in the record, and stays there until more is known or
// another host is open.
func TestFact(t *testing.T) {
	l := newLab(t, 2, labConfig)
	say := func(i int, f Fact, want Fact) {
		t.Helper()
		l.do(i, SetFact{f})
		if l.record.Fact != want {
			t.Errorf("after %+v of %s the record has %+v, want %+v", f, name(i), l.record.Fact, want)
		}
	}
	first := Fact{Host: "a", Term: 3, Identity: "ours"}
	say(0, Fact{Host: "b", Term: 9, Identity: "theirs"}, Fact{})
	say(1, Fact{Host: "a", Term: 3}, Fact{Host: "a", Term: 3})
	say(0, first, first)
	say(1, Fact{Host: "a", Term: 2, Identity: "ours"}, first)
	version := l.record.Version
	l.run(10 * labConfig.Heartbeat)
	if l.record.Version != version {
		t.Error("members that know less write the record again and again")
	}
	again := Fact{Host: "a", Term: 1, Identity: "made anew"}
	say(0, again, again)
	l.do(1, SetFact{first}) // both see the same address, and other hosts there
	l.do(0, SetFact{again})
	version = l.record.Version
	l.run(10 * labConfig.Heartbeat)
	if l.record.Version != version {
		t.Error("members that disagree write the record again and again")
	}
	later := Fact{Host: "a", Term: 4, Identity: "ours"}
	say(1, later, later)
	l.do(0, order("b"))
	l.want("2 b: m2 n2")
	if l.record.Fact != later {
		t.Errorf("a change of the primary loses what is known: %+v", l.record.Fact)
	}
	say(0, Fact{Host: "b", Term: 2, Identity: "ours"}, Fact{Host: "b", Term: 2, Identity: "ours"})
}

// A member that is forgotten is not waited for, and moves nothing any more.
func TestForget(t *testing.T) {
	l := newLab(t, 3, labConfig)
	l.do(0, SetRoster{Change{Name: "o", Forget: true}})
	l.run(labConfig.Heartbeat)
	l.want("1 a: m1 n1")
	l.run(labConfig.Wait())
	if want := []string{"m", "n"}; !slices.Equal(l.record.Roster, want) {
		t.Errorf("the roster is %q, want %q", l.record.Roster, want)
	}
	l.do(1, order("b"))
	l.want("2 b: m2 n2")
	if got := l.nodes[2].m.Snapshot().Trouble; !strings.Contains(got, "roster") {
		t.Errorf("the trouble of o is %q", got)
	}
	l.do(0, SetRoster{Change{Name: "o"}})
	l.run(labConfig.Heartbeat)
	l.want("2 b: m2 n2")
	l.run(labConfig.Wait() + 2*time.Second)
	l.want("2 b: m2 n2 o2")
}

// The lease is counted from before the request, whatever the answer takes.
func TestLeaseBeginsBeforeRequest(t *testing.T) {
	cfg := labConfig
	cfg.OnStoreLoss = Fence
	l := newLab(t, 1, cfg)
	n := &l.nodes[0]
	n.clock += time.Second
	sent := n.clock
	l.step(0, Tick{})
	n.clock += 3 * time.Second
	first := l.net[0]
	first.answer = l.apply(first)
	l.deliver(first)
	if got := n.m.Lease(); got != sent+labConfig.Lease {
		t.Errorf("the lease ends %v after the request, want %v", got-sent, labConfig.Lease)
	}
}

func TestConfig(t *testing.T) {
	_, err := New(Config{Member: "x", Roster: []string{"a", "", "a"}, Slack: -1, FailsafeLimit: -1})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`roster: "x" is missing`, "roster[1]: empty", `roster[2]: "a" is listed twice`, "boot: required", "lease: 0s", "heartbeat: 0s",
		"request: 0s", "slack: -1ns", "failsafe-limit: -1ns", `agree: ""`, `on-store-loss: ""`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %q", err, want)
		}
	}
}

// Bytes move before the end of the lease and not at its end.
func TestLease(t *testing.T) {
	var l Lease
	if l.Holds(0) {
		t.Error("the zero lease holds")
	}
	l.Set(time.Second)
	if !l.Holds(time.Second-1) || l.Holds(time.Second) {
		t.Error("the lease does not end at its end")
	}
}

// A life of a member whose key another one has taken gets no grants: it may be cut off
// from the store and not from the others, and the new one acknowledges epochs in its place.
func TestGrantsOnlyTheLifeThatHasTheKey(t *testing.T) {
	l := newLab(t, 2, labConfig)
	asker, granter := l.nodes[1].m, l.nodes[0].m
	r := granter.record
	if !granter.Grants("n", asker.cfg.Boot, r.Version, r.Boot) {
		t.Fatal("no grant for the life that has the key")
	}
	if granter.Grants("n", asker.cfg.Boot+1, r.Version, r.Boot) {
		t.Error("a grant for another life")
	}
	p := granter.peer("n")
	p.Member.Boot++ // as read with the next heartbeat
	if granter.Grants("n", asker.cfg.Boot, r.Version, r.Boot) {
		t.Error("a grant for a life of which another one has taken the key")
	}
	granter.peers = nil // nothing is known of its lives
	if !granter.Grants("n", asker.cfg.Boot, r.Version, r.Boot) {
		t.Error("no grant for a life of which no key was read")
	}
}
