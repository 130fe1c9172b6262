package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"understudy/internal/criteria"
)

// printed is a value with its origin, as understudy config has them.
func printed(values []Value, name string) string {
	for _, v := range values {
		if v.Name == name {
			return v.Text + " " + v.Origin.String()
		}
	}
	return "none"
}

const twoRelays = `
rise: 4
fence: keep
allow: [10.0.0.0/8]
relays:
  - name: a
    listen: [":1"]
    hosts: [h:1]
    rise: 5
    allow: [192.0.2.0/24, "::1"]
  - name: b
    port: 2
    hosts: h:2, h:3
`

func TestFlagOverEnvironmentOverFileOverDefault(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		flags, env []string
		want       map[string]string
	}{
		{"the top of the file holds for a relay that says nothing else", twoRelays, nil, nil, map[string]string{
			"rise": "4 file u.yaml:2", "relays[a].rise": "5 file u.yaml:9", "relays[b].rise": "4 file u.yaml:2",
			"relays[a].allow": "192.0.2.0/24,::1 file u.yaml:10", "relays[b].allow": "10.0.0.0/8 file u.yaml:4",
			"relays[a].fall": "3 default", "relays[b].hosts": "h:2, h:3 file u.yaml:13", "relays[b].port": "2 file u.yaml:12",
			"fence": "keep file u.yaml:3", "config": "u.yaml flag --config", "relays[a].listen": ":1 file u.yaml:7",
		}},
		{"a variable holds for every relay", twoRelays, nil, []string{"RISE=6", "FALL="}, map[string]string{
			"rise": "6 environment RISE", "relays[a].rise": "6 environment RISE", "relays[b].rise": "6 environment RISE",
			"relays[a].fall": "3 default",
		}},
		{"a flag too", twoRelays, []string{"rise=7", "allow=::1"}, []string{"RISE=6"}, map[string]string{
			"relays[a].rise": "7 flag --rise", "relays[b].rise": "7 flag --rise", "relays[b].allow": "::1 flag --allow",
		}},
		{"the only relay of the list is moved", "relays:\n  - {name: a, listen: ':1', hosts: 'h:1'}\n", []string{"port=9", "hosts=x:1,y:1"}, nil, map[string]string{
			"relays[a].port": "9 flag --port", "relays[a].listen": " default", "relays[a].hosts": "x:1,y:1 flag --hosts",
		}},
		{"the relay at the top is moved", "port: 1\nhosts: h:1\n", nil, []string{"BIND=:8"}, map[string]string{
			"bind": ":8 environment BIND", "port": " default", "hosts": "h:1 file u.yaml:2",
		}},
		{"maps are other aliases", "port: 1\nhosts: h:1\nlog: {level: debug, format: json}\nhttp: {listen: ':2'}\ntriggers: {path: /t, policy: abort}\n", nil, nil, map[string]string{
			"log-level": "debug file u.yaml:3", "log-format": "json file u.yaml:3", "http": ":2 file u.yaml:4",
			"on-failover": "/t file u.yaml:5", "trigger-policy": "abort file u.yaml:5", "trigger-timeout": "30s default",
		}},
		{"an empty list is one", "port: 1\nhosts: h:1\nallow: []\n", nil, nil, map[string]string{"allow": " file u.yaml:3"}},
		{"words of YAML are text", "port: 1\nhosts: h:1\nsend_proxy: off\naccept_proxy: yes\nuser_timeout: 0\nhttp: ':2'\n", nil, nil, map[string]string{
			"send-proxy": "off file u.yaml:3", "accept-proxy": "yes file u.yaml:4", "user-timeout": "0 file u.yaml:5", "http": ":2 file u.yaml:6",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, values, err := loadFile(t, tt.text, tt.flags, tt.env)
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range tt.want {
				if got := printed(values, name); got != want {
					t.Errorf("%s = %q, want %q", name, got, want)
				}
			}
		})
	}
}

func TestListedRelays(t *testing.T) {
	got, values, err := loadFile(t, twoRelays, nil, []string{"RISE=6"})
	if err != nil {
		t.Fatal(err)
	}
	a, b := got.Relays[0], got.Relays[1]
	if len(got.Relays) != 2 || a.Name != "a" || b.Name != "b" || a.Rise != 6 || b.Rise != 6 || !b.Fence.Keep ||
		!slices.Equal(a.Listen, []string{":1"}) || !slices.Equal(b.Listen, []string{":2"}) || !slices.Equal(b.Hosts, []string{"h:2", "h:3"}) ||
		len(a.Allow) != 2 || len(b.Allow) != 1 || a.Interval != time.Second {
		t.Errorf("relays = %+v", got.Relays)
	}
	// The table's values come first, complete and in its order.
	for i := range table {
		if values[i].Flag != table[i].Flag || values[i].Name != table[i].Flag {
			t.Fatalf("value %d is %+v, want --%s", i, values[i], table[i].Flag)
		}
	}
	for _, v := range values[len(table):] {
		if v.Flag != "" {
			t.Errorf("%s has the flag %s", v.Name, v.Flag)
		}
	}
}

func TestNothingInTheFile(t *testing.T) {
	for _, text := range []string{"", "\n# nothing\n", "---\n", "~\n", "rise: 3\n", "relays: []\n"} {
		if _, _, err := loadFile(t, text, nil, nil); !errors.Is(err, ErrNothing) {
			t.Errorf("%q: %v, want ErrNothing", text, err)
		}
		got, _, err := loadFile(t, text, []string{"port=1", "hosts=h:1"}, nil)
		if err != nil || len(got.Relays) != 1 || got.File != "u.yaml" {
			t.Errorf("%q with flags: %+v, %v", text, got, err)
		}
	}
}

// What people get wrong in YAML is said in plain words, at the line where it is.
func TestSyntaxInPlainWords(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"port: 1\n\thosts: a:1\n", "2: is indented with a tab: use spaces"},
		{"relays:\n  - name: x\n\tport: 1\n", "3: is indented with a tab"},
		{"listen: [:5432]\n", `1: has an address that begins with a colon: put it in quotes, like ":5432"`},
		{"fall: 3\nlisten: [\":80\", :5432]\n", `2: has an address that begins with a colon: put it in quotes, like ":5432"`},
		{"hosts: [[::1]:80, b:1]\n", `1: has an address in brackets: put it in quotes, like "[::1]:80"`},
		{"hosts: [::1]:80\n", `1: has an address in brackets: put it in quotes, like "[::1]:80"`},
		{"hosts: [a:1,, b:1]\n", "1: has an empty item in a list"},
		{"hosts: [a:1, b:2\n", "2: has a list or map in brackets that is not closed"},
		{"relays:\n  - name: x\n   port: 1\n", "3: is indented differently from the lines above it"},
		{"relays:\n  - name: x\n    port: 1\n  hosts: a\n", "4: is indented differently from the lines above it"},
		{"relays:\n- name: x\n port: 1\n", "3: is indented differently from the lines above it"},
		{"relays:\n  - name: x\n      port: 1\n", "3: is indented further than the line above it"},
		{"port:80\nhosts: a:1\n", "1: has no space behind the colon: write port: 80"},
		{"hosts: a:1\nport:80\n", "2: has no space behind the colon: write port: 80"},
		{"check_host: a: b\n", "1: has a second colon in the value"},
		{"check_host: \"x\nport: 1\n", "3: ends inside quotes"},
		{"check_host: 'it's'\nport: 1\n", "1: has something behind the end of its value"},
		{"hosts: @x\n", "1: has a value that begins with @: put it in quotes"},
		{"on_failover: *.sh\n", "1: has a value that begins with *: put it in quotes"},
		{"pong_path: \"\\d\"\n", "1: has a backslash in double quotes"},
		{"hosts: - a:1\n", "1: has an item of a list behind its key"},
	} {
		_, _, err := loadFile(t, tt.text, nil, nil)
		if err == nil || !strings.HasPrefix(err.Error(), "u.yaml:"+tt.want) {
			t.Errorf("%q:\n got %v\nwant u.yaml:%s", tt.text, err, tt.want)
		}
	}
}

