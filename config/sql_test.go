package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSQLProbe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const rest = "http: ':9001'\nroutes: {/ping: {probes: p}}\n"
	for text, want := range map[string]SQLCheck{
		"url: 'postgres://probe@db1/shop', query: select 1": {Driver: "postgres", Address: "db1:5432", User: "probe", Database: "shop", Query: "select 1"},
		"url: 'postgresql://probe@[::1]:5433', query: a":    {Driver: "postgres", Address: "[::1]:5433", User: "probe", Query: "a"},
		"url: 'mysql://a%40b@db1/shop', query: a":           {Driver: "mysql", Address: "db1:3306", User: "a@b", Database: "shop", Query: "a"},
		"url: 'sqlserver://sa@db1?database=shop', query: a": {Driver: "sqlserver", Address: "db1:1433", User: "sa", Database: "shop", Query: "a"},
		"driver: mysql, address: 'unix:/s', user: u, query: a, exists: {a: 1.50, b: null, c: 'x y'}, tls: {skip_verify: true}, password_file: " + file: {
			Driver: "mysql", Address: "unix:/s", User: "u", Query: "a", PasswordFile: file, TLS: &ClientTLS{SkipVerify: true},
			Exists: []SQLValue{{Column: "a", Text: "1.50"}, {Column: "b", Null: true}, {Column: "c", Text: "x y"}},
		},
	} {
		settings, values, err := loadFile(t, rest+"probes: {p: {sql: {"+text+"}}}\n", nil, nil)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if diff := cmp.Diff(&want, settings.Probes[0].SQL); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
		for _, v := range values {
			if strings.Contains(v.Text, "hunter2") {
				t.Errorf("%s: config prints the password in %s", text, v.Name)
			}
		}
	}
	for text, want := range map[string]string{
		"query: a":                                                            "probes[p].sql: needs driver, or a url",
		"driver: mysql, address: 'a:1', user: u":                              "needs a query",
		"url: 'mysql://u@db1', user: u, query: a":                             "probes[p].sql.user: is set together with url, in line 3",
		"url: 'mysql://u:hunter2@db1', query: a":                              "has a password in it: put it into a password_file",
		"url: 'mysql://u:hunter2@db1:99999', query: a":                        "probes[p].sql.url",
		"url: 'mysql://db1', query: a":                                        "has no user",
		"url: 'oracle://u@db1', query: a":                                     "has no scheme of a database: want postgres, mysql or sqlserver",
		"url: 'postgres://u@db1?sslmode=disable', query: a":                   "has parameters, which are not supported: use tls for TLS",
		"url: 'postgres://u@db1/a/b', query: a":                               "has a path of several parts",
		"url: 'postgres://u@db1:0', query: a":                                 "has no valid host",
		"url: 'mysql://u@db1', query: a, timeout: 2s":                         "is a key of the probe: set it beside sql",
		"url: 'mysql://u@db1', query: a, password: hunter2":                   "is not supported: use password_file",
		"url: 'mysql://u@db1', query: a, exists: {}":                          "exists: is empty",
		"url: 'mysql://u@db1', query: a, password_file: /nowhere":             "password_file: open /nowhere",
		"driver: sqlserver, address: 'unix:/s', user: u, query: a":            "is a unix socket, which SQL Server does not have",
		"driver: mysq, address: 'a:1', user: u, query: a":                     "did you mean mysql?",
		"url: 'mysql://u@db1', query: a, exists: {a: [1]}":                    "want a single value",
		"url: 'mysql://u@db1', query: a, tls: {ca: /nowhere}":                 "tls.ca",
		"url: 'mysql://u@db1', query: a}, tcp: {address: 'a:1'":               "has several kinds (tcp and sql)",
		"driver: mysql, address: 'a', user: u, query: a, exists: {a: 1, a: 2": "",
	} {
		_, _, err := loadFile(t, rest+"probes: {p: {sql: {"+text+"}}}\n", nil, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v\nwant %s", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, which has the password in it", text, err)
		}
	}
	_, _, err := loadFile(t, "port: 1\nhosts: h:1\nchecks: [{sql: {url: 'mysql://u@db1', query: a}}]\n", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "checks[0].sql: unknown key") {
		t.Errorf("a check of a relay: %v", err)
	}
}

func FuzzSQLURL(f *testing.F) {
	for _, seed := range []string{"postgres://u@db1:5432/shop", "sqlserver://u@[::1]?database=a", "mysql://u:p@db1", "mysql://%zz@db1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var a SQLCheck
		if err := a.fromURL(text); err != nil {
			return
		}
		if a.User == "" || sqlPorts[a.Driver] == "" || checkHost(a.Address) != nil {
			t.Errorf("fromURL(%q) = %+v", text, a)
		}
	})
}
