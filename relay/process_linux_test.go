//go:build !portable

package relay

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// The cost of a relay for its process: descriptors, processor time, memory.
// Each test has a relay in a process of its own.

// descriptors lists the targets of the child's descriptors.
func (c *child) descriptors() (all []string) {
	c.tb.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", c.pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		c.tb.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			all = append(all, to)
		}
	}
	return all
}

func countPrefix(all []string, prefix string) (n int) {
	for _, s := range all {
		if strings.HasPrefix(s, prefix) {
			n++
		}
	}
	return n
}

// cpu returns the processor time that the child has used.
func (c *child) cpu() time.Duration {
	c.tb.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.pid))
	if err != nil {
		c.tb.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	var ticks int
	for _, s := range f[11:13] { // utime and stime; see proc_pid_stat(5)
		n, _ := strconv.Atoi(s)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// wantIdle fails unless the child uses almost no processor time for a second.
func (c *child) wantIdle(what string) {
	c.tb.Helper()
	before := c.cpu()
	time.Sleep(time.Second)                                    // the period that is measured
	if used := c.cpu() - before; used > 300*time.Millisecond { // a loop that does not wait uses all of it
		c.tb.Errorf("%s: %s of processor time in a second", what, used)
	}
}

// ping sends a message through a relay to an echo and back.
func ping(c net.Conn, message []byte) error {
	var sent sync.WaitGroup
	sent.Go(func() { c.Write(message) })
	defer sent.Wait()
	_, err := io.CopyN(io.Discard, c, int64(len(message)))
	return err
}

// Ten thousand short connections of all kinds leak nothing.
func TestNothingGrows(t *testing.T) {
	t.Parallel()
	c := startChild(t, childSpec{Loops: 2}, nil)
	talk := countPrefix(c.descriptors(), "pipe:") // those for its standard input and output
	c.open(1, newHost(t, echo).addr)
	one := func(k int) {
		conn := dialTo(t, c.addr)
		defer conn.Close()
		switch k % 10 {
		case 0: // a monitor
			return
		case 1:
			reset(conn)
			return
		case 2:
			io.WriteString(conn, "x")
			reset(conn)
			return
		case 3:
			if err := ping(conn, make([]byte, 200<<10)); err != nil {
				t.Error(err)
			}
		default:
			if err := ping(conn, make([]byte, 64)); err != nil {
				t.Error(err)
			}
		}
		conn.CloseWrite()
		io.Copy(io.Discard, conn)
	}
	burst := func(times int) (report, []string) {
		var wg sync.WaitGroup
		for n := range 8 {
			wg.Go(func() {
				for k := range times / 8 {
					one(k + n)
				}
			})
		}
		wg.Wait()
		var fds []string
		proctest.Until(t, "connections and pipes to be gone", func() bool {
			fds = c.descriptors()
			return c.report().Stats.Live == 0 && countPrefix(fds, "pipe:") == talk
		})
		return c.report(), fds
	}
	before, fdsBefore := burst(800)
	total := 10_000
	if testing.Short() {
		total = 1000
	}
	after, fdsAfter := burst(total)
	if len(fdsAfter) != len(fdsBefore) {
		t.Errorf("%d descriptors before, %d after:\n%s", len(fdsBefore), len(fdsAfter), strings.Join(fdsAfter, "\n"))
	}
	if after.Goroutines > before.Goroutines {
		t.Errorf("%d goroutines before, %d after", before.Goroutines, after.Goroutines)
	}
	if after.Heap > before.Heap+256<<10 {
		t.Errorf("%d bytes of heap before, %d after", before.Heap, after.Heap)
	}
	if after.Suspects != 0 {
		t.Errorf("%d suspicions of a host that did nothing wrong", after.Suspects)
	}
}

// An idle connection holds two descriptors and nearly no memory, also after
// much has passed over it.
func TestIdleConnectionsAreCheap(t *testing.T) {
	t.Parallel()
	const many = 300
	c := startChild(t, childSpec{Loops: 2}, nil)
	c.open(1, newHost(t, echo).addr)
	base, heap := len(c.descriptors()), c.report().Heap
	var conns [many]*net.TCPConn
	for k := range conns {
		conns[k] = c.dial()
	}
	proctest.Until(t, "all to be connected", func() bool { return len(c.descriptors()) == base+2*many })
	var wg sync.WaitGroup
	for k := range 8 {
		wg.Go(func() {
			message := make([]byte, 1<<20)
			for i := k; i < many; i += 8 {
				if err := ping(conns[i], message); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	proctest.Until(t, "pipes to be given back", func() bool { return len(c.descriptors()) <= base+2*many })
	if n := len(c.descriptors()); n != base+2*many {
		t.Errorf("%d descriptors for %d idle connections, want 2 each", n-base, many)
	}
	// The slabs that records come from, and a few pooled buffers of the loops.
	if grown := int64(c.report().Heap) - int64(heap); grown > many*512+2<<20 {
		t.Errorf("%d bytes of heap for %d idle connections", grown, many)
	}
	c.wantIdle("idle connections")
}

// Readers that stop cost no processor time and a bounded piece of memory each,
// and the pipes of all together stay below the user's limit.
func TestBlockedReadersCostNothing(t *testing.T) {
	t.Parallel()
	const many = 250 // more than there are pipes
	c := startChild(t, childSpec{Loops: 2}, nil)
	piece := make([]byte, 64<<10)
	c.open(1, newHost(t, func(conn *net.TCPConn) {
		conn.SetWriteBuffer(64 << 10)
		for {
			if _, err := conn.Write(piece); err != nil {
				return
			}
		}
	}).addr)
	heap, talk := c.report().Heap, countPrefix(c.descriptors(), "pipe:")
	var conns []*net.TCPConn
	for range many {
		conn := c.dial()
		conn.SetReadBuffer(16 << 10)
		conns = append(conns, conn)
	}
	var last uint64
	proctest.Until(t, "all to be stuck", func() bool {
		time.Sleep(100 * time.Millisecond) // nothing passes for this long
		now := c.report().Stats.Received
		stuck := now == last && now > many
		last = now
		return stuck
	})
	c.wantIdle("stuck readers")
	if pipes := countPrefix(c.descriptors(), "pipe:") - talk; pipes > 2*96 {
		t.Errorf("%d descriptors of pipes, want no more than 96 pipes of 512 KiB", pipes)
	}
	if each := (int64(c.report().Heap) - int64(heap)) / many; each > 8<<10 {
		t.Errorf("%d bytes of heap for each stuck connection", each)
	}
	for _, conn := range conns {
		conn.Close()
	}
	proctest.Until(t, "all to be over", func() bool { return c.report().Stats.Live == 0 })
}

// Out of descriptors: open connections go on, new clients wait, no host is
// suspected, and clients are accepted again once descriptors are free.
func TestOutOfDescriptors(t *testing.T) {
	t.Parallel()
	c := startChild(t, childSpec{Loops: 2}, func(cmd *exec.Cmd) {
		cmd.Args = []string{"sh", "-c", `ulimit -n 256; exec "$0"`, cmd.Path}
		cmd.Path = "/bin/sh"
	})
	c.open(1, newHost(t, echo).addr)
	var in []*net.TCPConn
	for range 20 {
		conn := c.dial()
		if err := ping(conn, []byte("in")); err != nil {
			t.Fatal(err)
		}
		in = append(in, conn)
	}
	c.request("exhaust")
	var waiting []*net.TCPConn
	for range 50 {
		conn := c.dial() // the kernel's queue takes it
		io.WriteString(conn, "late")
		waiting = append(waiting, conn)
	}
	time.Sleep(100 * time.Millisecond) // what the first failures cost is not measured
	c.wantIdle("out of descriptors")
	for _, conn := range in {
		if err := ping(conn, make([]byte, 300<<10)); err != nil { // more than a read, so pipes are requested
			t.Errorf("a connection that was in: %v", err)
		}
	}
	c.request("release")
	for _, conn := range waiting {
		if got := readSome(t, conn, 4); got != "late" {
			t.Errorf("a client that waited got %q", got)
		}
	}
	if n := c.report().Suspects; n != 0 {
		t.Errorf("%d suspicions for a fault of our own", n)
	}
}

// The descriptor limit bounds the number of connections, and leaves some
// descriptors for checks and scripts.
func TestDescriptorLimitLeavesRoom(t *testing.T) {
	t.Parallel()
	c := startChild(t, childSpec{Loops: 2}, func(cmd *exec.Cmd) {
		cmd.Args = []string{"sh", "-c", `ulimit -n 256; exec "$0"`, cmd.Path}
		cmd.Path = "/bin/sh"
	})
	c.open(1, newHost(t, echo).addr)
	const limit = (256 - 64) / 2
	var conns []*net.TCPConn
	for range limit + 40 {
		conns = append(conns, c.dial())
	}
	proctest.Until(t, "as many as fit", func() bool {
		n := c.report().Stats.Live
		if n > limit {
			t.Fatalf("%d connections, the limit is %d", n, limit)
		}
		return n == limit
	})
	c.wantIdle("full")
	// Busy ones borrow pipes, and still leave 32 descriptors.
	var wg sync.WaitGroup
	least := 256
	for _, conn := range conns[:limit] {
		wg.Go(func() { ping(conn, make([]byte, 4<<20)) })
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for over := false; !over; {
		least = min(least, 256-len(c.descriptors()))
		select {
		case <-done:
			over = true
		case <-time.After(5 * time.Millisecond): // between two checks
		}
	}
	if least < 32 {
		t.Errorf("%d descriptors were left for checks and scripts, want 32", least)
	}
	for _, conn := range conns[:40] {
		conn.Close()
	}
	for _, conn := range conns[limit:] {
		if err := ping(conn, []byte("next")); err != nil {
			t.Errorf("a client that waited for room: %v", err)
		}
	}
}

// Past its share of pipe memory a user gets pipes of 8 KiB. Hundreds of busy
// connections must not reach that limit.
func TestUnprivilegedAndBusy(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root, to start a relay as nobody")
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Skip("SKIP: needs the user nobody: ", err)
	}
	uid, _ := strconv.Atoi(nobody.Uid)
	gid, _ := strconv.Atoi(nobody.Gid)
	c := startChild(t, childSpec{Loops: 2}, func(cmd *exec.Cmd) {
		cmd.Path = "/proc/self/exe" // the user nobody cannot enter the directory of the test program
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	})
	talk := countPrefix(c.descriptors(), "pipe:")
	c.open(1, newHost(t, echo).addr)
	var wg sync.WaitGroup
	for range 200 {
		conn := c.dial()
		wg.Go(func() {
			data := randomBytes(1 << 20)
			var sent sync.WaitGroup
			sent.Go(func() { sendAll(conn, data) })
			wantAll(t, "echo", conn, data)
			sent.Wait()
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	most := 0
	for over := false; !over; {
		most = max(most, countPrefix(c.descriptors(), "pipe:")-talk)
		select {
		case <-done:
			over = true
		case <-time.After(5 * time.Millisecond): // between two checks
		}
	}
	t.Logf("%d pipes at most", most/2)
	if most > 2*96 {
		t.Errorf("%d descriptors of pipes at most, want no more than 96 pipes", most)
	}
}

// inNamespace runs the rest of the calling test in a process of its own that
// has an own network namespace with nothing but a loopback interface. It
// returns true there, and false in the original once the result is known.
func inNamespace(t *testing.T) bool {
	t.Helper()
	const env = "RELAY_TEST_NAMESPACE"
	if os.Getenv(env) == t.Name() {
		setLoopback(t, true)
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root, to make a network namespace")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), env+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in a network namespace: %v\n%s", err, out)
	} else if strings.Contains(string(out), "--- SKIP") {
		t.Skipf("SKIP: in a network namespace:\n%s", out)
	}
	return false
}

// setLoopback takes the namespace's loopback interface up or down.
func setLoopback(t *testing.T, up bool) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ifr, _ := unix.NewIfreq("lo")
	if up {
		ifr.SetUint16(unix.IFF_UP)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		t.Fatal(err)
	}
}

// Out of ports: a fault of this machine, so no host is suspected, and clients
// wait for a port to become free.
func TestOutOfPorts(t *testing.T) {
	t.Parallel()
	if !inNamespace(t) {
		return
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("20000 20099"), 0o644); err != nil {
		t.Skip("SKIP: needs to set ip_local_port_range: ", err)
	}
	suspects := make(chan error, 1000)
	r := start(t, Config{
		Listen:  []string{"127.0.0.1:9001"},
		Suspect: func(_ uint64, err error) { suspects <- err },
	})
	ln := listen(t, "127.0.0.1:9002")
	r.open(1, newHostOn(t, ln, func(c net.Conn) { greet("x")(c.(*net.TCPConn)) }).addr)
	const many = 150
	var conns []*net.TCPConn
	for k := range many {
		// Clients of several addresses, so that only the relay runs out.
		// A port that bind(2) picked would be of no use to the relay either.
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+k%3))}, Control: func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) })
		}}
		d.SetMultipathTCP(false)
		c, err := d.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		conns = append(conns, c.(*net.TCPConn))
	}
	proctest.Until(t, "all to be let in", func() bool { return r.Stats().Live == many })
	proctest.Until(t, "the ports to be used up", func() bool { n := r.Waiting().Held; return n > 0 && n < many-50 })
	held := r.Waiting().Held
	time.Sleep(300 * time.Millisecond) // they try again meanwhile
	// Clients that have a host leave; their ports serve the waiting ones.
	served := 0
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			served++
		}
		reset(c)
	}
	if served != many {
		t.Errorf("%d of %d clients were served, of whom %d had to wait for a port", served, many, held)
	}
	select {
	case err := <-suspects:
		t.Errorf("suspected the host for %v", err)
	default:
	}
}

