package roles

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"understudy/internal/role"
)

// mysqlProtocol is MySQL and MariaDB.
type mysqlProtocol struct{}

// quiet is a logger: errors are returned as well.
type quiet struct{}

func (quiet) Print(...any) {}

func (mysqlProtocol) open(ctx context.Context, to target) (client, error) {
	cfg := mysql.NewConfig()
	cfg.User, cfg.Passwd, cfg.DBName = to.user, to.password, to.db
	cfg.Net, cfg.Addr = "understudy", "host"
	cfg.TLS, cfg.AllowFallbackToPlaintext = to.tls.config, to.tls.prefer
	cfg.ConnectionAttributes = "program_name:" + Name
	cfg.Logger = quiet{}
	cfg.DialFunc = func(context.Context, string, string) (net.Conn, error) { return to.conn, nil }
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		_ = to.conn.Close() // nothing was sent
		return nil, refused(err)
	}
	conn, err := connector.Connect(ctx)
	if err != nil {
		return nil, mysqlLoginError(err)
	}
	m := &mysqlClient{conn: conn}
	if err := m.prepare(ctx); err != nil {
		_ = conn.Close()
		return nil, mysqlLoginError(err)
	}
	return m, nil
}

// Numbers of errors.
const (
	errUnknownCommand = 1047 // also of a node of Galera that takes no part in its cluster
	errServerShutdown = 1053
	errSyntax         = 1064
	errServerOffline  = 3032 // offline_mode
)

// mysqlLoginError says what a login that failed means.
func mysqlLoginError(err error) error {
	if my, ok := errors.AsType[*mysql.MySQLError](err); ok {
		switch my.Number {
		case errServerShutdown, errServerOffline:
			return err
		case errUnknownCommand:
			return &startingError{err}
		}
		return refused(err)
	}
	for _, e := range []error{mysql.ErrNoTLS, mysql.ErrCleartextPassword, mysql.ErrNativePassword, mysql.ErrOldPassword, mysql.ErrUnknownPlugin, mysql.ErrOldProtocol} {
		if errors.Is(err, e) {
			return refused(err)
		}
	}
	if tlsError(err) {
		return refused(err)
	}
	return mysqlError(err)
}

// mysqlError gives an error of the library a text for operators.
func mysqlError(err error) error {
	if errors.Is(err, mysql.ErrInvalidConn) || errors.Is(err, driver.ErrBadConn) {
		return fmt.Errorf("the host ended the session: %w", err)
	}
	return err
}

// mysqlClient is a session with MySQL or MariaDB.
type mysqlClient struct {
	conn driver.Conn

	variables []string // those of mysqlVariables that the server has, in the order of question
	question  string
	status    string // the statement that shows replication; empty where it may not be used
	hidden    string // why not
}

// mysqlVariables are what the role is made of. Which of them a server has depends on
// what it is.
var mysqlVariables = []string{
	"read_only", "super_read_only", "innodb_read_only",
	"gtid_executed", "gtid_current_pos", "group_replication_group_name", "wsrep_on",
}

// mysqlTimeouts limit a question on the side of the server, by MariaDB and MySQL.
var mysqlTimeouts = map[string]string{
	"max_statement_time": "set session max_statement_time = 5",
	"max_execution_time": "set session max_execution_time = 5000",
}

// prepare finds out what the server can be asked.
func (m *mysqlClient) prepare(ctx context.Context) error {
	names := slices.Clone(mysqlVariables)
	for name := range mysqlTimeouts {
		names = append(names, name)
	}
	rows, err := m.query(ctx, "show global variables where variable_name in ('"+strings.Join(names, "','")+"')")
	if err != nil {
		return err
	}
	var has []string
	for _, row := range rows.values {
		has = append(has, strings.ToLower(row[0]))
	}
	var parts []string
	for _, name := range mysqlVariables {
		if slices.Contains(has, name) {
			m.variables = append(m.variables, name)
			parts = append(parts, "@@global."+name)
		}
	}
	if !slices.Contains(has, "read_only") {
		return errors.New("the server has no variable read_only")
	}
	m.question = "select " + strings.Join(parts, ", ")
	m.status = "show replica status"
	if slices.Contains(has, "gtid_current_pos") {
		m.status = "show all slaves status" // MariaDB
	}
	for name, set := range mysqlTimeouts {
		if slices.Contains(has, name) {
			if _, err := m.query(ctx, set); err != nil {
				return err
			}
		}
	}
	return nil
}

// close sends COM_QUIT. The library gives it no timeout, but one packet is sent without
// blocking.
func (m *mysqlClient) close(context.Context) { _ = m.conn.Close() }

