// Package relay accepts TCP connections on one service's addresses and moves
// bytes between each client and the host that is primary at that moment.
//
// Relay does not decide which host is primary: its owner opens its gate to a
// host ([Relay.Open]), closes it ([Relay.Hold], [Relay.Refuse]) and ends what
// an earlier gate let through ([Relay.Fence]). Every connection carries the
// epoch it was made in.
//
// A [Relay] owns every goroutine, thread, descriptor and pipe it creates; when
// [Relay.Run] returns, all of them have ended or are closed.
package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Stats counts connections. Accepted is always the sum of the others.
type Stats struct {
	Accepted uint64 // clients admitted
	Live     uint64 // open now, including clients that wait for a host
	Finished uint64 // both directions ended cleanly
	Reset    uint64 // either side failed
	Fenced   uint64 // ended because their epoch was over, or at shutdown
	Expired  uint64 // waited longer than Hold
	Aborted  uint64 // the client left while it waited

	Replayed   uint64 // how often an opening was sent again to another host; see [Config.Replay]
	Unanswered uint64 // clients that were reset before a host had answered what they had sent; in Reset, Fenced or Expired, too

	Denied   uint64 // not in Allow, or no PROXY header; not in Accepted
	Silent   uint64 // ended by the host at once without a byte, see [Silence]; in Finished or Reset, too
	Sent     uint64 // bytes from clients to hosts
	Received uint64 // bytes from hosts to clients
}

// Waiting counts the clients that wait for a primary: Queued in the kernel's
// queue, Held accepted but not connected, because a connect failed or a fence
// took their host.
type Waiting struct {
	Queued, Held int
	Paced        bool // by an Open: they are connected one after the other, see [Pacing]
}

// Fenced counts the connections of earlier epochs by what happened to them.
type Fenced struct {
	Finished int // ended by themselves within the grace
	Reset    int // cut
	Moved    int // nothing had passed over them: their clients wait for the next host
	Kept     int // live on: at the host that stays, or because the grace has no end
}

// FencePolicy selects how a fence ends connections. The zero FencePolicy resets them
// at once.
type FencePolicy struct {
	// Keep leaves connections over which a byte has passed open. It excludes
	// Drain. Two databases may be written to then.
	Keep bool

	// Drain is the longest time that they may finish before they are reset.
	Drain time.Duration
}

// Relay is one relay: its listeners, its gate and its settings. Its data plane
// accepts clients and moves their bytes. The gate is shut until [Relay.Open].
// All methods may be called from many goroutines; those that change the gate
// run one at a time.
type Relay struct {
	reports
	cfg   atomic.Pointer[settings]
	log   hclog.Logger
	plane plane

	gate  atomic.Pointer[gate] // nil while it is shut
	homes homes
	live  atomic.Int64 // connections, including those that are being accepted

	canaries  canaries
	connected func() // called when a host has accepted a client; nil for all but a twin, see canary.go
	dropped   func() // called when a client's connection was closed; nil for all but a twin, and Linux only

	usual  arrivals
	pacing atomic.Pointer[Pacing] // the last; nil for none
	pacers sync.WaitGroup

	changing sync.Mutex    // held while the settings are changed; taken before gating
	bound    bool          // the addresses are bound; guarded by changing
	lacks    chan struct{} // holds an element when missing has changed
	missing  []error       // addresses that this machine does not have yet; guarded by changing

	// gating is held while the gate is changed, and the listeners with it.
	// Listeners are changed only while none of them is accepted from.
	gating    sync.Mutex
	listeners []*listener // replaced only while changing is held, too
	listens   bool        // the gate is open, or holds; guarded by gating
	closed    bool        // the addresses are given up; guarded by gating

	started chan struct{} // closed when Run has begun, or cannot
	cutting chan struct{}
	cutOnce sync.Once
}

// gate is the target of new connections. It is immutable; a new one replaces
// it.
type gate struct {
	epoch uint64
	home  int32 // the number of its host
	to    target
	paced bool // clients wait for their turn
}

// New returns a relay, or an error naming every invalid field of cfg. It opens
// nothing.
func New(cfg Config) (*Relay, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("relay %s: %w", cfg.Name, err)
	}
	return newRelay(cfg), nil
}

