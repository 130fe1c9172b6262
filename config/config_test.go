package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"understudy/internal/criteria"
)

// load runs Load on flags, each written "name=value", and variables.
func load(t *testing.T, flags, env []string) (Settings, []Value, error) {
	t.Helper()
	g := Given{Flags: map[string][]string{}, Environ: env}
	for _, flag := range flags {
		name, value, _ := strings.Cut(flag, "=")
		lookup(name) // panics on a slip in the test
		g.Flags[name] = append(g.Flags[name], value)
	}
	return Load(g)
}

// exported lets cmp compare settings.
var exported = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, Secret{}), cmpopts.IgnoreUnexported(Settings{})}

func TestDefaults(t *testing.T) {
	got, values, err := load(t, []string{"port=8080", "hosts=a:1,b:2"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Settings{
		Relays: []Relay{{
			Name: "8080", Unnamed: true,
			Listen: []string{":8080"}, Hosts: []string{"a:1", "b:2"}, SocketMode: 0o660,
			PongPath: "/ping",
			Interval: time.Second, FastInterval: 100 * time.Millisecond, Timeout: time.Second, CheckTCP: "auto",
			Rise: 2, Fall: 3,
			CheckInterval: 2 * time.Second, CheckTimeout: 5 * time.Second, TriggerTimeout: 30 * time.Second, StandbyTimeout: 10 * time.Minute,
			MaxBackoff: time.Minute, DNSHold: 30 * time.Second, Stay: 3 * time.Second, Hold: 10 * time.Second,
			ConnectTimeout: 3 * time.Second, UserTimeout: 20 * time.Second, DrainTimeout: 30 * time.Second, OpenRate: OpenAuto, Replay: "auto", OnSilence: "auto",
			Canary: Canary{Slow: 200 * time.Millisecond},
		}},
		Log: Log{Level: "info", Verdicts: "changes", Output: "stderr"},

		Control: ControlAuto, Spin: true,
	}
	if diff := cmp.Diff(want, got, exported); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	if len(values) != len(table) {
		t.Errorf("%d values for %d settings", len(values), len(table))
	}
}

func TestEverySettingReachesItsField(t *testing.T) {
	dir := t.TempDir()
	got, _, err := load(t, []string{
		"bind=127.0.0.1:80", "bind=unix:/run/x", "accept-proxy=true", "allow=10.1.2.3/8,::1,127.0.0.1", "max-connections=7",
		"hosts= [::1]:81 , unix:/x", "hosts=c:3", "interval=5", "fast-interval=0.5", "timeout=2s", "check-tcp=mysql", "rise=4", "fall=5",
		"pong-path=/p?q=1", "max-backoff=1", "stay=12", "check-host=/c", "check-interval=3s", "check-timeout=4s", "on-failover=/f",
		"trigger-timeout=6s", "trigger-policy=abort", "on-standby=/r", "standby-timeout=7m", "on-event=/e", "webhook=https://x.example/T0KEN", "scripts-dir=" + dir, "hold=0", "fence=drain=30s", "failback=10m", "open-rate=70", "replay=off", "on-silence=alarm",
		"connect-timeout=7s", "idle-timeout=8s", "user-timeout=0", "drain-timeout=9s", "send-proxy=v2", "connection-log=true", "source=::1",
		"canary=2s", "canary-slow=1s", `canary-send=a\n`, "canary-expect=b",
		"loops=3", "spin=off", "http=:9001", "lport=3001,3000", "ping-path=/a,/b/", "ping-timeout=3s", "fail-status=503",
		"log-level=debug", "verdict-log=bad", "log-format=json", "log-output=stdout",
		"endpoints=http://one.example/a,https://two.example", "fanout=true", "terminal-responses=200,4xx", "preserve-host=true", "endpoint-timeout=1",
		"status-dir=/d", "control=/run/c", "state-dir=/var/s", "lame-duck=5",
		"freebind=true", "socket-mode=0600", "socket-owner=12345", "socket-group=root",
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ping := &Verdict{
		Ports: []int{3001, 3000}, Expect: criteria.Expect{Status: []string{"200"}, Body: "pong"}, Members: []Member{{Name: "80"}},
		Timeout: 3 * time.Second, FailStatus: "503",
	}
	want := Settings{
		Relays: []Relay{{
			Name: "80", Unnamed: true,
			Listen: []string{"127.0.0.1:80", "unix:/run/x"}, Hosts: []string{"[::1]:81", "unix:/x", "c:3"},
			Freebind: true, SocketMode: 0o600, SocketOwner: "12345", SocketGroup: "root",
			PongPath: "/p?q=1",
			Interval: 5 * time.Second, FastInterval: 500 * time.Millisecond, Timeout: 2 * time.Second, CheckTCP: "mysql",
			Rise: 4, Fall: 5,
			CheckHost: "/c", CheckInterval: 3 * time.Second, CheckTimeout: 4 * time.Second,
			OnFailover: "/f", TriggerTimeout: 6 * time.Second, TriggerAbort: true,
			OnStandby: "/r", StandbyTimeout: 7 * time.Minute, OnEvent: "/e", Webhook: Secret{"https://x.example/T0KEN"},
			MaxBackoff: time.Second, DNSHold: 30 * time.Second, Stay: 12 * time.Second, Fence: Fence{Drain: 30 * time.Second}, Failback: 10 * time.Minute, OpenRate: 70, Replay: "off", OnSilence: "alarm",
			ConnectTimeout: 7 * time.Second, IdleTimeout: 8 * time.Second, DrainTimeout: 9 * time.Second,
			MaxConnections: 7, SendProxy: 2, AcceptProxy: true, ConnectionLog: true,
			Allow:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("127.0.0.1/32")},
			Source: netip.MustParseAddr("::1"),
			Canary: Canary{Every: 2 * time.Second, Slow: time.Second, Send: "a\n", Expect: "b"},
		}},
		HTTP: HTTP{Listen: ":9001", Routes: []Route{
			{Path: "/a", Verdict: ping}, {Path: "/b/", Verdict: ping},
			{Path: "/status", Flags: "/d"},
			{Path: "/", Endpoints: &Endpoints{
				URLs: []string{"http://one.example/a", "https://two.example"}, Race: true, Status: []string{"2xx", "4xx"},
				Timeout: time.Second, Total: time.Second, PreserveHost: true,
			}},
		}},
		Log: Log{Level: "debug", Verdicts: "bad", JSON: true, Output: "stdout"},

		Control: "/run/c", StateDir: "/var/s", LameDuck: 5 * time.Second, Loops: 3,
	}
	if diff := cmp.Diff(want, got, exported); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

func TestFlagOverEnvironmentOverDefault(t *testing.T) {
	for _, tt := range []struct {
		name       string
		flags, env []string
		want       string // value and origin of rise
	}{
		{"default", nil, nil, "2 default"},
		{"environment over default", nil, []string{"RISE=5"}, "5 environment RISE"},
		{"flag over environment", []string{"rise=7"}, []string{"RISE=5"}, "7 flag --rise"},
		{"an empty variable is none", nil, []string{"RISE="}, "2 default"},
		{"the last of a repeated flag", []string{"rise=7", "rise=8"}, nil, "8 flag --rise"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, values, err := load(t, append(tt.flags, "port=1", "hosts=a:1"), tt.env)
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(values, func(v Value) bool { return v.Flag == "rise" })
			if got := values[i].Text + " " + values[i].Origin.String(); got != tt.want {
				t.Errorf("rise = %q, want %q", got, tt.want)
			}
		})
	}
}

// Everybody who reaches the admin listener may read it, unless there is a token: that
// deserves a warning where other machines reach it.
func TestAdminWithoutTokenIsAWarning(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(secret, []byte(" word\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		flags []string
		warns bool
		token string
	}{
		{[]string{"admin=127.0.0.1:9"}, false, ""},
		{[]string{"admin=[::1]:9"}, false, ""},
		{[]string{"admin=localhost:9"}, false, ""},
		{[]string{"admin=:9"}, true, ""},
		{[]string{"admin=192.0.2.1:9"}, true, ""},
		{[]string{"admin=:9", "admin-token-file=" + secret}, false, "word"},
	} {
		got, _, err := load(t, append([]string{"port=1", "hosts=a:1"}, tt.flags...), nil)
		if err != nil {
			t.Fatal(err)
		}
		warned := slices.ContainsFunc(got.Warnings, func(w string) bool { return strings.Contains(w, "--admin-token-file") })
		if warned != tt.warns || got.Admin.Token.Value() != tt.token {
			t.Errorf("%q: warnings %q and token %q, want a warning: %v and %q", tt.flags, got.Warnings, got.Admin.Token.Value(), tt.warns, tt.token)
		}
	}
	if _, _, err := load(t, []string{"port=1", "hosts=a:1", "admin-token-file=" + secret}, nil); err == nil || !strings.Contains(err.Error(), "needs --admin") {
		t.Errorf("a token without a listener: %v", err)
	}
}

func TestListsAreReplacedNotMerged(t *testing.T) {
	got, _, err := load(t, []string{"port=1", "hosts=a:1"}, []string{"HOSTS=b:1,c:1"})
	if err != nil || !slices.Equal(got.Relays[0].Hosts, []string{"a:1"}) {
		t.Errorf("hosts = %v, %v, want [a:1]", got.Relays, err)
	}
}

func TestEnvironmentNames(t *testing.T) {
	for flag, env := range map[string]string{
		"port": "PORT", "max-backoff": "MAX_BACKOFF", "pong-port": "PONG_PORTS", "lport": "LPORTS", "scripts-dir": "SCRIPTS_DIR",
	} {
		if got := lookup(flag).Env; got != env {
			t.Errorf("variable of --%s is %s, want %s", flag, got, env)
		}
	}
	seen := map[string]bool{}
	for _, s := range table {
		if seen[s.Flag] || seen[s.Env] || s.Short != 0 && seen["-"+string(s.Short)] {
			t.Errorf("--%s, -%c or %s is taken", s.Flag, s.Short, s.Env)
		}
		seen[s.Flag], seen[s.Env], seen["-"+string(s.Short)] = true, true, true
	}
}

// Each wrong value is refused with a text that names the setting as it was
// written, the value, and what would be right.
func TestProblems(t *testing.T) {
	many := strings.Repeat("a:1,", 1_000_000) + "b:2"
	for _, tt := range []struct {
		flags, env []string
		want       string
	}{
		{flags: []string{"rise=0"}, want: `--rise: "0" is not a number from 1 to 1000`},
		{env: []string{"RISE=x"}, want: `RISE: "x" is not a number from 1 to 1000`},
		{env: []string{"PORT=0"}, want: `PORT: "0" is not a number from 1 to 65535`},
		{env: []string{"PORT=65536"}, want: `PORT: "65536" is not a number`},
		{env: []string{"PORT=-1"}, want: `PORT: "-1" is not a number`},
		{env: []string{"PORT=99999999999999999999"}, want: `PORT: "99999999999999999999" is not a number`},
		{env: []string{"PORT=8080x"}, want: `PORT: "8080x" is not a number`},
		{flags: []string{"max-backoff=1e30"}, want: `--max-backoff: "1e30" is not a duration: want seconds, or`},
		{flags: []string{"max-backoff=NaN"}, want: `--max-backoff: "NaN" is not a duration`},
		{flags: []string{"max-backoff=0.5"}, want: `--max-backoff: "0.5" is shorter than 1s`},
		{flags: []string{"hold=-5"}, want: `--hold: "-5" is negative`},
		{flags: []string{"hold=99999999999999"}, want: `--hold: "99999999999999" is not a duration`},
		{flags: []string{"hold=20000000h"}, want: `--hold: "20000000h" is not a duration`},
		{flags: []string{"hold=100000h"}, want: `--hold: "100000h" is longer than ten years`},
		{flags: []string{"interval=0"}, want: `--interval: "0" is shorter than 1ms`},
		{flags: []string{"hosts=a:1,"}, want: `--hosts: "a:1,": item 2 is empty`},
		{flags: []string{"hosts=a:1,,b:2"}, want: `--hosts: "a:1,,b:2": item 2 is empty`},
		{flags: []string{"hosts="}, want: `--hosts: "": item 1 is empty`},
		{flags: []string{"hosts=a"}, want: `--hosts: "a" has no port: want host:port`},
		{flags: []string{"hosts=a:"}, want: `--hosts: "a:" has port "", which is not a number`},
		{flags: []string{"hosts=:80"}, want: `--hosts: ":80" has no host`},
		{flags: []string{"hosts=a:0"}, want: `--hosts: "a:0" has port "0", which is not a number from 1 to 65535`},
		{flags: []string{"hosts=a:65536"}, want: `has port "65536"`},
		{flags: []string{"hosts=::1:80"}, want: `--hosts: "::1:80" is ambiguous: want an IPv6 address in brackets`},
		{flags: []string{"hosts=[::1]"}, want: `--hosts: "[::1]" has no port`},
		{flags: []string{"hosts=[::1:80"}, want: `bracket that is not closed`},
		{flags: []string{"hosts=[1.2.3.4]:80"}, want: `no IPv6 address`},
		{flags: []string{"hosts=300.1.1.1:80"}, want: `no IPv4 address`},
		{flags: []string{"hosts=a b:80"}, want: `--hosts: "a b:80" has a space in it: separate addresses with commas`},
		{flags: []string{"hosts=http://a:80"}, want: `--hosts: "http://a:80" is a URL: want host:port alone, without "http://" and a path`},
		{flags: []string{"hosts=a:1;b:2"}, want: `--hosts: "a:1;b:2" has a semicolon in it: separate addresses with commas`},
		{flags: []string{"http=http://:80"}, want: `--http: "http://:80" is a URL`},
		{flags: []string{"hosts=a..b:80"}, want: `labels of 1 to 63 bytes`},
		{flags: []string{"hosts=a:1,b:1,A:1"}, want: `--hosts: "A:1" is listed twice`},
		{flags: []string{"hosts=unix:x"}, want: `--hosts: "unix:x" needs an absolute path`},
		{flags: []string{"hosts=unix:/" + strings.Repeat("x", 200)}, want: `longer than 107 bytes`},
		{flags: []string{"hosts=" + many}, want: `--hosts: 1000001 hosts are more than 1000`},
		{flags: []string{"hosts=127.0.0.1:80", "port=80"}, want: `--hosts: "127.0.0.1:80" is this relay itself (--port)`},
		{flags: []string{"bind=nonsense:80"}, want: `--bind: "nonsense:80" does not begin with an IP address`},
		{flags: []string{"bind=80"}, want: `--bind: "80" is a port alone: want address:port, like :80`},
		{flags: []string{"bind=:80,:80"}, want: `--bind: ":80" is listed twice`},
		{flags: []string{"bind=:80"}, env: []string{"PORT=80"}, want: `PORT: excludes --bind: set one of them`},
		{flags: []string{"http=:80", "bind=:80"}, want: `--http: ":80" is the address of --bind already`},
		{flags: []string{"port=80"}, env: []string{"HOSTS="}, want: `--hosts or HOSTS: missing: where to relay to (an HTTP server alone, also one for flag files, is --http IP:PORT)`},
		{env: []string{"HOSTS=a:1"}, want: `--port or PORT (or --bind or BIND): missing: where to listen`},
		{flags: []string{"http=:80"}, want: `--http: has nothing to answer`},
		{flags: []string{"port=80", "hosts=a:1", "lport=3000"}, want: `--lport: needs --http`},
		{flags: []string{"ping-timeout=10s"}, want: `--ping-timeout: "10s" is longer than 9s`},
		{flags: []string{"ping-path=/a?b"}, want: `--ping-path: "/a?********" is not a path`},
		{flags: []string{"pong-path=ping"}, want: `--pong-path: "ping" is not a path`},
		{flags: []string{"trigger-policy=abrot"}, want: `is unknown: want continue or abort (did you mean abort?)`},
		{flags: []string{"fence=drain"}, want: `--fence: "drain" is unknown: want now, drain=D (like drain=30s) or keep`},
		{flags: []string{"fence=drain=x"}, want: `--fence: "drain=x" has a time that is not a duration`},
		{flags: []string{"failback=sometimes"}, want: `or never`},
		{flags: []string{"failback=0"}, want: `--failback: "0" is shorter than 1ms, or never`},
		{flags: []string{"send-proxy=3"}, want: `want off, v1 or v2`},
		{flags: []string{"allow=10.0.0.0/33"}, want: `--allow: "10.0.0.0/33" is not a network`},
		{flags: []string{"source=eth0"}, want: `--source: "eth0" is not an IP address`},
		{flags: []string{"source=::1", "port=1", "hosts=1.2.3.4:5"}, want: `--source: "::1" cannot reach host "1.2.3.4:5"`},
		{flags: []string{"fail-status=200"}, want: `--fail-status: "200" is not a number from 400 to 599, auto or keep`},
		{flags: []string{"log-output=sylog"}, want: `--log-output: "sylog" is unknown: want stderr, stdout or syslog (did you mean syslog?), gelf+tcp://host:port`},
		{flags: []string{"log-output=gelf+udp://a b"}, want: `--log-output: "gelf+udp://a b" has a space in it: separate addresses with commas`},
		{flags: []string{"terminal-responses=250"}, want: `--terminal-responses: "250" is not a class of status: want 100, 200, 300, 400 or 500`},
		{flags: []string{"http=:80", "endpoints=localhost:8000"}, want: `--endpoints: "localhost:8000" is not a URL with http or https`},
		{flags: []string{"endpoints=http://a"}, want: `--endpoints: needs --http`},
		{flags: []string{"http=:80", "endpoints=http://a,"}, want: `--endpoints: "http://a,": item 2 is empty`},
		{flags: []string{"http=:80", "endpoints=http://a", "ping-path=/", "lport=1"}, want: `--endpoints: / is answered by --ping-path already`},
		{flags: []string{"http=:80", "lport=1", "status-dir=/d", "ping-path=/status"}, want: `--ping-path: /status is answered from the flags in --status-dir`},
		{flags: []string{"http=:80", "lport=1", "http-cert=/x"}, want: `--http-cert: the certificate needs a key`},
		{flags: []string{"http=:80", "lport=1", "http-cert=/nowhere/c", "http-key=/nowhere/k"}, want: `--http-key: open /nowhere/k: no such file`},
		{flags: []string{"port=1", "hosts=a:1", "admin-token-file=/nowhere/t"}, want: `--admin-token-file: open /nowhere/t: no such file`},
		{flags: []string{"port=1", "hosts=a:1", "admin-token-file=/dev/null"}, want: `--admin-token-file: "/dev/null" is not a regular file`},
		{flags: []string{"port=1", "hosts=a:1", "http=:80", "admin=:80"}, want: `--admin: ":80" is the address of --http already`},
		{flags: []string{"port=1", "hosts=a:1", "admin=unix:/a"}, want: `--admin: "unix:/a" is a unix socket`},
		{flags: []string{"config=/nowhere/at/all"}, want: `--config: open /nowhere/at/all: no such file`},
		{env: []string{"CONFIG=/dev/zero"}, want: `CONFIG: "/dev/zero" is not a regular file but a device`},
		{env: []string{"ACCEPT_PROXY=maybe"}, want: `ACCEPT_PROXY: "maybe" is neither true nor false`},
		{flags: []string{"check-host="}, want: `--check-host: is empty`},
		{flags: []string{"scripts-dir=/nowhere/at/all"}, want: `--scripts-dir: stat /nowhere/at/all: no such file or directory`},
	} {
		_, _, err := load(t, tt.flags, tt.env)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Load(%.80q, %q) = %v, want %q in it", tt.flags, tt.env, err, tt.want)
		}
	}
}

func TestEveryProblemAtOnce(t *testing.T) {
	_, _, err := load(t, []string{"rise=0", "hosts=a,b:0"}, []string{"PORT=x", "HOLD=-1"})
	if err == nil {
		t.Fatal("no error")
	}
	want := []string{"PORT: ", "--hosts: \"a\"", "--hosts: \"b:0\"", "--rise: ", "HOLD: "}
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

func TestNothing(t *testing.T) {
	if _, _, err := load(t, nil, []string{"HOSTS=", "HOME=/x"}); !errors.Is(err, ErrNothing) {
		t.Errorf("Load = %v, want ErrNothing", err)
	}
}

func TestAnywhere(t *testing.T) {
	file := "relays: [{name: orders, hosts: [a:1]}, {name: mail, port: 25, hosts: [b:1]}]\n"
	got, _, err := Load(Given{
		Flags: map[string][]string{"config": {"x.yaml"}}, Anywhere: true,
		ReadFile: func(string) ([]byte, error) { return []byte(file), nil },
	})
	if err != nil || len(got.Relays) != 2 {
		t.Errorf("Load = %+v, %v, want two relays", got, err)
	}
	got, _, err = Load(Given{Flags: map[string][]string{"hosts": {"a:1"}}, Anywhere: true})
	if err != nil || len(got.Relays) != 1 {
		t.Errorf("Load = %+v, %v, want one relay", got, err)
	}
}

func TestPassedSockets(t *testing.T) {
	hosts := map[string][]string{"hosts": {"a:1"}}
	one := "relays: [{name: orders, hosts: [a:1]}]\n"
	two := "relays: [{name: orders, hosts: [a:1]}, {name: mail, hosts: [b:1]}]\n"
	for _, tt := range []struct {
		name    string
		flags   map[string][]string
		file    string
		sockets []string
		want    [][]int
		problem string // instead
	}{
		{"the only relay", hosts, "", []string{"unknown"}, [][]int{{0}}, ""},
		{"all of them", hosts, "", []string{"understudy.socket", "", "main"}, [][]int{{0, 1, 2}}, ""},
		{"the only one of a file", nil, one, []string{"understudy.socket", "orders"}, [][]int{{0, 1}}, ""},
		{"another name", hosts, "", []string{"mail"}, nil, `passed socket "mail": there is no relay of that name`},
		{"by name", nil, two, []string{"mail", "orders", "mail"}, [][]int{{1}, {0, 2}}, ""},
		{"beside an address", nil, "relays: [{name: orders, hosts: [a:1]}, {name: mail, port: 25, hosts: [b:1]}]\n", []string{"orders"}, [][]int{{0}, nil}, ""},
		{"no name among several", nil, two, []string{"mail", "orders", "understudy.socket"}, nil, `passed socket "understudy.socket": which relay is it for?`},
		{"none for one of several", nil, two, []string{"mail"}, nil, "needs listen (or port)"},
		{"no hosts", map[string][]string{"http": {":1"}}, "", []string{"understudy.socket"}, nil, "missing: where to relay to"},
		{"escaped", hosts, "", []string{"a\nb"}, nil, `passed socket "a\nb": there is no relay of that name`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := Given{Flags: tt.flags, Sockets: tt.sockets}
			if tt.file != "" {
				g.Flags = map[string][]string{"config": {"x.yaml"}}
				g.ReadFile = func(string) ([]byte, error) { return []byte(tt.file), nil }
			}
			got, _, err := Load(g)
			if tt.problem != "" {
				if err == nil || !strings.Contains(err.Error(), tt.problem) {
					t.Errorf("%v, want %s", err, tt.problem)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var all [][]int
			for _, r := range got.Relays {
				all = append(all, r.Sockets)
			}
			if !reflect.DeepEqual(all, tt.want) {
				t.Errorf("sockets %v, want %v", all, tt.want)
			}
		})
	}
}

func TestHTTPAlone(t *testing.T) {
	got, _, err := load(t, []string{"http=localhost:9001", "lport=3000", "fail-status=keep"}, nil)
	if err != nil || len(got.Relays) != 0 || got.HTTP.Listen != "127.0.0.1:9001" || got.HTTP.Routes[0].Verdict.FailStatus != "keep" {
		t.Errorf("Load = %+v, %v", got, err)
	}
}

func TestScriptsDir(t *testing.T) {
	dir := t.TempDir()
	env := []string{"PORT=1", "HOSTS=a:1", "SCRIPTS_DIR=" + dir}

	got, _, err := load(t, nil, env)
	if err != nil || got.Relays[0].CheckHost != "" || got.Relays[0].OnFailover != "" {
		t.Errorf("empty directory: %+v, %v, want no scripts", got, err)
	}

	check, triggers := filepath.Join(dir, "check-host.sh"), filepath.Join(dir, "triggers.d")
	if err := os.Symlink("/leads/nowhere", check); err != nil { // there, though it leads nowhere
		t.Fatal(err)
	}
	if err := os.Mkdir(triggers, 0o755); err != nil {
		t.Fatal(err)
	}
	got, values, err := load(t, []string{"on-failover=/mine"}, env)
	if err != nil || got.Relays[0].CheckHost != check || got.Relays[0].OnFailover != "/mine" {
		t.Errorf("Load = %+v, %v, want %s and /mine", got, err, check)
	}
	for _, v := range values {
		if v.Flag == "check-host" && v.Origin.Name != "SCRIPTS_DIR" {
			t.Errorf("origin of check-host is %v, want SCRIPTS_DIR", v.Origin)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "60": time.Minute, "1.5": 1500 * time.Millisecond, ".5": 500 * time.Millisecond, "2.": 2 * time.Second,
		"250ms": 250 * time.Millisecond, "1m30s": 90 * time.Second, "1h": time.Hour,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", " ", "-1", "-0", "1e30", "NaN", "Inf", "0x10", "1_000", "1 s", "s", ".", "9223372037", "1d", "1,5"} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("ParseDuration(%q) = %v, want an error", text, got)
		}
	}
}

func TestNearest(t *testing.T) {
	words := []string{"hosts", "hold", "port", "max-backoff"}
	for typed, want := range map[string]string{
		"hsots": "hosts", "host": "hosts", "prot": "port", "max-backof": "max-backoff", "maxbackoff": "max-backoff", "zzz": "", "": "",
	} {
		if got := Nearest(typed, words); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", typed, got, want)
		}
	}
}

func FuzzHosts(f *testing.F) {
	f.Add("db1:5432, [::1]:80,unix:/run/x.sock")
	f.Add("a:1,,a:0,::1:80,[fe80::1%eth0]:1")
	f.Fuzz(func(t *testing.T, text string) {
		got, _, err := Load(Given{Flags: map[string][]string{"port": {"1"}, "hosts": {text}}})
		if err != nil {
			return
		}
		list := got.Relays[0].Hosts
		if len(list) == 0 || len(list) > maxHosts {
			t.Fatalf("%q gave %d hosts", text, len(list))
		}
		again, _, err := Load(Given{Flags: map[string][]string{"port": {"1"}, "hosts": list}})
		if err != nil || !slices.Equal(again.Relays[0].Hosts, list) {
			t.Errorf("%q gave %q, which gave %v, %v", text, list, again.Relays, err)
		}
	})
}

func FuzzDuration(f *testing.F) {
	for _, text := range []string{"60", "1.5", "1e30", "-1", "250ms", "NaN", "9223372037"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseDuration(text)
		if err != nil {
			return
		}
		if d < 0 || d > maxDuration {
			t.Fatalf("ParseDuration(%q) = %v", text, d)
		}
		if again, err := ParseDuration(d.String()); err != nil || again != d {
			t.Errorf("ParseDuration(%q) = %v, which re-parses to %v, %v", text, d, again, err)
		}
	})
}

func FuzzPort(f *testing.F) {
	for _, text := range []string{"8080", "0", "65536", "-1", " 80 ", "1e3", "０"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, _, err := Load(Given{Flags: map[string][]string{"hosts": {"a:1"}}, Environ: []string{"PORT=" + text}})
		if err != nil {
			return
		}
		n, err := port(got.Relays[0].Listen[0][1:])
		if err != nil || n < 1 || n > 65535 {
			t.Errorf("PORT=%q listens on %q", text, got.Relays[0].Listen)
		}
	})
}

func ExampleLoad() {
	settings, values, err := Load(Given{
		Flags:   map[string][]string{"hosts": {"db1:5432,db2:5432"}},
		Environ: []string{"PORT=5432", "RISE="},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(settings.Relays[0].Hosts)
	for _, v := range values {
		if v.Flag == "port" || v.Flag == "rise" {
			fmt.Println(v.Flag, v.Text, v.Origin)
		}
	}
	// Output:
	// [db1:5432 db2:5432]
	// port 5432 environment PORT
	// rise 2 default
}

func TestNameOfARelayWithoutOne(t *testing.T) {
	for listen, want := range map[string]string{
		":5432": "5432", "[::1]:80": "80", "127.0.0.1:0": "main", "unix:/run/db/orders.sock": "orders.sock",
		"unix:/run/a b/.c d": "c_d", "unix:/run/...": "main", ":25,:587": "25",
	} {
		got, _, err := load(t, []string{"bind=" + listen, "hosts=a:1"}, nil)
		if err != nil {
			t.Errorf("%s: %v", listen, err)
		} else if r := got.Relays[0]; r.Name != want || !r.Unnamed {
			t.Errorf("a relay on %s is called %q, want %q", listen, r.Name, want)
		}
	}
	for _, name := range []string{"main", "80"} {
		got, _, err := loadFile(t, "listen: \":80\"\nhosts: h:1\nhttp: \":81\"\nroutes: {/: {relays: \""+name+"\"}}\n", nil, nil)
		if err != nil || got.HTTP.Routes[0].Verdict.Members[0].Name != "80" {
			t.Errorf("a route does not find it by the name %s: %v", name, err)
		}
	}
	got, _, err := loadFile(t, "listen: \":80\"\nhosts: h:1\nhttp: \":81\"\nprobes: {\"80\": {tcp: {address: \"h:1\"}}}\nroutes: {/: {relays: main, probes: \"80\"}}\n", nil, nil)
	if err != nil || got.Relays[0].Name != MainRelay {
		t.Errorf("beside a probe called 80 it is called %v, %v, want main", got.Relays, err)
	}
}

// A host or a port that is listed twice under another spelling is a warning.
func TestWarningsOfTwins(t *testing.T) {
	for _, tt := range []struct {
		flags map[string][]string
		want  string
	}{
		{map[string][]string{"hosts": {"a:1,A.:1"}}, `--hosts: "a:1" and "A.:1" are one address: a failover between them changes nothing`},
		{map[string][]string{"hosts": {"localhost:1,127.0.0.1:1"}}, `--hosts: "localhost:1" and "127.0.0.1:1" are one address: a failover between them changes nothing`},
		{map[string][]string{"hosts": {"[::1]:1,[0:0::1]:01"}}, `--hosts: "[::1]:1" and "[0:0::1]:01" are one address: a failover between them changes nothing`},
		{map[string][]string{"hosts": {"a:1,a:2,b:1"}}, ""},
		{map[string][]string{"hosts": {"a:1"}, "pong-port": {"3", "3"}}, `--pong-port: port 3 is listed twice, and requested twice`},
		{map[string][]string{"hosts": {"a:1"}, "http": {":9001"}, "lport": {"3", "4", "3"}}, `--lport: port 3 is listed twice, and requested twice`},
	} {
		tt.flags["port"] = []string{"80"}
		settings, _, err := Load(Given{Flags: tt.flags})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(settings.Warnings, "\n"); got != tt.want {
			t.Errorf("%v: warnings %q, want %q", tt.flags, got, tt.want)
		}
	}
}
