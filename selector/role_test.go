package selector

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy/internal/role"
)

var errLogin = errors.New("password authentication failed")

// roleOf is the result of a role check of a host that behaves like "primary/2@500": in
// term 2 and at position 500, both of which may be missing. A "foreign" host is the
// primary of another cluster.
func (w *world) roleOf(host, kind string, timeout time.Duration) (time.Duration, Result) {
	kind, at, _ := strings.Cut(kind, "@")
	kind, term, _ := strings.Cut(kind, "/")
	fact := &role.Fact{Identity: "ours", Bytes: true}
	_, _ = fmt.Sscan(term, &fact.Term)
	_, _ = fmt.Sscan(at, &fact.Position)
	switch kind {
	case "primary":
		fact.Role = role.Primary
	case "shared": // one of several that take writes
		fact.Role, fact.Shared = role.Primary, true
	case "replica":
		fact.Role = role.Replica
	case "detached": // read-only, and follows nobody
		fact.Role, fact.Detached = role.Replica, true
	case "foreign":
		fact.Role, fact.Identity = role.Primary, "theirs"
	case "starting":
		return rtt, Result{Fact: &role.Fact{Role: role.Starting}, Err: errors.New("the database system is starting up")}
	case "login":
		return rtt, Result{Unknown: true, Err: errLogin}
	case "mute", "silent", "refused": // the last two since the connect
		return timeout, Result{Err: errTimeout}
	default:
		w.tb.Fatalf("%s: no role %q", host, kind)
	}
	return rtt, Result{OK: true, Fact: fact}
}

// is has a host behave in another way from now on, after a delay.
func (w *world) is(host, kind string, after time.Duration) {
	w.hosts[host] = slices.DeleteFunc(w.hosts[host], func(s spell) bool { return s.from >= w.now+after })
	w.hosts[host] = append(w.hosts[host], spell{w.now + after, kind})
}

// promotes is a trigger that runs for some time and makes the host primary.
func (w *world) promotes(takes time.Duration, kind string) {
	w.trigger = func(s Switch) (time.Duration, error) {
		if !strings.HasPrefix(w.behaves(s.Host, w.now), "primary") {
			w.is(s.Host, kind, takes)
		}
		return takes, nil
	}
}

// roleWorld makes a world whose hosts have a role check.
func roleWorld(tb testing.TB, cfg Config, rules RoleRules, hosts ...string) *world {
	tb.Helper()
	if rules.Verify == 0 {
		rules.Verify = 30 * time.Second
	}
	cfg.Checks = []Check{{Name: "tcp"}, {Name: "role", Role: &rules}}
	w := newWorld(tb, cfg, hosts...)
	w.epoch = cfg.Epoch
	return w
}

