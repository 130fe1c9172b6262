package selector

import (
	"strings"
	"testing"
	"time"
)

// A host whose check could not determine its state is not elected, and the
// check is no reason to elect another host.
func TestUnknownCheck(t *testing.T) {
	checks := []Check{{Name: "tcp"}, {Name: "script", Script: true}}
	for _, tt := range []struct {
		name  string
		cfg   Config
		hosts []string
		end   time.Duration
		want  string
	}{
		{
			name:  "a primary stays, for as long as it lasts",
			hosts: []string{"a: up; 9.5s unsure", "b: up"},
			end:   time.Hour,
			want:  "51ms switch 1 start >a | 51ms open 1 a",
		},
		{
			name:  "also with one failure before",
			hosts: []string{"a: up; 9.9s sick; 10.04s unsure", "b: up"},
			end:   time.Hour,
			want:  "51ms switch 1 start >a | 51ms open 1 a",
		},
		{
			name:  "when the primary refuses connections, the connect decides",
			hosts: []string{"a: up; 9.5s unsure; 19.5s refused", "b: up"},
			end:   time.Minute,
			want:  "51ms switch 1 start >a | 51ms open 1 a | 20.201s lost a | 20.201s hold | 20.252s switch 2 failover a>b | 20.252s open 2 b",
		},
		{
			name:  "a host that is unknown is not elected",
			hosts: []string{"a: unsure; 5s up", "b: refused"},
			end:   20 * time.Second,
			want:  "51ms none usable, 1s | 1.051s none usable, 2s | 3.051s none usable, 4s | 6.051s switch 1 start >a | 6.051s open 1 a",
		},
		{
			name:  "another one is, before it",
			hosts: []string{"a: unsure", "b: up"},
			end:   time.Minute,
			want:  "51ms switch 1 start >b | 51ms open 1 b",
		},
		{
			name:  "not even when the primary is lost",
			hosts: []string{"a: up; 9.5s refused", "b: unsure", "c: up"},
			end:   time.Minute,
			want:  "51ms switch 1 start >a | 51ms open 1 a | 10.201s lost a | 10.201s hold | 10.252s switch 2 failover a>c | 10.252s open 2 c",
		},
		{
			name:  "the last primary goes on when it accepts connections again",
			hosts: []string{"a: up; 9.5s refused; 10.3s unsure", "b: unsure"},
			end:   time.Minute,
			want:  "51ms switch 1 start >a | 51ms open 1 a | 10.201s lost a | 10.201s hold | 10.252s none usable, 1s | 10.352s switch 2 reselect a>a | 10.352s open 2 a",
		},
		{
			name:  "and before one that is known to be well",
			hosts: []string{"b: refused; 10.3s up", "a: up; 9.5s refused; 10.3s unsure"},
			end:   time.Minute,
			want:  "51ms switch 1 start >a | 51ms open 1 a | 10.201s lost a | 10.201s hold | 10.202s none usable, 1s | 10.352s switch 2 reselect a>a | 10.352s open 2 a",
		},
		{
			name:  "the one before a restart, too",
			cfg:   Config{Prefer: "b", Epoch: 4},
			hosts: []string{"a: up", "b: unsure"},
			end:   time.Minute,
			want:  "51ms switch 5 start >b | 51ms open 5 b",
		},
		{
			name:  "but not after its script had said no",
			hosts: []string{"a: up; 9.9s sick; 10.26s unsure", "b: refused"},
			end:   11 * time.Second,
			want:  "51ms switch 1 start >a | 51ms open 1 a | 10.251s lost a | 10.251s hold | 10.302s none usable, 1s",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Checks = checks
			w := newWorld(t, tt.cfg, tt.hosts...)
			w.epoch = tt.cfg.Epoch
			w.play(tt.end)
			if got := strings.Join(w.story, " | "); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// An unknown result of a script is reported once, and again for another reason.
func TestUnknownIsReportedOnce(t *testing.T) {
	w := newWorld(t, Config{Checks: []Check{{Name: "tcp"}, {Name: "script", Script: true}}},
		"a: up; 9.5s unsure; 60s nofork; 90s up", "b: up")
	w.facts = true
	w.play(2 * time.Minute)
	var got []string
	for _, line := range w.story {
		if strings.Contains(line, "known a script") {
			got = append(got, line)
		}
	}
	want := "10.051s unknown a script: exit status 75 | 1m0.001s unknown a script: resource temporarily unavailable | 1m30.051s known a script"
	if got := strings.Join(got, " | "); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
