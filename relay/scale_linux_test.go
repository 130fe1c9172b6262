//go:build !portable

package relay

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// Many connections, many bytes, and a link that is slow.

// rss returns the resident memory of the child, in bytes.
func (c *child) rss() (n int) {
	c.tb.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", c.pid))
	if err != nil {
		c.tb.Fatal(err)
	}
	var size int
	fmt.Sscan(string(text), &size, &n)
	return n * os.Getpagesize()
}

// Thousands of idle connections are cheap and do not slow others down; a switch
// ends them all at once.
func TestThousandsOfIdleConnections(t *testing.T) {
	const many = 9500
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	if lim.Cur < 2*many+500 { // the clients' and the hosts' ends are here
		t.Skipf("SKIP: needs %d descriptors, the limit is %d (ulimit -n)", 2*many+500, lim.Cur)
	}
	if testing.Short() {
		t.Skip("SKIP: takes a while")
	}
	ln := listen(t, "127.0.0.1:0")
	other := startChild(t, childSpec{Loops: 2}, nil)
	other.open(1, newHost(t, greet("x")).addr)
	alone := newConnection(t, other.addr)
	c := startChild(t, childSpec{Loops: 2}, nil)
	var held sync.Mutex
	var ends []net.Conn
	accepted := func() int {
		held.Lock()
		defer held.Unlock()
		return len(ends)
	}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			end, err := ln.Accept()
			if err != nil {
				return
			}
			held.Lock()
			ends = append(ends, end)
			held.Unlock()
			io.WriteString(end, "x") // so that something has passed
		}
	})
	t.Cleanup(func() {
		ln.Close()
		accepting.Wait()
		for _, end := range ends {
			end.Close()
		}
	})
	c.open(1, ln.Addr().String())
	base, heap := len(c.descriptors()), c.report().Heap
	var conns [many]*net.TCPConn
	var dialing sync.WaitGroup
	for k := range 8 {
		dialing.Go(func() {
			for i := k; i < many; i += 8 {
				conn, err := net.Dial("tcp", c.addr)
				if err != nil {
					t.Error(err)
					return
				}
				conn.SetDeadline(time.Now().Add(4 * patience))
				if _, err := conn.Read(make([]byte, 1)); err != nil {
					t.Error(err)
				}
				conns[i] = conn.(*net.TCPConn)
			}
		})
	}
	dialing.Wait()
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
	}()
	if t.Failed() {
		return
	}
	if n := accepted(); n != many {
		t.Errorf("%d connections to the host, want %d", n, many)
	}
	proctest.Until(t, "two descriptors for each connection", func() bool { return len(c.descriptors()) == base+2*many })
	if grown := int64(c.report().Heap) - int64(heap); grown > many*512+2<<20 {
		t.Errorf("%d bytes of heap for %d idle connections", grown, many)
	}
	if n := c.rss(); n > 96<<20 {
		t.Errorf("%d MiB of memory, want 96 at most", n>>20)
	}
	before := c.cpu()
	time.Sleep(3 * time.Second)                                // the period that is measured
	if used := c.cpu() - before; used > 300*time.Millisecond { // what bench measures is less than a hundredth of it
		t.Errorf("%s of processor time in 3 s of idleness", used)
	}
	// A relay that walks all connections for each new one would take many times as
	// long. One round in which the machine is as busy as before is enough.
	proctest.Until(t, "new connections to be served nearly as fast as without the idle ones", func() bool {
		now := newConnection(t, c.addr)
		t.Logf("a new connection takes %s, %s without the idle ones", now, alone)
		return now < 3*alone
	})
	var reset, ms int
	fmt.Sscan(c.request("switch 2 "+closed(t)), &reset, &ms)
	t.Logf("%d connections were fenced in %d ms", reset, ms)
	if reset < many || ms > 30000 { // 1 s on a machine that has nothing else to do, 47 minutes one by one
		t.Errorf("%d connections were fenced in %d ms, want %d", reset, ms, many)
	}
	for _, conn := range conns {
		if _, err := conn.Read(make([]byte, 1)); !isReset(err) {
			t.Fatalf("a fenced client saw %v, want a reset", err)
		}
	}
}

