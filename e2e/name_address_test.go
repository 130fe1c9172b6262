//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/control"
	"understudy/internal/proctest"
)

// TestAddresses uses names that are not machines: with several addresses, with
// another one, and with none.
func TestAddresses(t *testing.T) {
	t.Parallel()
	if !isolate(t) {
		return
	}
	server := serveNames(t)
	for _, tt := range []struct {
		name string
		play func(*testing.T, *names)
	}{
		{"one of three", oneOfThree},
		{"moves", hostMoves},
		{"moves to an address without a host", hostMovesNowhere},
		{"a part of the addresses at a time", partOfAddresses},
		{"denied for long", deniedForLong},
		{"NXDOMAIN for 5s", outageOfNames(noSuchName)},
		{"no address for 5s", outageOfNames(at())},
		{"SERVFAIL for 5s", outageOfNames(failure)},
		{"silence for 5s", outageOfNames(silence)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.play(t, server)
		})
	}
}

// named is the program in front of hosts that are names.
type named struct {
	*operated
	name   string
	server *names
}

// startNamed starts the program with args, in front of a host of that name, and
// waits until a client is served.
func startNamed(t *testing.T, server *names, name string, port int, args ...string) *named {
	t.Helper()
	return startNamedAt(t, server, freeAddr(t), name, port, args...)
}

// startNamedAt is startNamed with an address for clients, whose port names the
// relay.
func startNamedAt(t *testing.T, server *names, addr, name string, port int, args ...string) *named {
	t.Helper()
	socket := socketPath(t)
	n := &named{
		&operated{&show{t: t, addr: addr, record: filepath.Join(t.TempDir(), "record")}, socket, control.NewClient(socket)},
		net.JoinHostPort(name, strconv.Itoa(port)), server,
	}
	n.Understudy = start(t, append([]string{
		"--bind", n.addr, "--control", socket, "--interval", "200ms", "--hosts", n.name,
		"--on-failover", script(t, `echo "$UNDERSTUDY_EVENT $UNDERSTUDY_OLD_ADDRESS>$UNDERSTUDY_ADDRESS $1" >>`+n.record+"\n"),
	}, args...)...)
	n.Until("clients are served", func() bool {
		_, err := proctest.Greeting(n.addr, patience)
		return err == nil
	})
	return n
}

// machine is a host at an address of its own, which is also its name.
func machine(t *testing.T, ip string, port int) *proctest.Host {
	t.Helper()
	return (&proctest.Host{Name: ip, IP: ip, Port: port}).Start(t)
}

// sessionsAt connects clients that stay, and returns how many are at each
// address.
func (n *named) sessionsAt(count int) (all []client, at map[string]int) {
	n.t.Helper()
	at = map[string]int{}
	for range count {
		c := dial(n.t, n.addr)
		line := make([]byte, 64)
		size, err := c.Read(line)
		if err != nil {
			n.t.Fatal(err)
		}
		at[strings.TrimSpace(string(line[:size]))]++
		all = append(all, c)
	}
	return all, at
}

// cut counts the sessions that have been reset already.
func cut(t *testing.T, all []client) int {
	t.Helper()
	n := 0
	for _, c := range all {
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(fd uintptr) {
			if _, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_DONTWAIT|unix.MSG_PEEK); !errors.Is(err, unix.EAGAIN) {
				n++
			}
		})
	}
	return n
}

// addressNow is the address of a host in the status.
func (n *named) addressNow(host string) control.Address {
	n.t.Helper()
	for _, h := range n.now().Hosts {
		if h.Name == host && h.Address != nil {
			return *h.Address
		}
	}
	return control.Address{}
}