// A file that sets nothing is named, as is what it has to set.
func TestFileThatSetsNothing(t *testing.T) {
	_, _, err := loadFile(t, "# all of it\n#port: 80\n", nil, nil)
	if !errors.Is(err, ErrNothing) || !strings.HasPrefix(err.Error(), "u.yaml: sets neither hosts nor http") {
		t.Errorf("error %v, want one that names the file", err)
	}
}

// Each bad file is refused with these very words.
func TestBadFiles(t *testing.T) {
	const relay = "port: 1\nhosts: h:1\n"           // lines 1 and 2
	const check = relay + "checks:\n"               // lines 1 to 3
	const probe = "http: ':2'\nprobes:\n  p: "      // in line 3
	const route = relay + "http: ':2'\nroutes:\n  " // in line 5
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	empty, twoLines, pemless := write("empty", " \n"), write("lines", "a\nb\n"), write("pemless", "hello")
	cert, key := writePair(t, dir, "one")
	_, other := writePair(t, dir, "two")
	for _, tt := range []struct {
		text string
		want string // lines without u.yaml: in front
		flag string
	}{
		// The form of the file.
		{text: "port: 1\n hosts: x\n", want: "2: is indented further than the line above it: keys of one map begin in one column"},
		{text: "a: [", want: "1: has a list or map in brackets that is not closed, or misses a comma in it"},
		{text: "a: 1\nb: [\n", want: "3: has a list or map in brackets that is not closed, or misses a comma in it"},
		{text: "a: 1\nb: ]\n", want: "2: has a list or map in brackets that is not closed, or misses a comma in it"},
		{text: "}", want: "1: has a list or map in brackets that is not closed, or misses a comma in it"},
		{text: "a: '\n\nb\n", want: "4: ends inside quotes: a quote before it is not closed"},
		{text: "a: 1\n\tb: 2\n", want: "2: is indented with a tab: use spaces"},
		{text: "relays:\n\t- name: a\n", want: "2: is indented with a tab: use spaces"},
		{text: "a: 1\nb: \x00", want: `2: has the control character '\x00'`},
		{text: "a: 1\nb: \xff", want: "2: is not text in UTF-8"},
		{text: "- a\n", want: "1: is a list: want a map of keys and values"},
		{text: "port\n", want: `1: is the single value "port": want a map of keys and values`},
		{text: relay + "---\nport: 2\n", want: "3: a second document begins: only one is allowed"},
		{text: relay + "port: 2\n", want: "3: port: is listed twice: first in line 1"},
		{text: relay + "hold: &x 1\nrise: *x\n", want: "4: rise: is an alias (*x), which is not allowed here: write the value out"},
		{text: relay + "log: &x {level: info}\nhttp:\n  <<: *x\n", want: "5: http.<<: merges another map, which is not allowed here: write the values out"},
		{text: relay + "rise: !!int 3\n", want: "3: rise: has the tag !!int, which is not allowed here"},
		{text: relay + "[a]: 3\n", want: "3: has a key that is not a word"},
		{text: relay + "rise:\n", want: "3: rise: has no value: set one, or remove the key"},
		{text: relay + "rise: ''\n", want: "3: rise: is empty"},
		{text: relay + "rise: [1]\n", want: "3: rise: is a list: want a single value"},
		{text: relay + "rise: {a: 1}\n", want: "3: rise: is a map: want a single value"},
		{text: relay + "allow: {a: 1}\n", want: "3: allow: is a map: want a list"},
		{text: relay + "allow: [['::1']]\n", want: "3: allow[0]: is a list: want a single value"},
		{text: "a: " + strings.Repeat("x", maxFile), want: fmt.Sprintf("--config: \"u.yaml\" is longer than %d bytes", maxFile)},
		{text: strings.Repeat("[", 20000), want: "1: exceeded max depth of 10000"},

		// Words.
		{text: relay + "hoold: 3\n", want: "3: hoold: unknown key: did you mean hold?"},
		{text: relay + "fast-interval: 3\n", want: "3: fast-interval: unknown key: did you mean fast_interval?"},
		{text: relay + "xyzzy: 3\n", want: "3: xyzzy: unknown key"},
		{text: relay + "log: {leevl: info}\n", want: "3: log.leevl: unknown key: did you mean level?"},
		{text: relay + "log: debug\n", want: `3: log: is the single value "debug": want a map of keys and values`},
		{text: relay + "log.level: debug\n", want: "3: log.level: unknown key: did you mean log_level?"},
		{text: relay + "http: {tls: {certt: /x}}\n", want: "3: http.tls.certt: unknown key: did you mean cert?"},
		{text: relay + "config: x.yaml\n", want: "3: config: cannot be set in the file itself"},
		{text: relay + "\"a\\nb\": 1\n", want: `3: a\nb: unknown key`},

		// Values are looked at by the same code as those of flags.
		{text: relay + "rise: 0\n", want: `3: rise: "0" is not a number from 1 to 1000`},
		{text: relay + "rise: 0x3\n", want: `3: rise: "0x3" is not a number from 1 to 1000`},
		{text: relay + "fence: drain\n", want: `3: fence: "drain" is unknown: want now, drain=D (like drain=30s) or keep`},
		{text: relay + "log: {level: loud}\n", want: `3: log.level: "loud" is unknown: want trace, debug, info, warn, error or off`},
		{text: "port: 1\nhosts: [a:1, b]\n", want: `2: hosts: "b" has no port: want host:port`},
		{text: "port: 1\nhosts: [127.0.0.1:1]\n", want: `2: hosts: "127.0.0.1:1" is this relay itself (u.yaml:1: port)`},

		// Two aliases.
		{text: "listen: ':1'\nbind: ':2'\nhosts: h:1\n", want: "2: bind: is the same as listen, which is set in line 1"},
		{text: "listen: ':1'\nport: 2\nhosts: h:1\n", want: "2: port: excludes u.yaml:1: listen: set one of them"},
		{text: relay + "log: {level: info}\nlog_level: debug\n", want: "4: log_level: is the same as log.level, which is set in line 3"},
		{text: relay + "triggers: {path: /a}\non_failover: /b\n", want: "4: on_failover: is the same as triggers.path, which is set in line 3"},

		// Relays.
		{text: "port: 1\n", want: "--hosts or HOSTS: missing: where to relay to (an HTTP server alone, also one for flag files, is --http IP:PORT)"},
		{text: "hosts: h:1\n", want: "--port or PORT (or --bind or BIND): missing: where to listen"},
		{text: "hosts: h:1\nrelays:\n- {name: a, port: 1, hosts: 'h:1'}\n", want: "1: hosts: is set beside relays: move it into one of them"},
		{text: "relays: {a: 1}\n", want: "1: relays: is a map: want a list"},
		{text: "relays:\n- a\n", want: "2: relays[0]: is the single value \"a\": want a map of keys and values\n2: relays[0]: needs listen (or port)\n2: relays[0]: needs hosts to relay to"},
		{text: "relays:\n- {port: 1, hosts: 'h:1'}\n", want: "2: relays[0]: needs a name"},
		{text: "relays:\n- {name: a b, port: 1, hosts: 'h:1'}\n", want: `2: relays[0].name: "a b" is not a name: want 1 to 64 letters, digits, dots, dashes and underscores, and no dot in front`},
		{text: "relays:\n- {name: " + strings.Repeat("n", 65) + ", port: 1, hosts: 'h:1'}\n", want: `2: relays[0].name: "` + strings.Repeat("n", 65) + `" is not a name: want 1 to 64 letters, digits, dots, dashes and underscores, and no dot in front`},
		{text: "relays:\n- {name: a}\n", want: "2: relays[0]: needs listen (or port)\n2: relays[0]: needs hosts to relay to"},
		{text: "relays:\n- {name: a, port: 1, hosts: []}\n", want: "2: relays[0]: needs hosts to relay to"},
		{text: "relays:\n- {name: a, port: 1, hosts: 'h:1'}\n- {name: a, port: 2, hosts: 'h:1'}\n", want: `3: relays[1].name: "a" is the name of the relay in line 2 already`},
		{text: "relays:\n- {name: a, port: 1, hosts: 'h:1'}\n- {name: b, port: 1, hosts: 'h:1'}\n", want: `3: relays[1].port: ":1" is the address of u.yaml:2: relays[0].port already`},
		{text: "http: ':1'\nrelays:\n- {name: a, port: 1, hosts: 'h:1'}\n", want: `1: http: ":1" is the address of u.yaml:3: relays[0].port already`},
		{text: "relays:\n- {name: a, port: 1, hosts: 'h:1', log_level: info}\n", want: "2: relays[0].log_level: is a setting of the whole program: move it to the top of the file"},
		{text: "relays:\n- {name: a, port: 1, hosts: 'h:1', hostss: x}\n", want: "2: relays[0].hostss: unknown key: did you mean hosts?"},
		{text: "relays:\n- {name: a, port: 1, hosts: '127.0.0.1:1'}\n", want: `2: relays[0].hosts: "127.0.0.1:1" is this relay itself (u.yaml:2: relays[0].port)`},
		{text: twoRelays, flag: "hosts=h:1", want: "--hosts: is for one relay, and u.yaml has 2: set it there"},
		{text: "rise: 0\n" + "relays:\n- {name: a, port: 1, hosts: 'h:1'}\n- {name: b, port: 2, hosts: 'h:1'}\n", want: `1: rise: "0" is not a number from 1 to 1000`},
		{text: twoRelays, flag: "rise=0", want: `--rise: "0" is not a number from 1 to 1000`},

		// Checks.
		{text: check + "- {}\n", want: "4: checks[0]: has no kind: set one of http, tcp, exec, flag or vip"},
		{text: check + "- {tcp: {}, exec: {command: /x}}\n", want: "4: checks[0]: has several kinds (tcp and exec): make them separate"},
		{text: check + "- {htp: {}}\n", want: "4: checks[0].htp: unknown key: did you mean http?\n4: checks[0]: has no kind: set one of http, tcp, exec, flag or vip"},
		{text: check + "- {http: {pth: /}}\n", want: "4: checks[0].http.pth: unknown key: did you mean path?"},
		{text: check + "- {http: {url: 'http://a'}}\n", want: "4: checks[0].http.url: is for a probe: a check connects to the host, at port and path"},
		{text: check + "- {http: {path: x}}\n", want: `4: checks[0].http.path: "x" is not a path: want one like /ping`},
		{text: check + "- {http: {port: 0}}\n", want: `4: checks[0].http.port: "0" is not a number from 1 to 65535`},
		{text: check + "- {http: {status: [200, 2x]}}\n", want: `4: checks[0].http.status: "2x" is neither a status from 100 to 599 nor a class from 1xx to 5xx`},
		{text: check + "- {http: {status: 1xx}}\n", want: "4: checks[0].http.status: names no status that an answer can end with"},
		{text: check + "- {http: {status: 204, body: x}}\n", want: "4: checks[0].http.status: 204 has no body, but a body is expected"},
		{text: check + "- {http: {body_regex: '('}}\n", want: "4: checks[0].http.body_regex: \"(\" is not a regular expression: missing closing ): `(`"},
		{text: check + "- {http: {body: pong, body_contains: ping}}\n", want: `4: checks[0].http.body_contains: "ping" cannot be in a body that equals "pong"`},
		{text: check + "- {http: {body: pong, body_regex: ping}}\n", want: `4: checks[0].http.body_regex: "ping" matches no body that equals "pong"`},
		{text: check + "- {http: {body: '  '}}\n", want: `4: checks[0].http.body: "  " is empty, or white space, which is dropped before comparing`},
		{text: check + "- {http: {method: HEAD, body: x}}\n", want: "4: checks[0].http.method: a response to HEAD has no body, but a body is expected"},
		{text: check + "- {http: {method: 'GET /'}}\n", want: `4: checks[0].http.method: "GET /" is not a request method`},
		{text: check + "- {http: {headers: {Connection: close}}}\n", want: "4: checks[0].http.headers.Connection: Connection is a header that understudy sets itself"},
		{text: check + "- {http: {headers: {'a b': c}}}\n", want: `4: checks[0].http.headers.a b: "a b" is not the name of a header`},
		{text: check + "- {http: {headers: {X: \"a\\r\\nY: b\"}}}\n", want: "4: checks[0].http.headers.X: has a control character in its value"},
		{text: check + "- {http: {headers: {X: {fiel: /x}}}}\n", want: "4: checks[0].http.headers.X.fiel: unknown key: did you mean file?"},
		{text: check + "- {http: {tls: {skip_verify: true}}}\n", want: "4: checks[0].http.tls: is for https"},
		{text: check + "- {http: {https: true, tls: {ca: /nowhere}}}\n", want: `4: checks[0].http.tls.ca: "/nowhere" cannot be read: open /nowhere: no such file or directory`},
		{text: check + "- {http: {https: true, tls: {ca: " + pemless + "}}}\n", want: `4: checks[0].http.tls.ca: "` + pemless + `" holds no certificate (PEM)`},
		{text: check + "- {http: {https: true, tls: {cert: " + cert + "}}}\n", want: "4: checks[0].http.tls.cert: the certificate needs a key"},
		{text: check + "- {http: {https: true, tls: {key: " + key + "}}}\n", want: "4: checks[0].http.tls.key: the key needs a certificate"},
		{text: check + "- {http: {https: true, tls: {cert: " + cert + ", key: " + other + "}}}\n", want: "4: checks[0].http.tls.cert: " + cert + " and " + other + ": private key does not match public key"},
		{text: check + "- {http: {https: true, tls: {skip_verify: true, ca: " + cert + "}}}\n", want: "4: checks[0].http.tls.skip_verify: contradicts ca and server_name: nothing is verified"},
		{text: check + "- {http: {https: true, tls: {server_name: 'a b'}}}\n", want: `4: checks[0].http.tls.server_name: "a b" has the host name "a b", in which " " is not allowed`},
		{text: check + "- {tcp: {address: 'a:1'}}\n", want: "4: checks[0].tcp.address: unknown key: want port, send, expect or handshake"},
		{text: check + "- {tcp: {expect: ''}}\n", want: `4: checks[0].tcp.expect: "" is empty`},
		{text: check + "- {exec: {}}\n", want: "4: checks[0].exec: needs a command"},
		{text: check + "- {exec: {command: check.sh}}\n", want: `4: checks[0].exec.command: "check.sh" is not an absolute path: want a list like [/usr/local/bin/check, argument]`},
		{text: check + "- {exec: {command: []}}\n", want: "4: checks[0].exec.command: is empty"},
		{text: check + "- {flag: {dir: /x}}\n", want: "4: checks[0].flag: needs dir and name"},
		{text: check + "- {flag: {dir: /x, name: ../x}}\n", want: `4: checks[0].flag.name: "../x" contains a slash`},
		{text: check + "- {vip: {}}\n", want: "4: checks[0].vip: needs addresses"},
		{text: check + "- {vip: {addresses: []}}\n", want: "4: checks[0].vip.addresses: is empty"},
		{text: check + "- {vip: {addresses: [eth0]}}\n", want: `4: checks[0].vip.addresses: "eth0" is not an IP address`},
		{text: check + "- {tcp: {}, interval: 0}\n", want: `4: checks[0].interval: "0" is shorter than 1ms`},

		// Probes.
		{text: relay + probe + "{}\nroutes: {/: {probes: p}}\n", want: "5: probes[p]: has no kind: set one of http, tcp, exec, flag, vip or sql"},
		{text: relay + probe + "{http: {port: 1}}\n", want: "5: probes[p].http.port: is for a relay's check: a probe has a url\n5: probes[p].http: needs a url"},
		{text: relay + probe + "{http: {url: localhost:9200}}\n", want: `5: probes[p].http.url: "localhost:9200" is not a URL with http or https: want one like http://host:port/path`},
		{text: relay + probe + "{http: {url: 'http://u:p@h/'}}\n", want: `5: probes[p].http.url: "http://********@h/" has a user in it: send an Authorization header, from a file`},
		{text: relay + probe + "{http: {url: 'http://h:99999/'}}\n", want: `5: probes[p].http.url: "http://h:99999/" has port "99999", which is not a number from 1 to 65535`},
		{text: relay + probe + "{http: {url: 'http://h/', tls: {}}}\n", want: "5: probes[p].http.tls: is for https"},
		{text: relay + probe + "{tcp: {}}\n", want: "5: probes[p].tcp: needs an address"},
		{text: relay + probe + "{tcp: {address: h}}\n", want: `5: probes[p].tcp.address: "h" has no port: want host:port`},
		{text: relay + probe + "{tcp: {address: 'h:1'}, jitter: 5s}\n", want: "5: probes[p].jitter: is longer than the interval, 3s"},
		{text: relay + "probes: {main: {tcp: {address: 'h:1'}}}\n", want: `3: probes[main]: "main" is the name of the relay`},
		{text: twoRelays + "probes: {a: {tcp: {address: 'h:1'}}}\n", want: `14: probes[a]: "a" is the name of a relay already`},
		{text: relay + "probes: {../x: {tcp: {address: 'h:1'}}}\n", want: `3: probes[../x]: "../x" is not a name: want 1 to 64 letters, digits, dots, dashes and underscores, and no dot in front`},

		// Routes.
		{text: relay + "routes: {/: {ports: 1}}\n", want: "3: routes: needs http, the address to answer on"},
		{text: route + "ping: {ports: 1}\n", want: `5: routes[ping]: "ping" is not a path: want one like /ping`},
		{text: route + "/: {ports: 1}\n  /: {ports: 2}\n", want: "6: routes[/]: is listed twice: first in line 5"},
		{text: route + "/: 3\n", want: `5: routes[/]: is the single value "3": want a map of keys and values`},
		{text: route + "/: {prots: 3}\n", want: "5: routes[/].prots: unknown key: did you mean ports?"},
		{text: route + "/: {flags: /d, ports: 1}\n", want: "5: routes[/].ports: is not valid here: this is a flags route, and it belongs to a verdict"},
		{text: route + "/: {endpoints: 'http://h', quorum: 1}\n", want: "5: routes[/].quorum: is not valid here: this is an endpoints route, and it belongs to a verdict"},
		{text: route + "/: {endpoints: 'http://h', total_timeout: 0}\n", want: `5: routes[/].total_timeout: "0" is shorter than 1ms`},
		{text: route + "/: {endpoints: []}\n", want: "5: routes[/].endpoints: is empty"},
		{text: route + "/: {endpoints: 'http://h', policy: all}\n", want: `5: routes[/].policy: "all" is a policy of verdicts: want first or race for endpoints`},
		{text: route + "/: {endpoints: 'http://h', status: 250x}\n", want: `5: routes[/].status: "250x" is neither a status from 100 to 599 nor a class from 1xx to 5xx`},
		{text: route + "/: {endpoints: 'http://h', tls: {skip_verify: true}}\n", want: "5: routes[/].tls: is for https, and no endpoint is"},
		{text: route + "/: {preserve_host: true}\n", want: "5: routes[/]: needs endpoints"},
		{text: route + "/: {policy: race}\n", want: `5: routes[/].policy: "race" is a policy of endpoints, and there are none`},
		{text: route + "/: {policy: al}\n", want: `5: routes[/].policy: "al" is unknown: want all or quorum`},
		{text: route + "/: {policy: all, quorum: 1}\n", want: "5: routes[/].quorum: is set together with policy: all: set one of them"},
		{text: route + "/: {policy: quorum}\n", want: "5: routes[/].policy: needs quorum, the number that must pass"},
		{text: route + "/: {quorum: 2}\n", want: "5: routes[/].quorum: 2 is more than the 1 ports, relays and probes that count"},
		{text: route + "/: {quorum: 1, must: main}\n", want: "5: routes[/].quorum: 1 is more than the 0 ports, relays and probes that count"},
		{text: route + "/: {relays: none}\n", want: "5: routes[/]: has no members: set ports, relays or probes"},
		{text: route + "/: {relays: [mian]}\n", want: `5: routes[/].relays: there is no relay called "mian": did you mean main?`},
		{text: route + "/: {probes: [search]}\n", want: `5: routes[/].probes: there is no probe called "search"`},
		{text: route + "/: {must: main, ignore: main}\n", want: `5: routes[/].ignore: "main" is listed in must too`},
		{text: route + "/: {relays: [main, main]}\n", want: `5: routes[/].relays: "main" is listed twice`},
		{text: route + "/: {ports: [1, 1]}\n", want: "5: routes[/].ports: 1 is listed twice"},
		{text: route + "/: {body: x}\n", want: "5: routes[/].body: is about the answers of ports, and there are none"},
		{text: route + "/: {timeout: 10s}\n", want: `5: routes[/].timeout: "10s" is longer than 9s`},
		{text: route + "/: {fail_status: 200}\n", want: `5: routes[/].fail_status: "200" is not a number from 400 to 599, auto or keep`},
		{text: route + "/: {agent: ':1'}\n", want: `5: routes[/].agent: ":1" is the address of u.yaml:1: port already`},
		{text: route + "/: {token_file: /nowhere}\n", want: "5: routes[/].token_file: open /nowhere: no such file or directory"},
		{text: route + "/: {token_file: " + empty + "}\n", want: "5: routes[/].token_file: " + empty + " is empty"},
		{text: route + "/: {token_file: " + twoLines + "}\n", want: "5: routes[/].token_file: " + twoLines + " has a control character or several lines in it"},
		{text: route + "/: {token_env: NOT_SET}\n", want: "5: routes[/].token_env: the variable NOT_SET is not set, or empty"},
		{text: route + "/: {token: ''}\n", want: "5: routes[/].token: is empty"},
		{text: route + "/: {token: a, token_env: HOME}\n", want: "5: routes[/].token_env: the variable HOME is not set, or empty\n5: routes[/].token: is set together with token_env: set one of them"},
		{text: route + "/: {name: x, probes: none}\n", want: "5: routes[/]: needs a token: set token_file or token_env\n5: routes[/]: has nothing to report: there are no probes"},
		{text: route + "/: {name: x, relays: all, token: x, must: main}\n", want: "5: routes[/].must: is not valid here: this is a heartbeat, and it belongs to a verdict"},
		{text: route + "/: {dead_dir: /x, relays: all, token: x}\n", want: "5: routes[/]: needs a name: what the server calls itself"},
		{text: route + "/ping: {ports: 1}\n", flag: "lport=2", want: "5: routes[/ping]: /ping is answered by --lport already"},
		{text: route + "/status: {flags: /d}\n", flag: "status-dir=/e", want: "5: routes[/status]: /status is answered by --status-dir already"},
		{text: route + "/: {ports: 1}\n", flag: "endpoints=http://h", want: "5: routes[/]: / is answered by --endpoints already"},
	} {
		var flags []string
		if tt.flag != "" {
			flags = []string{tt.flag}
		}
		got := ""
		if _, _, err := loadFile(t, tt.text, flags, nil); err != nil {
			got = strings.TrimPrefix(strings.ReplaceAll("\n"+err.Error(), "\nu.yaml:", "\n"), "\n")
		}
		if got != tt.want {
			t.Errorf("%.120q:\n got %s\nwant %s", tt.text, got, tt.want)
		}
	}
}

