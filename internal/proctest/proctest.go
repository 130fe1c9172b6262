// Package proctest starts the processes that whole-program tests are made of:
// understudy itself, hosts that can be killed and stopped, and a load of
// clients that notices who answered and who was lost.
//
// Every process is a child of the test binary running in another role, so a
// package that uses this one hands its tests over to [Main]:
//
//	func TestMain(m *testing.M) { os.Exit(proctest.Main(m, runUnderstudy)) }
//
// A child ends by itself when the test binary is gone, however that came
// about. Ports are below 32768: a connect to a closed port of the ephemeral
// range can, by chance, be connected to itself, and a dead host seems alive.
package proctest

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
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

// Main runs the role that this process was started for, or the tests, which
// is what m's Run does, and returns the exit status. Understudy runs the
// program with arguments and returns its exit status; a package that starts
// none, or a built one, passes nil.
func Main(m interface{ Run() int }, understudy func(args []string) int) int {
	switch role := os.Getenv(roleVariable); role {
	case "":
		defer removeBuild()
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

// endWithParent ends this process when its standard input does: the test
// binary holds the other end of it.
func endWithParent() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3) //nolint:forbidigo // there is nobody left to return to
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

// FreePort returns a port below 32768 that nobody listens on at ip, and that
// neither this process has been given before nor, until the test ends, another
// one that runs tests at the same time.
func FreePort(tb testing.TB, ip string) int {
	tb.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.taken == nil {
		ports.taken = map[int]bool{}
	}
	for range 1000 {
		port := 10000 + rand.IntN(22000) //nolint:gosec // any port will do
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

// reserve keeps a port from the other processes that run tests, by a name that
// ends with this one, whatever ends it: an abstract socket (unix(7)).
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

// Until waits until condition holds, and fails the test after 30s.
func Until(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	deadline := time.After(30 * time.Second)
	for !condition() {
		select {
		case <-deadline:
			tb.Fatalf("not within 30s: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
