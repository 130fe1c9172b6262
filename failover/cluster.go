package failover

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"understudy/cluster"
	"understudy/hooks"
	"understudy/internal/boottime"
	"understudy/relay"
	"understudy/selector"
)

// With Config.Cluster, two machines decide. The selector, which knows the checks of this
// instance, proposes an election; the machine of package cluster, which knows the other
// instances, makes it, or tells that another one did. Both belong to Run's goroutine, so
// nothing lies between what one says and what the other does:
//
//	checks ──▶ selector ──Proposal──▶ cluster.Machine ◀──▶ store, other instances
//	              ▲                      │
//	              └──────Agreed──────────┤
//	                                     └──▶ lease, fence, triggers, permission to open
//
// The gate is opened when both say so.

// Cluster is what a conductor needs to agree with other instances.
type Cluster struct {
	// Name is the name of the cluster.
	Name string

	// Machine is the member that this instance is. Its Epoch is set here.
	Machine cluster.Config

	// Store is what the instances share. It belongs to the caller.
	Store cluster.Store

	// Lease is set here, and looked at by the relay.
	Lease *cluster.Lease

	// Ask asks a member whether it grants a lease; see [Conductor.Grants]. The address
	// is where it says that it answers; empty where that is not known. An error is no grant.
	Ask func(ctx context.Context, member, address string, life, version, boot uint64) (bool, error)

	// Unanswered returns why a member does not answer the questions of this instance, and of
	// this instance why the others refuse it, in one line; empty where they do, and where that
	// is not known. Nil knows nothing.
	Unanswered func(member string) string

	// Here says where this process runs, for the people who look for it when another one has
	// its name. Nil says nothing.
	Here func() string

	// DrainTimeout is the time for which connections may go on when the program ends.
	DrainTimeout time.Duration
}

// ClusterStatus is the state of the agreement, for display.
type ClusterStatus struct {
	Cluster string
	cluster.Snapshot

	// Settings are those of this instance that all must have alike.
	Settings string

	// Clocks says whose clocks run wrong; empty for nobody's.
	Clocks string

	// Rival is where another process runs that has the name of this instance; empty for none.
	// One of them is refused.
	Rival string

	// Unanswered says of each member why it does not answer this instance, and of this
	// instance why the others refuse it. Those of which nothing is known are not in it.
	Unanswered map[string]string

	// Latency is how long the store took for its last answer, and Failing since when it has
	// given none to any request, because of Error; zero while it answers.
	Latency time.Duration
	Failing time.Time
	Error   string
}

// shareTime is the time for which an operator who sets a lock waits until the other
// instances can know of it, and leaveTime that for which the end of the program waits for
// the store.
const (
	shareTime = 5 * time.Second
	leaveTime = 2 * time.Second
)

// watchRetry is the time between two attempts to watch the store.
const watchRetry = time.Second

// agreement is the part of a Conductor that agrees with other instances. It belongs to
// Run's goroutine, except for inbox and store, and for cfg, which is not changed.
type agreement struct {
	cfg      *Cluster
	settings string // that all must have alike; those of cfg until there are new ones
	machine  *cluster.Machine
	register *cluster.Register
	inbox    inbox[cluster.Event]
	store    storeHealth

	ctx   context.Context // of requests to the store and to other instances
	tasks *sync.WaitGroup

	permit  *cluster.Open      // clients may be connected to its host; nil: to none
	epoch   uint64             // of the last permit
	told    *selector.Agreed   // what the selector was told last; nil for nothing
	passed  selector.Proposal  // what the machine was told last
	down    []string           // likewise
	fact    cluster.Fact       // likewise
	unfit   []string           // what the selector was told last
	elected selector.Switch    // the last election
	saved   *saving            // of that
	fence   context.CancelFunc // ends the fence in progress; nil before the first
	run     uint64             // the epoch whose triggers are run here; zero for none
	stopRun func()             // kills them; nil before the first

	locks   string        // as they were read from the record last
	sharesL string        // to be written into it; empty for none
	shared  chan struct{} // closed when they are; nil for none

	rival   string    // where another process with this name runs; empty for none
	rivalAt time.Time // when it was heard of last
	claimed time.Time // when this one has told it of itself

	roster  []string       // that is known; nil before the first
	pending cluster.Change // the last change of the roster that was read from the record
	ordered cluster.Change // the last one that was ordered here, until it is effective
	order   time.Time      // when that was

	clocks *cluster.Clocks
	wrong  string // whose clocks run wrong; empty for nobody's

	trouble   string // that was reported last
	isolated  bool   // likewise
	reported  string // likewise, of wrong
	storeless bool   // likewise, that the store does not answer
	left      bool
}