// A peer that falls silent while bytes are on their way to it is dead after
// UserTimeout.
func TestUserTimeout(t *testing.T) {
	t.Parallel()
	if !inNamespace(t) {
		return
	}
	r, hosts := startPairs(t, Config{Listen: []string{"127.0.0.1:9001"}, UserTimeout: time.Second})
	client, _ := r.pair(hosts)
	quiet, _ := r.pair(hosts)
	// What is on its way to the host when the network goes is never answered.
	for range 100 {
		client.Write(make([]byte, 64<<10))
		client.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := client.Write(make([]byte, 64<<10)); err != nil {
			break
		}
	}
	setLoopback(t, false)
	_ = quiet
	proctest.Until(t, "the connection to be given up", func() bool { return r.Stats().Reset >= 1 })
	setLoopback(t, true)
}

// A reader that rests for longer than UserTimeout is alive: its kernel answers
// every probe of the closed window.
func TestUserTimeoutSparesSlowReader(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{UserTimeout: time.Second})
	client, host := r.pair(hosts)
	data := randomBytes(16 << 20)
	var sent sync.WaitGroup
	sent.Go(func() { sendAll(host, data) })
	time.Sleep(5 * time.Second) // the rest, longer than the user timeout
	wantAll(t, "a reader that rested for 5s", client, data)
	sent.Wait()
}

// Nothing is allocated for a message, small or large. Not in parallel: the
// count is that of the whole process.
func TestMessagesAllocateNothing(t *testing.T) {
	r, hosts := startPairs(t, Config{})
	for _, size := range []int{64, 200 << 10} {
		client, host := r.pair(hosts)
		done := answer(host, size)
		message := make([]byte, size)
		send := make(chan struct{})
		go func() {
			for range send {
				client.Write(message)
			}
		}()
		back := make([]byte, size)
		exchange := func(times int) {
			for range times {
				send <- struct{}{}
				if _, err := io.ReadFull(client, back); err != nil {
					t.Fatal(err)
				}
			}
		}
		exchange(50) // buffers and pipes are made
		const times = 500
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		exchange(times)
		runtime.ReadMemStats(&after)
		if n := after.Mallocs - before.Mallocs; n > times/10 && !movesAlways { // a move allocates
			t.Errorf("%d messages of %d bytes: %d allocations, want none", times, size, n)
		}
		close(send)
		client.Close()
		<-done
	}
}
