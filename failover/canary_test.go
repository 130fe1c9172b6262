package failover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// The record of a canary, told in a row of attempts: when each began and ended, in
// milliseconds, and g for one that was served, f for one that failed and l for a failure of
// this machine. Slow is what takes more than 200 ms.
func TestCanaryRecord(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, attempts string
		outages        string // began-until, of those that are over
		total          int
		current        string // of the one in progress
	}{
		{"all is well", "0-1g 1000-1001g", "", 0, ""},
		{"one refused", "0-1g 1000-1001f 2000-2001g", "1000-2001", 1001, ""},
		{"refused for long", "0-1f 1000-1001f 2000-2002f 3000-3001g 4000-4001g", "0-3001", 3001, ""},
		{"held", "0-1g 1000-1450g 2000-2001g", "1000-1450", 450, ""},
		{"held, then refused", "1000-9000f 9001-9002f 10000-10001g", "1000-10001", 9001, ""},
		{"refused, then held", "1000-1001f 2000-2700g 3000-3001g", "1000-2700", 1700, ""},
		{"slow for long", "0-300g 1000-1300g 2000-2300g 3000-3001g", "0-2300", 2300, ""},
		{"held, and refused later", "0-300g 1000-1001f 2000-2001g", "0-2001", 2001, ""},
		{"two outages", "0-1f 1000-1001g 2000-2001f 3000-3001g", "0-1001 2000-3001", 2002, ""},
		{"not over", "0-1g 1000-1001f 2000-2001f", "", 0, "1000"},
		{"own failures say nothing", "0-1l 1000-1001f 2000-2001l 3000-3001g 4000-4001l", "1000-3001", 2001, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var r canaryRecord
			start := time.Unix(1000, 0)
			at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
			ms := func(t time.Time) int { return int(t.Sub(start).Milliseconds()) }
			var outages []string
			end := 0
			for a := range strings.FieldsSeq(tt.attempts) {
				var from int
				var what rune
				if _, err := fmt.Sscanf(a, "%d-%d%c", &from, &end, &what); err != nil {
					t.Fatal(err)
				}
				err := map[rune]error{'f': syscall.ECONNREFUSED, 'l': syscall.EMFILE}[what]
				if _, o := r.ended(at(from), at(end), err, 200*time.Millisecond); o != nil {
					outages = append(outages, fmt.Sprintf("%d-%d", ms(o.began), ms(o.until)))
				}
			}
			if got := strings.Join(outages, " "); got != tt.outages || r.total != time.Duration(tt.total)*time.Millisecond {
				t.Errorf("outages %q of %v, want %q of %d ms", got, r.total, tt.outages, tt.total)
			}
			now := r.status(at(end+500), 200*time.Millisecond)
			current := ""
			if !now.Since.IsZero() {
				current = fmt.Sprint(ms(now.Since))
			}
			if current != tt.current {
				t.Errorf("in progress since %q, want %q", current, tt.current)
			}
			if tt.current != "" && r.current.length(at(end+500), time.Time{}) != at(end+500).Sub(now.Since) {
				t.Errorf("an outage in progress has %v", r.current.length(at(end+500), time.Time{}))
			}
		})
	}
}

// The time of all outages never decreases, whatever is asked while an attempt is under way.
func TestCanaryOutageGrows(t *testing.T) {
	t.Parallel()
	const slow = 200 * time.Millisecond
	var r canaryRecord
	start := time.Unix(1000, 0)
	last, now := time.Duration(0), start
	look := func(until time.Time) {
		for ; now.Before(until); now = now.Add(10 * time.Millisecond) {
			total := r.total + r.current.length(now, r.late(now, slow))
			if total < last {
				t.Fatalf("after %v: %v, and it was %v before", now.Sub(start), total, last)
			}
			last = total
		}
	}
	for k, a := range []struct {
		took int // milliseconds
		err  error
	}{{1, nil}, {450, nil}, {1, nil}, {300, nil}, {1, syscall.ECONNREFUSED}, {900, nil}, {2, nil}, {1, syscall.ECONNREFUSED}, {1, nil}, {800, syscall.ECONNRESET}, {1, nil}} {
		began := start.Add(time.Duration(k) * time.Second)
		look(began)
		r.running = began
		end := began.Add(time.Duration(a.took) * time.Millisecond)
		look(end)
		r.ended(began, end, a.err, slow)
	}
	look(now.Add(time.Second))
	if last != r.total || last == 0 {
		t.Errorf("%v, want %v", last, r.total)
	}
}