// storeHealth is how the store answers.
type storeHealth struct {
	mu      sync.Mutex // guards all
	latency time.Duration
	failing time.Time
	err     string
}

func (s *storeHealth) note(took time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.latency, s.failing, s.err = took, time.Time{}, ""
		return
	}
	if s.failing.IsZero() {
		s.failing = time.Now()
	}
	s.err = err.Error()
}

func newAgreement(cfg *Cluster, relay string, epoch uint64) (*agreement, error) {
	m := cfg.Machine
	m.Epoch = epoch
	machine, err := cluster.New(m)
	if err != nil {
		return nil, err
	}
	return &agreement{
		cfg: cfg, settings: m.Settings, machine: machine, register: cluster.NewRegister(cfg.Store, cfg.Name, relay, m.Member), inbox: newInbox[cluster.Event](),
		clocks: cluster.NewClocks(m.Member),
	}, nil
}

// validateCluster returns what of cfg does not go together with a cluster.
func (cfg Config) validateCluster() (errs []error) {
	if cfg.Fence.Keep {
		errs = append(errs, errors.New("fence: keep contradicts a cluster: connections to an old primary must end before the next one is opened"))
	}
	for _, h := range cfg.Hosts {
		if !isAddress(h) {
			errs = append(errs, fmt.Errorf("hosts: %q is a name: each instance of a cluster resolves it by itself, so while DNS changes two of them would pass clients to two machines; use its address", h))
		}
	}
	if c := cfg.Cluster; c.Store == nil || c.Lease == nil || c.Ask == nil {
		errs = append(errs, errors.New("cluster: store, lease and ask are required"))
	}
	return errs
}

// isAddress reports whether a host is no name.
func isAddress(host string) bool {
	if strings.HasPrefix(host, "unix:") {
		return true
	}
	_, err := netip.ParseAddrPort(host)
	return err == nil
}

// successor returns c with the settings of next.
func (c *Cluster) successor(next *Cluster) *Cluster {
	if c == nil || next == nil {
		return c
	}
	with := *c
	with.Machine.Settings = next.Machine.Settings
	return &with
}

// Grants answers another instance that asks for a lease while the store is away; see
// [cluster.Machine.Grants].
func (c *Conductor) Grants(ctx context.Context, from string, life, version, boot uint64) bool {
	granted := false
	err := c.request(ctx, func() selector.Event {
		granted = c.agree != nil && c.agree.machine.Grants(from, life, version, boot)
		return selector.Tick{}
	})
	return err == nil && granted
}

// RosterOrder adds a member to the roster of the cluster, or with Forget removes it. By is
// who ordered it, and Reason why; both are recorded.
type RosterOrder struct {
	Member     string
	Forget     bool
	By, Reason string
}

