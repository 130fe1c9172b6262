package cluster

import (
	"strings"
	"testing"
	"time"
)

// restored is a member of two that serves a in epoch 10, by a record of version 20,
// when the store is restored from a backup of version 12 and epoch 8.
type restored struct {
	t      *testing.T
	m      *Machine
	now    time.Duration
	record Record // of the backup
	write  Write  // the last
}

func newRestored(t *testing.T) *restored {
	t.Helper()
	cfg := labConfig
	cfg.Member, cfg.Boot, cfg.Roster, cfg.Settings = "m", 7, []string{"m", "n"}, "s"
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &restored{t: t, m: m, record: Record{
		Version: 20, Boot: 3, Epoch: 10, Open: true, Host: "a", Driver: "m", DriverBoot: 3, Roster: cfg.Roster, Settings: "s",
	}}
	r.step(Tick{})
	r.answer(true)
	r.answer(true)
	if s := m.Snapshot(); !s.Live || s.Epoch != 10 || r.write.Own.Fenced != 10 {
		t.Fatalf("it does not serve in epoch 10: %+v", s)
	}
	r.record.Version, r.record.Epoch, r.record.DriverBoot = 12, 8, 2
	return r
}

func (r *restored) step(ev Event) {
	for _, a := range r.m.Step(r.now, ev) {
		switch a := a.(type) {
		case Write:
			r.write = a
		case EndOlder:
			r.step(Fenced{Order: a.Order})
		}
	}
}

// answer answers the last write, and lets the next one be due.
func (r *restored) answer(ok bool) {
	r.t.Helper()
	r.step(Wrote{
		Sent: r.write.Sent, OK: ok, Own: Entry{Name: "m", Member: Member{Boot: 7}, Revision: r.write.Expect + 1},
		Record: r.record, Revision: int64(r.record.Version),
	})
	r.now += labConfig.Heartbeat
	r.step(Tick{})
}

// trouble returns what keeps it from taking part.
func (r *restored) trouble() string { return r.m.Snapshot().Trouble }

// A member that remembers a later epoch acknowledges nothing in a store that was
// restored: somebody who remembers nothing may drive there, to an epoch whose number
// it has acknowledged long ago, while it moves bytes until its lease is over.
func TestRestoredStoreIsNotAcknowledged(t *testing.T) {
	r := newRestored(t)
	r.answer(false) // its key has another revision there
	if r.write.Own.Fenced != 0 || r.write.Own.Leaving || !r.m.Snapshot().Live {
		t.Errorf("while connections of epoch 10 live it says %+v", r.write.Own)
	}
	r.answer(true)
	if r.write.Own.Fenced != 0 {
		t.Errorf("it acknowledges epoch %d", r.write.Own.Fenced)
	}
}

// A record of a store that was restored is not believed either when it has been
// written so often meanwhile that its version is the later one.
func TestRestoredStoreGoesOn(t *testing.T) {
	for what, change := range map[string]func(*Record){
		"locks":                              func(r *Record) { r.Version = 25 },
		"another change to that epoch":       func(r *Record) { r.Version, r.Epoch, r.Host = 25, 10, "b" },
		"another fence of that epoch":        func(r *Record) { r.Version, r.Epoch, r.Open = 25, 10, false },
		"as many versions and an epoch less": func(r *Record) { r.Version, r.Epoch, r.Boot = 20, 9, 2 },
	} {
		r := newRestored(t)
		change(&r.record)
		lease := r.m.Lease()
		r.answer(true)
		if !strings.Contains(r.trouble(), "gone back in time") || r.m.Lease() != lease {
			t.Errorf("%s: the trouble is %q, and the lease %v instead of %v", what, r.trouble(), r.m.Lease(), lease)
		}
		r.record.Version, r.record.Epoch, r.record.DriverBoot = 30, 11, 9
		r.answer(true)
		if r.trouble() != "" {
			t.Errorf("%s, and a later epoch: the trouble is %q", what, r.trouble())
		}
	}
}

// A change of the roster that a member could not make is forgotten when it is
// forgotten itself: it must not happen when it is a member again, maybe long after.
func TestForgottenMemberForgetsNobody(t *testing.T) {
	l := newLab(t, 3, labConfig)
	l.do(1, SetRoster{Change{Name: "m", Forget: true}})
	l.do(0, SetRoster{Change{Name: "n", Forget: true}}) // one after the other
	l.run(labConfig.Wait() + time.Second)
	l.do(1, SetRoster{Change{Name: "m"}})
	l.run(2*labConfig.Wait() + 3*time.Second)
	if got := strings.Join(l.record.Roster, ""); got != "nom" {
		t.Errorf("the roster is %q", got)
	}
	l.want("1 a: m1 n1 o1")
}
