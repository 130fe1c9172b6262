//go:build linux

package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// recipes is the page whose blocks are run here.
const recipes = "../docs/verdicts.md"

// recipe is a block of that page, with changes; see recipeOf.
func recipe(t *testing.T, name string, changes ...string) string {
	t.Helper()
	return recipeOf(t, recipes, name, changes...)
}

// recipeOf is a block of a page, with changes: what stands there and what the
// test has instead, in turn.
func recipeOf(t *testing.T, path, name string, changes ...string) string {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(page), "<!-- recipe: "+name+" -->\n```")
	_, rest, _ = strings.Cut(rest, "\n")
	block, _, closed := strings.Cut(rest, "\n```\n")
	if !found || !closed {
		t.Fatalf("%s has no recipe %s", path, name)
	}
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(block, changes[i]) {
			t.Fatalf("recipe %s has no %q", name, changes[i])
		}
	}
	return strings.NewReplacer(changes...).Replace(block) + "\n"
}

// states of a service
const (
	isWell  = "well"
	isWrong = "wrong"  // 200, and something else in the body
	isIll   = "ill"    // 500
	isLost  = "lost"   // 404
	isMute  = "mute"   // says nothing
	isTorn  = "broken" // hangs up
)

// service is a local HTTP service whose state is the test's to choose.
type service struct {
	addr  string
	well  string // the body that it answers then
	state atomic.Value

	mu    sync.Mutex // guards asked
	asked []asked
}

// asked is a request that a service got.
type asked struct {
	at              time.Time
	line, body      string // line is method and target
	agent, monitor  string // User-Agent and X-Monitor
	host, forwarded string
}

// newService starts a service that is well. It ends with the test.
func newService(t *testing.T, well string) *service {
	t.Helper()
	listener := listen(t)
	s := &service{addr: listener.Addr().String(), well: well}
	s.state.Store(isWell)
	server := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return s
}

func (s *service) port() string { return s.addr[strings.LastIndexByte(s.addr, ':')+1:] }

func (s *service) is(state string) { s.state.Store(state) }

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	at := time.Now()
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.asked = append(s.asked, asked{
		at: at, line: r.Method + " " + r.RequestURI, body: string(body), agent: r.UserAgent(), monitor: r.Header.Get("X-Monitor"),
		host: r.Host, forwarded: r.Header.Get("X-Forwarded-For"),
	})
	s.mu.Unlock()
	w.Header().Set("X-Service", s.addr)
	switch s.state.Load() {
	case isWell:
		io.WriteString(w, s.well)
	case isWrong:
		io.WriteString(w, "maintenance")
	case isIll:
		w.WriteHeader(http.StatusInternalServerError)
		io.WriteString(w, "broken")
	case isLost:
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, "nobody knows")
	case isMute:
		<-r.Context().Done()
	case isTorn:
		panic(http.ErrAbortHandler)
	}
}

// requests are those that it got so far.
func (s *service) requests() []asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// house is a machine with services on it, and the program that answers for
// them by the configuration file of the recipes.
type house struct {
	*proctest.Understudy
	t        *testing.T
	host     *proctest.Host
	services [2]*service
	elastic  *service
	apis     [2]*service

	orders, http, agent, tcp string // addresses
	flags, dead, token       string // paths
	config                   string
}

const houseToken = "a-token-of-the-house"

