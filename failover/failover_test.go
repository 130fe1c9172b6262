package failover

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"understudy/relay"
	"understudy/selector"
)

// Times are virtual, and so is each sleep: the tests run in a bubble of
// testing/synctest; see conduct.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
			"1ms fence <1 but a grace 0s",
			"1ms 10-dns a "+first,
			"1ms 20-mail a "+first,
			"1ms open 1 a",
			"701ms hold",
			"702ms fence <2 but b grace 0s",
			"752ms fenced",
			"752ms 10-dns b "+second,
			"1.052s 20-mail b "+second,
			"1.052s open 2 b",
		)
		// The log has the whole sequence: seen, decided and why, fenced, each
		// trigger, open.
		wantInOrder(t, log,
			`[WARN]  failover: host suspected: relay=orders host=a check=tcp error="connection refused"`,
			`[INFO]  failover: host changed state: relay=orders host=a from=up to=down check=tcp error="connection refused"`,
			`[WARN]  failover: primary lost: relay=orders host=a epoch=1 after=201ms reason="a is down: tcp: connection refused"`,
			`[INFO]  failover: host elected: relay=orders host=b old=a event=failover epoch=2 reason="a is down: tcp: connection refused"`,
			`[INFO]  failover: earlier connections fenced: relay=orders host=b epoch=2 finished=0 reset=2 moved=0 kept=0 took=50ms`,
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
		fence relay.FencePolicy
		want  []string
	}{
		{"now", relay.FencePolicy{}, []string{"hold", "fence <2 but b grace 0s", "fenced", "open 2 b"}},
		{"drain", relay.FencePolicy{Drain: 30 * time.Second}, []string{"hold", "fence <2 but b grace 30s", "fenced", "open 2 b"}},
		{"keep", relay.FencePolicy{Keep: true}, []string{"hold", "fence <2 but b grace keep", "fenced", "open 2 b"}},
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
				for _, line := range s.events() {
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
		cfg := Config{Hosts: []string{"a", "b", "c"}, Fence: relay.FencePolicy{Drain: 20 * time.Second}}
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
			"1ms fence <1 but a grace 20s",
			"1ms open 1 a",
			"1.201s hold",
			"1.202s fence <2 but b grace 20s",
			"6.402s fence cut short", // there is no need to make room for a host that is down
			"6.403s fence <3 but c grace 20s",
			"11.201s refuse", // clients wait at most ten seconds, whatever happens
			"26.403s fenced",
			"26.403s open 3 c",
		)
		wantInOrder(t, log,
			`[WARN]  failover: clients are refused: relay=orders queued=3 held=1 after=10s`,
			`[INFO]  failover: relay open: relay=orders host=c epoch=3 queued=3 held=1 shut-for=25.202s`)
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
				for _, line := range s.events() {
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

func TestNoHostIsUsable(t *testing.T) {
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
		if got := s.events(); len(got) != 2 || !strings.HasSuffix(got[1], "open 1 b") {
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

func TestACheckThatIgnoresItsContextBlocksNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		conduct(t, s, Config{Hosts: []string{"a", "b"}}, func(*Conductor) {
			time.Sleep(500 * time.Millisecond)
			s.set(func() { s.hung["a"] = true })
			time.Sleep(5 * time.Second)
		})
		wantStory(t, s,
			"1ms fence <1 but a grace 0s",
			"1ms open 1 a",
			"3.2s hold", // checked at 1s, 1.1s and 1.2s, each failed a second after its timeout
			"3.201s fence <2 but b grace 0s",
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
		wantStory(t, s, "1ms fence <1 but a grace 0s", "1ms does not open 1 a", "1.001s does not open 1 a", "2.001s open 1 a")
	})
}

func TestGateIsNotOpenedToAHostThatIsLost(t *testing.T) {
	// The last check was at 2.001s, and the host is lost at 2.201s. It comes
	// back before and after the next check would have been.
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
				for _, line := range s.events() {
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
			"1ms fence <1 but a grace 0s",
			"1ms open 1 a",
			"2.2s hold", // the check of 1s
			"2.201s fence <2 but b grace 0s",
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
			"1ms fence <1 but a grace 0s",
			"1ms open 1 a",
			// It runs at 2.001s, times out a second later, is killed two
			// seconds after that, and so on, three times.
			"9.001s hold",
			"9.002s fence <2 but b grace 0s",
			"9.002s fenced",
			"9.002s open 2 b",
		)
		if s.overlap {
			t.Error("the check script was started while it ran")
		}
	})
}

func TestSuspectNeverBlocks(t *testing.T) {
	c, err := idle(nil, "a")
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 { // without Run
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
		Fence:    relay.FencePolicy{Keep: true, Drain: time.Second},
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

// No setting has a default here: a missing one is named in the error, and zero
// is a value where it means something.
func TestZeroIsNoDefault(t *testing.T) {
	s := newStage()
	for name, forget := range map[string]func(*Config){
		"rise: 0":                func(c *Config) { c.Rise = 0 },
		"fall: 0":                func(c *Config) { c.Fall = 0 },
		"fast-interval: 0s":      func(c *Config) { c.FastInterval = 0 },
		"max-backoff: 0s":        func(c *Config) { c.MaxBackoff = 0 },
		"checks[0].interval: 0s": func(c *Config) { c.Checks[0].Interval = 0 },
		"checks[0].timeout: 0s":  func(c *Config) { c.Checks[0].Timeout = 0 },
		"trigger-timeout: 0s":    func(c *Config) { c.Triggers = Triggers{Path: "/x"} },
		"hold: -1ns":             func(c *Config) { c.Hold = -1 },
		"stay: -1ns":             func(c *Config) { c.Stay = -1 },
		"dns-hold: -1ns":         func(c *Config) { c.DNSHold = -1 },
	} {
		cfg := complete(Config{Hosts: []string{"a"}, Gate: s, Scripts: s, Checks: []Check{{Name: "tcp", Run: s.connect}}})
		cfg.Hold, cfg.Stay, cfg.DNSHold, cfg.Failback, cfg.Triggers = 0, 0, 0, 0, Triggers{}
		if _, err := New(cfg); err != nil {
			t.Fatalf("%s: zeros that mean something: %v", name, err)
		}
		forget(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("New = %v, want an error with %q", err, name)
		}
	}
}

// Changed is called when a host or the primary changes, and when a host passes
// again, but not for every check.
func TestChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		var calls atomic.Int32
		conduct(t, s, Config{Hosts: []string{"a", "b"}, Changed: func() { calls.Add(1) }}, func(c *Conductor) {
			time.Sleep(10 * time.Second)
			quiet := calls.Load()
			time.Sleep(time.Minute)
			if n := calls.Load(); quiet == 0 || n != quiet {
				t.Errorf("called %d times at the start and %d times in a minute without a change", quiet, n-quiet)
			}
			s.set(func() { s.refusing["b"] = true })
			time.Sleep(10 * time.Second)
			down := calls.Load()
			if h := c.Status().Hosts[1]; down == quiet || h.State != selector.Down || time.Since(h.Checks[0].Failing) < 8*time.Second {
				t.Errorf("called %d times when b went down: %+v", down-quiet, h)
			}
			s.set(func() { s.refusing["b"] = false })
			time.Sleep(10 * time.Second)
			if h := c.Status().Hosts[1]; calls.Load() == down || h.State != selector.Up || !h.Checks[0].Failing.IsZero() {
				t.Errorf("called %d times when b came back: %+v", calls.Load()-down, h)
			}
		})
	})
}