// oneOfThree: all clients of one epoch go to one machine, which passed its
// checks, however often the name server rotates its answers. Going to another
// one takes an election.
func oneOfThree(t *testing.T, server *names) {
	t.Helper()
	port := proctest.FreePort(t, "127.0.0.1")
	ips := []string{"127.0.1.1", "127.0.1.2", "127.0.1.3"}
	machines := map[string]*proctest.Host{}
	for _, ip := range ips {
		machines[ip] = machine(t, ip, port)
	}
	server.say("three.test", turning(ips...))
	state := t.TempDir()
	n := startNamed(t, server, "three.test", port, "--state-dir", state)
	first, at := n.sessionsAt(120)
	if len(at) != 1 {
		t.Fatalf("clients of one epoch are at %v, want one machine", at)
	}
	old := slices.Collect(maps.Keys(at))[0]
	if got := n.addressNow(n.name); got.Address != old || len(got.Others) != 2 || got.Source != "name server 127.0.0.1:53" || time.Since(got.Confirmed) > 10*time.Second {
		t.Errorf("the status says %+v, want %s, confirmed a moment ago by the name server, and two others", got, old)
	}
	n.want(0, words("why"), "address: three.test:.* → "+old+", confirmed .* ago; source: name server 127.0.0.1:53; other addresses: ")

	machines[old].StopListening()
	n.Until("the host has moved", func() bool { return countLog(n.Understudy, "relay open", "epoch=2") == 1 })
	if got := cut(t, first); got != len(first) {
		t.Errorf("%d of %d sessions at the address before were fenced, want all", got, len(first))
	}
	next, at := n.sessionsAt(40)
	if len(at) != 1 || at[old] != 0 {
		t.Errorf("clients of the next epoch are at %v, want one machine that is not %s", at, old)
	}
	moved := slices.Collect(maps.Keys(at))[0]
	n.wantTriggers("start >"+old+" "+n.name, "moved "+old+">"+moved+" "+n.name)
	machines[old].Listen() // a machine that is back changes nothing
	last, at := n.sessionsAt(40)
	if len(at) != 1 || at[old] != 0 {
		t.Errorf("clients are at %v after %s came back", at, old)
	}
	endSessions(append(next, last...))
	n.end()

	// Nor does a restart.
	now := slices.Collect(maps.Keys(at))[0]
	n = startNamedAt(t, server, n.addr, "three.test", port, "--state-dir", state)
	if got := n.addressNow(n.name).Address; got != now {
		t.Errorf("after a restart the host is at %s, want %s", got, now)
	}
	n.end()
}

// hostMoves: another address is another host. It is elected, connections to the
// old address are fenced, and the trigger gets the new one.
func hostMoves(t *testing.T, server *names) {
	t.Helper()
	port := proctest.FreePort(t, "127.0.0.1")
	machine(t, "127.0.2.1", port)
	machine(t, "127.0.2.2", port)
	server.say("moves.test", at("127.0.2.1"))
	n := startNamed(t, server, "moves.test", port)
	before, _ := n.sessionsAt(sessions)
	server.say("moves.test", at("127.0.2.2"))
	n.Until("the host has moved", func() bool { return countLog(n.Understudy, "relay open", "epoch=2") == 1 })
	if got := cut(t, before); got != sessions {
		t.Errorf("%d of %d sessions at the former machine were fenced, want all", got, sessions)
	}
	after, at := n.sessionsAt(sessions)
	if at["127.0.2.2"] != sessions {
		t.Errorf("clients are at %v, want 127.0.2.2", at)
	}
	n.wantTriggers("start >127.0.2.1 "+n.name, "moved 127.0.2.1>127.0.2.2 "+n.name)
	n.want(0, words("events"), "moved")
	n.want(0, words("status"), "moves.test:.* at 127.0.2.2 for")
	endSessions(after)
	if c := n.end(); c["fenced"] != sessions {
		t.Errorf("counts at the end: %v, want %d fenced", c, sessions)
	}
}

// hostMovesNowhere: a service does not move to an address where no host
// answers.
func hostMovesNowhere(t *testing.T, server *names) {
	t.Helper()
	port := proctest.FreePort(t, "127.0.0.1")
	machine(t, "127.0.3.1", port)
	server.say("nowhere.test", at("127.0.3.1"))
	n := startNamed(t, server, "nowhere.test", port)
	all, _ := n.sessionsAt(sessions)
	server.say("nowhere.test", at("127.0.3.2"))
	n.WaitLog("name resolves to another address, which fails its checks")
	if got := cut(t, all); got != 0 {
		t.Errorf("%d sessions were cut, want none", got)
	}
	wantElections(t, n.Understudy, 1)
	n.want(0, words("why"), "address: nowhere.test:.* → 127.0.3.1, confirmed .* other addresses: 127.0.3.2")
	machine(t, "127.0.3.2", port)
	n.Until("the host has moved", func() bool { return countLog(n.Understudy, "relay open", "epoch=2") == 1 })
	if got := cut(t, all); got != sessions {
		t.Errorf("%d of %d sessions at the former machine were fenced, want all", got, sessions)
	}
	n.end()
}