func (w *world) wantStory(t *testing.T, want string) {
	t.Helper()
	if got := strings.Join(w.story, " | "); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Connects and roles are answered after 1ms each, so a role is known after 2ms, and a host
// that was elected has said primary once more 1ms later.
func TestRoles(t *testing.T) {
	for _, tt := range []struct {
		name  string
		cfg   Config
		rules RoleRules
		hosts []string
		play  func(w *world) // before; may be nil
		end   time.Duration
		want  string
	}{
		// R1: usable means writable now.
		{
			name:  "a replica is not elected",
			hosts: []string{"a: replica", "b: primary"},
			end:   time.Minute,
			want:  "2ms switch 1 start >b | 3ms open 1 b",
		},
		{
			name:  "nor is one when the primary is lost",
			hosts: []string{"a: primary; 9.5s refused", "b: replica"},
			end:   11 * time.Second,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s none usable, 1s",
		},
		{
			name:  "a host that is read-only and follows nobody is not promoted",
			rules: RoleRules{Promote: true},
			hosts: []string{"a: primary; 9.5s refused", "b: detached"},
			end:   11 * time.Second,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s none usable, 1s",
		},
		{
			name:  "unless it was the last primary",
			rules: RoleRules{Promote: true},
			hosts: []string{"a: primary; 9.5s refused; 10.5s detached", "b: detached"},
			play:  func(w *world) { w.promotes(time.Millisecond, "primary") },
			end:   20 * time.Second,
			want:  "2ms switch 1 start >a | 4ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s none usable, 1s | 10.503s switch 2 reselect a>a | 10.505s open 2 a",
		},
		{
			name:  "hosts that take writes together are no two writers",
			hosts: []string{"a: shared; 9.5s refused", "b: shared"},
			end:   11 * time.Second,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s switch 2 failover a>b | 10.204s open 2 b",
		},
		{
			name:  "a host that somebody promotes a second before the primary becomes a replica is followed",
			hosts: []string{"a: primary; 9.5s replica", "b: replica; 7.5s primary"},
			end:   20 * time.Second,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 8.003s two writers a+b | 10.003s lost a | 10.003s hold | 10.003s one writer | 10.005s switch 2 failover a>b | 10.006s open 2 b",
		},
		{
			name:  "a primary that becomes a replica is lost",
			hosts: []string{"a: primary; 9.5s replica", "b: replica"},
			end:   11 * time.Second,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.203s lost a | 10.203s hold | 10.205s none usable, 1s",
		},
		{
			name:  "with promote a replica is elected and promoted",
			rules: RoleRules{Promote: true},
			hosts: []string{"a: primary/1; 9.5s refused", "b: replica/1"},
			play:  func(w *world) { w.promotes(2*time.Second, "primary/2") },
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 2.003s open 1 a | 10.201s lost a | 10.201s hold | 10.203s switch 2 failover a>b | 12.204s open 2 b",
		},
		{
			name:  "a primary comes before a replica that is preferred, also when it answers later",
			rules: RoleRules{Promote: true},
			hosts: []string{"a: replica", "b: slow; 0.1s primary"},
			end:   time.Minute,
			want:  "102ms switch 1 start >b | 103ms open 1 b",
		},
		{
			name:  "a replica that lags too much is not promoted",
			rules: RoleRules{Promote: true, MaxLagBytes: 100},
			hosts: []string{"a: primary@1000; 9.5s refused", "b: replica@899", "c: replica@900"},
			play:  func(w *world) { w.promotes(0, "primary") },
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s switch 2 failover a>c | 10.204s open 2 c",
		},
		{
			name:  "and none is, when all lag too much",
			rules: RoleRules{Promote: true, MaxLagBytes: 100},
			hosts: []string{"a: primary@1000; 9.5s refused", "b: replica@899"},
			end:   11 * time.Second,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s none usable, 1s",
		},
		{
			name:  "no replica is promoted beside a primary that works and was rejected",
			rules: RoleRules{Promote: true},
			hosts: []string{"a: primary", "b: replica"},
			play: func(w *world) {
				w.trigger = func(Switch) (time.Duration, error) { return 0, errors.New("exit status 1") }
			},
			end:  1500 * time.Millisecond,
			want: "2ms switch 1 start >a | 4ms none usable, 1s | 1.006s switch 2 reselect a>a | 1.008s none usable, 2s",
		},

		// R2: verified before open.
		{
			name:  "clients wait until the host says that it is primary",
			rules: RoleRules{Promote: true},
			hosts: []string{"a: primary; 9.5s refused", "b: replica; 11s primary"},
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s switch 2 failover a>b | 11.004s open 2 b",
		},
		{
			name:  "a host that does not say so within the time is rejected",
			rules: RoleRules{Promote: true, Verify: 5 * time.Second},
			cfg:   Config{Hold: time.Minute},
			hosts: []string{"a: primary; 9.5s refused", "b: replica", "c: replica"},
			play: func(w *world) {
				w.trigger = func(s Switch) (time.Duration, error) {
					if s.Host == "c" {
						w.is("c", "primary", 0)
					}
					return 0, nil
				}
			},
			end:  time.Minute,
			want: "2ms switch 1 start >a | 3ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s switch 2 failover a>b | 15.203s b unverified | 15.205s switch 3 failover b>c | 15.206s open 3 c",
		},

		// R3: the higher term wins, and two writers never lead to a change without it.
		{
			name:  "at the start the higher term wins",
			hosts: []string{"a: primary/3", "b: primary/4"},
			end:   time.Minute,
			want:  "2ms switch 1 start >b | 3ms open 1 b | 4ms two writers a+b",
		},
		{
			name:  "a primary in a higher term is followed",
			hosts: []string{"a: primary/1", "b: replica/1; 9.5s primary/2"},
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.002s lost a | 10.002s hold | 10.004s switch 2 failover a>b | 10.005s open 2 b | 10.005s two writers a+b",
		},
		{
			name:  "not while the relay is frozen",
			cfg:   Config{Locks: Locks{Frozen: true}},
			hosts: []string{"a: primary/1", "b: replica/1; 9.5s primary/2"},
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.003s two writers a+b",
		},
		{
			name:  "without terms the last primary stays",
			hosts: []string{"b: replica; 9.5s primary; 1800s replica", "a: primary"},
			cfg:   Config{Failback: time.Minute},
			end:   time.Hour,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.003s two writers b+a | 30m0.203s one writer",
		},
		{
			name:  "and when it is lost, the other one is not elected before it was a replica",
			hosts: []string{"a: primary; 29.5s refused", "b: replica; 9.5s primary; 40s replica; 45s primary", "c: primary"},
			end:   46 * time.Second,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 4ms two writers a+c | 10.002s two writers a+b+c | 30.201s lost a | 30.201s hold | 30.201s two writers b+c | 30.203s none usable, 1s | 31.203s none usable, 2s | 33.203s none usable, 4s | 37.203s none usable, 8s | 40.003s one writer | 40.201s refuse | 45.003s switch 2 failover a>b | 45.004s open 2 b | 45.005s two writers b+c",
		},
		{
			name:  "or the operator has given up the last one",
			hosts: []string{"a: primary; 29.5s refused", "b: replica; 9.5s primary"},
			play:  func(w *world) { w.later(35*time.Second, Locks{Drained: []string{"a"}}) },
			end:   46 * time.Second,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.003s two writers a+b | 30.201s lost a | 30.201s hold | 30.201s one writer | 30.203s none usable, 1s | 31.203s none usable, 2s | 33.203s none usable, 4s | 35.003s switch 2 failover a>b | 35.004s open 2 b",
		},
		{
			name:  "also in an election",
			cfg:   Config{Prefer: "b", Epoch: 7},
			hosts: []string{"a: primary", "b: primary"},
			end:   time.Minute,
			want:  "2ms switch 8 start >b | 3ms open 8 b | 4ms two writers a+b",
		},
		{
			name:  "a primary of an earlier term is not elected when the last one dies",
			hosts: []string{"a: primary/1; 9.5s refused; 20s primary/1", "b: replica/1; 10.5s primary/2; 29.5s refused"},
			end:   31 * time.Second,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s none usable, 1s | 10.503s switch 2 failover a>b | 10.504s open 2 b | 21.503s two writers a+b | 29.702s lost b | 29.702s hold | 29.702s one writer | 29.704s none usable, 1s | 30.704s none usable, 2s",
		},
		{
			name:  "neither after a restart",
			cfg:   Config{Prefer: "b", Epoch: 2, Term: 2},
			hosts: []string{"a: primary/1", "b: refused"},
			end:   time.Second,
			want:  "2ms none usable, 1s",
		},

		// R4: the identity of the cluster.
		{
			name:  "a host of another cluster is not elected",
			hosts: []string{"a: primary; 9.5s refused", "b: foreign", "c: replica; 9.8s primary"},
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s switch 2 failover a>c | 10.204s open 2 c",
		},
		{
			name:  "after a restart, too",
			cfg:   Config{Prefer: "b", Epoch: 2, Identity: "ours"},
			hosts: []string{"a: foreign", "b: refused; 500ms primary"},
			end:   time.Minute,
			want:  "2ms none usable, 1s | 502ms switch 3 start >b | 503ms open 3 b",
		},
		{
			name:  "nor is the primary, when it is made anew",
			hosts: []string{"a: primary; 9.5s foreign", "b: replica"},
			end:   11 * time.Second,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.203s lost a | 10.203s hold | 10.205s none usable, 1s",
		},
		{
			name:  "the identity in the settings counts from the start",
			rules: RoleRules{Identity: "ours"},
			hosts: []string{"a: foreign", "b: primary"},
			end:   time.Minute,
			want:  "2ms switch 1 start >b | 3ms open 1 b",
		},
		{
			name:  "any identity will do if that is said",
			rules: RoleRules{Identity: AnyIdentity},
			hosts: []string{"a: primary; 9.5s refused", "b: replica; 9.8s foreign"},
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s switch 2 failover a>b | 10.204s open 2 b",
		},

		// R5: the promotion of somebody else is followed.
		{
			name:  "a promotion after a minute without a primary",
			hosts: []string{"a: primary; 9.5s refused", "b: replica; 70.05s primary"},
			end:   2 * time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s none usable, 1s | 11.203s none usable, 2s | 13.203s none usable, 4s | 17.203s none usable, 8s | 20.201s refuse | 25.203s none usable, 16s | 41.203s none usable, 32s | 1m10.103s switch 2 failover a>b | 1m10.104s open 2 b",
		},
		{
			name:  "a switchover by somebody else",
			hosts: []string{"a: primary; 9.99s replica", "b: replica; 10.05s primary"},
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.102s lost a | 10.102s hold | 10.104s switch 2 failover a>b | 10.105s open 2 b",
		},

		// R6: starting.
		{
			name:  "a host that is starting is not elected",
			hosts: []string{"a: starting; 3s primary", "b: replica"},
			end:   time.Minute,
			want:  "2ms none usable, 1s | 1.002s none usable, 2s | 3.002s switch 1 start >a | 3.003s open 1 a",
		},

		// R7: a role that is unknown.
		{
			name:  "a primary whose login is refused stays",
			rules: RoleRules{Promote: true},
			hosts: []string{"a: primary; 9.5s login", "b: replica"},
			end:   time.Hour,
			want:  "2ms switch 1 start >a | 3ms open 1 a",
		},
		{
			name:  "also when it accepts no connections for a moment",
			hosts: []string{"a: primary; 9.5s login; 19.5s refused; 20.22s login", "b: replica"},
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 20.201s lost a | 20.201s hold | 20.203s none usable, 1s | 20.303s switch 2 reselect a>a | 20.304s open 2 a",
		},
		{
			name:  "a host whose login is refused is not elected",
			rules: RoleRules{Promote: true},
			hosts: []string{"a: primary; 9.5s refused", "b: login", "c: replica"},
			play:  func(w *world) { w.promotes(0, "primary") },
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s switch 2 failover a>c | 10.204s open 2 c",
		},
		{
			name:  "a primary that answers no question is lost",
			rules: RoleRules{Promote: true},
			hosts: []string{"a: primary; 9.5s mute", "b: replica"},
			play:  func(w *world) { w.promotes(0, "primary") },
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 11.202s lost a | 11.202s hold | 11.204s switch 2 failover a>b | 11.205s open 2 b",
		},

		// R8: the newest data.
		{
			name:  "the order decides between replicas",
			rules: RoleRules{Promote: true},
			hosts: []string{"a: primary; 9.5s refused", "b: replica/1@800", "c: replica/1@900"},
			play:  func(w *world) { w.promotes(0, "primary") },
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s switch 2 failover a>b | 10.204s open 2 b",
		},
		{
			name:  "with freshest the position does",
			rules: RoleRules{Promote: true},
			cfg:   Config{Freshest: true},
			hosts: []string{"a: primary; 9.5s refused", "b: replica/1@800", "c: replica/1@900"},
			play:  func(w *world) { w.promotes(0, "primary") },
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s switch 2 failover a>c | 10.204s open 2 c",
		},
		{
			name:  "also of a replica that failed often",
			rules: RoleRules{Promote: true},
			cfg:   Config{Freshest: true},
			hosts: []string{"a: primary; 29.5s refused", "b: replica/1@800", "c: replica/1@900; 5s refused; 8s replica/1@900; 11s refused; 14s replica/1@900; 17s refused; 20s replica/1@900"},
			play:  func(w *world) { w.promotes(0, "primary") },
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 30.201s lost a | 30.201s hold | 30.203s switch 2 failover a>c | 30.204s open 2 c",
		},
		{
			name:  "which is not preferred for that when it has no more than another",
			rules: RoleRules{Promote: true},
			cfg:   Config{Freshest: true},
			hosts: []string{"a: primary; 29.5s refused", "c: replica/1@900; 5s refused; 8s replica/1@900; 11s refused; 14s replica/1@900; 17s refused; 20s replica/1@900", "b: replica/1@900"},
			play:  func(w *world) { w.promotes(0, "primary") },
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 30.201s lost a | 30.201s hold | 30.203s switch 2 failover a>b | 30.204s open 2 b",
		},
		{
			name:  "and the term comes before it",
			rules: RoleRules{Promote: true},
			cfg:   Config{Freshest: true},
			hosts: []string{"a: primary; 9.5s refused", "b: replica/2@800", "c: replica/1@900"},
			play:  func(w *world) { w.promotes(0, "primary") },
			end:   time.Minute,
			want:  "2ms switch 1 start >a | 3ms open 1 a | 10.201s lost a | 10.201s hold | 10.203s switch 2 failover a>b | 10.204s open 2 b",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := roleWorld(t, tt.cfg, tt.rules, tt.hosts...)
			if tt.play != nil {
				tt.play(w)
			}
			w.play(tt.end)
			w.wantStory(t, tt.want)
		})
	}
}

