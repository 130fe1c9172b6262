//go:build linux

// Failover breaks the primary behind TCP relays, one after the other, while
// clients come 200 times a second, and shows side by side how long no client
// was served and how many clients were lost: understudy, HAProxy with its
// defaults and tuned, nginx. README.md, one folder up, describes how to run it;
// the report explains each column.
//
// The program is its own hosts; they run as children with a word in front of
// their addresses.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"time"

	"understudy/bench/netns"
	"understudy/bench/program"
)

// roleHost is the word that makes this program one of its own hosts.
const roleHost = "host"

func main() {
	// Children are ended by the kernel when the thread that started them
	// ends: let it be this one, which lives as long as the process.
	runtime.LockOSThread()
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) //nolint:forbidigo // main of a command
}

// settings are the values of the flags.
type settings struct {
	rounds     int
	only       *regexp.Regexp
	warm       time.Duration // load before the fault, and up to spread more
	spread     time.Duration
	after      time.Duration // load after a fault
	understudy string        // its program; "" builds it
	out        string        // file; "" writes none
}

// The lengths of a trial. The faults of a run come at moments that are spread
// over two seconds, the longest interval at which a proxy looks at its hosts,
// so that no proxy is lucky every time.
const (
	warmTime    = 2500 * time.Millisecond
	spreadTime  = 2 * time.Second
	afterFault  = 12 * time.Second
	afterQuick  = 6 * time.Second // at least what the slowest one that notices needs
	plannedTime = 6 * time.Second
)

// run does what args request and returns the exit code: 0 done, 1 failed, 2
// wrong usage.
func run(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == roleHost {
		return fail(stderr, serveHost(args[1:]))
	}
	s, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2 // parse has printed the reason
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if netns.Inside() {
		return fail(stderr, drive(ctx, s, stdout, stderr))
	}
	if os.Getuid() != 0 {
		return fail(stderr, errors.New("needs root: it makes a network namespace of its own and silences a host in it with nft (sudo make bench-failover)"))
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return fail(stderr, errors.New("needs nft, to silence a host (apt-get install nftables)"))
	}
	// Built out here: in the namespace there is no network to get modules from.
	if s.understudy == "" {
		dir, err := os.MkdirTemp("", "understudy-failover-")
		if err != nil {
			return fail(stderr, err)
		}
		defer os.RemoveAll(dir)
		s.understudy = filepath.Join(dir, subject)
		if err := build(ctx, s.understudy); err != nil {
			return fail(stderr, err)
		}
		args = append(slices.Clone(args), "-understudy", s.understudy)
	}
	code, err := netns.Rerun(ctx, args, stdout, stderr)
	if err != nil {
		return fail(stderr, err)
	}
	return code
}

// fail turns err into an exit code.
func fail(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintln(stderr, "failover:", err)
	return 1
}

// build makes the program to measure.
func build(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "understudy/cmd/understudy") //nolint:gosec // G204: a path of our own
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build understudy (or name one with -understudy): %w: %s", err, program.LastBytes(out, 400))
	}
	return nil
}

// parse reads the flags. It prints errors in them to stderr.
func parse(args []string, stderr io.Writer) (settings, error) {
	s := settings{only: regexp.MustCompile(""), warm: warmTime, spread: spreadTime, after: afterFault}
	flags := flag.NewFlagSet("failover", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&s.rounds, "rounds", 5, "interleaved rounds, which medians are over")
	flags.Func("only", "run only the trials, \"fault/proxy\", that match `REGEXP`, for example ^killed/ or /understudy$", func(v string) (err error) {
		s.only, err = regexp.Compile(v)
		return err
	})
	flags.StringVar(&s.understudy, "understudy", "", "`PROGRAM` to measure (default is built from ./cmd/understudy)")
	flags.StringVar(&s.out, "out", "", "write the whole report to `FILE`")
	quick := flags.Bool("quick", false, "one round, and half the time after each fault: shows that everything runs")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if *quick {
		s.rounds, s.after = 1, afterQuick
	}
	var err error
	switch {
	case flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case s.rounds < 1:
		err = fmt.Errorf("-rounds %d is less than 1", s.rounds)
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "failover:", err)
	}
	return s, err
}
