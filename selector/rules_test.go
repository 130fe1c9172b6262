package selector

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The facts of one failover, and how often the hosts are checked.
func TestSuspicion(t *testing.T) {
	tcp, pong := Check{Name: "tcp"}, Check{Name: "http"}
	for _, tt := range []struct {
		name  string
		cfg   Config
		hosts []string
		from  time.Duration // events before this are not compared
		end   time.Duration
		want  []string
	}{
		{
			name:  "a single failure is suspected, checked again after a fast interval, and cleared",
			hosts: []string{"a: up; 9.95s refused; 10.05s up"},
			from:  2 * time.Second, end: 15 * time.Second,
			want: []string{"10.001s suspected a tcp: connection refused", "10.101s cleared a tcp"},
		},
		{
			name:  "a check that is late is suspected before it fails",
			hosts: []string{"a: up; 9.95s silent; 10.15s up"},
			from:  2 * time.Second, end: 15 * time.Second,
			want: []string{"10.1s suspected a tcp: no answer for 100ms", "10.201s cleared a tcp"},
		},
		{
			name:  "what is late is measured by what is usual",
			hosts: []string{"a: slow; 9.95s silent; 11.65s slow"}, // 4 x 400ms, but one timeout at most
			from:  2 * time.Second, end: 15 * time.Second,
			want: []string{"11.3s suspected a tcp: timeout", "12.1s cleared a tcp"},
		},
		{
			name:  "the same suspicion is reported once in ten seconds",
			hosts: []string{"a: up; 9.95s refused; 10.05s up; 13.05s refused; 13.15s up; 16.15s refused; 16.25s up; 21.25s refused; 21.35s up"},
			from:  2 * time.Second, end: 30 * time.Second,
			want: []string{
				"10.001s suspected a tcp: connection refused", "10.101s cleared a tcp",
				"21.301s suspected a tcp: connection refused", "21.401s cleared a tcp",
			},
		},
		{
			name:  "unless the host has been down or up since",
			hosts: []string{"a: up", "b: up; 9.5s refused; 11s up; 15s refused"},
			from:  2 * time.Second, end: 30 * time.Second,
			want: []string{
				"10.001s suspected b tcp: connection refused", "10.201s b up->down by tcp",
				"12.201s b down->up by tcp",
				"15.201s suspected b tcp: connection refused", "15.401s b up->down by tcp",
			},
		},
		{
			name:  "a standby is found out too, and is up after rise successes",
			hosts: []string{"a: up", "b: up; 9.5s refused; 15s up"},
			from:  2 * time.Second, end: 30 * time.Second,
			want: []string{
				"10.001s suspected b tcp: connection refused",
				"10.201s b up->down by tcp",
				"16.201s b down->up by tcp",
			},
		},
		{
			name:  "a host that accepts again has to pass its other checks again",
			cfg:   Config{Checks: []Check{tcp, pong}},
			hosts: []string{"a: up", "b: up; 9.5s refused; 15s unwell; 30s up"},
			from:  2 * time.Second, end: 40 * time.Second,
			want: []string{
				"10.001s suspected b tcp: connection refused",
				"10.201s b up->down by tcp",
				"16.201s b down->unknown by tcp",
				"18.203s b unknown->down by http",
				"31.203s b down->up by http",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.cfg, tt.hosts...)
			w.facts = true
			w.play(tt.from)
			w.story = nil
			w.play(tt.end)
			if diff := cmp.Diff(tt.want, w.story); diff != "" {
				t.Errorf("what happened (-want +got):\n%s", diff)
			}
		})
	}
}

