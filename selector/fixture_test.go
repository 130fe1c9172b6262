package selector

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// zero is a duration that complete makes 0: a field that is 0 gets the test's
// value.
const zero time.Duration = -1

// complete sets the fields of cfg that are zero to the values that most tests
// use.
func complete(cfg Config) Config {
	cfg.Rise = cmp.Or(cfg.Rise, 2)
	cfg.Fall = cmp.Or(cfg.Fall, 3)
	cfg.FastInterval = cmp.Or(cfg.FastInterval, 100*time.Millisecond)
	cfg.MaxBackoff = cmp.Or(cfg.MaxBackoff, time.Minute)
	cfg.Hold = max(cmp.Or(cfg.Hold, 10*time.Second), 0)
	cfg.Stay = max(cmp.Or(cfg.Stay, 3*time.Second), 0)
	cfg.Checks = slices.Clone(cfg.Checks)
	for i := range cfg.Checks {
		c := &cfg.Checks[i]
		interval, timeout := time.Second, time.Second
		if c.Script {
			interval, timeout = 2*time.Second, 5*time.Second
		}
		c.Interval, c.Timeout = cmp.Or(c.Interval, interval), cmp.Or(c.Timeout, timeout)
	}
	return cfg
}

// network makes the hosts of w names that resolve to the addresses. The
// machines at all addresses are up.
func (w *world) network(addrs ...netip.Addr) *network {
	n := &network{w: w, leads: addrs, like: map[netip.Addr]func() string{}}
	for _, a := range addrs {
		n.like[a] = func() string { return "up" }
	}
	w.trigger = func(s Switch) (time.Duration, error) { n.moved = s.Addr; return 0, nil }
	w.names = n.check
	return n
}

