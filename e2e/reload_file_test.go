//go:build linux

package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy/control"
	"understudy/internal/proctest"
)

// reloading is the program with a configuration file and a control socket.
type reloading struct {
	*operated
	file string
}

// write puts a text in the place of the file in one step.
func (r *reloading) write(text string) {
	r.t.Helper()
	if err := os.WriteFile(r.file+"~", []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(r.file+"~", r.file); err != nil {
		r.t.Fatal(err)
	}
}

// reload writes a text and has it read, which must go well.
func (r *reloading) reload(text string) control.Changes {
	r.t.Helper()
	r.write(text)
	did, err := r.client.Reload(r.t.Context(), control.Order{})
	if err != nil {
		r.t.Fatalf("reload: %v", err)
	}
	return did
}

// openFile starts the program with a configuration file and waits until addr
// greets as host.
func openFile(t *testing.T, text, addr, host string) *reloading {
	t.Helper()
	socket := socketPath(t)
	r := &reloading{file: filepath.Join(t.TempDir(), "understudy.yaml")}
	r.operated = &operated{show: &show{t: t, addr: addr}, socket: socket, client: control.NewClient(socket)}
	r.write(text)
	r.Understudy = start(t, "--config", r.file, "--control", socket)
	r.awaitGreeting(host)
	r.first = r.look()
	return r
}

// relayOf looks for a relay by name.
func (r *reloading) relayOf(name string) control.RelayStatus {
	r.t.Helper()
	s, err := r.client.Status(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, relay := range s.Relays {
		if relay.Name == name {
			return relay
		}
	}
	r.t.Fatalf("there is no relay %s: %+v", name, s)
	return control.RelayStatus{}
}

// transfer sends the same bytes again and again through addr, and compares what
// comes back, until stop is closed. It returns what went wrong.
func transfer(addr string, stop <-chan struct{}) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	greeting := make([]byte, 2) // one letter
	if _, err := io.ReadFull(c, greeting); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	sent, received := sha256.New(), sha256.New()
	part, back := make([]byte, 16<<10), make([]byte, 16<<10)
	rng := rand.NewChaCha8([32]byte{})
	for {
		_, _ = rng.Read(part)
		sent.Write(part)
		if _, err := c.Write(part); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, back); err != nil {
			return err
		}
		received.Write(back)
		if !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
			return fmt.Errorf("other bytes came back than were sent")
		}
		select {
		case <-stop:
			return nil
		case <-time.After(time.Millisecond): // the pace of a transfer
		}
	}
}

