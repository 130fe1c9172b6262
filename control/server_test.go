package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"understudy/failover"
	"understudy/health"
	"understudy/internal/proctest"
	"understudy/relay"
	"understudy/selector"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is a listener that accepts connections and sends its name.
func host(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, l.Addr())
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// process runs relays of those names, with two hosts each and a control socket.
func process(t *testing.T, names ...string) (*Client, string, [2]string) {
	t.Helper()
	_, c, path, hosts := serve(t, names...)
	return c, path, hosts
}

// serve is process and returns the server, too.
func serve(t *testing.T, names ...string) (*Server, *Client, string, [2]string) {
	t.Helper()
	hosts := [2]string{host(t), host(t)}
	ctx, cancel := context.WithCancel(t.Context())
	path := filepath.Join(t.TempDir(), "control.sock")
	cfg := Config{Path: path, Version: "test"}
	var parts []func(context.Context) error
	var relays []Relay
	connect, err := health.TCPExchange(health.TCPConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		var c *failover.Conductor
		r, err := relay.New(relay.Config{
			Name: name, Listen: []string{"127.0.0.1:0"},
			Hold: 10 * time.Second, ConnectTimeout: 3 * time.Second, DrainTimeout: 30 * time.Second,
			FirstByte: func(epoch uint64) { c.FirstByte(epoch) },
		})
		if err != nil {
			t.Fatal(err)
		}
		c, err = failover.New(failover.Config{
			Name: name, Hosts: hosts[:], Gate: r, Stats: r.Stats,
			Checks: []failover.Check{{Name: "tcp", Run: connect, Interval: 50 * time.Millisecond, Timeout: time.Second}},
			Rise:   2, Fall: 3, FastInterval: 100 * time.Millisecond, Hold: 10 * time.Second, MaxBackoff: time.Minute, Stay: 3 * time.Second,
		})
		if err == nil {
			err = r.Bind()
		}
		if err != nil {
			t.Fatal(err)
		}
		relays = append(relays, Relay{c, r})
		parts = append(parts, r.Run, c.Run)
	}
	cfg.Relays = func() []Relay { return relays }
	s := NewServer(cfg)
	if err := s.Bind(); err != nil {
		t.Fatal(err)
	}
	parts = append(parts, s.Run)
	ended := make(chan error, len(parts))
	for _, part := range parts {
		go func() { ended <- part(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		for range parts {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if _, err := os.Lstat(path); err == nil {
			t.Error("the socket is left behind")
		}
	})
	c := NewClient(path)
	proctest.Until(t, "the relays are ready", func() bool {
		s, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ready := true
		for _, r := range s.Relays {
			ready = ready && r.Primary != "" && r.Hosts[1].State == "up"
		}
		return ready
	})
	return s, c, path, hosts
}

func TestOrders(t *testing.T) {
	c, _, hosts := process(t, "main")
	s, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := s.Relays[0]
	if r.Name != "main" || r.Primary != hosts[0] || r.State != "serving" || r.Epoch != 1 || !r.Hosts[0].Primary || s.PID != os.Getpid() || s.Version != "test" {
		t.Errorf("status = %+v", s)
	}
	if last := r.Hosts[0].Checks[0].Last; last == nil || !last.OK || last.Seconds <= 0 {
		t.Errorf("the last check of the primary is %+v", last)
	}

	var done failover.Switched
	if err := c.Order(t.Context(), "switch", Order{Host: hosts[1], Reason: "a\nb", By: "ann"}, &done); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(failover.Switched{Host: hosts[1], Epoch: 2}, done, cmpopts.IgnoreFields(failover.Switched{}, "Seconds", "Fence")); diff != "" {
		t.Errorf("the answer to switch (-want +got):\n%s", diff)
	}
	list, err := c.Events(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	by := me.Username
	if os.Getuid() == 0 {
		by = "ann as root"
	}
	if i := list[len(list)-1]; i.Event != selector.Switchover || i.By != by || i.Reason != "switch by "+by+": a b" {
		t.Errorf("the last incident is %+v, want a switchover by %q", i, by)
	}

	var k failover.Lock
	if err := c.Order(t.Context(), "drain", Order{Host: hosts[0], Reason: "disk", ForSeconds: 3600}, &k); err != nil {
		t.Fatal(err)
	}
	if err := c.Order(t.Context(), "freeze", Order{Reason: "audit"}, &k); err != nil {
		t.Fatal(err)
	}
	s, err = c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r = s.Relays[0]
	if d := r.Hosts[0].Drained; d == nil || d.Reason != "disk" || d.Until.Sub(d.Since) != time.Hour {
		t.Errorf("the lock of %s is %+v", hosts[0], d)
	}
	if r.Frozen == nil || r.Frozen.Reason != "audit" || r.Frozen.Host != "" {
		t.Errorf("frozen is %+v", r.Frozen)
	}
	for _, verb := range []string{"unfreeze", "ready"} {
		if err := c.Order(t.Context(), verb, Order{Host: hosts[0]}, &k); err != nil {
			t.Fatal(err)
		}
	}
	var drill failover.DrillReport
	if err := c.Order(t.Context(), "drill", Order{}, &drill); err != nil || !drill.OK || drill.Candidate != hosts[0] || drill.Host != hosts[1] {
		t.Errorf("drill = %+v, %v, want %s to take over", drill, err, hosts[0])
	}
	p, err := c.Prediction(t.Context(), "main")
	if err != nil || len(p.Cases) != 6 {
		t.Errorf("prediction = %+v, %v", p, err)
	}
}

func TestRefusals(t *testing.T) {
	c, path, hosts := process(t, "orders", "stock")
	for name, tt := range map[string]struct {
		verb  string
		order Order
		want  string
	}{
		"which relay":     {"switch", Order{Host: hosts[1]}, "relay: needed, because there are several: orders, stock"},
		"no such relay":   {"drain", Order{Relay: "order", Host: hosts[1]}, `there is no relay "order": there is orders, stock`},
		"no host":         {"switch", Order{Relay: "stock"}, "host: missing: the host that is to become primary"},
		"no such host":    {"switch", Order{Relay: "stock", Host: "x:1"}, "x:1: there is no such host"},
		"primary already": {"switch", Order{Relay: "stock", Host: hosts[0]}, hosts[0] + ": it is primary already"},
		"negative drain":  {"switch", Order{Relay: "stock", Host: hosts[1], DrainSeconds: new(float64(-1))}, "drain_seconds: -1 is not from 0 to 316224000"},
		"endless lock":    {"freeze", Order{Relay: "stock", ForSeconds: 1e300}, "for_seconds: 1e+300 is not from 0 to 316224000"},
		"no such order":   {"explode", Order{}, "there is no POST /v1/explode"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.Order(t.Context(), tt.verb, tt.order, new(any))
			if err == nil || err.Error() != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}

	// What curl would send.
	web := http.Client{Transport: &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) },
		DisableKeepAlives: true,
	}}
	for name, tt := range map[string]struct {
		method, target, body string
		status               int
	}{
		"good":          {"POST", "/v1/freeze", `{"relay": "stock"}`, 200},
		"no JSON":       {"POST", "/v1/freeze", `relay=stock`, 400},
		"unknown key":   {"POST", "/v1/freeze", `{"relay": "stock", "for_secs": 5}`, 400},
		"two orders":    {"POST", "/v1/freeze", `{"relay": "stock"}{}`, 400},
		"too much":      {"POST", "/v1/freeze", `{"reason": "` + strings.Repeat("x", orderLimit) + `"}`, 400},
		"wrong method":  {"GET", "/v1/freeze", "", 404},
		"refused":       {"POST", "/v1/drain", `{"relay": "stock", "host": "x"}`, 409},
		"unknown relay": {"GET", "/v1/events?relay=x", "", 404},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), tt.method, "http://understudy"+tt.target, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			res, err := web.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			text, _ := io.ReadAll(res.Body)
			if res.StatusCode != tt.status || !json.Valid(text) || tt.status != 200 && !bytes.Contains(text, []byte(`"error"`)) {
				t.Errorf("status %s, body %s, want %d and JSON", res.Status, text, tt.status)
			}
		})
	}
}

