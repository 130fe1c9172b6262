package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/control"
	"understudy/failover"
)

// stage holds the status that the page of a test shows.
type stage struct {
	mu        sync.Mutex
	status    control.Status
	elections []control.Event
	changed   chan struct{}
	orders    []string
	builds    int  // how often the status was asked for
	described int  // and that of one relay
	calm      bool // glances see nothing but numbers
	*Page
}

// begins is when everything began.
var begins = time.Date(2026, 11, 26, 9, 0, 0, 0, time.UTC)

// newStage returns a page over n relays that serve.
func newStage(n int, acts bool) *stage {
	s := &stage{status: statusOf(n), changed: make(chan struct{})}
	for i := range min(n, 3) {
		r := s.status.Relays[i]
		s.elections = append(s.elections, control.Event{Schema: control.Schema, Incident: failover.Incident{
			ID: 1, Relay: r.Name, Event: "start", Epoch: 1, New: r.Hosts[0].Name, Reason: "first usable host at the start", Outcome: failover.Open, Done: true,
			Elected: begins, Opened: begins, ElectSeconds: 0.004, SwitchSeconds: 0.001, TotalSeconds: 0.005,
		}})
	}
	cfg := PageConfig{
		Status: func() control.Status {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.builds++
			return s.status
		},
		Process: func() control.Status {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.builds++
			st := s.status
			st.Relays = nil
			return st
		},
		Glances: func([]control.Glance) (all []control.Glance) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, r := range s.status.Relays {
				all = append(all, s.glance(r))
			}
			return all
		},
		Describe: func(g *control.Glance, _ *control.Status) control.RelayStatus {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.described++
			for _, r := range s.status.Relays {
				if r.Name == g.Name {
					return r
				}
			}
			return control.RelayStatus{Name: g.Name} // it was removed meanwhile
		},
		Elections: func(most int) []control.Event {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.elections[:min(len(s.elections), most)]
		},
		Changed: func() <-chan struct{} {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.changed
		},
		Text: func(st control.Status) string { return fmt.Sprintf("%d relays\n", len(st.Relays)) },
	}
	if acts {
		cfg.Order = func(_ context.Context, what string, o control.Order) (any, error) { return s.order(o, what) }
	}
	s.Page = NewPage(cfg)
	return s
}

// glance returns a glance at a relay.
func (s *stage) glance(r control.RelayStatus) control.Glance {
	g := control.Glance{
		Name: r.Name, Live: r.Clients.Live, Waiting: r.Clients.Queued + r.Clients.Held, Changed: !s.calm, Counted: !s.calm,
		Recorded: uint64(len(s.elections)),
	}
	for _, h := range r.Hosts {
		for _, k := range h.Checks {
			if k.Last != nil {
				g.Took = append(g.Took, time.Duration(k.Last.Seconds*float64(time.Second)))
			}
		}
	}
	return g
}

