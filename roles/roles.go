// Package roles asks databases who they are: primary or replica, of which cluster, in
// which term, and how far their data goes. It decides nothing; a [role.Fact] is what a
// host said.
//
// It is polite. There is one session for each host and settings, however many relays
// ask: it stays open, is asked one cheap question by each check, is opened anew every
// ten minutes, and ends with the goodbye of its protocol. A login that is refused is
// tried again after a second, then after two, and so on up to a minute.
//
// The clients of the databases are known to this package alone.
package roles

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/password"
	"understudy/internal/role"
)

// Name is how the sessions call themselves where the protocol has a place for it.
const Name = "understudy"

// ErrRefused is wrapped by the error for a host that was asked and did not say its
// role: the login was refused, the user has no rights, there is no place for one more
// session, or TLS could not be agreed on. It says nothing for or against the host.
var ErrRefused = errors.New("refused")

// The protocols.
const (
	Postgres = "postgres"
	MySQL    = "mysql" // also MariaDB
	Redis    = "redis" // also Valkey
)

// Protocols returns the protocols.
func Protocols() []string { return []string{Postgres, MySQL, Redis} }

// Config says how hosts are asked.
type Config struct {
	// Protocol is one of [Protocols].
	Protocol string

	// Port is asked instead of the port of the host, where clients are connected to
	// something else that has no role, such as a pool of connections. Zero asks the
	// host itself.
	Port uint16

	// User is the name to log in with. Required for everything but Redis, where empty
	// is the default user.
	User string

	// PasswordFile is read at each login; a line break at its end does not count.
	// Empty sends no password.
	PasswordFile string

	// Database is the database to connect to. Empty is "postgres" for PostgreSQL and
	// none for MySQL. Redis has none.
	Database string

	// TLS configures the encryption.
	TLS TLSConfig

	// Interval is the time between questions. A session that is not asked for three
	// intervals, a minute at least, ends. Required.
	Interval time.Duration

	// Dial connects to a host, as clients are connected to it, or to another port of
	// the host if port is not zero. Required.
	Dial func(ctx context.Context, host string, port uint16) (net.Conn, error)
}

// Pool holds the sessions of a process. It is safe for concurrent use.
type Pool struct {
	log hclog.Logger

	mu       sync.Mutex // guards everything below
	closed   bool
	sessions map[sessionKey]*session
	ending   sync.WaitGroup // sessions that nobody asks any more
}

// sessionKey identifies a session.
type sessionKey struct {
	settings, host string
	addr           netip.Addr
}

// NewPool returns a Pool. It starts nothing.
func NewPool(log hclog.Logger) *Pool {
	return &Pool{log: log.Named("roles"), sessions: map[sessionKey]*session{}}
}

// Close ends all sessions, with the goodbye of their protocol, and returns when they have
// ended. Questions in progress have to be canceled by their own contexts.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	for key, s := range p.sessions {
		delete(p.sessions, key)
		s.idle.Stop()
		p.ending.Go(s.end)
	}
	p.mu.Unlock()
	p.ending.Wait()
}

// Asker asks hosts. It is safe for concurrent use.
type Asker struct {
	pool     *Pool
	settings string
	cfg      Config
	protocol protocol
}

// protocol opens sessions.
type protocol interface {
	// open logs in. It closes conn if it fails. Where the error wraps neither
	// ErrRefused nor a startingError, the host has failed.
	open(ctx context.Context, to target) (client, error)
}

// target is where a protocol logs in.
type target struct {
	conn               net.Conn                                    // to the host; nothing was sent yet
	dial               func(ctx context.Context) (net.Conn, error) // opens one more
	tls                tlsChoice
	user, password, db string
}

// client is a session.
type client interface {
	// ask asks for the role. After an error that wraps neither ErrRefused nor a
	// startingError the session cannot be used any more.
	ask(ctx context.Context) (role.Fact, error)

	// close says goodbye and closes the connection.
	close(ctx context.Context)
}