func started(actions []Action) (ids []uint64) {
	for _, a := range actions {
		if c, ok := a.(StartCheck); ok {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

// A world runs a Machine against hosts that behave as scripted, in virtual
// time: whole minutes pass in a moment, and exactly.
type world struct {
	tb      testing.TB
	m       *Machine
	begin   time.Time
	now     time.Duration // since begin
	hosts   map[string][]spell
	coming  []arrival // results and other events to come, by time
	trigger func(Switch) (time.Duration, error)
	opened  func()                        // if set, called when clients are connected to a host
	names   func(a StartCheck, r *Result) // if set, resolves the name in a check
	clients bool                          // connect to the primary every 5ms, and report failures
	connect time.Duration                 // when the next connect is due
	asleep  []interval
	timers  bool          // a check in flight when the machine falls asleep times out when it wakes
	lag     time.Duration // how late the machine is woken

	facts   bool // record facts about hosts and checks, too
	story   []string
	started map[string]int           // "a tcp" -> checks started
	running map[string]int           // scripts running now
	limits  map[uint64]time.Duration // when a check times out
	steps   int
	busy    Switch // the switch under way
	primary string // the host that clients are connected to
	waiting bool   // on hold
	epoch   uint64
	lost    Lost
}

type interval struct{ from, to time.Duration }

const (
	rtt        = time.Millisecond      // of a connect, accepted or refused
	pongTime   = 2 * time.Millisecond  // of a pong
	scriptTime = 50 * time.Millisecond // of a check script
)

var (
	errRefused = errors.New("connection refused")
	errTimeout = errors.New("timeout")
	errPong    = errors.New("status 503")
	errScript  = errors.New("exit status 1")
	errUnsure  = errors.New("exit status 75")
	errEMFILE  = errors.New("too many open files")
)

// timeline reads "up; 10s refused; 12s up".
func timeline(tb testing.TB, s string) []spell {
	tb.Helper()
	var spells []spell
	for part := range strings.SplitSeq(s, ";") {
		words := strings.Fields(part)
		sp := spell{kind: words[len(words)-1]}
		if len(words) == 2 {
			var err error
			if sp.from, err = time.ParseDuration(words[0]); err != nil {
				tb.Fatal(err)
			}
		}
		spells = append(spells, sp)
	}
	return spells
}

// newWorld makes a world of "a: up; 10s refused", one host a line, in order.
func newWorld(tb testing.TB, cfg Config, hosts ...string) *world {
	tb.Helper()
	w := &world{
		tb: tb, begin: time.Now(), hosts: map[string][]spell{},
		started: map[string]int{}, running: map[string]int{}, limits: map[uint64]time.Duration{},
		trigger: func(Switch) (time.Duration, error) { return 0, nil },
	}
	for _, h := range hosts {
		name, line, _ := strings.Cut(h, ":")
		cfg.Hosts = append(cfg.Hosts, name)
		w.hosts[name] = timeline(tb, line)
	}
	if cfg.Checks == nil {
		cfg.Checks = []Check{{Name: "tcp"}}
	}
	var err error
	if w.m, err = New(complete(cfg)); err != nil {
		tb.Fatal(err)
	}
	return w
}

func (w *world) behaves(host string, at time.Duration) string {
	kind := ""
	for _, sp := range w.hosts[host] {
		if sp.from <= at {
			kind = sp.kind
		}
	}
	return kind
}

// outcome returns the result of a check that starts now, and its duration.
func (w *world) outcome(host, check string, timeout time.Duration) (time.Duration, Result) {
	kind := w.behaves(host, w.now)
	fail := func(err error) Result { return Result{Err: err} }
	switch check {
	case "tcp":
		switch kind {
		case "refused":
			return rtt, fail(errRefused)
		case "silent":
			return timeout, fail(errTimeout)
		case "local":
			return rtt, Result{Unknown: true, Err: errEMFILE}
		case "slow": // 400ms
			return 400 * time.Millisecond, Result{OK: true}
		case "overdue": // the check ignores its timeout
			return 40 * time.Second, Result{OK: true}
		}
		return rtt, Result{OK: true}
	case "http":
		switch kind {
		case "hung":
			return timeout, fail(errTimeout)
		case "unwell":
			return pongTime, fail(errPong)
		}
		return pongTime, Result{OK: true}
	case "role":
		return w.roleOf(host, kind, timeout)
	default:
		switch kind {
		case "sick":
			return scriptTime, fail(errScript)
		case "mute": // it waits hours for its turn
			return 24 * time.Hour, Result{OK: true}
		case "stuck", "undead": // and 2s until it is killed, or never
			return timeout, Result{Running: true, Err: errTimeout}
		case "late10s", "late15s": // it waits for its turn
			d, _ := time.ParseDuration(kind[4:])
			return d + 500*time.Millisecond, Result{OK: true}
		case "lazy":
			return 300 * time.Millisecond, Result{OK: true}
		case "nofork":
			return 0, Result{Unknown: true, Err: errors.New("resource temporarily unavailable")}
		case "unsure":
			return scriptTime, Result{Unknown: true, Err: errUnsure}
		}
		return scriptTime, Result{OK: true}
	}
}

func (w *world) later(d time.Duration, ev Event) {
	at := w.now + d
	n, _ := slices.BinarySearchFunc(w.coming, at+1, func(a arrival, at time.Duration) int { return cmp.Compare(a.at, at) })
	w.coming = slices.Insert(w.coming, n, arrival{at, ev}) // behind those of the same time
}

// awake returns when a machine whose Wake is at d can be called.
func (w *world) awake(d time.Duration) time.Duration {
	for _, s := range w.asleep {
		if s.from <= d && d < s.to {
			return s.to
		}
	}
	return d
}

// play runs the world until end.
func (w *world) play(end time.Duration) *world {
	w.tb.Helper()
	if w.steps == 0 {
		w.step(Tick{})
	}
	for {
		wake := w.m.Wake().Sub(w.begin)
		if wake <= w.now {
			w.tb.Fatalf("at %v: asks to be woken at %v, which is over", w.now, wake)
		}
		next, ev := wake+w.lag, Event(Tick{})
		if len(w.coming) > 0 && w.coming[0].at <= next {
			next, ev = w.coming[0].at, w.coming[0].ev
		}
		if w.clients && w.connect < next {
			w.now, w.connect = w.connect, w.connect+5*time.Millisecond
			w.client()
			continue
		}
		if next = max(w.awake(next), w.now); next > end {
			w.now = end
			return w
		}
		if ev != Event(Tick{}) {
			w.coming = w.coming[1:]
			if r, ok := ev.(Result); ok && w.timers && next > w.limits[r.ID] && w.awake(w.limits[r.ID]) == next {
				ev = Result{ID: r.ID, Err: errTimeout, Latency: r.Latency} // its timer came first
			}
		}
		w.now = next
		w.step(ev)
	}
}

// client connects to the primary and, like a relay, reports a failure.
func (w *world) client() {
	if w.primary == "" {
		return
	}
	switch w.behaves(w.primary, w.now) {
	case "refused":
		w.later(rtt, Suspicion{Epoch: w.epoch, Err: errRefused})
	case "silent", "overdue":
		w.later(250*time.Millisecond, Suspicion{Epoch: w.epoch, Err: errTimeout})
	}
}

func (w *world) tell(format string, args ...any) {
	w.story = append(w.story, fmt.Sprintf("%v ", w.now)+fmt.Sprintf(format, args...))
}

// step takes one step and checks what must hold at every moment.
func (w *world) step(ev Event) {
	w.tb.Helper()
	w.steps++
	if end, ok := ev.(Ended); ok {
		w.ended(end.ID)
	}
	if r, ok := ev.(Result); ok && !r.Running {
		w.ended(r.ID)
	}
	if s, ok := ev.(Switched); ok && s.Epoch == w.busy.Epoch {
		w.busy = Switch{}
	}
	for _, a := range w.m.Step(w.begin.Add(w.now), ev) {
		w.act(a)
	}
	snap := w.m.Snapshot()
	if snap.Primary != w.primary {
		w.tb.Fatalf("at %v: snapshot names primary %q, clients go to %q", w.now, snap.Primary, w.primary)
	}
}

func (w *world) ended(id uint64) {
	for k, n := range w.running {
		if n == int(id) {
			delete(w.running, k)
		}
	}
}

func (w *world) act(a Action) {
	w.tb.Helper()
	bad := func(format string, args ...any) {
		w.tb.Helper()
		w.tb.Fatalf("at %v: %s\n%s", w.now, fmt.Sprintf(format, args...), strings.Join(w.story, "\n"))
	}
	switch a := a.(type) {
	case StartCheck:
		c := w.m.cfg.Checks[a.Check]
		key := a.Host + " " + c.Name
		w.started[key]++
		if c.Script {
			if w.running[key] != 0 {
				bad("%s is started while it runs", key)
			}
			w.running[key] = int(a.ID)
		}
		w.limits[a.ID] = w.now + c.Timeout
		d, r := w.outcome(a.Host, c.Name, c.Timeout)
		if w.names != nil {
			w.names(a, &r)
		}
		r.ID, r.Latency = a.ID, d
		w.later(d, r)
		if r.Running && w.behaves(a.Host, w.now) == "stuck" {
			w.later(d+2*time.Second, Ended{ID: a.ID})
		}
	case Hold:
		if w.primary == "" || w.waiting {
			bad("hold without a primary")
		}
		w.primary, w.waiting = "", true
		w.tell("hold")
	case Refuse:
		if w.primary == "" && !w.waiting {
			bad("refuse twice")
		}
		w.primary, w.waiting = "", false
		w.tell("refuse")
	case Switch:
		if w.primary != "" {
			bad("switch with the gate open")
		}
		if w.busy.Epoch != 0 {
			bad("switch to %s while another one is under way", a.Host)
		}
		if a.Epoch != w.epoch+1 {
			bad("epoch %d after %d", a.Epoch, w.epoch)
		}
		w.epoch, w.busy = a.Epoch, a
		w.tell("switch %d %s %s>%s", a.Epoch, a.Kind, a.Old, a.Host)
		d, err := w.trigger(a)
		w.later(d, Switched{Epoch: a.Epoch, Err: err})
	case Open:
		if w.primary != "" {
			bad("two primaries: %s and %s", w.primary, a.Host)
		}
		if w.busy.Epoch != 0 || a.Epoch != w.epoch {
			bad("open before the switch is done")
		}
		w.primary, w.waiting = a.Host, false
		w.tell("open %d %s", a.Epoch, a.Host)
		if w.opened != nil {
			w.opened()
		}
	case Lost:
		w.lost = a
		w.tell("lost %s", a.Host)
	case Awaited:
		w.tell("%s passes, %s is waited for", a.Usable, a.Host)
	case RoundFailed:
		w.tell("none usable, %v", a.Wait)
	case Declined:
		if a.Kind == Switchover {
			w.tell("declined %s: %s", a.Host, a.Reason)
		} else {
			w.tell("declined %s", a.Host)
		}
	case Stayed:
		w.tell("%s stays", a.Host)
	case Stalled:
		w.tell("stalled %v", a.For)
	case HostChanged:
		if w.facts {
			w.tell("%s %s->%s by %s", a.Host, a.From, a.To, a.Check)
		}
	case Suspected:
		if w.facts {
			w.tell("suspected %s %s: %v", a.Host, a.Check, a.Err)
		}
	case CheckUnknown:
		if w.facts {
			w.tell("unknown %s %s: %v", a.Host, a.Check, a.Err)
		}
	case CheckKnown:
		if w.facts {
			w.tell("known %s %s", a.Host, a.Check)
		}
	case TwoWriters:
		w.tell("two writers %s", strings.Join(a.Hosts, "+"))
	case OneWriter:
		w.tell("one writer")
	case Unverified:
		w.tell("%s unverified", a.Host)
	case Cleared:
		if w.facts {
			w.tell("cleared %s %s", a.Host, a.Check)
		}
	}
}

// spell is the behaviour of a host from a given time on.
type spell struct {
	from time.Duration
	kind string
}

type arrival struct {
	at time.Duration
	ev Event
}