func TestEveryProblemOfAFileAtOnceInItsOrder(t *testing.T) {
	_, _, err := loadFile(t, "fall: 0\nrelays:\n- {name: a, port: 1, hosts: 'h', rsie: 3}\nlog: {level: x}\nroutes:\n  /a: {probes: b}\n", []string{"hold=x"}, []string{"RISE=0"})
	want := []string{"RISE: ", "--hold: ", "u.yaml:1: fall: ", "u.yaml:3: relays[0].rsie: ", "u.yaml:3: relays[0].hosts: ", "u.yaml:4: log.level: ", "u.yaml:5: routes: ", "u.yaml:6: routes[/a].probes: "}
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d problems, want %d:\n%v", len(lines), len(want), err)
	}
	for i, line := range lines {
		if !strings.HasPrefix(line, want[i]) {
			t.Errorf("problem %d = %q, want %q", i, line, want[i])
		}
	}
}

// Aliases of aliases are refused before anything is made of them.
func TestBillionLaughs(t *testing.T) {
	text := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'z'; c++ {
		text += fmt.Sprintf("%c: &%c [*%c,*%[3]c,*%[3]c,*%[3]c,*%[3]c,*%[3]c,*%[3]c,*%[3]c,*%[3]c]\n", c, c, c-1)
	}
	_, _, err := loadFile(t, text+"hosts: *z\n", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "hosts: is an alias (*z)") {
		t.Errorf("Load = %.200v", err)
	}
}

