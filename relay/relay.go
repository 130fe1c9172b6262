// Package relay accepts TCP connections on one service's addresses and moves
// bytes between each client and the host that is primary at that moment.
//
// Relay decides nothing about who is primary: whoever owns it opens its gate
// on a host ([Relay.Open]), closes it ([Relay.Hold], [Relay.Refuse]) and ends
// what an earlier gate let through ([Relay.Fence]). Every connection carries
// the epoch it was made in.
//
// A [Relay] owns every goroutine, thread, descriptor and pipe it creates; when
// [Relay.Run] returns, all of them are gone.
package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

// ProxyVersion is the version of the PROXY protocol to speak; zero is none.
type ProxyVersion int

// Config says how one relay listens, connects and moves bytes. Zero fields
// mean their defaults.
//
// [Relay.Reconfigure] changes the settings of a relay that runs. Each takes
// effect the next time it matters: Listen, MaxConnections and Reserve at once,
// Allow and AcceptProxy with the next client, ConnectTimeout, Source and SendProxy
// with the next connect to a host, DrainTimeout when the drain begins. What a
// change does to open connections is said at the field; where nothing is said,
// nothing.
type Config struct {
	// Name is the relay's name in log records.
	Name string

	// Listen holds the addresses to listen on: "192.0.2.1:5432", "[::]:5432",
	// ":5432" (every address, IPv4 and IPv6) or "unix:/run/orders.sock". At
	// least one is required, here or in Sockets.
	Listen []string

	// Sockets holds descriptors of bound stream sockets that somebody else
	// made, systemd for one. The relay owns them from New on.
	Sockets []int

	// Resolve turns a host's name into addresses, in the order to try them.
	// It is called for each connection to a host that is not an IP address,
	// from many goroutines. Defaults to the system's resolver.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)

	// Suspect, if set, is told that a client's connect to the primary of an
	// epoch failed or is slow. It must return at once. The relay's own faults
	// (no descriptors, no ports, no memory) are never reported here. Calls
	// are limited to about ten a second.
	Suspect func(epoch uint64, err error)

	// FirstByte, if set, is told once for each epoch that the first byte came
	// back from its host to a client. It must return at once.
	FirstByte func(epoch uint64)

	// Hold is how long a client that was accepted waits for a primary that
	// accepts it, before it is reset. Defaults to 10s; negative resets at once.
	// When it is changed, a wait that is under way ends by the old or the new.
	Hold time.Duration

	// ConnectTimeout limits one connect to a host. Defaults to 3s.
	ConnectTimeout time.Duration

	// IdleTimeout ends a connection over which no byte has passed for that
	// long. Zero, the default, never does. When it is changed, the new one holds
	// for open connections, too, and for the time that has passed.
	IdleTimeout time.Duration

	// UserTimeout is TCP_USER_TIMEOUT of both sides: how long sent data may
	// stay unacknowledged before the peer counts as dead. Defaults to 20s;
	// negative leaves it to the system. When it is changed, open connections
	// keep the old one, except towards peers that take nothing at present and
	// hosts that were connected to in the last few seconds.
	UserTimeout time.Duration

	// DrainTimeout is how long Run lets open connections finish after its
	// context ends, before it resets them. Defaults to 30s; negative resets
	// at once.
	DrainTimeout time.Duration

	// MaxConnections limits the connections that are open at one time; those
	// who come then wait in the kernel's queue. Zero, the default, is what the
	// descriptor limit allows: (limit - 64 - Reserve) / 2. When it is lowered
	// below what is open, nobody is cut; nobody is accepted until it has fallen.
	MaxConnections int

	// Reserve is how many descriptors the process needs for other things, and
	// so are not for connections, beyond the 64 that are always left. A quarter
	// of the limit is reserved at most. Defaults to none.
	Reserve int

	// Together counts the connections of several relays of this process, which
	// share its descriptors: what the limit allows is for all of them. Each adds
	// its own. Nil, the default, is a relay alone.
	Together *atomic.Int64

	// SendProxy is the version of the PROXY protocol header that each host is
	// sent first. Zero, the default, sends none.
	SendProxy ProxyVersion

	// AcceptProxy expects a PROXY protocol header, version 1 or 2, from each
	// client, and resets the client that sends none.
	AcceptProxy bool

	// Allow lists the networks that clients may come from; others are reset.
	// Empty, the default, allows all.
	Allow []netip.Prefix

	// Source is the local address that hosts are connected from. The zero
	// Addr, the default, leaves it to the system.
	Source netip.Addr

	// Loops is the number of event loops, each a thread. Defaults to
	// [DefaultLoops].
	Loops int

	// Spin lets a loop poll for up to 200 µs before it sleeps, where that has
	// paid before: it shortens the way of small messages when a processor is
	// free. Ignored by the portable engine.
	Spin bool

	// Logger defaults to one that discards.
	Logger hclog.Logger
}

