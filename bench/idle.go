//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"understudy/bench/netns"
	"understudy/bench/program"
)

func idleFigure(n int) figure {
	return figure{
		name:        fmt.Sprintf("idle/%d", n),
		title:       "idle, " + plural(n),
		shape:       usual,
		metrics:     idleMetrics,
		connections: n,
		run: func(ctx context.Context, t *trial) (measured, error) {
			return idle(ctx, t, n)
		},
	}
}

// idle opens n connections and measures the cost of each, first fresh, then
// after each has moved 1 MiB.
func idle(ctx context.Context, t *trial, n int) (measured, error) {
	if err := awaitTimeWait(ctx); err != nil {
		return nil, err
	}
	settle := t.length / 2 // the wait before memory is measured
	program.Pause(ctx, settle)
	before, err := t.holdings()
	if err != nil {
		return nil, err
	}
	fds, err := openIdle(ctx, t, n)
	if err != nil {
		return nil, err
	}
	defer abort(fds)
	program.Pause(ctx, settle)

	m := measured{}
	fresh, err := t.holdings()
	if err != nil {
		return nil, err
	}
	m.each(fresh.minus(before), n, "", t.way.proxy != nil)
	if err := moveEach(ctx, fds); err != nil {
		return nil, err
	}
	// Longer than a collector or an allocator takes to return memory that it
	// returns at all.
	program.Pause(ctx, 4*settle)
	used, err := t.holdings()
	if err != nil {
		return nil, err
	}
	m.each(used.minus(before), n, used1MiB, t.way.proxy != nil)
	if t.way.proxy != nil {
		if m[resting], err = t.resting(ctx); err != nil {
			return nil, err
		}
	}
	first, err := t.newBesideIdle(ctx)
	if err != nil {
		return nil, err
	}
	m[p50+besideIdle], m[p99+besideIdle] = float64(first.percentile(50))/1e3, float64(first.percentile(99))/1e3
	return m, nil
}

// newBesideIdle makes short connections, one after the other, and returns how
// long each took from connect to the first byte. They are few: awaitTimeWait has
// the next figure wait for what many would leave behind.
func (t *trial) newBesideIdle(ctx context.Context) (*histogram, error) {
	s, err := newShorts(t.shape, t.way.addr, 1)
	if err != nil {
		return nil, err
	}
	defer s.close()
	var first histogram
	w := &window{}
	w.start()
	if err := s.begin(0, w); err != nil {
		return nil, err
	}
	for s.ended < 90 && ctx.Err() == nil {
		events, err := s.poller.wait(tick)
		if err != nil {
			return nil, err
		}
		for i := range events {
			if err := s.advance(int(events[i].Fd), events[i].Events, w, &first); err != nil {
				return nil, fmt.Errorf("connection %d: %w", s.made, err)
			}
		}
		if w.now() > coldTimeout {
			return nil, fmt.Errorf("%d new connections in %v", s.ended, coldTimeout)
		}
	}
	return &first, ctx.Err()
}

// holdings is memory in bytes, and descriptors.
type holdings struct {
	process     int64 // the proxy's resident memory
	kernel      int64 // slabs, page tables and stacks of the whole system
	system      int64 // everything that is neither free nor page cache
	tcp         int64 // what TCP has charged for buffers
	descriptors int64 // the proxy's
}

func (t *trial) holdings() (holdings, error) {
	kib, err := readFields("/proc/meminfo", "MemTotal:", "MemFree:", "Buffers:", "Cached:", "Slab:", "PageTables:", "KernelStack:")
	if err != nil {
		return holdings{}, err
	}
	parked, err := parkedPages()
	if err != nil {
		return holdings{}, err
	}
	tcp, err := sockstat("mem")
	if err != nil {
		return holdings{}, err
	}
	h := holdings{
		kernel: (kib[4] + kib[5] + kib[6]) << 10,
		system: (kib[0]-kib[1]-kib[2]-kib[3])<<10 - parked*int64(os.Getpagesize()),
		tcp:    tcp * int64(os.Getpagesize()),
	}
	if t.way.proxy == nil {
		return h, nil
	}
	u, err := t.way.proxy.usage()
	h.process, h.descriptors = u.resident, int64(u.descriptors)
	return h, err
}

// parkedPages is the number of free pages that each processor keeps for itself. The kernel
// does not count them as free (MemFree), and after much was freed at once keeps
// hundreds of MB there; see "pagesets" in /proc/zoneinfo.
func parkedPages() (int64, error) {
	text, err := os.ReadFile("/proc/zoneinfo")
	if err != nil {
		return 0, err
	}
	pages := int64(0)
	for l := range strings.Lines(string(text)) {
		if count, ok := strings.CutPrefix(strings.TrimSpace(l), "count:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(count), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/zoneinfo: %w", err)
			}
			pages += n
		}
	}
	return pages, nil
}

