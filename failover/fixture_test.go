package failover

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"

	"understudy/health"
	"understudy/hooks"
	"understudy/relay"
)

// complete sets the settings of cfg that are zero to the values that most tests
// use.
func complete(cfg Config) Config {
	cfg.Rise = cmp.Or(cfg.Rise, 2)
	cfg.Fall = cmp.Or(cfg.Fall, 3)
	cfg.FastInterval = cmp.Or(cfg.FastInterval, 100*time.Millisecond)
	cfg.MaxBackoff = cmp.Or(cfg.MaxBackoff, time.Minute)
	cfg.Hold = cmp.Or(cfg.Hold, 10*time.Second)
	cfg.Stay = cmp.Or(cfg.Stay, 3*time.Second)
	cfg.DNSHold = cmp.Or(cfg.DNSHold, 30*time.Second)
	cfg.Triggers.Timeout = cmp.Or(cfg.Triggers.Timeout, 30*time.Second)
	cfg.Checks = slices.Clone(cfg.Checks)
	for i := range cfg.Checks {
		c := &cfg.Checks[i]
		interval, timeout := time.Second, time.Second
		if c.Script != "" {
			interval, timeout = 2*time.Second, 5*time.Second
		}
		c.Interval, c.Timeout = cmp.Or(c.Interval, interval), cmp.Or(c.Timeout, timeout)
	}
	return cfg
}

// idle returns a conductor of hosts that are up. It does not run.
func idle(state *StateFile, hosts ...string) (*Conductor, error) {
	s := newStage()
	return New(complete(Config{Hosts: hosts, Gate: s, Checks: []Check{{Name: "tcp", Run: s.connect}}, StateFile: state}))
}

// opened returns the hosts that clients were connected to, in order.
func opened(s *stage) string {
	var all []string
	for _, line := range s.events() {
		if _, to, ok := strings.Cut(line, " open "); ok {
			all = append(all, to)
		}
	}
	return strings.Join(all, ", ")
}

var errRefused = errors.New("connection refused")

// stage is the gate and the hosts of a test, with a record of all calls.
type stage struct {
	mu        sync.Mutex // guards everything below
	begin     time.Time
	story     []string
	refusing  map[string]bool
	silent    map[string]bool
	hung      map[string]bool
	fence     time.Duration // duration of a fence
	openErr   error
	paced     bool // clients that wait are connected one after the other
	requested int
	running   map[string]int
	overlap   bool
	pause     map[string]time.Duration // duration of a script
	fails     map[string]bool          // scripts, by base name
	unknown   map[string]bool          // scripts without a result
}

func newStage() *stage {
	return &stage{
		begin: time.Now(), refusing: map[string]bool{}, silent: map[string]bool{}, hung: map[string]bool{},
		running: map[string]int{}, pause: map[string]time.Duration{}, fails: map[string]bool{}, unknown: map[string]bool{},
	}
}

func (s *stage) tell(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.story = append(s.story, fmt.Sprintf("%v ", time.Since(s.begin))+fmt.Sprintf(format, args...))
}

func (s *stage) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *stage) events() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.story...)
}

func (s *stage) checks() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requested
}

func (s *stage) Open(epoch uint64, host string) (relay.Waiting, error) {
	s.mu.Lock()
	err := s.openErr
	s.mu.Unlock()
	if err != nil {
		s.tell("does not open %d %s", epoch, host)
		return relay.Waiting{}, err
	}
	s.tell("open %d %s", epoch, host)
	return relay.Waiting{Queued: 3, Held: 1, Paced: s.paced}, nil
}

func (s *stage) Hold() { s.tell("hold") }

func (s *stage) Refuse() relay.Waiting {
	s.tell("refuse")
	return relay.Waiting{Queued: 3, Held: 1}
}