func TestRoutes(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(secret, []byte("  hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, values, err := loadFile(t, `
http: ":9"
port: 1
hosts: h:1
ping_path: /alive
probes:
  b: {tcp: {address: "h:1"}}
  a: {exec: {command: [/bin/true, "a b"]}, interval: 1m, rise: 1, fall: 5, jitter: 2s}
routes:
  /verdict: {ports: [3, 2], probes: [a]}
  /strict: {ports: 3, status: 204}
  /search: {ports: 3, body_contains: ok}
  /quorum: {quorum: 1, probes: all, must: [main], ignore: b, timeout: 1s, fail_status: keep, agent: ":10", tcp: ":11", token_env: TOKEN}
  /flags: {flags: /d}
  /beat: {name: DC 1, token_file: `+secret+`, ignore: [b], dead_dir: /dead}
  /first/: {endpoints: ["http://a/x,y", "http://b"], timeout: 2s}
  /race/: {endpoints: ["http://a", "http://b"], policy: race, status: [200], total_timeout: 9s, preserve_host: true}
`, nil, []string{"TOKEN=geheim"})
	if err != nil {
		t.Fatal(err)
	}
	main, a, b := Member{Name: "1"}, Member{Name: "a", Probe: true}, Member{Name: "b", Probe: true}
	mustMain, ignoredB := main, b
	mustMain.Must, ignoredB.Ignore = true, true
	want := []Route{
		{Path: "/alive", Verdict: &Verdict{Members: []Member{main}, Timeout: 2 * time.Second, FailStatus: "auto"}},
		{Path: "/verdict", Verdict: &Verdict{Ports: []int{3, 2}, Expect: criteria.Expect{Status: []string{"200"}, Body: "pong"}, Members: []Member{main, a}, Timeout: 2 * time.Second, FailStatus: "auto"}},
		{Path: "/strict", Verdict: &Verdict{Ports: []int{3}, Expect: criteria.Expect{Status: []string{"204"}}, Members: []Member{main}, Timeout: 2 * time.Second, FailStatus: "auto"}},
		{Path: "/search", Verdict: &Verdict{Ports: []int{3}, Expect: criteria.Expect{Status: []string{"200"}, BodyContains: "ok"}, Members: []Member{main}, Timeout: 2 * time.Second, FailStatus: "auto"}},
		{Path: "/quorum", Verdict: &Verdict{
			Quorum: 1, Members: []Member{mustMain, ignoredB, a}, Timeout: time.Second, FailStatus: "keep",
			Agent: ":10", TCP: ":11", Token: Secret{"geheim"},
		}},
		{Path: "/flags", Flags: "/d"},
		{Path: "/beat", Heartbeat: &Heartbeat{Name: "DC 1", Members: []Member{ignoredB, a}, Token: Secret{"hunter2"}, Dead: "/dead"}},
		{Path: "/first/", Endpoints: &Endpoints{URLs: []string{"http://a/x,y", "http://b"}, Status: []string{"1xx", "2xx", "3xx", "4xx"}, Timeout: 2 * time.Second, Total: 4 * time.Second}},
		{Path: "/race/", Endpoints: &Endpoints{URLs: []string{"http://a", "http://b"}, Race: true, Status: []string{"200"}, Timeout: 5 * time.Second, Total: 9 * time.Second, PreserveHost: true}},
	}
	if diff := cmp.Diff(want, got.HTTP.Routes, exported); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	wantProbes := []Probe{
		{Name: "b", Check: Check{TCP: &TCPCheck{Address: "h:1"}, Interval: 3 * time.Second, Timeout: 2 * time.Second}, Rise: 2, Fall: 2},
		{Name: "a", Check: Check{Exec: &ExecCheck{Command: []string{"/bin/true", "a b"}}, Interval: time.Minute, Timeout: 2 * time.Second}, Rise: 1, Fall: 5, Jitter: 2 * time.Second},
	}
	if diff := cmp.Diff(wantProbes, got.Probes, exported); diff != "" {
		t.Errorf("probes (-want +got):\n%s", diff)
	}
	if vars := got.SecretVariables(); !slices.Equal(vars, []string{"TOKEN"}) || len(got.Warnings) != 0 {
		t.Errorf("secret variables %q, warnings %q", vars, got.Warnings)
	}
	for name, want := range map[string]string{
		"routes[/quorum].token_env": "TOKEN file u.yaml:13", "routes[/beat].token_file": secret + " file u.yaml:15",
		"routes[/verdict].relays": "all default", "probes[a].exec.command": `/bin/true "a b" file u.yaml:8`,
		"probes[b].interval": "3s default",
	} {
		if got := printed(values, name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

// With routes in the file, /ping is made only if a setting of it is given.
func TestPingBesideRoutes(t *testing.T) {
	const relay = "http: ':9'\nport: 1\nhosts: h:1\n"
	for _, tt := range []struct {
		text, flag, want string
	}{
		{relay, "", "/ping"},
		{relay + "routes: {}\n", "", "/ping"},
		{relay + "routes: {/a: {flags: /d}}\n", "", "/a"},
		{relay + "routes: {/a: {flags: /d}}\n", "lport=3", "/ping /a"},
		{relay + "routes: {/a: {flags: /d}}\n", "ping-path=/b", "/b /a"},
		{"http: ':9'\nroutes: {/a: {ports: 3}}\n", "", "/a"},
		{"http: ':9'\nroutes: {/a: {ports: 3}}\n", "endpoints=http://h", "/ /a"},
	} {
		var flags []string
		if tt.flag != "" {
			flags = []string{tt.flag}
		}
		settings, _, err := loadFile(t, tt.text, flags, nil)
		var got []string
		for _, route := range settings.HTTP.Routes {
			got = append(got, route.Path)
		}
		if strings.Join(got, " ") != tt.want || err != nil {
			t.Errorf("%q, %s: routes %q, %v, want %s", tt.text, tt.flag, got, err, tt.want)
		}
	}
}

func TestChecks(t *testing.T) {
	dir := t.TempDir()
	cert, key := writePair(t, dir, "one")
	got, values, err := loadFile(t, `
interval: 7s
timeout: 3s
check_timeout: 9s
checks:
  - tcp: {port: 2, send: "PING\r\n", expect: +PONG}
  - exec: {command: /bin/check}
    interval: 1m
relays:
  - {name: a, port: 1, hosts: "h:1"}
  - name: b
    port: 2
    hosts: h:1
    timeout: 4s
    checks:
      - http: {port: 8008, path: "/p?q", https: true, method: post, request_body: hi, status: [2XX, 304], body_regex: x, headers: {X-A: [a, b], Authorization: {env: SECRET}, X-B: "b,c"},
               tls: {server_name: db, ca: `+cert+`, cert: `+cert+`, key: `+key+`}}
        timeout: 1s
      - flag: {dir: /d, name: web.80, absent: true}
      - vip: {addresses: ["::ffff:192.0.2.1", "::1"], any_interface: on}
  - {name: c, port: 3, hosts: "h:1", checks: []}
`, nil, []string{"SECRET=Bearer x"})
	if err != nil {
		t.Fatal(err)
	}
	second := time.Second
	addr := func(text string) (a addrValue) { a, _ = ipAddress(text); return a }
	want := [][]Check{
		{
			{TCP: &TCPCheck{Port: 2, Send: "PING\r\n", Expect: "+PONG"}, Interval: 7 * second, Timeout: 3 * second},
			{Exec: &ExecCheck{Command: []string{"/bin/check"}}, Interval: time.Minute, Timeout: 9 * second},
		},
		{
			{HTTP: &HTTPCheck{
				Port: 8008, Path: "/p?q", HTTPS: true, Method: "POST", RequestBody: "hi", Expect: criteria.Expect{Status: []string{"2xx", "304"}, BodyRegex: "x"},
				Headers: [][2]string{{"X-A", "a"}, {"X-A", "b"}, {"Authorization", "Bearer x"}, {"X-B", "b,c"}},
				TLS:     ClientTLS{ServerName: "db", CA: cert, Cert: cert, Key: key, Digest: digest(cert, cert, key)},
			}, Interval: 7 * second, Timeout: second},
			{Flag: &FlagCheck{Dir: "/d", Name: "web.80", Absent: true}, Interval: 7 * second, Timeout: 4 * second},
			{VIP: &VIPCheck{Addresses: []addrValue{addr("192.0.2.1"), addr("::1")}, AnyInterface: true}, Interval: 7 * second, Timeout: 4 * second},
		},
		nil,
	}
	for i, relay := range got.Relays {
		if diff := cmp.Diff(want[i], relay.Checks, exported, cmp.FilterPath(func(p cmp.Path) bool { return len(p) == 1 }, cmp.Transformer("nil", func(a []Check) []Check {
			if len(a) == 0 {
				return nil
			}
			return a
		}))); diff != "" {
			t.Errorf("checks of %s (-want +got):\n%s", relay.Name, diff)
		}
	}
	if vars := got.SecretVariables(); !slices.Equal(vars, []string{"SECRET"}) {
		t.Errorf("secret variables %q", vars)
	}
	for name, want := range map[string]string{
		"checks[0].tcp.port": "2 file u.yaml:6", "relays[b].checks[0].http.headers.Authorization.env": "SECRET file u.yaml:16",
		"relays[b].checks[0].http.headers.X-A": "a,b file u.yaml:16", "relays[b].checks[2].vip.any_interface": "on file u.yaml:20",
	} {
		if got := printed(values, name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

// A secret is warned about where it stands, and shown nowhere.
func TestSecretsAreMasked(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open")
	if err := os.WriteFile(open, []byte("hunter2"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o644); err != nil { // whatever the umask
		t.Fatal(err)
	}
	settings, values, err := loadFile(t, `http: ":9"
port: 1
hosts: h:1
checks: [{http: {headers: {Authorization: Bearer hunter2}}}]
routes:
  /a: {token: hunter2}
  /b: {token_file: `+open+`}
`, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"u.yaml:4: checks[0].http.headers.Authorization: holds a secret in the file itself: name a file or a variable, like {file: /etc/understudy/secret}",
		"u.yaml:6: routes[/a].token: is a secret in the file itself: use token_file or token_env",
		"u.yaml:7: routes[/b].token_file: " + open + " can be read by everybody: chmod o-r",
	}
	if !slices.Equal(settings.Warnings, want) {
		t.Errorf("warnings = %q\nwant %q", settings.Warnings, want)
	}
	token := settings.HTTP.Routes[0].Verdict.Token
	text, _ := token.MarshalText()
	if all := fmt.Sprintf("%v %+v %#v %s %v", values, token, token, text, *settings.HTTP.Routes[0].Verdict); strings.Contains(all, "hunter2") {
		t.Errorf("the secret is shown: %s", all)
	}
	if got := printed(values, "routes[/a].token"); got != "******** file u.yaml:6" || token.Value() != "hunter2" || !token.IsSet() {
		t.Errorf("token is printed as %q, and is %q", got, token.Value())
	}
	if _, _, err := loadFile(t, "http: ':9'\nroutes: {/: {token: \"hunter2\\n\", ports: 1}}\n", nil, nil); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a bad secret: %v", err)
	}
}

func TestScriptsDirOfEachRelay(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "check-host.sh")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, _, err := loadFile(t, "scripts_dir: "+dir+"\nrelays:\n- {name: a, port: 1, hosts: 'h:1'}\n- {name: b, port: 2, hosts: 'h:1', check_host: /mine}\n", nil, nil)
	if err != nil || got.Relays[0].CheckHost != file || got.Relays[1].CheckHost != "/mine" {
		t.Errorf("Load = %+v, %v", got.Relays, err)
	}
}

func TestLogOutputs(t *testing.T) {
	for text, want := range map[string]string{
		"stderr": "stderr", "syslog": "syslog", "/var/log/u.log": "/var/log/u.log",
		"gelf+tcp://h": "gelf+tcp://h:12201", "gelf+udp://h:1": "gelf+udp://h:1", "gelf+tcp://[::1]": "gelf+tcp://[::1]:12201",
	} {
		if got, err := logOutput(text); got != want || err != nil {
			t.Errorf("logOutput(%q) = %q, %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"", "u.log", "/", "/var/log/", "gelf://h", "gelf+tcp://", "gelf+tcp://h:0", "gelf+tcp://::1", "gelf+udp://unix:/x"} {
		if got, err := logOutput(text); err == nil {
			t.Errorf("logOutput(%q) = %q, want an error", text, got)
		}
	}
}

// Thousands of mistakes cost little time.
func TestManyMistakes(t *testing.T) {
	load := func(name string) (time.Duration, error) {
		var b strings.Builder
		b.WriteString("http: ':2'\nport: 1\nhosts: h:1\nprobes:\n")
		for i := range maxProbes {
			fmt.Fprintf(&b, " probe%d: {tcp: {address: 'h:1'}}\n", i)
		}
		b.WriteString("routes:\n")
		for i := range 200 {
			fmt.Fprintf(&b, " /r%d: {probes: [%s]}\n", i, strings.Repeat(name+", ", 300))
		}
		start := time.Now()
		_, _, err := loadFile(t, b.String(), nil, nil)
		return time.Since(start), err
	}
	right, _ := load("probe1") // 300 times the same is a mistake of another kind
	wrong, err := load("probe_1")
	if err == nil || !strings.Contains(err.Error(), "did you mean probe1?") {
		t.Errorf("Load = %.200v", err)
	}
	t.Logf("%v with right names, %v with wrong ones", right, wrong)
	if wrong > 20*right { // 48 times with a suggestion for each
		t.Errorf("%v with wrong names and %v with right ones", wrong, right)
	}
}

const exampleFile = "../packaging/understudy.yaml"

// switchedOff is a line of the example that is a setting, and not said.
var switchedOff = regexp.MustCompile(`(?m)^#([^ \n]|  )`)

// switchOn makes a file of the example in which everything is said. Files that
// it names are in dir.
func switchOn(tb testing.TB, dir string) string {
	tb.Helper()
	text, err := os.ReadFile(exampleFile)
	if err != nil {
		tb.Fatal(err)
	}
	cert, key := writePair(tb, dir, "example")
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("hunter2\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("correct horse battery\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	peerCert, peerKey := writePair(tb, dir, "proxy-a")
	return strings.NewReplacer(
		"/etc/understudy/peer-ca.pem", peerCert, "/etc/understudy/peer.pem", peerCert, "/etc/understudy/peer.key", peerKey, "/etc/understudy/cluster.secret", secret, "/etc/understudy/etcd.password", token,
		"[db1:5432, db2:5432, db3:5432]", "[192.0.2.11:5432, 192.0.2.12:5432, 192.0.2.13:5432]", "[cache1:6379, cache2:6379]", "[192.0.2.21:6379, 192.0.2.22:6379]", // a cluster has no names
		"/etc/understudy/token", token, "/etc/understudy/probe.password", token, "/etc/understudy/cert.pem", cert, "/etc/understudy/key.pem", key, "/etc/understudy/ca.pem", cert,
		"scripts_dir: /etc/understudy", "scripts_dir: "+dir,
		"/status: {flags", "/flags: {flags", // status_dir is said beside it
	).Replace(switchedOff.ReplaceAllString(string(text), "$1"))
}

func TestExample(t *testing.T) {
	settings, _, err := Load(Given{Flags: map[string][]string{"config": {exampleFile}}})
	if err != nil || len(settings.Relays) != 2 || len(settings.Probes) != 2 || len(settings.HTTP.Routes) != 2 || len(settings.Warnings) != 0 {
		t.Errorf("Load = %+v, %v", settings, err)
	}
}

// Everything that the example has switched off works, and it has every key.
func TestExampleWithEverythingSwitchedOn(t *testing.T) {
	text := switchOn(t, t.TempDir())
	settings, values, err := loadFile(t, text, nil, []string{"HEARTBEAT_TOKEN=x"})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if len(settings.Relays) != 2 || len(settings.Relays[0].Checks) != 7 || len(settings.Probes) != 8 || len(settings.HTTP.Routes) != 10 || len(settings.Warnings) != 1 {
		t.Errorf("%d relays, %d checks, %d probes, %d routes, %q", len(settings.Relays), len(settings.Relays[0].Checks), len(settings.Probes), len(settings.HTTP.Routes), settings.Warnings)
	}
	shown := map[string]bool{}
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		for i, child := range n.Content {
			if n.Kind == yaml.MappingNode && i%2 == 0 {
				shown[child.Value] = true
			}
			walk(child)
		}
	}
	root, err := parseYAML([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	walk(root)
	for _, section := range keySections() {
		for _, row := range section.rows {
			name, other, _ := strings.Cut(strings.TrimSuffix(row.name, ")"), " (or ")
			if i := strings.LastIndexByte(other, '.'); i >= 0 && shown[other[:strings.IndexByte(other, '.')]] {
				other = other[i+1:]
			}
			if !shown[name] && !shown[other] {
				t.Errorf("%s does not show %s (%s)", exampleFile, row.name, section.title)
			}
		}
	}
	// What is there is printed with its line, and what the program falls back to as well.
	for _, v := range values {
		if v.Origin.Kind == File && !regexp.MustCompile(`^u\.yaml:[1-9]\d*$`).MatchString(v.Origin.Name) {
			t.Errorf("%s comes from %q", v.Name, v.Origin.Name)
		}
	}
}

// writePair writes a certificate and its key.
func writePair(tb testing.TB, dir, name string) (cert, key string) {
	tb.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name}}
	certDER, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		tb.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		tb.Fatal(err)
	}
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: certDER}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return cert, key
}

// Any file is accepted or refused: without a panic, with a
// place for each problem, and with settings that keep their promises.
func FuzzFile(f *testing.F) {
	f.Add(switchOn(f, f.TempDir()))
	example, err := os.ReadFile(exampleFile)
	if err != nil {
		f.Fatal(err)
	}
	for section := range strings.SplitSeq(string(example), "\n# ---") {
		f.Add("# ---" + section)
	}
	for _, text := range []string{
		twoRelays, "a: &a [*a]\n", "<<: {a: b}\n", "? [a]\n: b\n", "port: 1\nhosts: h:1\nchecks: [{}]\n", "%YAML 1.1\n---\na: !!binary x\n",
		"http: ':9'\nroutes: {/: {quorum: 2, ports: [1,2], must: x}}\n", "relays: [{name: a}, {name: a}]\n", "\"a\\nb: c\": 1\n",
	} {
		f.Add(text)
	}
	place := regexp.MustCompile(`^(u\.yaml(:[1-9]\d*)?: |--[a-z-]+ or [A-Z_]+|--config: )`)
	f.Fuzz(func(t *testing.T, text string) {
		settings, _, err := loadFile(t, text, nil, nil)
		if err != nil && !errors.Is(err, ErrNothing) {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !place.MatchString(line) {
					t.Errorf("%q: no place in %q", text, line)
				}
			}
			return
		}
		names := map[string]bool{}
		for _, r := range settings.Relays {
			if names[r.Name] || !nameWanted.MatchString(r.Name) || len(r.Hosts) == 0 || len(r.Listen) == 0 || r.Interval <= 0 || r.Rise < 1 {
				t.Errorf("%q made the relay %+v", text, r)
			}
			names[r.Name] = true
			for _, a := range r.Checks {
				checkCheck(t, text, a)
			}
		}
		for _, p := range settings.Probes {
			if names[p.Name] || !nameWanted.MatchString(p.Name) || p.Rise < 1 || p.Fall < 1 || p.Jitter > p.Interval {
				t.Errorf("%q made the probe %+v", text, p)
			}
			names[p.Name] = true
			checkCheck(t, text, p.Check)
		}
		paths := map[string]bool{}
		for _, r := range settings.HTTP.Routes {
			kinds := 0
			for _, is := range []bool{r.Verdict != nil, r.Flags != "", r.Heartbeat != nil, r.Endpoints != nil} {
				if is {
					kinds++
				}
			}
			if paths[r.Path] || !strings.HasPrefix(r.Path, "/") || kinds != 1 {
				t.Errorf("%q made the route %+v", text, r)
			}
			paths[r.Path] = true
			if v := r.Verdict; v != nil {
				for _, m := range v.Members {
					if !names[m.Name] || m.Must && m.Ignore {
						t.Errorf("%q made the member %+v", text, m)
					}
				}
				if v.Timeout <= 0 || v.Timeout > 9*time.Second || len(v.Ports)+len(v.Members) == 0 {
					t.Errorf("%q made the verdict %+v", text, v)
				}
			}
		}
	})
}