func (h holdings) minus(o holdings) holdings {
	return holdings{
		process: h.process - o.process, kernel: h.kernel - o.kernel, system: h.system - o.system,
		tcp: h.tcp - o.tcp, descriptors: h.descriptors - o.descriptors,
	}
}

// each adds h for each of n connections to m, in KiB, under the names of the
// metrics with suffix.
func (m measured) each(h holdings, n int, suffix string, proxied bool) {
	kib := func(bytes int64) float64 { return float64(bytes) / 1024 / float64(n) }
	m[kernelMemory+suffix] = kib(h.kernel)
	m[systemMemory+suffix] = kib(h.system)
	m[tcpMemory+suffix] = kib(h.tcp)
	if proxied {
		m[processMemory+suffix] = kib(h.process)
		m[descriptors+suffix] = float64(h.descriptors) / float64(n)
	}
}

// sockstat is a number of the line for TCP in /proc/net/sockstat: those of
// our network namespace, except "mem", pages, which is the whole system's.
func sockstat(key string) (int64, error) {
	const path = "/proc/self/net/sockstat"
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(content), "TCP:")
	line, _, _ := strings.Cut(rest, "\n")
	fields := strings.Fields(line)
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i] == key {
			return strconv.ParseInt(fields[i+1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s: no %s for TCP", path, key)
}

// awaitTimeWait waits until few sockets of ours are in TIME_WAIT, whose memory
// would be freed during the measurement. In the machine's own namespace their
// owner is unknown, and it does not wait.
func awaitTimeWait(ctx context.Context) error {
	for netns.Inside() {
		n, err := sockstat("tw")
		if err != nil || n < 200 {
			return err
		}
		if program.Pause(ctx, 200*time.Millisecond); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// openIdle opens n connections and sends nothing on them. The backend's
// descriptors show that each has reached it.
func openIdle(ctx context.Context, t *trial, n int) ([]int, error) {
	backend := t.backend.PID()
	before, err := leastDescriptors(ctx, backend)
	if err != nil {
		return nil, err
	}
	fds := make([]int, 0, n)
	for i := range n {
		fd, err := dial(t.way.addr, i)
		if err == nil {
			fds = append(fds, fd)
			// No faster than the slowest listen queue is emptied.
			if len(fds)%250 == 0 || len(fds) == n {
				err = awaitDescriptors(ctx, backend, before+len(fds))
			}
		}
		if err != nil {
			abort(fds)
			return nil, fmt.Errorf("connection %d of %d: %w", i+1, n, err)
		}
	}
	return fds, nil
}

// leastDescriptors is the least count within a short time: a proxy's health
// check, or the connection that showed it ready, may be open at the moment.
func leastDescriptors(ctx context.Context, pid int) (int, error) {
	least := math.MaxInt
	for range 10 {
		n, err := countDescriptors(pid)
		if err != nil {
			return 0, err
		}
		least = min(least, n)
		program.Pause(ctx, 10*time.Millisecond)
	}
	return least, nil
}

func awaitDescriptors(ctx context.Context, pid, n int) error {
	var have int
	for deadline := time.Now().Add(setupTimeout); time.Now().Before(deadline) && ctx.Err() == nil; {
		var err error
		if have, err = countDescriptors(pid); err != nil || have >= n {
			return err
		}
		program.Pause(ctx, 5*time.Millisecond)
	}
	return errors.Join(ctx.Err(), fmt.Errorf("the backend has %d descriptors, want %d", have, n))
}

// moveEach fetches 1 MiB over each connection, a few at a time.
func moveEach(ctx context.Context, fds []int) error {
	const atOnce = 16
	var (
		next   atomic.Int64
		failed = make(chan error, atOnce)
		all    sync.WaitGroup
	)
	for range atOnce {
		all.Go(func() {
			buf := make([]byte, chunk)
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(fds) {
					return
				}
				err := greet(fds[i], roleSource)
				if err == nil {
					err = fetch(fds[i], int64(i)*7919, 1<<20, buf)
				}
				if err != nil {
					failed <- fmt.Errorf("connection %d: %w", i, err)
					return
				}
			}
		})
	}
	all.Wait()
	close(failed)
	err := ctx.Err()
	for e := range failed {
		err = errors.Join(err, e)
	}
	return err
}

// resting is the processor time that the proxy uses while nothing happens, in
// ms a second.
func (t *trial) resting(ctx context.Context) (float64, error) {
	busy, err := t.way.proxy.busy()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	before, err := busy()
	if err != nil {
		return 0, err
	}
	program.Pause(ctx, t.length)
	after, err := busy()
	return float64(after-before) / float64(time.Since(begin)) * 1e3, err
}
