package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/bind"
)

// ProxyVersion is the version of the PROXY protocol to send; zero is none.
type ProxyVersion int

// Config configures how one relay listens, connects and moves bytes. No setting
// has a default: the meaning of zero is documented at the field, and zero is an
// error for a field marked required.
//
// [Relay.Reconfigure] changes the settings of a relay that runs. Each takes
// effect the next time it matters: Listen, MaxConnections, Reserve and Ended at
// once, Allow and AcceptProxy with the next client, ConnectTimeout, Source and SendProxy
// with the next connect to a host, DrainTimeout when the drain begins. The
// effect on open connections is documented at the field; by default there is
// none.
type Config struct {
	// Name is the relay's name in log records.
	Name string

	// Listen holds the addresses to listen on: "192.0.2.1:5432", "[::]:5432",
	// ":5432" (every address, IPv4 and IPv6) or "unix:/run/orders.sock". At
	// least one is required, here or in Sockets.
	Listen []string

	// Sockets holds descriptors of bound stream sockets that another program
	// created, for example systemd. The relay owns them from New on.
	Sockets []int

	// Freebind binds addresses of Listen that this machine does not have, or not
	// yet (IP_FREEBIND; Linux only). Without it such an address is skipped by
	// Bind, and Run binds it once it is there, within a second. It has no effect
	// on addresses that are bound already.
	Freebind bool

	// SocketFile is the mode and the owner of the files of unix sockets in Listen.
	// A change applies to the existing files, too.
	SocketFile bind.File

	// Suspect, if set, is called when a client's connect to the primary of an
	// epoch failed or is slow. It must return at once. The relay's own faults (no
	// descriptors, no ports, no memory) are never reported here. Calls are limited
	// to about ten a second.
	Suspect func(epoch uint64, err error)

	// HostEnded, if set, is called when the host of an epoch has reset a
	// connection that was in use, or has ended several at about the same time:
	// it may have died, or it may have ended them for a good reason. It must
	// return at once. Calls are limited to about ten a second.
	HostEnded func(epoch uint64)

	// FirstByte, if set, is called once for each epoch, when the first byte comes
	// back from its host to a client. It must return at once.
	FirstByte func(epoch uint64)

	// Ended, if set, is called with each connection that has ended and was in
	// [Stats].Accepted. It must return at once, because it is called in the data path,
	// by several goroutines at the same time.
	Ended func(Ending)

	// Hold is the time for which a client that was accepted waits for a primary that
	// accepts it, before it is reset. Zero resets at once. When it is changed, the
	// old or the new value ends a wait that is under way.
	Hold time.Duration

	// OpenRate is the number of clients that waited which are connected in a second
	// after an Open. Zero, or a Hold of zero, connects all at once. A change applies to
	// clients that wait for their turn, too.
	OpenRate OpenRate

	// Paced, if set, is called when the pacing of an Open has ended. It must return at
	// once.
	Paced func(Pacing)

	// ConnectTimeout limits one connect to a host. Required.
	ConnectTimeout time.Duration

	// IdleTimeout ends a connection over which no byte has passed for that
	// long. Zero never does. When it is changed, the new value applies to open
	// connections, too, including the idle time that has already passed.
	IdleTimeout time.Duration

	// UserTimeout is TCP_USER_TIMEOUT of both sides: how long sent data may
	// stay unacknowledged before the peer counts as dead. Zero leaves it to the
	// system. When it is changed, open connections keep the old one, except
	// towards peers that take nothing at present and hosts that were connected
	// to in the last few seconds.
	UserTimeout time.Duration

	// DrainTimeout is the time for which Run lets open connections finish after its
	// context ends, before it resets them. Zero resets them at once.
	DrainTimeout time.Duration

	// MaxConnections limits the connections that are open at one time; further
	// clients wait in the kernel's queue. Zero is as many as the descriptor limit
	// allows: (limit - 64 - Reserve) / 2. When it is lowered below the number of
	// open connections, none is ended, and no client is accepted until the number
	// has fallen below it.
	MaxConnections int

	// Reserve is the number of descriptors that the process needs for other
	// purposes, beyond the 64 that are never used for connections. At most a quarter of the limit
	// is reserved. Zero is none.
	Reserve int

	// Together counts the connections of several relays of this process, which
	// share its descriptors: the limit applies to all of them together. Each relay
	// adds its own. Nil is for a single relay.
	Together *atomic.Int64

	// SendProxy is the version of the PROXY protocol header that each host is
	// sent first. Zero sends none.
	SendProxy ProxyVersion

	// AcceptProxy expects a PROXY protocol header, version 1 or 2, from each
	// client, and resets the client that sends none.
	AcceptProxy bool

	// Allow lists the networks that clients may come from; others are reset.
	// Empty allows all.
	Allow []netip.Prefix

	// Source is the local address that hosts are connected from. The zero
	// Addr leaves it to the system.
	Source netip.Addr

	// Replay reports whether the first bytes that a client has sent, 16 KiB at most,
	// may be sent again to another host when theirs fails, or is fenced, before it
	// has sent a byte. It is called in the data path, with all bytes so far, and
	// must not keep them. Nil replays nothing. The portable plane never does.
	Replay func(opening []byte) bool

	// Lease, if set, is the permission to move bytes. It is looked at in the data path
	// before each batch: while it does not hold, no client is connected, and all
	// connections are reset, but that clients over whose connections no byte has
	// passed wait.
	Lease Lease

	// LeaseTime is the length of a lease. UserTimeout is not longer than that towards
	// hosts, nor left to the system, because the kernel goes on trying to deliver what
	// was sent while the lease held. Zero limits nothing.
	LeaseTime time.Duration

	// Engine has the event loops that serve the relay, together with the other
	// relays of the process. Nil is an engine of its own with one loop.
	Engine *Engine

	// Logger gets the relay's log. Nil discards it.
	Logger hclog.Logger
}

