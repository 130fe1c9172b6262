package proctest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Conn is one client's connection.
type Conn struct {
	Start   time.Time     // of the connect
	Latency time.Duration // from Start until the greeting or the failure
	Host    string        // the host that greeted; empty when lost
	Err     error         // why it was lost; nil otherwise
}

// End is the moment of the greeting or the failure.
func (c Conn) End() time.Time { return c.Start.Add(c.Latency) }

// Load opens new connections at a steady rate. Each reads a greeting and
// closes.
type Load struct {
	stop chan struct{}
	once sync.Once
	all  sync.WaitGroup

	mu    sync.Mutex // guards everything below
	conns []Conn
	stall time.Duration
}

// StartLoad opens perSecond new connections to addr each second until Stop,
// whether earlier ones are served or not. A client that is not greeted within
// deadline is lost. If there are openings, clients take turns to send them first,
// and one whose opening does not come back behind the greeting is lost, too.
func StartLoad(tb testing.TB, addr string, perSecond int, deadline time.Duration, openings ...[]byte) *Load {
	tb.Helper()
	l := &Load{stop: make(chan struct{})}
	l.all.Go(func() {
		begin := time.Now()
		for i := 0; ; i++ {
			// By the clock, not by the ticker: a tick that is late is made up for.
			due := begin.Add(time.Duration(i) * time.Second / time.Duration(perSecond))
			select {
			case <-l.stop:
				return
			case <-time.After(time.Until(due)):
				l.late(time.Since(due))
				var opening []byte
				if len(openings) > 0 {
					opening = openings[i%len(openings)]
				}
				l.all.Go(func() { l.connect(addr, deadline, opening) })
			}
		}
	})
	tb.Cleanup(func() { l.Stop() })
	return l
}

func (l *Load) connect(addr string, deadline time.Duration, opening []byte) {
	c := Conn{Start: time.Now()}
	c.Host, c.Err = converse(addr, deadline, opening)
	c.Latency = time.Since(c.Start)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, c)
}

// late records by how much a client came too late.
func (l *Load) late(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stall = max(l.stall, d)
}

// Greeting connects to addr and returns the first line that comes.
func Greeting(addr string, deadline time.Duration) (string, error) {
	return converse(addr, deadline, nil)
}

// converse connects to addr, sends the opening, and returns the first line that
// comes. The opening has to come back behind it.
func converse(addr string, deadline time.Duration, opening []byte) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	end, _ := ctx.Deadline()
	if err := c.SetDeadline(end); err != nil {
		return "", err
	}
	if len(opening) > 0 {
		if _, err := c.Write(opening); err != nil {
			return "", err
		}
	}
	from := bufio.NewReader(c)
	line, err := from.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("greeting %q: %w", line, err)
	}
	back := make([]byte, len(opening))
	if _, err := io.ReadFull(from, back); err != nil {
		return "", fmt.Errorf("echo of the opening: %w", err)
	}
	if !bytes.Equal(back, opening) {
		return "", fmt.Errorf("%q came back for the opening %q", back, opening)
	}
	return strings.TrimSuffix(line, "\n"), nil
}

// Served is the number of clients that were greeted so far.
func (l *Load) Served() int { return l.count(false) }

// Lost is the number of clients that were not greeted so far.
func (l *Load) Lost() int { return l.count(true) }

func (l *Load) count(lost bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, c := range l.conns {
		if (c.Err != nil) == lost {
			n++
		}
	}
	return n
}

// Stop opens no more connections, waits for those under way and reports.
func (l *Load) Stop() Report {
	l.once.Do(func() { close(l.stop) })
	l.all.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.SortFunc(l.conns, func(a, b Conn) int { return a.End().Compare(b.End()) })
	return Report{Conns: l.conns, Stall: l.stall}
}

// Report is the result of a load.
type Report struct {
	Conns []Conn // by the time of their end

	// Stall is the longest time that the clients themselves did not run, because
	// the machine was busy. They have no observations of that time.
	Stall time.Duration
}

// stalled is the least stall that is reported.
const stalled = 50 * time.Millisecond

// Lost holds the clients that were not greeted.
func (r Report) Lost() []Conn {
	var lost []Conn
	for _, c := range r.Conns {
		if c.Err != nil {
			lost = append(lost, c)
		}
	}
	return lost
}

// Gap is the longest time between two greetings.
func (r Report) Gap() time.Duration {
	var gap time.Duration
	var last time.Time
	for _, c := range r.Conns {
		if c.Err != nil {
			continue
		}
		if !last.IsZero() {
			gap = max(gap, c.End().Sub(last))
		}
		last = c.End()
	}
	return gap
}

// Slowest is the longest time that a client waited for its greeting.
func (r Report) Slowest() time.Duration {
	var slowest time.Duration
	for _, c := range r.Conns {
		if c.Err == nil {
			slowest = max(slowest, c.Latency)
		}
	}
	return slowest
}

// By counts the greetings of each host.
func (r Report) By() map[string]int {
	by := map[string]int{}
	for _, c := range r.Conns {
		if c.Err == nil {
			by[c.Host]++
		}
	}
	return by
}

// String is one line for the test's log, with the first loss.
func (r Report) String() string {
	lost := r.Lost()
	s := fmt.Sprintf("%d clients, %d lost, longest gap %v, slowest %v, served by %v",
		len(r.Conns), len(lost), r.Gap().Round(time.Millisecond), r.Slowest().Round(time.Millisecond), r.By())
	if r.Stall > stalled {
		s += fmt.Sprintf("; the clients themselves stood still for %v", r.Stall.Round(time.Millisecond))
	}
	if len(lost) > 0 {
		s += fmt.Sprintf("; first loss after %v: %v", lost[0].Latency, lost[0].Err)
	}
	return s
}

// AwaitGreeting waits until the host of that name answers at addr; see
// [Until].
func AwaitGreeting(tb testing.TB, addr, host string) {
	tb.Helper()
	Until(tb, host+" answers at "+addr, func() bool {
		who, err := Greeting(addr, 5*time.Second)
		return err == nil && who == host
	})
}
