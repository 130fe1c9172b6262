package failover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy/hooks"
)

// listener records the notices that reach scripts and a webhook.
type listener struct {
	mu    sync.Mutex // guards everything below
	heard []string   // by scripts
	env   []string   // of the last one
	posts []string
	takes time.Duration
	fails error
	busy  int
	most  int // runs at one time
}

func (l *listener) Run(ctx context.Context, s hooks.Script) hooks.Result {
	env := map[string]string{}
	for _, e := range s.Env {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	l.mu.Lock()
	l.heard = append(l.heard, fmt.Sprintf("%s %s epoch=%s %v: %s", filepath.Base(s.Path),
		env["UNDERSTUDY_EVENT"], env["UNDERSTUDY_EPOCH"], s.Args, env["UNDERSTUDY_REASON"]))
	l.env = s.Env
	l.busy++
	l.most = max(l.most, l.busy)
	takes, fails := l.takes, l.fails
	l.mu.Unlock()
	if env["UNDERSTUDY_RELAY"] != "orders" || env["UNDERSTUDY_NEW"] != s.Args[0] && env["UNDERSTUDY_OLD"] != s.Args[0] || s.Timeout <= 0 {
		fails = fmt.Errorf("wrong: %v %v", s.Args, s.Env)
	}
	select {
	case <-time.After(min(takes, s.Timeout)):
	case <-ctx.Done():
	}
	l.mu.Lock()
	l.busy--
	l.mu.Unlock()
	return hooks.Result{End: hooks.Exited, Err: fails, Took: takes}
}

func (l *listener) deliver(ctx context.Context, to string, body []byte) error {
	var m message
	if err := json.Unmarshal(body, &m); err != nil {
		return err
	}
	l.mu.Lock()
	l.posts = append(l.posts, fmt.Sprintf("%s %s %s %s epoch=%d %s", to, m.Event, m.Relay, m.Host, m.Epoch, m.Text))
	takes, fails := l.takes, l.fails
	l.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
	}
	return fails
}

// noticing conducts a and b with a listener for scripts in a directory.
func noticing(t *testing.T, s *stage, l *listener, cfg Config, play func(c *Conductor)) string {
	t.Helper()
	cfg.Hosts, cfg.NoticeScripts, cfg.Deliver = []string{"a", "b"}, l, l.deliver
	return conduct(t, s, cfg, play)
}

// events returns the names of the recorded events.
func (l *listener) events() (list []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.heard {
		list = append(list, strings.Fields(h)[1])
	}
	return list
}

