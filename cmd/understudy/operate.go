package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"understudy/config"
	"understudy/control"
	"understudy/failover"
)

// The verbs that speak to a running process, over its control socket.

// watchEvery is the time between two looks of status --watch.
const watchEvery = time.Second

// answerTime is how long a process may take to say how it is. One that was
// stopped says nothing.
const answerTime = 5 * time.Second

// soon has a question answered within answerTime.
func soon[T any](ctx context.Context, ask func(ctx context.Context) (T, error)) (T, error) {
	limited, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	answer, err := ask(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("the running understudy gave no answer within %v: is it stopped, or has the machine no time for it?", answerTime)
	}
	return answer, err
}

// relayOptions are the flags of verbs that mean one relay.
type relayOptions struct {
	Relay string `long:"relay" value-name:"NAME" description:"the relay that is meant; needed where there are several"`
}

type showOptions struct {
	relayOptions
	JSON bool `long:"json" description:"print JSON"`
}

type statusOptions struct {
	Watch bool `long:"watch" description:"print it again every second"`
	JSON  bool `long:"json" description:"print JSON"`
}

type switchOptions struct {
	relayOptions
	Drain  string `long:"drain" value-name:"D" description:"time that earlier connections may take to finish; default is the fence policy"`
	Reason string `long:"reason" value-name:"TEXT" description:"kept in the record and told to the triggers"`
}

type lockOptions struct {
	relayOptions
	For    string `long:"for" value-name:"D" description:"end by itself after this time"`
	Reason string `long:"reason" value-name:"TEXT" description:"shown by status and why"`
}

type drillOptions struct {
	showOptions
	Triggers bool `long:"triggers" description:"run the triggers too, with UNDERSTUDY_DRY_RUN=1"`
}

type eventsOptions struct {
	showOptions
	Follow bool `long:"follow" description:"go on with those to come, until Ctrl-C"`
}

// client speaks to the process whose control socket the settings name. The
// other settings do not matter here, right or wrong.
func (l line) client() (*control.Client, error) {
	_, values, err := l.settings(nil)
	for _, v := range values {
		if v.Flag != "control" {
			continue
		}
		if problem := about(v.Origin.Name, err); problem != nil {
			return nil, problem
		}
		if v.Text == config.ControlOff {
			return nil, fmt.Errorf("%s: is off, so there is no process to ask", v.Origin.Name)
		}
		return control.NewClient(controlPath(v.Text)), nil
	}
	return nil, errors.New("--control: no such setting") // a mistake in the table
}

// about is the problem among those of err that is about one setting.
func about(name string, err error) error {
	if err == nil || name == "" {
		return nil
	}
	for problem := range strings.SplitSeq(err.Error(), "\n") {
		if strings.HasPrefix(problem, name+": ") {
			return errors.New(problem)
		}
	}
	return nil
}

// ask does what a verb asks the running process for. An interrupt ends it.
func (l line) ask(ctx context.Context, stderr io.Writer, do func(ctx context.Context, c *control.Client) error) int {
	c, err := l.client()
	if err != nil {
		return l.usage(stderr, err)
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var wrong usageError
	switch err := do(ctx, c); {
	case err == nil:
		return exitDone
	case errors.Is(err, errBad):
	case ctx.Err() != nil:
		fmt.Fprintf(stderr, "understudy: %s: interrupted\n", l.verb.name)
	case errors.As(err, &wrong):
		return l.usage(stderr, wrong.error)
	default:
		fmt.Fprintf(stderr, "understudy: %s: %s\n", l.verb.name, printable(err.Error()))
	}
	return exitFailed
}

// errBad is the end of a verb that has said already what is wrong.
var errBad = errors.New("not good")

// usageError is a mistake on the command line that only the verb can see.
type usageError struct{ error }

func showStatus(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*statusOptions)
	return l.ask(ctx, stderr, func(ctx context.Context, c *control.Client) error {
		if o.Watch {
			return watchStatus(ctx, c, o.JSON, stdout)
		}
		s, err := soon(ctx, c.Status)
		if err != nil {
			return err
		}
		return writeStatus(newTerminal(stdout), s, o.JSON)
	})
}

func writeStatus(t *terminal, s control.Status, asJSON bool) error {
	if asJSON {
		return writeJSON(t.w, s)
	}
	return t.status(s)
}