func (s *stage) Fence(ctx context.Context, before uint64, stays string, p relay.FencePolicy) relay.Fenced {
	grace := p.Drain.String()
	if p.Keep {
		grace = "keep"
	}
	s.tell("fence <%d but %s grace %s", before, stays, grace)
	if before == 1 {
		return relay.Fenced{} // there are no clients yet
	}
	s.mu.Lock()
	d := s.fence
	s.mu.Unlock()
	select {
	case <-time.After(d):
		s.tell("fenced")
	case <-ctx.Done():
		s.tell("fence cut short")
	}
	return relay.Fenced{Reset: 2}
}

// connect is the TCP check. It takes 1ms.
func (s *stage) connect(ctx context.Context, host string) health.Result {
	s.mu.Lock()
	s.requested++
	refusing, silent, hung := s.refusing[host], s.silent[host], s.hung[host]
	s.mu.Unlock()
	switch {
	case hung: // ignores its context
		time.Sleep(20 * time.Second)
		return health.Result{OK: true}
	case silent:
		<-ctx.Done()
		return health.Result{Phase: health.Connect, Err: ctx.Err()}
	}
	time.Sleep(time.Millisecond)
	if refusing {
		return health.Result{Phase: health.Connect, Err: errRefused}
	}
	return health.Result{OK: true, Latency: time.Millisecond}
}

// Run runs a script that takes as long as its pause. A check that is cancelled
// or times out ends two seconds later.
func (s *stage) Run(ctx context.Context, script hooks.Script) hooks.Result {
	name := filepath.Base(script.Path) + " " + script.Args[0]
	s.mu.Lock()
	pause, fail, unknown := s.pause[name], s.fails[name], s.unknown[name]
	s.running[name]++
	s.overlap = s.overlap || s.running[name] > 1
	s.mu.Unlock()
	if script.Kind == hooks.Trigger {
		s.tell("%s (%s)", name, strings.Join(script.Env, " "))
	}
	gone := make(chan struct{})
	end := func() {
		s.mu.Lock()
		s.running[name]--
		s.mu.Unlock()
		close(gone)
	}
	var err error
	select {
	case <-time.After(min(pause, script.Timeout)):
	case <-ctx.Done():
		err = ctx.Err()
	}
	switch {
	case err == nil && pause > script.Timeout:
		err = errors.New("timed out")
	case err == nil && fail:
		err = errors.New("exit status 1")
	case err == nil && unknown:
		err = errors.New("too few processes")
	}
	if err != nil && !fail && !unknown && script.Kind == hooks.Check {
		time.AfterFunc(2*time.Second, end)
	} else {
		end()
	}
	return hooks.Result{End: hooks.Exited, Unknown: unknown, Err: err, Took: pause, Reaped: gone}
}

// conduct runs a conductor on s until end has returned.
func conduct(t *testing.T, s *stage, cfg Config, play func(c *Conductor)) string {
	t.Helper()
	cfg.Name, cfg.Gate = "orders", s
	if cfg.Scripts == nil {
		cfg.Scripts = s
	}
	if cfg.Checks == nil {
		cfg.Checks = []Check{{Name: "tcp", Run: s.connect}}
	}
	log := &strictLog{t: t}
	cfg.Logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: log, DisableTime: true})
	c, err := New(complete(cfg))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	play(c)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	return log.String()
}

// strictLog records a log, and fails the test on a key without a value.
type strictLog struct {
	t   testing.TB
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *strictLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *strictLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if bytes.Contains(p, []byte("EXTRA_VALUE_AT_END")) {
		l.t.Errorf("log record with a key without a value: %s", p)
	}
	return l.buf.Write(p)
}

// triggers makes a directory of triggers with these names.
func triggers(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("#!/bin/sh\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func wantStory(t *testing.T, s *stage, want ...string) {
	t.Helper()
	if diff := gocmp.Diff(want, s.events()); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
}

// script writes a shell script and returns its path.
func script(t *testing.T, dir, name, body string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}
