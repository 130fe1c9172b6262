package failover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"understudy/health"
	"understudy/hooks"
	"understudy/relay"
	"understudy/selector"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errRefused = errors.New("connection refused")

// stage is the gate and the hosts of a test, and the record of what happened.
type stage struct {
	mu       sync.Mutex // guards everything below
	begin    time.Time
	story    []string
	refusing map[string]bool
	silent   map[string]bool
	deaf     map[string]bool
	fence    time.Duration // what a fence takes
	openErr  error
	asked    int
	running  map[string]int
	overlap  bool
	pause    map[string]time.Duration // what a script takes
	fails    map[string]bool          // scripts, by base name
}

func newStage() *stage {
	return &stage{
		begin: time.Now(), refusing: map[string]bool{}, silent: map[string]bool{}, deaf: map[string]bool{},
		running: map[string]int{}, pause: map[string]time.Duration{}, fails: map[string]bool{},
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

func (s *stage) told() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.story...)
}

func (s *stage) checks() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
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
	return relay.Waiting{Queued: 3, Held: 1}, nil
}

func (s *stage) Hold() { s.tell("hold") }

func (s *stage) Refuse() relay.Waiting {
	s.tell("refuse")
	return relay.Waiting{Queued: 3, Held: 1}
}

func (s *stage) Fence(ctx context.Context, before uint64, grace time.Duration) relay.Fenced {
	s.tell("fence <%d grace %v", before, grace)
	if before == 1 {
		return relay.Fenced{} // nobody is there yet
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

// connect is the TCP check: 1ms.
func (s *stage) connect(ctx context.Context, host string) health.Result {
	s.mu.Lock()
	s.asked++
	refusing, silent, deaf := s.refusing[host], s.silent[host], s.deaf[host]
	s.mu.Unlock()
	switch {
	case deaf: // to its context
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

// Run plays a script that takes as long as its pause. A check that is
// cancelled or out of time is gone two seconds later.
func (s *stage) Run(ctx context.Context, script hooks.Script) hooks.Result {
	name := filepath.Base(script.Path) + " " + script.Args[0]
	s.mu.Lock()
	pause, fail := s.pause[name], s.fails[name]
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
	}
	if err != nil && !fail && script.Kind == hooks.Check {
		time.AfterFunc(2*time.Second, end)
	} else {
		end()
	}
	return hooks.Result{End: hooks.Exited, Err: err, Took: pause, Gone: gone}
}

// conduct runs a conductor on s until end has returned.
func conduct(t *testing.T, s *stage, cfg Config, play func(c *Conductor)) string {
	t.Helper()
	cfg.Name, cfg.Gate, cfg.Scripts = "orders", s, s
	if cfg.Checks == nil {
		cfg.Checks = []Check{{Name: "tcp", Run: s.connect}}
	}
	log := &strictLog{t: t}
	cfg.Logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: log, DisableTime: true})
	c, err := New(cfg)
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

// strictLog keeps a log, and fails the test on a key without a value.
type strictLog struct {
	t   *testing.T
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
	if diff := cmp.Diff(want, s.told()); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
}

func TestFailoverFencesThenTriggersThenOpens(t *testing.T) {
	dir := triggers(t, "10-dns", "20-mail", ".hidden", "30-old~")
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.pause["10-dns b"] = 300 * time.Millisecond
		s.fence = 50 * time.Millisecond
		log := conduct(t, s, Config{Hosts: []string{"a", "b"}, Triggers: Triggers{Path: dir}}, func(c *Conductor) {
			time.Sleep(500 * time.Millisecond)
			if got := c.Snapshot(); got.Primary != "a" || got.Epoch != 1 || got.Phase != selector.Serving {
				t.Errorf("snapshot = %+v, want a as primary of epoch 1", got)
			}
			s.set(func() { s.refusing["a"] = true })
			c.Suspect(1, errRefused)
			time.Sleep(300 * time.Millisecond)
			if got := c.Snapshot(); got.Primary != "" || got.Epoch != 2 || got.Phase != selector.Switching {
				t.Errorf("snapshot = %+v, want no primary while the triggers run", got)
			}
			time.Sleep(2 * time.Second)
			if got := c.Snapshot(); got.Primary != "b" || got.Hosts[0].State != selector.Down {
				t.Errorf("snapshot = %+v, want b as primary and a down", got)
			}
		})
		env := func(event, epoch, old, host, reason string) string {
			return "(UNDERSTUDY_EVENT=" + event + " UNDERSTUDY_RELAY=orders UNDERSTUDY_EPOCH=" + epoch +
				" UNDERSTUDY_OLD=" + old + " UNDERSTUDY_NEW=" + host + " UNDERSTUDY_REASON=" + reason + ")"
		}
		first := env("start", "1", "", "a", "first usable host at the start")
		second := env("failover", "2", "a", "b", "a is down: tcp: connection refused")
		wantStory(t, s,
			"1ms fence <1 grace 0s",
			"1ms 10-dns a "+first,
			"1ms 20-mail a "+first,
			"1ms open 1 a",
			"701ms hold",
			"702ms fence <2 grace 0s",
			"752ms fenced",
			"752ms 10-dns b "+second,
			"1.052s 20-mail b "+second,
			"1.052s open 2 b",
		)
		// It reads as a story: seen, decided and why, fenced, each trigger, open.
		wantInOrder(t, log,
			`[WARN]  failover: host suspected: relay=orders host=a check=tcp error="connection refused"`,
			`[INFO]  failover: host changed state: relay=orders host=a from=up to=down check=tcp error="connection refused"`,
			`[WARN]  failover: primary lost: relay=orders host=a epoch=1 after=201ms reason="a is down: tcp: connection refused"`,
			`[INFO]  failover: host elected: relay=orders host=b old=a event=failover epoch=2 reason="a is down: tcp: connection refused"`,
			`[INFO]  failover: earlier connections fenced: relay=orders host=b epoch=2 finished=0 reset=2 moved=0 took=50ms`,
			`[INFO]  failover: trigger ended: relay=orders host=b epoch=2 script=`+dir+`/10-dns took=300ms`,
			`[INFO]  failover: trigger ended: relay=orders host=b epoch=2 script=`+dir+`/20-mail took=0s`,
			`[INFO]  failover: relay open: relay=orders host=b epoch=2 queued=3 held=1 shut-for=351ms`,
		)
	})
}

