//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/control"
	"understudy/internal/proctest"
)

// pingStatus requests a verdict on a connection of its own, and returns 0 when
// none comes.
func pingStatus(url string) int {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	res, err := client.Get(url)
	if err != nil {
		return 0
	}
	res.Body.Close()
	return res.StatusCode
}

// greeted connects to an address or a socket file and reads the greeting of one
// letter.
func greeted(t *testing.T, network, addr, want string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	hello := make([]byte, 2)
	if _, err := io.ReadFull(c, hello); err != nil || string(hello) != want+"\n" {
		t.Fatalf("at %s came %q, %v, want %s", addr, hello, err, want)
	}
	return c
}

// A relay that is removed and added again while its old connections go on has
// its addresses, its state and its verdict again, and keeps them when the last
// of those connections ends.
func TestReloadBringsARelayBackWhileItDrains(t *testing.T) {
	t.Parallel()
	a, b := echoHost(t, "a"), echoHost(t, "b")
	addr, other, verdict := freeAddr(t), freeAddr(t), freeAddr(t)
	dir := filepath.Dir(socketPath(t))
	path := filepath.Join(dir, "orders.sock")
	rest := "http: " + verdict + "\nstate_dir: " + filepath.Join(dir, "state") + "\nrelays:\n" +
		"  - {name: mail, hosts: [" + b + "], listen: [" + other + "]}\n"
	both := rest + "  - {name: orders, hosts: [" + a + "], listen: [" + addr + ", \"unix:" + path + "\"], drain_timeout: 1h}\n"
	r := openFile(t, both, addr, "a")
	awaitGreeting(t, r.Understudy, other, "b")
	r.Until("the verdict is good", func() bool { return pingStatus("http://"+verdict+"/ping") == http.StatusOK })
	stop, requested := make(chan struct{}), make(chan int)
	go func() {
		wrong := 0
		for {
			select {
			case <-stop:
				requested <- wrong
				return
			case <-t.Context().Done():
				return
			default:
				// Each has a query of its own, so that none shares an answer.
				if got := pingStatus(fmt.Sprintf("http://%s/ping?%d", verdict, time.Now().UnixNano())); got != http.StatusOK {
					wrong++
				}
			}
		}
	}()
	var kept []net.Conn
	for life := uint64(2); life < 6; life++ {
		kept = append(kept, greeted(t, "unix", path, "a"))
		r.reload(rest)
		r.reload(both)
		kept = append(kept, greeted(t, "tcp", addr, "a"))
		r.Until(fmt.Sprintf("epoch %d of the relay is kept", life), func() bool { // a client may be served before
			got := r.relayOf("orders")
			return got.Epoch == life && got.Kept
		})
	}
	close(stop)
	if wrong := <-requested; wrong > 0 {
		t.Errorf("%d verdicts were bad while a relay came and went", wrong)
	}
	for _, c := range kept {
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Error(err)
		}
		if n, err := io.ReadFull(c, make([]byte, 1)); n != 1 {
			t.Errorf("a connection of an earlier life: %v", err)
		}
		c.Close()
	}
	r.Until("all earlier lives are over", func() bool { return countLog(r.Understudy, "ended: relay=orders") == 4 })
	greeted(t, "unix", path, "a").Close()
	if countLog(r.Understudy, "state is not kept") > 0 {
		t.Error("a relay that came back had no memory")
	}
	end(t, r.Understudy)
}

