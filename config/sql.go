package config

import (
	"errors"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"understudy/internal/address"
	"understudy/internal/redact"
)

// sqlDrivers are the protocols of databases, and sqlPorts their ports.
var (
	sqlDrivers = []string{"postgres", "mysql", "sqlserver"}
	sqlPorts   = map[string]string{"postgres": "5432", "mysql": "3306", "sqlserver": "1433"}
)

var sqlKeys = []key[SQLCheck]{
	{name: "url", value: "URL", help: "`postgres://user@host:port/database`, or mysql or sqlserver; instead of the next four",
		read: sqlURL},
	{name: "driver", value: "word", help: "postgres, mysql (also MariaDB) or sqlserver",
		parse: one(word(sqlDrivers...), func(a *SQLCheck, v string) { a.Driver = v })},
	{name: "address", value: "host:port", help: "the server, or unix:/path of its socket",
		parse: one(hostAddress, func(a *SQLCheck, v string) { a.Address = v })},
	{name: "user", value: "name", help: "the account",
		parse: one(text, func(a *SQLCheck, v string) { a.User = v })},
	{name: "database", value: "name", help: "the database; default: the server's choice, for postgres the name of the user",
		parse: one(text, func(a *SQLCheck, v string) { a.Database = v })},
	{name: "password_file", value: "file", help: "the account's password: the content of this file at each login, without surrounding white space",
		read: sqlPassword},
	{name: "query", value: "text", help: "one statement (required)",
		parse: one(rawText, func(a *SQLCheck, v string) { a.Query = v })},
	{name: "exists", value: "map", help: "column: value, all of which one row must have; null is NULL. Without it the query has to succeed",
		read: sqlExists},
	{name: "tls", value: "map", help: "require TLS, see above; `{}` trusts the system's authorities. Without it TLS is used if the server offers it, with any certificate",
		read: func(r *reader, s spot, a *SQLCheck) { a.TLS = new(ClientTLS); clientTLS(r, s, a.TLS) }},
}

// sqlOf reads a query of a database.
func sqlOf(r *reader, s spot, to *Check) {
	a := new(SQLCheck)
	given, ok := decode(r, s, sqlKeys, a, func(key string) string {
		switch key {
		case "timeout", "interval":
			return "is a key of the probe: set it beside sql"
		case "password", "password_env":
			return "is not supported: use password_file"
		}
		return ""
	})
	if !ok {
		return
	}
	if at, found := given["url"]; found {
		for _, part := range []string{"driver", "address", "user", "database"} {
			if p, twice := given[part]; twice {
				r.problem(p, "is set together with url, in line %d", at.line)
			}
		}
	}
	for _, part := range []string{"driver", "address", "user"} {
		if given[part].node == nil && given["url"].node == nil {
			r.problem(s, "needs %s, or a url", part)
		}
	}
	if given["query"].node == nil {
		r.problem(s, "needs a query")
	}
	if a.Driver == "sqlserver" && strings.HasPrefix(a.Address, "unix:") {
		r.problem(given["address"], "is a unix socket, which SQL Server does not have")
	}
	to.SQL = a
}

// sqlURL reads driver, address, user and database from a URL.
func sqlURL(r *reader, s spot, to *SQLCheck) {
	text, ok := r.text(s)
	if !ok {
		return
	}
	r.record(s.path, redact.URL(text), r.at(s))
	if err := to.fromURL(text); err != nil {
		r.problem(s, "%v", err)
	}
}

// fromURL sets a from a URL. An error does not repeat it, since it may hold a password.
func (a *SQLCheck) fromURL(text string) error {
	u, err := url.Parse(text)
	if err != nil {
		return errors.New("is not a URL")
	}
	a.Driver = u.Scheme
	if u.Scheme == "postgresql" {
		a.Driver = "postgres"
	}
	if !slices.Contains(sqlDrivers, a.Driver) {
		return errors.New("has no scheme of a database: want " + alternatives(sqlDrivers))
	}
	if _, secret := u.User.Password(); secret {
		return errors.New("has a password in it: put it into a password_file")
	}
	query := u.Query()
	a.User, a.Database = u.User.Username(), strings.TrimPrefix(u.Path, "/")
	if a.Driver == "sqlserver" && query.Has("database") && a.Database == "" {
		a.Database = query.Get("database")
		query.Del("database")
	}
	switch {
	case a.User == "":
		return errors.New("has no user: want one like postgres://user@host:port/database")
	case len(query) > 0 || u.Fragment != "":
		return errors.New("has parameters, which are not supported: use tls for TLS")
	case strings.Contains(a.Database, "/"):
		return errors.New("has a path of several parts: want the name of a database")
	}
	a.Address = u.Host
	if u.Port() == "" {
		a.Address = net.JoinHostPort(u.Hostname(), sqlPorts[a.Driver])
	}
	if _, err := address.ParseHost(a.Address); err != nil {
		return errors.New("has no valid host: " + err.Error())
	}
	return nil
}

// sqlPassword reads the path of a password.
func sqlPassword(r *reader, s spot, to *SQLCheck) {
	file, ok := r.text(s)
	if !ok {
		return
	}
	r.record(s.path, file, r.at(s))
	to.PasswordFile = file
	if _, err := readRegular(file); err != nil {
		r.problem(s, "%v", err)
		return
	}
	if info, err := os.Stat(file); err == nil && info.Mode().Perm()&0o004 != 0 {
		r.warn(s, "%s can be read by everybody: chmod o-r", file)
	}
}

// sqlExists reads the values of a row.
func sqlExists(r *reader, s spot, to *SQLCheck) {
	entries, ok := r.entries(s, maxList)
	if ok && len(entries) == 0 {
		r.problem(s, "is empty")
	}
	for _, e := range entries {
		v := SQLValue{Column: e.key}
		if v.Null = isNull(e.node); v.Null {
			r.record(e.path, "NULL", r.at(e))
		} else {
			text, ok := r.text(e)
			if !ok {
				continue
			}
			v.Text = text
			r.record(e.path, text, r.at(e))
		}
		to.Exists = append(to.Exists, v)
	}
}
