package main

import (
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/config"
)

const (
	logQueueLines = 4096
	logQueueBytes = 1 << 20
)

// logQueue is a writer that never blocks: a reader of the log who stops, or a
// disk that is full, must not delay an election or a connection. What does not
// fit is dropped and counted, and the count is written once there is room.
type logQueue struct {
	out     io.Writer
	notice  func(lost uint64) []byte // the line that says how many were lost
	lines   chan []byte
	waiting atomic.Int64  // bytes in lines
	lost    atomic.Uint64 // lines dropped and not yet told
	written chan struct{} // gets a token for each line; full when nobody looks
	closing chan struct{}
	done    chan struct{}
}

func newLogQueue(out io.Writer, notice func(lost uint64) []byte) *logQueue {
	q := &logQueue{
		out: out, notice: notice,
		lines:   make(chan []byte, logQueueLines),
		written: make(chan struct{}, 1),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
	}
	go q.drain()
	return q
}

// Write queues a copy of line, or drops it. It never fails and never waits.
func (q *logQueue) Write(line []byte) (int, error) {
	if q.waiting.Add(int64(len(line))) > logQueueBytes {
		q.waiting.Add(-int64(len(line)))
		q.lost.Add(1)
		return len(line), nil
	}
	select {
	case q.lines <- append([]byte(nil), line...):
	default:
		q.waiting.Add(-int64(len(line)))
		q.lost.Add(1)
	}
	return len(line), nil
}

// drain writes what is queued until the queue is closed and empty.
func (q *logQueue) drain() {
	defer close(q.done)
	for {
		select {
		case line := <-q.lines:
			q.write(line)
		case <-q.closing:
			for {
				select {
				case line := <-q.lines:
					q.write(line)
				default:
					return
				}
			}
		}
	}
}

func (q *logQueue) write(line []byte) {
	q.waiting.Add(-int64(len(line)))
	if _, err := q.out.Write(line); err != nil {
		q.lost.Add(1) // a full disk, a closed pipe: tell when it works again
	} else if lost := q.lost.Swap(0); lost > 0 {
		if _, err := q.out.Write(q.notice(lost)); err != nil {
			q.lost.Add(lost)
		}
	}
	select {
	case q.written <- struct{}{}:
	default:
	}
}

// Close waits until everything is written, and gives up when nothing moves for
// patience: the end of the program waits for no reader.
func (q *logQueue) Close(patience time.Duration) {
	close(q.closing)
	for {
		select {
		case <-q.done:
			return
		case <-q.written:
		case <-time.After(patience):
			return
		}
	}
}

// newLogger makes the program's logger. Everything is written through the
// queue, which the caller closes at the end.
func newLogger(cfg config.Log, stdout, stderr io.Writer) (hclog.Logger, *logQueue) {
	out := stderr
	if cfg.Stdout {
		out = stdout
	}
	q := newLogQueue(out, func(lost uint64) []byte { return lostNotice(cfg.JSON, lost) })
	return hclog.New(&hclog.LoggerOptions{
		Name:       "understudy",
		Level:      hclog.LevelFromString(cfg.Level),
		JSONFormat: cfg.JSON,
		Output:     q,
	}), q
}

// lostNotice is the log line about lost lines. It cannot go through the
// logger, whose queue is the place that it is missing from.
func lostNotice(asJSON bool, lost uint64) []byte {
	const message = "log lines lost"
	now := time.Now()
	if asJSON {
		line, err := json.Marshal(map[string]any{
			"@level": "warn", "@message": message, "@module": "understudy",
			"@timestamp": now.Format("2006-01-02T15:04:05.000000Z07:00"), "lost": lost,
		})
		if err == nil {
			return append(line, '\n')
		}
	}
	return fmt.Appendf(nil, "%s [WARN]  understudy: %s: lost=%d\n", now.Format(hclog.TimeFormat), message, lost)
}
