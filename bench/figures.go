//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"understudy/bench/program"

	"golang.org/x/sys/unix"
)

// trial is one measurement of one figure on one way.
type trial struct {
	shape   shape
	way     *way
	backend *backend
	length  time.Duration // of the window
	rate    float64       // of the open loop, messages a second
	alone   int64         // resident memory of the proxy with one relay
}

// measured holds the values of a trial by metric.
type measured map[string]float64

// figure is something that is measured.
type figure struct {
	name, title string
	shape       shape
	metrics     []metric
	connections int    // that the proxy holds at one time
	congestion  string // congestion control to run under, "" for the machine's
	leg         string // which side of the proxy is a unix socket, if any
	relays      int    // with two hosts each; zero is one relay with one host
	run         func(ctx context.Context, t *trial) (measured, error)
}

// The sides of a proxy, for figures with one unix leg.
const (
	clientLeg = "client"
	hostLeg   = "host"
)

// withLeg is f with a unix socket on one side.
func (f figure) withLeg(leg string) figure {
	kind, rest, _ := strings.Cut(f.name, "/")
	f.name = kind + "-unix-" + leg + "/" + rest
	f.title += ", " + leg + " by a unix socket"
	f.leg = leg
	return f
}

// id is the name that -only matches.
func (f figure) id() string { return f.name + "/" + string(f.shape) }

// skipError is the reason why a figure cannot be measured here; that is no
// failure of the peer.
type skipError struct{ reason string }

func (e skipError) Error() string { return e.reason }

var echoSizes = []struct {
	name string
	size int
}{{"64B", 64}, {"1KiB", 1 << 10}, {"16KiB", 16 << 10}}

// figures lists all of them in the order in which they are measured. Short
// connections come last: their sockets in TIME_WAIT have ended when the memory
// of idle connections is measured, a round later.
func figures() []figure {
	var list []figure
	for _, n := range []int{1, 64, 1000} {
		for _, s := range echoSizes {
			list = append(list, echoFigure(usual, s.name, s.size, n))
		}
	}
	list = append(list, echoFigure(usual, "64B", 64, 100), echoFigure(usual, "64B", 64, 9000))
	for _, s := range []shape{lean, wide} {
		list = append(list, echoFigure(s, "64B", 64, 64), echoFigure(s, "1KiB", 1<<10, 64), echoFigure(s, "64B", 64, 1000))
	}
	for _, leg := range []string{clientLeg, hostLeg} {
		list = append(list, echoFigure(lean, "64B", 64, 64).withLeg(leg))
	}
	list = append(list,
		figure{
			name: "own-core/64B/1", title: "echo 64 B, 1 connection, proxy on a processor of its own", shape: usual,
			metrics: echoMetrics, connections: 1, run: ownCore,
		},
		figure{
			name: "open/64B/64", title: "open loop 64 B, 64 connections", shape: usual,
			metrics: echoMetrics, connections: 64, run: openLoop,
		})
	for _, n := range []int{1, 8, 64, 200} {
		list = append(list, bulkFigure(usual, "", n))
	}
	list = append(list, bulkFigure(usual, "bbr", 8), bulkFigure(usual, "cubic", 8))
	for _, s := range []shape{lean, wide} {
		list = append(list, bulkFigure(s, "", 1), bulkFigure(s, "", 8))
	}
	for _, leg := range []string{clientLeg, hostLeg} {
		list = append(list, bulkFigure(lean, "", 8).withLeg(leg))
	}
	for _, s := range []shape{usual, lean} {
		list = append(list, figure{
			name: "mixed/64B/8", title: "echo 64 B, 1 connection, beside 8 bulk streams", shape: s,
			metrics: mixedMetrics, connections: 9, run: mixed,
		})
	}
	list = append(list,
		figure{
			name: "start", title: "at start", shape: usual, metrics: startMetrics, run: atStart,
		},
		idleFigure(1000), idleFigure(9000),
		relaysFigure(1), relaysFigure(40), relaysFigure(maxRelays))
	for _, s := range shapes {
		list = append(list, figure{
			name: "connect/16", title: "connect, 64 B, 64 B, close; 16 at a time", shape: s,
			metrics: connectMetrics, connections: 16, run: shortConnections,
		})
	}
	return list
}

func echoFigure(s shape, name string, size, n int) figure {
	return figure{
		name:        fmt.Sprintf("echo/%s/%d", name, n),
		title:       fmt.Sprintf("echo %s, %s", spell(size), plural(n)),
		shape:       s,
		metrics:     echoMetrics,
		connections: n,
		run: func(ctx context.Context, t *trial) (measured, error) {
			return closedLoop(ctx, t, size, n)
		},
	}
}