// How many checks are started in a stretch of time.
func TestRateOfChecks(t *testing.T) {
	many := make([]string, 50)
	manyDown := make([]string, 50)
	for i := range many {
		many[i] = fmt.Sprintf("h%d: up", i)
		manyDown[i] = fmt.Sprintf("h%d: refused", i)
	}
	tcp := Check{Name: "tcp"}
	script := Check{Name: "script", Script: true}
	for _, tt := range []struct {
		name     string
		cfg      Config
		hosts    []string
		from, to time.Duration
		host     string // "" for all
		min, max int
	}{
		{"one a second while all is well", Config{}, []string{"a: up", "b: up"}, 10 * time.Second, 70 * time.Second, "a tcp", 60, 60},
		{"fifty hosts with a script keep the beat", Config{Checks: []Check{tcp, script}}, many, 10 * time.Second, 40 * time.Second, "", 50 * 45, 50 * 45},
		{"a script of a host that refuses is not run", Config{Checks: []Check{tcp, script}}, []string{"a: up", "b: refused"}, 0, time.Hour, "b script", 0, 0},
		{"three scripts in a row find out that it fails", Config{Checks: []Check{tcp, script}}, []string{"a: up", "b: up; 9s sick"}, 9 * time.Second, 11 * time.Second, "b script", 3, 3},
		{"a script that could not be started is not retried without pause", Config{Checks: []Check{tcp, script}}, []string{"a: up", "b: up; 9s nofork"}, 10 * time.Second, 70 * time.Second, "b script", 30, 30},
		{"nor when it had just failed", Config{Checks: []Check{tcp, script}}, []string{"a: up", "b: up; 9s sick; 10.06s nofork; 11s up"}, 9 * time.Second, 12 * time.Second, "b script", 2, 12},
		{"ports are watched ten times a second in the first seconds without a primary", Config{}, []string{"a: refused", "b: refused"}, 0, 4900 * time.Millisecond, "", 96, 98},
		{"and twice a second later", Config{}, []string{"a: refused", "b: refused"}, 10 * time.Second, 70 * time.Second, "", 238, 242},
		{"no host is connected to more often because it accepts", Config{Checks: []Check{tcp, {Name: "http"}}}, []string{"a: unwell"}, 10 * time.Second, 70 * time.Second, "", 118, 122},
		{"a longer interval does not hide a port that opens", Config{Checks: []Check{{Name: "tcp", Interval: time.Minute}}}, []string{"a: refused"}, 10 * time.Second, 70 * time.Second, "", 118, 122},
		{"a shorter interval is kept", Config{Checks: []Check{{Name: "tcp", Interval: 200 * time.Millisecond}}}, []string{"a: refused"}, 10 * time.Second, 70 * time.Second, "", 298, 302},
		{"of fifty hosts together 160 times a second", Config{}, manyDown, 0, 5 * time.Second, "", 150 * 5, 162 * 5},
		{"a burst has at most fall and two in flight", Config{Checks: []Check{{Name: "tcp", Timeout: 30 * time.Second, Interval: time.Second}}}, []string{"a: up; 9.5s silent", "b: up"}, 9 * time.Second, 35 * time.Second, "a tcp", 5, 5},
		{"checks that do not end are not piled up", Config{}, []string{"a: up; 5s overdue"}, 5 * time.Second, 40 * time.Second, "a tcp", 20, 33},
		{"a host that does not accept now is not asked more", Config{Fall: 100, Checks: []Check{tcp, {Name: "http"}}}, []string{"a: up", "b: up; 9.5s refused"}, 10100 * time.Millisecond, 18 * time.Second, "b http", 0, 0},
		{"a script that fails all the time runs once a second at first", Config{Checks: []Check{tcp, script}}, []string{"a: sick"}, 0, 5 * time.Second, "a script", 5, 5},
		{"and then at its interval", Config{Checks: []Check{tcp, script}}, []string{"a: sick"}, 10 * time.Second, 70 * time.Second, "a script", 29, 31},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.cfg, tt.hosts...)
			count := func() (n int) {
				for k, v := range w.started {
					if tt.host == "" || k == tt.host {
						n += v
					}
				}
				return n
			}
			w.play(tt.from)
			before := count()
			w.play(tt.to)
			if got := count() - before; got < tt.min || got > tt.max {
				t.Errorf("%d checks, want %d to %d", got, tt.min, tt.max)
			}
		})
	}
}

// A host that only its script kept out becomes primary one interval after the
// script succeeds, however long the script failed before.
func TestScriptThatSaysYesAgainIsNoticed(t *testing.T) {
	for _, away := range []time.Duration{time.Second, 20 * time.Second, 70 * time.Second, 10 * time.Minute} {
		for phase := range 40 {
			back := 10*time.Second + away + time.Duration(phase)*53*time.Millisecond
			line := fmt.Sprintf("up; 10s sick; %v up", back)
			w := newWorld(t, Config{Checks: []Check{{Name: "tcp"}, {Name: "script", Script: true}}}, "a: "+line, "b: "+line)
			for w.play(back); w.primary == ""; {
				w.play(w.now + 10*time.Millisecond)
			}
			if took := w.now - back; took > 2500*time.Millisecond {
				t.Fatalf("away for %v: primary %v after the script says yes, want 2.5s at most", away, took)
			}
		}
	}
}

