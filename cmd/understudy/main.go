// Command understudy relays TCP connections to the primary among several
// hosts, fails over when it goes away, and answers health verdicts over HTTP.
//
// This file runs a command line; run.go serves. Each verb has a file of its
// own.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"understudy/config"
	"understudy/internal/daemon"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// The exit statuses are part of the interface.
const (
	exitDone   = 0 // ended on request
	exitFailed = 1 // failed at run time
	exitUsage  = 2 // wrong usage or configuration
)

// run carries out args and returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if os.Getenv(completionVariable) != "" {
		return complete(args, stdout) //nolint:contextcheck // it has a limit of its own
	}
	line, err := parseLine(args)
	if err != nil {
		// The values that were parsed may be wrong as well.
		if _, _, wrong := line.settings(nil); line.verb.settings && !errors.Is(wrong, config.ErrNothing) {
			err = errors.Join(err, wrong)
		}
		return line.usage(stderr, err)
	}
	switch {
	case line.help:
		line.writeHelp(stdout)
		return exitDone
	case line.version:
		return printVersion(ctx, line, stdout, stderr)
	}
	return line.verb.run(ctx, line, stdout, stderr)
}

// settings returns the settings of a command line, the environment and the
// sockets that systemd passed.
func (l line) settings(sockets []daemon.Socket) (config.Settings, []config.Value, error) {
	settings, values, err := config.Load(config.Given{Flags: l.flags, Environ: os.Environ(), Sockets: daemon.SocketNames(sockets)})
	settings.Warnings = slices.Concat(l.warnings, settings.Warnings)
	return settings, values, err
}

// usage reports every problem in err, one a line, and returns the exit status.
func usage(stderr io.Writer, err error) int {
	if err.Error() == config.ErrNothing.Error() { // if wrapped, it names the file; joined alone it may be
		fmt.Fprint(stderr, shortUsage)
		return exitUsage
	}
	for problem := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(stderr, "understudy: %s\n", problem)
	}
	fmt.Fprintln(stderr, "Try 'understudy --help'.")
	return exitUsage
}

const shortUsage = `usage: understudy --port N --hosts HOST:PORT,HOST:PORT... [flags]

Needed are a place to listen and hosts to relay to, as flags or as variables:
  -p, --port N      or PORT     listen on this port (or -b, --bind ADDR, or BIND)
  -H, --hosts LIST  or HOSTS    hosts in order of preference

or an HTTP address and ports to answer for: --http ADDR --lport N; or --config FILE.

Try 'understudy demo' to see it work, 'understudy --help' for everything.
`