func TestNotices(t *testing.T) {
	dir, triggers := triggers(t, "10-mail"), triggers(t, "promote")
	fail := func(s *stage, host string, how bool) { s.set(func() { s.refusing[host] = how }) }
	for _, tt := range []struct {
		name string
		play func(s *stage)
		want []string
	}{
		{"nothing happens", func(*stage) { time.Sleep(time.Hour) }, nil},
		{"a failover, and the old primary is back", func(s *stage) {
			time.Sleep(10 * time.Second)
			fail(s, "a", true)
			time.Sleep(10 * time.Second)
			fail(s, "a", false)
			time.Sleep(10 * time.Second)
		}, []string{
			"10-mail primary-lost epoch=1 [a orders]: a is down: tcp: connection refused",
			"10-mail no-standby epoch=2 [b orders]: a: tcp: connection refused",
			"10-mail standby-back epoch=2 [b orders]: another host could take over again",
		}},
		{"all hosts are down", func(s *stage) {
			time.Sleep(10 * time.Second)
			fail(s, "b", true)
			time.Sleep(10 * time.Second)
			fail(s, "a", true)
			time.Sleep(10 * time.Second)
		}, []string{
			"10-mail no-standby epoch=1 [a orders]: b: tcp: connection refused",
			"10-mail primary-lost epoch=1 [a orders]: a is down: tcp: connection refused",
			"10-mail nobody-usable epoch=1 [ orders]: a: tcp: connection refused; b: tcp: connection refused",
		}},
		{"a trigger fails", func(s *stage) {
			time.Sleep(10 * time.Second)
			s.set(func() { s.fails["promote b"] = true })
			fail(s, "a", true)
			time.Sleep(10 * time.Second)
		}, []string{
			"10-mail primary-lost epoch=1 [a orders]: a is down: tcp: connection refused",
			"10-mail script-failed epoch=2 [b orders]: exit status 1",
			"10-mail no-standby epoch=2 [b orders]: a: tcp: connection refused",
		}},
		{"it takes too long", func(s *stage) {
			time.Sleep(10 * time.Second)
			s.set(func() { s.fence = 10 * time.Minute })
			fail(s, "a", true)
			time.Sleep(20 * time.Minute)
		}, []string{
			"10-mail primary-lost epoch=1 [a orders]: a is down: tcp: connection refused",
			"10-mail over-predicted epoch=2 [b orders]: the failover took 10m0.201s, and 32.8s was predicted",
			"10-mail no-standby epoch=2 [b orders]: a: tcp: connection refused",
		}},
		{"a standby comes and goes", func(s *stage) {
			for range 4 {
				time.Sleep(10 * time.Second)
				fail(s, "b", true)
				time.Sleep(10 * time.Second)
				fail(s, "b", false)
			}
			time.Sleep(5 * time.Second)
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, l := newStage(), &listener{}
				noticing(t, s, l, Config{Notices: Notices{Path: dir}, Triggers: Triggers{Path: triggers}}, func(*Conductor) { tt.play(s) })
				if tt.name == "a standby comes and goes" {
					if all := strings.Join(l.events(), " "); !strings.Contains(all, "flapping") || strings.Count(all, "flapping") > 3 {
						t.Errorf("heard %s, want flapping a few times", all)
					}
					return
				}
				if diff := cmp.Diff(tt.want, l.heard); diff != "" {
					t.Errorf("heard (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// A webhook gets the same events, and no part of its URL is logged when it
// fails.
func TestNoticesByWebhook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, l := newStage(), &listener{fails: errors.New("the server answered 403")}
		log := noticing(t, s, l, Config{Notices: Notices{Webhook: "https://x.example/T0KEN"}}, func(c *Conductor) {
			time.Sleep(10 * time.Second)
			s.set(func() { s.refusing["a"] = true })
			time.Sleep(10 * time.Second)
			c.Notify(Notice{Event: EventTwoWriters, Host: "b", Reason: "relays disagree"})
			time.Sleep(time.Second)
		})
		want := []string{
			"https://x.example/T0KEN primary-lost orders a epoch=1 understudy orders: primary-lost: a: a is down: tcp: connection refused",
			"https://x.example/T0KEN no-standby orders b epoch=2 understudy orders: no-standby: b: a: tcp: connection refused",
			"https://x.example/T0KEN two-writers orders b epoch=2 understudy orders: two-writers: b: relays disagree",
		}
		if diff := cmp.Diff(want, l.posts); diff != "" {
			t.Errorf("posted (-want +got):\n%s", diff)
		}
		if n := strings.Count(log, "webhook failed, the notice is lost"); n != 3 || strings.Contains(log, "T0KEN") {
			t.Errorf("%d failures in the log, want 3 and no URL:\n%s", n, log)
		}
	})
}

// Scripts and a webhook that hang delay nothing. Notices that do not fit into
// the queue are dropped, with a record for each.
func TestNoticesAreNeverWaitedFor(t *testing.T) {
	dir := triggers(t, "10-mail")
	synctest.Test(t, func(t *testing.T) {
		s, l := newStage(), &listener{takes: time.Hour}
		log := noticing(t, s, l, Config{Notices: Notices{Path: dir, Webhook: "http://x.example/"}}, func(c *Conductor) {
			time.Sleep(10 * time.Second)
			s.set(func() { s.refusing["a"] = true })
			time.Sleep(1300 * time.Millisecond)
			if now := c.Snapshot(); now.Primary != "b" {
				t.Errorf("primary %q while a script hangs, want b", now.Primary)
			}
			for n := range 30 {
				c.Notify(Notice{Event: EventTwoWriters, Host: "b", Reason: fmt.Sprint(n)})
				synctest.Wait()
			}
		})
		if l.most != 1 {
			t.Errorf("%d scripts ran at one time", l.most)
		}
		// Of 32, one is being delivered and 16 are queued.
		for _, to := range []string{"script", "webhook"} {
			if n := strings.Count(log, "notice dropped: those before it are not delivered yet: relay=orders to="+to); n != 15 {
				t.Errorf("%d drops of %s in the log, want 15", n, to)
			}
		}
	})
}

// Scripts that say nothing about a host, and a rejoin script that fails, are
// reported.
func TestNoticesOfScripts(t *testing.T) {
	mail, rejoin := triggers(t, "10-mail"), triggers(t, "rejoin")
	for _, tt := range []struct {
		name   string
		begin  func(s *stage)
		rejoin error
		want   []string
	}{
		{
			"a check is unknown", func(s *stage) { s.unknown["role b"] = true }, nil,
			[]string{"10-mail script-failed epoch=1 [b orders]: role: too few processes"},
		},
		{
			"a rejoin fails", func(s *stage) { s.fails["role b"] = true }, errors.New("no such user"),
			[]string{
				"10-mail no-standby epoch=1 [a orders]: b: role: exit status 1",
				"10-mail script-failed epoch=1 [b orders]: rejoin: no such user",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, l := newStage(), &listener{fails: tt.rejoin}
				noticing(t, s, l, Config{
					Checks:  []Check{{Name: "tcp", Run: s.connect}, {Name: "role", Script: "role"}},
					Notices: Notices{Path: mail}, Rejoin: Rejoin{Path: rejoin, Timeout: time.Minute},
				}, func(*Conductor) {
					time.Sleep(10 * time.Second)
					s.set(func() { tt.begin(s) })
					time.Sleep(9 * time.Second)
				})
				got := slices.DeleteFunc(slices.Clone(l.heard), func(h string) bool { return strings.HasPrefix(h, "rejoin ") })
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("heard (-want +got):\n%s", diff)
				}
			})
		})
	}
}
