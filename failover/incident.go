package failover

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"understudy/relay"
	"understudy/selector"
)

const (
	// incidentsKept limits the elections of a relay that are kept, and its orders: neither
	// takes the place of the other.
	incidentsKept = 100

	// triggersKept limits the triggers of one election that are kept in its record.
	triggersKept = 32

	// firstByteWait is the time for which a record waits for a first byte to come through
	// the new primary before it is closed without one.
	firstByteWait = 10 * time.Second
)

// Outcome is the result of an election.
type Outcome string

// The outcomes.
const (
	UnderWay      Outcome = "under way"
	Open          Outcome = "open"        // clients are connected to the new host
	Aborted       Outcome = "aborted"     // a trigger failed, and the policy is abort
	HostLost      Outcome = "host lost"   // the new host went down during the switch
	Interrupted   Outcome = "interrupted" // the program, or the instance that made the switch, ended during it
	SwitchRefused Outcome = "refused"     // a scheduled switch that was not started
)

// The outcomes of orders.
const (
	CarriedOut  Outcome = "done"   // it is in effect; a drill went well
	DrillFailed Outcome = "failed" // a drill found that the failover would not work
)

// The events of orders.
const (
	OrderDrain    selector.Kind = "drain"
	OrderReady    selector.Kind = "ready"
	OrderFreeze   selector.Kind = "freeze"
	OrderUnfreeze selector.Kind = "unfreeze"
	OrderDrill    selector.Kind = "drill"
	OrderSchedule selector.Kind = "schedule" // of a switch
	OrderCancel   selector.Kind = "cancel"   // of a switch that was scheduled

	OrderAdd    selector.Kind = "cluster-add" // of a member of the cluster
	OrderForget selector.Kind = "cluster-forget"
	OrderForce  selector.Kind = "cluster-force" // members that are silent are taken for dead
)

// Incident is the record of one election: its cause, the actions, and their
// durations; or of an operator's order that is not an election. Times are wall-clock
// times; durations are measured with the monotonic clock, in seconds.
type Incident struct {
	ID      uint64        `json:"id"`                // grows by one, across restarts if there is a state directory
	Relay   string        `json:"relay"`             // its name
	Event   selector.Kind `json:"event"`             // start, failover, switchover, failback, reselect or moved; of an order: drain, ready, freeze, unfreeze, drill, schedule, cancel, cluster-add, cluster-forget or cluster-force
	Epoch   uint64        `json:"epoch"`             // of the election; of an order: of the last one before
	Old     string        `json:"old,omitempty"`     // the host of the election before
	New     string        `json:"new"`               // the host that was elected; empty for an order
	Reason  string        `json:"reason"`            // one line
	By      string        `json:"by,omitempty"`      // the operator of a switchover or an order
	Outcome Outcome       `json:"outcome"`           // under way, open, aborted, host lost, interrupted or refused; of an order: done, or failed for a drill
	Failure string        `json:"failure,omitempty"` // why it is not open, or why a drill failed
	Done    bool          `json:"done"`              // nothing more is added
	Order   *Ordered      `json:"order,omitempty"`   // only of an order: all that follows is absent or zero then

	FirstBad  *BadCheck    `json:"first_bad_check,omitempty"` // that led to it
	Suspected time.Time    `json:"suspected,omitzero"`        // when the host was
	Lost      time.Time    `json:"lost,omitzero"`             // when the primary was declared down
	Elected   time.Time    `json:"elected,omitzero"`          // when the new host was
	Loss      *Loss        `json:"predicted_loss,omitempty"`  // what the new host lacked of the data of the old one when it was elected; absent when that is not known, and of a planned change
	Fence     *FenceRun    `json:"fence,omitempty"`           // how earlier connections were ended
	Triggers  []TriggerRun `json:"triggers,omitempty"`        // one after the other
	Opened    time.Time    `json:"opened,omitzero"`           // when clients were connected
	FirstByte time.Time    `json:"first_byte,omitzero"`       // the first from the new primary

	ClientsHeld int     `json:"clients_held"`     // waiting when the gate opened
	Pacing      *Pacing `json:"pacing,omitempty"` // how they were connected; absent if they were few, or all at once
	ClientsLost uint64  `json:"clients_lost"`     // that waited and timed out

	// Seconds since the first bad check, or since the beginning of a planned
	// change.
	DetectSeconds float64 `json:"detect_seconds,omitempty"` // until the primary was declared down
	ElectSeconds  float64 `json:"elect_seconds,omitempty"`  // from there until a host was elected
	SwitchSeconds float64 `json:"switch_seconds,omitempty"` // from there until it was open
	ShutSeconds   float64 `json:"shut_seconds,omitempty"`   // that clients were kept out
	TotalSeconds  float64 `json:"total_seconds,omitempty"`  // until it was open

	Canary *CanaryRun `json:"canary,omitempty"` // what the canary saw; absent without one, and until it has seen that clients are served

	// BoundSeconds is the time that predict gives for this case; zero where it
	// gives none: the same host came back, no host was usable, or the relay was
	// frozen.
	BoundSeconds float64 `json:"bound_seconds,omitempty"`
	OverBound    bool    `json:"over_bound,omitempty"` // it took longer
}

