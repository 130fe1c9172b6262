package selector

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// New rules change only what they are about.
func TestRulesAreChanged(t *testing.T) {
	const start = "1ms switch 1 start >a | 1ms open 1 a"
	tcp := Check{Name: "tcp"}
	script := []Check{tcp, {Name: "script", Script: true}}
	for _, tt := range []struct {
		name  string
		cfg   Config
		hosts []string
		rules map[time.Duration]Config
		order map[time.Duration]Event
		end   time.Duration
		want  string
	}{
		{
			name:  "the same rules: nothing happens",
			hosts: []string{"a: up", "b: up"},
			rules: map[time.Duration]Config{10 * time.Second: {Hosts: []string{"a", "b"}}},
			want:  start,
		},
		{
			name:  "another order is no reason to move",
			hosts: []string{"a: up", "b: up", "c: up"},
			rules: map[time.Duration]Config{10 * time.Second: {Hosts: []string{"c", "b", "a"}}},
			want:  start,
		},
		{
			name:  "a primary that is no host any more is left for the first one",
			hosts: []string{"a: up", "b: up", "c: up"},
			rules: map[time.Duration]Config{10 * time.Second: {Hosts: []string{"c", "b"}}},
			want:  start + " | 10s lost a | 10s hold | 10.001s switch 2 failover a>c | 10.001s open 2 c",
		},
		{
			name:  "even when the relay is frozen: it is the operator who wants that",
			cfg:   Config{Locks: Locks{Frozen: true}},
			hosts: []string{"a: up", "b: up"},
			rules: map[time.Duration]Config{10 * time.Second: {Hosts: []string{"b"}}},
			want:  start + " | 10s lost a | 10s hold | 10.001s switch 2 failover a>b | 10.001s open 2 b",
		},
		{
			name:  "a new host takes over when the primary goes",
			hosts: []string{"a: up; 20s refused", "b: up"},
			rules: map[time.Duration]Config{10 * time.Second: {Hosts: []string{"a", "b"}}},
			want:  start + " | 20.201s lost a | 20.201s hold | 20.202s switch 2 failover a>b | 20.202s open 2 b",
		},
		{
			name:  "one failure is enough now",
			hosts: []string{"a: up; 20s refused", "b: up"},
			rules: map[time.Duration]Config{10 * time.Second: {Hosts: []string{"a", "b"}, Fall: 1}},
			want:  start + " | 20.001s lost a | 20.001s hold | 20.002s switch 2 failover a>b | 20.002s open 2 b",
		},
		{
			name:  "a shorter interval holds at once",
			cfg:   Config{Checks: []Check{{Name: "tcp", Interval: time.Hour}}},
			hosts: []string{"a: up; 20s refused", "b: up"},
			rules: map[time.Duration]Config{10 * time.Second: {Hosts: []string{"a", "b"}, Fall: 1}},
			want:  start + " | 20.001s lost a | 20.001s hold | 20.002s switch 2 failover a>b | 20.002s open 2 b",
		},
		{
			name:  "a check that is new has its thresholds before it counts",
			hosts: []string{"a: sick", "b: up"},
			rules: map[time.Duration]Config{10 * time.Second: {Hosts: []string{"a", "b"}, Checks: script}},
			want:  start + " | 10.25s lost a | 10.25s hold | 10.301s switch 2 failover a>b | 10.301s open 2 b",
		},
		{
			name:  "a check that asks something else now starts from nothing",
			cfg:   Config{Checks: []Check{tcp, {Name: "http", Spec: "/a"}}},
			hosts: []string{"a: up; 9100ms unwell", "b: up"},
			rules: map[time.Duration]Config{9300 * time.Millisecond: {
				Hosts: []string{"a", "b"}, Fall: 8, Checks: []Check{tcp, {Name: "http", Spec: "/b"}},
			}},
			end:  12 * time.Second,
			want: "3ms switch 1 start >a | 3ms open 1 a",
		},
		{
			name:  "a check that was removed delays no host",
			cfg:   Config{Checks: script},
			hosts: []string{"a: sick"},
			rules: map[time.Duration]Config{10200 * time.Millisecond: {Hosts: []string{"a"}}},
			end:   11 * time.Second,
			want:  "51ms none usable, 1s | 1.051s none usable, 2s | 3.051s none usable, 4s | 7.051s none usable, 8s | 10.201s switch 1 start >a | 10.201s open 1 a",
		},
		{
			name:  "no host was usable: the new host is checked at once",
			hosts: []string{"a: refused", "b: up"},
			rules: map[time.Duration]Config{0: {Hosts: []string{"a"}}, 10 * time.Second: {Hosts: []string{"a", "b"}}},
			end:   11 * time.Second,
			want:  "1ms none usable, 1s | 1.001s none usable, 2s | 3.001s none usable, 4s | 7.001s none usable, 8s | 10.001s switch 1 start >b | 10.001s open 1 b",
		},
		{
			name:  "a switchover to a host that is none any more is given up",
			hosts: []string{"a: up", "b: silent"},
			order: map[time.Duration]Event{10 * time.Second: Move{Host: "b"}},
			rules: map[time.Duration]Config{10100 * time.Millisecond: {Hosts: []string{"a"}}},
			want:  start + " | 10.1s declined b: it is no host any more",
		},
		{
			name:  "a switchover survives rules that are not about it",
			hosts: []string{"a: up", "b: slow"},
			order: map[time.Duration]Event{10 * time.Second: Move{Host: "b"}},
			rules: map[time.Duration]Config{10100 * time.Millisecond: {Hosts: []string{"c", "b", "a"}}},
			want:  start + " | 10.4s hold | 10.4s switch 2 switchover a>b | 10.4s open 2 b",
		},
		{
			name:  "failback is on from now on",
			hosts: []string{"a: up", "b: up"},
			order: map[time.Duration]Event{5 * time.Second: Move{Host: "b"}},
			rules: map[time.Duration]Config{10 * time.Second: {Hosts: []string{"a", "b"}, Failback: 15 * time.Second}},
			want: start + " | 5.001s hold | 5.001s switch 2 switchover a>b | 5.001s open 2 b" +
				" | 15.002s hold | 15.002s switch 3 failback b>a | 15.002s open 3 a",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.cfg, tt.hosts...)
			w.hosts["c"] = timeline(t, "up")
			for at, order := range tt.order {
				w.later(at, order)
			}
			for at, cfg := range tt.rules {
				if cfg.Checks == nil {
					cfg.Checks = []Check{tcp}
				}
				w.later(at, Reconfigure(complete(cfg)))
			}
			if tt.end == 0 {
				tt.end = 30 * time.Second
			}
			w.play(tt.end)
			if diff := cmp.Diff(tt.want, strings.Join(w.story, " | ")); diff != "" {
				t.Errorf("got\n%s\n%s", strings.Join(w.story, " | "), diff)
			}
		})
	}
}