// watchStatus writes the status again and again, until an interrupt. On a
// terminal it outlives the process that it watches, which may be restarted.
func watchStatus(ctx context.Context, c *control.Client, asJSON bool, stdout io.Writer) error {
	for again := false; ; again = true {
		s, err := soon(ctx, c.Status)
		t := newTerminal(stdout) // its size may have changed
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && (!again || t.width == 0):
			return err
		}
		page := bytes.Buffer{}
		t.w = &page
		if err != nil {
			t.say("", err.Error())
		} else if err := writeStatus(t, s, asJSON); err != nil {
			return err
		}
		if again && t.width == 0 && !asJSON {
			fmt.Fprintln(stdout) // sets the tables apart
		}
		if _, err := stdout.Write(t.page(page.Bytes())); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchEvery):
		}
	}
}

func showWhy(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*showOptions)
	return l.ask(ctx, stderr, func(ctx context.Context, c *control.Client) error {
		s, err := soon(ctx, c.Status)
		if err != nil {
			return err
		}
		r, err := pick(s, o.Relay)
		if err != nil {
			return err
		}
		if len(l.args) > 0 {
			if err := keepHost(&r, l.args[0]); err != nil {
				return err
			}
		}
		if o.JSON {
			return writeJSON(stdout, r)
		}
		return newTerminal(stdout).why(r, s.Now, len(l.args) > 0)
	})
}

// pick finds a relay by name, or the only one.
func pick(s control.Status, name string) (control.RelayStatus, error) {
	var names []string
	for _, r := range s.Relays {
		if r.Name == name || name == "" && len(s.Relays) == 1 {
			return r, nil
		}
		names = append(names, r.Name)
	}
	switch {
	case len(names) == 0:
		return control.RelayStatus{}, errors.New("the process has no relay")
	case name == "":
		return control.RelayStatus{}, usageError{fmt.Errorf("--relay: needed to say which is meant: %s", strings.Join(names, ", "))}
	}
	return control.RelayStatus{}, fmt.Errorf("there is no relay %q: there is %s", name, strings.Join(names, ", "))
}

// keepHost leaves only one host in a status.
func keepHost(r *control.RelayStatus, name string) error {
	var names []string
	for _, h := range r.Hosts {
		if h.Name == name {
			r.Hosts = []control.Host{h}
			return nil
		}
		names = append(names, h.Name)
	}
	return fmt.Errorf("relay %s has no host %q: its hosts are %s", r.Name, name, strings.Join(names, ", "))
}

func switchTo(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*switchOptions)
	order := control.Order{Relay: o.Relay, Host: l.args[0], Reason: o.Reason, By: onBehalf()}
	if o.Drain != "" {
		d, err := config.ParseDuration(o.Drain)
		if err != nil || d < 0 {
			return l.usage(stderr, fmt.Errorf("--drain: %q is not a duration like 2s", o.Drain))
		}
		s := d.Seconds()
		order.DrainSeconds = &s
	}
	return l.ask(ctx, stderr, func(ctx context.Context, c *control.Client) error {
		var done failover.Switched
		start := time.Now()
		if err := c.Order(ctx, "switch", order, &done); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s is primary (epoch %d), after %v\n", done.Host, done.Epoch, time.Since(start).Round(time.Millisecond))
		return nil
	})
}

// onBehalf is who sits in front of a root shell, if sudo says so.
func onBehalf() string { return os.Getenv("SUDO_USER") }

// lockHost is drain and freeze.
func lockHost(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*lockOptions)
	order := control.Order{Relay: o.Relay, Reason: o.Reason, By: onBehalf()}
	if len(l.args) > 0 {
		order.Host = l.args[0]
	}
	if o.For != "" {
		d, err := config.ParseDuration(o.For)
		if err != nil || d <= 0 {
			return l.usage(stderr, fmt.Errorf("--for: %q is not a duration like 2h", o.For))
		}
		order.ForSeconds = d.Seconds()
	}
	return l.ask(ctx, stderr, func(ctx context.Context, c *control.Client) error {
		var k failover.Lock
		if err := c.Order(ctx, l.verb.name, order, &k); err != nil {
			return err
		}
		what := "frozen: no change of primary"
		if k.Kind == failover.Drain {
			what = k.Host + " is drained"
		}
		until := "until it is taken back"
		if !k.Until.IsZero() {
			until = "until " + k.Until.Local().Format(time.DateTime)
		}
		fmt.Fprintf(stdout, "%s %s\n", what, until)
		return nil
	})
}

// unlockHost is ready and unfreeze.
func unlockHost(ctx context.Context, l line, stdout, stderr io.Writer) int {
	order := control.Order{Relay: l.options.(*relayOptions).Relay, By: onBehalf()}
	if len(l.args) > 0 {
		order.Host = l.args[0]
	}
	return l.ask(ctx, stderr, func(ctx context.Context, c *control.Client) error {
		var k failover.Lock
		if err := c.Order(ctx, l.verb.name, order, &k); err != nil {
			return err
		}
		if k.Kind == failover.Drain {
			fmt.Fprintln(stdout, k.Host+" takes part in the election")
		} else {
			fmt.Fprintln(stdout, "not frozen")
		}
		return nil
	})
}

