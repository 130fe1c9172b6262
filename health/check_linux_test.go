package health

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fullQueue listens on addr with the shortest queue, accepts nothing, and
// fills the queue: a connect to it hangs like one into a black hole. It
// returns the port, and false when addr's port is taken.
func fullQueue(t *testing.T, addr netip.AddrPort) (port int, free bool) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); errors.Is(err, unix.EADDRINUSE) {
		return 0, false
	} else if err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port = sa.(*unix.SockaddrInet4).Port
	to := netip.AddrPortFrom(addr.Addr(), uint16(port)).String()
	for range 100 {
		conn, err := net.DialTimeout("tcp", to, 200*time.Millisecond)
		var slow net.Error
		switch {
		case err == nil:
			t.Cleanup(func() { conn.Close() })
		case errors.As(err, &slow) && slow.Timeout():
			return port, true
		default:
			t.Fatal(err)
		}
	}
	t.Fatal("a queue of one took 100 connections")
	return 0, false
}

func TestTCPFullQueueTimesOut(t *testing.T) {
	port, _ := fullQueue(t, netip.MustParseAddrPort("127.0.0.1:0"))
	began := time.Now()
	ctx := checkContext(t, 300*time.Millisecond)
	got := tcpOf(nil)(ctx, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	late := time.Since(began) - 300*time.Millisecond
	if got.OK || got.Phase != Connect || !isTimeout(got.Err) || got.Unknown != (late > lateness) {
		t.Errorf("TCP of a full queue = %+v, want a timeout in connect", got)
	}
	if late < 0 {
		t.Errorf("TCP of a full queue took %v, want 300ms", got.Latency)
	}
}

// Of a name with dead addresses each is given up for the next in time.
func TestTCPDeadAddressIsSkipped(t *testing.T) {
	var live, second int
	var free bool
	for !free { // one port on three addresses
		live = portOf(t, listenHost(t, "tcp", "127.0.0.1:0", serveNothing))
		if _, free = fullQueue(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), uint16(live))); free {
			second, free = fullQueue(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.3"), uint16(live)))
		}
	}
	if second != live {
		t.Fatalf("listening on %d, want %d", second, live)
	}
	resolve := namesOf("db1", "127.0.0.2", "127.0.0.3", "127.0.0.1")
	host := net.JoinHostPort("db1", strconv.Itoa(live))

	ctx := checkContext(t, 8*checkLimit)
	began := time.Now()
	if got := tcpOf(resolve)(ctx, host); !got.OK {
		t.Errorf("TCP with two dead addresses = %+v, want OK", got)
	}
	if took := time.Since(began); took < 2*addressTimeout || took > 2*addressTimeout+checkLimit {
		t.Errorf("TCP with two dead addresses took %v, want a little over %v", took, 2*addressTimeout)
	}

	// With little time each address gets its share. The last one's is so short
	// that a busy machine needs a few tries.
	for try := 1; ; try++ {
		ctx := checkContext(t, 300*time.Millisecond)
		began := time.Now()
		got := tcpOf(resolve)(ctx, host)
		if took := time.Since(began); got.OK && took < 199*time.Millisecond {
			t.Errorf("TCP with two dead addresses took %v of 300ms, want 200ms", took)
		}
		if got.OK {
			break
		}
		if try == 20 {
			t.Fatalf("TCP with two dead addresses and 300ms = %+v, want OK", got)
		}
	}
}

// A unix socket whose queue is full is waited for, and is not a local fault.
func TestTCPFullUnixQueue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for full := false; !full; {
		conn, err := net.Dial("unix", path)
		switch {
		case err == nil:
			t.Cleanup(func() { conn.Close() })
		case errors.Is(err, unix.EAGAIN):
			full = true
		default:
			t.Fatal(err)
		}
	}

	ctx := checkContext(t, 100*time.Millisecond)
	got := tcpOf(nil)(ctx, "unix:"+path)
	if got.OK || got.Phase != Connect || !errors.Is(got.Err, unix.EAGAIN) || got.Latency < 90*time.Millisecond {
		t.Errorf("TCP of a full unix queue = %+v, want EAGAIN at the end of its time", got)
	}

	ctx = checkContext(t, checkLimit)
	accepted := make(chan error, 1)
	go func() {
		time.Sleep(50 * time.Millisecond) // so that the check has to wait
		conn, _, err := unix.Accept(fd)
		if err == nil {
			unix.Close(conn)
		}
		accepted <- err
	}()
	if got := tcpOf(nil)(ctx, "unix:"+path); !got.OK {
		t.Errorf("TCP of a unix queue that moves on = %+v, want OK", got)
	}
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
}

