// Package sqlprobe checks a database by a query, over one session that stays.
//
// It is apart from package health because of the database clients that it imports.
package sqlprobe

import (
	"context"
	"crypto/tls"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"understudy/health"
	"understudy/internal/address"
	"understudy/internal/password"
)

const (
	// maxRows limits the rows of a result that are read.
	maxRows = 10_000

	// sessionLife is the time after which a session is replaced by a new one, so that
	// a login that has become impossible is noticed.
	sessionLife = 10 * time.Minute
)

// Config configures a [Probe].
type Config struct {
	// Driver is the protocol of the server: "postgres", "mysql" (also MariaDB) or
	// "sqlserver".
	Driver string

	// Host is the server: name:port or, except for SQL Server, unix:/path.
	Host string

	// User and Database are the account and the database. Without a Database the
	// server chooses one.
	User, Database string

	// PasswordFile holds the password of User, without surrounding white space. It is
	// read at each login. Empty logs in without a password.
	PasswordFile string

	// TLS requires TLS. Nil uses it if the server offers it, with any certificate,
	// and not over a unix socket.
	TLS *tls.Config

	// Query is the statement to run. Required.
	Query string

	// Exists lists the values of which one row must have all. Without it the query
	// has to succeed.
	Exists []Value

	// Timeout is the longest time that one check may take; the caller enforces it.
	// MySQL and MariaDB are told to end a statement that takes a second longer.
	// Required.
	Timeout time.Duration

	// Resolve turns names into addresses. Nil queries the system's name servers.
	Resolve health.ResolveFunc
}

// Probe is the check of a [Config], and the session that it uses.
type Probe struct {
	cfg       Config
	connector *connector

	mu     sync.Mutex // guards what follows
	db     *sql.DB    // nil before the first check
	closed bool
}

// New returns a Probe, or an error that names every bad field. It opens nothing; the
// caller closes it.
func New(cfg Config) (*Probe, error) {
	var errs []error
	open := drivers[cfg.Driver]
	if open == nil {
		errs = append(errs, fmt.Errorf("driver: %q is neither postgres, mysql nor sqlserver", cfg.Driver))
	}
	host, err := address.ParseHost(cfg.Host)
	switch {
	case err != nil:
		errs = append(errs, fmt.Errorf("host: %q %w", cfg.Host, err))
	case host.Path != "" && cfg.Driver == "sqlserver":
		errs = append(errs, errors.New("host: SQL Server has no unix socket"))
	}
	if cfg.User == "" {
		errs = append(errs, errors.New("user: it is empty"))
	}
	if strings.TrimSpace(cfg.Query) == "" {
		errs = append(errs, errors.New("query: it is empty"))
	}
	if cfg.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("timeout: %v is not positive", cfg.Timeout))
	}
	dialer, err := health.NewDialer(cfg.Resolve, netip.Addr{}, 0)
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("sql probe: %w", err)
	}
	return &Probe{cfg: cfg, connector: &connector{cfg: cfg, host: host, dialer: dialer, open: open}}, nil
}

// pool returns the pool of one session, which has a goroutine from the first check on.
func (p *Probe) pool() *sql.DB {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.db == nil {
		p.db = sql.OpenDB(p.connector)
		p.db.SetMaxOpenConns(1)
		p.db.SetMaxIdleConns(1)
		p.db.SetConnMaxLifetime(sessionLife)
		if p.closed {
			_ = p.db.Close() // its checks say so
		}
	}
	return p.db
}

// Close ends the session, at the end of a check if one is in progress. Later checks fail.
func (p *Probe) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.db == nil {
		return nil
	}
	return p.db.Close()
}

// Check runs the query once.
func (p *Probe) Check(ctx context.Context) health.Result {
	began := time.Now()
	logins := p.connector.logins.Load()
	phase, err := p.run(ctx)
	if phase == health.SQL && p.connector.logins.Load() == logins && !answered(err) && ctx.Err() == nil {
		// The session was opened by an earlier check and is lost: the server may have
		// been started anew since.
		phase, err = p.run(ctx)
	}
	return health.NewResult(ctx, began, phase, err)
}

// run runs the query once, and opens a session if there is none.
func (p *Probe) run(ctx context.Context) (health.Phase, error) {
	rows, err := p.pool().QueryContext(ctx, p.cfg.Query)
	if err == nil {
		var reason error
		reason, err = p.match(rows)
		err = errors.Join(err, rows.Close())
		if err == nil {
			return health.Criteria, reason
		}
	}
	if failed, ok := errors.AsType[*loginError](err); ok {
		return failed.phase, failed
	}
	switch {
	case answered(err):
		return health.SQL, fmt.Errorf("query failed: %w", err)
	case ctx.Err() != nil:
		return health.SQL, fmt.Errorf("query: no answer in time: %w", err)
	}
	return health.SQL, fmt.Errorf("query: the session was lost: %w", err)
}