// Whatever the rules are changed to and at whatever time, the assertions of the
// world hold at every step, and a primary that remains a host and is up stays
// primary.
func TestRulesChangeAtRandom(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(t, Config{}, "a: up", "b: up; 20s refused; 21s up", "c: silent; 30s up")
		w.clients = true
		for at := time.Second; at < time.Minute; at += time.Duration(rng.IntN(3000)) * time.Millisecond {
			hosts := []string{"a"}
			for _, h := range []string{"b", "c"} {
				if rng.IntN(2) == 0 {
					hosts = append(hosts, h)
				}
			}
			rng.Shuffle(len(hosts), func(i, k int) { hosts[i], hosts[k] = hosts[k], hosts[i] })
			checks := []Check{{Name: "tcp", Interval: time.Duration(100+rng.IntN(2000)) * time.Millisecond}}
			if rng.IntN(2) == 0 {
				checks = append(checks, Check{Name: "http", Spec: string(rune('a' + rng.IntN(2)))})
			}
			if rng.IntN(2) == 0 {
				checks = append(checks, Check{Name: "script", Script: true})
			}
			w.later(at, Reconfigure(complete(Config{Hosts: hosts, Checks: checks, Rise: 1 + rng.IntN(3), Fall: 1 + rng.IntN(3)})))
		}
		w.play(90 * time.Second)
		if got := strings.Join(w.story, " | "); got != "1ms switch 1 start >a | 1ms open 1 a" {
			t.Fatalf("seed %d: a never failed, and was left: %s", seed, got)
		}
	}
}