// Stats counts connections. Accepted is always the sum of the others.
type Stats struct {
	Accepted uint64 // clients let in
	Live     uint64 // open now, those who wait for a host included
	Finished uint64 // both directions ended cleanly
	Reset    uint64 // either side failed
	Fenced   uint64 // ended because their epoch was over, or at shutdown
	Expired  uint64 // waited longer than Hold
	Gone     uint64 // the client left while it waited

	Denied   uint64 // not in Allow, or no PROXY header; not in Accepted
	Sent     uint64 // bytes from clients to hosts
	Received uint64 // bytes from hosts to clients
}

// Waiting says how many clients wait for a primary: in the kernel's queue, and
// accepted, because a connect of theirs failed.
type Waiting struct{ Queued, Held int }

// Fenced says what became of the connections of earlier epochs.
type Fenced struct {
	Finished int // ended by themselves while they were let
	Reset    int // cut
	Moved    int // nothing had passed over them: their clients wait for the next host
}

// Relay is one relay. Its gate is shut until [Relay.Open]. All methods may be
// called from many goroutines; those that change the gate take turns.
type Relay struct {
	engine *engine
}

// The defaults of Config.
const (
	DefaultHold           = 10 * time.Second
	DefaultConnectTimeout = 3 * time.Second
	DefaultUserTimeout    = 20 * time.Second
	DefaultDrainTimeout   = 30 * time.Second
)

// New returns a relay, or an error naming every invalid field of cfg. It opens
// nothing.
func New(cfg Config) (*Relay, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("relay %s: %w", cfg.Name, err)
	}
	cfg = cfg.withDefaults()
	return &Relay{engine: newEngine(cfg)}, nil
}

func (cfg Config) validate() error {
	var errs []error
	if len(cfg.Listen)+len(cfg.Sockets) == 0 {
		errs = append(errs, errors.New("listen: at least one address is required"))
	}
	for _, a := range cfg.Listen {
		if _, err := parseListen(a); err != nil {
			errs = append(errs, fmt.Errorf("listen: %w", err))
		}
	}
	if cfg.SendProxy < 0 || cfg.SendProxy > 2 {
		errs = append(errs, fmt.Errorf("send-proxy: version %d is neither 1 nor 2", cfg.SendProxy))
	}
	for name, d := range map[string]time.Duration{"connect-timeout": cfg.ConnectTimeout, "idle-timeout": cfg.IdleTimeout} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("%s: %s is negative", name, d))
		}
	}
	if cfg.MaxConnections < 0 {
		errs = append(errs, fmt.Errorf("max-connections: %d is negative", cfg.MaxConnections))
	}
	return errors.Join(errs...)
}

func (cfg Config) withDefaults() Config {
	if cfg.Resolve == nil {
		cfg.Resolve = func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		}
	}
	if cfg.Hold == 0 {
		cfg.Hold = DefaultHold
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = DefaultConnectTimeout
	}
	if cfg.UserTimeout == 0 {
		cfg.UserTimeout = DefaultUserTimeout
	}
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = DefaultDrainTimeout
	}
	if cfg.Loops <= 0 {
		cfg.Loops = DefaultLoops()
	}
	if cfg.Together == nil {
		cfg.Together = new(atomic.Int64)
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	cfg.Logger = cfg.Logger.Named("relay").With("relay", cfg.Name)
	return cfg
}

// processors is how many this process may use, which the Go runtime finds out
// from its affinity, its control group and GOMAXPROCS. It is asked before
// anybody raises the number.
var processors = runtime.GOMAXPROCS(0)

// DefaultLoops is one event loop for each processor that this process may use,
// 16 at most: no link is faster than so many loops.
func DefaultLoops() int { return min(processors, 16) }

// Bind claims every address, so that a busy one is an error before anything
// else has happened. Connects are refused until [Relay.Open]. The addresses are
// given up when [Relay.Run] returns; without Run, by [Relay.Close].
func (r *Relay) Bind() error { return r.engine.bind() }