// inChild runs the calling test again in a process of its own, which may break
// what it likes, and returns true there. In the parent it returns false when
// the child has passed, and fails or skips the test as the child did.
func inChild(t *testing.T, attr *syscall.SysProcAttr) bool {
	t.Helper()
	const key = "HEALTH_TEST_CHILD"
	if os.Getenv(key) == t.Name() {
		return true
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*checkLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), key+"="+t.Name())
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL):
		t.Skipf("SKIP: needs user and network namespaces: %v", err)
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("%s", out)
	case !strings.Contains(string(out), "--- PASS"):
		t.Fatalf("the child did not run:\n%s", out)
	}
	return false
}

func TestCheckWithoutDescriptorsIsLocal(t *testing.T) {
	if !inChild(t, nil) {
		return
	}
	host := listenHost(t, "tcp", "127.0.0.1:0", serveNothing)
	ctx, cancel := context.WithTimeout(t.Context(), checkLimit)
	defer cancel()
	asHTTP, err := HTTP(get(HTTPConfig{Port: portOf(t, host)}))
	if err != nil {
		t.Fatal(err)
	}
	if got := tcpOf(nil)(ctx, host); !got.OK {
		t.Fatalf("before: %+v", got)
	}

	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}); err != nil {
		t.Fatal(err)
	}
	var taken []*os.File
	for {
		f, err := os.Open("/dev/null")
		if errors.Is(err, unix.EMFILE) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, f)
	}

	for name, check := range map[string]Check{"tcp": tcpOf(nil), "http": asHTTP} {
		if got := check(ctx, host); got.OK || !got.Unknown || got.Phase != Connect || !errors.Is(got.Err, unix.EMFILE) {
			t.Errorf("%s check without descriptors = %+v, want it Unknown in connect", name, got)
		}
	}
	if got := tcpOf(nil)(ctx, "db1.example.:80"); got.OK || !got.Unknown || got.Phase != Resolve || !errors.Is(got.Err, unix.EMFILE) {
		t.Errorf("check of a name without descriptors = %+v, want it Unknown in resolve", got)
	}

	for _, f := range taken {
		f.Close()
	}
	if got := tcpOf(nil)(ctx, host); !got.OK {
		t.Errorf("after: %+v", got)
	}
}

// EADDRNOTAVAIL means that no port is left, or that this machine has no
// address of the host's family. Only the first is a local fault: the second
// lasts, and a service on "localhost" that died would never be left.
func TestCheckWithoutPorts(t *testing.T) {
	if !inChild(t, &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}) {
		return
	}
	loopbackUp(t)
	sysctl(t, "net/ipv6/conf/all/disable_ipv6", "1")
	host := listenHost(t, "tcp", "127.0.0.1:10000", serveNothing)
	ctx, cancel := context.WithTimeout(t.Context(), 3*checkLimit)
	defer cancel()
	check := tcpOf(namesOf("localhost", "::1", "127.0.0.1"))

	if got := check(ctx, "localhost:10000"); !got.OK {
		t.Errorf("host on IPv4 alone, by a name that has both = %+v, want OK", got)
	}
	if got := check(ctx, "localhost:10001"); got.OK || got.Unknown || !strings.Contains(got.Err.Error(), "no address to connect from") {
		t.Errorf("dead host by a name that has both = %+v, want it not Unknown", got)
	}

	sysctl(t, "net/ipv4/ip_local_port_range", "20000 20009")
	for {
		conn, err := net.Dial("tcp", host)
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if got := tcpOf(nil)(ctx, host); got.OK || !got.Unknown || got.Phase != Connect || !errors.Is(got.Err, unix.EADDRNOTAVAIL) {
		t.Errorf("check without ports = %+v, want it Unknown in connect", got)
	}
}

// loopbackUp gives a new network namespace its loopback interface.
func loopbackUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		t.Skipf("SKIP: needs the right to bring up an interface in its own network namespace: %v", err)
	}
}

func sysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
		t.Skipf("SKIP: needs a writable sysctl %s: %v", name, err)
	}
}
