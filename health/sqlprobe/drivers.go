package sqlprobe

import (
	"context"
	"crypto/tls"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	mssql "github.com/microsoft/go-mssqldb"
	"github.com/microsoft/go-mssqldb/msdsn"

	"understudy/internal/address"
)

// applicationName is what administrators of the server see of a session.
const applicationName = "understudy"

// maxMessage limits the bytes of a message of the server, and so of a row.
const maxMessage = 1 << 20

// login is what a session is opened with.
type login struct {
	cfg      Config
	host     address.Host
	password string
	dial     func(ctx context.Context) (net.Conn, error) // to the server
}

// openFunc opens a session by the end of ctx.
type openFunc func(ctx context.Context, l login) (driver.Conn, error)

var drivers = map[string]openFunc{"postgres": openPostgres, "mysql": openMySQL, "sqlserver": openSQLServer}

// answered reports whether err is an error that the server reported.
func answered(err error) bool {
	if _, ok := errors.AsType[*pgconn.PgError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return true
	}
	_, ok := errors.AsType[mssql.Error](err)
	return ok
}

// tls returns the setting with the name of the server.
func (l login) tls() *tls.Config {
	if l.cfg.TLS == nil {
		return &tls.Config{InsecureSkipVerify: true} //nolint:gosec // G402: the alternative is no TLS
	}
	cfg := l.cfg.TLS.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName = l.host.Name
	}
	return cfg
}

func openPostgres(ctx context.Context, l login) (driver.Conn, error) {
	// ParseConfig takes from the environment and from files what is not set here.
	cfg, err := pgconn.ParseConfig("host=server port=1 user=user dbname=database password=password sslmode=disable passfile=/dev/null target_session_attrs=any")
	if err != nil {
		return nil, err
	}
	cfg.User, cfg.Password, cfg.Database = l.cfg.User, l.password, l.cfg.Database
	if cfg.Database == "" {
		cfg.Database = l.cfg.User
	}
	cfg.RuntimeParams = map[string]string{"application_name": applicationName}
	cfg.MaxProtocolMessageBodyLen = maxMessage
	cfg.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { return l.dial(ctx) }
	if l.host.Path == "" {
		cfg.TLSConfig = l.tls()
		if l.cfg.TLS == nil {
			cfg.Fallbacks = []*pgconn.FallbackConfig{{Host: cfg.Host, Port: cfg.Port}}
		}
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return pgSession{conn}, nil
}

func openMySQL(ctx context.Context, l login) (driver.Conn, error) {
	cfg := mysql.NewConfig()
	cfg.User, cfg.Passwd, cfg.DBName = l.cfg.User, l.password, l.cfg.Database
	cfg.Net, cfg.Addr = "tcp", "server"
	cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { return l.dial(ctx) }
	cfg.MaxAllowedPacket = maxMessage
	cfg.ConnectionAttributes = "program_name:" + applicationName
	cfg.Logger = &mysql.NopLogger{}
	if l.host.Path == "" {
		cfg.TLS = l.tls()
		cfg.AllowFallbackToPlaintext = l.cfg.TLS == nil
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	conn, err := connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	limitMySQL(ctx, conn, l.cfg.Timeout+time.Second)
	return conn, nil
}

// limitMySQL limits the time of statements of a session: neither MySQL nor MariaDB ends
// one when its client has left, so that one that waits for a lock would remain for each
// check. Each has a comment of its own that the other one ignores. A server that has no
// such limit is used all the same.
func limitMySQL(ctx context.Context, conn driver.Conn, limit time.Duration) {
	if x, ok := conn.(driver.ExecerContext); ok {
		_, _ = x.ExecContext(ctx, fmt.Sprintf("set @understudy = 1 /*M!100101 , max_statement_time = %.3f */ /*!50708 , max_execution_time = %d */", limit.Seconds(), limit.Milliseconds()), nil)
	}
}

func openSQLServer(ctx context.Context, l login) (driver.Conn, error) {
	to := url.URL{
		Scheme: "sqlserver", User: url.User(l.cfg.User), Host: net.JoinHostPort(l.host.Name, strconv.Itoa(int(l.host.Port))),
		RawQuery: url.Values{
			"database": {l.cfg.Database}, "app name": {applicationName}, "disableretry": {"true"}, "dial timeout": {"0"},
			"encrypt": {strconv.FormatBool(l.cfg.TLS != nil)}, "TrustServerCertificate": {"true"}, // of the TLS configuration below
		}.Encode(),
	}
	cfg, err := msdsn.Parse(to.String())
	if err != nil {
		return nil, err
	}
	cfg.Password = l.password
	if l.cfg.TLS != nil {
		cfg.TLSConfig = l.tls()
	}
	connector := mssql.NewConnectorConfig(cfg)
	connector.Dialer = hostDialer{l}
	return connector.Connect(ctx)
}

// hostDialer connects to one server, whatever the driver makes of its name.
type hostDialer struct{ l login }

func (d hostDialer) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	return d.l.dial(ctx)
}

// HostName keeps the driver from looking up the name.
func (d hostDialer) HostName() string { return d.l.host.Name }