// Lease tells whether bytes may be moved at the time now of a clock that also counts
// while the machine sleeps, see [understudy/internal/boottime]. It is called by several
// goroutines at the same time.
type Lease interface{ Holds(now time.Duration) bool }

// leaseRetry is the time after which a client that was kept waiting only because the
// lease did not hold is tried again, unless the gate opens before.
const leaseRetry = 100 * time.Millisecond

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
	if _, _, err := cfg.SocketFile.IDs(); err != nil {
		errs = append(errs, err)
	}
	if cfg.ConnectTimeout <= 0 {
		errs = append(errs, fmt.Errorf("connect-timeout: %s is not positive", cfg.ConnectTimeout))
	}
	for _, d := range []struct {
		name string
		time.Duration
	}{{"hold", cfg.Hold}, {"idle-timeout", cfg.IdleTimeout}, {"user-timeout", cfg.UserTimeout}, {"lease", cfg.LeaseTime}, {"drain-timeout", cfg.DrainTimeout}} {
		if d.Duration < 0 {
			errs = append(errs, fmt.Errorf("%s: %s is negative", d.name, d))
		}
	}
	if cfg.OpenRate < OpenAuto {
		errs = append(errs, fmt.Errorf("open-rate: %d is negative", cfg.OpenRate))
	}
	if cfg.MaxConnections < 0 {
		errs = append(errs, fmt.Errorf("max-connections: %d is negative", cfg.MaxConnections))
	}
	return errors.Join(errs...)
}

// settings is a Config and the values derived from it. It is immutable;
// [Change.Commit] replaces it.
type settings struct {
	Config
	limit int64 // on the connections that are open at one time
	most  int64 // on the connections of all relays together

	hostTimeout time.Duration // UserTimeout towards hosts; zero only if that is, too
}

func newSettings(cfg Config) *settings {
	s := &settings{Config: cfg, most: connectionLimit(cfg.Reserve)}
	s.limit = s.most
	if wanted := int64(cfg.MaxConnections); wanted > 0 {
		s.limit = min(s.limit, wanted)
	}
	s.hostTimeout = cfg.UserTimeout
	if cfg.LeaseTime > 0 && (s.hostTimeout == 0 || cfg.LeaseTime < s.hostTimeout) {
		s.hostTimeout = cfg.LeaseTime
	}
	return s
}

// userTimeout returns how long data sent to a side may stay unacknowledged; zero is
// left to the system.
func (s *settings) userTimeout(to side) time.Duration {
	if to == host {
		return s.hostTimeout
	}
	return s.UserTimeout
}

// successor returns next as the settings that follow cfg: the fields that
// cannot change keep the values of cfg.
func (cfg Config) successor(next Config) (Config, error) {
	next.Name, next.Sockets, next.Engine, next.Lease = cfg.Name, cfg.Sockets, cfg.Engine, cfg.Lease
	next.Suspect, next.HostEnded, next.FirstByte, next.Paced, next.Together, next.Logger = cfg.Suspect, cfg.HostEnded, cfg.FirstByte, cfg.Paced, cfg.Together, cfg.Logger
	if err := next.validate(); err != nil {
		return Config{}, err
	}
	return next, nil
}

// allows reports whether a client with the address a is admitted. A client of a
// unix socket has no address and is always admitted: the file's mode restricts
// access there.
func (s *settings) allows(a netip.Addr) bool {
	return len(s.Allow) == 0 || !a.IsValid() ||
		slices.ContainsFunc(s.Allow, func(p netip.Prefix) bool { return p.Contains(a) })
}