// A machine that is always woken a little late still starts its checks on
// schedule.
func TestNoDrift(t *testing.T) {
	w := newWorld(t, Config{Checks: []Check{{Name: "tcp"}, {Name: "script", Script: true}}}, "a: up")
	w.lag = 30 * time.Millisecond
	w.play(100 * time.Second)
	if n := w.started["a tcp"]; n < 100 || n > 101 {
		t.Errorf("%d checks in 100s, want 100", n)
	}
	if n := w.started["a script"]; n < 50 || n > 51 {
		t.Errorf("%d scripts in 100s, want 50", n)
	}
}

// A flapping primary: up 3s, down 3s, a hundred times.
func TestFlapping(t *testing.T) {
	line := "a: up"
	for i := range 100 {
		line += fmt.Sprintf("; %ds refused; %ds up", 6*i+3, 6*i+6)
	}
	t.Run("sticky", func(t *testing.T) {
		w := newWorld(t, Config{}, line, "b: up").play(11 * time.Minute)
		if w.epoch != 2 {
			t.Errorf("%d elections, want the start and one failover:\n%s", w.epoch, strings.Join(w.story, "\n"))
		}
	})
	t.Run("failback", func(t *testing.T) {
		w := newWorld(t, Config{Failback: time.Minute}, line, "b: up").play(20 * time.Minute)
		if w.epoch != 3 {
			t.Errorf("%d elections, want the start, one failover and one failback:\n%s", w.epoch, strings.Join(w.story, "\n"))
		}
	})
	t.Run("alone", func(t *testing.T) {
		w := newWorld(t, Config{}, line).play(11 * time.Minute)
		if w.epoch != 101 {
			t.Errorf("%d elections, want one for each return", w.epoch)
		}
		if len(w.story) > 100*6+2 {
			t.Errorf("%d facts, want a handful for each flap", len(w.story))
		}
	})
	t.Run("a port that opens and shuts all the time while the script fails", func(t *testing.T) {
		line := "a: refused"
		for i := range 600 {
			line += fmt.Sprintf("; %dms sick; %dms refused", 500*i+250, 500*i+500)
		}
		w := newWorld(t, Config{Checks: []Check{{Name: "tcp"}, {Name: "script", Script: true}}}, line).play(5 * time.Minute)
		if n := len(w.story); n > 12 {
			t.Errorf("%d failed rounds were reported in five minutes, want one for each step of the back-off:\n%s", n, strings.Join(w.story, "\n"))
		}
		if n := w.started["a script"]; n > 700 {
			t.Errorf("%d scripts for 600 returns", n)
		}
	})
}

// A result that is older than a success proves nothing.
func TestYoungerSuccessOutdatesOlderFailures(t *testing.T) {
	m, err := New(complete(Config{Hosts: []string{"a"}, Checks: []Check{{Name: "tcp"}}, Fall: 1}))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	step := func(d time.Duration, ev Event) []Action {
		now = now.Add(d)
		return m.Step(now, ev)
	}
	first := started(step(0, Tick{}))
	step(time.Millisecond, Result{ID: first[0], OK: true})
	step(0, Switched{Epoch: 7})
	if got := m.Snapshot(); got.Phase != Switching {
		t.Errorf("another switch ended this one: %+v", got)
	}
	step(0, Switched{Epoch: 1})
	older := started(step(time.Second, Tick{}))
	younger := started(step(150*time.Millisecond, Tick{}))
	if len(older) != 1 || len(younger) != 1 {
		t.Fatalf("checks %v and %v were started, want one each", older, younger)
	}
	step(time.Millisecond, Result{ID: younger[0], OK: true})
	step(time.Millisecond, Result{ID: older[0], Err: errTimeout})
	if got := m.Snapshot(); got.Primary != "a" {
		t.Errorf("a failure that is older than a success brought the primary down: %+v", got)
	}
	step(0, Result{ID: older[0], Err: errTimeout}) // a second result of the same check
	step(0, Result{ID: 1 << 40, Err: errTimeout})  // a check that was not requested
	step(0, Switched{Epoch: 7, Err: errScript})
	if got := m.Snapshot(); got.Primary != "a" {
		t.Errorf("an unexpected event brought the primary down: %+v", got)
	}
}