// checkCheck reports a check that has not one kind, or no times.
func checkCheck(t *testing.T, text string, a Check) {
	t.Helper()
	kinds := 0
	for _, is := range []bool{a.HTTP != nil, a.TCP != nil, a.Exec != nil, a.Flag != nil, a.VIP != nil} {
		if is {
			kinds++
		}
	}
	if kinds != 1 || a.Interval <= 0 || a.Timeout <= 0 {
		t.Errorf("%q made the check %+v", text, a)
	}
}

// A certificate that was renewed in its place is another setting, so that a
// reload takes it.
func TestRenewedCertificateIsAnotherSetting(t *testing.T) {
	dir := t.TempDir()
	cert, _ := writePair(t, dir, "one")
	text := "http: ':1'\nprobes: {p: {http: {url: 'https://h/', tls: {ca: " + cert + "}}}}\nroutes: {/p: {probes: [p]}}\n"
	var seen []string
	for _, renew := range []bool{false, false, true} {
		if renew {
			writePair(t, dir, "one")
		}
		settings, _, err := loadFile(t, text, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, settings.Probes[0].HTTP.TLS.Digest)
	}
	if seen[0] == "" || seen[0] != seen[1] || seen[1] == seen[2] {
		t.Errorf("digests %q, want the same twice and then another", seen)
	}
}
