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
)

const (
	perSecond = 200              // new clients
	patience  = 10 * time.Second // a client that was not answered by then is lost
	sessions  = 10               // clients that stay
	pace      = 100 * time.Millisecond
)

// generator makes the load of a trial.
type generator struct {
	target string
	cancel context.CancelFunc // ends the sessions
	stop   chan struct{}      // closed when no more clients come
	all    sync.WaitGroup     // clients that come and go
	stay   sync.WaitGroup     // sessions

	mu   sync.Mutex // guards load
	load load
}

// startLoad lets clients come to target until finish is called or ctx ends.
func startLoad(ctx context.Context, target string) *generator {
	staying, cancel := context.WithCancel(ctx)
	g := &generator{target: target, cancel: cancel, stop: make(chan struct{})}
	g.load.begin = now()
	for i := range sessions {
		g.stay.Go(func() {
			pause(staying, time.Duration(i)*pace/sessions) // not all at once
			g.session(staying)
		})
	}
	g.all.Go(func() { g.arrive(ctx) })
	return g
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

// finish lets nobody come any more, waits for those who are there, ends the
// sessions and says what became of all.
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

// visit is one client: it is greeted, asks, is answered and goes.
func (g *generator) visit(ctx context.Context, number int) {
	c := client{start: now()}
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c.err = talk(within, g.target, func(t *conversation) error {
		c.host = t.host
		a, err := t.ask("client " + strconv.Itoa(number))
		if err == nil {
			c.answers = []answer{a}
		}
		return err
	})
	c.end = now()
	if ctx.Err() != nil {
		return // Ctrl-C: nobody's fault
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.load.clients = append(g.load.clients, c)
}

// session is a client that stays and asks again and again, until its
// connection ends or the load does.
func (g *generator) session(ctx context.Context) {
	c := client{start: now()}
	err := talk(ctx, g.target, func(t *conversation) error {
		c.host = t.host
		for i := 0; ctx.Err() == nil; i++ {
			a, err := t.ask("session " + strconv.Itoa(i))
			if err != nil {
				return err
			}
			c.answers = append(c.answers, a)
			pause(ctx, pace)
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
}

// talk connects to target, waits for the greeting and lets do speak. All of it
// ends with ctx.
func talk(ctx context.Context, target string, do func(*conversation) error) error {
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
	greeting, err := t.lines.ReadString('\n')
	if err != nil {
		return err
	}
	t.host = strings.TrimSuffix(greeting, "\n")
	return do(t)
}

// ask sends a line and reads the answer to it.
func (t *conversation) ask(line string) (answer, error) {
	if _, err := fmt.Fprintln(t.conn, line); err != nil {
		return answer{}, err
	}
	text, err := t.lines.ReadString('\n')
	if err != nil {
		return answer{}, err
	}
	stamp, echo, _ := strings.Cut(strings.TrimSuffix(text, "\n"), " ")
	at, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || echo != line {
		return answer{}, fmt.Errorf("somebody else's answer: %q to %q", text, line)
	}
	return answer{host: t.host, at: time.Duration(at)}, nil
}
