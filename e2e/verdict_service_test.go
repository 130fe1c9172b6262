//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
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

// recipeOf is a block of a page, with changes: pairs of the text on the page
// and its replacement in the test.
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

// received is a request that a service got.
type received struct {
	at              time.Time
	line, body      string // line is method and target
	agent, monitor  string // User-Agent and X-Monitor
	host, forwarded string
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

// start starts the program and waits until it answers for its house.
func (h *house) start(more ...string) {
	h.t.Helper()
	h.Understudy = start(h.t, append([]string{"--config", h.config}, more...)...)
	h.WaitLog("http listener ready")
	h.Until("all is well", func() bool {
		code, body := get(h.t, h.url("/ping"))
		return code == http.StatusOK && body == "pong"
	})
}

func (h *house) url(target string) string { return "http://" + h.http + target }

// shell runs a recipe's commands and returns what they print, and how they
// end. In them understudy is the program under test.
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
	_ = cmd.Run() // the status shows it
	if stderr.Len() > 0 {
		h.t.Logf("%s: %s", strings.TrimSpace(text), stderr.String())
	}
	return stdout.String(), cmd.ProcessState.ExitCode()
}

// newHAProxy starts HAProxy with a backend "be" and returns a function that
// returns its state of the server "web" there.
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

// HAProxy checks in all four ways, and its state of the server follows the
// verdict; by the agent also that the process is ending.
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
	become("ending", "DOWN", "DOWN", "DOWN", "UP")
	client.send("still here")
	client.want("still here")
	client.Close()
	if code := h.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	become("gone", "DOWN", "DOWN", "DOWN", "DOWN")
	h.start()
	become("started again", "UP", "UP", "UP", "UP")
	h.Terminate()
}

// The request with a list of addresses, as keepalived and curl send it, on a
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
	if _, status := h.shell(command); status != 22 { // the exit status of curl -f for 400 and more
		t.Errorf("without one of the addresses %s exits with %d", command, status)
	}
	run(t, "ip address add 192.0.2.11/32 dev lo")
	wants("", path, 200)
	if err := os.Rename(h.flags, h.flags+".away"); err != nil {
		t.Fatal(err)
	}
	wants("", path, 503)
	h.Terminate()
}

// The heartbeat, its token, its files, and an operator's file.
func TestHeartbeat(t *testing.T) {
	t.Parallel()
	needs(t, "curl")
	h := newHouse(t)
	command := recipe(t, "curl-heartbeat", "127.0.0.1:9001", h.http, "/etc/understudy/token", h.token)
	request := func() string {
		out, _ := h.shell(strings.TrimSpace(command) + " -w ' %{http_code}'")
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
			got, found = request(), err == nil
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
	h.Terminate()
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
		winner   *service // nil when no service has a usable answer
		body     string
	}{
		{isWell, isMute, 200, one, "one"},
		{isIll, isWell, 200, two, "two"},
		{isIll, isLost, 404, two, "unknown"}, // usable too
		{isTorn, isWell, 200, two, "two"},    // from here on two is requested first
		{isTorn, isIll, 500, nil, ""},
	} {
		for _, w := range ways {
			id++
			what := fmt.Sprintf("%s, one is %s, two is %s", w.name, tt.one, tt.two)
			one.is(tt.one)
			two.is(tt.two)
			target := fmt.Sprintf("%s?id=%d", w.path, id)
			resp, err := http.Post(w.url+target, "text/plain", strings.NewReader("a request"))
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
				// The loser of a race may not even have been requested.
				must := tt.winner == s || tt.winner == nil || w.inTurn && i == 0
				mustNot := w.inTurn && i == 1 && tt.winner == one
				var got []received
				for _, a := range s.requests() {
					if strings.HasSuffix(a.line, target) {
						got = append(got, a)
					}
				}
				if len(got) > 1 || must && len(got) == 0 || mustNot && len(got) > 0 {
					t.Errorf("%s: endpoint %d was asked %d times", what, i+1, len(got))
				}
				for _, a := range got {
					if a.line != "POST "+[]string{"/apis", "/public-apis"}[i]+target || a.host != s.addr || a.forwarded != "127.0.0.1" || must && a.body != "a request" {
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
	become := func(when string, status int, output string) {
		t.Helper()
		for _, c := range commands {
			wantHealth(t, when, c.words, c.env, status, output)
		}
	}
	become("all is well", 0, "200 pong\n")
	h.services[0].is(isIll)
	become("a service is ill", 1, "")
	h.services[0].is(isWell)
	become("all is well again", 0, "200 pong\n")
	h.Terminate()
	become("the program is gone", 1, "")

	for _, words := range []string{"health ftp://" + h.http, "health localhost", "health /ping", "health /ping --http nonsense"} {
		wantHealth(t, "contradictory words", strings.Fields("understudy "+words), nil, 2, "")
	}
}

// wantHealth runs a command of the page until it ends as it should: answers of
// the services may be a second old.
func wantHealth(t *testing.T, when string, words, env []string, status int, output string) {
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
	proctest.Until(t, fmt.Sprintf("%s: %q with %q exits with %d and says %q", when, words, env, status, output), func() bool {
		u := proctest.StartCommand(t, proctest.BinaryCommand(program(t), env, words[1:]...))
		code := u.Exit()
		last = fmt.Sprintf("%d, %q and %q", code, u.Stdout(), u.Log())
		return code == status && u.Stdout() == output && (status == 0) == (u.Log() == "")
	})
}

// The same over TLS, with a self-signed certificate.
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
	u.Terminate()
}

// The log of verdicts, as the older tool's users know it: good ones on standard
// output, bad ones on standard error, none of them split.
func TestLogOfVerdicts(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "--verdict-log", "all")
	first, second := h.services[0].port(), h.services[1].port()
	head := `127\.0\.0\.1 - - \[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(?:Z|[+-]\d{4})\] "GET /ping HTTP/1\.1" `
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
	h.Terminate()
}
