package hooks

import (
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// journalLimit bounds the records that wait for the log, in bytes.
const journalLimit = 1 << 20

// journal logs from a goroutine of its own, so that a log that is slow delays
// no script. What does not fit is dropped and counted.
type journal struct {
	wake chan struct{} // has an element when there is something to do
	done chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex // guards everything below
	waiting []record
	size    int // of waiting, in bytes
	lost    int // records dropped since the last one that was logged
	closed  bool
}

// record is one record to log, or, if reached is set, a mark in their order.
type record struct {
	log     hclog.Logger
	level   hclog.Level
	message string
	fields  []any
	size    int
	reached chan struct{}
}

func (j *journal) begin() {
	j.wake = make(chan struct{}, 1)
	j.done = make(chan struct{})
	go j.write()
}

// close ends the goroutine once everything is logged, and waits for that, but
// not longer than limit.
func (j *journal) close(limit time.Duration) {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	j.poke()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-j.done:
	case <-timer.C:
	}
}

// add queues one record and returns at once.
func (j *journal) add(log hclog.Logger, level hclog.Level, message string, fields []any, size int) {
	if level < hclog.Info && !log.IsDebug() {
		return
	}
	size += recordCost
	j.mu.Lock()
	if j.size+size > journalLimit {
		j.lost++
	} else {
		j.waiting = append(j.waiting, record{log: log, level: level, message: message, fields: fields, size: size})
		j.size += size
	}
	j.mu.Unlock()
	j.poke()
}

// flush waits until everything that was added before is logged, but not longer
// than limit.
func (j *journal) flush(limit time.Duration) {
	reached := make(chan struct{})
	j.mu.Lock()
	j.waiting = append(j.waiting, record{reached: reached})
	j.mu.Unlock()
	j.poke()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-reached:
	case <-timer.C:
	}
}

func (j *journal) poke() {
	select {
	case j.wake <- struct{}{}:
	default: // it has been told already
	}
}

// write logs what is queued until the journal is closed and empty.
func (j *journal) write() {
	defer close(j.done)
	var log hclog.Logger
	for {
		rec, lost, more, closed := j.next()
		if lost > 0 && log != nil {
			log.Warn("script output dropped, the log is too slow", "records", lost)
		}
		switch {
		case more && rec.reached != nil:
			close(rec.reached)
		case more:
			log = rec.log
			log.Log(rec.level, rec.message, rec.fields...)
		case closed:
			return
		default:
			<-j.wake
		}
	}
}

// next takes the first record off the queue, and with the last one the number
// of those that were lost.
func (j *journal) next() (rec record, lost int, more, closed bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.waiting) == 0 {
		lost, j.lost = j.lost, 0
		j.waiting = nil // give back what a burst took
		return record{}, lost, false, j.closed
	}
	rec = j.waiting[0]
	j.waiting[0] = record{}
	j.waiting = j.waiting[1:]
	j.size -= rec.size
	return rec, 0, true, false
}
