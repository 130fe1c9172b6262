//go:build linux

// Bench measures TCP relays side by side on the loopback interface: no proxy,
// HAProxy, nginx, a plain io.Copy proxy and understudy take turns between a
// load generator and a backend, and one table shows them all. README.md
// explains each figure.
//
// The program is its own backend and its own io.Copy proxy; they run as
// children with a word in front of their addresses.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"time"

	"understudy/bench/netns"
)

// The words that make this program one of its own children.
const (
	roleNameBackend = "backend"
	roleNameCopy    = "iocopy"
)

func main() {
	// Children are ended by the kernel when the thread that started them
	// ends: let it be this one, which lives as long as the process.
	runtime.LockOSThread()
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) //nolint:forbidigo // main of a command
}

// run does what args request and returns the exit code: 0 done, 1 failed, 2
// wrong usage.
func run(args []string, stdout, stderr io.Writer) int {
	if handled, err := child(args); handled {
		return fail(stderr, err)
	}
	s, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2 // parse has printed the reason
	}
	if s.again != "" {
		return fail(stderr, reportAgain(s, stdout))
	}
	if os.Getuid() == 0 && !netns.Inside() {
		code, err := netns.Rerun(context.Background(), os.Args[1:], os.Stdout, os.Stderr)
		if err == nil {
			return code
		}
		_, _ = fmt.Fprintf(stderr, "bench: no network namespace of its own, the machine's is used: %v\n", err)
	}
	if netns.Inside() {
		if err := netns.Prepare(); err != nil {
			return fail(stderr, fmt.Errorf("network namespace: %w", err))
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return fail(stderr, drive(ctx, s, stdout, stderr))
}

// fail turns err into an exit code.
func fail(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintln(stderr, "bench:", err)
	return 1
}

// child runs this program as one of its own children if args name one. It
// returns when that fails: they end by a signal.
func child(args []string) (handled bool, err error) {
	if len(args) == 0 || args[0] != roleNameBackend && args[0] != roleNameCopy {
		return false, nil
	}
	role, rest := args[0], args[1:]
	s := usual
	if role == roleNameBackend && len(rest) > 0 {
		s, rest = shape(rest[0]), rest[1:]
	}
	var addrs []address
	for _, arg := range rest {
		addr, err := parseAddress(arg)
		if err != nil {
			return true, err
		}
		addrs = append(addrs, addr)
	}
	switch {
	case role == roleNameBackend && slices.Contains(shapes, s) && len(addrs) > 0:
		return true, serveBackend(s, addrs)
	case role == roleNameCopy && len(addrs) == 2:
		return true, serveCopy(context.Background(), addrs[0], addrs[1])
	}
	return true, fmt.Errorf("usage: bench %s SHAPE ADDRESS..., bench %s ADDRESS BACKEND", roleNameBackend, roleNameCopy)
}

// openID is the figure that needs a rate.
const openID = "open/64B/64/" + string(usual)

// parse reads the flags. It prints errors in them to stderr.
func parse(args []string, stderr io.Writer) (settings, error) {
	s := settings{only: everything, peers: everything, users: everything}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	expression := func(name, usage string, to **regexp.Regexp) {
		flags.Func(name, usage, func(v string) (err error) {
			*to, err = regexp.Compile(v)
			return err
		})
	}
	expression("only", "measure only the figures that match `REGEXP`", &s.only)
	expression("peers", "run only the peers that match `REGEXP`", &s.peers)
	expression("users", "run proxies only as the users that match `REGEXP`: root, nobody", &s.users)
	flags.IntVar(&s.rounds, "rounds", 5, "interleaved rounds, which medians are over")
	seconds := flags.Float64("seconds", 1, "length of each measurement, which a quarter of it to warm up comes before")
	flags.Float64Var(&s.rate, "rate", 0, "messages/s of the open loop (default half of what the slowest peer reaches)")
	flags.StringVar(&s.understudy, "understudy", "", "`PROGRAM` to measure (default is built from ./cmd/understudy)")
	flags.Func("variant", "measure understudy once more with other flags, as `NAME=FLAGS` (repeatable)", func(v string) error {
		s.variants = append(s.variants, v)
		return nil
	})
	flags.StringVar(&s.out, "out", "", "write the report to `FILE` too")
	flags.StringVar(&s.json, "json", "", "write every sample to `FILE`")
	flags.StringVar(&s.again, "again", "", "measure nothing: make the report of the samples in `FILE`, which -json wrote")
	flags.StringVar(&s.congestion, "congestion", "cubic", "`NAME` of the congestion control of every row that names none (\"\" is the machine's)")
	quick := flags.Bool("quick", false, "one round of 0.2 s each: shows that everything runs, measures nothing")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if *quick {
		s.rounds, *seconds = 1, 0.2
	}
	s.length = time.Duration(*seconds * float64(time.Second))
	var err error
	switch {
	case flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case s.rounds < 1:
		err = fmt.Errorf("-rounds %d is less than 1", s.rounds)
	case s.length < 10*time.Millisecond:
		err = fmt.Errorf("-seconds %g is less than 0.01", *seconds)
	case s.rate < 0:
		err = fmt.Errorf("-rate %g is negative", s.rate)
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "bench:", err)
	}
	return s, err
}

// everything matches every name.
var everything = regexp.MustCompile("")