func TestFollow(t *testing.T) {
	c, _, hosts := process(t, "main")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// The record of the start is complete when its first byte has come, or the
	// next election begins.
	go func() {
		_ = c.Order(ctx, "switch", Order{Host: hosts[1]}, new(any))
		_ = c.Order(ctx, "switch", Order{Host: hosts[0]}, new(any))
	}()
	enough := errors.New("enough")
	var seen []string
	err := c.Follow(ctx, "", func(i Event) error {
		seen = append(seen, fmt.Sprintf("%d %s %s %s %v", i.ID, i.Event, i.New, i.Outcome, i.Done))
		if len(seen) == 2 {
			return enough
		}
		return nil
	})
	want := []string{"1 start " + hosts[0] + " open true", "2 switchover " + hosts[1] + " open true"}
	if diff := cmp.Diff(want, seen); diff != "" || !errors.Is(err, enough) {
		t.Errorf("followed (-want +got):\n%s%v", diff, err)
	}
}

// An order is reported at once, and so is the election that began before it when it is
// complete.
func TestFollowOrderDuringAnElection(t *testing.T) {
	c, _, hosts := process(t, "main")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// The record of the start waits for a first byte.
	if err := c.Order(ctx, "freeze", Order{Reason: "audit"}, new(any)); err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	var seen []string
	err := c.Follow(ctx, "", func(i Event) error {
		seen = append(seen, fmt.Sprintf("%d %s", i.ID, i.Event))
		if len(seen) == 2 {
			return enough
		}
		go func() { _ = c.Order(ctx, "switch", Order{Host: hosts[1]}, new(any)) }()
		return nil
	})
	if diff := cmp.Diff([]string{"2 freeze", "1 start"}, seen); diff != "" || !errors.Is(err, enough) {
		t.Errorf("followed (-want +got):\n%s%v", diff, err)
	}
}

func TestNoProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	_, err := NewClient(path).Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no understudy is running here: no process serves "+path) {
		t.Errorf("error %v, want one that says that no process is there", err)
	}
}

func FuzzOrder(f *testing.F) {
	f.Add(`{"relay": "main", "host": "a:1", "drain_seconds": 2.5, "for_seconds": 10, "reason": "x", "triggers": true}`)
	f.Add(``)
	f.Add(`{"drain_seconds": null}`)
	f.Fuzz(func(t *testing.T, body string) {
		o, err := decodeOrder(strings.NewReader(body))
		if err != nil {
			return
		}
		if strings.ContainsAny(o.Reason+o.By, "\n\r") || len(o.Reason) > 500 {
			t.Errorf("the reason is not one short line: %q", o.Reason)
		}
		if d := seconds(o.ForSeconds); d < 0 {
			t.Errorf("a lock that ends after %v", d)
		}
	})
}

// Every answer to an order names the relay, its address and the process, so that
// an order that went to the wrong one is noticed.
func TestAnswersNameTheRelay(t *testing.T) {
	c, _, hosts := process(t, "orders", "mail")
	ctx := t.Context()
	var s Status
	proctest.Until(t, "both hosts of mail are usable", func() bool {
		var err error
		if s, err = c.Status(ctx); err != nil {
			t.Fatal(err)
		}
		mail := s.Relays[1]
		return mail.Primary != "" && !slices.ContainsFunc(mail.Hosts, func(h Host) bool { return h.State != "up" })
	})
	want := Answered{Relay: "mail", Listen: s.Relays[1].Listen, PID: os.Getpid()}
	for _, order := range []struct {
		verb string
		Order
	}{
		{"drill", Order{}},
		{"freeze", Order{}},
		{"unfreeze", Order{}},
		{"drain", Order{Host: hosts[1]}},
		{"ready", Order{Host: hosts[1]}},
		{"switch", Order{Host: hosts[1], At: time.Now().Add(time.Hour)}},
		{"switch", Order{Cancel: true}},
		{"switch", Order{Host: hosts[1]}},
	} {
		order.Relay = "mail"
		var got Answered
		if err := c.Order(ctx, order.verb, order.Order, &got); err != nil {
			t.Fatalf("%s: %v", order.verb, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s %+v: %s", order.verb, order.Order, diff)
		}
	}
}

// On another listener nothing can be ordered, and no answer goes on for ever.
func TestReading(t *testing.T) {
	s, _, _, _ := serve(t, "one")
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/v1/status", 200}, {"HEAD", "/v1/status", 200}, {"GET", "/v1/predict", 200}, {"GET", "/v1/events?relay=one", 200},
		{"GET", "/v1/events?relay=two", 404}, {"GET", "/v1/events?follow=1", 400}, {"GET", "/v1/nothing", 404},
		{"POST", "/v1/switch", 404}, {"POST", "/v1/reload", 404}, {"POST", "/v1/status", 404},
	} {
		w := httptest.NewRecorder()
		s.Reading().ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, nil))
		if w.Code != tt.want {
			t.Errorf("%s %s: status %d, want %d", tt.method, tt.path, w.Code, tt.want)
		}
	}
}