// Canaries of several relays are spread over the interval, and each keeps its phase.
func TestCanaryTurns(t *testing.T) {
	t.Parallel()
	base := time.Unix(1000, 0)
	const every = time.Second
	for _, number := range []uint64{0, 1, 999_999_999, 1_000_000_000, 1<<64 - 1} {
		now, phase := base, time.Duration(-1)
		for range 4 {
			d := untilTurn(now, base, every, number)
			if d <= 0 || d > every {
				t.Fatalf("number %d: the next turn in %v", number, d)
			}
			now = now.Add(d)
			if p := now.Sub(base) % every; phase >= 0 && p != phase {
				t.Errorf("number %d: a turn at %v, and one at %v of the interval", number, phase, p)
			} else {
				phase = p
			}
			now = now.Add(300 * time.Millisecond) // an attempt that is slow
		}
	}
}

// line is a relay that a canary connects to, over pipes.
type line struct {
	mu     sync.Mutex // guards everything below
	refuse error
	held   []*lineConn // that wait for a host
	shut   bool
	open   int // connections that the host has
	most   int
	host   func(net.Conn)

	tries bool // it makes attempts that no goroutine waits for
}

type lineConn struct {
	net.Conn
	far    net.Conn
	served chan struct{}
}

func (c *lineConn) Served() <-chan struct{} { return c.served }

func (l *line) dial(context.Context) (CanaryConn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		return nil, l.refuse
	}
	c := &lineConn{served: make(chan struct{})}
	c.Conn, c.far = net.Pipe()
	if l.shut {
		l.held = append(l.held, c)
	} else {
		l.serveLocked(c)
	}
	return c, nil
}

func (l *line) serveLocked(c *lineConn) {
	l.open++
	l.most = max(l.most, l.open)
	close(c.served)
	host := l.host
	go func() {
		defer c.far.Close()
		if host != nil {
			host(c.far)
		} else {
			io.Copy(io.Discard, c.far)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.open--
	}()
}

func (l *line) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

// try is [Config.TryCanary]. The first attempt is not made.
func (l *line) try(ctx context.Context, done func(error)) bool {
	l.mu.Lock()
	first := l.most == 0
	l.mu.Unlock()
	if first {
		return false
	}
	c, err := l.dial(ctx)
	if err != nil {
		done(err)
		return true
	}
	go func() {
		defer c.Close()
		select {
		case <-c.Served():
			done(nil)
		case <-ctx.Done():
		}
	}()
	return true
}

// inBothWays runs a test with a canary whose attempts a goroutine waits for, and with one
// where none does.
func inBothWays(t *testing.T, test func(t *testing.T, l *line)) {
	t.Helper()
	for _, tries := range []bool{false, true} {
		t.Run(fmt.Sprintf("tries=%t", tries), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, &line{tries: tries}) })
		})
	}
}

// hold shuts the gate, serve opens it.
func (l *line) hold() { l.set(func() { l.shut = true }) }

func (l *line) serve() {
	l.set(func() {
		l.shut, l.refuse = false, nil
		for _, c := range l.held {
			l.serveLocked(c)
		}
		l.held = nil
	})
}

// withCanary is a configuration with a canary of l.
func withCanary(l *line, talk func(context.Context, net.Conn) error) Config {
	cfg := Config{
		Hosts: []string{"a", "b"}, DialCanary: l.dial,
		Canary: Canary{Every: time.Second, Slow: 200 * time.Millisecond, Timeout: time.Second, Talk: talk},
	}
	if l.tries {
		cfg.TryCanary = l.try
	}
	return cfg
}

