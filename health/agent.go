package health

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
	// agentPatience is how long a client may take to read its line and leave.
	agentPatience = time.Second
	// readyFor is how long a good verdict calls off a drain.
	readyFor = time.Minute
	// maxAgentWords is how much of a reason is told.
	maxAgentWords = 64
)

// AgentConfig says what an Agent tells to whom.
type AgentConfig struct {
	// Listen is the address to listen on, "192.0.2.1:9002" or ":9002".
	// Required.
	Listen string

	// Judge comes to a verdict: nil when it is good, or why not in a few words
	// that strangers may read. It is called every second, see [Ping.Judge], and
	// must return in a few seconds. Required.
	Judge func(ctx context.Context) error

	// Draining reports whether new clients are to stay away whatever the
	// verdict is. It must return at once. Nil never drains.
	Draining func() bool

	// Logger takes the agent's own records. Defaults to none.
	Logger hclog.Logger
}

// Agent tells a verdict in the words of HAProxy's agent-check: to everybody who
// connects one line, from the last verdict, without waiting for anything they
// send:
//
//	up               the verdict is good
//	down #no primary it is not, and why
//	drain            no new clients, please
//
// HAProxy keeps to a drain until an agent calls it off, also when the process
// that asked for it has been replaced by another. So in the first minute in
// which an Agent tells a good verdict, after its start or its own drain, the
// line is "up ready".
type Agent struct {
	cfg  AgentConfig
	log  hclog.Logger
	gate *gate // nil until Bind

	mu      sync.Mutex // guards everything below
	verdict error
	drained bool      // somebody may have been told to drain, and nobody since that it is over
	ready   time.Time // until then a drain is called off
}

// NewAgent returns an Agent, or an error naming every invalid field of cfg. It
// opens nothing.
func NewAgent(cfg AgentConfig) (*Agent, error) {
	if err := checkVerdictPort(cfg.Listen, cfg.Judge); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Agent{cfg: cfg, log: cfg.Logger.Named("agent"), drained: true}, nil
}

// checkVerdictPort reports every mistake in what an Agent and a Lamp have in
// common.
func checkVerdictPort(listen string, judge func(context.Context) error) error {
	var errs []error
	if _, _, err := net.SplitHostPort(listen); err != nil {
		errs = append(errs, fmt.Errorf("listen: %q is not host:port", listen))
	}
	if judge == nil {
		errs = append(errs, errors.New("judge: a verdict is required"))
	}
	return errors.Join(errs...)
}

// Bind opens the listening socket, or returns an error that names the
// address. Clients that connect from then on wait until Run knows a verdict;
// Run releases the socket.
func (a *Agent) Bind() error {
	ln, err := listenTCP(a.cfg.Listen)
	if err != nil {
		return err // already "listen tcp :9002: bind: address already in use"
	}
	a.gate = newGate(ln, maxAgentClients)
	return nil
}

// Addr returns the address that Bind opened, or nil before.
func (a *Agent) Addr() net.Addr {
	if a.gate == nil {
		return nil
	}
	return a.gate.Addr()
}

// Close gives up the address of an Agent that was bound and never ran.
func (a *Agent) Close() error {
	if a.gate == nil {
		return nil
	}
	return a.gate.Close()
}

// Run tells verdicts until ctx ends and returns nil when everybody has gone.
// Bind comes first.
func (a *Agent) Run(ctx context.Context) error {
	if a.gate == nil {
		return errors.New("agent: run before bind")
	}
	known := make(chan struct{})
	knows := sync.OnceFunc(func() { close(known) })
	var following sync.WaitGroup
	following.Go(func() {
		follow(ctx, a.cfg.Judge, func(verdict error) {
			a.mu.Lock()
			a.verdict = verdict
			a.mu.Unlock()
			knows()
		})
	})
	stop := context.AfterFunc(ctx, func() { a.gate.Close() })
	defer stop()
	<-known
	a.log.Info("agent ready", "address", a.gate.Addr())
	acceptAll(ctx, a.gate, func(conn net.Conn) { go a.tell(conn.(*peer)) }, a.log)
	a.gate.Close()
	following.Wait()
	a.gate.clients.Wait()
	return nil
}

// tell answers one client.
func (a *Agent) tell(c *peer) {
	defer a.gate.clients.Done()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(agentPatience))
	if _, err := io.WriteString(c.Conn, a.line()); err != nil {
		return
	}
	_ = c.CloseWrite()
	c.owes(false) // it may be closed to make place for another
	// What the client has sent (agent-send) is read: a close that leaves it
	// unread is a reset, which could overtake the line.
	_, _ = io.CopyN(io.Discard, c.Conn, 64<<10)
}

// line returns what is told now.
func (a *Agent) line() string {
	draining := a.cfg.Draining != nil && a.cfg.Draining()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case draining:
		a.drained = true
		return "drain\n"
	case a.verdict != nil:
		return "down #" + agentWords(a.verdict.Error()) + "\n"
	case a.drained:
		a.drained, a.ready = false, time.Now().Add(readyFor)
	}
	if time.Now().Before(a.ready) {
		return "up ready\n"
	}
	return "up\n"
}

// agentWords returns the beginning of text without anything that could end the
// line or confuse who prints it.
func agentWords(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text)
	return text[:min(len(text), maxAgentWords)]
}