// newHouse starts the services and the program.
func newHouse(t *testing.T) *house {
	t.Helper()
	dir := t.TempDir()
	h := &house{
		t:        t,
		host:     (&proctest.Host{Name: "a"}).Start(t),
		services: [2]*service{newService(t, "pong"), newService(t, "pong")},
		elastic:  newService(t, "1475871424 16:17:04 elasticsearch green 1 1"),
		apis:     [2]*service{newService(t, "one"), newService(t, "two")},
		orders:   freeAddr(t), http: freeAddr(t), agent: freeAddr(t), tcp: freeAddr(t),
		flags: filepath.Join(dir, "flags"), dead: filepath.Join(dir, "dead"), token: filepath.Join(dir, "token"),
		config: filepath.Join(dir, "understudy.yaml"),
	}
	text := recipe(t, "understudy.yaml",
		":9001", h.http, ":5432\"]", h.orders+"\"]", "db1:5432, db2:5432", h.host.Addr(),
		"localhost:9200", h.elastic.addr, "interval: 3s", "interval: 100ms",
		"3000, 3001", h.services[0].port()+", "+h.services[1].port(), ":9101", h.agent, ":9102", h.tcp,
		"/var/run/http_status", h.flags, "/var/lib/understudy/dead", h.dead, "/etc/understudy/token", h.token,
		"one.example", h.apis[0].addr, "two.example", h.apis[1].addr)
	err := errors.Join(os.Mkdir(h.flags, 0o755), os.Mkdir(h.dead, 0o755),
		os.WriteFile(h.token, []byte(houseToken+"\n"), 0o600), os.WriteFile(h.config, []byte(text), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	h.start()
	return h
}

// start starts the program and waits until it answers for its house.
func (h *house) start() {
	h.t.Helper()
	h.Understudy = start(h.t, "--config", h.config)
	h.WaitLog("http listener ready")
	h.Until("all is well", func() bool {
		code, body := get(h.t, h.url("/ping"))
		return code == http.StatusOK && body == "pong"
	})
}

func (h *house) url(target string) string { return "http://" + h.http + target }

// shell runs a recipe's commands and returns what they print, and how they
// end. The program is what is tested here.
func (h *house) shell(text string) (out string, status int) {
	h.t.Helper()
	bin := filepath.Join(h.t.TempDir(), "understudy")
	if err := os.Symlink(program(h.t), bin); err != nil {
		h.t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", text)
	cmd.Env = []string{"PATH=" + filepath.Dir(bin) + ":" + os.Getenv("PATH")}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run() // the status says it
	if stderr.Len() > 0 {
		h.t.Logf("%s: %s", strings.TrimSpace(text), stderr.String())
	}
	return stdout.String(), cmd.ProcessState.ExitCode()
}

// needs skips the test where a program is missing.
func needs(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: %s is not installed (make test-deps)", name)
	}
	return path
}

// newHAProxy starts HAProxy with a backend "be" and returns a function that
// says how it calls the server "web" there.
func newHAProxy(t *testing.T, backend string) func() string {
	t.Helper()
	path := needs(t, "haproxy")
	mode := "tcp"
	if strings.Contains(backend, "mode http") {
		mode = "http"
	}
	dir := t.TempDir()
	socket, config := filepath.Join(dir, "stats"), filepath.Join(dir, "haproxy.cfg")
	text := fmt.Sprintf("global\n    stats socket %s level admin\n"+
		"defaults\n    mode %s\n    timeout connect 2s\n    timeout check 5s\n    timeout client 10s\n    timeout server 10s\n"+
		"frontend fe\n    bind %s\n    default_backend be\n%s", socket, mode, freeAddr(t), backend)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	proxy := exec.Command(path, "-db", "-f", config)
	var out bytes.Buffer
	proxy.Stdout, proxy.Stderr = &out, &out
	proxy.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = proxy.Process.Kill()
		_ = proxy.Wait()
		if t.Failed() {
			t.Logf("HAProxy with\n%s\nsays\n%s", backend, out.String())
		}
	})
	return func() string { return serverState(socket) }
}

