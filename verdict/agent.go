package verdict

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// maxAgentClients limits the connections to an Agent that are open at one
	// time. Each lasts a moment.
	maxAgentClients = 64
	// agentTimeout is the longest time that a client may take to read its line and close.
	agentTimeout = time.Second
	// readyFor is the time for which "ready" is sent with a good verdict.
	readyFor = time.Minute
	// maxAgentReason limits the bytes of a reason in a line.
	maxAgentReason = 64
)

// AgentConfig configures an Agent.
type AgentConfig struct {
	// Listen is the address to listen on, "192.0.2.1:9002" or ":9002".
	// Required.
	Listen string

	// Evaluate returns nil when the verdict is good, or why not, in a few words
	// that may be public. It is called every second, see [Ping.Evaluate], and
	// must return in a few seconds. Required.
	Evaluate func(ctx context.Context) error

	// Draining reports whether this program is ending, so that no new clients
	// should come whatever the verdict is. It must return at once. Nil means
	// never.
	Draining func() bool

	// SendDrain reports whether the agent sends "drain" while the program ends,
	// and "ready" after the next start. It must return at once. Nil means never.
	SendDrain func() bool

	// Logger takes the agent's own records. Nil discards them.
	Logger hclog.Logger
}

// Agent reports a verdict by the protocol of HAProxy's agent-check: it sends one
// line with the last verdict to each client that connects, without waiting for a
// request:
//
//	up               the verdict is good
//	down #no primary it is not, and why
//	down #ending     the program is ending
//
// These lines change no administrative state that an operator has set in HAProxy.
// With [AgentConfig.SendDrain] a program that is ending sends "drain" instead.
// HAProxy keeps that state until an agent sends "ready", even when another process
// has replaced the one that sent "drain". So for the first minute of a good
// verdict, after its start or its own drain, such an Agent sends "up ready". That
// also cancels a MAINT or DRAIN that an operator has set.
type Agent struct {
	cfg     AgentConfig
	log     hclog.Logger
	limiter *limiter // nil until Bind

	mu        sync.Mutex // guards everything below
	verdict   error
	drainSent bool      // a drain may have been sent, by this process or the one before, and no ready since
	ready     time.Time // "ready" is sent until then
}

// NewAgent returns an Agent, or an error naming every invalid field of cfg. It
// opens nothing.
func NewAgent(cfg AgentConfig) (*Agent, error) {
	if err := checkVerdictPort(cfg.Listen, cfg.Evaluate); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Agent{cfg: cfg, log: cfg.Logger.Named("agent"), drainSent: true}, nil
}

// checkListen returns an error for an address that is not one to listen on.
func checkListen(listen string) error {
	if _, _, err := net.SplitHostPort(listen); err != nil {
		return fmt.Errorf("listen: %q is not host:port", listen)
	}
	return nil
}

// checkVerdictPort checks the settings that an Agent and a TCPResponder have in
// common, and returns every error.
func checkVerdictPort(listen string, evaluate func(context.Context) error) error {
	var errs []error
	errs = append(errs, checkListen(listen))
	if evaluate == nil {
		errs = append(errs, errors.New("evaluate: a function is required"))
	}
	return errors.Join(errs...)
}

// Bind opens the listening socket, or returns an error that names the
// address. Clients that connect from then on wait until Run has the first
// verdict. Run releases the socket.
func (a *Agent) Bind() error {
	ln, err := listenTCP(a.cfg.Listen)
	if err != nil {
		return err // already "listen tcp :9002: bind: address already in use"
	}
	a.limiter = newLimiter(ln, maxAgentClients, a.log)
	return nil
}

// Addr returns the address that Bind opened, or nil before.
func (a *Agent) Addr() net.Addr {
	if a.limiter == nil {
		return nil
	}
	return a.limiter.Addr()
}

// Close releases the address of an Agent that was bound and never ran.
func (a *Agent) Close() error {
	if a.limiter == nil {
		return nil
	}
	return a.limiter.Close()
}

// Run reports verdicts until ctx ends, and returns nil when all connections are
// closed. Call Bind first. Any other error is returned: the socket can accept
// nothing any more, and Bind and Run may be called again.
func (a *Agent) Run(ctx context.Context) error {
	if a.limiter == nil {
		return errors.New("agent: run before bind")
	}
	first := make(chan struct{})
	evaluated := sync.OnceFunc(func() { close(first) })
	var following sync.WaitGroup
	ctx, end := context.WithCancel(ctx)
	defer end()
	following.Go(func() {
		follow(ctx, a.cfg.Evaluate, nil, func(verdict error) {
			a.mu.Lock()
			a.verdict = verdict
			a.mu.Unlock()
			evaluated()
		})
	})
	stop := context.AfterFunc(ctx, func() { a.limiter.Close() })
	defer stop()
	<-first
	a.log.Info("agent ready", "address", a.limiter.Addr())
	err := acceptAll(a.limiter, func(conn net.Conn) { go a.answer(conn.(*peer)) })
	if ctx.Err() != nil {
		err = nil
	}
	end()
	a.limiter.Close()
	following.Wait()
	a.limiter.clients.Wait()
	if err != nil {
		return fmt.Errorf("agent on %s: %w", a.limiter.Addr(), err)
	}
	return nil
}

// answer answers one client.
func (a *Agent) answer(c *peer) {
	defer a.limiter.clients.Done()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(agentTimeout))
	if _, err := io.WriteString(c.Conn, a.line()); err != nil {
		return
	}
	_ = c.CloseWrite()
	c.setReading(false) // it may be closed for another connection
	// Read what the client has sent (agent-send): a close with unread data
	// sends a reset, which could overtake the line.
	_, _ = io.CopyN(io.Discard, c.Conn, 64<<10)
}

// line returns the line to send now.
func (a *Agent) line() string {
	draining := a.cfg.Draining != nil && a.cfg.Draining()
	drains := a.cfg.SendDrain != nil && a.cfg.SendDrain()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case draining && drains:
		a.drainSent = true
		return "drain\n"
	case draining:
		return "down #ending\n"
	case a.verdict != nil:
		return "down #" + agentReason(a.verdict.Error()) + "\n"
	case !drains:
		return "up\n"
	case a.drainSent:
		a.drainSent, a.ready = false, time.Now().Add(readyFor)
	}
	if time.Now().Before(a.ready) {
		return "up ready\n"
	}
	return "up\n"
}

// agentReason returns the beginning of text, with every character that is not
// printable ASCII replaced: such a character could end the line.
func agentReason(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text)
	return text[:min(len(text), maxAgentReason)]
}