// Moving an address from one part to another takes two reloads; the error
// explains that. Nothing has changed then, not even settings that were
// validated before the address.
func TestReloadSaysHowAnAddressMoves(t *testing.T) {
	t.Parallel()
	a, b := echoHost(t, "a"), echoHost(t, "b")
	addr, moving, verdict := freeAddr(t), freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(moving)
	relay := func(name, host, at string) string {
		return fmt.Sprintf("  - {name: %s, hosts: [%s], listen: [\"%s\"]}\n", name, host, at)
	}
	head := "http: " + verdict + "\nrelays:\n"
	r := openFile(t, head+relay("orders", a, addr+`", "`+moving)+relay("mail", b, "127.0.0.1:0"), addr, "a")
	for _, tt := range []struct{ text, who string }{
		{head + relay("orders", a, addr) + relay("mail", b, moving), "relay mail"},
		{head + relay("orders", a, addr) + relay("mail", b, ":"+port), "relay mail"},
		{head + relay("orders", a, addr) + relay("new", b, moving), "relay new"},
		{"http: " + moving + "\nrelays:\n" + relay("orders", a, addr), "http"},
		{"http: " + verdict + "\nroutes:\n  /up: {tcp: \"" + moving + "\"}\nrelays:\n" + relay("orders", a, addr), "tcp verdict"},
	} {
		r.write(tt.text)
		r.want(1, words("reload"), "^understudy: reload: "+tt.who+": .*"+port+" is still the address of relay orders .*reload once without it there, and then with it here$")
		greeted(t, "tcp", moving, "a").Close()
	}
	r.reload(head + relay("orders", a, addr) + relay("mail", b, "127.0.0.1:0"))
	r.reload(head + relay("orders", a, addr) + relay("mail", b, moving))
	awaitGreeting(t, r.Understudy, moving, "b")
	r.reload(head + relay("orders", a, addr))
	r.reload("http: " + moving + "\nrelays:\n" + relay("orders", a, addr))
	r.Until("/ping is good at its new place", func() bool { return pingStatus("http://"+moving+"/ping") == http.StatusOK })
	r.reload(head + relay("orders", a, addr))
	r.reload(head + relay("orders", a, addr+`", "`+moving)) // at once: it is free
	greeted(t, "tcp", moving, "a").Close()

	busy := listen(t).Addr().String()
	r.write(head + relay("orders", a, addr) + relay("mail", b, busy))
	r.want(1, words("reload"), "^understudy: reload: relay mail: listen on "+busy+": .*address already in use")
	greeted(t, "tcp", moving, "a").Close()
	end(t, r.Understudy)
}

