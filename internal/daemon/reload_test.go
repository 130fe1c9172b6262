package daemon

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/config"
	"understudy/control"
	"understudy/health"
	"understudy/hooks"
	"understudy/internal/proctest"
)

// Many reloads leave no goroutine behind, and none is left at the end.
func TestReloadsLeaveNoGoroutines(t *testing.T) {
	a := (&proctest.Host{Name: "a"}).Start(t)
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "understudy.yaml"), filepath.Join(dir, "c")
	addr, extra, verdict, agent, responder := proctest.FreeAddr(t), proctest.FreeAddr(t), proctest.FreeAddr(t), proctest.FreeAddr(t), proctest.FreeAddr(t)
	head := "state_dir: " + dir + "\nhttp: " + verdict + "\nrelays:\n  - {name: orders, hosts: [" + a.Addr() + "], listen: [" + addr + "]}\n"
	variants := []string{
		"admin: " + proctest.FreeAddr(t) + "\n" + head,
		head + "  - {name: other, hosts: [" + a.Addr() + "], listen: [" + extra + "]}\n",
		head + "probes:\n  here: {vip: {addresses: [127.0.0.1]}}\nroutes:\n  /up: {probes: [here], agent: \"" + agent + "\", tcp: \"" + responder + "\"}\n" +
			"  /beat: {probes: [here], name: x, token: \"secret secret secret\", dead_dir: " + dir + "}\n",
		head + "hots: []\n", // nothing of it may stay either
		head + "  - {name: busy, hosts: [" + a.Addr() + "], listen: [" + a.Addr() + "]}\n",
		head,
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(head)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR2) // the standard library's own goroutine is permanent
	signal.Stop(signals)
	atFirst := runtime.NumGoroutine()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	load := func() (config.Settings, error) {
		settings, _, err := config.Load(config.Given{Flags: map[string][]string{"config": {file}, "control": {socket}, "log-level": {"off"}}})
		return settings, err
	}
	settings, err := load()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		signals := HandleSignals(ctx)
		defer signals.Release()
		ended <- Run(Config{Settings: settings, Load: load, Signals: signals, Stdout: io.Discard, Stderr: io.Discard}) //nolint:contextcheck // the signals carry ctx
	}()
	defer func() { stop(); <-ended; ended <- nil }()
	proctest.AwaitGreeting(t, addr, "a")
	reload := func() {
		for _, v := range variants {
			write(v)
			_, err := control.NewClient(socket).Reload(t.Context(), control.Order{})
			if wrong := strings.Contains(v, "hots") || strings.Contains(v, "busy"); (err != nil) != wrong {
				t.Errorf("reload: %v, want an error: %v", err, wrong)
			}
		}
	}
	reload()
	before := runtime.NumGoroutine()
	for range 10 {
		reload()
	}
	wantGoroutines(t, "after 50 reloads", before)
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	ended <- nil
	wantGoroutines(t, "after the end", atFirst)
}

// wantGoroutines fails unless the number of goroutines soon is not above
// before.
func wantGoroutines(t *testing.T, when string, before int) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			all := make([]byte, 1<<20)
			t.Logf("%s: %d goroutines, want %d:\n%s", when, runtime.NumGoroutine(), before, all[:runtime.Stack(all, true)])
		}
	})
	proctest.Until(t, fmt.Sprintf("%s: %d goroutines", when, before), func() bool { return runtime.NumGoroutine() <= before })
}

// countingLog counts the errors that are logged.
type countingLog struct {
	hclog.Logger
	errors atomic.Int64
}

func (l *countingLog) Error(string, ...any) { l.errors.Add(1) }