// HAProxy asks in all four ways, and calls the server what the verdict is: by
// the agent also that the process is ending.
func TestHAProxyFollowsTheVerdict(t *testing.T) {
	t.Parallel()
	needs(t, "haproxy")
	h := newHouse(t)
	fast := []string{"inter 1s", "inter 100ms"}
	ways := []struct {
		name  string
		state func() string
	}{
		{"agent", newHAProxy(t, recipe(t, "haproxy-agent", append(fast, "192.0.2.1:5432", h.orders, "port 9101", "port "+portOf(h.agent))...))},
		{"ping", newHAProxy(t, recipe(t, "haproxy-ping", append(fast, "192.0.2.1:5432", h.orders, "port 9001", "port "+portOf(h.http))...))},
		{"connect", newHAProxy(t, recipe(t, "haproxy-connect", append(fast, "192.0.2.1:5432", h.orders, "port 9102", "port "+portOf(h.tcp))...))},
		{"status", newHAProxy(t, recipe(t, "haproxy-status", append(fast, "192.0.2.1:9001", h.http)...))},
	}
	become := func(when string, want ...string) {
		t.Helper()
		begin := time.Now()
		for i, w := range ways {
			if want[i] == "" {
				continue
			}
			last := ""
			proctest.Until(t, fmt.Sprintf("%s: HAProxy that asks by %s says %s", when, w.name, want[i]), func() bool {
				if state := w.state(); state != last {
					t.Logf("%s: %s says %s after %v", when, w.name, state, time.Since(begin).Round(time.Millisecond))
					last = state
				}
				return last == want[i]
			})
		}
	}

	become("at first", "UP", "UP", "UP", "NOLB")
	if out, status := h.shell("STATUS_DIR=" + h.flags + " understudy activate web"); status != 0 {
		t.Errorf("activate: %d %s", status, out)
	}
	become("switched on", "UP", "UP", "UP", "UP")
	h.services[1].is(isWrong)
	become("a service is ill", "DOWN", "DOWN", "DOWN", "UP")
	h.services[1].is(isWell)
	become("it is well", "UP", "UP", "UP", "UP")
	h.host.Kill()
	become("no primary", "DOWN", "DOWN", "DOWN", "UP")
	h.host.Restart()
	become("a primary", "UP", "UP", "UP", "UP")

	client := dial(t, h.orders)
	client.want("a\n")
	h.Signal(syscall.SIGTERM)
	become("ending", "DRAIN", "DOWN", "DOWN", "UP")
	client.send("still here")
	client.want("still here")
	client.Close()
	if code := h.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	become("gone", "DOWN", "DOWN", "DOWN", "DOWN")
	h.start()
	become("started again", "UP", "UP", "UP", "UP")
	terminate(t, h.Understudy)
}