// At returns the time of the election, or when the primary was declared down if it has
// not come to one; of an order, when it was given.
func (i Incident) At() time.Time {
	switch {
	case i.Order != nil:
		return i.Order.At
	case i.Elected.IsZero():
		return i.Lost
	}
	return i.Elected
}

// Ordered is what an operator ordered that is no election.
type Ordered struct {
	At     time.Time `json:"at"`               // when it was ordered
	Host   string    `json:"host,omitempty"`   // the host; of a drill, the one that is assumed to have failed; absent: it concerns the relay
	Member string    `json:"member,omitempty"` // of the cluster, that was added or removed; of cluster-force, those that were not waited for any more
	Until  time.Time `json:"until,omitzero"`   // when the lock ends by itself, or the time of the switch
	Result string    `json:"result,omitempty"` // of a drill: its verdict
	Remote bool      `json:"remote,omitempty"` // it was ordered at another instance of the cluster
}

// BadCheck is the first check that failed.
type BadCheck struct {
	At    time.Time `json:"at"`              // when it ended
	Check string    `json:"check"`           // its name
	Phase string    `json:"phase,omitempty"` // how far it got
	Error string    `json:"error,omitempty"` // why it failed
}

// Pacing is how the clients that waited were connected after an opening.
type Pacing struct {
	Turns     int     `json:"turns"`      // connects that were begun for clients that waited, and for those who came meanwhile
	FirstRate float64 `json:"first_rate"` // clients a second, at first
	PeakRate  float64 `json:"peak_rate"`  // and at most
	Slowed    int     `json:"slowed"`     // how often the rate was halved because the host was slow
	Seconds   float64 `json:"seconds"`    // until nobody waited any more, or the relay was shut again
}

// Loss is how much data of the primary a host lacks, as far as its role check knows.
type Loss struct {
	Host    string   `json:"host"`              // the host
	Bytes   *uint64  `json:"bytes,omitempty"`   // of the log of changes; absent when they are not known
	Seconds *float64 `json:"seconds,omitempty"` // since it last had all of them; absent when that is not known
}

// FenceRun counts the connections of earlier epochs by how they ended.
type FenceRun struct {
	Finished int     `json:"finished"` // ended by themselves within the drain time
	Reset    int     `json:"reset"`    // cut
	Moved    int     `json:"moved"`    // had passed no byte yet: they wait for the new primary
	Kept     int     `json:"kept"`     // still open: they lead to the host that was elected, or are kept by the policy
	Seconds  float64 `json:"seconds"`  // its duration
}

// TriggerRun is the result of one trigger.
type TriggerRun struct {
	Script  string  `json:"script"`           // its path
	Status  string  `json:"status"`           // "exit status 0"
	Failed  bool    `json:"failed,omitempty"` // it did not exit with 0
	Seconds float64 `json:"seconds"`          // its duration
	Output  string  `json:"output,omitempty"` // the last KiB
}

// history holds a relay's incidents, in the order of their IDs. It is safe for
// concurrent use.
type history struct {
	mu      sync.Mutex
	list    []Incident
	changed chan struct{} // closed at the next change
	puts    uint64        // number of changes
}

