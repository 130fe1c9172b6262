//go:build linux

package main

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"understudy/bench/program"

	"golang.org/x/sys/unix"
)

// relay is one relay of a proxy: the address to which clients connect, and the hosts.
// With more than one host the first is the primary, the others are standbys,
// and proxies that check hosts check each of them every second.
type relay struct {
	listen address
	hosts  []address
}

// maxRelays is the most relays of any figure. The hosts of each are its own, so
// that no check serves two relays.
const maxRelays = 400

func relaysFigure(n int) figure {
	title := fmt.Sprintf("%d relays, one of them busy", n)
	if n == 1 {
		title = "1 relay with two hosts"
	}
	return figure{
		name: fmt.Sprintf("relays/%d", n), title: title, shape: lean,
		metrics: relaysMetrics, connections: 64, relays: n, run: manyRelays,
	}
}

// hostAddress is the i-th of the hosts that relays have.
func hostAddress(i int, port uint16) address {
	return loopback(1, byte(i/250), byte(i%250+1), port) //nolint:gosec // G115: i is below 2*maxRelays
}

// relaysOn makes n relays on port, whose hosts are on hostPort.
func relaysOn(n int, port, hostPort uint16) []relay {
	list := make([]relay, n)
	for i := range list {
		list[i] = relay{
			loopback(2, byte(i/250), byte(i%250+1), port),
			[]address{hostAddress(2*i, hostPort), hostAddress(2*i+1, hostPort)},
		}
	}
	return list
}

// manyRelays measures a proxy with all its relays while nothing but checks
// happens, and then the last one busy with 64 connections.
func manyRelays(ctx context.Context, t *trial) (measured, error) {
	idle := measured{}
	if t.way.proxy != nil {
		if err := t.settle(ctx); err != nil {
			return nil, err
		}
		longer := *t
		longer.length *= 10
		var err error
		if idle[resting], err = longer.resting(ctx); err != nil {
			return nil, err
		}
		u, err := t.way.proxy.usage()
		if err != nil {
			return nil, err
		}
		idle[threads] = float64(u.threads)
		idle[resident] = float64(u.resident) / (1 << 20)
		if n := len(t.way.relays); n > 1 {
			idle[eachRelay] = float64(u.resident-t.alone) / 1024 / float64(n-1)
		}
	}
	m, err := closedLoop(ctx, t, 64, 64)
	if err != nil {
		return nil, err
	}
	maps.Copy(m, idle)
	return m, nil
}

// settle waits until every relay of the proxy accepts, and then until what it
// does at start is over.
func (t *trial) settle(ctx context.Context) error {
	for i, r := range t.way.relays {
		fds, err := open(r.listen, 1, roleEcho)
		for retries := 0; err != nil && retries < 250 && ctx.Err() == nil; retries++ {
			program.Pause(ctx, 20*time.Millisecond)
			fds, err = open(r.listen, 1, roleEcho)
		}
		if err != nil {
			return fmt.Errorf("relay %d of %d: %w", i+1, len(t.way.relays), err)
		}
		abort(fds)
	}
	program.Pause(ctx, 2*t.length)
	return ctx.Err()
}

// residentAlone is the resident memory of p with the first of relays only.
func (d *driver) residentAlone(ctx context.Context, f figure, a account, p peer, relays []relay) (int64, error) {
	w, err := p.run(ctx, d.dir, a.cred, relays[:1])
	if err != nil || w.proxy == nil {
		return 0, err
	}
	defer w.stop()
	t := &trial{shape: f.shape, way: w, length: d.length}
	if err := t.settle(ctx); err != nil {
		return 0, err
	}
	u, err := w.proxy.usage()
	return u.resident, err
}

// removeSocket removes the file of a unix socket, if a is one.
func removeSocket(a address) {
	if a.path != "" {
		_ = unix.Unlink(a.path) // most proxies have removed it
	}
}

// understudyConfig is a configuration file with relays.
func understudyConfig(relays []relay) string {
	var b strings.Builder
	b.WriteString("relays:\n")
	for i, r := range relays {
		fmt.Fprintf(&b, "  - {name: r%d, listen: [%q], hosts: [%s]}\n", i+1, r.listen, quoted(r.hosts))
	}
	return b.String()
}

func quoted(hosts []address) string {
	var list []string
	for _, h := range hosts {
		list = append(list, fmt.Sprintf("%q", h))
	}
	return strings.Join(list, ", ")
}
