package admin

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy/control"
	"understudy/failover"
	"understudy/health"
	"understudy/internal/proctest"
	"understudy/relay"
)

// serveRelay serves the page of a process with one relay, "orders", until the test ends.
func serveRelay(t *testing.T) (*control.Server, string) {
	t.Helper()
	r, err := relay.New(relay.Config{Name: "orders", Listen: []string{"127.0.0.1:0"}, Hold: 10 * time.Second, ConnectTimeout: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	passes := func(context.Context, string) health.Result { return health.Result{OK: true} }
	c, err := failover.New(failover.Config{
		Name: "orders", Hosts: []string{"127.0.0.1:1", "127.0.0.1:2"}, Gate: r, Stats: r.Stats,
		Checks: []failover.Check{{Name: "tcp", Run: passes, Interval: time.Second, Timeout: time.Second}},
		Rise:   2, Fall: 3, FastInterval: 50 * time.Millisecond, Hold: 10 * time.Second, MaxBackoff: time.Minute, Stay: 3 * time.Second,
	})
	if err == nil {
		err = r.Bind()
	}
	if err != nil {
		t.Fatal(err)
	}
	s := control.NewServer(control.Config{Relays: func() []control.Relay { return []control.Relay{{Conductor: c, Relay: r}} }})
	p := NewPage(PageConfig{
		Status: s.Status, Elections: s.Elections, Order: s.Carry,
		Changed: func() <-chan struct{} { return nil }, Text: func(control.Status) string { return "" },
	})
	server := httptest.NewServer(p)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 3)
	for _, run := range []func(context.Context) error{r.Run, c.Run, p.Run} {
		go func() { ended <- run(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		for range 3 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		server.Close()
	})
	proctest.Until(t, "the second host could take over", func() bool {
		now := s.Status().Relays[0]
		return now.Primary != "" && now.Hosts[1].State == "up"
	})
	return s, server.URL
}

// What an operator orders by the page is in the record, on the page and in the stream.
func TestOrderIsRecorded(t *testing.T) {
	t.Parallel()
	s, base := serveRelay(t)
	w, _ := watch(t, base+"/v1/stream", "")
	w.batch()
	for _, form := range []url.Values{
		{"verb": {"drill"}, "relay": {"orders"}, "typed": {"orders"}, "by": {"anna"}},
		{"verb": {"drain"}, "relay": {"orders"}, "host": {"127.0.0.1:2"}, "typed": {"127.0.0.1:2"}, "by": {"anna"}, "reason": {"new disk"}},
		{"verb": {"freeze"}, "relay": {"orders"}, "typed": {"orders"}, "by": {"bob"}, "reason": {"audit"}},
	} {
		if status, page := post(t, base, form, nil); status != 200 {
			t.Fatalf("%v: status %d:\n%s", form, status, page)
		}
	}
	want := []string{
		"freeze : freeze by bob (page, from 127.0.0.1): audit",
		"drain 127.0.0.1:2: drain by anna (page, from 127.0.0.1): new disk",
		"drill 127.0.0.1:1: drill by anna (page, from 127.0.0.1)",
	}
	line := func(e control.Event) string { return string(e.Event) + " " + e.Order.Host + ": " + e.Reason }
	var got []string
	for _, e := range s.Elections(10) {
		if e.Order != nil {
			got = append(got, line(e))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the record (-want +got):\n%s", diff)
	}

	_, _, page := get(t, base+"/")
	for _, text := range []string{"drain by anna (page, from 127.0.0.1): new disk", "127.0.0.1:2 would take over from 127.0.0.1:1"} {
		if _, section, _ := strings.Cut(page, `<section id="elections">`); !strings.Contains(section, text) {
			t.Errorf("the page lacks %q", text)
		}
	}

	sent := map[string]bool{}
	proctest.Until(t, "the stream has them", func() bool {
		for _, e := range w.batch() {
			var order control.Event
			if e.name != "order" {
				continue
			}
			if err := json.Unmarshal([]byte(e.data), &order); err != nil || order.Order == nil {
				t.Fatalf("%s: %v", e.data, err)
			}
			sent[line(order)] = true
		}
		return len(sent) == len(want)
	})
	for _, one := range want {
		if !sent[one] {
			t.Errorf("the stream lacks %q", one)
		}
	}
}