// An old primary that comes back is told by its term, where there is one.
func TestReasonAgainstAnOldPrimary(t *testing.T) {
	for hosts, want := range map[[2]string]string{
		{"a: primary/1; 9.5s refused; 20s primary/1", "b: replica/1; 10.5s primary/2"}: "it says primary in term 1, and b was primary in term 2",
		{"a: primary; 9.5s refused; 20s primary", "b: replica; 10.5s primary"}:         "it says primary beside b, and no higher term shows that it comes after it",
	} {
		w := roleWorld(t, Config{}, RoleRules{}, hosts[0], hosts[1]).play(time.Minute)
		snap := w.m.Snapshot()
		if got := snap.Hosts[0].Checks[1].Last.Err; snap.Primary != "b" || got == nil || got.Error() != want {
			t.Errorf("%q is primary, and a is refused because %v, want b and %s", snap.Primary, got, want)
		}
	}
}

func TestForeign(t *testing.T) {
	for _, tt := range []struct{ settings, last, host, want string }{
		{"", "", "ours", ""}, {"", "ours", "ours", ""}, {"", "ours", "theirs", "ours"}, {"", "ours", "", ""},
		{"ours", "theirs", "ours", ""}, {"ours", "theirs", "theirs", "ours"}, {"ours", "", "theirs", "ours"},
		{AnyIdentity, "ours", "theirs", ""},
	} {
		rules := RoleRules{Identity: tt.settings}
		if got := rules.Foreign(&role.Fact{Identity: tt.host}, tt.last); got != tt.want {
			t.Errorf("%q in the settings, %q last, %q of the host: %q, want %q", tt.settings, tt.last, tt.host, got, tt.want)
		}
	}
	if got := (&RoleRules{Identity: "ours"}).Foreign(nil, ""); got != "" {
		t.Errorf("a host without a fact: %q", got)
	}
}