// wantInOrder fails the test when log does not have these lines in this order.
func wantInOrder(t *testing.T, log string, lines ...string) {
	t.Helper()
	rest := log
	for _, line := range lines {
		_, after, ok := strings.Cut(rest, line+"\n")
		if !ok {
			t.Errorf("the log misses, or has too early:\n%s\nin\n%s", line, log)
			return
		}
		rest = after
	}
}

func TestFencePolicies(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fence Fence
		want  []string
	}{
		{"now", Fence{}, []string{"hold", "fence <2 grace 0s", "fenced", "open 2 b"}},
		{"drain", Fence{Drain: 30 * time.Second}, []string{"hold", "fence <2 grace 30s", "fenced", "open 2 b"}},
		{"keep", Fence{Keep: true}, []string{"hold", "fence <2 grace -1ns", "fenced", "open 2 b"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage()
				conduct(t, s, Config{Hosts: []string{"a", "b"}, Fence: tt.fence}, func(*Conductor) {
					time.Sleep(500 * time.Millisecond)
					s.set(func() { s.refusing["a"], s.story = true, nil })
					time.Sleep(5 * time.Second)
				})
				var got []string
				for _, line := range s.told() {
					_, what, _ := strings.Cut(line, " ")
					got = append(got, what)
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("what happened (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestHostsAreCheckedDuringALongDrainAndTheElectMayDie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.fence = 20 * time.Second
		cfg := Config{Hosts: []string{"a", "b", "c"}, Fence: Fence{Drain: 20 * time.Second}}
		log := conduct(t, s, cfg, func(*Conductor) {
			time.Sleep(500 * time.Millisecond)
			s.set(func() { s.refusing["a"] = true })
			time.Sleep(5 * time.Second)
			s.set(func() { s.refusing["b"] = true })
			before := s.checks()
			time.Sleep(5 * time.Second)
			if n := s.checks() - before; n < 15 {
				t.Errorf("%d checks in 5s of a drain, want three a second", n)
			}
			time.Sleep(time.Minute)
		})
		wantStory(t, s,
			"1ms fence <1 grace 20s",
			"1ms open 1 a",
			"1.201s hold",
			"1.202s fence <2 grace 20s",
			"11.201s refuse", // who waits waits for ten seconds, whatever goes on
			"21.202s fenced",
			"21.203s fence <3 grace 20s",
			"41.203s fenced",
			"41.203s open 3 c",
		)
		wantInOrder(t, log,
			`[WARN]  failover: clients are refused: relay=orders queued=3 held=1 after=10s`,
			`[INFO]  failover: relay open: relay=orders host=c epoch=3 queued=3 held=1 shut-for=40.002s`)
	})
}

func TestTriggerPolicy(t *testing.T) {
	dir := triggers(t, "10", "20")
	for _, tt := range []struct {
		name  string
		abort bool
		want  []string
	}{
		{"continue", false, []string{"10 a", "20 a", "open 1 a"}},
		{"abort", true, []string{"10 a", "10 b", "20 b", "open 2 b"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage()
				s.fails["10 a"] = true
				log := conduct(t, s, Config{Hosts: []string{"a", "b"}, Triggers: Triggers{Path: dir, Abort: tt.abort}}, func(*Conductor) {
					time.Sleep(time.Minute)
				})
				var got []string
				for _, line := range s.told() {
					_, line, _ = strings.Cut(line, " ")
					if line, _, _ = strings.Cut(line, " ("); !strings.HasPrefix(line, "fence") {
						got = append(got, line)
					}
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("what happened (-want +got):\n%s", diff)
				}
				wantInOrder(t, log, `[WARN]  failover: trigger failed: relay=orders host=a epoch=1 script=`+dir+`/10 took=0s error="exit status 1"`)
			})
		})
	}
}

