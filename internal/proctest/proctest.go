// Package proctest starts the processes that whole-program tests are made of:
// understudy itself, hosts that can be killed and stopped, and a load of
// clients that records which host answered and which clients were lost.
//
// Every process is a child of the test binary running in another role, so a
// package that uses this one hands its tests over to [Main]:
//
//	func TestMain(m *testing.M) { os.Exit(proctest.Main(m, runUnderstudy)) }
//
// A child ends by itself when the test binary has ended, for whatever reason.
// Ports are below 32768: a connect to a closed port of the ephemeral range can,
// by chance, be connected to itself, and a dead host would seem alive.
package proctest

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The role of this process comes in a variable, so that the arguments stay
// those of the program.
const roleVariable = "PROCTEST_ROLE"

const (
	roleHost       = "host"
	roleUnderstudy = "understudy"
)

// HasRole reports whether this process was started for a role, and not for the tests.
func HasRole() bool { return os.Getenv(roleVariable) != "" }

// Main runs the role that this process was started for, or the tests, by
// calling m.Run, and returns the exit status. Understudy runs the program with
// arguments and returns its exit status; a package that starts none, or a built
// one, passes nil.
func Main(m interface{ Run() int }, understudy func(args []string) int) int {
	switch role := os.Getenv(roleVariable); role {
	case "":
		defer removeBuild()
		handleHangup()
		return m.Run()
	case roleHost:
		endWithParent()
		return host(os.Args[1:])
	case roleUnderstudy:
		_ = os.Unsetenv(roleVariable) // its children must not take the role
		endWithParent()
		return understudy(os.Args[1:])
	default:
		fmt.Fprintln(os.Stderr, "proctest: unknown role", role)
		return 2
	}
}

// handleHangup makes HUP end the children of a test binary for which it is
// ignored, as nohup(1) does: they inherit that, and tests send HUP to them. Of
// a signal that is handled a child inherits the default action.
func handleHangup() {
	if signal.Ignored(syscall.SIGHUP) {
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) // never read: the test binary goes on
	}
}

// endWithParent ends this process at the end of its standard input: the test
// binary holds the other end of the pipe.
func endWithParent() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3) //nolint:forbidigo // the parent process has ended
	}()
}

// self is the path of the test binary.
func self(tb testing.TB) string {
	tb.Helper()
	path, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

var ports struct {
	sync.Mutex
	taken map[int]bool
}

// FreePort returns a port below 32768 without a listener at ip. It returns each
// port only once in this process, and, until the test ends, in no other process
// that runs tests at the same time.
func FreePort(tb testing.TB, ip string) int {
	tb.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.taken == nil {
		ports.taken = map[int]bool{}
	}
	for range 1000 {
		port := 12000 + rand.IntN(20000) //nolint:gosec // any port will do; the tests of bench use those from 11000 to 12000
		if ports.taken[port] || !reserve(tb, port) {
			continue
		}
		l, err := listen(ip, port)
		if err != nil {
			continue
		}
		l.Close()
		ports.taken[port] = true
		return port
	}
	tb.Fatal("no free port")
	return 0
}

// reserve reserves a port among the processes that run tests, by an abstract
// socket (unix(7)), which ends with this process in any case.
func reserve(tb testing.TB, port int) bool {
	tb.Helper()
	if runtime.GOOS != "linux" {
		return true
	}
	var config net.ListenConfig
	l, err := config.Listen(context.Background(), "unix", "@understudy-test-port-"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	tb.Cleanup(func() { l.Close() })
	return true
}

func listen(ip string, port int) (net.Listener, error) {
	var config net.ListenConfig
	return config.Listen(context.Background(), "tcp", net.JoinHostPort(ip, strconv.Itoa(port)))
}

// Fataler is the part of a test, or of a testscript script, that [Until] needs
// (testscript.TestScript has no Helper).
type Fataler interface {
	Fatalf(format string, args ...any)
}

// Until waits until condition holds, and fails the test after a minute, which
// is far longer than any condition takes that becomes true. It evaluates
// condition at most every few milliseconds, and once more after the minute. In
// a bubble of testing/synctest its time is virtual.
func Until(tb Fataler, what string, condition func() bool) {
	if t, ok := tb.(interface{ Helper() }); ok {
		t.Helper()
	}
	end := time.Now().Add(time.Minute)
	for pause := time.Millisecond; !condition(); pause = min(2*pause, 8*time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("not within a minute: %s", what)
		}
		<-time.After(pause)
	}
}

// FreeAddr returns an address of loopback with a [FreePort].
func FreeAddr(tb testing.TB) string {
	tb.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(FreePort(tb, "127.0.0.1")))
}