// A host that is starting, or is a replica, has not failed: the flap guard does not count
// it. A host that stops answering has.
func TestFlapGuardCountsNoRoles(t *testing.T) {
	for _, tt := range []struct {
		kind string
		want int
	}{
		{"starting", 0}, {"replica", 0}, {"foreign", 0}, {"mute", 3}, {"refused", 3},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			line := "a: primary"
			for k := range 3 {
				at := 10 * (k + 1)
				line += fmt.Sprintf("; %ds %s; %ds primary", at, tt.kind, at+5)
			}
			w := roleWorld(t, Config{Stay: zero}, RoleRules{}, line, "b: replica").play(44 * time.Second)
			if got := w.m.Snapshot().Hosts[0].Failures; got != tt.want {
				t.Errorf("after three times %s: %d failures, want %d\n%s", tt.kind, got, tt.want, strings.Join(w.story, "\n"))
			}
			if w.primary != "a" {
				t.Errorf("the primary is %q, want a", w.primary)
			}
		})
	}
}

// A role that is unknown is reported, and again when its reason has changed.
func TestUnknownRoleIsReported(t *testing.T) {
	w := roleWorld(t, Config{}, RoleRules{}, "a: primary; 9.5s login; 60s primary", "b: replica")
	w.facts = true
	w.play(2 * time.Minute)
	var got []string
	for _, line := range w.story {
		if strings.Contains(line, "nknown a role") || strings.Contains(line, "known a role") {
			got = append(got, line)
		}
	}
	want := []string{"10.003s unknown a role: password authentication failed", "1m0.003s known a role"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Every host is asked for its role every 100 ms while there is no primary, and while the
// primary says that it is a replica; otherwise once a second.
func TestRolesAreAskedOftenWithoutPrimary(t *testing.T) {
	for _, tt := range []struct {
		name     string
		a        string
		from, to time.Duration
		min, max int
	}{
		{"with a primary", "primary", 20 * time.Second, 30 * time.Second, 9, 11},
		{"after a minute without", "primary; 9.5s refused", 70 * time.Second, 71 * time.Second, 9, 11},
		{"while the primary is a replica", "primary; 9.99s replica", 10 * time.Second, 10200 * time.Millisecond, 2, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := roleWorld(t, Config{}, RoleRules{}, "a: "+tt.a, "b: replica").play(tt.from)
			before := w.started["b role"]
			w.play(tt.to)
			if got := w.started["b role"] - before; got < tt.min || got > tt.max {
				t.Errorf("b is asked %d times between %v and %v, want %d to %d", got, tt.from, tt.to, tt.min, tt.max)
			}
		})
	}
}

// What the best candidate lacks is known before a failover, and is part of its election.
func TestLoss(t *testing.T) {
	w := roleWorld(t, Config{Freshest: true}, RoleRules{Promote: true},
		"a: primary/1@1000; 20s primary/1@2000; 30s primary/1@3000; 40.5s refused", "b: replica/1@1500", "c: replica/1@2900")
	var elected Switch
	w.trigger = func(s Switch) (time.Duration, error) {
		elected = s
		if s.Host == "c" {
			w.is("c", "primary/2@3100", 0)
		}
		return 0, nil
	}
	w.play(40 * time.Second)
	// At 2000 it was last at 29s, at 1000 at 19s, and at 3000 at 39s: b has lacked data for
	// 20s, c for 10s, to a second and an eighth.
	near := func(got, want time.Duration) bool { return (got - want).Abs() <= 4*time.Second }
	now := w.m.Snapshot()
	b, c := now.Hosts[1].Lag, now.Hosts[2].Lag
	if b.Bytes != 1500 || !b.BytesKnown || !b.TimeKnown || !near(b.Time, 20*time.Second) {
		t.Errorf("b lags by %+v, want 1500 bytes and about 20s", b)
	}
	if c.Bytes != 100 || !c.BytesKnown || !c.TimeKnown || !near(c.Time, 10*time.Second) {
		t.Errorf("c lags by %+v, want 100 bytes and about 10s", c)
	}
	if now.Loss.Host != "c" || now.Loss.Lag != c || now.Loss.Role != role.Replica {
		t.Errorf("the loss would be %+v, want that of c", now.Loss)
	}
	w.play(time.Minute)
	if elected.Host != "c" || elected.Old != "a" || elected.Loss.Lag.Bytes != 100 || !near(elected.Loss.Lag.Time, c.Time) || elected.Fact == nil || elected.Fact.Term != 1 {
		t.Errorf("elected %+v, want c with the lag and the term of before", elected)
	}
	if now = w.m.Snapshot(); now.Term != 2 || now.Identity != "ours" || w.primary != "c" {
		t.Errorf("the cluster %q is in term %d with primary %q, want that of c", now.Identity, now.Term, w.primary)
	}
}

// The own word of a replica counts where positions cannot be compared.
func TestLagByItsOwnWord(t *testing.T) {
	m, err := New(complete(Config{Hosts: []string{"a", "b"}, Checks: []Check{{Name: "tcp"}, {Name: "role", Role: &RoleRules{Verify: 1}}}}))
	if err != nil {
		t.Fatal(err)
	}
	said := role.Lag{Bytes: 7, BytesKnown: true, Time: time.Second, TimeKnown: true}
	m.hosts[1].role.replica = &role.Fact{Role: role.Replica, Lag: said}
	if got := m.lag(1); got != said {
		t.Errorf("lag = %+v, want %+v", got, said)
	}
	if got := m.lag(0); got != (role.Lag{}) {
		t.Errorf("lag of a host that said nothing = %+v, want none", got)
	}
}

// Of many positions few are kept, and the time since each of them is known to an eighth.
func TestPositionsAreThinned(t *testing.T) {
	m, err := New(complete(Config{Hosts: []string{"a", "b"}, Checks: []Check{{Name: "tcp"}, {Name: "role", Role: &RoleRules{Verify: 1}}}}))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	const seconds = 100_000
	for n := 1; n <= seconds; n++ {
		m.now = begin.Add(time.Duration(n) * time.Second)
		m.sample(uint64(n))
	}
	if n := len(m.positions); n > 250 {
		t.Errorf("%d positions are kept", n)
	}
	for _, behind := range []int{0, 1, 5, 30, 600, 3600, 50_000} {
		m.hosts[1].role.replica = &role.Fact{Position: uint64(seconds - behind), Bytes: true}
		got, want := m.lag(1), time.Duration(behind)*time.Second
		if got.Bytes != uint64(behind) || !got.TimeKnown || got.Time < want || got.Time > want+want/4+time.Second {
			t.Errorf("%d seconds behind: %+v", behind, got)
		}
	}
}

// Whatever hosts say of themselves and however often it changes, clients are connected only
// to a host that said primary after its election, a term is never followed by a lower one,
// and a host of another cluster is never elected. The world checks the rest.
func TestRolesAtRandom(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed+200, 17))
		kinds := []string{"primary/%d@%d", "replica/%d@%d", "starting", "login", "foreign/%d@%d", "refused", "silent", "mute", "primary/%d@%d"}
		hosts := []string{"a: ", "b: ", "c: "}
		for i := range hosts {
			at := 0.0
			for n := range 30 {
				kind := kinds[rnd.IntN(len(kinds))]
				if strings.Contains(kind, "%") {
					kind = fmt.Sprintf(kind, 1+n/6, 1000*n+rnd.IntN(1000))
				}
				if n > 0 {
					hosts[i] += fmt.Sprintf("; %.2fs ", at)
				}
				hosts[i] += kind
				at += 0.05 + 8*rnd.Float64()
			}
		}
		w := roleWorld(t, Config{Freshest: seed%2 == 0, Failback: time.Duration(seed%3) * 5 * time.Second},
			RoleRules{Promote: seed%4 < 2, MaxLagBytes: 500 * (seed % 3), Verify: 3 * time.Second, Identity: "ours"}, hosts...)
		w.trigger = func(s Switch) (time.Duration, error) {
			if w.m.foreign(w.m.elect) {
				t.Fatalf("seed %d at %v: %s of another cluster is elected", seed, w.now, s.Host)
			}
			return time.Duration(rnd.IntN(500)) * time.Millisecond, nil
		}
		w.opened = func() {
			h := &w.m.hosts[w.m.elect]
			if h.role.says != role.Primary && (h.role.says != role.Unknown || !w.m.goesOn) || w.m.foreign(w.m.elect) {
				t.Fatalf("seed %d at %v: clients are connected to %s, which says %v", seed, w.now, h.name, h.role.says)
			}
		}
		w.play(5 * time.Minute)
	}
}