// A watchdog must notice a conductor that hangs: it gets no message until the
// conductor continues.
func TestWatchdogGetsNothingFromAProcessThatHangs(t *testing.T) {
	sent := make(chan string, 100)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "n"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		for b := make([]byte, 1000); ; {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			sent <- string(b[:n])
		}
	}()
	t.Setenv("NOTIFY_SOCKET", conn.LocalAddr().String())
	t.Setenv("WATCHDOG_USEC", "200000")
	log := &countingLog{Logger: hclog.NewNullLogger()}
	s := &service{log: log, resolver: health.NewResolver(), runner: hooks.New(hooks.Config{})}
	defer s.runner.Close()
	defer s.resolver.Close()
	settings, _, err := config.Load(config.Given{Flags: map[string][]string{"bind": {proctest.FreeAddr(t)}, "hosts": {proctest.FreeAddr(t)}}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.conduct(settings.Relays[0], settings, nil)
	if err != nil {
		t.Fatal(err)
	}
	relays := []*conducted{c}
	s.relays.Store(&relays)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.notify(ctx) }()

	proctest.Until(t, "the hanging conductor is logged", func() bool { return log.errors.Load() >= 3 })
	for len(sent) > 0 {
		if text := <-sent; strings.Contains(text, "WATCHDOG=1") {
			t.Errorf("%q was sent while the conductor hangs", text)
		}
	}
	if err := c.bind(); err != nil {
		t.Fatal(err)
	}
	ran := make(chan error)
	go func() { ran <- c.run(ctx) }()
	for text := ""; !strings.Contains(text, "WATCHDOG=1"); {
		select {
		case text = <-sent:
		case <-time.After(30 * time.Second): // a deadline
			t.Fatal("the watchdog is not fed after the conductor went on")
		}
	}
	stop()
	<-ended
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

func TestOverlap(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"127.0.0.1:80", "127.0.0.1:80", true},
		{"127.0.0.1:80", "127.0.0.2:80", false},
		{"127.0.0.1:80", "127.0.0.1:81", false},
		{"127.0.0.1:80", ":80", true},
		{"127.0.0.1:80", "0.0.0.0:80", true},
		{"[::1]:80", "[::]:80", true},
		{"[::1]:80", "0.0.0.0:80", false},
		{":80", "0.0.0.0:80", true},
		{"127.0.0.1:0", "127.0.0.1:0", false},
		{":0", "127.0.0.1:0", false},
		{"unix:/run/a", "unix:/run/a", true},
		{"unix:/run/a", "unix:/run/b", false},
		{"unix:/run/a", ":80", false},
	} {
		for range 2 {
			if got := overlap(tt.a, tt.b); got != tt.want {
				t.Errorf("overlap(%q, %q) = %v", tt.a, tt.b, got)
			}
			tt.a, tt.b = tt.b, tt.a
		}
	}
}

func TestDifferences(t *testing.T) {
	t.Parallel()
	a, b := config.Relay{Name: "x", PongPath: "/"}, config.Relay{Name: "x", PongPath: "/ping", MaxConnections: 3}
	if got := differences(a, b); got != "pong_path, max_connections" {
		t.Errorf("differences are %q", got)
	}
	if got := differences(a, a); got != "" {
		t.Errorf("differences of the same are %q", got)
	}
}

func TestNeedRestart(t *testing.T) {
	t.Parallel()
	now := config.Settings{Loops: 2}
	for _, tt := range []struct {
		now, next config.Settings
		want      []string
	}{
		{now, config.Settings{Loops: 2, LameDuck: time.Hour}, nil},
		{now, config.Settings{Loops: 3}, []string{"loops"}},
		{now, config.Settings{Loops: 1, Spin: true, StateDir: "/x"}, []string{"state-dir", "loops", "spin"}},
		{config.Settings{}, config.Settings{Loops: mostLoops(0)}, nil},
		{config.Settings{}, config.Settings{Loops: mostLoops(0) + 1}, []string{"loops"}},
	} {
		s := &service{settings: tt.now}
		if got := s.needRestart(tt.next); !slices.Equal(got, tt.want) {
			t.Errorf("needRestart(%+v, %+v) = %q, want %q", tt.now, tt.next, got, tt.want)
		}
	}
}
