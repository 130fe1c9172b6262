//go:build linux

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// Behaviour of four older tools that their users rely on, and faults of those
// tools, as far as only the whole program shows it. The list of all cases is in
// docs/compatibility.md.

// answering starts the program with a configuration file of that text, and
// waits until it answers on addr.
func answering(t *testing.T, addr, text string) *proctest.Understudy {
	t.Helper()
	file := filepath.Join(t.TempDir(), "understudy.yaml")
	if err := os.WriteFile(file, []byte("http: \""+addr+"\"\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	u := start(t, "--config", file)
	u.WaitLog("http listener ready")
	return u
}

// status requests url by method and returns the status alone.
func status(t *testing.T, method, url string, header ...string) int {
	t.Helper()
	req, err := http.NewRequest(method, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	c := http.Client{
		Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Error(err)
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// D-CF7, D-DP5, HS 8: a path without a route is answered 404 and reaches no
// service, by whatever method and with whatever headers.
func TestBehaviourNothingBesideTheRoutes(t *testing.T) {
	t.Parallel()
	s := newService(t, "pong")
	addr, flags := freeAddr(t), t.TempDir()
	u := start(t, "--http", addr, "--lport", s.port(), "--status-dir", flags)
	u.WaitLog("http listener ready")
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"} {
		for _, target := range []string{"/", "/admin", "/console", "/ping/", "/ping/x", "/PING", "/status/", "/STATUS", "//ping", "//status?SERVICE=x", "/p%69ng", "/metrics", "/debug/pprof/"} {
			if got := status(t, method, "http://"+addr+target, "X-Original-URL", "/ping", "X-Forwarded-Host", "localhost"); got != http.StatusNotFound {
				t.Errorf("%s %s is answered %d, want 404", method, target, got)
			}
		}
	}
	for _, target := range []string{"/ping/../admin", "/ping/%2e%2e/admin"} {
		if got := get10(t, addr, target); !strings.Contains(got, " 400 ") {
			t.Errorf("GET %s is answered %q, want 400", target, got)
		}
	}
	if n := len(s.requests()); n != 0 {
		t.Errorf("the service was asked %d times, first %s, want none", n, s.requests()[0].line)
	}
	if code, body := get(t, "http://"+addr+"/ping?"); code != 200 || body != "pong" {
		t.Errorf("/ping is answered %d %q", code, body)
	}
	u.Terminate()
}

// CF 10: every path can be replayed, as the older tool did, if that is
// configured. CF 2: to each port as often as it is listed.
func TestBehaviourEveryPathReplayed(t *testing.T) {
	t.Parallel()
	s := newService(t, "pong")
	addr := freeAddr(t)
	u := start(t, "--http", addr, "--lport", s.port(), "--lport", s.port(), "--ping-path", "/")
	u.WaitLog("http listener ready")
	for _, target := range []string{"/", "/any/where?x=1&&y", "/a%2Fb", "//double"} {
		before := len(s.requests())
		if got := get10(t, addr, target); !strings.Contains(got, " 200 ") {
			t.Errorf("GET %s is answered %q", target, got)
		}
		requested := s.requests()[before:]
		if len(requested) != 2 || requested[0].line != "GET "+target || requested[1].line != "GET "+target {
			t.Errorf("GET %s: the service was asked %+v, want that twice", target, requested)
		}
	}
	u.Terminate()
}

// D-CF10, HS 5: IPv6. CF 7: a request under way is answered after TERM.
func TestBehaviourIPv6AndGracefulEnd(t *testing.T) {
	t.Parallel()
	probe, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("SKIPPED: this machine has no IPv6: %v", err)
	}
	probe.Close()
	requested, release := make(chan struct{}, 1), make(chan struct{})
	listener := listen(t)
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requested <- struct{}{}
		<-release
		io.WriteString(w, "pong")
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })

	addr := fmt.Sprintf("[::1]:%d", proctest.FreePort(t, "::1"))
	u := start(t, "--http", addr, "--lport", portOf(listener.Addr().String()), "--ping-timeout", "9s")
	u.WaitLog("http listener ready")
	answered := make(chan string, 1)
	go func() {
		code, body := get(t, "http://"+addr+"/ping")
		answered <- fmt.Sprint(code, " ", body)
	}()
	<-requested
	u.Signal(syscall.SIGTERM)
	u.WaitLog("ending")
	close(release)
	if got := <-answered; got != "200 pong" {
		t.Errorf("a request that TERM met under way was answered %q, want 200 pong", got)
	}
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
}

const heartbeatRoute = "routes:\n  /beat: {name: DC 1, token_file: %s, dead_dir: %s}\n"

// tokenFile writes a token for heartbeats.
func tokenFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(houseToken), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// beat requests a heartbeat over a connection of its own.
func beat(t *testing.T, addr string) (code int, body string) {
	t.Helper()
	conn := dial(t, addr)
	defer conn.Close()
	conn.send("GET /beat HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer " + houseToken + "\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.StatusCode, string(text)
}

// D-DP1, D-DP2, D-DP4: a probe that never passes is dead from the first answer
// on and in each of thousands, while it is requested a hundred times a second,
// whether its files can be kept or not.
func TestBehaviourAlwaysDeadIsNeverWell(t *testing.T) {
	t.Parallel()
	for _, folder := range []string{"kept", "missing"} {
		t.Run(folder, func(t *testing.T) {
			t.Parallel()
			elastic := newService(t, "yellow")
			addr, dead := freeAddr(t), filepath.Join(t.TempDir(), "dead")
			if folder == "kept" {
				if err := os.Mkdir(dead, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			u := answering(t, addr, "probes:\n  elastic: {interval: 10ms, http: {url: 'http://"+elastic.addr+"/', body_contains: green}}\n"+
				fmt.Sprintf(heartbeatRoute, tokenFile(t), dead))
			conn := dial(t, addr)
			in := bufio.NewReader(conn)
			n := 0
			for began := time.Now(); n < 3000 || time.Since(began) < time.Second; n++ {
				conn.send("GET /beat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + houseToken + "\r\n\r\n")
				line, body, err := readAnswer(in)
				if err != nil {
					t.Fatal(err)
				}
				if line != "HTTP/1.1 503 Service Unavailable" || body != "Server: DC 1 reports:\nThe elastic is DEAD!\n" {
					t.Fatalf("answer %d is %s %q, want 503 and elastic in each", n, line, body)
				}
			}
			if requested := len(elastic.requests()); requested < 3 {
				t.Errorf("elastic was asked %d times in %d answers", requested, n)
			}
			u.Terminate()
		})
	}
}

// D-DP4, DP 27: a file of an earlier run does not count for this one, and is
// removed when the probe is up; a file of another origin stays.
func TestBehaviourFilesOfAnEarlierRun(t *testing.T) {
	t.Parallel()
	elastic, mongo := newService(t, "green"), newService(t, "green")
	addr, dead := freeAddr(t), t.TempDir()
	text := "probes:\n"
	for name, s := range map[string]*service{"elastic": elastic, "mongo": mongo} {
		text += "  " + name + ": {interval: 50ms, http: {url: 'http://" + s.addr + "/', body: green}}\n"
	}
	text += fmt.Sprintf(heartbeatRoute, tokenFile(t), dead)
	file := filepath.Join(dead, "elastic.dead")
	there := func() bool { _, err := os.Lstat(file); return err == nil }

	elastic.is(isIll)
	u := answering(t, addr, text)
	u.Until("the file is there", there)
	u.Terminate()
	if !there() {
		t.Error("the file of a dead probe is gone with the program")
	}
	elastic.is(isWell)
	u = answering(t, addr, text)
	u.Until("all is well, and the file is gone", func() bool {
		code, _ := beat(t, addr)
		return code == http.StatusOK && !there()
	})
	u.Terminate()

	const theirs = "HTTPConnectionPool(host='127.0.0.1', port=3006): Read timed out. (read timeout=1)"
	if err := os.WriteFile(filepath.Join(dead, "mongo.dead"), []byte(theirs), 0o600); err != nil {
		t.Fatal(err)
	}
	u = answering(t, addr, text)
	u.Until("elastic is up and mongo kept dead", func() bool {
		code, body := beat(t, addr)
		return code == http.StatusServiceUnavailable && body == "Server: DC 1 reports:\nThe mongo is DEAD!\n"
	})
	if got, err := os.ReadFile(filepath.Join(dead, "mongo.dead")); string(got) != theirs || err != nil {
		t.Errorf("the other's file is %q, %v, want it untouched", got, err)
	}
	u.Terminate()
}

// D-DP10: each of forty probes sends the configured request, and dead ones are
// reported by their names, in the order of the file. DP 10: a probe may accept
// any answer at all.
func TestBehaviourFortyProbes(t *testing.T) {
	t.Parallel()
	const probes = 40
	sick := map[int]bool{0: true, 7: true, 8: true, 39: true}
	var mu sync.Mutex
	requested := map[string]int{}
	listener := listen(t)
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		requested[r.URL.Path]++
		mu.Unlock()
		var n int
		if _, err := fmt.Sscanf(r.URL.Path, "/probe/%d", &n); err != nil || sick[n] || n == 20 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })

	text, want := "probes:\n", "Server: DC 1 reports:\n"
	for i := range probes {
		expected := ""
		if i == 20 {
			expected = ", status: [2xx, 3xx, 4xx, 5xx]"
		}
		text += fmt.Sprintf("  p%d: {interval: 100ms, http: {url: 'http://%s/probe/%d'%s}}\n", i, listener.Addr(), i, expected)
		if sick[i] {
			want += fmt.Sprintf("The p%d is DEAD!\n", i)
		}
	}
	addr := freeAddr(t)
	u := answering(t, addr, text+fmt.Sprintf("routes:\n  /beat: {name: DC 1, token_file: %s}\n", tokenFile(t)))
	u.Until("the sick ones alone are dead", func() bool {
		code, body := beat(t, addr)
		return code == http.StatusServiceUnavailable && body == want
	})
	mu.Lock()
	defer mu.Unlock()
	for i := range probes {
		if requested[fmt.Sprintf("/probe/%d", i)] == 0 {
			t.Errorf("probe %d was never asked", i)
		}
	}
	if len(requested) != probes {
		t.Errorf("%d paths were asked, want %d", len(requested), probes)
	}
	u.Terminate()
}

// DP 11, 12 and 23, D-DP3: probes of every kind in one heartbeat, scripts in
// the place of the older tool's modules. A service that hangs or trickles is
// dead in time, and nothing is leaked.
func TestBehaviourProbesOfEveryKind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pid, verdict, flag := filepath.Join(dir, "pid"), filepath.Join(dir, "verdict"), filepath.Join(dir, "web")
	module := script(t, "[ \"$SECRET_TOKEN\" = '' ] || exit 3\ncase $(cat "+verdict+") in\nwell) exit 0 ;;\nhung) echo $$ >"+pid+".new; mv "+pid+".new "+pid+"; exec sleep 600 ;;\nesac\nexit 1\n")
	say := func(word string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(verdict+"~", []byte(word), 0o600), os.Rename(verdict+"~", verdict)); err != nil {
			t.Fatal(err)
		}
	}
	listener := listen(t)
	trickle := make(chan bool, 1) // what the trickling service does from now on
	go func() {
		trickles := false
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			select {
			case trickles = <-trickle:
			default:
			}
			go func(slowly bool) {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(patience))
				_, _ = conn.Read(make([]byte, 4096))
				if !slowly {
					_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ngreen")
					return
				}
				_, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\ngreen")
				for err == nil {
					time.Sleep(50 * time.Millisecond) // a service that answers slowly
					_, err = io.WriteString(conn, " ")
				}
			}(trickles)
		}
	}()
	say("well")
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	file := filepath.Join(dir, "understudy.yaml")
	text := "http: \"" + addr + "\"\nprobes:\n" +
		"  module: {interval: 100ms, timeout: 500ms, exec: {command: [" + module + "]}}\n" +
		"  trickles: {interval: 100ms, timeout: 500ms, http: {url: 'http://" + listener.Addr().String() + "/', body_contains: green}}\n" +
		"  talks: {interval: 100ms, timeout: 500ms, tcp: {address: '" + (&proctest.Host{Name: "a"}).Start(t).Addr() + "', expect: \"a\\n\"}}\n" +
		"  on: {interval: 100ms, flag: {dir: " + dir + ", name: web}}\n" +
		"  here: {interval: 100ms, vip: {addresses: [127.0.0.1]}}\n" +
		"  elsewhere: {interval: 100ms, vip: {addresses: [192.0.2.1]}}\n" +
		"routes:\n  /beat: {name: DC 1, token_env: SECRET_TOKEN, ignore: [elsewhere]}\n  /all: {probes: [elsewhere]}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	u := proctest.StartCommand(t, proctest.BinaryCommand(program(t), []string{"SECRET_TOKEN=" + houseToken}, "--config", file))
	u.WaitLog("http listener ready")
	become := func(when, want string) {
		t.Helper()
		last := ""
		defer func() {
			if t.Failed() {
				t.Logf("%s: the last answer was %q", when, last)
			}
		}()
		u.Until(when, func() bool {
			code, body := beat(t, addr)
			last = fmt.Sprint(code, " ", body)
			return last == want
		})
	}
	const head = " Server: DC 1 reports:\n"
	become("all are well", "200"+head+"OK")
	if code, _ := get(t, "http://"+addr+"/all"); code != 503 {
		t.Errorf("an address that is elsewhere is answered %d, want 503", code)
	}
	say("ill")
	become("the script fails", "503"+head+"The module is DEAD!\n")
	say("hung")
	u.Until("the script hangs", func() bool { return len(lines(pid)) == 1 })
	become("it is dead all the same", "503"+head+"The module is DEAD!\n")
	trickle <- true
	become("a service trickles", "503"+head+"The module is DEAD!\nThe trickles is DEAD!\n")
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	become("a flag is gone", "503"+head+"The module is DEAD!\nThe trickles is DEAD!\nThe on is DEAD!\n")
	say("well")
	trickle <- false
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	become("all are well again", "200"+head+"OK")
	u.Terminate()
	hung := strings.Join(lines(pid), "")
	proctest.Until(t, "the script that hung is gone", func() bool {
		_, err := os.Stat("/proc/" + hung)
		return errors.Is(err, os.ErrNotExist)
	})
}