// change changes the status as a conductor does.
func (s *stage) change(f func(*control.Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	relays := make([]control.RelayStatus, len(s.status.Relays)) // readers have the old ones
	copy(relays, s.status.Relays)
	s.status.Relays = relays
	f(&s.status)
	close(s.changed)
	s.changed = make(chan struct{})
}

// serve serves the page on loopback until the test ends.
func (s *stage) serve(tb testing.TB) string {
	tb.Helper()
	server := httptest.NewServer(s.Page)
	tb.Cleanup(server.Close)
	tb.Cleanup(sync.OnceFunc(func() { close(s.over) }))
	return server.URL
}

// statusOf returns the status of n relays that serve.
func statusOf(n int) control.Status {
	s := control.Status{
		Schema: control.Schema, Version: "1.4.0", PID: 3871, Started: begins, Now: begins.Add(77*time.Hour + 12*time.Minute),
	}
	for i := range n {
		s.Relays = append(s.Relays, relayOf(names[i%len(names)]+strings.Repeat("-b", i/len(names)), i, s.Now))
	}
	return s
}

var names = []string{"orders", "mail", "search", "sessions", "billing", "stock", "prices", "reports", "users", "events",
	"carts", "images", "queue", "ledger", "tickets", "audit", "maps", "chat", "feeds", "photos"}

func relayOf(name string, i int, now time.Time) control.RelayStatus {
	r := control.RelayStatus{
		Name: name, Listen: []string{fmt.Sprintf("10.0.0.5:%d", 5400+i)}, State: "serving", Since: begins, Elected: begins, Epoch: 1, Event: "start",
		Reason: "first usable host at the start", Kept: true, Rise: 2, Fall: 3,
		Clients: control.Clients{Live: uint64(40 + 37*i%300), Accepted: uint64(812345 + i), Finished: uint64(812290 + i), Reset: 15, Sent: 48_123_456_789, Received: 1_234_567_890_123},
	}
	for h := range 3 {
		one := control.Host{
			Name: fmt.Sprintf("db%d.%s:5432", h+1, name), State: "up", Since: begins, Primary: h == 0,
			Checks: []control.Check{
				{Name: "tcp", State: "up", Streak: 812, Last: &control.Result{At: now.Add(-300 * time.Millisecond), OK: true, Seconds: 0.00041}},
				{Name: "http:8008", State: "up", Streak: 812, Last: &control.Result{At: now.Add(-280 * time.Millisecond), OK: true, Seconds: 0.0031}},
			},
			Address: &control.Address{Address: fmt.Sprintf("10.0.1.%d", 10*i%250+h+1)},
		}
		if h == 0 {
			one.Live, one.Sessions, one.Sent, one.Received = r.Clients.Live, r.Clients.Accepted, r.Clients.Sent, r.Clients.Received
		}
		r.Hosts = append(r.Hosts, one)
	}
	r.Primary, r.Elect = r.Hosts[0].Name, r.Hosts[0].Name
	r.Why = r.Primary + " has been primary for 77h12m0s (start: first usable host at the start)"
	r.Hosts[0].Why = r.Why
	for h := 1; h < 3; h++ {
		r.Hosts[h].Why = r.Hosts[h].Name + " is a usable standby: " + r.Primary + " is primary and up, and a primary stays"
	}
	return r
}

// failOver makes the second host primary, because the first one is down.
func failOver(r *control.RelayStatus, now time.Time) {
	hosts := make([]control.Host, len(r.Hosts))
	copy(hosts, r.Hosts)
	r.Hosts = hosts
	old, elect := &r.Hosts[0], &r.Hosts[1]
	const refused = "connect: connection refused"
	old.State, old.Primary, old.Live, old.Since = "down", false, 0, now.Add(-214*time.Second)
	old.Why = old.Name + " is not usable: tcp: " + refused
	old.Checks = []control.Check{
		{Name: "tcp", State: "down", Streak: -412, Last: &control.Result{At: now.Add(-200 * time.Millisecond), Phase: "connect", Error: "connection refused", Seconds: 0.00022}},
		{Name: "http:8008", State: "down", Streak: -412, Last: &control.Result{At: now.Add(-200 * time.Millisecond), Phase: "connect", Error: "connection refused", Seconds: 0.00025}},
	}
	elect.Primary, elect.Live, elect.Sessions, elect.Sent, elect.Received = true, r.Clients.Live, 8123, 412_345_678, 9_812_345_678
	r.Primary, r.Elect, r.Elected, r.Epoch, r.Event = elect.Name, elect.Name, now.Add(-213*time.Second), r.Epoch+1, "failover"
	r.Reason = old.Name + " is down: tcp: " + refused
	r.Clients.Fenced = r.Clients.Live
	r.Why = r.Primary + " has been primary for 3m33s (failover: " + r.Reason + ")"
	elect.Why = r.Why
}

// lose takes the primary away, and every other host with it.
func lose(r *control.RelayStatus, now time.Time) {
	failOver(r, now)
	for i := range r.Hosts {
		h := &r.Hosts[i]
		h.State, h.Primary, h.Live, h.Checks, h.Since = "down", false, 0, r.Hosts[0].Checks, now.Add(-9*time.Second)
		h.Why = h.Name + " is not usable: tcp: connect: connection refused"
	}
	r.Primary, r.State, r.Since = "", "selecting", now.Add(-8*time.Second)
	r.Clients.Queued, r.Clients.Held, r.Clients.Live = 31, 4, 0
	r.Why = "there has been no primary for 8.2s: no host is usable"
}

// failedOver is the record of a failover, before.
func failedOver(r control.RelayStatus, id uint64, at time.Time, detect, trigger, bound float64) control.Event {
	total := detect + 0.021 + 0.004 + trigger + 0.002
	return control.Event{Schema: control.Schema, Incident: failover.Incident{
		ID: id, Relay: r.Name, Event: "failover", Epoch: id, Old: r.Hosts[0].Name, New: r.Hosts[1].Name,
		Reason: r.Hosts[0].Name + " is down: tcp: connect: connection refused", Outcome: failover.Open, Done: true,
		FirstBad:  &failover.BadCheck{At: at, Check: "tcp", Phase: "connect", Error: "connection refused"},
		Suspected: at, Lost: at.Add(200 * time.Millisecond), Elected: at.Add(221 * time.Millisecond),
		Fence:    &failover.FenceRun{Reset: 112, Moved: 3, Seconds: 0.004},
		Triggers: []failover.TriggerRun{{Script: "/etc/understudy/triggers.d/10-promote", Status: "exit status 0", Seconds: trigger}},
		Opened:   at.Add(time.Second), FirstByte: at.Add(time.Second + 3*time.Millisecond), ClientsHeld: 87,
		DetectSeconds: detect, ElectSeconds: 0.021, SwitchSeconds: 0.006 + trigger, TotalSeconds: total, BoundSeconds: bound, OverBound: total > bound,
	}}
}

// order records an order. That to drain is refused.
func (s *stage) order(o control.Order, what string) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders = append(s.orders, fmt.Sprintf("%s relay=%s host=%s reason=%s by=%s", what, o.Relay, o.Host, o.Reason, o.By))
	switch what {
	case "switch":
		return control.SwitchAnswer{Switched: failover.Switched{Host: o.Host, Epoch: 5}}, nil
	case "drain":
		return nil, errors.New("every other host is down or drained")
	}
	return control.LockAnswer{}, nil
}
