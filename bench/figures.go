//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// trial is one measurement of one figure on one way.
type trial struct {
	way     *way
	backend *process
	length  time.Duration // of the window
	rate    float64       // of the open loop, messages a second
}

// measured holds the values of a trial by metric.
type measured map[string]float64

// figure is something that is measured.
type figure struct {
	id, title   string // id is what -only matches
	metrics     []metric
	connections int    // that the proxy holds at one time
	congestion  string // congestion control to run under, "" for the machine's
	run         func(ctx context.Context, t *trial) (measured, error)
}

// skipError says why a figure cannot be measured here; that is no failure of
// the peer.
type skipError struct{ reason string }

func (e skipError) Error() string { return e.reason }

var echoSizes = []struct {
	name string
	size int
}{{"64B", 64}, {"1KiB", 1 << 10}, {"16KiB", 16 << 10}}

// figures lists all of them in the order in which they are measured. Short
// connections come last: what they leave in TIME_WAIT is gone when the memory
// of idle connections is looked at, a round later.
func figures() []figure {
	var list []figure
	for _, n := range []int{1, 64, 1000} {
		for _, s := range echoSizes {
			list = append(list, echoFigure(s.name, s.size, n))
		}
	}
	list = append(list, echoFigure("64B", 64, 100), echoFigure("64B", 64, 9000))
	list = append(list,
		figure{
			id: "own-core/64B/1", title: "echo 64 B, 1 connection, proxy on a processor of its own",
			metrics: echoMetrics, connections: 1, run: ownCore,
		},
		figure{
			id: openID, title: "open loop 64 B, 64 connections",
			metrics: echoMetrics, connections: 64, run: openLoop,
		})
	for _, n := range []int{1, 8, 64, 200} {
		list = append(list, bulkFigure("", n))
	}
	list = append(list, bulkFigure("bbr", 8), bulkFigure("cubic", 8),
		figure{
			id: "mixed/64B/8", title: "echo 64 B, 1 connection, beside 8 bulk streams",
			metrics: mixedMetrics, connections: 9, run: mixed,
		},
		figure{
			id: "start", title: "at start", metrics: startMetrics, run: atStart,
		},
		idleFigure(1000), idleFigure(9000),
		figure{
			id: "connect/16", title: "connect, 64 B, 64 B, close; 16 at a time",
			metrics: connectMetrics, connections: 16, run: shortConnections,
		})
	return list
}

func echoFigure(name string, size, n int) figure {
	return figure{
		id:          fmt.Sprintf("echo/%s/%d", name, n),
		title:       fmt.Sprintf("echo %s, %s", spell(size), plural(n)),
		metrics:     echoMetrics,
		connections: n,
		run: func(ctx context.Context, t *trial) (measured, error) {
			return closedLoop(ctx, t, size, n)
		},
	}
}

func bulkFigure(congestion string, n int) figure {
	f := figure{
		id:          fmt.Sprintf("bulk/%d", n),
		title:       "bulk, " + plural(n),
		metrics:     bulkMetrics,
		connections: n,
		congestion:  congestion,
		run: func(ctx context.Context, t *trial) (measured, error) {
			return bulk(ctx, t, n)
		},
	}
	if congestion != "" {
		f.id = fmt.Sprintf("bulk-%s/%d", congestion, n)
		f.title += ", " + congestion
	}
	return f
}

func spell(size int) string {
	if size < 1<<10 {
		return fmt.Sprintf("%d B", size)
	}
	return fmt.Sprintf("%d KiB", size>>10)
}

func plural(n int) string {
	if n == 1 {
		return "1 connection"
	}
	if n >= 1000 {
		return fmt.Sprintf("%d,%03d connections", n/1000, n%1000)
	}
	return fmt.Sprintf("%d connections", n)
}

// newWindow is the window of t, with a quarter of its length to warm up.
func (t *trial) newWindow() (*window, error) {
	w := &window{warm: t.length / 4, length: t.length}
	if t.way.proxy == nil {
		return w, nil
	}
	var err error
	w.busy, err = t.way.proxy.busy()
	return w, err
}

// latencies adds the percentiles of h to m, in µs.
func (m measured) latencies(h *histogram) {
	for key, p := range map[string]float64{p50: 50, p99: 99, p999: 99.9} {
		m[key] = float64(h.percentile(p)) / 1e3
	}
}

// cost adds the proxy's processor time for each of n, in units of a second/scale.
func (m measured) cost(w *window, n, scale float64) {
	if w.busy != nil {
		m[processor] = w.used() / n * scale
	}
}

// echo opens n echo connections for load, which measures in w.
func echo(t *trial, size, n int, load func(e *echoes, w *window, h *histogram) error) (measured, error) {
	fds, err := open(t.way.addr, n, roleEcho)
	if err != nil {
		return nil, err
	}
	defer abort(fds)
	e, err := newEchoes(fds, size)
	if err != nil {
		return nil, err
	}
	defer e.poller.close()
	w, err := t.newWindow()
	if err != nil {
		return nil, err
	}
	var h histogram
	if err := load(e, w, &h); err != nil {
		return nil, err
	}
	m := measured{rate: float64(h.n) / w.seconds()}
	m.latencies(&h)
	m.cost(w, float64(h.n), 1e6)
	return m, nil
}