// Another part of the process sees what the socket answers, and gives the same orders.
func TestWithoutSocket(t *testing.T) {
	s, c, _, hosts := serve(t, "one", "two")
	want, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Status(); got.PID != want.PID || len(got.Relays) != 2 || got.Relays[1].Primary != want.Relays[1].Primary {
		t.Errorf("Status() = %+v, and the socket answers %+v", got, want)
	}

	done, err := s.Carry(t.Context(), "switch", Order{Relay: "two", Host: hosts[1], By: "anna", Reason: "disk"})
	if d, ok := done.(SwitchAnswer); err != nil || !ok || d.Relay != "two" || d.Host != hosts[1] || d.Epoch != 2 {
		t.Fatalf("Carry(switch) = %+v, %v", done, err)
	}
	list := s.Elections(2)
	if len(list) != 2 || list[0].Relay != "two" || list[0].New != hosts[1] || list[0].By != "anna" || list[0].Schema != Schema ||
		list[0].At().Before(list[1].At()) || list[1].Event != selector.Start {
		t.Errorf("Elections(2) = %+v", list)
	}
	if all := s.Elections(100); len(all) != 3 {
		t.Errorf("%d elections, want 3", len(all))
	}

	// Orders take no place of elections.
	for range 3 {
		if _, err := s.Carry(t.Context(), "freeze", Order{Relay: "two", By: "anna", Reason: "audit"}); err != nil {
			t.Fatal(err)
		}
	}
	var kinds []string
	for _, e := range s.Elections(2) {
		kinds = append(kinds, string(e.Event)+" "+e.By)
	}
	if diff := cmp.Diff([]string{"freeze anna", "freeze anna", "switchover anna", "start "}, kinds); diff != "" {
		t.Errorf("Elections(2) (-want +got):\n%s", diff)
	}

	var refused failover.RefusedError
	for _, bad := range []struct {
		what string
		o    Order
	}{{"reload", Order{}}, {"switch", Order{Relay: "three", Host: hosts[1]}}, {"switch", Order{Relay: "two"}}, {"switch", Order{Relay: "two", Host: "nowhere:1"}}} {
		if done, err := s.Carry(t.Context(), bad.what, bad.o); !errors.As(err, &refused) {
			t.Errorf("Carry(%s, %+v) = %v, %v, want a refusal", bad.what, bad.o, done, err)
		}
	}
}

func TestReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	wrong := failover.RefusedError{Reason: "understudy.yaml:3: unknown key \"hots\""}
	var last atomic.Pointer[Reload]
	s := NewServer(Config{
		Path: path, Relays: func() []Relay { return nil },
		Probes: func() []Probe { return []Probe{{Name: "elastic", State: "down", Why: "status 503"}} },
		Reload: func(_ context.Context, by string) (Changes, error) {
			if last.Load() == nil {
				last.Store(&Reload{By: by, Error: wrong.Error()})
				return Changes{}, wrong
			}
			did := Changes{Changed: []string{"relay orders: hosts"}, Restart: []string{"control"}}
			last.Store(&Reload{By: by, OK: true, Changes: did})
			return did, nil
		},
		LastReload: last.Load,
	})
	if err := s.Bind(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	defer func() { cancel(); <-ended }()

	c := NewClient(path)
	if now, err := c.Status(ctx); err != nil || now.Reload != nil || len(now.Probes) != 1 || now.Probes[0].Why != "status 503" {
		t.Errorf("status = %+v, %v, want a probe and no reload", now, err)
	}
	if _, err := c.Reload(ctx, Order{}); err == nil || err.Error() != wrong.Reason {
		t.Errorf("reload: %v, want %q", err, wrong.Reason)
	}
	if now, err := c.Status(ctx); err != nil || now.Reload == nil || now.Reload.OK || now.Reload.Error != wrong.Reason || now.Reload.By == "" {
		t.Errorf("status = %+v, %v, want the reload that was refused", now, err)
	}
	var did ReloadAnswer
	err := c.Order(ctx, "reload", Order{}, &did)
	if err != nil || did.PID != os.Getpid() || !slices.Equal(did.Changed, []string{"relay orders: hosts"}) || !slices.Equal(did.Restart, []string{"control"}) {
		t.Errorf("reload = %+v, %v", did, err)
	}
}