// While an election hangs in a trigger a reload waits, and nothing else does:
// queries are answered, HUPs and reloads queue up, log files are reopened, and
// the end of the program waits for none of it.
func TestReloadWaitsForAnElection(t *testing.T) {
	t.Parallel()
	for _, released := range []bool{true, false} {
		t.Run(fmt.Sprint("released=", released), func(t *testing.T) {
			t.Parallel()
			a, b := echoHost(t, "a"), echoHost(t, "b")
			addr, other, logFile := freeAddr(t), freeAddr(t), filepath.Join(t.TempDir(), "log")
			gate := filepath.Join(t.TempDir(), "gate")
			trigger := script(t, fmt.Sprintf("[ \"$UNDERSTUDY_EVENT\" = start ] && exit\nwhile [ ! -e %s ]; do sleep 0.05; done\n", gate))
			text := func(hosts, more string) string {
				return fmt.Sprintf("log: {output: %s}\nrelays:\n  - {name: orders, hosts: [%s], listen: [%s], triggers: {path: %s, timeout: 5m}%s}\n"+
					"  - {name: other, hosts: [%s], listen: [%s]}\n", logFile, hosts, addr, trigger, more, a, other)
			}
			r := openFile(t, text(a+", "+b, ""), addr, "a")
			r.reload(text(b, ""))
			r.Until("the trigger runs", func() bool { return r.relayOf("orders").State == "switching" })

			r.write(text(b+", "+a, ", rise: 1"))
			done := make(chan error, 3)
			for range cap(done) {
				go func() {
					_, err := r.client.Reload(t.Context(), control.Order{})
					done <- err
				}()
			}
			r.Signal(syscall.SIGHUP)
			r.want(0, words("status"), "switching")
			greeted(t, "tcp", other, "a").Close()
			if err := os.Rename(logFile, logFile+".1"); err != nil {
				t.Fatal(err)
			}
			r.Signal(syscall.SIGHUP)
			r.Until("the log is opened anew", func() bool { _, err := os.Stat(logFile); return err == nil })
			select {
			case err := <-done:
				t.Errorf("a reload did not wait for the election: %v", err)
			default:
			}
			if !released {
				r.Signal(syscall.SIGTERM)
				if code := r.Exit(); code != 0 {
					t.Errorf("exit status %d", code)
				}
				return
			}
			if err := os.WriteFile(gate, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			for range cap(done) {
				if err := <-done; err != nil {
					t.Errorf("reload: %v", err)
				}
			}
			r.awaitGreeting("b")
			if now := r.relayOf("orders"); len(now.Hosts) != 2 || now.Primary != b {
				t.Errorf("after the election: %+v", now)
			}
			r.Terminate()
		})
	}
}

// A thousand HUPs are a few reloads, and hide no TERM.
func TestHangupStorm(t *testing.T) {
	t.Parallel()
	a := echoHost(t, "a")
	addr := freeAddr(t)
	r := openFile(t, "relays:\n  - {name: orders, hosts: ["+a+"], listen: ["+addr+"]}\n", addr, "a")
	clients := load(t, r.Understudy, addr)
	for range 1000 {
		r.Signal(syscall.SIGHUP)
	}
	r.Until("the configuration is read again", func() bool { return countLog(r.Understudy, "configuration reloaded") > 0 })
	report := finish(r.Understudy, clients)
	wantNoneLost(t, report)
	if now := r.relayOf("orders"); now.Epoch != 1 {
		t.Errorf("epoch %d, want no election", now.Epoch)
	}
	for range 100 {
		r.Signal(syscall.SIGHUP)
	}
	r.Signal(syscall.SIGTERM)
	if code := r.Exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// The log level applies from the reload on, for relays too.
func TestReloadChangesTheLogLevel(t *testing.T) {
	t.Parallel()
	a := echoHost(t, "a")
	addr := freeAddr(t)
	text := "relays:\n  - {name: orders, hosts: [" + a + "], listen: [" + addr + "]}\n"
	r := openFile(t, text, addr, "a")
	// A connection is logged when the relay has seen its end, with the settings
	// of that moment: a reload that comes sooner would log it.
	ended := func(n uint64) {
		t.Helper()
		r.Until(fmt.Sprintf("%d connections have ended", n), func() bool {
			c := r.relayOf("orders").Clients
			return c.Accepted == n && c.Live == 0
		})
	}
	ended(1) // the one that waited for the primary
	quiet := strings.Replace(text, "hosts:", "connection_log: true, hosts:", 1)
	r.reload(quiet + "log: {level: warn}\n")
	greeted(t, "tcp", addr, "a").Close()
	ended(2)
	r.reload(quiet + "log: {level: info}\n")
	greeted(t, "tcp", addr, "a").Close()
	ended(3)
	end(t, r.Understudy) // what it has logged has been read after that
	if n := countLog(r.Understudy, "relay: connection:"); n != 1 {
		t.Errorf("%d connections logged, want the one at level info", n)
	}
}

// A port that gives a verdict in another protocol stays bound while its route
// is renamed, and is added and removed with the file.
func TestReloadKeepsVerdictPorts(t *testing.T) {
	t.Parallel()
	a := echoHost(t, "a")
	addr, verdict, agent, responder := freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t)
	text := func(routes string) string {
		return "http: " + verdict + "\nrelays:\n  - {name: orders, hosts: [" + a + "], listen: [" + addr + "]}\n" + routes
	}
	route := func(path, more string) string {
		return "routes:\n  " + path + ": {relays: all, agent: \"" + agent + "\", tcp: \"" + responder + "\"" + more + "}\n"
	}
	r := openFile(t, text(route("/one", "")), addr, "a")
	says := func(want string) {
		t.Helper()
		r.Until("the agent says "+want, func() bool {
			c, err := net.Dial("tcp", agent)
			if err != nil {
				return false
			}
			defer c.Close()
			got, _ := io.ReadAll(c)
			return strings.HasPrefix(string(got), want)
		})
	}
	says("up")
	r.reload(text(route("/two", "")))
	says("up")
	r.reload(text(route("/two", ", probes: [gone]") + "probes:\n  gone: {flag: {dir: " + t.TempDir() + ", name: x}}\n"))
	says("down")
	r.reload(text(""))
	r.reload(text(route("/three", "")))
	says("up")
	r.Until("the verdict port is open", func() bool {
		c, err := net.Dial("tcp", responder)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	end(t, r.Understudy)
}

// Balancers see the verdict turn bad while the last connections finish.
func TestVerdictTurnsWhileTheProgramEnds(t *testing.T) {
	t.Parallel()
	a := echoHost(t, "a")
	addr, verdict := freeAddr(t), freeAddr(t)
	u := start(t, "--bind", addr, "--hosts", a, "--http", verdict, "--drain-timeout", "1h")
	awaitGreeting(t, u, addr, "a")
	u.Until("the verdict is good", func() bool { return pingStatus("http://"+verdict+"/ping") == http.StatusOK })
	last := greeted(t, "tcp", addr, "a")
	u.Signal(syscall.SIGTERM)
	u.Until("the verdict turns", func() bool { return pingStatus("http://"+verdict+"/ping") == http.StatusServiceUnavailable })
	last.Close()
	if code := u.Exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// A reload during the start must not notify the service manager that the start
// is over.
func TestReloadIsNotTheEndOfTheStart(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	silent := listen(t).Addr().String() // accepts connections and sends nothing
	file := filepath.Join(t.TempDir(), "understudy.yaml")
	text := "relays:\n  - name: orders\n    hosts: [" + silent + "]\n    listen: [" + freeAddr(t) + "]\n" +
		"    checks:\n      - tcp: {expect: hello}\n        timeout: 1h\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	u := m.start(t, nil, "--config", file)
	u.Until("it says how it is", func() bool { return strings.Contains(m.all(), "STATUS=") })
	u.Signal(syscall.SIGHUP)
	u.WaitLog("configuration reloaded")
	if got := m.all(); strings.Contains(got, "READY=1") || strings.Contains(got, "RELOADING=1") {
		t.Errorf("notified before the start is over:\n%s", got)
	}
	end(t, u)
}

// The next reload may come before the last one's connections are over: many
// reloads leak nothing.
func TestReloadsLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	a, b := echoHost(t, "a"), echoHost(t, "b")
	addr, extra, verdict, verdict2, agent, responder := freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t)
	head := func(http string) string {
		return "http: " + http + "\nrelays:\n  - {name: orders, hosts: [" + a + ", " + b + "], listen: [" + addr + "]}\n"
	}
	r := openFile(t, head(verdict), addr, "a")
	variants := []string{
		head(verdict2),
		head(verdict) + "  - {name: other, hosts: [" + b + "], listen: [" + extra + "]}\n",
		head(verdict) + "probes:\n  here: {vip: {addresses: [127.0.0.1]}}\nroutes:\n" +
			"  /up: {probes: [here], agent: \"" + agent + "\", tcp: \"" + responder + "\"}\n" +
			"  /api/: {endpoints: [\"http://" + a + "\"]}\n",
		head("{listen: "+verdict+"}") + "log: {level: debug}\n",
		head(verdict),
	}
	files := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.PID()))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	for range 2 {
		for _, v := range variants {
			r.reload(v)
		}
	}
	before := files()
	for range 10 {
		for _, v := range variants {
			r.reload(v)
			if who, err := proctest.Greeting(addr, patience); who != "a" {
				t.Fatalf("%q answers, %v", who, err)
			}
		}
	}
	r.Until(fmt.Sprintf("it has %d descriptors again", before), func() bool { return files() <= before })
	end(t, r.Understudy)
}