func closedLoop(ctx context.Context, t *trial, size, n int) (measured, error) {
	return echo(t, size, n, func(e *echoes, w *window, h *histogram) error {
		return e.closedLoop(ctx, w, h)
	})
}

func openLoop(ctx context.Context, t *trial) (measured, error) {
	return echo(t, 64, 64, func(e *echoes, w *window, h *histogram) error {
		return e.openLoop(ctx, t.rate, w, h)
	})
}

// ownCore gives the proxy the last processor and everybody else the others.
func ownCore(ctx context.Context, t *trial) (m measured, err error) {
	n := runtime.NumCPU()
	if n < 2 {
		return nil, skipError{"needs two processors"}
	}
	var before, last unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, os.NewSyscallError("sched_getaffinity", err)
	}
	others := before
	for i := len(before)*64 - 1; i >= 0; i-- {
		if before.IsSet(i) {
			last.Set(i)
			others.Clear(i)
			break
		}
	}
	ours := []int{os.Getpid(), t.backend.cmd.Process.Pid}
	defer func() { err = errors.Join(err, confine(ours, &before)) }()
	if err := confine(ours, &others); err != nil {
		return nil, err
	}
	if t.way.proxy != nil {
		pids, err := t.way.proxy.pids()
		if err != nil {
			return nil, err
		}
		if err := confine(pids, &last); err != nil {
			return nil, err
		}
	}
	return closedLoop(ctx, t, 64, 1)
}

func bulk(ctx context.Context, t *trial, n int) (measured, error) {
	fds, err := open(t.way.addr, n, roleSource)
	if err != nil {
		return nil, err
	}
	defer abort(fds)
	s, err := newSink(fds)
	if err != nil {
		return nil, err
	}
	defer s.poller.close()
	w, err := t.newWindow()
	if err != nil {
		return nil, err
	}
	w.count = s.received.Load
	w.start()
	if err := s.run(ctx, w); err != nil {
		return nil, err
	}
	gb := float64(w.counted()) / 1e9
	m := measured{rate: gb / w.seconds()}
	m.cost(w, gb, 1)
	return m, nil
}

// mixed lets 8 bulk streams flow, in a thread of their own, and measures one
// echo connection beside them. It takes twice the usual time: a proxy that
// makes small messages wait has few of them to show, and a busy machine lets a
// thread wait for long.
func mixed(ctx context.Context, t *trial) (measured, error) {
	fds, err := open(t.way.addr, 8, roleSource)
	if err != nil {
		return nil, err
	}
	defer abort(fds)
	s, err := newSink(fds)
	if err != nil {
		return nil, err
	}
	defer s.poller.close()

	streaming, stop := context.WithCancel(ctx)
	defer stop()
	var streamErr error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		streamErr = s.run(streaming, nil)
	}()

	var m measured
	var w *window
	if err = s.flowing(ctx, ended); err == nil {
		longer := *t
		longer.length = max(2*t.length, 200*time.Millisecond)
		m, err = echo(&longer, 64, 1, func(e *echoes, ew *window, h *histogram) error {
			w = ew
			w.count = s.received.Load
			return e.closedLoop(ctx, w, h)
		})
	}
	stop()
	<-ended
	if !errors.Is(streamErr, context.Canceled) {
		err = errors.Join(err, fmt.Errorf("bulk: %w", streamErr))
	}
	if err != nil {
		return nil, err
	}
	if w.counted() == 0 {
		return nil, errors.New("no bulk byte came while the small messages were measured")
	}
	delete(m, processor) // nobody knows which part belongs to the messages
	m[bulkRate] = float64(w.counted()) / 1e9 / w.seconds()
	return m, nil
}

func shortConnections(ctx context.Context, t *trial) (measured, error) {
	s, err := newShorts(t.way.addr, 16)
	if err != nil {
		return nil, err
	}
	defer s.close()
	w, err := t.newWindow()
	if err != nil {
		return nil, err
	}
	var first histogram
	if err := s.run(ctx, w, &first); err != nil {
		return nil, err
	}
	n := float64(w.counted())
	m := measured{rate: n / w.seconds()}
	m.latencies(&first)
	m.cost(w, n, 1e6)
	return m, nil
}

// atStart looks at the proxy when it has served one connection.
func atStart(ctx context.Context, t *trial) (measured, error) {
	if t.way.proxy == nil {
		return measured{}, nil
	}
	pause(ctx, t.length/2)
	u, err := t.way.proxy.usage()
	return measured{resident: float64(u.resident) / (1 << 20), descriptors: float64(u.descriptors)}, err
}