// put adds an incident, or replaces the one with its ID.
func (r *history) put(i Incident) {
	i.Triggers = slices.Clone(i.Triggers)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.puts++
	if n := slices.IndexFunc(r.list, func(old Incident) bool { return old.ID == i.ID }); n >= 0 {
		r.list[n] = i
	} else {
		r.list = append(r.list, i)
		r.forget(i.Order != nil)
	}
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// forget removes the oldest order, or the oldest election, if there are too many.
func (r *history) forget(order bool) {
	oldest, n := 0, 0
	for k, i := range slices.Backward(r.list) {
		if (i.Order != nil) == order {
			oldest, n = k, n+1
		}
	}
	if n > incidentsKept {
		r.list = slices.Delete(r.list, oldest, oldest+1)
	}
}

// all returns the incidents and a channel that is closed at the next change.
func (r *history) all() ([]Incident, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return slices.Clone(r.list), r.changed
}

// split returns the elections and the orders.
func (r *history) split() (elections, orders []Incident) {
	all, _ := r.all()
	for _, i := range all {
		if i.Order != nil {
			orders = append(orders, i)
		} else {
			elections = append(elections, i)
		}
	}
	return elections, orders
}

// Incidents returns the incidents, in the order of their IDs, and a channel that is closed
// at the next change.
func (c *Conductor) Incidents() ([]Incident, <-chan struct{}) { return c.history.all() }

// Recorded returns a number that grows when what [Conductor.Incidents] returns changes.
func (c *Conductor) Recorded() uint64 {
	c.history.mu.Lock()
	defer c.history.mu.Unlock()
	return c.history.puts
}

// FirstByte reports that the first byte of an epoch came back to a client; see
// [relay.Config]. It never blocks.
func (c *Conductor) FirstByte(epoch uint64) {
	select {
	case c.firstBytes <- firstByte{epoch, time.Now()}:
	default: // an earlier one is still queued and has the same effect
	}
}

type firstByte struct {
	epoch uint64
	at    time.Time
}

// Paced reports how the clients that waited at the last opening were connected; see
// [relay.Config]. It never blocks.
func (c *Conductor) Paced(p relay.Pacing) {
	select {
	case c.paced <- p:
	default: // the one that is queued was interrupted, and so was this one
	}
}

// evidence holds the failures of hosts. The checks add to it.
type evidence struct {
	mu  sync.Mutex
	bad map[string]BadCheck // by host: the first check that failed since that check last passed
}

// note records the result of a check of a host.
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

// recorder writes the incidents of a conductor. It belongs to Run's goroutine.
type recorder struct {
	current *Incident // nil when none is in progress
	nextID  uint64
	closeAt time.Time            // when current is closed without a first byte, the end of the pacing or a good attempt of the canary; zero while it is not open
	paced   bool                 // clients are being connected one after the other
	doubted map[string]time.Time // by host: when it was suspected
	before  relay.Stats          // when current began
	refused uint64               // clients refused in the kernel's queue since then

	// led is the cause of the election in progress. It is kept when the host
	// that was elected first does not become primary.
	led Incident

	// unbounded is set when no prediction covers this election: the primary was
	// down and stayed, because the relay was frozen, or no host was usable.
	unbounded bool
}

// began starts a record.
func (c *Conductor) began(i Incident) {
	c.finish(Interrupted, "")
	s := &c.recorder
	i.ID, i.Relay, i.Outcome = s.nextID, c.cfg().Name, UnderWay
	s.nextID++
	s.current, s.closeAt, s.refused = &i, time.Time{}, 0
	if c.cfg().Stats != nil {
		s.before = c.cfg().Stats()
	}
}

// noteOrder records an order that is no election. The caller saves the state.
func (c *Conductor) noteOrder(i Incident) {
	i.ID, i.Relay, i.Epoch, i.Done = c.recorder.nextID, c.cfg().Name, c.machine.Snapshot().Epoch, true
	if i.Outcome == "" {
		i.Outcome = CarriedOut
	}
	c.recorder.nextID++
	c.history.put(i)
}

// noteLost begins the record of a failover.
func (c *Conductor) noteLost(a selector.Lost) {
	s := &c.recorder
	s.led = Incident{
		Event: selector.Failover, Epoch: a.Epoch + 1, Old: a.Host, Reason: a.Reason,
		FirstBad: c.evidence.of(a.Host), Suspected: s.doubted[a.Host], Lost: time.Now(),
	}
	delete(s.doubted, a.Host)
	c.began(s.led)
	c.publishIncident()
}

// noteSwitch records which host was elected, and saves the state.
func (c *Conductor) noteSwitch(a selector.Switch) *saving {
	s := &c.recorder
	if i := s.current; i != nil && !i.Elected.IsZero() {
		if i.Failure != "" {
			c.finish(Aborted, i.Failure)
		} else {
			c.finish(c.lost(i.New))
		}
	}
	if s.current == nil {
		c.began(s.led)
	}
	i := s.current
	i.Event, i.Epoch, i.Old, i.New, i.Reason = a.Kind, a.Epoch, a.Old, a.Host, a.Reason
	i.Elected, i.Loss = time.Now(), lostBy(a)
	if a.Kind == selector.Switchover && c.requested != nil {
		i.By = c.requested.By
	}
	return c.publishIncident()
}

// noteOpen records that clients are connected since now, and all durations.
func (c *Conductor) noteOpen(ctx context.Context, now time.Time, shut time.Duration, waiting relay.Waiting) {
	s := &c.recorder
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
	// A prediction covers only a failover to another usable host. If the same
	// host came back, the time depended on it alone.
	if i.Event == selector.Failover && !i.Lost.IsZero() && !s.unbounded {
		if bound, ok := c.settings.Load().prediction.boundFor(i.FirstBad); ok {
			i.BoundSeconds = bound.Seconds()
			if i.OverBound = total > bound; i.OverBound {
				c.log.Warn("the failover took longer than predicted", "took", total.Round(time.Millisecond), "bound", bound, "epoch", i.Epoch)
				c.notice(ctx, EventOverBound, i.New, fmt.Sprintf("the failover took %v, and %v was predicted", total.Round(time.Millisecond), bound))
			}
		}
	}
	c.measure.opened(i)
	c.measure.election(ElectionOf{i.Event, Open})
	s.closeAt, s.led, s.unbounded, s.paced = now.Add(firstByteWait), Incident{}, false, waiting.Paced
	c.canary.wanted.Store(c.cfg().Canary.Every > 0)
	if s.paced {
		s.closeAt = s.closeAt.Add(c.cfg().Hold)
	}
	c.publishIncident()
}

// noteFirstByte closes the record in progress with its first byte.
func (c *Conductor) noteFirstByte(b firstByte) {
	if i := c.recorder.current; i != nil && i.Epoch == b.epoch && !i.Opened.IsZero() {
		i.FirstByte = b.at
		c.finishOpen()
	}
}

// notePacing records how the clients that waited were connected.
func (c *Conductor) notePacing(p relay.Pacing) {
	c.log.Info("clients that waited are connected", "epoch", p.Epoch, "waited", p.Waited, "turns", p.Turns,
		"first-rate", math.Round(p.First), "peak-rate", math.Round(p.Peak), "slowed", p.Slowed, "took", p.For.Round(time.Millisecond))
	s := &c.recorder
	if i := s.current; i != nil && i.Epoch == p.Epoch && s.paced {
		s.paced = false
		i.Pacing = &Pacing{Turns: p.Turns, FirstRate: p.First, PeakRate: p.Peak, Slowed: p.Slowed, Seconds: p.For.Seconds()}
		c.finishOpen()
	}
}

// finishOpen closes the record in progress if nothing more is expected of its opening.
func (c *Conductor) finishOpen() {
	if i, s := c.recorder.current, &c.recorder; !s.paced && !i.FirstByte.IsZero() && !c.canary.wanted.Load() {
		c.finish(Open, "")
		return
	}
	c.publishIncident()
}

// finish closes the current record, if there is one. Its outcome stays open if
// it is open.
func (c *Conductor) finish(as Outcome, failure string) {
	s := &c.recorder
	i := s.current
	if i == nil {
		return
	}
	if i.Outcome == UnderWay {
		i.Outcome, i.Failure = as, failure
		c.measure.election(ElectionOf{i.Event, as})
	}
	i.Done = true
	c.publishIncident()
	s.current, s.closeAt = nil, time.Time{}
	c.canary.wanted.Store(false)
}

// publishIncident publishes the current record as it is now.
func (c *Conductor) publishIncident() *saving {
	i := c.recorder.current
	if c.cfg().Stats != nil {
		now := c.cfg().Stats()
		i.ClientsLost = now.Expired - c.recorder.before.Expired + c.recorder.refused
	}
	c.history.put(*i)
	return c.save()
}
