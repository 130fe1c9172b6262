package sqlprobe

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// goodbye is the time that a session may take to end.
const goodbye = time.Second

// oidBool is the type boolean of PostgreSQL, in pg_type.
const oidBool = 16

// errUnused is the error of what package sql never calls here.
var errUnused = errors.New("not supported: a probe only queries")

// pgSession is a session for package sql, on pgconn: the adapter of pgx would bring its
// pool and every type of PostgreSQL, and here all values are compared as text.
type pgSession struct{ conn *pgconn.PgConn }

// QueryContext runs a statement and returns its rows.
func (s pgSession) QueryContext(ctx context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	r := &pgRows{result: s.conn.ExecParams(ctx, query, nil, nil, nil, nil)}
	r.first = r.result.NextRow()
	if !r.first {
		if _, err := r.result.Close(); err != nil {
			if pg, ok := errors.AsType[*pgconn.PgError](err); ok && strings.HasPrefix(pg.Code, "57P") {
				return nil, driver.ErrBadConn // the server ended the session before it read the statement
			}
			return nil, err
		}
	}
	return r, nil
}

// IsValid reports whether the session can be used for another statement.
func (s pgSession) IsValid() bool { return !s.conn.IsClosed() }

// Close says goodbye.
func (s pgSession) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	return s.conn.Close(ctx)
}

func (pgSession) Prepare(string) (driver.Stmt, error) { return nil, errUnused }
func (pgSession) Begin() (driver.Tx, error)           { return nil, errUnused }

// pgRows are the rows of a result.
type pgRows struct {
	result *pgconn.ResultReader
	first  bool // the first row was read already
}

func (r *pgRows) Columns() []string {
	fields := r.result.FieldDescriptions()
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.Name
	}
	return names
}

// Next stores the next row.
func (r *pgRows) Next(row []driver.Value) error {
	if !r.first && !r.result.NextRow() {
		if _, err := r.result.Close(); err != nil {
			return err
		}
		return io.EOF
	}
	r.first = false
	fields := r.result.FieldDescriptions()
	for i, value := range r.result.Values() {
		switch {
		case value == nil:
			row[i] = nil
		case fields[i].DataTypeOID == oidBool:
			row[i] = string(value) == "t"
		default:
			row[i] = string(value)
		}
	}
	return nil
}

// Close drops the rest.
func (r *pgRows) Close() error {
	_, err := r.result.Close()
	return err
}