// match returns why no row has the values, and an error if the rows could not be read.
func (p *Probe) match(rows *sql.Rows) (reason, err error) {
	columns, err := rows.ColumnTypes()
	if err != nil {
		return nil, err
	}
	if len(p.cfg.Exists) == 0 {
		for rows.Next() && rows.Err() == nil { //nolint:revive // an error may come behind a row
		}
		return nil, rows.Err()
	}
	at, err := positions(columns, p.cfg.Exists)
	if err != nil {
		return err, nil
	}
	row, into := make([]any, len(columns)), make([]any, len(columns))
	for i := range row {
		into[i] = &row[i]
	}
	n := 0
	for ; n < maxRows && rows.Next(); n++ {
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		if hasAll(row, columns, at, p.cfg.Exists) {
			return nil, nil
		}
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	wanted := make([]string, len(p.cfg.Exists))
	for i, v := range p.cfg.Exists {
		wanted[i] = v.String()
	}
	if n == 0 {
		return fmt.Errorf("no row has %s: the query returned none", strings.Join(wanted, " and ")), nil
	}
	return fmt.Errorf("no row of %d has %s", n, strings.Join(wanted, " and ")), nil
}

// loginError is why no session could be opened.
type loginError struct {
	phase health.Phase
	text  string
	err   error
}

func (e *loginError) Error() string {
	if e.text == "" {
		return e.err.Error()
	}
	return e.text + ": " + e.err.Error()
}

func (e *loginError) Unwrap() error { return e.err }

// connector opens sessions for package sql.
type connector struct {
	cfg    Config
	host   address.Host
	dialer *health.Dialer
	open   openFunc
	logins atomic.Int64
}

// Connect opens a session by the end of ctx.
func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	c.logins.Add(1)
	text, err := password.Read(c.cfg.PasswordFile)
	if err != nil {
		return nil, &loginError{health.Login, "", err}
	}
	// The first connect is made here: the drivers hide its error in texts of theirs.
	first, err := c.dial(ctx)
	if err != nil {
		return nil, &loginError{health.Connect, "", err}
	}
	at := &attempt{connector: c, ctx: ctx, first: first}
	defer at.end()
	conn, err := c.open(ctx, login{cfg: c.cfg, host: c.host, password: strings.TrimSpace(text), dial: at.dial})
	if err != nil {
		return nil, c.failed(ctx, err)
	}
	return conn, nil
}

// failed returns the error of a login that failed with err.
func (c *connector) failed(ctx context.Context, err error) error {
	who := fmt.Sprintf("login as %q at %s", c.cfg.User, c.host)
	switch {
	case answered(err):
		return &loginError{health.Login, who + " was refused", err}
	case ctx.Err() != nil:
		return &loginError{health.Login, who + " did not end in time", err}
	}
	return &loginError{health.Login, who + " failed", err}
}

// attempt is one login. Not every driver ends it with its context, so the connections
// are closed then.
type attempt struct {
	*connector
	ctx context.Context //nolint:containedctx // of the login

	mu    sync.Mutex // guards what follows
	first net.Conn   // nil when it is used
	stops []func() bool
	ended bool // the login has succeeded or failed
}

// dial returns a connection to the server. After the login it is for a driver that
// cancels a statement.
func (a *attempt) dial(ctx context.Context) (net.Conn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	conn := a.first
	a.first = nil
	if conn == nil {
		var err error
		if conn, err = a.connector.dial(ctx); err != nil || a.ended {
			return conn, err
		}
	}
	a.stops = append(a.stops, context.AfterFunc(a.ctx, func() { _ = conn.Close() })) //nolint:contextcheck // the attempt ends it, not this call
	return conn, nil
}

// end ends the attempt, and keeps the connection of the session.
func (a *attempt) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	for _, stop := range a.stops {
		stop()
	}
	if a.first != nil {
		_ = a.first.Close() // it was not used
	}
}

// dial connects to the server. Sessions stay, so a dead peer has to be noticed.
func (c *connector) dial(ctx context.Context) (net.Conn, error) {
	conn, err := c.dialer.Dial(ctx, c.cfg.Host, 0)
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(interface{ SetKeepAlive(bool) error }); ok {
		_ = tcp.SetKeepAlive(true) // the check notices it too, at its timeout
	}
	return conn, nil
}

// Driver is required by package sql, which uses it for nothing here.
func (c *connector) Driver() driver.Driver { return noDriver{} }

type noDriver struct{}

func (noDriver) Open(string) (driver.Conn, error) { return nil, driver.ErrSkip }