func newRelay(cfg Config) *Relay {
	if cfg.Together == nil {
		cfg.Together = new(atomic.Int64)
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Engine == nil {
		cfg.Engine = NewEngine(EngineConfig{})
	}
	cfg.Logger = cfg.Logger.Named("relay").With("relay", cfg.Name)
	r := &Relay{
		reports: reports{fixed: &cfg},
		log:     cfg.Logger,
		started: make(chan struct{}),
		cutting: make(chan struct{}),
		lacks:   make(chan struct{}, 1),
	}
	r.cfg.Store(newSettings(cfg))
	r.plane = newPlane(r)
	return r
}

// Bind binds every address, so that an address in use is an error before
// anything else has happened. Connects are refused until [Relay.Open]. The
// addresses are given up when [Relay.Run] returns; without Run, by
// [Relay.Close].
func (r *Relay) Bind() error {
	r.changing.Lock()
	defer r.changing.Unlock()
	all, missing, err := bindAll(r.cfg.Load().Config)
	if err != nil {
		return err
	}
	r.gating.Lock()
	defer r.gating.Unlock()
	r.listeners, r.missing, r.bound = all, missing, true
	return nil
}

// Close gives up what Bind bound, for a relay that is never run.
func (r *Relay) Close() {
	r.gating.Lock()
	defer r.gating.Unlock()
	r.unbindLocked()
}

// unbindLocked gives the addresses up, once: afterwards a socket file of that name
// may be another program's.
func (r *Relay) unbindLocked() {
	if r.closed {
		return
	}
	r.closed = true
	for _, ln := range r.listeners {
		ln.Close()
	}
}

// Missing returns the addresses of Listen that Bind skipped, because this
// machine does not have them, and that Run has not bound yet.
func (r *Relay) Missing() []error {
	r.changing.Lock()
	defer r.changing.Unlock()
	return slices.Clone(r.missing)
}

// Addrs returns the bound addresses.
func (r *Relay) Addrs() []net.Addr {
	r.gating.Lock()
	defer r.gating.Unlock()
	var all []net.Addr
	for _, ln := range r.listeners {
		all = append(all, ln.Addr)
	}
	return all
}

// Run serves until ctx ends. Then it accepts nothing more, lets the open
// connections finish for DrainTimeout or until [Relay.Cut], resets the rest,
// and returns when everything it started has ended.
func (r *Relay) Run(ctx context.Context) error {
	if err := r.plane.start(); err != nil {
		r.Close()
		close(r.started)
		return fmt.Errorf("relay %s: %w", r.fixed.Name, err)
	}
	close(r.started)
	r.attend(ctx)
	r.Leave()
	r.canaries.end()
	if cut := r.drain(); cut > 0 {
		r.log.Warn("drain cut connections", "count", cut, "drain-timeout", r.cfg.Load().DrainTimeout)
	}
	r.pacers.Wait()
	r.plane.stop()
	return nil
}

// Leave begins the end of Run before its context does: nothing is accepted any
// more, and when it returns other programs can bind the addresses.
func (r *Relay) Leave() {
	r.gating.Lock()
	defer r.gating.Unlock()
	if r.closed {
		return
	}
	r.plane.leave(r.listeners)
	r.unbindLocked()
}

// drain lets the open connections finish, for the drain timeout or until cut,
// and resets the rest, whose number it returns.
func (r *Relay) drain() int {
	timeout := time.NewTimer(r.cfg.Load().DrainTimeout)
	defer timeout.Stop()
	poll := time.NewTicker(fencePoll)
	defer poll.Stop()
	for r.live.Load() > 0 {
		select {
		case <-poll.C:
			continue
		case <-timeout.C:
		case <-r.cutting:
		}
		break
	}
	return r.plane.cut()
}

// Cut ends the drain of a Run whose context has ended.
func (r *Relay) Cut() { r.cutOnce.Do(func() { close(r.cutting) }) }

// Open lets clients through to host, a connection string such as
// "192.0.2.1:5432", "[::1]:80" or "unix:/run/x.sock", in the given epoch,
// waiting clients first. A name is not a host: it may resolve to several, and
// to another one with each connect. Open returns how many clients waited; if
// Config.OpenRate paces them, it does not wait until they are connected. Run
// must be under way. The error is about host, or about an address that another
// program has taken since Bind; the gate is shut then.
func (r *Relay) Open(epoch uint64, host string) (Waiting, error) {
	g, err := newGate(epoch, host)
	if err != nil {
		return Waiting{}, err
	}
	<-r.started
	r.gating.Lock()
	defer r.gating.Unlock()
	if r.closed {
		return Waiting{}, errClosed
	}
	waited := r.waitingLocked()
	for _, ln := range r.listeners {
		if err := r.listen(ln); err != nil {
			return waited, err
		}
	}
	waited.Paced = r.pacesLocked(waited)
	r.listens = true
	g.home, g.paced = r.homes.number(host), waited.Paced
	r.serving.Store(epoch)
	r.canaries.gateLocked(g)
	r.gate.Store(g)
	r.plane.open()
	r.canaries.do(func(t *Relay) { t.plane.open() })
	if g.paced {
		r.pacers.Go(func() { r.pace(g, waited.Queued+waited.Held) })
	}
	return waited, nil
}

func newGate(epoch uint64, host string) (*gate, error) {
	h, err := parseHost(host)
	if err != nil {
		return nil, err
	}
	to, err := newTarget(h)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", host, err)
	}
	return &gate{epoch: epoch, to: to}, nil
}

