package selector

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Connects are accepted, or refused, after 1ms, pongs after 2ms, scripts after
// 50ms. A host's regular checks start at 0s, 1s, 2s …
func TestLifeOfARelay(t *testing.T) {
	tcp := Check{Name: "tcp"}
	pong := Check{Name: "http"}
	script := Check{Name: "script", Script: true}
	for _, tt := range []struct {
		name    string
		cfg     Config
		hosts   []string
		clients bool
		asleep  []interval
		trigger func(Switch) (time.Duration, error)
		end     time.Duration
		want    string
	}{
		// The start.
		{
			name:  "the first in order wins at the start",
			hosts: []string{"a: up", "b: up"},
			end:   time.Minute,
			want:  "1ms switch 1 start >a | 1ms open 1 a",
		},
		{
			name:  "a preferred host that refuses delays no election",
			hosts: []string{"a: refused", "b: up"},
			end:   time.Minute,
			want:  "1ms switch 1 start >b | 1ms open 1 b",
		},
		{
			name:  "a preferred host that is slow is waited for",
			hosts: []string{"a: slow", "b: up"},
			end:   time.Minute,
			want:  "400ms switch 1 start >a | 400ms open 1 a",
		},
		{
			name:  "a preferred host that is silent delays by one timeout",
			hosts: []string{"a: silent", "b: up"},
			end:   time.Minute,
			want:  "1s switch 1 start >b | 1s open 1 b",
		},
		{
			name:  "a preferred host whose script is stuck delays by one timeout from the first pass on",
			cfg:   Config{Checks: []Check{tcp, script}},
			hosts: []string{"a: stuck", "b: up"},
			end:   time.Minute,
			want:  "1.051s switch 1 start >b | 1.051s open 1 b",
		},
		{
			name:  "when all were away, a preferred host that is on its way back is waited for by one timeout",
			cfg:   Config{Checks: []Check{tcp, script}},
			hosts: []string{"a: refused; 10.15s stuck", "b: refused; 10.15s up"},
			end:   15 * time.Second,
			want:  "1ms none usable, 1s | 1.001s none usable, 2s | 3.001s none usable, 4s | 7.001s none usable, 8s | 11.451s switch 1 start >b | 11.451s open 1 b",
		},
		{
			name:  "a host must pass every check",
			cfg:   Config{Checks: []Check{tcp, pong, script}},
			hosts: []string{"a: unwell", "b: sick", "c: up"},
			end:   time.Minute,
			want:  "51ms switch 1 start >c | 51ms open 1 c",
		},
		{
			name:    "triggers run before clients are let through",
			hosts:   []string{"a: up"},
			trigger: func(Switch) (time.Duration, error) { return 3 * time.Second, nil },
			end:     time.Minute,
			want:    "1ms switch 1 start >a | 3.001s open 1 a",
		},

		// Failure of the primary, seen by its checks alone.
		{
			name:  "refused, fall 3, seen by the check of 10s",
			hosts: []string{"a: up; 9.5s refused", "b: up"},
			end:   time.Minute,
			want:  "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s switch 2 failover a>b | 10.202s open 2 b",
		},
		{
			name:  "refused, fall 1",
			cfg:   Config{Fall: 1},
			hosts: []string{"a: up; 9.5s refused", "b: up"},
			end:   time.Minute,
			want:  "1ms switch 1 start >a | 1ms open 1 a | 10.001s lost a | 10.001s hold | 10.002s switch 2 failover a>b | 10.002s open 2 b",
		},
		{
			name:  "a black hole takes one timeout and two fast intervals",
			hosts: []string{"a: up; 9.5s silent", "b: up"},
			end:   time.Minute,
			want:  "1ms switch 1 start >a | 1ms open 1 a | 11.2s lost a | 11.2s hold | 11.201s switch 2 failover a>b | 11.201s open 2 b",
		},
		{
			name:  "a host that is stopped is found out by the check that reads",
			cfg:   Config{Checks: []Check{tcp, pong}},
			hosts: []string{"a: up; 9.5s hung", "b: up"},
			end:   20 * time.Second,
			want:  "3ms switch 1 start >a | 3ms open 1 a | 11.201s lost a | 11.201s hold | 11.204s switch 2 failover a>b | 11.204s open 2 b",
		},

		// Failure of the primary, seen by a client first.
		{
			name:    "refused, fall 3, seen by a client at 9.5s",
			hosts:   []string{"a: up; 9.5s refused", "b: up"},
			clients: true,
			end:     20 * time.Second,
			want:    "1ms switch 1 start >a | 1ms open 1 a | 9.702s lost a | 9.702s hold | 9.703s switch 2 failover a>b | 9.703s open 2 b",
		},
		{
			name:    "refused, fall 1, seen by a client at 9.5s",
			cfg:     Config{Fall: 1},
			hosts:   []string{"a: up; 9.5s refused", "b: up"},
			clients: true,
			end:     20 * time.Second,
			want:    "1ms switch 1 start >a | 1ms open 1 a | 9.502s lost a | 9.502s hold | 9.503s switch 2 failover a>b | 9.503s open 2 b",
		},

		// What is no failure.
		{
			name:  "two failures are not three",
			hosts: []string{"a: up; 9.95s refused; 10.15s up", "b: up"},
			end:   time.Minute,
			want:  "1ms switch 1 start >a | 1ms open 1 a",
		},
		{
			name:  "one no of a pong port is not three",
			cfg:   Config{Checks: []Check{tcp, pong}},
			hosts: []string{"a: up; 10s unwell; 10.05s up", "b: up"},
			end:   time.Minute,
			want:  "3ms switch 1 start >a | 3ms open 1 a",
		},
		{
			name:  "one no of a script is not three, however quickly it says no",
			cfg:   Config{Checks: []Check{tcp, script}},
			hosts: []string{"a: up; 9.99s sick; 10.19s up", "b: up"},
			end:   time.Minute,
			want:  "51ms switch 1 start >a | 51ms open 1 a",
		},
		{
			name:  "a primary whose script hangs is not waited for",
			cfg:   Config{Fall: 1, Checks: []Check{tcp, script}},
			hosts: []string{"a: up; 9.99s stuck", "b: up"},
			end:   18 * time.Second,
			want:  "51ms switch 1 start >a | 51ms open 1 a | 15.001s lost a | 15.001s hold | 15.052s switch 2 failover a>b | 15.052s open 2 b",
		},
		{
			name:  "three are, a fast interval from one to the next",
			cfg:   Config{Checks: []Check{tcp, script}},
			hosts: []string{"a: up; 9.99s sick", "b: up"},
			end:   12 * time.Second,
			want:  "51ms switch 1 start >a | 51ms open 1 a | 10.251s lost a | 10.251s hold | 10.302s switch 2 failover a>b | 10.302s open 2 b",
		},
		{
			name:  "the program's own faults are no evidence",
			hosts: []string{"a: up; 9.5s local; 40s up", "b: up"},
			end:   time.Minute,
			want:  "1ms switch 1 start >a | 1ms open 1 a",
		},
		{
			name:   "the program was stopped for 30s while the primary was refusing for 20 of them",
			hosts:  []string{"a: up; 9.5s refused; 29.5s up", "b: up"},
			asleep: []interval{{9 * time.Second, 39 * time.Second}},
			end:    time.Minute,
			want:   "1ms switch 1 start >a | 1ms open 1 a | 39s stalled 30s",
		},
		{
			name:   "the program was stopped with a check in flight that failed meanwhile",
			cfg:    Config{Fall: 1},
			hosts:  []string{"a: up; 9.5s silent; 12s up", "b: up"},
			asleep: []interval{{10050 * time.Millisecond, 40 * time.Second}},
			end:    time.Minute,
			want:   "1ms switch 1 start >a | 1ms open 1 a | 40s stalled 29.9s",
		},
		{
			name:   "an answer from before a stop elects no host",
			cfg:    Config{Checks: []Check{tcp, script}},
			hosts:  []string{"a: silent", "b: up; 500ms sick"},
			asleep: []interval{{200 * time.Millisecond, 30 * time.Second}},
			end:    32 * time.Second,
			want:   "30s stalled 29.8s | 31s none usable, 1s | 32s none usable, 2s",
		},
		{
			name:   "a stop does not use up the hold",
			hosts:  []string{"a: up; 9.5s refused; 65s up"},
			asleep: []interval{{15 * time.Second, 45 * time.Second}},
			end:    55 * time.Second,
			want:   "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s none usable, 1s | 11.202s none usable, 2s | 13.202s none usable, 4s | 45s stalled 29.999s | 47.201s none usable, 8s | 50.2s refuse",
		},

		// The election.
		{
			name:  "a standby that was known up and is dead too is passed over",
			hosts: []string{"a: up; 9.5s refused", "b: up; 10.1s refused", "c: up"},
			end:   15 * time.Second,
			want:  "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s switch 2 failover a>c | 10.202s open 2 c",
		},
		{
			name:  "a standby that was known up and is silent now delays by one timeout",
			hosts: []string{"a: up; 9.5s refused", "b: up; 10.1s silent", "c: up"},
			end:   15 * time.Second,
			want:  "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 11.201s switch 2 failover a>c | 11.201s open 2 c",
		},
		{
			name:  "a standby that was known down and silent delays no election",
			hosts: []string{"a: up; 9.5s refused", "b: silent", "c: up"},
			end:   15 * time.Second,
			want:  "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s switch 2 failover a>c | 10.202s open 2 c",
		},
		{
			name:  "the same host again is a reselect",
			hosts: []string{"a: up; 9.5s refused; 10.25s up", "b: refused"},
			end:   time.Minute,
			want:  "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s none usable, 1s | 10.302s switch 2 reselect a>a | 10.302s open 2 a",
		},
		{
			name:  "sticky: the old primary's return changes nothing",
			hosts: []string{"a: up; 9.5s refused; 15s up", "b: up"},
			end:   10 * time.Minute,
			want:  "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s switch 2 failover a>b | 10.202s open 2 b",
		},
		{
			name:  "a script that hangs at the standby is not started twice, and not waited for longer than a timeout",
			cfg:   Config{Checks: []Check{tcp, script}},
			hosts: []string{"a: up; 9.5s refused", "b: up; 8s stuck", "c: up"},
			end:   12 * time.Second,
			want:  "51ms switch 1 start >a | 51ms open 1 a | 10.201s lost a | 10.201s hold | 11.252s switch 2 failover a>c | 11.252s open 2 c",
		},
		{
			name:  "a script that began 30ms before the election is an answer",
			cfg:   Config{Checks: []Check{tcp, {Name: "script", Script: true, Interval: 10170 * time.Millisecond}}},
			hosts: []string{"a: up; 9.5s refused", "b: up"},
			end:   12 * time.Second,
			want:  "51ms switch 1 start >a | 51ms open 1 a | 10.201s lost a | 10.201s hold | 10.221s switch 2 failover a>b | 10.221s open 2 b",
		},
		{
			name:  "a script that began 150ms before the election has to run again",
			cfg:   Config{Checks: []Check{tcp, {Name: "script", Script: true, Interval: 10050 * time.Millisecond}}},
			hosts: []string{"a: up; 9.5s refused", "b: lazy"},
			end:   12 * time.Second,
			want:  "51ms switch 1 start >a | 51ms open 1 a | 10.201s lost a | 10.201s hold | 10.651s switch 2 failover a>b | 10.651s open 2 b",
		},
		{
			name:  "a script that has just failed and is being ended runs again when it is gone",
			cfg:   Config{Checks: []Check{tcp, {Name: "script", Script: true, Interval: 10140 * time.Millisecond, Timeout: 55 * time.Millisecond}}},
			hosts: []string{"a: up; 9.5s refused", "b: up; 10.1s stuck; 10.18s up"},
			end:   16 * time.Second,
			want:  "51ms switch 1 start >a | 51ms open 1 a | 10.201s lost a | 10.201s hold | 12.201s none usable, 1s | 12.346s b passes, a is waited for | 15.246s switch 2 failover a>b | 15.246s open 2 b",
		},
		{
			name:  "a script that has to wait for longer than a round is not asked to wait again",
			cfg:   Config{Checks: []Check{tcp, script}},
			hosts: []string{"a: late15s"},
			end:   time.Minute,
			want:  "10s none usable, 1s | 11s none usable, 2s | 13s none usable, 4s | 15.501s switch 1 start >a | 15.501s open 1 a",
		},
		{
			name:  "a host that passes while a round is waited out is chosen",
			cfg:   Config{Checks: []Check{tcp, script}},
			hosts: []string{"a: late15s", "b: late10s"},
			end:   time.Minute,
			want:  "10s none usable, 1s | 10.501s switch 1 start >b | 10.501s open 1 b",
		},

		// No host is usable.
		{
			name:  "rounds are waited out, each twice as long, up to the longest",
			cfg:   Config{MaxBackoff: 5 * time.Second},
			hosts: []string{"a: refused"},
			end:   18 * time.Second,
			want:  "1ms none usable, 1s | 1.001s none usable, 2s | 3.001s none usable, 4s | 7.001s none usable, 5s | 12.001s none usable, 5s | 17.001s none usable, 5s",
		},
		{
			name:  "each failover begins with a short wait",
			hosts: []string{"a: refused; 10.05s up; 20s refused"},
			end:   24 * time.Second,
			want:  "1ms none usable, 1s | 1.001s none usable, 2s | 3.001s none usable, 4s | 7.001s none usable, 8s | 10.401s switch 1 start >a | 10.401s open 1 a | 20.601s lost a | 20.601s hold | 20.602s none usable, 1s | 21.602s none usable, 2s | 23.602s none usable, 4s",
		},
		{
			name:  "a port that opens ends the wait, however long it is",
			hosts: []string{"a: refused", "b: refused; 200.05s up"},
			end:   5 * time.Minute,
			want:  "1ms none usable, 1s | 1.001s none usable, 2s | 3.001s none usable, 4s | 7.001s none usable, 8s | 15.001s none usable, 16s | 31.001s none usable, 32s | 1m3.001s none usable, 1m0s | 2m3.001s none usable, 1m0s | 3m3.001s none usable, 1m0s | 3m20.401s switch 1 start >b | 3m20.401s open 1 b",
		},
		{
			name:  "a port that opens ends the wait also while another host is silent",
			hosts: []string{"a: silent", "b: refused; 200.05s up"},
			end:   5 * time.Minute,
			want:  "1s none usable, 1s | 2s none usable, 2s | 4s none usable, 4s | 8s none usable, 8s | 16s none usable, 16s | 32s none usable, 32s | 1m4s none usable, 1m0s | 2m4s none usable, 1m0s | 3m4s none usable, 1m0s | 3m20.401s switch 1 start >b | 3m20.401s open 1 b",
		},
		{
			name:  "a host whose script fails all the time does not end the wait",
			cfg:   Config{Checks: []Check{tcp, script}},
			hosts: []string{"a: sick"},
			end:   10 * time.Second,
			want:  "51ms none usable, 1s | 1.051s none usable, 2s | 3.051s none usable, 4s | 7.051s none usable, 8s",
		},
		{
			name:  "a script that cannot be killed does not keep the others from being asked again",
			cfg:   Config{Checks: []Check{tcp, script}},
			hosts: []string{"a: undead", "b: sick; 16s up"},
			end:   time.Minute,
			want:  "5.001s none usable, 1s | 6.001s none usable, 2s | 8.001s none usable, 4s | 12.001s none usable, 8s | 16.051s switch 1 start >b | 16.051s open 1 b",
		},
		{
			name:  "clients are held, then refused, then let in",
			hosts: []string{"a: up; 9.5s refused; 30.05s up"},
			end:   time.Minute,
			want:  "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s none usable, 1s | 11.202s none usable, 2s | 13.202s none usable, 4s | 17.202s none usable, 8s | 20.201s refuse | 25.202s none usable, 16s | 30.102s switch 2 reselect a>a | 30.102s open 2 a",
		},
		{
			name:  "hold 0 refuses at once",
			cfg:   Config{Hold: zero},
			hosts: []string{"a: up; 9.5s refused", "b: up"},
			end:   time.Minute,
			want:  "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s refuse | 10.202s switch 2 failover a>b | 10.202s open 2 b",
		},

		// Switching.
		{
			name:    "hold runs on while triggers do",
			hosts:   []string{"a: up; 9.5s refused", "b: up"},
			trigger: func(s Switch) (time.Duration, error) { return time.Duration(s.Epoch-1) * 15 * time.Second, nil },
			end:     time.Minute,
			want:    "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s switch 2 failover a>b | 20.201s refuse | 25.202s open 2 b",
		},
		{
			name:    "the elect dies while its triggers run: they end, no client is admitted, the next one is chosen",
			hosts:   []string{"a: up; 9.5s refused", "b: up; 12.5s refused", "c: up"},
			trigger: func(s Switch) (time.Duration, error) { return time.Duration(s.Epoch-1) * 5 * time.Second, nil },
			end:     time.Minute,
			want:    "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s switch 2 failover a>b | 15.203s switch 3 failover b>c | 20.201s refuse | 25.203s open 3 c",
		},
		{
			name:    "the elect dies and comes back while its triggers run: it is chosen anew",
			hosts:   []string{"a: up; 9.5s refused", "b: up; 12.5s refused; 14s up"},
			trigger: func(s Switch) (time.Duration, error) { return time.Duration(s.Epoch-1) * 8 * time.Second, nil },
			end:     time.Minute,
			want:    "1ms switch 1 start >a | 1ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s switch 2 failover a>b | 18.203s switch 3 reselect b>b | 20.201s refuse | 34.203s open 3 b",
		},
		{
			name:  "abort: a host that was rejected is a candidate again when another one serves",
			hosts: []string{"a: up", "b: up; 9.5s refused"},
			trigger: func(s Switch) (time.Duration, error) {
				if s.Epoch == 1 {
					return 0, errScript
				}
				return 0, nil
			},
			end:  time.Minute,
			want: "1ms switch 1 start >a | 2ms switch 2 failover a>b | 2ms open 2 b | 10.202s lost b | 10.202s hold | 10.203s switch 3 failover b>a | 10.203s open 3 a",
		},
		{
			name:  "abort: a failed trigger rejects the host",
			hosts: []string{"a: up", "b: up"},
			trigger: func(s Switch) (time.Duration, error) {
				if s.Host == "a" {
					return time.Second, errScript
				}
				return 0, nil
			},
			end:  time.Minute,
			want: "1ms switch 1 start >a | 1.002s switch 2 failover a>b | 1.002s open 2 b",
		},
		{
			name: "abort: when all are rejected they are tried again after the back-off",
			cfg:  Config{MaxBackoff: 2 * time.Second},
			trigger: func(s Switch) (time.Duration, error) {
				if s.Epoch < 6 {
					return time.Second, errScript
				}
				return 0, nil
			},
			hosts: []string{"a: up", "b: up"},
			end:   time.Minute,
			want:  "1ms switch 1 start >a | 1.002s switch 2 failover a>b | 2.002s none usable, 1s | 3.003s switch 3 failover b>a | 4.004s switch 4 failover a>b | 5.004s none usable, 2s | 7.005s switch 5 failover b>a | 8.006s switch 6 failover a>b | 8.006s open 6 b",
		},

		// Failback.
		{
			name:  "failback after the preferred host has been up for a minute",
			cfg:   Config{Failback: time.Minute},
			hosts: []string{"a: refused; 10.5s up", "b: up"},
			end:   10 * time.Minute,
			want:  "1ms switch 1 start >b | 1ms open 1 b | 1m12.002s hold | 1m12.002s switch 2 failback b>a | 1m12.002s open 2 a",
		},
		{
			name:  "a break starts the minute anew",
			cfg:   Config{Failback: time.Minute},
			hosts: []string{"a: refused; 10.5s up; 40.5s refused; 50.5s up", "b: up"},
			end:   10 * time.Minute,
			want:  "1ms switch 1 start >b | 1ms open 1 b | 1m52.202s hold | 1m52.202s switch 2 failback b>a | 1m52.202s open 2 a",
		},
		{
			name:  "a host that fails when it is asked for the failback is declined, and the primary stays",
			cfg:   Config{Failback: 10 * time.Second, Fall: 100},
			hosts: []string{"a: refused; 10.5s up; 22.0005s refused; 22.9s up", "b: up"},
			end:   40 * time.Second,
			want:  "1ms switch 1 start >b | 1ms open 1 b | 22.002s declined a | 32.003s hold | 32.003s switch 2 failback b>a | 32.003s open 2 a",
		},
		{
			name:  "a host that is suspected is not asked for the failback",
			cfg:   Config{Failback: 10 * time.Second, Fall: 100},
			hosts: []string{"a: refused; 10.5s up; 21.95s refused; 22.95s up", "b: up"},
			end:   40 * time.Second,
			want:  "1ms switch 1 start >b | 1ms open 1 b | 23.002s hold | 23.002s switch 2 failback b>a | 23.002s open 2 a",
		},
		{
			name: "abort at a failback goes back to the other and does not try again at once",
			cfg:  Config{Failback: time.Minute},
			trigger: func(s Switch) (time.Duration, error) {
				if s.Host == "a" {
					return 0, errScript
				}
				return 0, nil
			},
			hosts: []string{"a: refused; 10.5s up", "b: up"},
			end:   2 * time.Minute,
			want:  "1ms switch 1 start >b | 1ms open 1 b | 1m12.002s hold | 1m12.002s switch 2 failback b>a | 1m12.003s switch 3 failover a>b | 1m12.003s open 3 b",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.cfg, tt.hosts...)
			w.clients, w.asleep = tt.clients, tt.asleep
			if tt.trigger != nil {
				w.trigger = tt.trigger
			}
			w.play(tt.end)
			if diff := cmp.Diff(strings.Split(tt.want, " | "), w.story); diff != "" {
				t.Errorf("got\n%s\n%s", strings.Join(w.story, " | "), diff)
			}
		})
	}
}
