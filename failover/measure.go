package failover

import (
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"understudy/hooks"
	"understudy/internal/histogram"
	"understudy/selector"
)

// Measured is what a conductor has counted since the start.
type Measured struct {
	Checks    map[CheckOf]Checked
	Changes   map[ChangeOf]uint64 // of the states of hosts
	Elections map[ElectionOf]uint64
	Phases    map[PhaseOf]histogram.Snapshot // of elections that were completed
	Triggers  map[string]Triggered           // by the name of the file

	// Connections of earlier epochs by how the fences ended them.
	FencedFinished, FencedReset, FencedMoved uint64

	OverBound uint64 // failovers that took longer than predicted

	Canary *CanaryMeasured // nil without one
}

// CheckOf is a check of a host, by their names.
type CheckOf struct{ Host, Check string }

// Checked counts the runs of a check of a host. Unknown are those without a result.
type Checked struct {
	Passed, Failed, Unknown uint64
	Took                    histogram.Snapshot
}

// ChangeOf is a host and the state that it came into.
type ChangeOf struct {
	Host string
	To   selector.State
}

// ElectionOf is the event and the outcome of elections.
type ElectionOf struct {
	Event   selector.Kind
	Outcome Outcome
}

// PhaseOf is a phase of elections with an event.
type PhaseOf struct {
	Event selector.Kind
	Phase Phase
}

// Phase is a part of an election.
type Phase string

// The phases, which follow each other; All is the sum of the others.
const (
	PhaseDetect  Phase = "detect"  // from the first bad check until the primary was declared down
	PhaseElect   Phase = "elect"   // until a host was elected
	PhaseFence   Phase = "fence"   // until no earlier connection was left
	PhaseTrigger Phase = "trigger" // while the triggers ran
	PhaseOpen    Phase = "open"    // the rest, until clients were connected
	PhaseAll     Phase = "all"
)

// Triggered counts the runs of a trigger.
type Triggered struct {
	Passed, Failed uint64
	Took           histogram.Snapshot
}

// Kinds lists the events of elections, Outcomes their outcomes, and Phases the phases of
// an election with the event.
func Kinds() []selector.Kind {
	return []selector.Kind{selector.Start, selector.Failover, selector.Switchover, selector.Failback, selector.Reselect, selector.Moved}
}

// Outcomes lists the outcomes of elections.
func Outcomes() []Outcome { return []Outcome{Open, Aborted, HostLost, Interrupted, SwitchRefused} }

// Phases lists the phases of an election with an event. Only a failover begins with a
// check that failed.
func Phases(event selector.Kind) []Phase {
	all := []Phase{PhaseFence, PhaseTrigger, PhaseOpen, PhaseAll}
	if event == selector.Failover || event == selector.Reselect {
		return append([]Phase{PhaseDetect, PhaseElect}, all...)
	}
	return all
}

// measure counts what a conductor does. None of it is done often.
type measure struct {
	mu        sync.Mutex // guards everything below
	checks    map[CheckOf]*checked
	changes   map[ChangeOf]uint64
	elections map[ElectionOf]uint64
	phases    map[PhaseOf]*histogram.Histogram
	triggers  map[string]*triggered

	finished, reset, moved, overBound uint64
}

type checked struct {
	passed, failed, unknown uint64
	took                    histogram.Histogram
}

type triggered struct {
	passed, failed uint64
	took           histogram.Histogram
}

// at returns the value of a key, which it makes if there is none.
func at[K comparable, V any](m *map[K]*V, key K) *V {
	if *m == nil {
		*m = map[K]*V{}
	}
	v := (*m)[key]
	if v == nil {
		v = new(V)
		(*m)[key] = v
	}
	return v
}

// check counts a run of a check.
func (m *measure) check(of CheckOf, ok, unknown bool, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := at(&m.checks, of)
	switch {
	case unknown:
		c.unknown++
	case ok:
		c.passed++
	default:
		c.failed++
	}
	c.took.Observe(took)
}

// change counts a change of a host's state.
func (m *measure) change(of ChangeOf) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.changes == nil {
		m.changes = map[ChangeOf]uint64{}
	}
	m.changes[of]++
}