// F102: the configuration is read again and again, by HUP and by the verb, and
// everything in it changes in turn, under new connections and transfers: no
// client notices. As long as the primary is listed there is no election.
func TestReloadHarmsNoClient(t *testing.T) {
	const transfers = 50
	a, b, c := echoHost(t, "a"), echoHost(t, "b"), echoHost(t, "c")
	addr, verdict, verdict2, extra := freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t)
	record := filepath.Join(t.TempDir(), "record")
	trigger := script(t, recording(record))
	text := func(hosts, relay, rest string) string {
		return fmt.Sprintf("relays:\n  - name: orders\n    hosts: [%s]\n    triggers: {path: %s}\n%s%s", hosts, trigger, relay, rest)
	}
	listens := "    listen: [" + addr + "]\n"
	http := "http: " + verdict + "\n"
	r := openFile(t, text(a+", "+b, listens, http), addr, "a")

	load := load(t, r.Understudy, addr)
	stop := make(chan struct{})
	var all sync.WaitGroup
	broken := make(chan error, transfers)
	for range transfers {
		all.Go(func() {
			if err := transfer(addr, stop); err != nil {
				broken <- err
			}
		})
	}
	variants := []string{
		text(b+", "+a, listens, http), // another order
		text(a+", "+b+", "+c, listens, http),
		text(a, listens, http), // a standby is removed
		text(a+", "+b, listens+"    interval: 200ms\n    timeout: 500ms\n    fall: 5\n    rise: 1\n", http),
		text(a+", "+b, listens+"    checks:\n      - tcp: {expect: \"\\n\"}\n      - exec: {command: [/bin/true]}\n        interval: 500ms\n", http),
		text(a+", "+b, listens+"    allow: [127.0.0.0/8]\n    max_connections: 5000\n    idle_timeout: 1h\n    user_timeout: 30s\n    hold: 20s\n    connect_timeout: 2s\n", http),
		text(a+", "+b, "    listen: ["+addr+", "+extra+"]\n", http),
		text(a+", "+b, listens, "http: "+verdict2+"\n"),
		text(a+", "+b, listens, http+"probes:\n  here: {vip: {addresses: [127.0.0.1]}}\nroutes:\n  /up: {probes: [here]}\n"),
		text(a+", "+b, listens, http+"log: {level: debug}\n"),
		text(a+", "+b, listens+"  - {name: other, hosts: ["+c+"], listen: ["+extra+"]}\n", http),
		text(a+", "+b, listens+"    fence: drain=1s\n    failback: 10m\n    max_backoff: 5s\n", http),
	}
	reloads := 0
	for range runs(t, 2) {
		for n, v := range variants {
			reloads++
			served := load.Served()
			r.Until("some clients are served", func() bool { return load.Served() >= served+perSecond/10 })
			if n%2 == 0 {
				r.reload(v)
				continue
			}
			r.write(v)
			before := strings.Count(r.Log(), "configuration reloaded")
			r.Signal(syscall.SIGHUP)
			r.Until("the configuration is read again", func() bool { return strings.Count(r.Log(), "configuration reloaded") > before })
		}
	}
	report := finish(r.Understudy, load)
	close(stop)
	all.Wait()
	close(broken)
	for err := range broken {
		t.Errorf("a transfer was harmed: %v", err)
	}
	t.Logf("%d reloads, %d transfers; clients: %v", reloads, transfers, report)
	if len(report.Lost()) > 0 {
		t.Errorf("%d clients were lost", len(report.Lost()))
	}
	if got := r.relayOf("orders"); got.Epoch != 1 || got.Primary != a {
		t.Errorf("primary %s in epoch %d, want %s and no election", got.Primary, got.Epoch, a)
	}
	if got := lines(record); len(got) != 1 {
		t.Errorf("the trigger ran %d times, want once, at the start:\n%s", len(got), strings.Join(got, "\n"))
	}
	r.want(0, words("reload"), "^nothing had changed$")
	end(t, r.Understudy)
}

// A wrong file changes nothing, and the command, the status and the log report
// the error.
func TestReloadOfAWrongFileChangesNothing(t *testing.T) {
	t.Parallel()
	a, b := echoHost(t, "a"), echoHost(t, "b")
	addr, busy := freeAddr(t), listen(t).Addr().String()
	good := fmt.Sprintf("relays:\n  - {name: orders, hosts: [%s, %s], listen: [%s]}\n", a, b, addr)
	r := openFile(t, good, addr, "a")
	for _, tt := range []struct{ text, want string }{
		{strings.Replace(good, "hosts:", "hots:", 1), `understudy.yaml:2: relays\[0\].hots: unknown key: did you mean hosts\?`},
		{good + "relays: []\n", "understudy.yaml:3: "},
		{"{", "understudy.yaml"},
		{good + "http: " + addr + "\n", "understudy.yaml:3: "},
		{good + "http: " + busy + "\nroutes:\n  /up: {}\n", "address already in use"},
		{fmt.Sprintf("relays:\n  - {name: orders, hosts: [%s], listen: [%s, %s]}\n", b, addr, busy), "address already in use"},
		{good + "  - {name: more, hosts: [" + b + "], listen: [" + busy + "]}\n", "address already in use"},
		{strings.Replace(good, "name:", "check_host: /nowhere/check.sh, name:", 1), "/nowhere/check.sh"},
	} {
		r.write(tt.text)
		r.want(1, words("reload"), "^understudy: reload: nothing has changed:$", tt.want)
		r.want(0, words("status"), "the previous one stays in effect")
		if now := r.relayOf("orders"); now.Primary != a || now.Epoch != 1 || len(now.Hosts) != 2 || len(now.Listen) != 1 {
			t.Errorf("after a wrong file: %+v, want nothing changed", now)
		}
		if who, err := proctest.Greeting(addr, patience); who != "a" {
			t.Errorf("after a wrong file %q answers, %v", who, err)
		}
	}
	before := strings.Count(r.Log(), "configuration not reloaded")
	r.Signal(syscall.SIGHUP)
	r.Until("the log says so", func() bool { return strings.Count(r.Log(), "configuration not reloaded") > before })
	r.reload(good)
	if got := r.run("status"); strings.Contains(got.out, "goes on") {
		t.Errorf("the status still complains after a good reload:\n%s", got.out)
	}
	end(t, r.Understudy)
}

