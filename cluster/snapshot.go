package cluster

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Snapshot is the state of a Machine at one moment, for display. It shares no
// memory with the machine. Durations are from the moment of the last Step.
type Snapshot struct {
	Member string
	Boot   uint64

	// Known tells whether the store has answered. Record is what is known of it.
	Known  bool
	Record Record

	// Lease is the time for which bytes may still be moved; not positive when the
	// lease is over. Confirmed is the age of the last heartbeat that succeeded;
	// negative before the first.
	Lease, Confirmed time.Duration

	// Live tells whether connections of Epoch may live.
	Live   bool
	Epoch  uint64
	Fenced uint64

	// Driving tells whether this member changes the primary, and Waiting for whom
	// it waits.
	Driving bool
	Waiting []Waiting

	// Down of Fresh members see the primary down, this one included. Isolated
	// tells that this one does, and that they are not enough.
	Down, Fresh int
	Isolated    bool

	// Members are the other members of the roster, in its order. Beat is how long it
	// usually takes at most until a heartbeat of one is seen.
	Members []Other
	Beat    time.Duration

	// OnStoreLoss is what the member does while the store is away. With Failsafe, Missing
	// are those who have not granted the lease that it last asked for, and that it lacks
	// therefore, and LimitOver tells that Config.FailsafeLimit is over, so that it asks no
	// more.
	OnStoreLoss OnStoreLoss
	Missing     []string
	LimitOver   bool

	// Twice tells that the key of this member is that of another process, which lives.
	Twice bool

	// Trouble is what keeps the member from taking part, in one line; empty for
	// nothing.
	Trouble string
}

// Waiting is a member that has not acknowledged a fence.
type Waiting struct {
	Member string

	// For is how long it was waited for, and Most how long at most; zero for as
	// long as it takes.
	For, Most time.Duration
}

// Other is another member of the roster.
type Other struct {
	Name   string
	Known  bool // it has a key
	Member Member

	// Silent is the time since its key was first seen as it is.
	Silent time.Duration
}

// Snapshot returns the current state of the machine.
func (m *Machine) Snapshot() Snapshot {
	s := Snapshot{
		Member: m.cfg.Member, Boot: m.cfg.Boot, Known: m.known, Record: m.record,
		Lease: m.lease - m.now, Confirmed: -1, Live: m.live, Epoch: m.epoch, Fenced: m.fenced,
		Driving: m.driving(), Twice: m.birth.twice, Trouble: m.trouble(), Beat: m.beatSeen(), OnStoreLoss: m.cfg.OnStoreLoss,
	}
	s.Record.Roster = slices.Clone(m.record.Roster)
	if m.confirmed != never {
		s.Confirmed = m.now - m.confirmed
	}
	for _, name := range m.record.Roster {
		if name == m.cfg.Member {
			continue
		}
		o := Other{Name: name}
		if p := m.peer(name); p != nil {
			o.Known, o.Member, o.Silent = true, p.Member, m.now-p.moved
			o.Member.Down = slices.Clone(p.Member.Down)
		}
		s.Members = append(s.Members, o)
		if s.Driving && !o.Member.Leaving && o.Member.Fenced < m.record.Epoch {
			w := Waiting{Member: name, For: m.now - m.since}
			if m.cfg.OnStoreLoss != Keep {
				w.Most = m.cfg.wait(m.record.Drain)
			}
			s.Waiting = append(s.Waiting, w)
		}
	}
	if m.cfg.OnStoreLoss == Failsafe && m.confirmed != never && s.Lease < m.cfg.Lease/4 {
		s.LimitOver = m.cfg.FailsafeLimit > 0 && s.Confirmed >= m.cfg.FailsafeLimit
		for i := range s.Members {
			if m.ask != never && m.askFor == m.record.id() && !slices.Contains(m.granted, s.Members[i].Name) {
				s.Missing = append(s.Missing, s.Members[i].Name)
			}
		}
	}
	s.Down, s.Fresh = m.verdicts(m.record.Host)
	s.Isolated = m.record.Open && slices.Contains(m.down, m.record.Host) && !m.agreed()
	return s
}

// Record returns the newest record that is known; false while the store has never
// answered. Callers must not change it.
func (m *Machine) Record() (Record, bool) { return m.record, m.known }

// Wanted returns the host of the [Want] that is neither done nor forgotten.
func (m *Machine) Wanted() string { return m.want.Host }

// trouble returns what keeps the member from taking part; empty for nothing.
func (m *Machine) trouble() string {
	switch {
	case m.wentBack:
		return fmt.Sprintf("the store has gone back in time: epoch %d was seen, it may be a restored backup", max(m.oldest, m.record.Epoch))
	case m.birth.twice:
		return fmt.Sprintf("another process has the member name %q", m.cfg.Member)
	case m.known && m.record.Version > 0 && !m.record.has(m.cfg.Member):
		return fmt.Sprintf("%q is not in the roster of the cluster", m.cfg.Member)
	case m.known && m.record.Version > 0 && m.record.Settings != m.cfg.Settings:
		own, agreed := Differences(m.cfg.Settings, m.record.Settings)
		return fmt.Sprintf("the settings differ from those of the cluster: %s here, %s there", own, agreed)
	}
	return ""
}

// Differences returns the words of two settings, see [Config], that are not in the
// other ones; "none" where there are no such words.
func Differences(a, b string) (onlyA, onlyB string) {
	without := func(text, other string) string {
		words := slices.DeleteFunc(strings.Fields(text), func(w string) bool { return slices.Contains(strings.Fields(other), w) })
		if len(words) == 0 {
			return "none"
		}
		return strings.Join(words, " ")
	}
	return without(a, b), without(b, a)
}