// A client's suspicion about an earlier epoch starts nothing.
func TestSuspicionOfAnEarlierEpoch(t *testing.T) {
	w := newWorld(t, Config{}, "a: up")
	w.facts = true
	w.play(5500 * time.Millisecond)
	before := w.started["a tcp"]
	w.step(Suspicion{Epoch: 0, Err: errRefused})
	w.step(Suspicion{Epoch: 2, Err: errRefused})
	if got := w.started["a tcp"]; got != before {
		t.Errorf("%d checks were started", got-before)
	}
	w.step(Suspicion{Epoch: 1, Err: errRefused})
	w.step(Suspicion{Epoch: 1, Err: errRefused})
	if got := w.started["a tcp"]; got != before+1 {
		t.Errorf("%d checks were started, want 1", got-before)
	}
}

// When a host ends connections a check is started at once. The event does not
// count against the host: a check that passes is not reported, and one that
// fails begins a suspicion.
func TestCheckNow(t *testing.T) {
	w := newWorld(t, Config{}, "a: up; 5.6s refused", "b: up")
	w.facts = true
	w.play(5400 * time.Millisecond)
	before := w.started["a tcp"]
	w.step(CheckNow{Epoch: 0}) // of an earlier epoch
	if got := w.started["a tcp"] - before; got != 0 {
		t.Errorf("%d checks were started for an earlier epoch", got)
	}
	for range 20 { // many ends are one check at the fast interval
		w.step(CheckNow{Epoch: 1})
	}
	if got := w.started["a tcp"] - before; got != 1 {
		t.Errorf("%d checks were started at once, want 1", got)
	}
	w.play(5500 * time.Millisecond)
	if w.m.Snapshot().Hosts[0].Checks[0].Suspected {
		t.Error("a check that passed began a suspicion")
	}
	w.play(5601 * time.Millisecond)
	w.step(CheckNow{Epoch: 1})
	w.play(5900 * time.Millisecond)
	if got := w.m.Snapshot().Elect; got != "b" {
		t.Errorf("%s is elected 0.3 s after the primary failed and ended connections, want b", got)
	}
}

// A check that passes while a killed process still listens is not the last one:
// the host is checked again a moment later.
func TestCheckNowIsRepeated(t *testing.T) {
	w := newWorld(t, Config{}, "a: up; 5.45s refused", "b: up")
	w.facts = true
	w.play(5400 * time.Millisecond)
	w.step(CheckNow{Epoch: 1})
	w.play(5900 * time.Millisecond)
	if got := w.m.Snapshot().Elect; got != "b" {
		t.Errorf("%s is elected 0.5 s after connections ended, want b", got)
	}
}

// A check that was under way when a client gave reason for doubt does not
// clear the doubt.
func TestOnlyALaterCheckClears(t *testing.T) {
	w := newWorld(t, Config{}, "a: slow").play(9500 * time.Millisecond)
	for _, n := range []int{0, 1} { // so that no check, or one, is in flight
		for w.m.Snapshot().Hosts[0].Checks[0].InFlight != n {
			w.play(w.now + 10*time.Millisecond)
		}
	}
	w.step(Suspicion{Epoch: 1, Err: errTimeout})
	suspected := func() bool { return w.m.Snapshot().Hosts[0].Checks[0].Suspected }
	w.play(w.now + 410*time.Millisecond) // the check that was in flight has passed
	if !suspected() {
		t.Error("a check that began before the suspicion cleared it")
	}
	if w.play(w.now + 110*time.Millisecond); suspected() {
		t.Error("a check that began after the suspicion did not clear it")
	}
}

// The results of the other checks are dropped when a host refuses connections.
func TestDownForgets(t *testing.T) {
	w := newWorld(t, Config{Checks: []Check{{Name: "tcp"}, {Name: "http"}}}, "a: up", "b: up; 9.99s unwell; 10.05s refused")
	if w.play(10040 * time.Millisecond); !w.m.Snapshot().Hosts[1].Checks[1].Suspected {
		t.Fatal("b's pong check is not suspected")
	}
	w.play(15 * time.Second)
	if got := w.m.Snapshot().Hosts[1]; got.State != Down || got.Checks[1].State != Unknown || got.Checks[1].Suspected {
		t.Errorf("b = %+v, want it down by its first check alone", got)
	}
}