// A probe that only gets another schedule or other thresholds keeps its state,
// and so does the verdict that includes it.
func TestReloadKeepsWhatAProbeFound(t *testing.T) {
	t.Parallel()
	a, addr, verdict := echoHost(t, "a"), freeAddr(t), freeAddr(t)
	text := func(rules string) string {
		return fmt.Sprintf("http: %s\nrelays:\n  - {name: orders, hosts: [%s], listen: [%s]}\n", verdict, a, addr) +
			"probes:\n  here: {vip: {addresses: [127.0.0.1]}, " + rules + "}\nroutes:\n  /up: {must: [here]}\n"
	}
	r := openFile(t, text("interval: 100ms"), addr, "a")
	url := "http://" + verdict + "/up"
	r.Until("the verdict is good", func() bool { return pingStatus(url) == http.StatusOK })
	for _, rules := range []string{"interval: 1h, rise: 9", "interval: 1h, rise: 8, fall: 4", "interval: 2h, timeout: 5s"} {
		r.reload(text(rules))
		for range 3 {
			if got := pingStatus(url); got != http.StatusOK {
				t.Fatalf("the verdict is %d after the reload to %q", got, rules)
			}
		}
	}
	end(t, r.Understudy)
}

// Relays of a process share its descriptors: together they accept no more
// connections than the descriptor limit allows.
func TestRelaysShareTheDescriptors(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("prlimit"); err != nil {
		t.Skip("SKIP: needs prlimit (apt-get install util-linux)")
	}
	const descriptors = 256
	most := uint64(descriptors-64) / 2
	host, first, second := echoHost(t, "a"), freeAddr(t), freeAddr(t)
	socket := socketPath(t)
	file := filepath.Join(t.TempDir(), "understudy.yaml")
	text := fmt.Sprintf("relays:\n  - {name: one, hosts: [%s], listen: [%s]}\n  - {name: two, hosts: [%s], listen: [%s]}\n", host, first, host, second)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	u := proctest.StartCommand(t, proctest.BinaryCommand("prlimit", nil,
		fmt.Sprintf("--nofile=%d", descriptors), program(t), "--config", file, "--control", socket))
	awaitGreeting(t, u, first, "a")
	awaitGreeting(t, u, second, "a")
	client := control.NewClient(socket)
	live := func() (n uint64) {
		// Without descriptors even the control socket is silent.
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		now, err := client.Status(ctx)
		if err != nil {
			t.Fatalf("status: %v", err)
		}
		for _, r := range now.Relays {
			n += r.Clients.Live
		}
		return n
	}
	for range most {
		dial(t, first)
		dial(t, second)
	}
	u.Until("there is no room for more", func() bool { return live() >= most })
	for range 20 {
		if n := live(); n > most {
			t.Fatalf("%d connections at one time, want %d at most", n, most)
		}
		time.Sleep(5 * time.Millisecond) // for a connection too many to show
	}
	u.WaitLog("connection limit reached")
}

