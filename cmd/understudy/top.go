package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy/config"
	"understudy/control"
	"understudy/internal/screen"
)

type topOptions struct {
	relayOptions
	Every string `long:"every" value-name:"D" description:"time between two updates, 1s if it is left out"`
}

// leastEvery is the shortest time between two updates of top.
const leastEvery = 100 * time.Millisecond

// stopTime is the time for which top waits to be stopped, and to go on.
const stopTime = 200 * time.Millisecond

// showTop is top: a page of everything that runs, and the keys to change it.
func showTop(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*topOptions)
	every := watchEvery
	if o.Every != "" {
		d, err := config.ParseDuration(o.Every)
		if err != nil || d < leastEvery {
			return l.usage(stderr, fmt.Errorf("--every: %q is not a duration of %v or longer", o.Every, leastEvery))
		}
		every = d
	}
	return l.connect(ctx, stderr, func(ctx context.Context, path string, found []control.Socket) error {
		all, err := o.look(ctx, path, found)
		if err != nil {
			return err
		}
		t := newTerminal(stdout)
		if t.width == 0 {
			return errors.New("standard output is no terminal: `understudy status --watch` writes to anything")
		}
		s, err := screen.Open(os.Getenv("TERM"), t.colour)
		if err != nil {
			return fmt.Errorf("%w: `understudy status --watch` needs less", err)
		}
		defer s.Close() // also after a panic
		v := &topView{options: o.relayOptions, control: strings.Join(l.flags["control"], "")}
		v.update(all, nil, time.Now())
		run := topRun{screen: s, view: v, do: make(chan func()), look: func(ctx context.Context) ([]process, error) {
			found := found
			if path == "" {
				found = control.Find() // processes come and go
			}
			return o.look(ctx, path, found)
		}}
		return run.run(ctx, every)
	})
}

// topRun is a running top. Everything that changes its view is a function that comes
// through do, so that one goroutine has it.
type topRun struct {
	screen *screen.Screen
	view   *topView
	look   func(ctx context.Context) ([]process, error)
	do     chan func()
	wg     sync.WaitGroup

	asked atomic.Uint64 // number of the last request for a status
	shown uint64        // number of the one whose answer the view has
}

// run shows the view until ctx ends or the operator has enough. Nothing that it has
// started is left then.
func (r *topRun) run(ctx context.Context, every time.Duration) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGWINCH, syscall.SIGTSTP, syscall.SIGCONT, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	ctx, stop := context.WithCancel(ctx)
	defer r.wg.Wait()
	defer r.screen.Close() // ends the goroutine that reads keys
	defer stop()
	r.start(func() {
		defer stop() // the terminal has gone
		_ = r.screen.Keys(func(k screen.Key) { r.send(ctx, func() { r.view.key(k) }) })
	})
	r.start(func() { r.poll(ctx, every) })
	clock := time.NewTicker(time.Second) // ages grow while no process answers
	defer clock.Stop()
	for !r.view.quit {
		r.view.width, r.view.height = r.screen.Size()
		if err := r.screen.Draw(r.view.lines(time.Now()), r.view.width); err != nil {
			return nil //nolint:nilerr // there is nobody left to tell
		}
		select {
		case <-ctx.Done():
			return nil
		case s := <-signals:
			if err := r.signal(s, signals); err != nil {
				return err
			}
		case f := <-r.do:
			f()
		case <-clock.C:
		}
		r.act(ctx)
	}
	return nil
}

// start runs f in a goroutine. If f panics, the terminal is restored first.
func (r *topRun) start(f func()) {
	r.wg.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				r.screen.Close()
				panic(p)
			}
		}()
		f()
	})
}

// send has f called by the goroutine that has the view.
func (r *topRun) send(ctx context.Context, f func()) {
	select {
	case r.do <- f:
	case <-ctx.Done():
	}
}

// poll requests the status of all processes until ctx ends.
func (r *topRun) poll(ctx context.Context, every time.Duration) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
		r.update(ctx, r.view.update)
	}
}

// update requests the status of all processes and hands it to show, unless the view has
// the answer to a later request by then.
func (r *topRun) update(ctx context.Context, show func([]process, error, time.Time)) {
	n := r.asked.Add(1)
	all, err := r.look(ctx)
	r.send(ctx, func() {
		if n > r.shown {
			r.shown = n
			show(all, err, time.Now())
		}
	})
}

// signal handles a signal.
func (r *topRun) signal(s os.Signal, signals chan os.Signal) error {
	switch s {
	case syscall.SIGHUP, syscall.SIGQUIT:
		r.view.quit = true
	case syscall.SIGCONT: // after a SIGSTOP, which nobody can handle
		r.screen.Suspend()
		return r.screen.Resume()
	case syscall.SIGTSTP:
		if leads, err := unix.Getsid(0); err != nil || leads == unix.Getpgrp() {
			return nil // no shell is there to let it go on, as with ssh -t HOST understudy top
		}
		r.screen.Suspend()
		// The runtime keeps its handler of SIGTSTP, which would ignore another one.
		if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
			return os.NewSyscallError("kill", err)
		}
		select { // the kernel may stop the process a little later
		case next := <-signals:
			r.view.quit = next == syscall.SIGHUP || next == syscall.SIGQUIT
		case <-time.After(stopTime):
		}
		return r.screen.Resume()
	}
	return nil // the size is read before each page
}

// act starts what the view wants.
func (r *topRun) act(ctx context.Context) {
	if o := r.view.takeOrder(); o != nil {
		r.start(func() {
			text, err := o.give(ctx)
			// The receipt must not come before what it says: whoever presses the next key
			// goes by the page.
			r.update(ctx, r.view.updateBetween)
			r.send(ctx, func() { r.view.answered(*o, text, err) })
		})
	}
	if t := r.view.takeElection(); t != nil {
		r.start(func() {
			list, err := soon(ctx, func(ctx context.Context) ([]control.Event, error) { return t.Events(ctx, t.relay.Name) })
			r.send(ctx, func() { r.view.elected(*t, list, err) })
		})
	}
}

// topOrder is an order that the operator is about to give.
type topOrder struct {
	target
	verb   string
	host   string // empty for freeze and unfreeze
	reason string
	flags  []string // that select the relay, in the command
}

// command returns the command line that gives the same order.
func (o topOrder) command() string {
	words := []string{"understudy", o.verb}
	if o.host != "" {
		words = append(words, o.host)
	}
	words = append(words, o.flags...)
	if o.reason != "" {
		words = append(words, "--reason", o.reason)
	}
	for i, w := range words {
		words[i] = shellWord(w)
	}
	return strings.Join(words, " ")
}

// shellWord returns a word as a shell wants it.
func shellWord(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:@%+=,[]", r)
	}
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool { return !plain(r) }) && !strings.Contains(word, "[") {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// takesReason reports whether the verb keeps a reason.
func (o topOrder) takesReason() bool {
	return slices.Contains([]string{"switch", "drain", "freeze"}, o.verb)
}

// give gives the order and describes its result.
func (o topOrder) give(ctx context.Context) (string, error) {
	order := control.Order{Reason: o.reason, By: onBehalf()}
	if o.verb == "switch" {
		var done control.SwitchAnswer
		err := o.order(ctx, o.verb, o.host, order, &done)
		return fmt.Sprintf("%s is primary (epoch %d), after %v: %s", done.Host, done.Epoch, seconds(done.Seconds).Round(time.Millisecond), receipt(done.Switched)), err
	}
	var did control.LockAnswer
	err := o.order(ctx, o.verb, o.host, order, &did)
	return "done: " + o.command(), err
}