func TestCanaryMeasures(t *testing.T) {
	t.Parallel()
	inBothWays(t, func(t *testing.T, l *line) { //nolint:thelper // it is the test
		log := conduct(t, newStage(), withCanary(l, nil), func(c *Conductor) {
			time.Sleep(5 * time.Second)
			if m := c.Measure().Canary; m.Attempts[CanaryGood] < 4 || m.Outage != 0 || m.Took.Count() != m.Attempts[CanaryGood] {
				t.Errorf("%+v, want good attempts only", m)
			}
			// Clients wait for 3.5 s.
			l.hold()
			begin := time.Now()
			time.Sleep(2 * time.Second)
			if s, _ := c.Canary(); s.Since.IsZero() || s.Since.Before(begin) || s.Since.Sub(begin) > time.Second {
				t.Errorf("after two seconds without service: %+v, and it began at %v", s, begin)
			}
			if why := c.Status().Why(time.Now()); !strings.Contains(why, "its canary has not been served for") {
				t.Errorf("why says %q", why)
			}
			time.Sleep(1500 * time.Millisecond)
			l.serve()
			time.Sleep(2 * time.Second)
			s, _ := c.Canary()
			if s.Outage > 3500*time.Millisecond || s.Outage < 2500*time.Millisecond || !s.Since.IsZero() {
				t.Errorf("clients waited for 3.5s, the canary for %v (%+v)", s.Outage, s)
			}
			// Then they are refused, for 4.2 s.
			l.set(func() { l.refuse = syscall.ECONNREFUSED })
			time.Sleep(4200 * time.Millisecond)
			if text := c.Status().CanaryText(time.Now()); !strings.Contains(text, "refused") {
				t.Errorf("refused, and the status says %q", text)
			}
			l.serve()
			time.Sleep(2 * time.Second)
			second, _ := c.Canary()
			if d := second.Outage - 4200*time.Millisecond; d.Abs() > time.Second {
				t.Errorf("clients were refused for 4.2s, the canary for %v", second.Outage)
			}
			m := c.Measure().Canary
			if m.Outage != s.Outage+second.Outage || m.Attempts[CanarySlow] != 1 || m.Attempts[CanaryFailed] < 4 {
				t.Errorf("%+v, want the sum of %v and %v", m, s.Outage, second.Outage)
			}
			// This machine's own failures are none of the service.
			l.set(func() { l.refuse = os.NewSyscallError("socket", syscall.EMFILE) })
			time.Sleep(2 * time.Second)
			if now := c.Measure().Canary; now.Outage != m.Outage || now.Attempts[CanaryLocal] == 0 {
				t.Errorf("without descriptors: %+v, and before %+v", now, m)
			}
			l.serve()
		})
		if l.most != 1 {
			t.Errorf("the host had %d canaries at a time", l.most)
		}
		for _, want := range []string{"the canary is not served: relay=orders primary=a error=\"connection refused\"", "is served again"} {
			if !strings.Contains(log, want) {
				t.Errorf("the log lacks %q:\n%s", want, log)
			}
		}
	})
}

// A host that accepts connections and does not answer has the timeout for it, from when it
// has accepted.
func TestCanaryTalks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &line{host: func(c net.Conn) { io.WriteString(c, "+PONG"); io.Copy(io.Discard, c) }}
		talk := func(_ context.Context, c net.Conn) error {
			b := make([]byte, 5)
			if _, err := io.ReadFull(c, b); err != nil || string(b) != "+PONG" {
				return fmt.Errorf("%q: %w", b, errors.Join(err, errors.New("no pong")))
			}
			return nil
		}
		conduct(t, newStage(), withCanary(l, talk), func(c *Conductor) {
			time.Sleep(3 * time.Second)
			if m := c.Measure().Canary; m.Attempts[CanaryGood] < 2 || m.Attempts[CanaryFailed] != 0 {
				t.Fatalf("%+v, want good attempts only", m)
			}
			l.hold()
			time.Sleep(8 * time.Second) // longer than the timeout: it waits, as clients do
			if m := c.Measure().Canary; m.Attempts[CanaryFailed] != 0 {
				t.Errorf("%+v while clients wait", m)
			}
			l.serve()
			time.Sleep(2 * time.Second)
			l.set(func() { l.host = func(c net.Conn) { io.Copy(io.Discard, c) } })
			time.Sleep(5 * time.Second)
			m := c.Measure().Canary
			if m.Attempts[CanaryFailed] < 2 || m.Outage < 10*time.Second {
				t.Errorf("a host that hangs: %+v", m)
			}
		})
	})
}