// A probe's script that hangs delays neither a reload nor the end, and is
// killed with its probe.
func TestHangingProbeDelaysNothing(t *testing.T) {
	t.Parallel()
	a, addr := echoHost(t, "a"), freeAddr(t)
	pids := filepath.Join(t.TempDir(), "pids")
	hangs := script(t, "echo $$ >>"+pids+"\nexec sleep 1000\n")
	text := fmt.Sprintf("http: %s\nrelays:\n  - {name: orders, hosts: [%s], listen: [%s]}\n", freeAddr(t), a, addr)
	probed := text + "probes:\n  p: {exec: {command: [" + hangs + "]}, timeout: 10m}\nroutes:\n  /up: {probes: [p]}\n"
	r := openFile(t, probed, addr, "a")
	gone := func(n int) func() bool {
		return func() bool {
			all := lines(pids)
			if len(all) < n {
				return false
			}
			pid, err := strconv.Atoi(all[n-1])
			return err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
		}
	}
	r.Until("the script hangs", func() bool { return len(lines(pids)) == 1 })
	r.reload(text)
	r.Until("it ends with its probe", gone(1))
	r.reload(probed)
	r.Until("it hangs again", func() bool { return len(lines(pids)) == 2 })
	begin := time.Now()
	r.Signal(syscall.SIGTERM)
	if code := r.Exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if took := time.Since(begin); took > time.Minute { // the script's timeout is ten
		t.Errorf("the end took %v", took)
	}
	proctest.Until(t, "the script does not outlive the program", gone(2))
}