// listen takes clients into the queue of a listener.
func (r *Relay) listen(ln *listener) error {
	r.plane.tune(ln)
	if err := ln.Listen(); err != nil {
		return fmt.Errorf("listen on %s: %w", ln.Addr, err)
	}
	return nil
}

// Hold shuts the gate: nothing is accepted, new clients wait in the kernel's
// queue. Connections go on. When it returns, no client is let through any more
// to the host that the gate was open to.
func (r *Relay) Hold() {
	<-r.started
	r.gating.Lock()
	defer r.gating.Unlock()
	r.shutLocked()
}

func (r *Relay) shutLocked() {
	r.gate.Store(nil)
	r.serving.Store(0)
	r.plane.leave(nil)
	r.canaries.gateLocked(nil)
	r.canaries.do(func(t *Relay) { t.plane.leave(nil) })
}

// Refuse shuts the gate, resets the waiting clients and refuses new ones. The
// addresses stay bound. It returns how many clients waited.
func (r *Relay) Refuse() Waiting {
	<-r.started
	r.gating.Lock()
	defer r.gating.Unlock()
	waited := r.waitingLocked()
	r.turnedAway.Add(uint64(max(waited.Queued, 0)))
	r.shutLocked()
	r.listens = false
	for _, ln := range r.listeners {
		if err := ln.Refuse(); err != nil {
			r.log.Warn("address was lost", "address", ln.Addr, "error", err)
		}
	}
	r.plane.expire()
	r.canaries.do(func(t *Relay) { t.plane.expire() })
	return waited
}

// Fence ends the connections of epochs before the given one as p says, and
// returns when none is left, or when ctx ends, in which case the remaining ones
// live on. If p keeps them, it resets none and returns at once. Connections over
// which no byte has passed lose their host in any case; their clients wait for
// the next Open.
//
// Connections to the host stays, given as it was to [Relay.Open], are not ended:
// from then on they are of the epoch before, and a Fence of a later epoch finds
// them. Only a connect that is still under way starts anew at the next Open. An
// empty stays is no host.
func (r *Relay) Fence(ctx context.Context, before uint64, stays string, p FencePolicy) Fenced {
	home := r.homes.number(stays)
	fenced := fenceWith(ctx, p, func(reset bool, wait time.Duration) fencedCounts {
		return r.plane.fence(before, home, reset, wait)
	})
	// A canary has as long as the clients have taken.
	r.canaries.do(func(t *Relay) { t.plane.fence(before, home, !p.Keep, 0) })
	return fenced
}

// Stats counts connections and bytes since the start.
func (r *Relay) Stats() Stats {
	s := r.plane.stats()
	s.Silent = r.silents.Load()
	s.Live = s.Accepted - s.Finished - s.Reset - s.Fenced - s.Expired - s.Aborted
	return s
}

// Hang describes the host that the relay is open to, if it accepts clients and
// answers none of them. The portable plane does not notice that.
func (r *Relay) Hang() Hang { return r.plane.hang() }

// Waiting returns how many clients wait for a primary now.
func (r *Relay) Waiting() Waiting {
	r.gating.Lock()
	defer r.gating.Unlock()
	return r.waitingLocked()
}

func (r *Relay) waitingLocked() Waiting {
	return Waiting{Queued: r.queuedLocked(), Held: r.plane.held()}
}

// enter takes the place of one connection, or returns false when there is none.
func (r *Relay) enter() bool {
	s := r.cfg.Load()
	all, own := s.Together.Add(1), r.live.Add(1)
	if all <= s.most && own <= s.limit {
		return true
	}
	r.leave()
	return false
}

// isTwin reports whether the relay is the twin of another one.
func (r *Relay) isTwin() bool { return r.connected != nil }

// leave gives the place of a connection back.
func (r *Relay) leave() {
	r.live.Add(-1)
	r.fixed.Together.Add(-1)
}

// homes numbers the hosts of a relay, so that the record of a connection can
// name its host without a pointer. Numbers begin at 1.
type homes struct {
	mu  sync.Mutex // guards all
	all []string
}

// number returns the number of a host; 0 for an empty one, which no connection
// has.
func (h *homes) number(host string) int32 {
	if host == "" {
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	n := slices.Index(h.all, host)
	if n < 0 {
		n = len(h.all)
		h.all = append(h.all, host)
	}
	return int32(n) + 1 //nolint:gosec // hosts are few
}

// name returns the host with a number.
func (h *homes) name(number int32) string {
	if number == 0 {
		return ""
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all[number-1]
}

// EndedEarly reports whether err, as passed to [Config.Suspect], means that the
// host accepted a client's connection and reset it before a byte had passed.
// Such a host listens but does not serve.
func EndedEarly(err error) bool {
	return errors.Is(err, errNoByte) || errors.Is(err, syscall.ECONNRESET)
}
