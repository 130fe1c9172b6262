//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy/bench/program"
)

// TestMain lets the test program be the benchmark's children, which are copies
// of the program that runs.
func TestMain(m *testing.M) {
	if handled, err := child(os.Args[1:]); handled {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// short is a run with a fraction of a second for each trial; its report and
// samples are in dir.
func short(dir, only, peers string) settings {
	return settings{
		rounds: 2, length: 40 * time.Millisecond, rate: 2000,
		only: regexp.MustCompile(only), peers: regexp.MustCompile(peers), users: everything,
		out: filepath.Join(dir, "report.md"), json: filepath.Join(dir, "samples.json"),
	}
}

// leftovers fails t unless a run leaves no file, no child and no descriptor.
func leftovers(t *testing.T) {
	t.Helper()
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	if err := os.Chmod(filepath.Dir(tmp), 0o755); err != nil { // proxies run there as another user
		t.Fatal(err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	before, err := countDescriptors(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		after, err := countDescriptors(os.Getpid())
		// The runtime opens its own poller and event descriptors once.
		if err != nil || after > before+3 {
			t.Errorf("%d descriptors are open after the run, %d were before: %v", after, before, err)
		}
		if files, err := os.ReadDir(tmp); err != nil || len(files) > 0 {
			t.Errorf("files stay behind: %v, %v", files, err)
		}
		if _, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); !errors.Is(err, syscall.ECHILD) {
			t.Errorf("children stay behind: wait4 says %v, want %v", err, syscall.ECHILD)
		}
	})
}

func TestDirectAndCopyAreMeasuredInEveryFigure(t *testing.T) {
	leftovers(t)
	dir := t.TempDir()
	s := short(dir, "^(echo/1KiB/64/.*|open/.*|bulk/8/.*|mixed/.*|start/.*|connect/.*)$", "^(direct|iocopy)$")
	var report, progress bytes.Buffer
	if err := drive(t.Context(), s, &report, &progress); err != nil {
		t.Fatalf("drive: %v\n%s", err, progress.String())
	}
	raw, err := os.ReadFile(s.json)
	if err != nil {
		t.Fatal(err)
	}
	var saved struct {
		Machine machine
		Samples results
	}
	if err := json.Unmarshal(raw, &saved); err != nil {
		t.Fatal(err)
	}
	if saved.Machine.Processors < 1 || saved.Machine.Kernel == "" || saved.Machine.Congestion == "" {
		t.Errorf("the machine is described as %+v", saved.Machine)
	}
	if want := 2 * len(accounts()) * (1 + 3 + 1 + 3 + 2 + 3) * 2; len(saved.Samples) != want {
		t.Errorf("%d samples, want %d", len(saved.Samples), want)
	}
	known := map[string][]metric{}
	for _, f := range figures() {
		known[f.id()] = f.metrics
	}
	for _, s := range saved.Samples {
		for _, m := range known[s.Figure] {
			noProxy := s.Peer == direct && (m.key == processor || s.Figure == "start/usual")
			if v, ok := s.Values[m.key]; ok == noProxy || ok && v <= 0 {
				t.Errorf("%s, %s, as %s: %s is %v", s.Figure, s.Peer, s.User, m.key, v)
			}
		}
		if s.Figure == openID && (s.Values[rate] < 1800 || s.Values[rate] > 2200) {
			t.Errorf("the open loop of %s ran at %v messages/s, want 2000", s.Peer, s.Values[rate])
		}
	}
	saidTwice, err := os.ReadFile(s.out)
	if err != nil || string(saidTwice) != report.String() {
		t.Errorf("the file and the output differ (%v)", err)
	}
	for _, want := range []string{"| figure ", "## Targets, as ", "not measured", "noise: *direct*"} {
		if !strings.Contains(report.String(), want) {
			t.Errorf("the report does not say %q:\n%s", want, report.String())
		}
	}
}

func TestIdleConnectionsAreCounted(t *testing.T) {
	leftovers(t)
	d := newDriver(t, "^iocopy$")
	values, err := d.trial(t.Context(), idleFigure(50), accounts()[0], d.peers[0], d.length)
	if err != nil {
		t.Fatal(err)
	}
	// This figure must show the pipes of the plain proxy.
	if got := values[descriptors]; got < 5.9 || got > 6.1 {
		t.Errorf("io.Copy holds %v descriptors for each idle connection, want 6", got)
	}
	for _, m := range idleMetrics {
		if _, ok := values[m.key]; !ok {
			t.Errorf("no %s", m.key)
		}
	}
}

// newDriver is a driver with a backend, for single trials.
func newDriver(t *testing.T, peers string) *driver {
	t.Helper()
	dir, err := os.MkdirTemp("", "understudy-bench-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &driver{settings: short(dir, ".", peers), dir: dir, port: 11500, progress: io.Discard}
	t.Cleanup(d.stopBackends)
	if err := d.prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestInterruptedRunCleansUp(t *testing.T) {
	leftovers(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := short(t.TempDir(), "^bulk/8/usual$", "^(direct|iocopy)$")
	s.length = time.Hour
	go func() {
		program.Pause(ctx, 500*time.Millisecond)
		cancel()
	}()
	if err := drive(ctx, s, io.Discard, io.Discard); !errors.Is(err, errInterrupted) {
		t.Errorf("drive = %v, want %v", err, errInterrupted)
	}
	// Before anything runs, too.
	if err := drive(ctx, s, io.Discard, io.Discard); !errors.Is(err, errInterrupted) {
		t.Errorf("drive that is interrupted at once = %v, want %v", err, errInterrupted)
	}
}

func TestPeerThatIsMissingOrBrokenIsNamed(t *testing.T) {
	leftovers(t)
	s := short(t.TempDir(), "^echo/64B/1/usual$", "^(direct|understudy)$")
	s.rounds = 1
	s.understudy = "/bin/false" // it starts, and ends at once
	var report, progress bytes.Buffer
	if err := drive(t.Context(), s, &report, &progress); !errors.Is(err, errFailed) {
		t.Errorf("drive with a broken peer = %v, want %v", err, errFailed)
	}
	if want := "echo/64B/1/usual, understudy, as " + accounts()[0].name + ": understudy: exit status 1"; !strings.Contains(report.String(), want) {
		t.Errorf("the report does not say %q:\n%s", want, report.String())
	}

	t.Setenv("PATH", "")
	s.peers = regexp.MustCompile("^(direct|haproxy-2)$")
	progress.Reset()
	if err := drive(t.Context(), s, io.Discard, &progress); err != nil {
		t.Errorf("drive without HAProxy = %v, want nil", err)
	}
	if want := "SKIP: haproxy-2: haproxy is not there (apt-get install haproxy)"; !strings.Contains(progress.String(), want) {
		t.Errorf("the run does not say %q:\n%s", want, progress.String())
	}
}

// Each load fails when the proxy changes, drops or adds a byte of the stream.
func TestDamagedStreamsAreNoticed(t *testing.T) {
	leftovers(t)
	d := newDriver(t, "^direct$")
	loads := []struct {
		name  string
		usual bool // in this shape only
		run   func(ctx context.Context, t *trial) (measured, error)
	}{
		{"closed loop", false, func(ctx context.Context, t *trial) (measured, error) { return closedLoop(ctx, t, 1000, 4) }},
		{"open loop", true, openLoop},
		{"bulk", false, func(ctx context.Context, t *trial) (measured, error) { return bulk(ctx, t, 4) }},
		{"mixed", false, mixed},
		{"short connections", false, shortConnections},
		{"1 MiB each", true, func(ctx context.Context, t *trial) (measured, error) { return idle(ctx, t, 4) }},
	}
	for _, damage := range []struct {
		name string
		to   func(at int, b []byte) []byte // at is the offset of b in the stream
	}{
		{"a byte is changed", func(at int, b []byte) []byte { return flip(at, b, 20) }},
		{"a byte is lost", func(at int, b []byte) []byte { return cut(at, b, 20, 1) }},
		{"a byte comes twice", func(at int, b []byte) []byte { return repeat(at, b, 20) }},
		{"the stream ends early", func(at int, b []byte) []byte { return cut(at, b, 20, 1<<30) }},
		{"nothing", func(_ int, b []byte) []byte { return b }},
	} {
		for _, shape := range shapes {
			proxy := damagingProxy(t, d.backends[shape].addr, damage.to)
			for _, load := range loads {
				if shape != usual && load.usual {
					continue
				}
				length := d.length
				if damage.name == "nothing" {
					length = max(length, 500*time.Millisecond) // a busy machine may be that late
				}
				_, err := load.run(t.Context(), &trial{
					shape: shape, way: &way{addr: proxy}, backend: d.backends[shape], length: length, rate: d.rate,
				})
				if (err == nil) != (damage.name == "nothing") {
					t.Errorf("%s, and %s in shape %s sees %v", damage.name, load.name, shape, err)
				}
			}
		}
	}
}

func flip(at int, b []byte, position int) []byte {
	if i := position - at; i >= 0 && i < len(b) {
		b[i] ^= 1
	}
	return b
}

// cut takes n bytes out at position; one that is cut away entirely ends the
// stream there.
func cut(at int, b []byte, position, n int) []byte {
	i := min(max(position-at, 0), len(b))
	j := min(max(position+n-at, 0), len(b))
	return append(b[:i], b[j:]...)
}

func repeat(at int, b []byte, position int) []byte {
	i := position - at
	if i < 0 || i >= len(b) {
		return b
	}
	return append(append(append([]byte(nil), b[:i+1]...), b[i]), b[i+1:]...)
}

// damagingProxy relays to backend and passes what comes back through damage.
// A stream that loses more than a byte is ended.
func damagingProxy(t *testing.T, backend address, damage func(at int, b []byte) []byte) address {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() {
		_ = listener.Close()
		all.Wait()
	})
	relay := func(client net.Conn) {
		defer client.Close()
		server, err := net.Dial(backend.network(), backend.name())
		if err != nil {
			return
		}
		defer server.Close()
		all.Go(func() {
			// Not as two TCP connections: those would splice, through pipes
			// that live until the collector finds them.
			_, _ = io.Copy(struct{ io.Writer }{server}, struct{ io.Reader }{client})
			_ = server.Close()
		})
		buf := make([]byte, 64<<10)
		for at := 0; ; {
			n, err := server.Read(buf)
			left := damage(at, buf[:n:n])
			if _, writeErr := client.Write(left); err != nil || writeErr != nil || len(left) < n-1 {
				return
			}
			at += n
		}
	}
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { relay(client) })
		}
	})
	addr, err := parseAddress(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func TestPatternIsOneEndlessStream(t *testing.T) {
	for _, from := range []int64{0, 1, patternLen - 1, patternLen, 5*patternLen - 7} {
		piece := patternAt(from, chunk)
		for _, i := range []int{0, 1, 6, 7, patternLen - 1, patternLen, chunk - 1} {
			if want := patternAt(from+int64(i), 1)[0]; piece[i] != want {
				t.Errorf("byte %d from position %d is %#x, at position %d it is %#x", i, from, piece[i], from+int64(i), want)
			}
		}
	}
}

func TestTargetsNameFiguresAndMetricsThatExist(t *testing.T) {
	var r results
	for _, f := range figures() {
		for _, user := range []string{"root", "nobody"} {
			list, err := peers(tools{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range list {
				values := map[string]float64{}
				for _, m := range f.metrics {
					values[m.key] = 1
				}
				r = append(r, sample{Round: 1, User: user, Figure: f.id(), Peer: p.name, Values: values})
			}
		}
	}
	for _, target := range targets() {
		if len(target.find(r, "nobody")) == 0 {
			t.Errorf("target %q, must %s, finds nothing in a run of everything", target.what, target.must)
		}
	}
}

func TestRequestsSurviveTheWire(t *testing.T) {
	want := request{start: 7919 * 9000, length: endless}
	if got := decodeRequest(want.encode()); got != want {
		t.Errorf("decodeRequest = %+v, want %+v", got, want)
	}
}

func TestUsageIsExplained(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"-h"}, 0, "-rounds"},
		{[]string{"-only", "("}, 2, "missing closing )"},
		{[]string{"-rounds", "0"}, 2, "-rounds 0 is less than 1"},
		{[]string{"-seconds", "0"}, 2, "-seconds 0 is less than 0.01"},
		{[]string{"everything"}, 2, `unexpected argument "everything"`},
		{[]string{"backend"}, 1, "usage: bench backend SHAPE ADDRESS"},
		{[]string{"backend", "tall", "127.0.0.1:1"}, 1, "usage: bench backend SHAPE ADDRESS"},
	} {
		var stderr bytes.Buffer
		if code := run(tt.args, io.Discard, &stderr); code != tt.code || !strings.Contains(stderr.String(), tt.says) {
			t.Errorf("bench %s: exit %d, %q, want %d, %q", strings.Join(tt.args, " "), code, stderr.String(), tt.code, tt.says)
		}
	}
}

// A stall must count for every message that was due meanwhile: the open loop
// measures that, and a closed one cannot.
func TestOpenLoopSeesWhatAStallCosts(t *testing.T) {
	leftovers(t)
	d := newDriver(t, "^direct$")
	// A busy machine makes the closed loop slower, by far less than the limit.
	const stall, limit = 1200 * time.Millisecond, 300 * time.Millisecond
	for _, load := range []struct {
		name string
		run  func(ctx context.Context, t *trial) (measured, error)
		sees bool
	}{
		{"open loop", openLoop, true},
		{"closed loop", func(ctx context.Context, t *trial) (measured, error) { return closedLoop(ctx, t, 64, 64) }, false},
	} {
		var bytes atomic.Int64
		var running sync.Mutex
		proxy := damagingProxy(t, d.backends[usual].addr, func(_ int, b []byte) []byte {
			running.Lock() // the whole proxy stops, as a single-threaded one would
			defer running.Unlock()
			if n := bytes.Add(int64(len(b))); n > 200*64 && n-int64(len(b)) <= 200*64 {
				program.Pause(t.Context(), stall)
			}
			return b
		})
		m, err := load.run(t.Context(), &trial{shape: usual, way: &way{addr: proxy}, backend: d.backends[usual], length: stall, rate: 2000})
		if err != nil {
			t.Fatal(err)
		}
		if sees := m[p50] > float64(limit.Microseconds()); sees != load.sees {
			t.Errorf("a proxy stands still for %v, and the p50 of the %s is %v µs", stall, load.name, m[p50])
		}
	}
}