func (m *mysqlClient) ask(ctx context.Context) (role.Fact, error) {
	rows, err := m.query(ctx, m.question)
	if err != nil {
		if my, ok := errors.AsType[*mysql.MySQLError](err); ok && my.Number == errUnknownCommand {
			return role.Fact{}, &startingError{err}
		}
		return role.Fact{}, mysqlError(err)
	}
	if len(rows.values) != 1 || len(rows.values[0]) != len(m.variables) {
		return role.Fact{}, errors.New("the answer is not that of a MySQL server")
	}
	now := map[string]string{}
	for i, name := range m.variables {
		now[name] = rows.values[0][i]
	}
	f := role.Fact{Role: role.Primary, Identity: now["group_replication_group_name"]}
	own, err := parseGTIDs(now["gtid_executed"] + now["gtid_current_pos"])
	if err != nil {
		own = nil // the position is not known then
	}
	f.Position = own.count()
	for _, name := range []string{"read_only", "super_read_only", "innodb_read_only"} {
		if on(now[name]) {
			f.Role, f.Detail = role.Replica, name
		}
	}
	if on(now["wsrep_on"]) {
		err := m.galera(ctx, &f)
		return f, err
	}
	if f.Role == role.Replica {
		if err := m.replication(ctx, &f, own); err != nil {
			return role.Fact{}, err
		}
	}
	return f, nil
}

// on reports whether a variable is on. MariaDB's read_only has words for several
// kinds of on.
func on(text string) bool { return text != "" && text != "0" && !strings.EqualFold(text, "off") }

// galera adds what a node of Galera says about its cluster.
func (m *mysqlClient) galera(ctx context.Context, f *role.Fact) error {
	rows, err := m.query(ctx, "show global status where variable_name in ('wsrep_ready', 'wsrep_cluster_status', 'wsrep_local_state', 'wsrep_local_state_comment', 'wsrep_cluster_state_uuid', 'wsrep_last_committed')")
	if err != nil {
		return err
	}
	now := map[string]string{}
	for _, row := range rows.values {
		now[strings.ToLower(row[0])] = row[1]
	}
	f.Identity, f.Shared = now["wsrep_cluster_state_uuid"], true
	f.Position, _ = strconv.ParseUint(now["wsrep_last_committed"], 10, 64) // zero if it is none
	switch {
	case !strings.EqualFold(now["wsrep_cluster_status"], "primary"):
		f.Role, f.Detail = role.Replica, "the cluster has lost its majority here ("+now["wsrep_cluster_status"]+")"
	case !on(now["wsrep_ready"]) || now["wsrep_local_state"] != "4" && now["wsrep_local_state"] != "2":
		*f = role.Fact{}
		return &startingError{fmt.Errorf("the node is not synchronized (%s)", now["wsrep_local_state_comment"])}
	}
	return nil
}

// replication adds what a replica says about its primary, if the user may know.
func (m *mysqlClient) replication(ctx context.Context, f *role.Fact, own gtids) error {
	if m.status == "" {
		f.Detail += m.hidden
		return nil
	}
	rows, err := m.query(ctx, m.status)
	if my, ok := errors.AsType[*mysql.MySQLError](err); ok {
		if my.Number == errSyntax && m.status == "show replica status" {
			m.status = "show slave status" // before 8.0.22
		} else {
			m.status, m.hidden = "", ", replication is not shown: "+my.Message
		}
		return m.replication(ctx, f, own)
	}
	if err != nil {
		return err
	}
	if len(rows.values) == 0 {
		f.Detached = true
		f.Detail += ", and follows no primary"
		return nil
	}
	for _, row := range rows.values {
		m.channel(f, own, func(names ...string) string {
			for _, name := range names {
				if i := slices.Index(rows.columns, name); i >= 0 {
					return row[i]
				}
			}
			return ""
		})
	}
	if own != nil {
		f.Position = own.count()
	}
	return nil
}

// channel adds what one connection to a primary says.
func (*mysqlClient) channel(f *role.Fact, own gtids, get func(names ...string) string) {
	received, err := parseGTIDs(get("Gtid_IO_Pos") + get("Retrieved_Gtid_Set"))
	if err == nil && own != nil {
		own.add(received)
	}
	if state := get("Replica_IO_Running", "Slave_IO_Running"); state != "Yes" {
		f.Detail += ", no connection to a primary (" + state + ")"
	}
	if state := get("Replica_SQL_Running", "Slave_SQL_Running"); state != "Yes" {
		f.Detail += ", replay is stopped: " + get("Last_SQL_Error")
	}
	if seconds, err := strconv.ParseUint(get("Seconds_Behind_Source", "Seconds_Behind_Master"), 10, 32); err == nil {
		f.Lag.Time, f.Lag.TimeKnown = max(f.Lag.Time, time.Duration(seconds)*time.Second), true
	}
}

// table is the result of a query. NULL is an empty text.
type table struct {
	columns []string
	values  [][]string
}

// query runs a statement.
func (m *mysqlClient) query(ctx context.Context, statement string) (table, error) {
	queryer, ok := m.conn.(driver.QueryerContext)
	if !ok {
		return table{}, errors.New("the library cannot query")
	}
	rows, err := queryer.QueryContext(ctx, statement, nil)
	if err != nil {
		return table{}, err
	}
	defer rows.Close()
	t := table{columns: rows.Columns()}
	for {
		row := make([]driver.Value, len(t.columns))
		if err := rows.Next(row); errors.Is(err, io.EOF) {
			return t, nil
		} else if err != nil {
			return table{}, err
		}
		var texts []string
		for _, v := range row {
			switch v := v.(type) {
			case nil:
				texts = append(texts, "")
			case []byte:
				texts = append(texts, string(v))
			default:
				texts = append(texts, fmt.Sprint(v))
			}
		}
		t.values = append(t.values, texts)
	}
}