// reloadRunning has the running process read its configuration again.
func reloadRunning(ctx context.Context, l line, stdout, stderr io.Writer) int {
	return l.ask(ctx, stderr, func(ctx context.Context, c *control.Client) error {
		did, err := c.Reload(ctx, control.Order{By: onBehalf()})
		if err != nil {
			for problem := range strings.SplitSeq(err.Error(), "\n") {
				fmt.Fprintf(stderr, "understudy: reload: %s\n", printable(problem))
			}
			return errBad
		}
		fmt.Fprint(stdout, describeChanges(did))
		return nil
	})
}

func drill(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*drillOptions)
	order := control.Order{Relay: o.Relay, Triggers: o.Triggers, By: onBehalf()}
	if len(l.args) > 0 {
		order.Host = l.args[0]
	}
	return l.ask(ctx, stderr, func(ctx context.Context, c *control.Client) error {
		var r failover.DrillReport
		if err := c.Order(ctx, "drill", order, &r); err != nil {
			return err
		}
		var err error
		if o.JSON {
			err = writeJSON(stdout, r)
		} else {
			err = newTerminal(stdout).drill(r)
		}
		if err == nil && !r.OK {
			return errBad
		}
		return err
	})
}

// predict works from the settings that are given, or asks the running process
// for its own.
func predict(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*showOptions)
	show := func(p failover.Prediction) error {
		if o.JSON {
			return writeJSON(stdout, p)
		}
		return newTerminal(stdout).prediction(p)
	}
	settings, values, err := config.Load(config.Given{Flags: l.flags, Environ: os.Environ(), Anywhere: true})
	if !isGiven(values, "hosts") && !isGiven(values, "config") {
		for flag := range l.flags {
			if flag != "control" {
				return l.usage(stderr, fmt.Errorf("--%s: needs --hosts or --config as well; without settings the running understudy is asked for its own", flag))
			}
		}
		return l.ask(ctx, stderr, func(ctx context.Context, c *control.Client) error {
			p, err := soon(ctx, func(ctx context.Context) (failover.Prediction, error) { return c.Prediction(ctx, o.Relay) })
			if err != nil {
				return err
			}
			return show(p)
		})
	}
	if err != nil {
		return l.usage(stderr, err)
	}
	var names []string
	for _, r := range settings.Relays {
		names = append(names, r.Name)
	}
	i := slices.Index(names, o.Relay)
	if o.Relay == "" && len(names) == 1 {
		i = 0
	}
	switch {
	case i >= 0:
	case o.Relay == "":
		return l.usage(stderr, fmt.Errorf("--relay: needed to say which is meant: %s", strings.Join(names, ", ")))
	default:
		return l.usage(stderr, fmt.Errorf("--relay: these settings have no relay %q: there is %s", o.Relay, strings.Join(names, ", ")))
	}
	rules, err := rulesOf(settings.Relays[i], nil)
	if err == nil {
		err = show(failover.Predict(rules))
	}
	if err != nil {
		fmt.Fprintf(stderr, "understudy: predict: %v\n", err)
		return exitFailed
	}
	return exitDone
}

// isGiven says whether anybody but the default set a flag.
func isGiven(values []config.Value, flag string) bool {
	return slices.ContainsFunc(values, func(v config.Value) bool { return v.Flag == flag && v.Origin.Kind != config.Default })
}

func showEvents(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*eventsOptions)
	t := newTerminal(stdout)
	return l.ask(ctx, stderr, func(ctx context.Context, c *control.Client) error {
		if !o.Follow {
			list, err := soon(ctx, func(ctx context.Context) ([]failover.Incident, error) { return c.Events(ctx, o.Relay) })
			switch {
			case err != nil:
				return err
			case o.JSON:
				return writeJSON(stdout, list)
			case len(list) == 0:
				fmt.Fprintln(stdout, "no election yet")
				return nil
			}
			for n, i := range list {
				if n > 0 {
					fmt.Fprintln(stdout)
				}
				if err := t.incident(i); err != nil {
					return err
				}
			}
			return nil
		}
		again := false
		err := c.Follow(ctx, o.Relay, func(i failover.Incident) error {
			if o.JSON {
				return json.NewEncoder(stdout).Encode(i)
			}
			if again {
				fmt.Fprintln(stdout)
			}
			again = true
			return t.incident(i)
		})
		if ctx.Err() != nil {
			return nil // the way to end it
		}
		return err
	})
}

// writeJSON writes what programs and people can read.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
