//go:build linux

package e2e

import (
	"encoding/json"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"understudy/control"
	"understudy/internal/proctest"
)

// canaryEvery is the interval of the canaries in these tests.
const canaryEvery = 500 * time.Millisecond

// canaryValue returns the value of a metric of the program with an admin listener there.
func canaryValue(t *testing.T, admin, series string) float64 {
	t.Helper()
	code, text := askPage(t, "http://"+admin+"/metrics", "")
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("status %d, no series %s in\n%s", code, series, text)
	return 0
}

// electionWithCanary returns the last entry of the record, and how many there are.
func electionWithCanary(t *testing.T, admin string) (last control.Event, n int) {
	t.Helper()
	code, text := askPage(t, "http://"+admin+"/v1/events", "")
	var all []control.Event
	if err := json.Unmarshal([]byte(text), &all); err != nil || code != http.StatusOK || len(all) == 0 {
		t.Fatalf("events: %d, %v\n%s", code, err, text)
	}
	return all[len(all)-1], len(all)
}

// The primary is killed, or stops while its kernel goes on accepting. The outage that the
// canary measures is the one that clients saw, give or take one interval.
func TestCanaryMeasuresWhatClientsSee(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		fail func(h *proctest.Host)
	}{
		{"killed", (*proctest.Host).Kill},
		{"stopped", (*proctest.Host).Stop},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, admin := newShow(t), freeAddr(t)
			s.begin("--admin", admin, "--canary", canaryEvery.String(), "--canary-send", `canary\n`, "--canary-expect", `canary\n`,
				"--check-host", script(t, readingCheck),
				// So that an interval is short beside the outage.
				"--on-failover", script(t, recording(s.record)+`[ "$UNDERSTUDY_EPOCH" = 1 ] || sleep 2`+"\n"))
			relay := `{relay="` + s.relay() + `"}`
			s.Until("the canary is served", func() bool {
				return canaryValue(t, admin, `understudy_canary_attempts_total{outcome="good",relay="`+s.relay()+`"}`) >= 2
			})
			clients := s.load()
			before := canaryValue(t, admin, "understudy_canary_outage_seconds_total"+relay)
			tt.fail(s.a)
			failed := time.Now()
			s.awaitGreeting("b")
			s.Until("the election is recorded", func() bool { i, n := electionWithCanary(t, admin); return n == 2 && i.Done })
			report := finish(s.Understudy, clients)
			i, _ := electionWithCanary(t, admin)
			if i.Canary == nil {
				t.Fatalf("the record has nothing of the canary: %+v", i)
			}
			from, until := outageOf(report)
			outage := until.Sub(from)
			saw := time.Duration(i.Canary.Seconds * float64(time.Second))
			t.Logf("%v; clients waited or were lost for %v; the canary saw an outage of %v, %d attempts, predicted %vs, measured %vs",
				report, outage, saw, i.Canary.Attempts, i.BoundSeconds, i.TotalSeconds)
			// Both were measured on the same machine, which may have stood still.
			if d := saw - outage; d.Abs() > canaryEvery+outage/4+report.Stall {
				t.Errorf("clients waited or were lost for %v, the canary saw an outage of %v", outage, saw)
			}
			if d := i.Canary.Began.Sub(from); d.Abs() > canaryEvery+outage/4+report.Stall {
				t.Errorf("the outage of clients began at %v, that of the canary %v later", from, d)
			}
			if grown := canaryValue(t, admin, "understudy_canary_outage_seconds_total"+relay) - before; grown < i.Canary.Seconds-0.001 {
				t.Errorf("the metric has grown by %vs, the record has %vs", grown, i.Canary.Seconds)
			}
			wantNoLoss(t, report, failed, "b")
			if tt.name == "stopped" {
				s.a.Continue()
			}
			wantLog(t, s.Understudy, countLog(s.Understudy, "the canary was not served"), "the canary was not served", "for=")
			s.end()
		})
	}
}

// outageOf returns from when until when clients waited for longer than the canary may, or
// were lost.
func outageOf(r proctest.Report) (from, until time.Time) {
	for _, c := range r.Conns {
		if c.Err == nil && c.Latency <= 200*time.Millisecond {
			continue
		}
		if from.IsZero() || c.Start.Before(from) {
			from = c.Start
		}
		if c.End().After(until) {
			until = c.End()
		}
	}
	return from, until
}