func TestNobodyIsUsable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.refusing["a"], s.refusing["b"] = true, true
		log := conduct(t, s, Config{Hosts: []string{"a", "b"}}, func(c *Conductor) {
			time.Sleep(time.Minute)
			if n := s.checks(); n > 2*60*12 {
				t.Errorf("%d checks in a minute, want about ten a second and host", n)
			}
			if got := c.Snapshot(); got.Primary != "" || got.Phase != selector.Selecting || got.RetryAt.IsZero() {
				t.Errorf("snapshot = %+v, want a round that is waited out", got)
			}
			s.set(func() { s.refusing["b"] = false })
			time.Sleep(time.Second)
		})
		if got := s.told(); len(got) != 2 || !strings.HasSuffix(got[1], "open 1 b") {
			t.Errorf("what happened: %q, want b opened", got)
		}
		if n := strings.Count(log, "[ERROR]"); n != 1 {
			t.Errorf("%d errors in the log, want 1", n)
		}
		if n := strings.Count(log, "no host is usable"); n != 6 { // 1s 2s 4s 8s 16s 32s
			t.Errorf("%d records of failed rounds, want 6:\n%s", n, log)
		}
		wantInOrder(t, log,
			`[ERROR] failover: no host is usable: relay=orders delay=1s reason="a: tcp: connection refused; b: tcp: connection refused"`,
			`[WARN]  failover: still no host is usable: relay=orders delay=2s reason="a: tcp: connection refused; b: tcp: connection refused"`)
	})
}

func TestACheckThatIgnoresItsContextHangsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		conduct(t, s, Config{Hosts: []string{"a", "b"}}, func(*Conductor) {
			time.Sleep(500 * time.Millisecond)
			s.set(func() { s.deaf["a"] = true })
			time.Sleep(5 * time.Second)
		})
		wantStory(t, s,
			"1ms fence <1 grace 0s",
			"1ms open 1 a",
			"3.2s hold", // asked at 1s, 1.1s and 1.2s, each taken as failed a second after its timeout
			"3.201s fence <2 grace 0s",
			"3.201s fenced",
			"3.201s open 2 b",
		)
		if got := time.Since(s.begin); got < 20*time.Second {
			t.Errorf("Run returned after %v, before its checks had", got)
		}
	})
}

func TestRunEndsWhatItStarted(t *testing.T) {
	dir := triggers(t, "10-hangs")
	for _, during := range []string{"fence", "trigger"} {
		t.Run(during, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage()
				s.silent["a"] = true
				cfg := Config{Hosts: []string{"b", "c", "a"}}
				if during == "fence" {
					s.fence = time.Hour
				} else {
					cfg.Triggers.Path = dir
					s.pause["10-hangs c"] = time.Hour
					cfg.Triggers.Timeout = time.Hour
				}
				conduct(t, s, cfg, func(*Conductor) {
					time.Sleep(500 * time.Millisecond)
					s.set(func() { s.refusing["b"] = true })
					time.Sleep(5 * time.Second)
				})
				if got := time.Since(s.begin); got > 6*time.Second {
					t.Errorf("Run returned %v after its context had ended", got-5500*time.Millisecond)
				}
			})
		})
	}
}

func TestGateThatDoesNotOpenIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.openErr = errors.New("address already in use")
		conduct(t, s, Config{Hosts: []string{"a"}}, func(c *Conductor) {
			time.Sleep(1500 * time.Millisecond)
			if got := c.Snapshot().Primary; got != "" {
				t.Errorf("snapshot names primary %q while clients cannot get in", got)
			}
			s.set(func() { s.openErr = nil })
			time.Sleep(time.Second)
			if got := c.Snapshot().Primary; got != "a" {
				t.Errorf("snapshot names primary %q, want a", got)
			}
		})
		wantStory(t, s, "1ms fence <1 grace 0s", "1ms does not open 1 a", "1.001s does not open 1 a", "2.001s open 1 a")
	})
}

func TestGateIsNotOpenedToAHostThatIsLost(t *testing.T) {
	// It was last tried at 2.001s, and the host is lost at 2.201s. It comes
	// back before and after the next try would have been.
	for _, back := range []time.Duration{2500 * time.Millisecond, 3500 * time.Millisecond} {
		t.Run(back.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage()
				s.openErr = errors.New("address already in use")
				conduct(t, s, Config{Hosts: []string{"a"}}, func(*Conductor) {
					time.Sleep(1500 * time.Millisecond)
					s.set(func() { s.refusing["a"] = true })
					time.Sleep(800 * time.Millisecond)
					s.set(func() { s.openErr = nil })
					time.Sleep(back - 2300*time.Millisecond)
					s.set(func() { s.refusing["a"] = false })
					time.Sleep(150 * time.Millisecond)
				})
				var opened []string
				for _, line := range s.told() {
					if _, what, _ := strings.Cut(line, " "); strings.HasPrefix(what, "open") {
						opened = append(opened, what)
					}
				}
				if diff := cmp.Diff([]string{"open 2 a"}, opened); diff != "" {
					t.Errorf("opened (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestABlackHoleTakesOneTimeoutAndABit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		conduct(t, s, Config{Hosts: []string{"a", "b"}}, func(*Conductor) {
			time.Sleep(500 * time.Millisecond)
			s.set(func() { s.silent["a"] = true })
			time.Sleep(5 * time.Second)
		})
		wantStory(t, s,
			"1ms fence <1 grace 0s",
			"1ms open 1 a",
			"2.2s hold", // the check of 1s
			"2.201s fence <2 grace 0s",
			"2.201s fenced",
			"2.201s open 2 b",
		)
	})
}

func TestCheckScriptIsNotStartedWhileItIsBeingEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		cfg := Config{Hosts: []string{"a", "b"}, Checks: []Check{
			{Name: "tcp", Run: s.connect},
			{Name: "check-host", Script: "/check", Timeout: time.Second},
		}}
		conduct(t, s, cfg, func(*Conductor) {
			time.Sleep(500 * time.Millisecond)
			s.set(func() { s.pause["check a"] = time.Minute })
			time.Sleep(30 * time.Second)
		})
		wantStory(t, s,
			"1ms fence <1 grace 0s",
			"1ms open 1 a",
			// It runs at 2.001s, times out a second later, is killed two
			// seconds after that, and so on, three times.
			"9.001s hold",
			"9.002s fence <2 grace 0s",
			"9.002s fenced",
			"9.002s open 2 b",
		)
		if s.overlap {
			t.Error("the check script was started while it ran")
		}
	})
}

func TestSuspectNeverBlocks(t *testing.T) {
	c, err := New(Config{Hosts: []string{"a"}, Gate: newStage(), Checks: []Check{{Name: "tcp", Run: newStage().connect}}})
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 { // nobody runs it
		c.Suspect(1, errRefused)
	}
	if got := c.Snapshot(); got.Primary != "" || len(got.Hosts) != 1 {
		t.Errorf("snapshot before Run = %+v", got)
	}
}

func TestNewNamesEveryProblem(t *testing.T) {
	_, err := New(Config{
		Checks:   []Check{{Name: "nothing"}, {Name: "both", Run: newStage().connect, Script: "/x"}},
		Triggers: Triggers{Timeout: -1},
		Fence:    Fence{Keep: true, Drain: time.Second},
	})
	if err == nil {
		t.Fatal("New accepted it")
	}
	for _, want := range []string{"gate: required", `checks[0]: "nothing"`, `checks[1]: "both"`, "scripts: required", "trigger-timeout", "keep and drain"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %q", err, want)
		}
	}
}