func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// The question with a list of addresses, as keepalived and curl put it, on a
// machine that has two of them.
func TestStatusWithAddresses(t *testing.T) {
	t.Parallel()
	needs(t, "curl")
	if !isolate(t, "ip") {
		return
	}
	run(t, "ip address add 192.0.2.10/32 dev lo")
	run(t, "ip address add 192.0.2.11/32 dev lo")
	h := newHouse(t)
	for _, name := range []string{"haproxy", "squid.80"} {
		if err := os.WriteFile(filepath.Join(h.flags, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := regexp.MustCompile(`path (\S+)`).FindStringSubmatch(recipe(t, "keepalived-http"))[1]
	wants := func(options, target string, want int) {
		t.Helper()
		out, _ := h.shell("curl -sS --max-time 10 -o /dev/null -w '%{http_code}' --globoff " + options + " '" + h.url(target) + "'")
		if out != fmt.Sprint(want) {
			t.Errorf("curl %s %s: %s, want %d", options, target, out, want)
		}
	}
	for _, tt := range []struct {
		target string
		want   int
	}{
		{path, 200}, // both addresses
		{"/status?SERVICE=haproxy", 200},
		{"/status?SERVICE=haproxy&VIP=192.0.2.11", 200},
		{"/status?SERVICE=haproxy&VIP=::1,192.0.2.10", 200},
		{"/status?SERVICE=haproxy&VIP=192.0.2.10&VIP=192.0.2.11", 200},
		{"/status?PORT=80&SERVICE=squid&VIP=192.0.2.10", 200},
		{"/status?SERVICE=haproxy&VIP=192.0.2.10,192.0.2.12", 404}, // one of them is not here
		{"/status?SERVICE=haproxy&VIP=192.0.2.12,192.0.2.10", 404},
		{"/status?SERVICE=haproxy&VIP=2001:db8::1", 404},
		{"/status?SERVICE=squid&VIP=192.0.2.10", 404}, // no such flag
		{"/status", 404},
		{"/status?SERVICE=haproxy&VIP=", 400},
		{"/status?SERVICE=haproxy&VIP=192.0.2.10,", 400},
		{"/status?SERVICE=haproxy&VIP=haproxy", 400},
		{"/status?SERVICE=", 400},
		{"/status?SERVICE=../flags/haproxy", 400},
		{"/status?SERVICE=..%2fflags%2fhaproxy", 400},
		{"/status?SERVICE=haproxy&PORT=x", 400},
		{"/status?SERVICE=%zz", 400},
	} {
		wants("", tt.target, tt.want)
		wants("--http1.0", tt.target, tt.want)
		wants("--head", tt.target, tt.want)
	}
	wants("-X POST -d x=y", path, 405)
	if got := get10(t, h.http, path); !strings.Contains(got, " 200 ") {
		t.Errorf("asked by HTTP/1.0 without a Host: %q", got)
	}

	command := recipe(t, "curl-status", "127.0.0.1:9001", h.http)
	if out, status := h.shell(command); status != 0 || out != "OK - service and VIP all fine!\n" {
		t.Errorf("%s exits with %d: %q", command, status, out)
	}
	run(t, "ip address del 192.0.2.11/32 dev lo")
	wants("", path, 404)
	if _, status := h.shell(command); status != 22 { // what curl -f says of 400 and more
		t.Errorf("without one of the addresses %s exits with %d", command, status)
	}
	run(t, "ip address add 192.0.2.11/32 dev lo")
	wants("", path, 200)
	if err := os.Rename(h.flags, h.flags+".away"); err != nil {
		t.Fatal(err)
	}
	wants("", path, 503)
	terminate(t, h.Understudy)
}

// The heartbeat, its token, its files, and an operator's file.
func TestHeartbeat(t *testing.T) {
	t.Parallel()
	needs(t, "curl")
	h := newHouse(t)
	question := recipe(t, "curl-heartbeat", "127.0.0.1:9001", h.http, "/etc/understudy/token", h.token)
	ask := func() string {
		out, _ := h.shell(strings.TrimSpace(question) + " -w ' %{http_code}'")
		return out
	}
	file := filepath.Join(h.dead, "elastic.dead")
	const well, ill = "Server: DC 1 reports:\nOK 200", "Server: DC 1 reports:\nThe elastic is DEAD!\n 503"
	becomes := func(when, want string, there bool) {
		t.Helper()
		got, found := "", false
		defer func() {
			if t.Failed() {
				t.Logf("%s: %q, %s there: %t", when, got, file, found)
			}
		}()
		h.Until(fmt.Sprintf("%s: %q, file there: %t", when, want, there), func() bool {
			_, err := os.Lstat(file)
			got, found = ask(), err == nil
			return got == want && found == there
		})
	}

	becomes("at first", well, false)
	h.elastic.is(isWrong)
	becomes("when elastic is yellow", ill, true)
	if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), "elastic") {
		t.Errorf("%s says %q, %v", file, text, err)
	}
	h.elastic.is(isMute)
	becomes("when it hangs", ill, true)
	h.elastic.is(isWell)
	becomes("when it is well", well, false)

	if _, status := h.shell(recipe(t, "heartbeat-override", "/var/lib/understudy/dead", h.dead)); status != 0 {
		t.Error("no file can be made")
	}
	becomes("by order", ill, true)
	h.elastic.is(isIll)
	before := len(h.elastic.requests())
	h.Until("elastic is down in earnest", func() bool { return len(h.elastic.requests()) > before+5 })
	h.elastic.is(isWell)
	before = len(h.elastic.requests())
	h.Until("and up", func() bool { return len(h.elastic.requests()) > before+20 })
	becomes("when elastic has been down and up meanwhile", ill, true)
	if err := os.Remove(file); err != nil {
		t.Error(err)
	}
	becomes("when the order is taken back", well, false)

	for _, header := range []string{"", "-H 'Authorization: Bearer " + houseToken + "x'", "-H 'Authorization: Basic " + houseToken + "'"} {
		for _, method := range []string{"", "-X POST"} {
			out, _ := h.shell("curl -sS " + header + " " + method + " -w ' %{http_code}' " + h.url("/heartbeat"))
			if want := "Auth ERR 511"; method == "" && out != want || strings.Contains(out, "elastic") || strings.Contains(out, "200") {
				t.Errorf("asked with %q %q it answers %q", header, method, out)
			}
		}
	}
	terminate(t, h.Understudy)
	if strings.Contains(h.Stdout()+h.Log(), houseToken) {
		t.Error("the token is in the log")
	}
}

// The first usable answer, by the file and by flags, at once and in turn.
func TestFirstUsableAnswer(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	one, two := h.apis[0], h.apis[1]
	byFlags := func(fanout bool) string {
		addr := freeAddr(t)
		words := strings.Fields(recipe(t, "endpoints-flags", ":9001", addr, "one.example", one.addr, "two.example", two.addr))
		if !fanout {
			words = slices.DeleteFunc(words, func(w string) bool { return w == "--fanout" })
		}
		start(t, words[1:]...).WaitLog("http listener ready")
		return "http://" + addr
	}
	ways := []struct {
		name, url, path string
		inTurn          bool
	}{
		{"route", h.url(""), "/api/users", false},
		{"--fanout", byFlags(true), "/users", false},
		{"in turn", byFlags(false), "/users", true},
	}
	id := 0
	for _, tt := range []struct {
		one, two string // states
		status   int
		winner   *service // nil when nobody has a usable answer
		body     string
	}{
		{isWell, isMute, 200, one, "one"},
		{isIll, isWell, 200, two, "two"},
		{isIll, isLost, 404, two, "nobody knows"}, // usable too
		{isTorn, isWell, 200, two, "two"},         // and from here on two is asked first
		{isTorn, isIll, 500, nil, ""},
	} {
		for _, w := range ways {
			id++
			what := fmt.Sprintf("%s, one is %s, two is %s", w.name, tt.one, tt.two)
			one.is(tt.one)
			two.is(tt.two)
			target := fmt.Sprintf("%s?id=%d", w.path, id)
			resp, err := http.Post(w.url+target, "text/plain", strings.NewReader("a question"))
			if err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			from := ""
			if tt.winner != nil {
				from = tt.winner.addr
			}
			if by := resp.Header.Get("X-Service"); resp.StatusCode != tt.status || err != nil || by != from || tt.winner != nil && string(body) != tt.body {
				t.Errorf("%s: %d %q from %q, %v; want %d %q from %q", what, resp.StatusCode, body, by, err, tt.status, tt.body, from)
			}
			for i, s := range h.apis {
				// Who loses a race may not even have been asked.
				must := tt.winner == s || tt.winner == nil || w.inTurn && i == 0
				mustNot := w.inTurn && i == 1 && tt.winner == one
				var got []asked
				for _, a := range s.requests() {
					if strings.HasSuffix(a.line, target) {
						got = append(got, a)
					}
				}
				if len(got) > 1 || must && len(got) == 0 || mustNot && len(got) > 0 {
					t.Errorf("%s: endpoint %d was asked %d times", what, i+1, len(got))
				}
				for _, a := range got {
					if a.line != "POST "+[]string{"/apis", "/public-apis"}[i]+target || a.host != s.addr || a.forwarded != "127.0.0.1" || must && a.body != "a question" {
						t.Errorf("%s: endpoint %d was asked %+v", what, i+1, a)
					}
				}
			}
		}
	}
}

// One verdict as an exit status, in every way that the page names.
func TestHealthAsAnExitStatus(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	word := func(pattern, text string) string {
		t.Helper()
		found := regexp.MustCompile(pattern).FindStringSubmatch(text)
		if found == nil {
			t.Fatalf("no %s in %s", pattern, text)
		}
		return found[1]
	}
	var docker []string
	if err := json.Unmarshal([]byte(word(`CMD (\[.*\])`, recipe(t, "dockerfile"))), &docker); err != nil {
		t.Fatal(err)
	}
	commands := []struct {
		words []string
		env   []string
	}{
		{strings.Fields(recipe(t, "health", "127.0.0.1:9001", h.http)), nil},
		{strings.Fields(word(`script "(.*)"`, recipe(t, "keepalived-script", "127.0.0.1:9001", h.http))), nil},
		{strings.Fields(word(`misc_path "(.*)"`, recipe(t, "keepalived-http", "192.0.2.2:9001", h.http))), nil},
		{docker, []string{"HTTP=" + h.http}},
		{docker, []string{"CONFIG=" + h.config}},
		{[]string{"understudy", "health", "--http", h.http}, nil},
	}
	become := func(when string, status int, said string) {
		t.Helper()
		for _, c := range commands {
			wantHealth(t, when, c.words, c.env, status, said)
		}
	}
	become("all is well", 0, "200 pong\n")
	h.services[0].is(isIll)
	become("a service is ill", 1, "")
	h.services[0].is(isWell)
	become("all is well again", 0, "200 pong\n")
	terminate(t, h.Understudy)
	become("the program is gone", 1, "")

	for _, words := range []string{"health ftp://" + h.http, "health localhost", "health /ping", "health /ping --http nonsense"} {
		wantHealth(t, "nobody can mean that", strings.Fields("understudy "+words), nil, 2, "")
	}
}

// wantHealth runs a command as it stands on the page, until it ends as it
// should: answers of the services may be a second old.
func wantHealth(t *testing.T, when string, words, env []string, status int, said string) {
	t.Helper()
	if filepath.Base(words[0]) != "understudy" || words[1] != "health" {
		t.Fatalf("%q does not ask for a verdict", words)
	}
	last := ""
	defer func() {
		if t.Failed() {
			t.Logf("%s: %q with %q exits with %s", when, words, env, last)
		}
	}()
	proctest.Until(t, fmt.Sprintf("%s: %q with %q exits with %d and says %q", when, words, env, status, said), func() bool {
		u := proctest.StartCommand(t, proctest.BinaryCommand(program(t), env, words[1:]...))
		code := u.Exit()
		last = fmt.Sprintf("%d, %q and %q", code, u.Stdout(), u.Log())
		return code == status && u.Stdout() == said && (status == 0) == (u.Log() == "")
	})
}

// The same over TLS, with a certificate that nobody has signed.
func TestHealthOverTLS(t *testing.T) {
	t.Parallel()
	cert, key := selfSigned(t)
	pong := newService(t, "pong")
	addr := freeAddr(t)
	u := start(t, "--http", addr, "--lport", pong.port(), "--http-cert", cert, "--http-key", key)
	u.WaitLog("http listener ready")
	own := []string{"HTTP=" + addr, "HTTP_CERT=" + cert, "HTTP_KEY=" + key}
	byPath := []string{"understudy", "health", "/ping"}
	byURL := []string{"understudy", "health", "https://" + addr + "/ping"}
	wantHealth(t, "its own listener", byPath, own, 0, "200 pong\n")
	wantHealth(t, "a stranger's certificate", byURL, nil, 1, "")
	wantHealth(t, "a certificate that is believed", byURL, []string{"SSL_CERT_FILE=" + cert}, 0, "200 pong\n")
	wantHealth(t, "without TLS", []string{"understudy", "health", "http://" + addr + "/ping"}, nil, 1, "")
	pong.is(isIll)
	wantHealth(t, "a service is ill", byPath, own, 1, "")
	terminate(t, u)
}

// selfSigned makes a certificate for 127.0.0.1 and returns the paths of it and
// its key.
func selfSigned(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	certDER, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	keyDER, err2 := x509.MarshalPKCS8PrivateKey(private)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: certDER}, "key.pem": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
}