// election counts an election that has an outcome.
func (m *measure) election(of ElectionOf) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.elections == nil {
		m.elections = map[ElectionOf]uint64{}
	}
	m.elections[of]++
}

// opened counts the phases of an election that is complete.
func (m *measure) opened(i *Incident) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fence, triggers := 0.0, 0.0
	if i.Fence != nil {
		fence = i.Fence.Seconds
	}
	for _, t := range i.Triggers {
		triggers += t.Seconds
	}
	took := map[Phase]float64{
		PhaseDetect: i.DetectSeconds, PhaseElect: i.ElectSeconds, PhaseFence: fence, PhaseTrigger: triggers,
		PhaseOpen: i.SwitchSeconds - fence - triggers, PhaseAll: i.TotalSeconds,
	}
	for _, p := range Phases(i.Event) {
		at(&m.phases, PhaseOf{i.Event, p}).Observe(time.Duration(took[p] * float64(time.Second)))
	}
	if i.OverBound {
		m.overBound++
	}
}

// trigger counts a run of a trigger.
func (m *measure) trigger(script string, ok bool, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := at(&m.triggers, filepath.Base(script))
	if ok {
		t.passed++
	} else {
		t.failed++
	}
	t.took.Observe(took)
}

// fence counts the connections that a fence ended.
func (m *measure) fence(f *FenceRun) {
	if f == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.finished += uint64(max(f.Finished, 0))
	m.reset += uint64(max(f.Reset, 0))
	m.moved += uint64(max(f.Moved, 0))
}

// keep forgets hosts and checks that are not in cfg, and knows its triggers from now on.
func (m *measure) keep(cfg *Config) {
	var scripts []string
	if cfg.Triggers.Path != "" {
		scripts, _, _ = hooks.List(cfg.Triggers.Path) // it is listed again, and its error reported, at each election
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.checks, func(of CheckOf, _ *checked) bool {
		return !slices.Contains(cfg.Hosts, of.Host) || !slices.ContainsFunc(cfg.Checks, func(k Check) bool { return k.Name == of.Check })
	})
	maps.DeleteFunc(m.changes, func(of ChangeOf, _ uint64) bool { return !slices.Contains(cfg.Hosts, of.Host) })
	maps.DeleteFunc(m.triggers, func(name string, _ *triggered) bool {
		return !slices.ContainsFunc(scripts, func(s string) bool { return filepath.Base(s) == name })
	})
	for _, s := range scripts {
		at(&m.triggers, filepath.Base(s))
	}
}

// Measure returns what the conductor has counted. It has an entry for each check of each
// host, and for each trigger of the settings.
func (c *Conductor) Measure() (m Measured) {
	c.MeasureTo(&m)
	return m
}

// MeasureTo is Measure into what it has returned before, also for another conductor.
func (c *Conductor) MeasureTo(out *Measured) {
	m, cfg := &c.measure, c.cfg()
	out.Canary = c.measureCanary(out.Canary)
	m.mu.Lock()
	defer m.mu.Unlock()
	empty(&out.Checks)
	for _, host := range cfg.Hosts {
		for _, k := range cfg.Checks {
			of := CheckOf{host, k.Name}
			from := at(&m.checks, of)
			n := Checked{Passed: from.passed, Failed: from.failed, Unknown: from.unknown}
			n.Took.Add(&from.took)
			out.Checks[of] = n
		}
	}
	empty(&out.Changes)
	maps.Copy(out.Changes, m.changes)
	empty(&out.Elections)
	maps.Copy(out.Elections, m.elections)
	empty(&out.Phases)
	for of, h := range m.phases {
		var s histogram.Snapshot
		s.Add(h)
		out.Phases[of] = s
	}
	empty(&out.Triggers)
	for name, from := range m.triggers {
		n := Triggered{Passed: from.passed, Failed: from.failed}
		n.Took.Add(&from.took)
		out.Triggers[name] = n
	}
	out.FencedFinished, out.FencedReset, out.FencedMoved, out.OverBound = m.finished, m.reset, m.moved, m.overBound
}

// empty makes a map empty, and keeps its room.
func empty[K comparable, V any](m *map[K]V) {
	if *m == nil {
		*m = map[K]V{}
	}
	clear(*m)
}
