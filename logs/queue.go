package logs

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	queueLines = 4096
	queueBytes = 1 << 20

	// abandonGrace is how long an output that was told to give up may take to
	// do so.
	abandonGrace = 100 * time.Millisecond
)

// record is one line on its way to the output.
type record struct {
	level hclog.Level
	at    time.Time
	line  []byte // with the newline

	// job, if set, is run in the record's turn instead.
	job *job
}

// output is where records end up. One goroutine calls it.
type output interface {
	// write takes as long as it needs, and ends early only when ctx does. An
	// error says that the record is lost.
	write(ctx context.Context, r record) error
	close()
}

// queue is a writer that never blocks in front of an output that may. What
// does not fit is dropped and counted, and the count is written once there is
// room.
type queue struct {
	out     output
	trouble *trouble

	// notice makes the line about lost lines into words. It cannot go through
	// the logger, whose queue is the place that it is missing from.
	notice hclog.Logger
	words  bytes.Buffer
	told   uint64 // lost lines that a notice told of

	records chan record
	waiting atomic.Int64  // bytes in records
	lost    atomic.Uint64 // lines

	moved   chan struct{} // gets a token for each record; full when nobody looks
	once    sync.Once
	closing chan struct{}
	abandon context.CancelFunc // ends what the output is at
	done    chan struct{}
}

// newQueue starts a queue of lines that are made with options.
func newQueue(out output, trouble *trouble, options hclog.LoggerOptions) *queue {
	q := &queue{
		out: out, trouble: trouble,
		records: make(chan record, queueLines),
		moved:   make(chan struct{}, 1),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
	}
	options.Level, options.Output = hclog.Warn, &q.words
	q.notice = hclog.New(&options)
	ctx, abandon := context.WithCancel(context.Background())
	q.abandon = abandon
	go q.drain(ctx)
	return q
}

// Write is LevelWrite for who knows no level.
func (q *queue) Write(line []byte) (int, error) { return q.LevelWrite(hclog.Info, line) }

// LevelWrite queues a copy of line, or drops it. It never fails and never
// waits.
func (q *queue) LevelWrite(level hclog.Level, line []byte) (int, error) {
	if len(line) == 0 {
		q.lost.Add(1) // a value that hclog cannot put into words
		return 0, nil
	}
	size := int64(len(line))
	if q.waiting.Add(size) > queueBytes {
		q.drop(size)
		return len(line), nil
	}
	select {
	case q.records <- record{level: level, at: time.Now(), line: bytes.Clone(line)}:
	default:
		q.drop(size)
	}
	return len(line), nil
}

func (q *queue) drop(size int64) {
	q.waiting.Add(-size)
	q.lost.Add(1)
}

// drain writes what is queued until the queue is closed and empty, or ctx ends.
func (q *queue) drain(ctx context.Context) {
	defer close(q.done)
	defer q.out.close()
	for {
		select {
		case r := <-q.records:
			q.write(ctx, r)
			continue
		case <-q.closing:
		}
		select {
		case r := <-q.records:
			q.write(ctx, r)
		default:
			q.tell(ctx) // the last chance
			return
		}
	}
}

func (q *queue) write(ctx context.Context, r record) {
	switch {
	case r.job != nil:
		r.job.run()
	case ctx.Err() != nil: // given up
		q.drop(int64(len(r.line)))
	default:
		q.waiting.Add(-int64(len(r.line)))
		if err := q.out.write(ctx, r); err != nil {
			q.lost.Add(1)
			q.trouble.began(ctx, err)
		} else {
			q.trouble.ended()
			q.tell(ctx)
		}
	}
	select {
	case q.moved <- struct{}{}:
	default:
	}
}

// tell writes how many lines were lost since it was told last. If that fails,
// as on a full disk, it is told when it works again.
func (q *queue) tell(ctx context.Context) {
	lost := q.lost.Load()
	if lost == q.told || ctx.Err() != nil {
		return
	}
	q.words.Reset()
	q.notice.Warn("log lines lost", "lost", lost-q.told)
	if q.out.write(ctx, record{level: hclog.Warn, at: time.Now(), line: q.words.Bytes()}) == nil {
		q.told = lost
	}
}

// close waits until everything is written, or nothing has moved for patience.
func (q *queue) close(patience time.Duration) {
	q.once.Do(func() { close(q.closing) })
	defer q.abandon()
	for {
		select {
		case <-q.done:
			return
		case <-q.moved:
			continue
		case <-time.After(patience):
		}
		q.abandon()
		select {
		case <-q.done:
		case <-time.After(abandonGrace):
		}
		return
	}
}

// job is a function that runs once, or never when it was withdrawn before.
type job struct {
	f     func()
	taken atomic.Bool
	ran   chan struct{}
}

func (j *job) run() {
	if j.taken.CompareAndSwap(false, true) {
		j.f()
		close(j.ran)
	}
}

// do runs f after everything that is queued. If its turn does not come within
// patience, or never, f does not run and that is the error.
func (q *queue) do(f func(), patience time.Duration) error {
	j := &job{f: f, ran: make(chan struct{})}
	timeout := time.After(patience)
	select {
	case q.records <- record{job: j}:
	case <-q.done:
		return errClosed
	case <-timeout:
		return errStuck
	}
	err := errStuck
	select {
	case <-j.ran:
		return nil
	case <-q.done:
		err = errClosed
	case <-timeout:
	}
	if j.taken.CompareAndSwap(false, true) {
		return err
	}
	<-j.ran
	return nil
}
