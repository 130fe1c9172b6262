package logs

import (
	"bufio"
	"bytes"
	"cmp"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// complete gives the settings of cfg that are zero the values that most tests
// use.
func complete(cfg Config) Config {
	cfg.Name = cmp.Or(cfg.Name, "understudy")
	cfg.Level = cmp.Or(cfg.Level, "info")
	cfg.Output = cmp.Or(cfg.Output, Stderr)
	if cfg.Stderr == nil {
		cfg.Stderr = &buffer{}
	}
	return cfg
}

// next reads one message from a TCP connection.
func next(t *testing.T, reader *bufio.Reader) map[string]any {
	t.Helper()
	text, err := reader.ReadBytes(0)
	if err != nil {
		t.Fatalf("after %q: %v", text, err)
	}
	return decode(t, text[:len(text)-1])
}

// patience is the deadline of what takes long on a busy machine only.
const patience = 5 * time.Minute

// buffer is written while it is read.
type buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// openLog opens a log that is closed with the test.
func openLog(t *testing.T, cfg Config) *Log {
	t.Helper()
	log, err := Open(complete(cfg))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close(time.Millisecond) })
	return log
}

// openOutput is openLog for an output that was made by the test.
func openOutput(t *testing.T, out output, trouble *failures, options hclog.LoggerOptions) *Log {
	t.Helper()
	log := &Log{}
	log.open(options, out, trouble)
	t.Cleanup(func() { log.Close(time.Millisecond) })
	return log
}

// quiet discards reports of trouble.
func quiet() *failures { return &failures{w: io.Discard} }

// flood logs records that are not read. It fails the test if a call waits for a reader:
// then the test would never get here, and a watchdog ends it.
func flood(t *testing.T, log *Log, records int) {
	t.Helper()
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		for i := range records {
			log.Logger().Info("something happened", "number", i, "text", strings.Repeat("x", 100))
		}
	}()
	select {
	case <-returned:
	case <-time.After(patience): // a deadline
		t.Fatal("a caller waits for a reader that takes nothing")
	}
	if lost := log.queue.lost.Load(); lost == 0 || lost >= uint64(records) {
		t.Errorf("%d of %d lines lost without a reader, want some", lost, records)
	}
}

// reportedLost adds up what the notices in text say.
func reportedLost(text string) (lost int) {
	for _, m := range notice.FindAllStringSubmatch(text, -1) {
		n, _ := strconv.Atoi(m[1])
		lost += n
	}
	return lost
}