func bulkFigure(s shape, congestion string, n int) figure {
	f := figure{
		name:        fmt.Sprintf("bulk/%d", n),
		title:       "bulk, " + plural(n),
		shape:       s,
		metrics:     bulkMetrics,
		connections: n,
		congestion:  congestion,
		run: func(ctx context.Context, t *trial) (measured, error) {
			return bulk(ctx, t, n)
		},
	}
	if congestion != "" {
		f.name = fmt.Sprintf("bulk-%s/%d", congestion, n)
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

// newWindow is a window of t, with a quarter of its length to warm up.
func (t *trial) newWindow() (*window, error) {
	w := &window{warm: t.length / 4, length: t.length}
	if t.way.proxy == nil {
		return w, nil
	}
	var err error
	w.busy, err = t.way.proxy.busy()
	return w, err
}

// share is the part of a load that one thread makes.
type share struct {
	window  *window
	latency histogram
	n       float64 // of what the figure counts, in the window
}

// perSecond is the rate of all shares together. Their windows open and close
// within one turn of a loop of each other.
func perSecond(shares []*share) float64 {
	sum := 0.0
	for _, s := range shares {
		sum += s.n / s.window.seconds()
	}
	return sum
}

// inThreads runs load in n threads at once, each with a window of its own, and
// returns their shares. In the usual shape it is the thread that calls.
func (t *trial) inThreads(n int, load func(i int, s *share) error) ([]*share, error) {
	shares := make([]*share, n)
	for i := range shares {
		w, err := t.newWindow()
		if err != nil {
			return nil, err
		}
		shares[i] = &share{window: w}
	}
	if t.shape == usual {
		return shares, load(0, shares[0])
	}
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range shares {
		all.Go(func() {
			errs[i] = load(i, shares[i])
		})
	}
	all.Wait()
	return shares, errors.Join(errs...)
}

// deal divides fds among at most n threads.
func deal(fds []int, n int) [][]int {
	parts := make([][]int, min(n, len(fds)))
	for i, fd := range fds {
		parts[i%len(parts)] = append(parts[i%len(parts)], fd)
	}
	return parts
}

// latencies adds the percentiles of h to m, in µs.
func (m measured) latencies(h *histogram) {
	for key, p := range map[string]float64{p50: 50, p99: 99, p999: 99.9} {
		m[key] = float64(h.percentile(p)) / 1e3
	}
}

// cost adds the proxy's processor time for each of what comes perSecond in w, in
// units of a second/scale.
func (m measured) cost(w *window, perSecond, scale float64) {
	if w.busy != nil {
		m[processor] = w.used() / w.seconds() / perSecond * scale
	}
}

// echo opens n echo connections for load, which measures in a share.
func echo(t *trial, size, n int, load func(e *echoes, s *share) error) (measured, error) {
	fds, err := open(t.way.addr, n, roleEcho)
	if err != nil {
		return nil, err
	}
	defer abort(fds)
	parts := deal(fds, t.shape.clients())
	shares, err := t.inThreads(len(parts), func(i int, s *share) error {
		p, err := newPoller(t.shape)
		if err != nil {
			return err
		}
		defer p.close()
		e, err := newEchoes(p, t.shape, parts[i], size)
		if err != nil {
			return err
		}
		return load(e, s)
	})
	if err != nil {
		return nil, err
	}
	return messages(shares), nil
}

// messages returns the figures of echoes: their rate, latencies and processor time.
func messages(shares []*share) measured {
	var all histogram
	for _, s := range shares {
		s.n = float64(s.latency.n)
		all.add(&s.latency)
	}
	m := measured{rate: perSecond(shares)}
	m.latencies(&all)
	m.cost(shares[0].window, m[rate], 1e6)
	return m
}

func closedLoop(ctx context.Context, t *trial, size, n int) (measured, error) {
	return echo(t, size, n, func(e *echoes, s *share) error {
		return e.closedLoop(ctx, s.window, &s.latency, nil)
	})
}

func openLoop(ctx context.Context, t *trial) (measured, error) {
	return echo(t, 64, 64, func(e *echoes, s *share) error {
		return e.openLoop(ctx, t.rate, s.window, &s.latency)
	})
}

// ownCore gives the proxy the last processor and all other processes the
// others.
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
	ours := []int{os.Getpid(), t.backend.PID()}
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
	parts := deal(fds, t.shape.clients())
	shares, err := t.inThreads(len(parts), func(i int, s *share) error {
		p, err := newPoller(t.shape)
		if err != nil {
			return err
		}
		defer p.close()
		stream, err := newSink(p, parts[i])
		if err != nil {
			return err
		}
		s.window.count = stream.received.Load
		s.window.start()
		err = stream.run(ctx, s.window)
		s.n = float64(s.window.counted()) / 1e9
		return err
	})
	if err != nil {
		return nil, err
	}
	m := measured{rate: perSecond(shares)}
	m.cost(shares[0].window, m[rate], 1)
	return m, nil
}

// mixed lets 8 bulk streams flow and measures one echo connection beside them:
// in the usual shape they flow in a thread of their own. It takes twice the
// usual time: a proxy that makes small messages wait gives few samples, and a
// busy machine lets a thread wait for long.
func mixed(ctx context.Context, t *trial) (measured, error) {
	streams, err := open(t.way.addr, 8, roleSource)
	if err != nil {
		return nil, err
	}
	defer abort(streams)
	small, err := open(t.way.addr, 1, roleEcho)
	if err != nil {
		return nil, err
	}
	defer abort(small)
	p, err := newPoller(t.shape)
	if err != nil {
		return nil, err
	}
	defer p.close()
	e, err := newEchoes(p, t.shape, small, 64)
	if err != nil {
		return nil, err
	}
	longer := *t
	longer.length = max(2*t.length, 200*time.Millisecond)
	w, err := longer.newWindow()
	if err != nil {
		return nil, err
	}
	s := &share{window: w}
	if t.shape == usual {
		err = besideThread(ctx, e, s, streams)
	} else {
		err = besideLoop(ctx, e, s, streams)
	}
	if err != nil {
		return nil, err
	}
	if w.counted() == 0 {
		return nil, errors.New("no bulk byte came while the small messages were measured")
	}
	m := messages([]*share{s})
	delete(m, processor) // the part of the messages is unknown
	m[bulkRate] = float64(w.counted()) / 1e9 / w.seconds()
	return m, nil
}

// besideLoop measures e while the same thread reads streams.
func besideLoop(ctx context.Context, e *echoes, s *share, streams []int) error {
	bulk, err := newSink(e.poller, streams)
	if err != nil {
		return err
	}
	s.window.count = bulk.received.Load
	return e.closedLoop(ctx, s.window, &s.latency, bulk)
}

// besideThread measures e while a thread of their own reads streams.
func besideThread(ctx context.Context, e *echoes, s *share, streams []int) error {
	p, err := newPoller(usual)
	if err != nil {
		return err
	}
	defer p.close()
	bulk, err := newSink(p, streams)
	if err != nil {
		return err
	}
	s.window.count = bulk.received.Load
	streaming, stop := context.WithCancel(ctx)
	defer stop()
	var streamErr error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		streamErr = bulk.run(streaming, nil)
	}()
	if err = bulk.flowing(ctx, ended); err == nil {
		err = e.closedLoop(ctx, s.window, &s.latency, nil)
	}
	stop()
	<-ended
	if !errors.Is(streamErr, context.Canceled) {
		err = errors.Join(err, fmt.Errorf("bulk: %w", streamErr))
	}
	return err
}

func shortConnections(ctx context.Context, t *trial) (measured, error) {
	const atOnce = 16
	n := min(t.shape.clients(), atOnce)
	shares, err := t.inThreads(n, func(i int, s *share) error {
		c, err := newShorts(t.shape, t.way.addr, (atOnce+i)/n) // together atOnce
		if err != nil {
			return err
		}
		defer c.close()
		err = c.run(ctx, s.window, &s.latency)
		s.n = float64(s.window.counted())
		return err
	})
	if err != nil {
		return nil, err
	}
	var first histogram
	for _, s := range shares {
		first.add(&s.latency)
	}
	m := measured{rate: perSecond(shares)}
	m.latencies(&first)
	m.cost(shares[0].window, m[rate], 1e6)
	return m, nil
}

// atStart measures the proxy when it has served one connection.
func atStart(ctx context.Context, t *trial) (measured, error) {
	if t.way.proxy == nil {
		return measured{}, nil
	}
	program.Pause(ctx, t.length/2)
	u, err := t.way.proxy.usage()
	return measured{resident: float64(u.resident) / (1 << 20), descriptors: float64(u.descriptors)}, err
}
