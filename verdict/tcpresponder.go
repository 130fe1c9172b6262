package verdict

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/accept"
	"understudy/internal/bind"
)

// TCPResponderConfig configures a TCPResponder.
type TCPResponderConfig struct {
	// Listen is the address to bind, "192.0.2.1:9003" or ":9003". Required.
	Listen string

	// Evaluate returns nil when the verdict is good, or why not. It is called
	// every second, see [Ping.Evaluate], and must return in a few seconds.
	// Required.
	Evaluate func(ctx context.Context) error

	// Again, if not nil, is closed to have the verdict evaluated once more
	// immediately.
	Again <-chan struct{}

	// Logger gets a record of each change. Nil discards them.
	Logger hclog.Logger
}

// TCPResponder is a TCP port that listens only while a verdict is good, for
// balancers that only connect. A connection is accepted and closed at once. While
// the verdict is bad or unknown, connections are refused.
//
// On Linux the address stays bound while it is closed. On other systems another
// program could bind it at the moment when the verdict becomes bad; the port then
// stays closed, and is tried every second. See the package bind.
type TCPResponder struct {
	cfg    TCPResponderConfig
	log    hclog.Logger
	socket *bind.Socket // nil until Bind

	ln       *accept.Listener // nil while the port is closed
	accepted chan struct{}    // closed when ln accepts nothing any more
}

// NewTCPResponder returns a TCPResponder, or an error naming every invalid field
// of cfg. It opens nothing.
func NewTCPResponder(cfg TCPResponderConfig) (*TCPResponder, error) {
	if err := checkVerdictPort(cfg.Listen, cfg.Evaluate); err != nil {
		return nil, fmt.Errorf("verdict port: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &TCPResponder{cfg: cfg, log: cfg.Logger.Named("tcp")}, nil
}

// Bind binds the address without listening, or returns an error that names
// it. Run releases it.
func (r *TCPResponder) Bind() error {
	addr, err := net.ResolveTCPAddr("tcp", r.cfg.Listen)
	if err == nil {
		r.socket, err = bind.TCP(addr.AddrPort(), false)
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", r.cfg.Listen, err)
	}
	return nil
}

// Addr returns the address that Bind bound, or nil before.
func (r *TCPResponder) Addr() net.Addr {
	if r.socket == nil {
		return nil
	}
	return r.socket.Addr
}

// Close releases the address of a TCPResponder that was bound and never ran. After
// Run it does nothing.
func (r *TCPResponder) Close() error {
	if r.socket == nil {
		return nil
	}
	r.socket.Close()
	return nil
}

// Run reports the verdict until ctx ends, releases the address and returns nil.
// Call Bind first.
func (r *TCPResponder) Run(ctx context.Context) error {
	if r.socket == nil {
		return errors.New("verdict port: run before bind")
	}
	defer r.socket.Close()
	follow(ctx, r.cfg.Evaluate, r.cfg.Again, r.apply)
	return nil
}

// apply opens the port for a good verdict and closes it for a bad one. A port that
// cannot be opened stays closed until the next verdict. A port whose listener has
// failed is opened again.
func (r *TCPResponder) apply(verdict error) {
	if r.ln != nil {
		select {
		case <-r.accepted:
			r.log.Warn("verdict port ended, reopening it", "address", r.socket.Addr)
			r.shut()
		default:
		}
	}
	switch {
	case verdict == nil && r.ln == nil:
		ln, err := r.listen()
		if err != nil {
			r.log.Warn("verdict port cannot be opened", "address", r.socket.Addr, "error", err)
			return
		}
		r.ln, r.accepted = accept.Retry(ln, r.log), make(chan struct{})
		go func(ln net.Listener, done chan<- struct{}) {
			defer close(done)
			_ = acceptAll(ln, func(conn net.Conn) { conn.Close() }) // the next verdict opens it again
		}(r.ln, r.accepted)
		r.log.Info("verdict port open", "address", r.socket.Addr)
	case verdict != nil && r.ln != nil:
		r.shut()
		r.log.Info("verdict port closed", "address", r.socket.Addr, "reason", verdict)
	}
}

func (r *TCPResponder) listen() (net.Listener, error) {
	if err := r.socket.Listen(); err != nil {
		return nil, err
	}
	ln, err := r.socket.Listener()
	if err != nil {
		r.refuse()
	}
	return ln, err
}

// shut closes the port.
func (r *TCPResponder) shut() {
	_ = r.ln.Close()
	<-r.accepted
	r.ln = nil
	r.refuse()
}

func (r *TCPResponder) refuse() {
	if err := r.socket.Refuse(); err != nil {
		r.log.Warn("verdict port was lost", "address", r.socket.Addr, "error", err)
	}
}
