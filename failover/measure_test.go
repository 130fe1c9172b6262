package failover

import (
	"testing"
	"time"

	"understudy/selector"
)

// Durations of the phases of an election add up to its whole, by their events.
func TestMeasureCountsPhases(t *testing.T) {
	var m measure
	m.opened(&Incident{
		Event: selector.Failover, DetectSeconds: .2, ElectSeconds: .1, SwitchSeconds: 3, TotalSeconds: 3.3, OverBound: true,
		Fence: &FenceRun{Seconds: 1}, Triggers: []TriggerRun{{Seconds: .5}, {Seconds: .5}},
	})
	m.opened(&Incident{Event: selector.Switchover, SwitchSeconds: .5, TotalSeconds: .5})
	c := &Conductor{}
	c.settings.Store(&settings{Config: Config{Hosts: []string{"a"}, Checks: []Check{{Name: "tcp"}}}})
	m.check(CheckOf{"a", "tcp"}, true, false, time.Millisecond)
	m.check(CheckOf{"a", "tcp"}, false, false, time.Millisecond)
	m.check(CheckOf{"a", "tcp"}, false, true, time.Millisecond)
	m.check(CheckOf{"removed", "tcp"}, true, false, time.Millisecond)
	m.election(ElectionOf{selector.Failover, Open})
	m.trigger("/etc/triggers.d/10-promote", false, time.Second)
	m.fence(&FenceRun{Finished: 1, Reset: 2, Moved: 3})
	c.measure.checks, c.measure.phases, c.measure.elections, c.measure.triggers = m.checks, m.phases, m.elections, m.triggers
	c.measure.finished, c.measure.reset, c.measure.moved, c.measure.overBound = m.finished, m.reset, m.moved, m.overBound
	got := c.Measure()
	sum := time.Duration(0)
	for _, p := range Phases(selector.Failover) {
		s := got.Phases[PhaseOf{selector.Failover, p}]
		if s.Count() != 1 {
			t.Errorf("phase %s was counted %d times", p, s.Count())
		}
		if p != PhaseAll {
			sum += s.Sum()
		}
	}
	all := got.Phases[PhaseOf{selector.Failover, PhaseAll}]
	if d := all.Sum() - sum; d.Abs() > time.Millisecond || all.Sum() != 3300*time.Millisecond {
		t.Errorf("the phases took %v, together %v", sum, all.Sum())
	}
	if s := got.Phases[PhaseOf{selector.Switchover, PhaseDetect}]; s.Count() != 0 {
		t.Error("a switchover has a time to detect")
	}
	k := got.Checks[CheckOf{"a", "tcp"}]
	if k.Passed != 1 || k.Failed != 1 || k.Unknown != 1 || k.Took.Count() != 3 || len(got.Checks) != 1 {
		t.Errorf("checks %d %d %d of %d", k.Passed, k.Failed, k.Unknown, len(got.Checks))
	}
	if got.FencedFinished != 1 || got.FencedReset != 2 || got.FencedMoved != 3 || got.OverBound != 1 || got.Elections[ElectionOf{selector.Failover, Open}] != 1 {
		t.Errorf("fenced %d %d %d, over the bound %d", got.FencedFinished, got.FencedReset, got.FencedMoved, got.OverBound)
	}
	if n := got.Triggers["10-promote"]; n.Failed != 1 || n.Passed != 0 || n.Took.Sum() != time.Second {
		t.Errorf("triggers %+v %v", got.Triggers, n.Took.Sum())
	}
	c.measure.keep(&Config{Hosts: []string{"b"}})
	if len(c.measure.checks) != 0 || len(c.measure.triggers) != 0 {
		t.Error("what is not in the settings any more is kept")
	}
}
