package selector

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// outages are the ways in which all hosts fail together, and the checks that
// detect it.
var outages = []struct {
	kind   string
	checks []Check
}{
	{"refused", []Check{{Name: "tcp"}}},
	{"silent", []Check{{Name: "tcp"}}},
	{"unwell", []Check{{Name: "tcp"}, {Name: "http"}}},
	{"hung", []Check{{Name: "tcp"}, {Name: "http"}}},
	{"sick", []Check{{Name: "tcp"}, {Name: "script", Script: true}}},
	{"stuck", []Check{{Name: "tcp"}, {Name: "script", Script: true}}},
	{"silent", []Check{{Name: "tcp"}, {Name: "http"}, {Name: "script", Script: true}}},
}

// All hosts fail together and come back: the primary is the same as before,
// whatever its place in the operator's order, the phases of the checks, and the
// order in which the hosts come back.
func TestSamePrimaryAfterAllFailed(t *testing.T) {
	const seeds = 20
	for _, outage := range outages {
		for _, away := range []time.Duration{time.Second, 3 * time.Second, 8 * time.Second, 20 * time.Second} {
			same := 0
			for seed := range uint64(seeds) {
				r := rand.New(rand.NewPCG(seed, uint64(away)))
				begin := 20*time.Second + time.Duration(r.IntN(4000))*time.Millisecond
				cfg := Config{Checks: outage.checks}
				var hosts []string
				primary := r.IntN(3)
				for i := range 3 {
					back := begin + away
					if away > time.Second { // a shorter outage may not be noticed at every host
						back += time.Duration(r.IntN(900)) * time.Millisecond
					}
					before := "up"
					if i < primary {
						before = "refused; 5s up" // so that another one is elected at the start
					}
					hosts = append(hosts, fmt.Sprintf("h%d: %s; %v %s; %v up", i, before, begin, outage.kind, back))
				}
				w := newWorld(t, cfg, hosts...)
				w.clients = r.IntN(2) == 0
				w.play(begin)
				was := w.primary
				if was != fmt.Sprint("h", primary) {
					t.Fatalf("%q is primary before the outage, want h%d", was, primary)
				}
				w.play(begin + away + 30*time.Second)
				moved := strings.Contains(strings.Join(w.story, "\n"), "failover")
				if w.primary == was && !moved {
					same++
				} else if same == int(seed) { // the first one only
					t.Errorf("%s for %v: %q is primary, want %s:\n%s", outage.kind, away, w.primary, was, strings.Join(w.story, "\n"))
				}
			}
			t.Logf("%s for %v: the same primary %d of %d", outage.kind, away, same, seeds)
		}
	}
}

// How long the election waits when the last primary is really dead.
func TestStayIsBounded(t *testing.T) {
	for _, outage := range outages {
		took := func(stay time.Duration) time.Duration {
			w := newWorld(t, Config{Checks: outage.checks, Stay: stay}, "a: up; 10s "+outage.kind, "b: up; 10s "+outage.kind+"; 18s up")
			w.play(50 * time.Second)
			if w.primary != "b" {
				t.Fatalf("%s: %q is primary, want b:\n%s", outage.kind, w.primary, strings.Join(w.story, "\n"))
			}
			for _, line := range w.story {
				if at, ok := strings.CutSuffix(line, " open 2 b"); ok {
					d, err := time.ParseDuration(at)
					if err != nil {
						t.Fatal(err)
					}
					return d - 18*time.Second
				}
			}
			t.Fatalf("b was not opened:\n%s", strings.Join(w.story, "\n"))
			return 0
		}
		today, wait := took(zero), took(3*time.Second)
		limit := today + 3*time.Second
		if outage.kind == "stuck" {
			limit += 5 * time.Second // until the script that began before has ended
		}
		t.Logf("%s: b is primary %v after it is back without a wait, and %v with one of 3s", outage.kind, today, wait)
		if wait > limit+time.Millisecond {
			t.Errorf("%s: %v, want %v at most", outage.kind, wait, limit)
		}
	}
}

