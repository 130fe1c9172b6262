//go:build linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/control"
	"understudy/internal/proctest"
)

// together is the program with several relays in front of hosts that fail
// together.
type together struct {
	*operated
	addrs []string // of the relays, which are called r1, r2 …
	hosts [][]*witness
	http  string
	file  string
}

// startTogether starts the program with a relay for each list of hosts, and
// waits until they all serve.
func startTogether(t *testing.T, hosts ...[]*witness) *together {
	t.Helper()
	s := &together{hosts: hosts, http: freeAddr(t)}
	var text strings.Builder
	fmt.Fprintf(&text, "http: %s\nstate_dir: %s\nrelays:\n", s.http, filepath.Join(t.TempDir(), "state"))
	for i, list := range hosts {
		s.addrs = append(s.addrs, freeAddr(t))
		fmt.Fprintf(&text, "  - {name: r%d, listen: [%q], hosts: [%q, %q]}\n", i+1, s.addrs[i], list[0].addr, list[1].addr)
	}
	s.file = filepath.Join(t.TempDir(), "understudy.yaml")
	if err := os.WriteFile(s.file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := socketPath(t)
	s.operated = &operated{show: &show{t: t, addr: s.addrs[0]}, socket: socket, client: control.NewClient(socket)}
	s.Understudy = start(t, "--config", s.file, "--control", socket)
	s.awaitAll()
	return s
}

// status is the status of the whole process.
func (s *together) status() control.Status {
	s.t.Helper()
	now, err := s.client.Status(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return now
}

// states are the states of the hosts of the relays from to to, counted from
// one.
func (s *together) states(from, to int) (all []string) {
	for _, r := range s.status().Relays[from-1 : to] {
		for _, h := range r.Hosts {
			all = append(all, h.State)
		}
	}
	return all
}

// await waits until all hosts of some relays are in a state.
func (s *together) await(state string, from, to int) {
	s.t.Helper()
	s.Until(fmt.Sprintf("the hosts of relays %d to %d are %s", from, to, state), func() bool {
		for _, is := range s.states(from, to) {
			if is != state {
				return false
			}
		}
		return true
	})
}

// awaitAll waits until every host is up and every relay serves.
func (s *together) awaitAll() {
	s.t.Helper()
	for i, addr := range s.addrs {
		s.Until(fmt.Sprintf("relay %d serves", i+1), func() bool {
			_, err := proctest.Greeting(addr, patience)
			return err == nil
		})
	}
	s.await("up", 1, len(s.addrs))
}

// ports lists the ports of the hosts of some relays, for nft.
func (s *together) ports(from, to int) string {
	var all []string
	for _, list := range s.hosts[from-1 : to] {
		for _, w := range list {
			all = append(all, w.port())
		}
	}
	return "{" + strings.Join(all, ",") + "}"
}

// dialPrimary connects to a relay, and returns the host that greets.
func (s *together) dialPrimary(relay int) (client, *witness) {
	s.t.Helper()
	primary := s.hosts[relay-1][0]
	if s.status().Relays[relay-1].Primary != primary.addr {
		primary = s.hosts[relay-1][1]
	}
	c := dial(s.t, s.addrs[relay-1])
	c.want(primary.name + "\n")
	return c, primary
}

// warnings counts the warnings that all hosts stopped at the same time.
func (s *together) warnings() int {
	return countLog(s.Understudy, "[WARN]", "stopped answering within")
}

// All hosts of three relays stop at the same time, because this machine's own
// network drops their packets: that is logged, with the state of the network,
// and has no other effect: the connections still work when the network is back.
// Hosts of one relay alone, or failures seconds apart, are not logged so.
func TestAllHostsAtOnce(t *testing.T) {
	t.Parallel()
	if !isolate(t, "nft") {
		return
	}
	run(t, "nft", "add table inet fault")
	run(t, "nft", "add chain inet fault input { type filter hook input priority 0; }")
	drop := func(ports string) { run(t, "nft", "add rule inet fault input tcp dport", ports, "drop") }
	heal := func() { run(t, "nft", "flush chain inet fault input") }
	var hosts [][]*witness
	for i := range 3 {
		hosts = append(hosts, []*witness{newWitness(t, fmt.Sprintf("a%d", i+1)), newWitness(t, fmt.Sprintf("b%d", i+1))})
	}
	s := startTogether(t, hosts...)

	// One relay's hosts, and seconds later all others.
	drop(s.ports(1, 1))
	s.await("down", 1, 1)
	s.Until("it is logged of the one relay", func() bool { return countLog(s.Understudy, "no host is usable", "relay=r1") > 0 })
	begin := time.Now()
	s.Until("seconds have passed", func() bool { return time.Since(begin) > 3*time.Second })
	if now := s.status(); now.Outage != nil || len(now.Relays[0].Warnings) != 0 {
		t.Errorf("one relay's hosts are down, and it has %+v", now.Outage)
	}
	drop(s.ports(2, 3))
	s.await("down", 1, 3)
	if now := s.status(); now.Outage != nil {
		t.Errorf("hosts stopped seconds apart, and it has %+v", now.Outage)
	}
	heal()
	s.awaitAll()
	if n := s.warnings(); n != 0 {
		t.Fatalf("%d warnings before all hosts stopped at once", n)
	}

	// All at once, under connections that are open.
	var open []client
	var served []*witness // the host of each of them
	for i := range s.addrs {
		c, primary := s.dialPrimary(i + 1)
		c.send("before;")
		s.Until("the host has heard it", func() bool { return primary.text() == "before;" })
		open, served = append(open, c), append(served, primary)
	}
	drop(s.ports(1, 3))
	s.Until("the warning", func() bool { return s.warnings() == 1 })
	line := regexp.MustCompile(`all 6 hosts of 3 relays stopped answering within ([01]\.\d) s: this machine's network is the likely cause \(.*there is no default route\)`)
	if !line.MatchString(s.Log()) {
		t.Errorf("the warning is not %s", line)
	}
	now := s.status()
	o := now.Outage
	switch {
	case o == nil:
		t.Fatal("the status has no outage")
	case o.Hosts != 6 || o.Relays != 3 || o.WithinSeconds > 1.5 || o.Failure != "timeout" || !line.MatchString(o.Text) || len(o.Network) == 0:
		t.Errorf("the outage is %+v", o)
	}
	s.want(0, words("status"), `warning  all 6 hosts of 3 relays stopped answering`)
	s.want(0, words("why --relay r2"), `^warning: all 6 hosts of 3 relays stopped answering`)
	s.want(0, words("why --relay r2 --json"), `"all 6 hosts of 3 relays stopped answering`)
	s.Until("no relay has a primary", func() bool {
		status, body := get(t, "http://"+s.http+"/ping")
		return status == 503 && body == "no primary"
	})
	s.Until("the verdict's record says why", func() bool {
		return countLog(s.Understudy, "Relay r1 → no primary: all 6 hosts of 3 relays stopped answering within") > 0
	})

	heal()
	s.Until("it is over", func() bool {
		return countLog(s.Understudy, "[INFO]", "a host answers again after all had stopped answering") == 1
	})
	s.awaitAll()
	for i, c := range open {
		c.send("after;")
		s.Until("the host hears the client from before", func() bool { return served[i].text() == "before;after;" })
	}
	if now := s.status(); now.Outage != nil || len(now.Relays[1].Warnings) != 0 {
		t.Errorf("all is well, and it has %+v", now.Outage)
	}
	if n := s.warnings(); n != 1 {
		t.Errorf("%d warnings, want one", n)
	}
	for _, c := range open {
		c.Close()
	}
	s.Terminate()
}

// The link to all hosts is set down, and then this machine prohibits the route
// to them: the warning names either cause.
func TestLinkDown(t *testing.T) {
	t.Parallel()
	if !isolate(t) {
		return
	}
	// The hosts listen in a network of their own, at the other end of a virtual
	// cable.
	run(t, "ip", "link add near type veth peer name far")
	run(t, "ip", "addr add 192.0.2.1/24 dev near")
	run(t, "ip", "link set near up")
	listeners := make(chan net.Listener, 2)
	failed := make(chan error, 1)
	thread := make(chan int)
	moved := make(chan struct{})
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its network
		failed <- unix.Unshare(unix.CLONE_NEWNET)
		thread <- unix.Gettid()
		<-moved
		for _, words := range []string{"addr add 192.0.2.2/24 dev far", "addr add 192.0.2.3/24 dev far", "link set far up"} {
			if out, err := exec.Command("ip", strings.Fields(words)...).CombinedOutput(); err != nil {
				failed <- fmt.Errorf("ip %s: %w: %s", words, err, out)
				return
			}
		}
		for _, addr := range []string{"192.0.2.2:5432", "192.0.2.3:5432"} {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				failed <- err
				return
			}
			listeners <- l
		}
		failed <- nil
		<-over
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	run(t, "ip", fmt.Sprintf("link set far netns %d", <-thread))
	close(moved)
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	var hosts []*witness
	for _, name := range []string{"a", "b"} {
		l := <-listeners
		t.Cleanup(func() { l.Close() })
		hosts = append(hosts, newWitnessAt(l, name))
	}
	s := startTogether(t, hosts)
	c, primary := s.dialPrimary(1)
	run(t, "ip", "link set near down")
	s.Until("the warning", func() bool { return s.warnings() == 1 })
	line := regexp.MustCompile(`all 2 hosts of 1 relay stopped answering within [01]\.\d s: this machine's network is the likely cause \(link near is down; there is no default route\): failure=(unreachable|"timeout, unreachable")`)
	if !line.MatchString(s.Log()) {
		t.Errorf("the warning is not %s", line)
	}
	run(t, "ip", "link set near up")
	s.awaitAll()
	c.send("after;")
	s.Until("the host hears the client from before", func() bool { return primary.text() == "after;" })
	if n := s.warnings(); n != 1 {
		t.Errorf("%d warnings, want one", n)
	}

	// A rule of this machine prohibits the route.
	run(t, "ip", "rule add priority 10 to 192.0.2.0/24 prohibit")
	s.Until("the warning", func() bool { return s.warnings() == 2 })
	wantLog(t, s.Understudy, 1, "all 2 hosts of 1 relay", "this machine's firewall is the likely cause: failure=firewall")
	run(t, "ip", "rule del priority 10")
	s.awaitAll()
	c.send("and after;")
	s.Until("the host hears the client from before", func() bool { return primary.text() == "after;and after;" })
	c.Close()
	s.Terminate()
}

// Two relays of the same two machines have different ones as primary, after a
// switch of only one of them and after a restart: a warning names both, until
// they agree.
func TestRelaysDisagree(t *testing.T) {
	t.Parallel()
	if !isolate(t) {
		return
	}
	run(t, "ip", "addr add 192.0.2.1/32 dev lo")
	run(t, "ip", "addr add 192.0.2.2/32 dev lo")
	at := func(addr, name string) *witness {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return newWitnessAt(l, name)
	}
	hosts := [][]*witness{
		{at("192.0.2.1:5432", "a1"), at("192.0.2.2:5432", "b1")},
		{at("192.0.2.1:6432", "a2"), at("192.0.2.2:6432", "b2")},
	}
	calls := filepath.Join(t.TempDir(), "calls")
	s := startTogether(t, hosts...)
	text, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, "on_event: "+script(t, `[ $UNDERSTUDY_EVENT != two-writers ] || echo "$2 $1" >>`+calls+"\n")+"\n"...)
	if err := os.WriteFile(s.file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Reload(t.Context(), control.Order{}); err != nil {
		t.Fatal(err)
	}
	logged := func(texts ...string) int {
		return countLog(s.Understudy, append(texts, "disagree about the primary")...)
	}
	s.want(0, words("switch --relay r2 192.0.2.2:6432"))
	s.Until("the warning", func() bool {
		return logged("[WARN]", "relays r1 and r2", "r1 has 192.0.2.1:5432, r2 has 192.0.2.2:6432") == 1
	})
	s.Until("scripts run for each relay", func() bool { return len(lines(calls)) == 2 })
	if got := strings.Join(lines(calls), ", "); got != "r1 192.0.2.1:5432, r2 192.0.2.2:6432" && got != "r2 192.0.2.2:6432, r1 192.0.2.1:5432" {
		t.Errorf("scripts were called with %s", got)
	}
	now := s.status()
	if d := now.Disagreements; len(d) != 1 || len(d[0].Primaries) != 2 || len(now.Relays[0].Warnings) != 1 || len(now.Relays[1].Warnings) != 1 {
		t.Errorf("the status has %+v", d)
	}
	s.want(0, words("status"), `warning  relays r1 and r2 have the same machines`)

	s.Signal(syscall.SIGKILL) // a restart does not change that
	s.Exit()
	s.Understudy = start(t, "--config", s.file, "--control", s.socket)
	s.Until("the warning after the restart", func() bool {
		return logged("[WARN]", "relays r1 and r2", "r1 has 192.0.2.1:5432, r2 has 192.0.2.2:6432") == 1
	})
	s.want(0, words("switch --relay r1 192.0.2.2:5432"))
	s.Until("they agree", func() bool { return countLog(s.Understudy, "[INFO]", "relays agree about the primary again") == 1 })
	if now := s.status(); len(now.Disagreements) != 0 || len(now.Relays[0].Warnings) != 0 {
		t.Errorf("they agree, and the status has %+v", now.Disagreements)
	}
	if n := logged(); n != 1 {
		t.Errorf("%d warnings, want one", n)
	}
	s.Terminate()
}
