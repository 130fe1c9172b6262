package failover

import (
	"slices"
	"sync"
	"time"

	"understudy/relay"
	"understudy/selector"
)

const (
	// incidentsKept is how many incidents a relay remembers.
	incidentsKept = 100

	// triggersKept is how many triggers of one election are kept in its record.
	triggersKept = 32

	// firstByteWait is how long a record waits for a first byte to come through
	// the new primary before it is closed without one.
	firstByteWait = 10 * time.Second
)

// Outcome is what became of an election.
type Outcome string

// The outcomes.
const (
	UnderWay    Outcome = "under way"
	Open        Outcome = "open"        // clients pass to the new host
	Aborted     Outcome = "aborted"     // a trigger failed, and the policy is abort
	Gone        Outcome = "gone"        // the new host went down while it was switched to
	Interrupted Outcome = "interrupted" // the program ended meanwhile
)

// Incident is the record of one election: what led to it, what was done, and
// how long that took. Times are wall-clock times, durations are measured with
// the monotonic clock and in seconds.
type Incident struct {
	ID      uint64        `json:"id"`                // grows by one, across restarts if there is a state directory
	Relay   string        `json:"relay"`             // its name
	Event   selector.Kind `json:"event"`             // start, failover, switchover, failback or reselect
	Epoch   uint64        `json:"epoch"`             // that began
	Old     string        `json:"old,omitempty"`     // the host of the election before
	New     string        `json:"new"`               // the host that was elected
	Reason  string        `json:"reason"`            // one line
	By      string        `json:"by,omitempty"`      // the operator of a switchover
	Outcome Outcome       `json:"outcome"`           // under way, open, aborted, gone or interrupted
	Failure string        `json:"failure,omitempty"` // why it is not open
	Done    bool          `json:"done"`              // nothing more is added

	FirstBad  *BadCheck    `json:"first_bad_check,omitempty"` // that led to it
	Suspected time.Time    `json:"suspected,omitzero"`        // when the host was
	Lost      time.Time    `json:"lost,omitzero"`             // when the primary was declared down
	Elected   time.Time    `json:"elected,omitzero"`          // when the new host was
	Fence     *FenceRun    `json:"fence,omitempty"`           // what became of earlier connections
	Triggers  []TriggerRun `json:"triggers,omitempty"`        // one after the other
	Opened    time.Time    `json:"opened,omitzero"`           // when clients were let through
	FirstByte time.Time    `json:"first_byte,omitzero"`       // the first that came through the new primary

	ClientsHeld int    `json:"clients_held"` // waiting when it opened
	ClientsLost uint64 `json:"clients_lost"` // that waited in vain

	// Seconds since the first bad check, or since the beginning of a change
	// that was planned.
	DetectSeconds float64 `json:"detect_seconds,omitempty"` // until the primary was declared down
	ElectSeconds  float64 `json:"elect_seconds,omitempty"`  // from there until a host was elected
	SwitchSeconds float64 `json:"switch_seconds,omitempty"` // from there until it was open
	ShutSeconds   float64 `json:"shut_seconds,omitempty"`   // that clients were kept out
	TotalSeconds  float64 `json:"total_seconds,omitempty"`  // until it was open

	// BoundSeconds is what predict gives for this case, zero where it gives
	// none.
	BoundSeconds float64 `json:"bound_seconds,omitempty"`
	OverBound    bool    `json:"over_bound,omitempty"` // it took longer
}

// BadCheck is the first check that failed.
type BadCheck struct {
	At    time.Time `json:"at"`              // when it ended
	Check string    `json:"check"`           // its name
	Phase string    `json:"phase,omitempty"` // how far it came
	Error string    `json:"error,omitempty"` // why it failed
}

// FenceRun is what became of the connections of earlier epochs.
type FenceRun struct {
	Finished int     `json:"finished"` // ended by themselves while they were let
	Reset    int     `json:"reset"`    // cut
	Moved    int     `json:"moved"`    // nothing had passed yet: they wait for the new primary
	Seconds  float64 `json:"seconds"`  // that it took
}

// TriggerRun is how one trigger ended.
type TriggerRun struct {
	Script  string  `json:"script"`           // its path
	Status  string  `json:"status"`           // "exit status 0"
	Failed  bool    `json:"failed,omitempty"` // it did not exit with 0
	Seconds float64 `json:"seconds"`          // that it took
	Output  string  `json:"output,omitempty"` // the last KiB
}

// record is a relay's incidents, the oldest first. It is safe for concurrent
// use.
type record struct {
	mu      sync.Mutex
	list    []Incident
	changed chan struct{} // closed when there is news
}

