package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"understudy/config"
	"understudy/internal/daemon"
)

// startTimeout is the longest time that an unfinished start may continue after the end of
// the process was requested.
const startTimeout = 500 * time.Millisecond

// serve runs until its end is requested, which is possible from the first
// moment on. A start may wait for things that cannot be cancelled, such as a
// file system that hangs; then serve returns without it.
func serve(ctx context.Context, line line, stdout, stderr io.Writer) int {
	signals := daemon.HandleSignals(ctx)
	// They are never released: a signal, or a closed output, in the last moment
	// of the process must not become its exit status.
	started, code := make(chan struct{}), make(chan int, 1)
	go func() { //nolint:contextcheck // the signals carry ctx
		code <- startAndServe(line, daemon.Config{Stdout: stdout, Stderr: stderr, Signals: signals, Version: versionText(), StatusText: statusText, Started: func() { close(started) }})
	}()
	select {
	case c := <-code:
		return c
	case <-signals.Finish().Done():
	}
	select {
	case <-started:
		return <-code
	case c := <-code:
		return c
	case <-time.After(startTimeout):
		return exitDone
	}
}

// startAndServe reads the settings and serves. It returns the exit status.
func startAndServe(line line, p daemon.Config) int {
	var err error
	if p.Sockets, err = daemon.PassedSockets(); err != nil {
		fmt.Fprintf(p.Stderr, "understudy: %v\n", err)
		return exitFailed
	}
	load := func() (config.Settings, error) {
		settings, _, err := line.settings(p.Sockets)
		return settings, errors.Join(err, daemon.InspectScripts(settings))
	}
	p.Settings, err = load()
	if err != nil {
		return line.usage(p.Stderr, err)
	}
	if p.Settings.File != "" {
		p.Load = load
	}
	if err := daemon.Run(p); err != nil {
		fmt.Fprintf(p.Stderr, "understudy: %v\n", err)
		return exitFailed
	}
	return exitDone
}
