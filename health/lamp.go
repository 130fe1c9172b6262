package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/hashicorp/go-hclog"
)

// LampConfig says where a Lamp shows what.
type LampConfig struct {
	// Listen is the address to claim, "192.0.2.1:9003" or ":9003". Required.
	Listen string

	// Judge comes to a verdict: nil when it is good, or why not. It is called
	// every second, see [Ping.Judge], and must return in a few seconds.
	// Required.
	Judge func(ctx context.Context) error

	// Logger takes a record of each change. Defaults to none.
	Logger hclog.Logger
}

// Lamp is a TCP port that listens only while a verdict is good, for balancers
// that can do no more than connect. Who connects is accepted and closed at
// once; while the verdict is bad, or none can be had, the connect is refused.
//
// On Linux the address is never given up in between. Elsewhere another program
// could take it while the verdict is bad; the port then stays closed, and is
// tried every second.
type Lamp struct {
	cfg    LampConfig
	log    hclog.Logger
	socket *lampSocket // nil until Bind

	ln        net.Listener // nil while the port is closed
	out       context.CancelFunc
	accepting sync.WaitGroup
}

// NewLamp returns a Lamp, or an error naming every invalid field of cfg. It
// opens nothing.
func NewLamp(cfg LampConfig) (*Lamp, error) {
	if err := checkVerdictPort(cfg.Listen, cfg.Judge); err != nil {
		return nil, fmt.Errorf("verdict port: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Lamp{cfg: cfg, log: cfg.Logger.Named("tcp")}, nil
}

// Bind claims the address without listening, or returns an error that names
// it. Run releases it.
func (l *Lamp) Bind() error {
	socket, err := claimLamp(l.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", l.cfg.Listen, err)
	}
	l.socket = socket
	return nil
}

// Addr returns the address that Bind claimed, or nil before.
func (l *Lamp) Addr() net.Addr {
	if l.socket == nil {
		return nil
	}
	return l.socket.addr
}

// Close gives up the address of a Lamp that was bound and never ran. After
// Run it does nothing.
func (l *Lamp) Close() error {
	if l.socket == nil {
		return nil
	}
	return l.socket.close()
}

// Run shows the verdict until ctx ends, gives up the address and returns nil.
// Bind comes first.
func (l *Lamp) Run(ctx context.Context) error {
	if l.socket == nil {
		return errors.New("verdict port: run before bind")
	}
	defer l.socket.close()
	follow(ctx, l.cfg.Judge, func(verdict error) { l.show(ctx, verdict) })
	return nil
}

// show opens the port for a good verdict and closes it for a bad one. One that
// cannot be opened stays closed until the next verdict.
func (l *Lamp) show(ctx context.Context, verdict error) {
	switch {
	case verdict == nil && l.ln == nil:
		ln, err := l.socket.listen()
		if err != nil {
			l.log.Warn("verdict port cannot be opened", "address", l.socket.addr, "error", err)
			return
		}
		ctx, l.out = context.WithCancel(ctx)
		l.ln = ln
		l.accepting.Go(func() { acceptAll(ctx, ln, func(conn net.Conn) { conn.Close() }, l.log) })
		l.log.Info("verdict port open", "address", l.socket.addr)
	case verdict != nil && l.ln != nil:
		l.out()
		l.socket.refuse(l.ln)
		l.accepting.Wait()
		l.ln = nil
		l.log.Info("verdict port closed", "address", l.socket.addr, "reason", verdict)
	}
}
