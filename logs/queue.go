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

	// abandonGrace is the longest time that an output may take to return after its
	// context was cancelled.
	abandonGrace = 100 * time.Millisecond
)

// record is one line on its way to the output.
type record struct {
	level hclog.Level
	at    time.Time
	line  []byte // with the newline

	// job, if set, is run instead of writing line.
	job *job
}

// output writes records. Only one goroutine calls it.
type output interface {
	// write blocks until the record is written or ctx ends. An error means that
	// the record is lost.
	write(ctx context.Context, r record) error
	close()
}

// queue is a writer that never blocks, in front of an output that may. Records that do
// not fit are dropped and counted, and the count is written once there is room.
type queue struct {
	out     output
	trouble *failures

	// notice formats the line about lost lines. It does not use the logger,
	// which would put the line into the full queue.
	notice   hclog.Logger
	words    bytes.Buffer
	reported uint64 // lost lines that were reported by a notice

	records chan record
	waiting atomic.Int64  // bytes in records
	lost    atomic.Uint64 // lines

	moved   chan struct{} // gets a token for each record; full while close and do do not read it
	once    sync.Once
	closing chan struct{}
	abandon context.CancelFunc // cancels the write in progress
	done    chan struct{}
}

// newQueue starts a queue of lines that a logger with options writes.
func newQueue(out output, trouble *failures, options hclog.LoggerOptions) *queue {
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

// Write is LevelWrite without a level.
func (q *queue) Write(line []byte) (int, error) { return q.LevelWrite(hclog.Info, line) }

// LevelWrite queues a copy of line, or drops it. It never fails and never
// waits.
func (q *queue) LevelWrite(level hclog.Level, line []byte) (int, error) {
	if len(line) == 0 {
		q.lost.Add(1) // a value that hclog cannot format
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
			q.writeNotice(ctx) // nothing is written after this
			return
		}
	}
}

func (q *queue) write(ctx context.Context, r record) {
	switch {
	case r.job != nil:
		r.job.run()
	case ctx.Err() != nil: // cancelled
		q.drop(int64(len(r.line)))
	default:
		q.waiting.Add(-int64(len(r.line)))
		if err := q.out.write(ctx, r); err != nil {
			q.lost.Add(1)
			q.trouble.began(ctx, err)
		} else {
			q.trouble.ended()
			q.writeNotice(ctx)
		}
	}
	select {
	case q.moved <- struct{}{}:
	default:
	}
}

// writeNotice writes the number of lines that were lost since the last notice. If that
// fails, as on a full disk, the next notice includes them.
func (q *queue) writeNotice(ctx context.Context) {
	lost := q.lost.Load()
	if lost == q.reported || ctx.Err() != nil {
		return
	}
	q.words.Reset()
	q.notice.Warn("log lines lost", "lost", lost-q.reported)
	if q.out.write(ctx, record{level: hclog.Warn, at: time.Now(), line: q.words.Bytes()}) == nil {
		q.reported = lost
	}
}

// close waits until everything is written, or nothing was written for timeout.
func (q *queue) close(timeout time.Duration) {
	q.once.Do(func() { close(q.closing) })
	defer q.abandon()
	for {
		select {
		case <-q.done:
			return
		case <-q.moved:
			continue
		case <-time.After(timeout):
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

// do runs f after everything that is queued. If that takes longer than timeout, or the
// queue is closed, it does not run f and returns an error.
func (q *queue) do(f func(), timeout time.Duration) error {
	j := &job{f: f, ran: make(chan struct{})}
	expired := time.After(timeout)
	select {
	case q.records <- record{job: j}:
	case <-q.done:
		return errClosed
	case <-expired:
		return errBlocked
	}
	err := errBlocked
	select {
	case <-j.ran:
		return nil
	case <-q.done:
		err = errClosed
	case <-expired:
	}
	if j.taken.CompareAndSwap(false, true) {
		return err
	}
	<-j.ran
	return nil
}