// The record of an election has the outage that the canary measured, and is complete with
// it.
func TestCanaryInIncident(t *testing.T) {
	t.Parallel()
	inBothWays(t, func(t *testing.T, l *line) { //nolint:thelper // it is the test
		s := newStage()
		conduct(t, s, withCanary(l, nil), func(c *Conductor) {
			time.Sleep(3 * time.Second)
			c.FirstByte(1)
			time.Sleep(2 * time.Second)
			all, _ := c.Incidents()
			if first := all[0]; !first.Done || first.Canary == nil || first.Canary.Attempts != 0 || first.Canary.Seconds != 0 {
				t.Errorf("the start: %+v with canary %+v, want one without an outage", first, first.Canary)
			}
			l.hold()
			down := time.Now()
			s.set(func() { s.refusing["a"] = true })
			for c.Snapshot().Primary != "b" {
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(3 * time.Second) // as if the relay had opened later, so that a turn is in it
			l.serve()
			outage := time.Since(down)
			c.FirstByte(2)
			time.Sleep(100 * time.Millisecond)
			all, _ = c.Incidents()
			if all[1].Done {
				t.Error("the record is complete before the canary was good again")
			}
			time.Sleep(2 * time.Second)
			all, _ = c.Incidents()
			last := all[1]
			if !last.Done || last.Canary == nil {
				t.Fatalf("the failover: %+v", last)
			}
			if d := time.Duration(last.Canary.Seconds*float64(time.Second)) - outage; d.Abs() > time.Second || last.Canary.Attempts != 1 {
				t.Errorf("the canary saw %+v of an outage of %v", last.Canary, outage)
			}
		})
	})
}

// New settings take effect, and without a canary there is none.
func TestCanaryReconfigured(t *testing.T) {
	t.Parallel()
	inBothWays(t, func(t *testing.T, l *line) { //nolint:thelper // it is the test
		s := newStage()
		dials := func() uint64 {
			l.mu.Lock()
			defer l.mu.Unlock()
			return uint64(l.most)
		}
		cfg := withCanary(l, nil)
		cfg.Canary = Canary{}
		cfg.Checks = []Check{{Name: "tcp", Run: s.connect}}
		conduct(t, s, cfg, func(c *Conductor) {
			time.Sleep(3 * time.Second)
			if _, ok := c.Canary(); ok || c.Measure().Canary != nil || c.Status().Canary != nil || dials() != 0 {
				t.Error("there is a canary, and none was configured")
			}
			change := func(k Canary) {
				cfg.Canary = k
				if err := c.Reconfigure(t.Context(), complete(cfg)); err != nil {
					t.Fatal(err)
				}
			}
			change(Canary{Every: time.Hour, Slow: time.Second, Timeout: time.Second})
			change(Canary{Every: time.Second, Slow: time.Second, Timeout: time.Second})
			time.Sleep(3 * time.Second)
			if m := c.Measure().Canary; m.Attempts[CanaryGood] < 2 {
				t.Errorf("%+v three seconds after the interval became one second", m)
			}
			l.hold()
			time.Sleep(3 * time.Second)
			change(Canary{}) // ends the one that waits
			time.Sleep(time.Second)
			if _, ok := c.Canary(); ok {
				t.Error("there still is a canary")
			}
			l.serve()
			change(Canary{Every: time.Second, Slow: time.Second, Timeout: time.Second})
			time.Sleep(3 * time.Second)
			if k, _ := c.Canary(); k.Last != CanaryGood || !k.Since.IsZero() {
				t.Errorf("%+v, and it was switched on again", k)
			}
			if err := c.Accepts(Config{Hosts: cfg.Hosts, Checks: cfg.Checks, Canary: Canary{Every: time.Second}}); err == nil || !strings.Contains(err.Error(), "canary") {
				t.Errorf("a canary without times: %v", err)
			}
		})
	})
}