// NewAsker returns an Asker, or an error naming every bad field of cfg. Askers of a
// pool with equal settings, a text that describes cfg, share their sessions.
func (p *Pool) NewAsker(settings string, cfg Config) (*Asker, error) {
	var errs []error
	if cfg.User == "" && cfg.Protocol != Redis {
		errs = append(errs, errors.New("user: it is empty"))
	}
	if cfg.Interval <= 0 {
		errs = append(errs, fmt.Errorf("interval: %v is not positive", cfg.Interval))
	}
	if cfg.Dial == nil {
		errs = append(errs, errors.New("dial: it is nil"))
	}
	if !slices.Contains(TLSModes(), cfg.TLS.Mode) {
		errs = append(errs, fmt.Errorf("tls: %q is none of %s", cfg.TLS.Mode, strings.Join(TLSModes(), ", ")))
	}
	a := &Asker{pool: p, settings: settings, cfg: cfg}
	var err error
	switch cfg.Protocol {
	case Postgres:
		a.protocol, err = newPostgres()
	case MySQL:
		a.protocol = mysqlProtocol{}
	case Redis:
		a.protocol = redisProtocol{}
		if cfg.TLS.Mode == TLSPrefer {
			err = errors.New("tls: redis cannot fall back from TLS: want require or off")
		}
	default:
		err = fmt.Errorf("protocol: %q is none of %s", cfg.Protocol, strings.Join(Protocols(), ", "))
	}
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, fmt.Errorf("role: %w", err)
	}
	return a, nil
}

// Ask asks host by the end of ctx. Addr is the address that Dial uses for the name of
// host now; each has a session of its own. The zero Addr is that of a host without a
// name.
//
// Without an error the host has answered, perhaps that it is starting. An error that
// wraps [ErrRefused] means that the role is not known; with another one the host has
// failed.
func (a *Asker) Ask(ctx context.Context, host string, addr netip.Addr) (role.Fact, error) {
	s, err := a.pool.session(sessionKey{a.settings, host, addr}, a)
	if err != nil {
		return role.Fact{}, err
	}
	fact, err := s.ask(ctx)
	if starting, ok := errors.AsType[*startingError](err); ok {
		return role.Fact{Role: role.Starting, Detail: oneLine(starting.Error())}, nil
	}
	if errors.Is(err, ErrRefused) {
		fact = role.Fact{Detail: oneLine(err.Error())}
	}
	return fact, err
}

// session returns the session of key, and lets it stay.
func (p *Pool) session(key sessionKey, a *Asker) (*session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, context.Canceled
	}
	idle := max(3*a.cfg.Interval, time.Minute)
	s := p.sessions[key]
	if s != nil {
		s.used = time.Now()
		return s, nil
	}
	s = newSession(a, key.host, p.log)
	s.used = time.Now()
	s.idle = time.AfterFunc(idle, func() { p.retire(key, s, idle) })
	p.sessions[key] = s
	return s, nil
}

// retire ends s if it was not used for idle.
func (p *Pool) retire(key sessionKey, s *session, idle time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.sessions[key] != s {
		return
	}
	if left := idle - time.Since(s.used); left > 0 {
		s.idle.Reset(left)
		return
	}
	delete(p.sessions, key)
	p.ending.Go(s.end)
}

// open connects to host and logs in.
func (a *Asker) open(ctx context.Context, host, password string) (client, error) {
	dial := func(ctx context.Context) (net.Conn, error) {
		conn, err := a.cfg.Dial(ctx, host, a.cfg.Port)
		if tcp, ok := conn.(*net.TCPConn); ok && err == nil {
			_ = tcp.SetKeepAliveConfig(keepAlive) // a session without it works too
		}
		return conn, err
	}
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	to := target{conn: conn, dial: dial, user: a.cfg.User, password: password, db: a.cfg.Database}
	if to.tls, err = a.cfg.TLS.choose(conn.RemoteAddr(), host); err != nil {
		_ = conn.Close() // nothing was sent
		return nil, err
	}
	return a.protocol.open(ctx, to)
}

// keepAlive finds out within half a minute that the other side of an unused session is
// gone, and keeps firewalls from forgetting it.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}

// password returns the password, as it is now.
func (c Config) password() (string, error) {
	word, err := password.Read(c.PasswordFile)
	if err != nil {
		return "", refused(err)
	}
	return word, nil
}

// startingError is the answer of a host that will answer later.
type startingError struct{ error }

// refused marks err as one that says nothing about the host.
func refused(err error) error { return fmt.Errorf("%w: %w", ErrRefused, err) }

// oneLine returns text as one line.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