// newConnection returns the median time in which a hundred new connections are
// served.
func newConnection(t *testing.T, addr string) time.Duration {
	t.Helper()
	var took []time.Duration
	for range 100 {
		begin := time.Now()
		conn := dialTo(t, addr)
		readSome(t, conn, 1)
		took = append(took, time.Since(begin))
		conn.Close()
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// pour writes n bytes, in some pattern that does not repeat soon, and ends.
func pour(c *net.TCPConn, n int, sum hash.Hash) error {
	block := randomBytes(1<<20 + 7)
	for n > 0 {
		piece := block[:min(n, len(block))]
		sum.Write(piece)
		if _, err := c.Write(piece); err != nil {
			return err
		}
		n -= len(piece)
		block[n%len(block)]++
	}
	return c.CloseWrite()
}

// Large transfers in both directions at once leak no memory.
func TestMuchBothWays(t *testing.T) {
	size := 1 << 30
	if testing.Short() {
		size = 32 << 20
	}
	ln := listen(t, "127.0.0.1:0")
	defer ln.Close()
	c := startChild(t, childSpec{Loops: 2}, nil)
	c.open(1, ln.Addr().String())
	for _, n := range []int{32 << 20, size} { // the first round allocates everything
		client := c.dial()
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		host := conn.(*net.TCPConn)
		for _, end := range []*net.TCPConn{client, host} {
			end.SetDeadline(time.Now().Add(10 * patience))
		}
		before, begin := c.rss(), time.Now()
		var wg sync.WaitGroup
		for _, way := range [][2]*net.TCPConn{{client, host}, {host, client}} {
			sent, got := sha256.New(), sha256.New()
			done := make(chan error, 1)
			wg.Go(func() { done <- pour(way[0], n, sent) })
			wg.Go(func() {
				m, err := io.Copy(got, way[1])
				if err = errors.Join(err, <-done); err != nil || m != int64(n) || string(got.Sum(nil)) != string(sent.Sum(nil)) {
					t.Errorf("%d of %d bytes arrived, %v, or other ones than were sent", m, n, err)
				}
			})
		}
		wg.Wait()
		client.Close()
		host.Close()
		grown := c.rss() - before
		t.Logf("%d MiB each way in %s, %d KiB more memory", n>>20, time.Since(begin).Round(time.Millisecond), grown>>10)
		if n == size && grown > 8<<20 {
			t.Errorf("the memory has grown by %d KiB", grown>>10)
		}
	}
}

// shapedVariable is set in the copy of the test program whose loopback is its
// own.
const shapedVariable = "RELAY_TEST_SHAPED"

// Small segments fill the slots of a pipe long before its bytes, and a link
// that is slower than the client drains it in small steps.
func TestSmallSegmentsOverSlowLink(t *testing.T) {
	const size = 64 << 20
	if os.Getenv(shapedVariable) == "" {
		if testing.Short() {
			t.Skip("SKIP: takes a while")
		}
		if os.Getuid() != 0 {
			t.Skip("SKIP: needs root, for a network namespace")
		}
		for _, name := range []string{"tc", "ip"} {
			if _, err := exec.LookPath(name); err != nil {
				t.Skipf("SKIP: needs %s (apt-get install iproute2)", name)
			}
		}
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout="+(4*patience).String())
		cmd.Env = append(os.Environ(), shapedVariable+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		out, err := cmd.CombinedOutput()
		t.Logf("in a network of its own:\n%s", out)
		if err != nil {
			t.Errorf("in a network of its own: %v", err)
		}
		if strings.Contains(string(out), "--- SKIP") {
			t.Skip("SKIP: see above")
		}
		return
	}
	for k, line := range []string{
		"ip link set lo mtu 1500 up",
		"tc qdisc add dev lo root handle 1: htb default 1",
		"tc class add dev lo parent 1: classid 1:1 htb rate 10gbit quantum 60000",
		"tc class add dev lo parent 1: classid 1:2 htb rate 1gbit quantum 60000",
		"tc qdisc add dev lo parent 1:2 handle 2: tbf rate 100mbit burst 64kb latency 50ms",
		"tc filter add dev lo parent 1: protocol ip u32 match ip dst 127.0.0.2/32 flowid 1:2",
	} {
		argv := strings.Fields(line)
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			if k > 0 {
				t.Skipf("SKIP: %s: %v, %s", line, err, out)
			}
			t.Fatalf("%s: %v, %s", line, err, out)
		}
	}
	ln := listen(t, "127.0.0.2:0")
	defer ln.Close()
	c := startChild(t, childSpec{Loops: 1}, nil)
	c.open(1, ln.Addr().String())
	client := c.dial()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client.SetDeadline(time.Now().Add(3 * patience))
	sent, got := sha256.New(), sha256.New()
	done := make(chan error, 1)
	go func() {
		data := randomBytes(1448)
		for k := range size / len(data) {
			data[k%len(data)]++
			sent.Write(data)
			if _, err := client.Write(data); err != nil {
				done <- err
				return
			}
		}
		done <- client.CloseWrite()
	}()
	b := make([]byte, 64<<10)
	begin, longest := time.Now(), time.Duration(0)
	for last := begin; ; last = time.Now() {
		conn.SetReadDeadline(last.Add(5 * time.Second)) // both ends are ready: a longer pause is a stall
		n, err := conn.Read(b)
		got.Write(b[:n])
		longest = max(longest, time.Since(last))
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("after %s: %v", time.Since(begin), err)
		}
	}
	if err := <-done; err != nil || string(sent.Sum(nil)) != string(got.Sum(nil)) {
		t.Errorf("%v, or other bytes than were sent", err)
	}
	t.Logf("%d MiB in %s, the longest pause %s", size>>20, time.Since(begin).Round(time.Millisecond), longest.Round(time.Millisecond))
	if took := time.Since(begin); took < time.Second {
		t.Skipf("SKIP: %d MiB in %s: this link is not shaped", size>>20, took)
	}
}