// put adds an incident, or replaces the one with its ID.
func (r *record) put(i Incident) {
	i.Triggers = slices.Clone(i.Triggers)
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := slices.IndexFunc(r.list, func(old Incident) bool { return old.ID == i.ID }); n >= 0 {
		r.list[n] = i
	} else {
		r.list = append(r.list, i)
		r.list = r.list[max(0, len(r.list)-incidentsKept):]
	}
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// all returns the incidents and a channel that is closed when there is news.
func (r *record) all() ([]Incident, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return slices.Clone(r.list), r.changed
}

// Incidents returns the record, the oldest first, and a channel that is closed
// when there is something new in it.
func (c *Conductor) Incidents() ([]Incident, <-chan struct{}) { return c.record.all() }

// FirstByte tells that the first byte of an epoch came back to a client; see
// [relay.Config]. It never blocks.
func (c *Conductor) FirstByte(epoch uint64) {
	select {
	case c.firstBytes <- firstByte{epoch, time.Now()}:
	default: // the one before has not been looked at, and is as good
	}
}

type firstByte struct {
	epoch uint64
	at    time.Time
}

// evidence is what speaks against a host now. It is noted by the checks.
type evidence struct {
	mu  sync.Mutex
	bad map[string]BadCheck // by host: the first check that failed since that check last passed
}

// note takes in how a check of a host ended.
func (e *evidence) note(host, check, phase string, ok bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	was, known := e.bad[host]
	switch {
	case ok && known && was.Check == check:
		delete(e.bad, host)
	case !ok && !known:
		if e.bad == nil {
			e.bad = map[string]BadCheck{}
		}
		b := BadCheck{At: time.Now(), Check: check, Phase: phase}
		if err != nil {
			b.Error = err.Error()
		}
		e.bad[host] = b
	}
}

func (e *evidence) of(host string) *BadCheck {
	e.mu.Lock()
	defer e.mu.Unlock()
	if b, ok := e.bad[host]; ok {
		return &b
	}
	return nil
}

// scribe writes the incidents of a conductor. It belongs to Run's goroutine.
type scribe struct {
	current *Incident // nil when nothing is under way
	nextID  uint64
	closeAt time.Time            // when current is closed without a first byte; zero while it is not open
	doubted map[string]time.Time // by host: when it was suspected
	before  relay.Stats          // when current began
	refused uint64               // clients sent away from the kernel's queue since then

	// led is what led to the election that is going on. It stays when the host
	// that was elected first does not become primary.
	led Incident

	// stayed says that a primary was down and stayed, because the relay was
	// frozen: how long that took is nobody's bound.
	stayed bool
}

// began starts a record.
func (c *Conductor) began(i Incident) {
	c.finish(Interrupted, "")
	s := &c.scribe
	i.ID, i.Relay, i.Outcome = s.nextID, c.cfg().Name, UnderWay
	s.nextID++
	s.current, s.closeAt, s.refused = &i, time.Time{}, 0
	if c.cfg().Stats != nil {
		s.before = c.cfg().Stats()
	}
}

// noteLost begins the record of a failover.
func (c *Conductor) noteLost(a selector.Lost) {
	s := &c.scribe
	s.led = Incident{
		Event: selector.Failover, Epoch: a.Epoch + 1, Old: a.Host, Reason: a.Reason,
		FirstBad: c.evidence.of(a.Host), Suspected: s.doubted[a.Host], Lost: time.Now(),
	}
	delete(s.doubted, a.Host)
	c.began(s.led)
	c.publishIncident()
}

// noteSwitch notes who was elected, and has the disk know.
func (c *Conductor) noteSwitch(a selector.Switch) *saving {
	s := &c.scribe
	if i := s.current; i != nil && !i.Elected.IsZero() {
		if i.Failure != "" {
			c.finish(Aborted, i.Failure)
		} else {
			c.finish(Gone, i.New+" went down while it was switched to")
		}
	}
	if s.current == nil {
		c.began(s.led)
	}
	i := s.current
	i.Event, i.Epoch, i.Old, i.New, i.Reason = a.Kind, a.Epoch, a.Old, a.Host, a.Reason
	i.Elected = time.Now()
	if a.Kind == selector.Switchover && c.asked != nil {
		i.By = c.asked.By
	}
	return c.publishIncident()
}

// noteOpen notes that clients pass since now, and how long it all took.
func (c *Conductor) noteOpen(now time.Time, shut time.Duration, waiting relay.Waiting) {
	s := &c.scribe
	i := s.current
	if i == nil {
		return
	}
	i.Opened, i.Outcome = now, Open
	i.ClientsHeld = waiting.Queued + waiting.Held
	i.ShutSeconds = shut.Seconds()
	start := i.Elected
	if !i.Lost.IsZero() {
		start = i.Lost
		if i.FirstBad != nil && i.FirstBad.At.Before(start) {
			start = i.FirstBad.At
		}
		i.DetectSeconds = i.Lost.Sub(start).Seconds()
		i.ElectSeconds = i.Elected.Sub(i.Lost).Seconds()
	}
	i.SwitchSeconds = now.Sub(i.Elected).Seconds()
	total := now.Sub(start)
	i.TotalSeconds = total.Seconds()
	if i.Event == selector.Failover || i.Event == selector.Reselect {
		if bound, ok := c.rules.Load().prediction.boundFor(i.FirstBad); ok && !i.Lost.IsZero() && !s.stayed {
			i.BoundSeconds = bound.Seconds()
			if i.OverBound = total > bound; i.OverBound {
				c.log.Warn("the failover took longer than predicted", "took", total.Round(time.Millisecond), "bound", bound, "epoch", i.Epoch)
			}
		}
	}
	s.closeAt, s.led, s.stayed = now.Add(firstByteWait), Incident{}, false
	c.publishIncident()
}

// noteFirstByte closes the record that waits for it.
func (c *Conductor) noteFirstByte(b firstByte) {
	if i := c.scribe.current; i != nil && i.Epoch == b.epoch && !i.Opened.IsZero() {
		i.FirstByte = b.at
		c.finish(Open, "")
	}
}

// finish closes the current record, if there is one. One that is open stays so.
func (c *Conductor) finish(as Outcome, failure string) {
	s := &c.scribe
	i := s.current
	if i == nil {
		return
	}
	if i.Outcome == UnderWay {
		i.Outcome, i.Failure = as, failure
	}
	i.Done = true
	c.publishIncident()
	s.current, s.closeAt = nil, time.Time{}
}

// publishIncident lets everybody see the current record as it is now.
func (c *Conductor) publishIncident() *saving {
	i := c.scribe.current
	if c.cfg().Stats != nil {
		now := c.cfg().Stats()
		i.ClientsLost = now.Expired - c.scribe.before.Expired + c.scribe.refused
	}
	c.record.put(*i)
	return c.remember()
}
