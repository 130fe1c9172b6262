package main

import (
	"context"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
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

// Many reloads leave no goroutine behind, and the end leaves none at all.
func TestReloadsLeaveNoGoroutines(t *testing.T) {
	a := (&proctest.Host{Name: "a"}).Start(t)
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "understudy.yaml"), filepath.Join(dir, "c")
	addr, extra, verdict, agent, lamp := freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t)
	head := "state_dir: " + dir + "\nhttp: " + verdict + "\nrelays:\n  - {name: orders, hosts: [" + a.Addr() + "], listen: [" + addr + "]}\n"
	variants := []string{
		head + "  - {name: other, hosts: [" + a.Addr() + "], listen: [" + extra + "]}\n",
		head + "probes:\n  here: {vip: {addresses: [127.0.0.1]}}\nroutes:\n  /up: {probes: [here], agent: \"" + agent + "\", tcp: \"" + lamp + "\"}\n" +
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
	signal.Notify(signals, syscall.SIGUSR2) // the standard library's own goroutine stays for good
	signal.Stop(signals)
	atFirst := runtime.NumGoroutine()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"--config", file, "--control", socket, "--log-level", "off"}, io.Discard, io.Discard)
	}()
	defer func() { stop(); <-ended; ended <- 0 }()
	awaitGreeting(t, addr, "a")
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
	if code := <-ended; code != exitDone {
		t.Errorf("exit status %d", code)
	}
	ended <- 0
	wantGoroutines(t, "after the end", atFirst)
}

// wantGoroutines fails unless there are soon no more than before.
func wantGoroutines(t *testing.T, when string, before int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			all := make([]byte, 1<<20)
			t.Fatalf("%s: %d goroutines, want %d:\n%s", when, runtime.NumGoroutine(), before, all[:runtime.Stack(all, true)])
		}
	}
}

// countingLog counts the errors that are logged.
type countingLog struct {
	hclog.Logger
	errors atomic.Int64
}

func (l *countingLog) Error(string, ...any) { l.errors.Add(1) }

// A conductor that hangs is what a watchdog is for: it gets nothing until the
// conductor goes on.
func TestWatchdogGetsNothingFromAProcessThatHangs(t *testing.T) {
	told := make(chan string, 100)
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
			told <- string(b[:n])
		}
	}()
	t.Setenv("NOTIFY_SOCKET", conn.LocalAddr().String())
	t.Setenv("WATCHDOG_USEC", "200000")
	log := &countingLog{Logger: hclog.NewNullLogger()}
	s := &service{log: log, resolver: health.NewResolver(), runner: hooks.New(hooks.Config{})}
	defer s.runner.Close()
	defer s.resolver.Close()
	settings, _, err := config.Load(config.Given{Flags: map[string][]string{"bind": {freeAddr(t)}, "hosts": {freeAddr(t)}}})
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

	for log.errors.Load() < 3 {
		time.Sleep(5 * time.Millisecond)
	}
	for len(told) > 0 {
		if text := <-told; strings.Contains(text, "WATCHDOG=1") {
			t.Errorf("%q was told while the conductor hangs", text)
		}
	}
	if err := c.bind(); err != nil {
		t.Fatal(err)
	}
	ran := make(chan error)
	go func() { ran <- c.run(ctx) }()
	for text := ""; !strings.Contains(text, "WATCHDOG=1"); {
		select {
		case text = <-told:
		case <-time.After(30 * time.Second):
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