// After a stall every check is started at once, even if it is not due.
func TestStallAsksEverything(t *testing.T) {
	w := newWorld(t, Config{Checks: []Check{{Name: "tcp"}, {Name: "script", Script: true, Interval: time.Minute}}}, "a: up")
	w.asleep = []interval{{5500 * time.Millisecond, 35500 * time.Millisecond}}
	w.play(5400 * time.Millisecond)
	before := w.started["a script"]
	w.play(35510 * time.Millisecond)
	if got := w.started["a script"] - before; got != 1 {
		t.Errorf("%d scripts were started after the stall, want 1", got)
	}
}

// A check that fails because the program was stopped meanwhile is not counted
// and is run again, however short or long the pause is.
func TestPauseIsNoEvidence(t *testing.T) {
	quick := Check{Name: "tcp", Timeout: 100 * time.Millisecond}
	for _, checks := range [][]Check{
		{{Name: "tcp"}},
		{quick},
		{quick, {Name: "script", Script: true, Interval: 500 * time.Millisecond, Timeout: 500 * time.Millisecond}},
	} {
		for _, ms := range []int{150, 400, 550, 600, 1900, 3000, 6000} {
			pause := time.Duration(ms) * time.Millisecond
			for phase := range 50 {
				w := newWorld(t, Config{Checks: checks, Fall: 1}, "a: lazy", "b: lazy")
				at := 5*time.Second + time.Duration(phase)*21*time.Millisecond
				w.timers, w.asleep = true, []interval{{at, at + pause}}
				w.play(15 * time.Second)
				if w.epoch != 1 {
					t.Fatalf("%v, asleep from %v to %v: %d elections, want the start alone:\n%s",
						checks, at, at+pause, w.epoch, strings.Join(w.story, "\n"))
				}
			}
		}
	}
}

// A machine that is slow all the time still notices a dead host.
func TestPausesDoNotHideADeadHost(t *testing.T) {
	w := newWorld(t, Config{}, "a: up; 10s silent", "b: up")
	for at := 5 * time.Second; at < time.Minute; at += 300 * time.Millisecond {
		w.asleep = append(w.asleep, interval{at, at + 260*time.Millisecond})
	}
	if w.play(18 * time.Second); w.primary != "b" {
		t.Errorf("%q is primary 8s after a fell silent, want b:\n%s", w.primary, strings.Join(w.story, "\n"))
	}
}

// How long a failover took from the first doubt on is part of the fact.
func TestLostTellsTheTimeSinceTheFirstDoubt(t *testing.T) {
	for _, tt := range []struct {
		fall int
		line string
		want time.Duration
	}{
		{3, "a: up; 5s refused", 200 * time.Millisecond},
		{3, "a: up; 5s silent", 1100 * time.Millisecond},
		{1, "a: up; 5s refused", 0},
		{1, "a: up; 5.5s silent; 5.7s up; 8.05s refused", 0}, // an earlier doubt was cleared
		{1, "a: up; 5s silent; 8s up; 20.5s refused", 0},     // or had its own failover
	} {
		t.Run(fmt.Sprint(tt.fall, " ", tt.line), func(t *testing.T) {
			w := newWorld(t, Config{Fall: tt.fall}, tt.line).play(30 * time.Second)
			if w.lost.After != tt.want {
				t.Errorf("After = %v, want %v", w.lost.After, tt.want)
			}
		})
	}
}

func TestSnapshotIsACopy(t *testing.T) {
	w := newWorld(t, Config{Checks: []Check{{Name: "tcp"}, {Name: "http"}}}, "a: up; 5s refused", "b: refused").play(4 * time.Second)
	got := w.m.Snapshot()
	if got.Primary != "a" || got.Elect != "a" || got.Epoch != 1 || got.Phase != Serving || got.Hosts[0].State != Up || got.Hosts[1].State != Down {
		t.Errorf("snapshot = %+v", got)
	}
	if last := got.Hosts[1].Checks[0].Last; last.OK || !errors.Is(last.Err, errRefused) || last.At.IsZero() {
		t.Errorf("last result of b = %+v, want refused", last)
	}
	w.play(8 * time.Second)
	if got.Primary != "a" || got.Hosts[0].State != Up || got.Hosts[0].Checks[0].Streak < 2 {
		t.Errorf("the snapshot changed: %+v", got)
	}
	if now := w.m.Snapshot(); now.Primary != "" || now.Phase != Selecting || now.RetryAt.IsZero() || now.Elect != "a" {
		t.Errorf("snapshot = %+v, want a failed round that is waited out", now)
	}
}

