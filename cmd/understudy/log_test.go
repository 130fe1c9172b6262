package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/config"
)

// stuckWriter blocks in Write until it is let go.
type stuckWriter struct {
	let chan struct{}

	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	<-w.let
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

func (w *stuckWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

func TestStuckLogDelaysNobodyAndCountsWhatIsLost(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		out := &stuckWriter{let: make(chan struct{})}
		log, queue := newLogger(config.Log{Level: "info", JSON: asJSON}, nil, out)

		begin := time.Now()
		const records = 3 * logQueueLines
		for range records {
			log.Info("something happened", "text", strings.Repeat("x", 100))
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("%d records took %v with a stuck reader", records, took)
		}
		close(out.let)
		queue.Close(10 * time.Second)

		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		kept, told := 0, 0
		for _, line := range lines {
			switch {
			case strings.Contains(line, "something happened"):
				kept++
			case asJSON:
				var notice struct{ Lost int }
				if err := json.Unmarshal([]byte(line), &notice); err != nil {
					t.Errorf("notice %q: %v", line, err)
				}
				told += notice.Lost
			default:
				_, count, _ := strings.Cut(line, "log lines lost: lost=")
				n := 0
				for _, c := range count {
					n = 10*n + int(c-'0')
				}
				told += n
			}
		}
		if kept == 0 || told == 0 || kept+told != records {
			t.Errorf("json %v: %d kept and %d told lost of %d records", asJSON, kept, told, records)
		}
	}
}

func TestClosingAStuckLogGivesUp(t *testing.T) {
	out := &stuckWriter{let: make(chan struct{})}
	log, queue := newLogger(config.Log{Level: "info"}, nil, out)
	log.Info("one")
	begin := time.Now()
	queue.Close(20 * time.Millisecond)
	if took := time.Since(begin); took < 20*time.Millisecond || took > 5*time.Second {
		t.Errorf("Close took %v, want a little over 20ms", took)
	}
	close(out.let)
	<-queue.done
}

func TestClosingALogWaitsForASlowReader(t *testing.T) {
	out := &slowWriter{}
	log, queue := newLogger(config.Log{Level: "info", Stdout: true}, out, nil)
	for range 20 {
		log.Info("one")
	}
	queue.Close(5 * time.Second) // patience is for each line, not for all of them
	if got := strings.Count(out.String(), "\n"); got != 20 {
		t.Errorf("%d lines written, want 20", got)
	}
}

type slowWriter struct{ bytes.Buffer }

func (w *slowWriter) Write(p []byte) (int, error) {
	time.Sleep(5 * time.Millisecond)
	return w.Buffer.Write(p)
}

// fullDisk fails until there is room.
type fullDisk struct {
	room bool
	bytes.Buffer
}

func (w *fullDisk) Write(p []byte) (int, error) {
	if !w.room {
		return 0, errors.New("no space left on device")
	}
	return w.Buffer.Write(p)
}

func TestLinesLostToAFullDiskAreTold(t *testing.T) {
	disk := &fullDisk{}
	q := newLogQueue(disk, func(lost uint64) []byte { return lostNotice(false, lost) })
	_, _ = q.Write([]byte("one\n"))
	<-q.written
	disk.room = true
	_, _ = q.Write([]byte("two\n"))
	q.Close(5 * time.Second)
	if got := disk.String(); !strings.HasPrefix(got, "two\n") || !strings.HasSuffix(got, "lost=1\n") {
		t.Errorf("disk has %q, want two, and one line lost", got)
	}
}