// canaryHost is a host in this process that answers each PING with the same, and counts
// the connections that it has at a time.
type canaryHost struct {
	addr string
	hang atomic.Bool // it answers nobody any more

	mu         sync.Mutex // guards everything below
	listener   net.Listener
	conns      map[net.Conn]bool
	seen, most int
}

func newCanaryHost(t *testing.T) *canaryHost {
	t.Helper()
	h := &canaryHost{listener: listen(t), conns: map[net.Conn]bool{}}
	h.addr = h.listener.Addr().String()
	go h.accept(h.listener)
	return h
}

func (h *canaryHost) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		h.mu.Lock()
		h.seen++
		h.conns[conn] = true
		h.most = max(h.most, len(h.conns))
		h.mu.Unlock()
		go func() {
			buf := make([]byte, 64)
			for {
				n, err := conn.Read(buf)
				if err != nil {
					break
				}
				if !h.hang.Load() {
					conn.Write(buf[:n])
				}
			}
			h.mu.Lock()
			delete(h.conns, conn)
			h.mu.Unlock()
			conn.Close()
		}()
	}
}

// die closes the listener and resets every connection.
func (h *canaryHost) die() {
	h.listener.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	for conn := range h.conns {
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
}

func (h *canaryHost) counts() (seen, most int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.seen, h.most
}

// Whatever happens to a canary, it is in no count, no line of the connection log and no
// suspicion; and its host has one at a time.
func TestCanaryIsNoClient(t *testing.T) {
	t.Parallel()
	a, b := newCanaryHost(t), newCanaryHost(t)
	admin, addr := freeAddr(t), freeAddr(t)
	u := start(t, "--bind", addr, "--hosts", a.addr+","+b.addr, "--admin", admin, "--connection-log", "--check-tcp", "auto",
		"--timeout", "300ms", "--canary", "100ms", "--canary-send", `PING\r\n`, "--canary-expect", "PING")
	status := func() control.RelayStatus {
		t.Helper()
		_, text := askPage(t, "http://"+admin+"/v1/status", "")
		var s control.Status
		if err := json.Unmarshal([]byte(text), &s); err != nil || len(s.Relays) != 1 {
			t.Fatalf("status: %v\n%s", err, text)
		}
		return s.Relays[0]
	}
	served := func(by *canaryHost) func() bool { // several times
		first, _ := by.counts()
		return func() bool {
			seen, _ := by.counts()
			k := status().Canary
			return seen >= first+3 && k.Result == "good" && k.OutageAt.IsZero()
		}
	}
	u.Until("the admin listener is there", func() bool {
		conn, err := net.Dial("tcp", admin)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	u.Until("the canary is served by a", served(a))
	// The primary hangs: checks pass, and the canary alone notices.
	a.hang.Store(true)
	u.Until("the canary is not served", func() bool {
		s := status()
		return s.Canary.Result == "failed" && strings.Contains(s.Why, "canary has not been served") && len(s.Warnings) == 1
	})
	time.Sleep(time.Second) // several attempts fail
	a.hang.Store(false)
	u.Until("the canary is served by a again", served(a))
	if n := countLog(u, "suspected"); n != 0 {
		t.Errorf("%d suspicions because of a canary", n)
	}
	a.die()
	u.Until("the canary is served by b", served(b))
	for name, h := range map[string]*canaryHost{"a": a, "b": b} {
		if seen, most := h.counts(); most != 1 || seen < 3 {
			t.Errorf("host %s saw %d canaries, %d at a time, want 1", name, seen, most)
		}
	}
	if c := status().Clients; c != (control.Clients{}) {
		t.Errorf("clients %+v, and there were none", c)
	}
	for _, h := range status().Hosts {
		if h.Sessions+h.Sent+h.Received != 0 {
			t.Errorf("host %+v, and it had no clients", h)
		}
	}
	i, _ := electionWithCanary(t, admin)
	if i.ClientsHeld != 0 || i.ClientsLost != 0 || i.Fence == nil || i.Fence.Reset+i.Fence.Moved+i.Fence.Finished+i.Fence.Kept != 0 {
		t.Errorf("the election counts clients: %+v, fence %+v", i.Incident, i.Fence)
	}
	u.Terminate()
	n := counts(t, u)
	if n["accepted"]+n["denied"]+n["replayed"] != 0 {
		t.Errorf("counts at the end: %v", n)
	}
	if n := countLog(u, "connection: client="); n != 0 {
		t.Errorf("%d lines of the connection log", n)
	}
}