// In random worlds the assertions of the world's step and act hold: never two
// primaries, one switch at a time, an epoch for each, no script twice at once,
// a wake time in the future. At the end, when a host is up, it is primary.
func TestWhateverHappens(t *testing.T) {
	kinds := []string{"up", "up", "refused", "silent", "hung", "unwell", "slow", "sick", "stuck", "local", "nofork", "unsure", "overdue"}
	const storm = 2 * time.Minute
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 1))
			cfg := Config{
				Rise: 1 + r.IntN(3), Fall: 1 + r.IntN(4), Hold: time.Duration(r.IntN(3)-1) * 5 * time.Second,
				MaxBackoff: time.Duration(1+r.IntN(20)) * time.Second,
			}
			if r.IntN(2) == 0 {
				cfg.Failback = time.Duration(1+r.IntN(30)) * time.Second
			}
			cfg.Checks = []Check{{Name: "tcp"}}
			if r.IntN(2) == 0 {
				cfg.Checks = append(cfg.Checks, Check{Name: "http"})
			}
			if r.IntN(2) == 0 {
				cfg.Checks = append(cfg.Checks, Check{Name: "script", Script: true, Timeout: time.Duration(1+r.IntN(8)) * time.Second})
			}
			var hosts []string
			for i := range 1 + r.IntN(4) {
				line := fmt.Sprintf("h%d: %s", i, kinds[r.IntN(len(kinds))])
				for at := time.Duration(0); ; {
					at += time.Duration(r.IntN(20000)) * time.Millisecond
					if at >= storm {
						break
					}
					line += fmt.Sprintf("; %v %s", at, kinds[r.IntN(len(kinds))])
				}
				hosts = append(hosts, line+fmt.Sprintf("; %v up", storm))
			}
			w := newWorld(t, cfg, hosts...)
			w.clients = r.IntN(2) == 0
			for range r.IntN(3) {
				from := time.Duration(r.Int64N(int64(storm)))
				w.asleep = append(w.asleep, interval{from, from + time.Duration(r.IntN(40000))*time.Millisecond})
			}
			w.trigger = func(Switch) (time.Duration, error) {
				d := time.Duration(r.IntN(r.IntN(8000)+1)) * time.Millisecond
				if w.now < storm && r.IntN(4) == 0 {
					return d, errScript
				}
				return d, nil
			}
			for range r.IntN(8) {
				at := time.Duration(r.Int64N(int64(storm)))
				switch host := fmt.Sprintf("h%d", r.IntN(len(hosts))); r.IntN(3) {
				case 0:
					w.later(at, Move{Host: host})
				case 1:
					w.later(at, Locks{Drained: []string{host}})
				case 2:
					w.later(at, Locks{Frozen: r.IntN(2) == 0})
				}
			}
			w.later(storm, Locks{})
			w.play(storm + 3*time.Minute)
			if w.primary == "" {
				t.Errorf("there is no primary %v after all hosts are well:\n%s", w.now-storm, strings.Join(w.story, "\n"))
			}
			if limit := 5 * 60 * 150 * len(hosts); w.steps > limit {
				t.Errorf("%d steps in five minutes, want less than %d", w.steps, limit)
			}
		})
	}
}

func TestNewNamesEveryProblem(t *testing.T) {
	_, err := New(Config{
		Hosts:    []string{"a", "", "a"},
		Checks:   []Check{{Name: "x", Script: true}, {Name: "y", Timeout: -1}},
		Rise:     -1,
		Failback: -1,
	})
	if err == nil {
		t.Fatal("New accepted it")
	}
	for _, want := range []string{"hosts[1]: empty", `hosts[2]: "a" is listed twice`, `checks[0]: "x" is a script`, "checks[1].timeout", "rise: -1", "failback"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %q", err, want)
		}
	}
	_, err = New(Config{Checks: []Check{{Name: "tcp"}}})
	if err == nil {
		t.Fatal("New accepted a Config without thresholds and times")
	}
	for _, want := range []string{"hosts: at least one", "checks[0].interval: 0s", "checks[0].timeout: 0s", "rise: 0", "fall: 0", "fast-interval: 0s", "max-backoff: 0s"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %q", err, want)
		}
	}
	for _, not := range []string{"hold", "stay", "failback", "drain"} {
		if strings.Contains(err.Error(), not) {
			t.Errorf("error %q names %q, which may be zero", err, not)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("New accepted a relay without hosts and checks")
	}
}
