package proctest

import (
	"bufio"
	"context"
	"fmt"
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
	Host    string        // who greeted; empty when lost
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
// deadline is lost.
func StartLoad(tb testing.TB, addr string, perSecond int, deadline time.Duration) *Load {
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
				l.all.Go(func() { l.connect(addr, deadline) })
			}
		}
	})
	tb.Cleanup(func() { l.Stop() })
	return l
}

func (l *Load) connect(addr string, deadline time.Duration) {
	c := Conn{Start: time.Now()}
	c.Host, c.Err = Greeting(addr, deadline)
	c.Latency = time.Since(c.Start)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, c)
}

// late notes by how much a client came too late.
func (l *Load) late(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stall = max(l.stall, d)
}

// Greeting connects to addr and returns the first line that comes.
func Greeting(addr string, deadline time.Duration) (string, error) {
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
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("greeting %q: %w", line, err)
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

// Report is what became of a load.
type Report struct {
	Conns []Conn // by the time of their end

	// Stall is how long the clients themselves stood still at most, because
	// the machine had no time for them. They cannot tell what happened then.
	Stall time.Duration
}

// stalled is a stall that is worth a word.
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