// Which host is waited for, and which is not.
func TestStay(t *testing.T) {
	const start = "1ms switch 1 start >a | 1ms open 1 a"
	for _, tt := range []struct {
		name    string
		cfg     Config
		hosts   []string
		trigger func(Switch) (time.Duration, error)
		end     time.Duration
		want    string
	}{
		{
			name:  "a primary that fails alone is not waited for",
			hosts: []string{"a: up; 9.5s refused; 10.5s up", "b: up"},
			want:  start + " | 10.201s lost a | 10.201s hold | 10.202s switch 2 failover a>b | 10.202s open 2 b",
		},
		{
			name:  "nor one whose standby was away, and is back",
			hosts: []string{"a: up; 9.5s refused", "b: up; 3s refused; 6s up"},
			want:  start + " | 10.201s lost a | 10.201s hold | 10.202s switch 2 failover a>b | 10.202s open 2 b",
		},
		{
			name:  "nor one whose standby was slow on a busy machine",
			hosts: []string{"a: up; 9.5s refused", "b: up; 8.8s slow; 9.2s up"},
			want:  start + " | 10.201s lost a | 10.201s hold | 10.202s switch 2 failover a>b | 10.202s open 2 b",
		},
		{
			name:  "one that fails with the standby is",
			hosts: []string{"a: up; 9.5s refused; 14.2s up", "b: up; 9.5s refused; 12s up"},
			want:  "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s none usable, 1s | 11.202s none usable, 2s | 12.102s b passes, a is waited for | 14.203s switch 2 reselect a>a | 14.203s open 2 a",
		},
		{
			name:  "also when the standby is back before the primary is lost",
			hosts: []string{"a: up; 9.5s silent; 11.9s up", "b: up; 9.5s silent; 11.19s up"},
			want:  "1ms switch 1 start >a | 1ms open 1 a | 11.2s lost a | 11.2s hold | 11.301s b passes, a is waited for | 11.901s switch 2 reselect a>a | 11.901s open 2 a",
		},
		{
			name:  "one that does not come back is left after the wait",
			hosts: []string{"a: up; 9.5s refused", "b: up; 9.5s refused; 12s up"},
			want:  "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s none usable, 1s | 11.202s none usable, 2s | 12.102s b passes, a is waited for | 15.002s switch 2 failover a>b | 15.002s open 2 b",
		},
		{
			name:  "and at once without a wait",
			cfg:   Config{Stay: zero},
			hosts: []string{"a: up; 9.5s refused", "b: up; 9.5s refused; 12s up"},
			want:  "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s none usable, 1s | 11.202s none usable, 2s | 12.002s switch 2 failover a>b | 12.002s open 2 b",
		},
		{
			name:  "after a failover the new primary is the last one",
			hosts: []string{"a: up; 9.5s refused; 15s up; 19.5s silent; 24s up", "b: up; 19.5s silent; 25s up"},
			want:  "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s switch 2 failover a>b | 10.202s open 2 b | 21.401s lost b | 21.401s hold | 22.401s none usable, 1s | 23.401s none usable, 2s | 24.102s a passes, b is waited for | 25.003s switch 3 reselect b>b | 25.003s open 3 b",
		},
		{
			name: "a host whose triggers failed was no primary",
			trigger: func(s Switch) (time.Duration, error) {
				if s.Epoch == 2 {
					return 0, errScript
				}
				return 0, nil
			},
			hosts: []string{"a: up; 9.5s refused; 11.5s up", "b: up; 10.3s refused; 12s up"},
			want:  "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s switch 2 failover a>b | 10.203s none usable, 1s | 11.204s none usable, 2s | 11.504s switch 3 failover b>a | 11.504s open 3 a",
		},
		{
			name:  "a primary that failed often comes first all the same",
			hosts: []string{"a: up; 9.5s refused; 10.25s up; 19.5s refused; 20.25s up; 29.5s refused; 33s up", "b: up; 9.5s refused; 11.5s up; 19.5s refused; 21.5s up; 29.5s refused; 31s up"},
			end:   35 * time.Second,
			want:  "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s none usable, 1s | 10.302s switch 2 reselect a>a | 10.302s open 2 a | 30.502s lost a | 30.502s hold | 30.503s none usable, 1s | 31.103s b passes, a is waited for | 33.004s switch 3 reselect a>a | 33.004s open 3 a",
		},
		{
			name:  "the primary from before a restart is waited for",
			cfg:   Config{Prefer: "b"},
			hosts: []string{"a: up", "b: refused; 2s up"},
			want:  "101ms a passes, b is waited for | 2.001s switch 1 start >b | 2.001s open 1 b",
		},
		{
			name:  "without a memory the operator's order counts",
			hosts: []string{"a: refused; 2s up", "b: up"},
			want:  "1ms switch 1 start >b | 1ms open 1 b",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.cfg, tt.hosts...)
			if tt.trigger != nil {
				w.trigger = tt.trigger
			}
			if tt.end == 0 {
				tt.end = time.Minute
			}
			w.play(tt.end)
			if diff := cmp.Diff(tt.want, strings.Join(w.story, " | ")); diff != "" {
				t.Errorf("got\n%s\n%s", strings.Join(w.story, " | "), diff)
			}
		})
	}
}