// The log of verdicts, as the older tool's users know it: good ones on standard
// output, bad ones on standard error, each wholly.
func TestLogOfVerdicts(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	first, second := h.services[0].port(), h.services[1].port()
	head := `127\.0\.0\.1 - - \[\d\d/[A-Z][a-z]{2}/\d{4} \d\d:\d\d:\d\d\] "GET /ping HTTP/1\.1" `
	well := func(port string) string {
		return `- Port ` + port + ` → Status: 200, Body: pong\.\., Time: \d+\.\d{3}s\n`
	}
	becomes := func(text func() string, pattern string) {
		t.Helper()
		full := regexp.MustCompile(pattern)
		h.Until("the log has "+pattern, func() bool {
			get(t, h.url("/ping"))
			return full.MatchString(text())
		})
	}
	becomes(h.Stdout, head+`200\n`+well(first)+well(second))
	h.services[1].is(isIll)
	becomes(h.Log, head+`500\n`+well(first)+`- Port `+second+` → Status: 500, Body: broken\.\., Time: \d+\.\d{3}s\n`)
	h.services[1].is(isWrong)
	becomes(h.Log, head+`502\n`+well(first)+`- Port `+second+` → Status: 200, Body: maintenanc\.\., Time: \d+\.\d{3}s`)
	h.services[1].is(isTorn)
	becomes(h.Log, head+`500\n`+well(first)+`- Port `+second+` → Status: 500, Body: error\.\., Time: \d+\.\d{3}s, Reason: .+\n`)
	h.services[1].is(isWell)
	becomes(h.Stdout, `\n`+head+`200\n`+well(first)+well(second)+`(?s:.*)`)
	h.host.Kill()
	becomes(h.Log, head+`503\n- Relay orders → no primary\n`)
	if strings.Contains(h.Stdout(), "Status: 500") || strings.Contains(h.Stdout(), "no primary") {
		t.Errorf("a bad verdict is on standard output:\n%s", h.Stdout())
	}
	if regexp.MustCompile(head + "200").MatchString(h.Log()) {
		t.Error("a good verdict is on standard error")
	}
	terminate(t, h.Understudy)
}