// ChangeRoster adds a member to the roster of the cluster, or removes it. It returns when
// that is effective, or with the reason why it is not yet.
func (c *Conductor) ChangeRoster(ctx context.Context, o RosterOrder) error {
	name, forget := o.Member, o.Forget
	if c.agree == nil {
		return RefusedError{"relay " + c.Name() + " is in no cluster"}
	}
	if name == "" {
		return RefusedError{"the name of a member is missing"}
	}
	if forget && name == c.agree.cfg.Machine.Member {
		return RefusedError{name + " is this instance: order it at another one"}
	}
	ready := func() bool {
		r := c.Status().Cluster.Record
		return slices.Contains(r.Roster, name) != forget && r.Change == cluster.Change{}
	}
	if ready() {
		return nil
	}
	err := c.request(ctx, func() selector.Event {
		change := cluster.Change{Name: name, Forget: forget, By: o.By, Reason: o.Reason}
		c.agree.ordered, c.agree.order = change, time.Now()
		c.agree.inbox.put(cluster.SetRoster{Change: change})
		return selector.Tick{}
	})
	if err != nil {
		return err
	}
	wait := 2*c.agree.cfg.Machine.Wait() + shareTime
	limit := time.NewTimer(wait)
	defer limit.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		if r := c.Status().Cluster.Record; r.Version > 0 && !slices.Contains(r.Roster, c.agree.cfg.Machine.Member) {
			return RefusedError{c.agree.cfg.Machine.Member + " is no member itself: order it at one that is (" + strings.Join(r.Roster, ", ") + ")"}
		}
		select {
		case <-tick.C:
		case <-limit.C:
			return fmt.Errorf("not effective after %v: it is as soon as the store answers and no change of primary is under way", wait.Round(time.Second))
		case <-c.over:
			return ErrOver
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Force declares that every instance for which this one waits is dead. It is for
// [cluster.Keep], where nothing else bounds the wait. By and reason are recorded.
func (c *Conductor) Force(ctx context.Context, by, reason string) (epoch uint64, err error) {
	if c.agree == nil {
		return 0, RefusedError{"relay " + c.Name() + " is in no cluster"}
	}
	refused := ""
	err = c.request(ctx, func() selector.Event {
		r, _ := c.agree.machine.Record()
		s := c.agree.machine.Snapshot()
		switch {
		case c.agree.cfg.Machine.OnStoreLoss != cluster.Keep:
			refused = "an instance that is silent is waited for until its lease is over: only with --on-store-loss keep that has no end"
		case r.Open || !s.Driving:
			refused = "this instance does not change the primary now, and waits for nobody"
		default:
			epoch = r.Epoch
			c.log.Warn("forced: instances that are silent are taken for dead", "epoch", epoch, "by", by, "reason", reason)
			c.agree.inbox.put(cluster.Force{Epoch: epoch})
			var silent []string
			for _, w := range s.Waiting {
				silent = append(silent, w.Member)
			}
			c.noteOrder(Incident{
				Event: OrderForce, Reason: orderText(string(OrderForce), by, reason), By: by,
				Order: &Ordered{At: time.Now(), Member: strings.Join(silent, ", ")},
			})
			c.save()
		}
		return selector.Tick{}
	})
	if err == nil && refused != "" {
		err = RefusedError{refused}
	}
	return epoch, err
}

// name returns the name of the cluster; empty for none.
func (a *agreement) name() string {
	if a == nil {
		return ""
	}
	return a.cfg.Name
}

// ready returns a channel that holds an element when there are events.
func (a *agreement) ready() <-chan struct{} {
	if a == nil {
		return nil
	}
	return a.inbox.ready
}

// wake returns in how much time keepAgreement has to be called.
func (a *agreement) wake() time.Duration {
	if a == nil {
		return time.Hour
	}
	return a.machine.Wake() - boottime.Now()
}

// permits reports whether the gate may be opened.
func (a *agreement) permits(o selector.Open) bool {
	return a == nil || a.permit != nil && a.permit.Epoch == o.Epoch && a.permit.Host == o.Host
}

// status returns the state for display; nil where the relay decides alone.
func (a *agreement) status() *ClusterStatus {
	if a == nil {
		return nil
	}
	s := &ClusterStatus{
		Cluster: a.cfg.Name, Snapshot: a.machine.Snapshot(), Settings: a.settings,
		Clocks: a.wrong, Rival: a.rival,
	}
	if a.cfg.Unanswered != nil {
		for _, name := range append([]string{s.Member}, s.Record.Roster...) {
			if why := a.cfg.Unanswered(name); why != "" {
				if s.Unanswered == nil {
					s.Unanswered = map[string]string{}
				}
				s.Unanswered[name] = why
			}
		}
	}
	a.store.mu.Lock()
	defer a.store.mu.Unlock()
	s.Latency, s.Failing, s.Error = a.store.latency, a.store.failing, a.store.err
	return s
}

// start begins to watch the store, until ctx ends, which also ends all requests.
func (a *agreement) start(ctx context.Context, tasks *sync.WaitGroup, doubted func(context.Context, cluster.Doubt)) {
	a.ctx, a.tasks = ctx, tasks
	for _, watch := range []func() error{ // they are only hints
		func() error { return a.register.Watch(ctx, func(c cluster.Changed) { a.inbox.put(c) }) },
		func() error { return a.register.WatchDoubts(ctx, func(d cluster.Doubt) { doubted(ctx, d) }) },
	} {
		tasks.Go(func() {
			for ctx.Err() == nil {
				_ = watch()
				pause := time.NewTimer(watchRetry)
				select {
				case <-pause.C:
				case <-ctx.Done():
					pause.Stop()
				}
			}
		})
	}
}

// share has the locks written into the record.
func (a *agreement) share(l locks) {
	if a == nil {
		return
	}
	text, _ := json.Marshal(slices.Concat(locks{}, l)) // never fails; not null
	a.sharesL = string(text)
	if a.shared == nil {
		a.shared = make(chan struct{})
	}
	a.inbox.put(cluster.SetLocks{Locks: a.sharesL})
}

// sharing returns a channel that is closed when the locks are in the record; nil where
// there is nothing to wait for.
func (a *agreement) sharing() <-chan struct{} {
	if a == nil {
		return nil
	}
	return a.shared
}

// awaitShared waits until the locks are shared. A nil channel is not waited for.
func awaitShared(ctx context.Context, shared <-chan struct{}) error {
	if shared == nil {
		return nil
	}
	limit := time.NewTimer(shareTime)
	defer limit.Stop()
	select {
	case <-shared:
		return nil
	case <-limit.C:
		return errors.New("done at this instance only: the others follow when the store answers")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reconfigured passes new settings on.
func (a *agreement) reconfigured(cfg *Cluster) {
	if a != nil {
		a.settings = cfg.Machine.Settings
		a.inbox.put(cluster.SetSettings{Settings: cfg.Machine.Settings})
	}
}

// keepAgreement processes what has come from the store and from other instances, and has
// both machines know of each other's state.
func (c *Conductor) keepAgreement(ctx context.Context) {
	a := c.agree
	if a == nil {
		return
	}
	for _, ev := range a.inbox.take() {
		c.stepCluster(ctx, ev)
	}
	if a.wake() <= 0 {
		c.stepCluster(ctx, cluster.Tick{})
	}
	c.reconcile(ctx)
}

// errDoubted is the cause of a suspicion of another instance.
var errDoubted = errors.New("suspected by the instance")

// heed has the primary checked at once that another instance has begun to suspect: it may
// have clients, by which it noticed, where this one has none.
func (c *Conductor) heed(ctx context.Context, d cluster.Doubt) {
	c.reportRequest(ctx, func() selector.Event {
		if a := c.agree; d.Boot != 0 {
			if d.Boot != a.cfg.Machine.Boot {
				a.rivalAt = time.Now()
				c.setRival(ctx, cmp.Or(d.Where, "it does not say where"))
			}
			return selector.Tick{}
		}
		if r, _ := c.agree.machine.Record(); d.Host == r.Host {
			return selector.Suspicion{Epoch: r.Epoch, Err: fmt.Errorf("%w %s", errDoubted, d.Member)}
		}
		return selector.Tick{}
	})
}

// setRival takes note of where another process with the name of this instance runs; empty
// for none any more.
func (c *Conductor) setRival(ctx context.Context, where string) {
	a := c.agree
	if where == a.rival {
		return
	}
	a.rival = where
	if where == "" {
		c.log.Info("no other process has the name of this instance any more", "member", a.cfg.Machine.Member)
		return
	}
	c.log.Error("another process has the name of this instance, and one of the two is refused", "member", a.cfg.Machine.Member, "other", where, "refused", a.machine.Snapshot().Twice)
	c.notice(ctx, EventCluster, "", fmt.Sprintf("another process has the name of this instance, %s: %s", a.cfg.Machine.Member, where))
}

// claim tells another process with the name of this instance of this one, from time to time
// while they have it both.
func (c *Conductor) claim(ctx context.Context, refused bool) {
	a := c.agree
	every := a.cfg.Machine.Lease
	if a.rival != "" && time.Since(a.rivalAt) > 3*every {
		c.setRival(ctx, "")
	}
	if !refused && a.rival == "" || time.Since(a.claimed) < every {
		return
	}
	a.claimed = time.Now()
	a.tasks.Go(func() { //nolint:contextcheck // it outlives Run's context: the member leaves after that has ended
		ctx, stop := context.WithTimeout(a.ctx, a.cfg.Machine.Request)
		defer stop()
		where := ""
		if a.cfg.Here != nil {
			where = a.cfg.Here()
		}
		_ = a.register.Claim(ctx, a.cfg.Machine.Boot, where) // it is only a hint
	})
}

// doubt tells other instances that this one has begun to suspect the primary, unless it
// does so because of them.
func (a *agreement) doubt(host string, err error) {
	if a == nil || errors.Is(err, errDoubted) {
		return
	}
	if r, _ := a.machine.Record(); r.Host != host {
		return
	}
	a.tasks.Go(func() {
		ctx, stop := context.WithTimeout(a.ctx, a.cfg.Machine.Request)
		defer stop()
		_ = a.register.Doubt(ctx, host) // it is only a hint
	})
}

// stepCluster passes an event to the machine, carries out its actions, and tells the
// selector what has changed.
func (c *Conductor) stepCluster(ctx context.Context, ev cluster.Event) {
	a := c.agree
	now := boottime.Now()
	if w, answer := ev.(cluster.Wrote); answer && len(w.Members) > 0 {
		a.clocks.Observe(w.Sent, now, w.Members)
		a.wrong = a.clocks.Wrong()
	}
	actions := a.machine.Step(now, ev)
	a.cfg.Lease.Set(a.machine.Lease())
	for _, action := range actions {
		c.actCluster(ctx, action)
	}
	c.tellSelector(ctx)
}

// tellSelector passes what was agreed to the selector, and the locks.
func (c *Conductor) tellSelector(ctx context.Context) {
	a := c.agree
	r, known := a.machine.Record()
	if !known || ctx.Err() != nil {
		return
	}
	c.noteRoster(&r)
	now := selector.Agreed{
		Epoch: r.Epoch, Host: r.Host, Old: r.Old, Kind: selector.Kind(r.Event), Reason: r.Reason, Drain: r.Drain,
		Last:   selector.Last(r.Fact),
		Served: a.permit != nil && a.permit.Epoch == r.Epoch,
	}
	if a.told == nil || *a.told != now {
		a.told = &now
		c.step(ctx, now)
	}
	if a.sharesL != "" && r.Locks == a.sharesL {
		a.locks, a.sharesL = r.Locks, ""
		close(a.shared)
		a.shared = nil
	}
	if r.Locks != a.locks {
		held, err := readLocks(r.Locks)
		if err != nil {
			a.locks = r.Locks
			c.log.Error("locks in the record of the cluster cannot be read and are ignored", "error", err)
			return
		}
		if a.sharesL != "" { // set here at the same time
			before, _ := readLocks(a.locks)
			wanted, _ := readLocks(a.sharesL) // it was written here
			held = held.merge(before, wanted)
			a.share(held)
		}
		a.locks = r.Locks
		c.locks, _ = held.at(time.Now())
		c.relocked = true
		c.log.Info("locks set at another instance", "count", len(c.locks))
		c.save()
	}
}

// noteRoster records that a member was added or removed. Each instance that is there while
// that becomes effective knows who ordered it.
func (c *Conductor) noteRoster(r *cluster.Record) {
	a := c.agree
	if r.Version == 0 {
		return
	}
	if r.Change.Name != "" { // it may follow the one that has become effective
		defer func() { a.pending = r.Change }()
	}
	before := a.roster
	a.roster = slices.Clone(r.Roster)
	if before == nil {
		return
	}
	note := func(name string, forget bool) {
		event := OrderAdd
		if forget {
			event = OrderForget
		}
		i := Incident{Event: event, Order: &Ordered{At: time.Now(), Member: name, Remote: true}}
		reason := ""
		if p := a.pending; p.Name == name && p.Forget == forget {
			i.By, reason = p.By, p.Reason
		}
		if o := a.ordered; o.Name == name && o.Forget == forget {
			i.Order.At, i.Order.Remote = a.order, false
			a.ordered = cluster.Change{}
		}
		i.Reason = orderText(string(event), i.By, reason)
		c.log.Info("members of the cluster changed", "order", string(event), "member", name, "by", i.By, "reason", reason)
		c.noteOrder(i)
	}
	for _, name := range before {
		if !slices.Contains(r.Roster, name) {
			note(name, true)
		}
	}
	for _, name := range r.Roster {
		if !slices.Contains(before, name) {
			note(name, false)
		}
	}
	if !slices.Equal(before, r.Roster) {
		c.save()
	}
}

// readLocks reads the locks of a record; none from an empty text.
func readLocks(text string) (l locks, err error) {
	if text == "" {
		return nil, nil
	}
	err = json.Unmarshal([]byte(text), &l)
	return l, err
}

// reconcile tells the machine of the cluster what the selector says.
func (c *Conductor) reconcile(ctx context.Context) {
	a := c.agree
	for range 8 { // each change may be followed by another one; the next call goes on
		if c.relocked { // an election must not be proposed that they forbid
			c.relocked = false
			c.step(ctx, c.locks.selection())
		}
		if unfit := a.machine.Unfit(); !slices.Equal(unfit, a.unfit) {
			a.unfit = unfit
			c.step(ctx, selector.Unfit{Hosts: unfit})
		}
		now := c.machine.Snapshot()
		r, _ := a.machine.Record()
		if a.run != 0 && (a.run != r.Epoch || now.Phase != selector.Switching) {
			ran := cluster.Ran{Epoch: a.run, Failed: now.Phase == selector.Selecting}
			if a.run != r.Epoch {
				a.stopRun()
			}
			a.run = 0
			c.stepCluster(ctx, ran)
			continue
		}
		p := c.machine.Proposal()
		var down []string
		for _, h := range now.Hosts {
			lost := h.Name == r.Host && r.Open && p.Host != "" && p.Host != r.Host && p.Kind == selector.Failover
			if h.State == selector.Down || lost {
				down = append(down, h.Name)
			}
		}
		if r.Host != "" && !slices.ContainsFunc(now.Hosts, func(h selector.Host) bool { return h.Name == r.Host }) {
			down = append(down, r.Host) // it was removed from the settings: another one has to be elected
		}
		if !slices.Equal(down, a.down) {
			a.down = down
			c.stepCluster(ctx, cluster.Down{Hosts: down})
			continue
		}
		if fact := c.fact(now); fact != a.fact && (fact.Term > 0 || fact.Identity != "") {
			a.fact = fact
			c.stepCluster(ctx, cluster.SetFact{Fact: fact})
			continue
		}
		wanted := a.machine.Wanted()
		if p == a.passed && (p.Host == "" || p.Host == wanted) {
			break
		}
		before := a.passed
		a.passed = p
		if p.Host == "" && (wanted == "" || wanted != before.Host) {
			continue // nothing to withdraw
		}
		c.stepCluster(ctx, cluster.Want{
			Host: p.Host, Event: string(p.Kind), Reason: p.Reason, Drain: p.Drain,
			Agreed: p.Kind == selector.Switchover || p.Kind == selector.Failback,
		})
		if a.machine.Wanted() != p.Host {
			break // it was done at once, or is refused
		}
	}
	c.reportCluster(ctx)
}

// fact returns what the role check has found out about the primary. Where every identity is
// accepted, it says nothing of the cluster.
func (c *Conductor) fact(now selector.Snapshot) cluster.Fact {
	f := cluster.Fact{Host: now.TermOf, Term: now.Term, Identity: now.Identity}
	if rules := c.cfg().roleCheck(); rules != nil && rules.Identity == selector.AnyIdentity {
		f.Identity = ""
	}
	return f
}

// reportCluster logs what keeps this instance from taking part, that it is isolated, that
// the store does not answer, and whose clocks run wrong, each when it begins and ends.
func (c *Conductor) reportCluster(ctx context.Context) {
	a := c.agree
	s := a.machine.Snapshot()
	c.claim(ctx, s.Twice)
	if s.Trouble != a.trouble {
		a.trouble = s.Trouble
		if s.Trouble == "" {
			c.log.Info("takes part in the cluster again", "cluster", a.cfg.Name)
		} else {
			c.log.Error("does not take part in the cluster", "cluster", a.cfg.Name, "reason", s.Trouble)
			c.notice(ctx, EventCluster, "", s.Trouble)
		}
	}
	if s.Isolated != a.isolated {
		a.isolated = s.Isolated
		if s.Isolated {
			c.log.Warn("the primary is down for this instance, and not for enough of the others", "host", s.Record.Host, "down", s.Down, "instances", s.Fresh)
		} else {
			c.log.Info("this instance is not isolated any more")
		}
	}
	a.store.mu.Lock()
	since, storeError := a.store.failing, a.store.err
	a.store.mu.Unlock()
	if storeless := !since.IsZero() && time.Since(since) > a.cfg.Machine.Lease/2; storeless != a.storeless {
		a.storeless = storeless
		if storeless {
			c.log.Warn("the store of the cluster does not answer, and no other host can be elected", "cluster", a.cfg.Name, "on-store-loss", string(a.cfg.Machine.OnStoreLoss), "error", storeError)
		} else {
			c.log.Info("the store of the cluster answers again", "cluster", a.cfg.Name)
		}
	}
	if a.wrong != a.reported {
		a.reported = a.wrong
		if a.wrong == "" {
			c.log.Info("no clock runs wrong any more", "cluster", a.cfg.Name)
		} else {
			c.log.Error("a clock runs wrong: leases are counted on it, and two hosts may be primary at the same time", "cluster", a.cfg.Name, "clocks", a.wrong)
			c.notice(ctx, EventCluster, "", a.wrong)
		}
	}
}

// actCluster carries out one action of the machine.
func (c *Conductor) actCluster(ctx context.Context, action cluster.Action) {
	a := c.agree
	switch do := action.(type) {
	case cluster.Write:
		a.request(func(ctx context.Context) (cluster.Event, error) { return a.register.Write(ctx, do) }) //nolint:contextcheck // it outlives Run's context: the member leaves after that has ended
	case cluster.Swap:
		a.request(func(ctx context.Context) (cluster.Event, error) { return a.register.Swap(ctx, do) }) //nolint:contextcheck // it outlives Run's context: the member leaves after that has ended
	case cluster.Ask:
		for _, member := range do.To {
			address := a.addressOf(member)
			a.tasks.Go(func() { //nolint:contextcheck // it outlives Run's context: the member leaves after that has ended
				ctx, stop := context.WithTimeout(a.ctx, a.cfg.Machine.Request)
				defer stop()
				if granted, err := a.cfg.Ask(ctx, member, address, do.Life, do.Version, do.Boot); err == nil && granted {
					a.inbox.put(cluster.Granted{From: member, Sent: do.Sent})
				}
			})
		}
	case cluster.Open:
		a.permit, a.epoch = &do, do.Epoch
	case cluster.EndOlder:
		c.endOlder(do) //nolint:contextcheck // it outlives Run's context: the member leaves after that has ended
	case cluster.Run:
		c.runElected(ctx, do)
	case cluster.Stop:
		if a.stopRun != nil {
			a.stopRun()
		}
		a.run = 0
	case cluster.Left:
		a.left = true
	}
}

// request has a request to the store carried out, and its answer passed to the machine.
func (a *agreement) request(do func(context.Context) (cluster.Event, error)) {
	a.tasks.Go(func() {
		ctx, stop := context.WithTimeout(a.ctx, a.cfg.Machine.Request)
		defer stop()
		began := time.Now()
		ev, err := do(ctx)
		a.store.note(time.Since(began), err)
		if err == nil {
			a.inbox.put(ev)
		}
	})
}

// addressOf returns where a member says that it answers; empty where it has said nothing.
func (a *agreement) addressOf(member string) string {
	for _, o := range a.machine.Snapshot().Members {
		if o.Name == member {
			return o.Member.Address
		}
	}
	return ""
}

// endOlder shuts the gate and ends all connections.
func (c *Conductor) endOlder(do cluster.EndOlder) {
	a := c.agree
	a.permit = nil
	c.shut()
	c.cfg().Gate.Hold()
	if do.LeaseOver {
		c.log.Error("lease is over, all connections are reset", "epoch", a.epoch, "reason", a.status().overBecause())
	}
	if a.fence != nil {
		a.fence()
	}
	var ctx context.Context
	ctx, a.fence = context.WithCancel(a.ctx)
	before := a.epoch + 1
	a.tasks.Go(func() {
		start := time.Now()
		ended := c.cfg().Gate.Fence(ctx, before, "", relay.FencePolicy{Drain: do.Drain})
		if ctx.Err() != nil {
			return // another fence has replaced it
		}
		did := FenceRun{Finished: ended.Finished, Reset: ended.Reset, Moved: ended.Moved, Kept: ended.Kept, Seconds: time.Since(start).Seconds()}
		c.log.Info("earlier connections fenced", "epoch", before, "finished", ended.Finished, "reset", ended.Reset, "moved", ended.Moved, "kept", ended.Kept, "took", since(start))
		a.inbox.put(cluster.Fenced{Order: do.Order})
		c.reportRequest(a.ctx, func() selector.Event { //nolint:contextcheck // it outlives Run's context: the member leaves after that has ended
			c.measure.fence(&did)
			if i := c.recorder.current; i != nil && i.Epoch == before {
				i.Fence = &did
				c.publishIncident()
			}
			return selector.Tick{}
		})
	})
}

// runElected runs the triggers of the last election.
func (c *Conductor) runElected(ctx context.Context, do cluster.Run) {
	a := c.agree
	if a.elected.Epoch != do.Epoch { // the selector knows of it before
		c.tellSelector(ctx)
	}
	elected, saved := a.elected, a.saved
	// They may not go on for a moment when they are stopped: another member may run those of
	// the next epoch then. So the end of the program does not end them either, but leaving does.
	runCtx, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	a.run, a.stopRun = do.Epoch, func() { stop(hooks.ErrAtOnce) }
	c.tasks.Go(func() {
		defer stop(nil)
		did := performed{epoch: do.Epoch}
		_ = saved.wait(saveTimeout) // the StateFile has logged an error
		if loss := lossOf(elected.Loss); loss != nil {
			c.log.Info("predicted loss of data", "host", elected.Host, "epoch", elected.Epoch, "loss", loss.String())
		}
		c.endDrill()
		c.runTriggers(runCtx, elected, &did)
		if runCtx.Err() != nil {
			return // another election follows
		}
		c.reach(Progress{Host: elected.Host, Step: StageOpening})
		c.reportRequest(ctx, func() selector.Event {
			if a.run != do.Epoch {
				return selector.Tick{}
			}
			c.notePerformed(did)
			for _, failed := range did.failed {
				c.notice(ctx, EventScriptFailed, elected.Host, failed.Error())
			}
			return selector.Switched{Epoch: do.Epoch, Err: did.err}
		})
	})
}

// leaveCluster ends connections and tells the other instances that nothing of this one
// lives any more, so that they need not wait for its lease. It belongs to Run, whose
// context has ended.
func (c *Conductor) leaveCluster() {
	a := c.agree
	ended, stop := context.WithCancel(a.ctx)
	stop() // the selector decides nothing any more
	if a.stopRun != nil {
		a.stopRun()
	}
	c.stepCluster(ended, cluster.Leave{Drain: a.cfg.DrainTimeout})
	timer := time.NewTimer(0)
	defer timer.Stop()
	var gone time.Time // when the last connection had ended; zero before
	for !a.left {
		select {
		case <-a.inbox.ready:
		case <-timer.C:
		}
		for _, ev := range a.inbox.take() {
			c.stepCluster(ended, ev)
		}
		if a.wake() <= 0 {
			c.stepCluster(ended, cluster.Tick{})
		}
		wake := a.wake()
		if gone.IsZero() && !a.machine.Snapshot().Live {
			gone = time.Now()
		}
		if !gone.IsZero() {
			left := leaveTime - time.Since(gone)
			if left <= 0 {
				c.log.Warn("the store does not know that this instance has ended: in an election, the others wait for the end of its lease", "cluster", a.cfg.Name)
				return
			}
			wake = min(wake, left)
		}
		timer.Reset(max(wake, 0))
	}
}
