//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"understudy/bench/program"
)

const (
	perSecond     = 200              // new clients
	answerTimeout = 10 * time.Second // a client that was not answered by then is lost
	sessions      = 10               // clients that stay
	pace          = 100 * time.Millisecond

	pooled    = 20                     // connections of the pools
	poolPace  = 20 * time.Millisecond  // between an answer and the next request
	poolRetry = 100 * time.Millisecond // between connects that were not served
)

// generator makes the load of a trial.
type generator struct {
	target string
	says   []opening          // clients take turns to say these first; empty when the host speaks first
	cancel context.CancelFunc // ends the sessions
	stop   chan struct{}      // closed when no more clients come
	all    sync.WaitGroup     // clients that come and go
	stay   sync.WaitGroup     // sessions

	mu   sync.Mutex // guards load
	load load
}

// startLoad lets clients come to target until finish is called or ctx ends.
func startLoad(ctx context.Context, target string) *generator { return startClients(ctx, target, nil) }

// startClients is startLoad with clients that say something first.
func startClients(ctx context.Context, target string, says []opening) *generator {
	staying, cancel := context.WithCancel(ctx)
	g := &generator{target: target, says: says, cancel: cancel, stop: make(chan struct{})}
	g.load.begin = now()
	for i := range sessions {
		g.stay.Go(func() {
			program.Pause(staying, time.Duration(i)*pace/sessions) // not all at once
			g.session(staying)
		})
	}
	g.all.Go(func() { g.arrive(ctx) })
	return g
}

// startPools makes the load of pools: connections that are kept and used all the
// time, and no others. A connection that ends is replaced at once.
func startPools(ctx context.Context, target string) *generator {
	g := &generator{target: target, cancel: func() {}, stop: make(chan struct{})}
	g.load.begin = now()
	for i := range pooled {
		g.all.Go(func() {
			program.Pause(ctx, time.Duration(i)*poolPace/pooled) // not all at once
			for !g.stopped(ctx) {
				if g.member(ctx) == 0 {
					program.Pause(ctx, poolRetry)
				}
			}
		})
	}
	return g
}

// stopped reports whether no more clients or requests come.
func (g *generator) stopped(ctx context.Context) bool {
	select {
	case <-g.stop:
		return true
	default:
		return ctx.Err() != nil
	}
}

// member uses one connection of a pool until it ends or the load does, and
// returns the number of requests that were answered. Each request is counted as
// a client is; the time of the first contains the connect.
func (g *generator) member(ctx context.Context) (answered int) {
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	limit := time.AfterFunc(answerTimeout, cancel)
	defer limit.Stop()
	c := client{start: now()}
	c.err = talk(within, g.target, opening{}, func(t *conversation) error {
		for !g.stopped(ctx) {
			c.host = t.host
			a, err := t.exchange("request " + strconv.Itoa(answered))
			if err != nil {
				return err
			}
			c.answers = []answer{a}
			g.count(ctx, c)
			answered++
			program.Pause(ctx, poolPace)
			limit.Reset(answerTimeout)
			c = client{start: now()}
		}
		return nil
	})
	if c.err != nil {
		g.count(ctx, c)
	}
	return answered
}

// count adds a client that has ended.
func (g *generator) count(ctx context.Context, c client) {
	c.end = now()
	if ctx.Err() != nil {
		return // Ctrl-C: not counted as lost
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.load.clients = append(g.load.clients, c)
}

// arrive lets clients come by the clock: what is late is made up for.
func (g *generator) arrive(ctx context.Context) {
	begin := time.Now()
	for i := 0; ; i++ {
		due := begin.Add(time.Duration(i) * time.Second / perSecond)
		select {
		case <-ctx.Done():
			return
		case <-g.stop:
			return
		case <-time.After(time.Until(due)):
		}
		late := time.Since(due)
		g.mu.Lock()
		g.load.late = max(g.load.late, late)
		g.mu.Unlock()
		g.all.Go(func() { g.visit(ctx, i) })
	}
}

// finish stops new clients, waits for those under way, ends the sessions and
// returns the load.
func (g *generator) finish() load {
	g.mu.Lock()
	g.load.end = now()
	g.mu.Unlock()
	close(g.stop)
	g.all.Wait()
	g.cancel()
	g.stay.Wait()
	return g.load
}

// served is the number of clients that were served so far, by each host, and
// the number of those that were lost.
func (g *generator) served() (by map[string]int, lost int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	by = map[string]int{}
	for _, c := range g.load.clients {
		if c.err != nil {
			lost++
		} else {
			by[c.host]++
		}
	}
	return by, lost
}

// visit is one client: it is greeted, sends a line, reads the answer and
// closes.
func (g *generator) visit(ctx context.Context, number int) {
	says := g.opening(number)
	c := client{start: now(), opening: says.name}
	within, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	c.err = talk(within, g.target, says, func(t *conversation) error {
		c.host = t.host
		if says.name != "" {
			c.answers = []answer{t.opened}
			return nil
		}
		a, err := t.exchange("client " + strconv.Itoa(number))
		if err == nil {
			c.answers = []answer{a}
		}
		return err
	})
	g.count(ctx, c)
}

// session is a client that stays and sends line after line, until its
// connection ends or the load does.
func (g *generator) session(ctx context.Context) {
	c := client{start: now()}
	err := talk(ctx, g.target, g.opening(0), func(t *conversation) error {
		c.host = t.host
		for i := 0; ctx.Err() == nil; i++ {
			a, err := t.exchange("session " + strconv.Itoa(i))
			if err != nil {
				return err
			}
			c.answers = append(c.answers, a)
			program.Pause(ctx, pace)
		}
		return nil
	})
	if ctx.Err() == nil {
		c.err = err
	}
	c.end = now()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.load.sessions = append(g.load.sessions, c)
}

// conversation is a connection to a host that has greeted.
type conversation struct {
	conn  net.Conn
	lines *bufio.Reader
	host  string

	opened answer // to the opening, if there was one
}

// talk connects to target, says the opening if there is one, waits for the
// greeting and calls do. All of it ends with ctx.
func talk(ctx context.Context, target string, says opening, do func(*conversation) error) error {
	var dialer net.Dialer
	dialer.SetMultipathTCP(false)
	conn, err := dialer.DialContext(ctx, "tcp4", target)
	if err != nil {
		return err
	}
	defer conn.Close()
	unblock := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer unblock()
	t := &conversation{conn: conn, lines: bufio.NewReader(conn)}
	if _, err := conn.Write(says.bytes); err != nil {
		return err
	}
	greeting, err := t.lines.ReadString('\n')
	if err != nil {
		return err
	}
	t.host = strings.TrimSuffix(greeting, "\n")
	if len(says.bytes) > 0 {
		if t.opened, err = t.answer(openingAnswer); err != nil {
			return err
		}
	}
	return do(t)
}

// exchange sends a line and reads the answer to it.
func (t *conversation) exchange(line string) (answer, error) {
	if _, err := fmt.Fprintln(t.conn, line); err != nil {
		return answer{}, err
	}
	return t.answer(line)
}

// answer reads the answer to a line.
func (t *conversation) answer(line string) (answer, error) {
	text, err := t.lines.ReadString('\n')
	if err != nil {
		return answer{}, err
	}
	stamp, echo, _ := strings.Cut(strings.TrimSuffix(text, "\n"), " ")
	at, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || echo != line {
		return answer{}, fmt.Errorf("another client's answer: %q to %q", text, line)
	}
	return answer{host: t.host, at: time.Duration(at)}, nil
}