// Addresses, relays and the verdict's address come and go, and connections that
// came over them go on.
func TestReloadMovesAddresses(t *testing.T) {
	t.Parallel()
	a, b := echoHost(t, "a"), echoHost(t, "b")
	addr, moved, other, verdict, verdict2 := freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t)
	relay := func(name, host, at string) string {
		return fmt.Sprintf("  - {name: %s, hosts: [%s], listen: [%s], drain_timeout: 60s}\n", name, host, at)
	}
	r := openFile(t, "http: "+verdict+"\nrelays:\n"+relay("orders", a, addr)+relay("mail", b, other), addr, "a")
	awaitGreeting(t, r.Understudy, other, "b")
	stop := make(chan struct{})
	results := make(chan error, 2)
	for _, at := range []string{addr, other} {
		conn := dial(t, at)
		hello := make([]byte, 2)
		if _, err := io.ReadFull(conn, hello); err != nil {
			t.Fatal(err)
		}
		go func() {
			<-stop
			conn.send("still here?")
			conn.CloseWrite()
			got, err := io.ReadAll(conn)
			if string(got) != "still here?" || err != nil {
				err = fmt.Errorf("through %s came %q, %w", at, got, err)
			}
			results <- err
		}()
	}

	did := r.reload("http: " + verdict2 + "\nrelays:\n" + relay("orders", a, moved))
	if got := strings.Join(did.Changed, "; "); !strings.Contains(got, "relay orders: listen") || !strings.Contains(got, "relay mail: removed") || !strings.Contains(got, "http: listen") {
		t.Errorf("changed: %s", got)
	}
	if who, err := proctest.Greeting(moved, patience); who != "a" {
		t.Errorf("at the new address %q answers, %v", who, err)
	}
	for _, gone := range []string{addr, other, verdict} {
		r.Until(gone+" refuses", func() bool {
			c, err := net.DialTimeout("tcp", gone, time.Second)
			if err == nil {
				c.Close()
			}
			return err != nil
		})
	}
	if res, err := http.Get("http://" + verdict2 + "/ping"); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("the verdict at its new place: %v, %v", res, err)
	}
	close(stop)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	// And back, under the same names.
	r.reload("http: " + verdict + "\nrelays:\n" + relay("orders", a, addr) + relay("mail", b, other))
	awaitGreeting(t, r.Understudy, addr, "a")
	awaitGreeting(t, r.Understudy, other, "b")
	r.WaitLog("relay=mail accepted=")
	end(t, r.Understudy)
}

// A primary that is removed from the file is replaced like one that fails: its
// connections are fenced, clients wait, and the trigger runs.
func TestReloadTakesThePrimaryOut(t *testing.T) {
	t.Parallel()
	a, b := echoHost(t, "a"), echoHost(t, "b")
	addr, record := freeAddr(t), filepath.Join(t.TempDir(), "record")
	text := func(hosts string) string {
		return fmt.Sprintf("relays:\n  - {name: orders, hosts: [%s], listen: [%s], triggers: {path: %s}}\n", hosts, addr, script(t, recording(record)))
	}
	r := openFile(t, text(a+", "+b), addr, "a")
	r.Until("b is up", func() bool { return r.relayOf("orders").Hosts[1].State == "up" })
	old := dial(t, addr)
	hello := make([]byte, 2)
	if _, err := io.ReadFull(old, hello); err != nil {
		t.Fatal(err)
	}
	load := load(t, r.Understudy, addr)
	r.reload(text(b))
	r.awaitGreeting("b")
	old.wantReset()
	report := finish(r.Understudy, load)
	t.Logf("clients: %v", report)
	if len(report.Lost()) > 0 {
		t.Errorf("%d clients were lost", len(report.Lost()))
	}
	want := "failover relay=orders epoch=2 old=" + a + " new=" + b + " args=1:" + b
	if got := lines(record); len(got) != 2 || got[1] != want {
		t.Errorf("the trigger recorded\n%s\nwant the start and\n%s", strings.Join(got, "\n"), want)
	}
	r.want(0, words("why"), "is no host any more")
	end(t, r.Understudy)
}

// Without a file there is nothing to read again, and HUP has no effect.
func TestReloadWithoutAFile(t *testing.T) {
	t.Parallel()
	o := operate(t)
	o.want(1, words("reload"), "there is no configuration file")
	o.Signal(syscall.SIGHUP)
	o.WaitLog("nothing to reload")
	o.awaitGreeting("a")
	end(t, o.Understudy)
}