// D-DP2, D-DP7, D-DP12, DP 8 and 13: the program does not start with a file
// that has anything in it that the older tool ignored, or executed.
func TestBehaviourNothingIsPassedOver(t *testing.T) {
	t.Parallel()
	token := tokenFile(t)
	file := func(probe string) string {
		return "http: \"127.0.0.1:9\"\nprobes:\n  " + probe + "\nroutes:\n  /beat: {name: DC 1, token_file: " + token + "}\n"
	}
	good := "elastic: {http: {url: 'http://localhost:9200/'}}"
	evidence := filepath.Join(t.TempDir(), "evidence")
	for _, tt := range []struct{ what, text, want string }{
		{"an unknown kind", file("db: {moduke: msmsql_probe}"), ":3: probes[db].moduke: unknown key"},
		{"an unknown criterion", file("elastic: {http: {url: 'http://h/', re_search: ok}}"), "re_search: unknown key"},
		{"a bad expression", file("elastic: {http: {url: 'http://h/', body_regex: '('}}"), ":3: probes[elastic].http.body_regex: "},
		{"a query that is none", file("elastic: {http: {url: 'http://h/', method: 'G ET'}}"), "http.method: "},
		{"a switch that is not ours", file("elastic: {isEnabled: false, http: {url: 'http://h/'}}"), "isEnabled: unknown key"},
		{"nothing", file("elastic:"), ":3: probes[elastic]"},
		{"a name that leads out", file("../x: {http: {url: 'http://h/'}}"), `:3: probes[../x]: "../x" is not a name`},
		{"an object of another language", file("elastic: !!python/object/apply:os.system ['touch " + evidence + "']"), ":3: "},
		{"no token", strings.Replace(file(good), ", token_file: "+token, "", 1), "needs a token"},
		{"a level that is none", file(good) + "log: {level: warning1}\n", ":6: log.level: "},
		{"no file at all", "", "no such file"},
	} {
		path := filepath.Join(t.TempDir(), "understudy.yaml")
		if tt.text != "" {
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		u := start(t, "--config", path)
		if code := u.Exit(); code != 2 || !strings.Contains(u.Log(), tt.want) || u.Stdout() != "" {
			t.Errorf("%s: exit status %d and %q, want 2 and %q", tt.what, code, u.Log(), tt.want)
		}
	}
	if _, err := os.Lstat(evidence); err == nil {
		t.Error("what stood in the file was run")
	}
}

// D-HS7: the flag means "switched on" and a probe "alive"; one route requires
// both.
func TestBehaviourFlagAndLife(t *testing.T) {
	t.Parallel()
	web := newService(t, "hello")
	addr, flags := freeAddr(t), t.TempDir()
	u := answering(t, addr, "probes:\n  on: {interval: 50ms, flag: {dir: "+flags+", name: web.80}}\n"+
		"  alive: {interval: 50ms, http: {url: 'http://"+web.addr+"/'}}\nroutes:\n  /web: {probes: all}\n")
	become := func(when string, code int) {
		t.Helper()
		u.Until(fmt.Sprintf("%s: %d", when, code), func() bool { got, _ := get(t, "http://"+addr+"/web"); return got == code })
	}
	become("switched off and alive", 503)
	flag := filepath.Join(flags, "web.80")
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	become("switched on and alive", 200)
	web.is(isIll)
	become("switched on and ill", 503)
	web.is(isWell)
	become("switched on and alive again", 200)
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	become("switched off", 503)
	u.Terminate()
}

// D-HS2: an unreadable directory is a fault, and neither on nor off.
func TestBehaviourUnreadableFlags(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to be an ordinary user")
	}
	const nobody = 65534
	dir, err := os.MkdirTemp("", "us") // an ordinary user has no access to a test's own directory
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary, flags := filepath.Join(dir, "understudy"), filepath.Join(dir, "flags")
	// A copy would still be open for writing in what other tests have just forked,
	// and could not be run (ETXTBSY).
	err = errors.Join(os.Link(program(t), binary), os.Chmod(dir, 0o755), os.Mkdir(flags, 0o755),
		os.WriteFile(filepath.Join(flags, "web"), nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	cmd := proctest.BinaryCommand(binary, []string{"HOME=/"}, "--http", addr, "--status-dir", flags)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	u := proctest.StartCommand(t, cmd)
	u.WaitLog("http listener ready")
	wants := func(when, service string, want int) {
		t.Helper()
		if got, body := get(t, "http://"+addr+"/status?SERVICE="+service); got != want {
			t.Errorf("%s: %s is answered %d %q, want %d", when, service, got, body, want)
		}
	}
	wants("readable", "web", 200)
	wants("readable", "nope", 404)
	if err := os.Chmod(flags, 0); err != nil {
		t.Fatal(err)
	}
	wants("unreadable", "web", 503)
	wants("unreadable", "nope", 503)
	u.Terminate()
}

// F66: whatever is requested of /status, the program opens nothing outside of
// the directory, as strace shows.
func TestBehaviourNothingOutsideIsLookedAt(t *testing.T) {
	t.Parallel()
	tracer := needs(t, "strace")
	dir := t.TempDir()
	flags, trace := filepath.Join(dir, "flags"), filepath.Join(dir, "trace")
	err := errors.Join(os.Mkdir(flags, 0o755), os.WriteFile(filepath.Join(flags, "web"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, "secret"), nil, 0o600), os.Symlink("../secret", filepath.Join(flags, "link")),
		os.Symlink("/etc/passwd", filepath.Join(flags, "far")), os.Symlink("..", filepath.Join(flags, "up")))
	if err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	u := start(t, "--http", addr, "--status-dir", flags)
	u.WaitLog("http listener ready")
	looker := exec.Command(tracer, "-f", "-qq", "-s", "4096", "-e", "trace=%file", "-o", trace, "-p", fmt.Sprint(u.PID()))
	looker.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var output strings.Builder
	looker.Stderr = &output
	if err := looker.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() { defer close(over); _ = looker.Wait() }()
	traced := func() string { text, _ := os.ReadFile(trace); return string(text) }
	u.Until("strace sees something", func() bool {
		select {
		case <-over:
			t.Skipf("SKIPPED: strace cannot look on here: %s", output.String())
		default:
		}
		get(t, "http://"+addr+"/status?SERVICE=web")
		return strings.Contains(traced(), `"web"`)
	})
	names := []string{
		"../secret", "..%2fsecret", "%2e%2e/secret", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
		"/etc/passwd", "%2fetc%2fpasswd", "web/../../secret", "up/secret", "up%2fsecret", "web%00/etc/passwd", ".", "..", "...", "",
		strings.Repeat("n", 300), "%zz", "web;PORT=1", "link/", "far/x", "..%5csecret", "%c0%ae%c0%ae/secret", "web&PORT=../../secret",
		"web&PORT=%2fetc%2fpasswd", "nope&SERVICE=../secret", "up&PORT=1", "link", "far", "up",
	}
	for _, name := range names {
		target := "/status?SERVICE=" + name
		got := get10(t, addr, target)
		if strings.Contains(got, " 200 ") || slices.Contains([]string{"link", "far", "up"}, name) && !strings.Contains(got, " 404 ") {
			t.Errorf("GET %s is answered %q", target, got)
		}
	}
	get(t, "http://"+addr+"/status?SERVICE=the-last-one")
	proctest.Until(t, "strace has seen the last request", func() bool { return strings.Contains(traced(), "the-last-one") })
	_ = looker.Process.Signal(os.Interrupt) // it detaches from the program
	<-over

	// Only the directory is opened by its path; all else is a name of one part,
	// looked up in what was opened, and never followed: where a link leads is read
	// from the link, and nothing is looked at there.
	call := regexp.MustCompile(`^\d+ +(\w+)\((AT_FDCWD|\d+), "([^"]*)"(.*)$`)
	seen := 0
	begun := map[string]string{} // what a thread has called before another one was seen
	for line := range strings.Lines(traced()) {
		thread, _, _ := strings.Cut(line, " ")
		if call, found := strings.CutSuffix(line, " <unfinished ...>\n"); found {
			begun[thread] = call
			continue
		}
		if _, rest, found := strings.Cut(line, "resumed>"); found {
			line = begun[thread] + rest
		}
		if strings.Contains(line, "+++") || strings.Contains(line, "--- SIG") || strings.HasPrefix(line, " ") {
			continue
		}
		m := call.FindStringSubmatch(strings.TrimSpace(line))
		switch {
		case m == nil:
			t.Errorf("strace saw %s", line)
		case m[2] == "AT_FDCWD" && m[3] == flags:
		case m[3] == "/proc/self/exe" || m[3] == "/proc/self/smaps": // at the end of the start; see package resident
		case m[2] == "AT_FDCWD" || m[3] == ".." || strings.Contains(m[3], "/"):
			t.Errorf("outside of the directory: %s", line)
		case m[1] != "readlinkat" && !strings.Contains(m[4], "NOFOLLOW"):
			t.Errorf("follows what it finds: %s", line)
		default:
			seen++
		}
	}
	if seen < 5 {
		t.Errorf("strace saw %d looks at flags", seen)
	}
	u.Terminate()
}

// F46: the reader of the records of verdicts stops reading. Every request is
// answered nevertheless.
func TestBehaviourStuckRecords(t *testing.T) {
	t.Parallel()
	s := newService(t, "pong")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	addr := freeAddr(t)
	cmd := proctest.BinaryCommand(program(t), nil, "--http", addr, "--lport", s.port(), "--ping-path", "/")
	cmd.Stdout, cmd.Stderr = w, w
	u := proctest.StartCommand(t, cmd)
	w.Close()
	proctest.Until(t, "it answers", func() bool {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	conn := dial(t, addr)
	in := bufio.NewReader(conn)
	long := strings.Repeat("a", 900)
	var slowest time.Duration
	for i := range 1000 { // much more than a pipe and the queue hold
		if i == 500 {
			s.is(isIll)
		}
		begin := time.Now()
		conn.send(fmt.Sprintf("GET /%d/%s HTTP/1.1\r\nHost: x\r\n\r\n", i, long))
		line, _, err := readAnswer(in)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		slowest = max(slowest, time.Since(begin))
		if want := map[bool]string{true: " 200 ", false: " 500 "}[i < 500]; !strings.Contains(line, want) {
			t.Fatalf("request %d is answered %s, want%s", i, line, want)
		}
	}
	t.Logf("the slowest answer took %v", slowest)
	wantWithin(t, "an answer", slowest, 5*time.Second)
	u.Terminate()
}

// F70: a port scan and clients that speak something else, with TLS and
// without. Other clients do not notice, and the log has at most one line a
// second.
func TestBehaviourPortScan(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"http", "https"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			addr, s := freeAddr(t), newService(t, "pong")
			args := []string{"--http", addr, "--lport", s.port(), "--log-level", "debug"}
			var env []string
			if way == "https" {
				cert, key := selfSigned(t)
				args = append(args, "--http-cert", cert, "--http-key", key)
				env = []string{"SSL_CERT_FILE=" + cert}
			}
			u := start(t, args...)
			u.WaitLog("http listener ready")
			begin := time.Now()
			var scan sync.WaitGroup
			for i := range 300 {
				scan.Go(func() { makeNoise(t, addr, i) })
			}
			for range 5 {
				if requested := proctest.StartCommand(t, proctest.BinaryCommand(program(t), env, "health", way+"://"+addr+"/ping")); requested.Exit() != 0 {
					t.Errorf("beside the scan the verdict is %q", requested.Log())
				}
			}
			scan.Wait()
			seconds := int(time.Since(begin)/time.Second) + 1
			n := countLog(u, "http client refused")
			if n > seconds || n == 0 && way == "https" || strings.Contains(u.Log(), "panic") || countLog(u, "[WARN]")+countLog(u, "[ERROR]") > 0 {
				t.Errorf("%d complaints in %d seconds, want one in each at most, and nothing worse", n, seconds)
			}
			u.Terminate()
		})
	}
}

// makeNoise connects as the i-th part of a scan.
func makeNoise(t *testing.T, addr string, i int) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	if i%4 > 0 {
		noise := make([]byte, rand.IntN(3000))
		for at := range noise {
			noise[at] = byte(rand.Uint32())
		}
		if i%4 == 1 {
			noise = append([]byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, noise...) // TLS
		}
		_, _ = conn.Write(noise)
	}
	if i%2 == 0 {
		_ = conn.(*net.TCPConn).SetLinger(0)
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	answer, err := io.ReadAll(conn)
	if strings.Contains(string(answer), " 200 ") || isTimeout(err) {
		t.Errorf("noise is answered %q, %v", answer, err)
	}
}