// partOfAddresses: a name server that gives a part of the addresses at a time
// moves nothing.
func partOfAddresses(t *testing.T, server *names) {
	t.Helper()
	port := proctest.FreePort(t, "127.0.0.1")
	for _, ip := range []string{"127.0.4.1", "127.0.4.2", "127.0.4.3"} {
		machine(t, ip, port)
	}
	server.say("part.test", at("127.0.4.1", "127.0.4.2"))
	n := startNamed(t, server, "part.test", port)
	all, _ := n.sessionsAt(sessions)
	// 127.0.4.2 goes and comes back: from now on the program knows that the server
	// does that.
	for _, a := range []answer{at("127.0.4.1", "127.0.4.3"), at("127.0.4.1", "127.0.4.2"), at("127.0.4.2", "127.0.4.3")} {
		before := server.queriesOf("part.test")
		server.say("part.test", a)
		n.Until("the name was asked for", func() bool { return server.queriesOf("part.test") >= before+4 })
	}
	time.Sleep(3 * time.Second) // three times what it takes to move
	if got := cut(t, all); got != 0 {
		t.Errorf("%d sessions were cut, want none", got)
	}
	wantElections(t, n.Understudy, 1)
	endSessions(all)
	n.end()
}

// deniedForLong: a name that does not exist for longer than the hold makes its
// host unknown, which is not elected. A primary stays while its checks pass.
func deniedForLong(t *testing.T, server *names) {
	t.Helper()
	port := proctest.FreePort(t, "127.0.0.1")
	a := machine(t, "127.0.5.1", port)
	machine(t, "127.0.5.2", port)
	server.say("a.denied.test", at("127.0.5.1"))
	server.say("b.denied.test", at("127.0.5.2"))
	b := fmt.Sprintf("b.denied.test:%d", port)
	n := startNamed(t, server, "a.denied.test", port, "--hosts", b, "--dns-hold", "1s", "--hold", "30s", "--max-backoff", "1s")
	state := func(host string) string {
		for _, h := range n.now().Hosts {
			if h.Name == host {
				return h.State
			}
		}
		return ""
	}
	n.Until("b is up", func() bool { return state(b) == "up" })
	all, _ := n.sessionsAt(sessions)
	server.say("a.denied.test", noSuchName)
	server.say("b.denied.test", noSuchName)
	n.Until("b is unknown", func() bool { return state(b) == "unknown" })
	n.WaitLog("name does not exist: the host is not elected any more, and stays primary while its checks pass")
	if got := cut(t, all); got != 0 {
		t.Errorf("%d sessions were cut, want none", got)
	}
	wantElections(t, n.Understudy, 1)
	n.want(0, words("why"), "a.denied.test:.* → 127.0.5.1, confirmed .*no such host")

	// One failure is enough for an address that no name resolves to any more, and
	// it is not used again although it answers: it may be another machine's.
	a.StopListening()
	n.WaitLog("primary lost")
	a.Listen()
	n.Until("all hosts were asked again", func() bool { return countLog(n.Understudy, "host is usable") >= 2 })
	wantElections(t, n.Understudy, 1) // and none while no name exists
	server.say("b.denied.test", at("127.0.5.2"))
	awaitGreeting(t, n.Understudy, n.addr, "127.0.5.2")
	n.wantTriggers("start >127.0.5.1 "+n.name, "failover 127.0.5.1>127.0.5.2 "+b)
	n.end()
}

// outageOfNames: for five seconds a name server gives another answer, or none.
func outageOfNames(says answer) func(*testing.T, *names) {
	return func(t *testing.T, server *names) {
		t.Helper()
		port := proctest.FreePort(t, "127.0.0.1")
		name := fmt.Sprintf("outage%d.test", port)
		machine(t, "127.0.6.1", port)
		server.say(name, at("127.0.6.1"))
		n := startNamed(t, server, name, port)
		all, _ := n.sessionsAt(sessions)
		server.say(name, says)
		begin := time.Now()
		for time.Since(begin) < 5*time.Second {
			fresh, _ := n.sessionsAt(1)
			endSessions(fresh)
			time.Sleep(100 * time.Millisecond) // ten clients a second
		}
		server.say(name, at("127.0.6.1"))
		n.WaitLog("name resolves again")
		if got := cut(t, all); got != 0 {
			t.Errorf("%d of %d sessions were cut, want none", got, sessions)
		}
		wantElections(t, n.Understudy, 1)
		endSessions(all)
		n.end()
	}
}
