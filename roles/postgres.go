package roles

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"understudy/internal/role"
)

// postgresProtocol is PostgreSQL, version 12 or later.
type postgresProtocol struct {
	base *pgconn.Config // from ParseConfig, as the library wants it
}

// statementTimeout ends a question that the server does not finish, on its side.
const statementTimeout = 5 * time.Second

func newPostgres() (protocol, error) {
	// The library also reads variables like PGSERVICE, and a bad one is an error. All
	// that it takes from them is replaced in open.
	base, err := pgconn.ParseConfig("host=host port=1 user=user password=password dbname=postgres sslmode=disable passfile=/dev/null")
	if err != nil {
		return nil, fmt.Errorf("a variable of libpq in the environment: %w", err)
	}
	return postgresProtocol{base}, nil
}

func (p postgresProtocol) open(ctx context.Context, to target) (client, error) {
	cfg := p.base.Copy()
	cfg.Host, cfg.Port, cfg.User, cfg.Password, cfg.Database = "host", 1, to.user, to.password, to.db
	if cfg.Database == "" {
		cfg.Database = "postgres"
	}
	cfg.RuntimeParams = map[string]string{
		"application_name":  Name,
		"statement_timeout": strconv.FormatInt(statementTimeout.Milliseconds(), 10),
	}
	cfg.ConnectTimeout = 0 // that of ctx counts
	cfg.TLSConfig, cfg.Fallbacks = to.tls.config, nil
	if to.tls.prefer {
		cfg.Fallbacks = []*pgconn.FallbackConfig{{Host: cfg.Host, Port: cfg.Port}}
	}
	cfg.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	first := to.conn
	cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		if conn := first; conn != nil {
			first = nil
			return conn, nil
		}
		return to.dial(ctx)
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if first != nil {
		_ = first.Close() // it was not used
	}
	if err != nil {
		return nil, postgresLoginError(err)
	}
	return &postgres{conn}, nil
}

// postgresLoginError says what a login that failed means.
func postgresLoginError(err error) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		text := fmt.Errorf("%s (%s)", pg.Message, pg.Code)
		switch pg.Code {
		case cannotConnectNow:
			return &startingError{text}
		case adminShutdown, crashShutdown:
			return text
		}
		return refused(text)
	}
	// The library has no error value for a server without TLS.
	text := err.Error()
	if at := strings.LastIndex(text, ": host:1 (host): "); at >= 0 {
		err = plainError{text[at+len(": host:1 (host): "):], err}
	}
	if tlsError(err) || strings.HasSuffix(text, "server refused TLS connection") {
		return refused(err)
	}
	return err
}

// plainError is an error without what the library puts in front of its text: the user,
// and the stand-in for the name of the host.
type plainError struct {
	text  string
	cause error
}

func (e plainError) Error() string { return e.text }
func (e plainError) Unwrap() error { return e.cause }

// Codes of errors, from PostgreSQL's appendix A.
const (
	insufficientPrivilege = "42501"
	undefinedFunction     = "42883"
	wrongState            = "55000" // object_not_in_prerequisite_state
	adminShutdown         = "57P01"
	crashShutdown         = "57P02"
	cannotConnectNow      = "57P03"
)

// postgresQuestion needs no rights but the login. Its columns:
//
//   - whether the server is in recovery;
//   - where default_transaction_read_only is set, empty if it is off;
//   - the timeline. On a primary it is that of the WAL which is written now: the control
//     file has the new one only after the first checkpoint;
//   - how far its WAL goes, in bytes, with what was received and not replayed yet;
//   - the identifier of the cluster;
//   - of a standby, whether its WAL receiver runs, whether replay is paused, and for how
//     long there is something to replay.
const postgresQuestion = `select pg_is_in_recovery(),
case when current_setting('default_transaction_read_only')::bool
	then (select source from pg_settings where name = 'default_transaction_read_only') else '' end,
case when pg_is_in_recovery()
	then (select greatest(c.timeline_id, r.min_recovery_end_timeline) from pg_control_checkpoint() c, pg_control_recovery() r)
	else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int end,
case when pg_is_in_recovery()
	then greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
	else pg_current_wal_lsn() end - '0/0',
(select system_identifier from pg_control_system()),
exists (select from pg_stat_wal_receiver),
case when pg_is_in_recovery() then pg_is_wal_replay_paused() end,
case when pg_is_in_recovery() and pg_last_wal_replay_lsn() < pg_last_wal_receive_lsn()
	then extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp()) else 0 end`

type postgres struct{ conn *pgconn.PgConn }

func (p *postgres) close(ctx context.Context) { _ = p.conn.Close(ctx) } // it ends anyhow

func (p *postgres) ask(ctx context.Context) (role.Fact, error) {
	row, err := p.row(ctx)
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == wrongState {
		row, err = p.row(ctx) // it was promoted in the middle of the answer
	}
	if err != nil {
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
			err = fmt.Errorf("%s (%s)", pg.Message, pg.Code)
			if pg.Code == insufficientPrivilege || pg.Code == undefinedFunction {
				err = refused(err)
			}
		}
		return role.Fact{}, err
	}
	return postgresFact(row), nil
}

// row asks the question and returns the row that answers it.
func (p *postgres) row(ctx context.Context) ([][]byte, error) {
	results, err := p.conn.Exec(ctx, postgresQuestion).ReadAll()
	switch {
	case err != nil:
		return nil, err
	case len(results) != 1 || results[0].Err != nil || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 8:
		return nil, errors.New("the answer is not that of a PostgreSQL server")
	}
	return results[0].Rows[0], nil
}

// postgresFact reads the answer to postgresQuestion.
func postgresFact(row [][]byte) role.Fact {
	recovery, readOnly := string(row[0]) == "t", string(row[1])
	term, err1 := strconv.ParseUint(string(row[2]), 10, 32)
	position, err2 := strconv.ParseUint(string(row[3]), 10, 64)
	delay, err3 := strconv.ParseFloat(string(row[7]), 64)
	receives, paused := string(row[5]) == "t", string(row[6]) == "t"
	f := role.Fact{Role: role.Primary, Identity: string(row[4])}
	if err1 == nil {
		f.Term = term
	}
	if err2 == nil {
		f.Position, f.Bytes = position, true
	}
	switch {
	case !recovery && (readOnly == "" || readOnly == "user" || readOnly == "database user"):
		return f // where only our own user is read-only, clients are not
	case !recovery:
		f.Role, f.Detached, f.Detail = role.Replica, true, "a primary that is read-only (default_transaction_read_only)"
		return f
	}
	f.Role, f.Detail = role.Replica, "in recovery"
	if receives && err3 == nil {
		f.Lag.Time, f.Lag.TimeKnown = time.Duration(max(delay, 0)*float64(time.Second)), true
	}
	if !receives {
		f.Detail += ", no connection to a primary"
	}
	if paused {
		f.Detail += ", replay is paused"
	}
	return f
}