// Close gives up what Bind claimed, for a relay that is never run.
func (r *Relay) Close() { r.engine.unbind() }

// Addrs returns the bound addresses.
func (r *Relay) Addrs() []net.Addr { return r.engine.addrs() }

// Reconfigure gives the relay other settings, at any time before the end of Run.
// What did not change is not touched: connections, counters, the gate and its
// epoch, and each listening socket whose address stands in both settings, with
// those who wait in its queue. A port 0 in both is the same address.
//
// An address that is new is bound, and listens if the gate is open or holds. One
// that is no longer listed is given up, with the file if it is a unix socket's;
// connections that came over it live on, and who waits in its queue is let in
// first, as many as there is room for, or, when the gate is shut, reset.
//
// An error names what is wrong with cfg, or an address that cannot be bound;
// nothing has changed then. On Linux an address that overlaps one that is given
// up, such as "192.0.2.1:80" in the place of ":80", cannot be bound.
//
// Every other field of cfg takes effect as [Config] says, but Name, Sockets,
// Resolve, Suspect, FirstByte, Loops, Spin and Logger, which are ignored; see
// [Relay.NeedsRestart].
func (r *Relay) Reconfigure(cfg Config) error {
	c, err := r.Prepare(cfg)
	if err != nil {
		return err
	}
	return c.Commit()
}

// Prepare is the first half of [Relay.Reconfigure], for who must know that
// something else can be done as well: it claims the addresses that are new, and
// clients notice nothing. The error is that of Reconfigure.
func (r *Relay) Prepare(cfg Config) (*Change, error) { return r.engine.plan(cfg) }

// NeedsRestart names the settings, "loops" and "spin", that have another value in
// cfg and that Reconfigure cannot change. It is empty when there are none.
func (r *Relay) NeedsRestart(cfg Config) []string {
	now, next := r.engine.cfg.Load().Config, cfg.withDefaults()
	var all []string
	if next.Loops != now.Loops {
		all = append(all, "loops")
	}
	if next.Spin != now.Spin {
		all = append(all, "spin")
	}
	return all
}

// Run serves until ctx ends. Then it accepts nothing more, lets the open
// connections finish for DrainTimeout or until [Relay.Cut], resets the rest,
// and returns when everything it started is gone.
func (r *Relay) Run(ctx context.Context) error { return r.engine.run(ctx) }

// Leave begins the end of Run before its context does: nothing is accepted any
// more, and when it returns others may have the addresses.
func (r *Relay) Leave() { r.engine.stopAccepting() }

// Cut ends the drain of a Run whose context has ended.
func (r *Relay) Cut() { r.engine.cut() }

// Open lets clients through to host, a connection string such as "db1:5432",
// "[::1]:80" or "unix:/run/x.sock", in the given epoch, those first who wait.
// It says how many they were. Run must be under way. The error is about host,
// or about an address that another program has taken since Bind; the gate is
// shut then.
func (r *Relay) Open(epoch uint64, host string) (Waiting, error) {
	return r.engine.open(epoch, host)
}

// Hold shuts the gate: nothing is accepted, new clients wait in the kernel's
// queue. Connections go on. When it returns, no client is let through any more
// to the host that the gate was open to.
func (r *Relay) Hold() { r.engine.hold() }

// Refuse shuts the gate, resets the clients who wait and refuses new ones. The
// addresses stay claimed. It says how many had waited.
func (r *Relay) Refuse() Waiting { return r.engine.refuse() }

// Fence ends the connections of epochs before the given one: it lets them
// finish for grace, resets the rest, and returns when none is left, or when ctx
// ends. With a negative grace it lets them live and returns at once.
// Connections over which no byte has passed lose their host in any case; their
// clients wait for the next Open.
func (r *Relay) Fence(ctx context.Context, before uint64, grace time.Duration) Fenced {
	return r.engine.fence(ctx, before, grace)
}

// Stats counts connections and bytes since the start.
func (r *Relay) Stats() Stats { return r.engine.stats() }

// Waiting says who waits for a primary now.
func (r *Relay) Waiting() Waiting { return r.engine.waiting() }

// IsLocal says whether err, of a system call, is this machine's or this
// program's own fault, such as too many open files or no free port, and so says
// nothing about a host.
func IsLocal(err error) bool {
	for _, e := range localErrors {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

var localErrors = []syscall.Errno{
	syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL,
	syscall.ENOSPC, // epoll_ctl(2): fs.epoll.max_user_watches
}
