package logs

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is the deadline of what takes long on a busy machine only.
const patience = 5 * time.Minute

// eventually waits until cond holds, and fails the test after 5m.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("not within 5m: %s", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

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
	if cfg.Name == "" {
		cfg.Name = "understudy"
	}
	if cfg.Stderr == nil {
		cfg.Stderr = &buffer{}
	}
	log, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close(time.Millisecond) })
	return log
}

// openOutput is openLog for an output that was made by the test.
func openOutput(t *testing.T, out output, trouble *trouble, options hclog.LoggerOptions) *Log {
	t.Helper()
	log := &Log{}
	log.open(options, out, trouble)
	t.Cleanup(func() { log.Close(time.Millisecond) })
	return log
}

// quiet is trouble that nobody hears of.
func quiet() *trouble { return &trouble{w: io.Discard} }

// flood logs what nobody takes. It fails the test if a call waits for a reader:
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
	case <-time.After(patience):
		t.Fatal("a caller waits for a reader that takes nothing")
	}
	if lost := log.Lost(); lost == 0 || lost >= uint64(records) {
		t.Errorf("%d of %d lines lost while nobody reads, want some", lost, records)
	}
}

var notice = regexp.MustCompile(`log lines lost.*?lost"?[=:](\d+)`)

// toldLost adds up what the notices in text say.
func toldLost(text string) (lost int) {
	for _, m := range notice.FindAllStringSubmatch(text, -1) {
		n, _ := strconv.Atoi(m[1])
		lost += n
	}
	return lost
}

func TestStuckReaderDelaysNobodyAndIsToldWhatWasLost(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		log := openLog(t, Config{JSON: asJSON, Stderr: w})
		const records = 100_000
		flood(t, log, records)

		read := make(chan string)
		go func() {
			text, _ := io.ReadAll(r)
			read <- string(text)
		}()
		log.Close(patience)
		w.Close()
		text := <-read
		if asJSON {
			for line := range strings.Lines(text) {
				if !json.Valid([]byte(line)) {
					t.Errorf("not JSON: %q", line)
				}
			}
		}
		kept, told := strings.Count(text, "something happened"), toldLost(text)
		if kept == 0 || told == 0 || kept+told != records || uint64(told) != log.Lost() {
			t.Errorf("json %v: %d kept and %d told lost of %d records; Lost is %d", asJSON, kept, told, records, log.Lost())
		}
	}
}

func TestLongLinesDoNotFillTheMemory(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	log := openLog(t, Config{Stdout: w, Output: Stdout})
	for range 100 {
		log.Logger().Info(strings.Repeat("x", 100_000))
		if waiting := log.queue.waiting.Load(); waiting > queueBytes {
			t.Fatalf("%d bytes wait, want %d at most", waiting, queueBytes)
		}
	}
	if log.Lost() < 80 {
		t.Errorf("%d long lines lost, want most of 100", log.Lost())
	}
	log.Close(time.Millisecond)
	w.Close()
}

// stuckWriter blocks in Write until it is let go.
type stuckWriter struct {
	let chan struct{}
	buffer
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	<-w.let
	return w.buffer.Write(p)
}

func TestClosingAStuckLogGivesUp(t *testing.T) {
	out := &stuckWriter{let: make(chan struct{})}
	log := openLog(t, Config{Stderr: out})
	log.Logger().Info("one")
	begin := time.Now()
	log.Close(20 * time.Millisecond)
	if took := time.Since(begin); took < 20*time.Millisecond || took > 20*time.Second {
		t.Errorf("Close took %v, want a little over 20ms", took)
	}
	log.Logger().Info("two") // nobody cares, nothing breaks
	close(out.let)
	<-log.queue.done
	log.Close(time.Minute)
	if got := out.String(); strings.Count(got, "\n") != 1 || log.Lost() != 1 {
		t.Errorf("written %q, %d lost, want one line each", got, log.Lost())
	}
}

type slowWriter struct{ buffer }

func (w *slowWriter) Write(p []byte) (int, error) {
	time.Sleep(5 * time.Millisecond)
	return w.buffer.Write(p)
}

func TestClosingALogWaitsForASlowReader(t *testing.T) {
	out := &slowWriter{}
	log := openLog(t, Config{Output: Stdout, Stdout: out})
	for range 20 {
		log.Logger().Info("one")
	}
	log.Close(patience) // patience is for each line, not for all of them
	if got := strings.Count(out.String(), "\n"); got != 20 || log.Lost() != 0 {
		t.Errorf("%d lines written and %d lost, want 20 and 0", got, log.Lost())
	}
}

// fullDisk takes room bytes and fails then.
type fullDisk struct {
	mu   sync.Mutex // guards everything below
	room int
	b    bytes.Buffer
}

func (w *fullDisk) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(p), w.room)
	w.room -= n
	w.b.Write(p[:n])
	if n < len(p) {
		return n, errors.New("no space left on device")
	}
	return n, nil
}

func TestLinesLostToAFullDiskAreTold(t *testing.T) {
	disk := &fullDisk{room: 10}
	errs := &buffer{}
	log := openOutput(t, &stream{w: disk}, &trouble{who: "understudy", output: "/log", w: errs},
		hclog.LoggerOptions{Name: "understudy", DisableTime: true})
	for i, message := range []string{"one", "two"} {
		log.Logger().Info(message)
		eventually(t, message+" is lost", func() bool { return log.Lost() == uint64(i+1) })
	}
	disk.mu.Lock()
	disk.room = 1 << 20
	disk.mu.Unlock()
	log.Logger().Info("three")
	log.Close(patience)
	const want = "[INFO]  un\n[INFO]  understudy: three\n[WARN]  understudy: log lines lost: lost=2\n"
	if got := disk.b.String(); got != want {
		t.Errorf("disk has %q, want %q", got, want)
	}
	const tale = "understudy: log output /log does not work, trying on: no space left on device\n" +
		"understudy: log output /log works again\n"
	if errs.String() != tale {
		t.Errorf("told %q, want %q", errs.String(), tale)
	}
}

func TestFullDiskOfTheKernel(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip(err)
	}
	errs := &buffer{}
	log := openLog(t, Config{Output: "/dev/full", Stderr: errs})
	for range 100 {
		log.Logger().Info("one")
	}
	log.Close(patience)
	if log.Lost() != 100 || strings.Count(errs.String(), "no space left on device") != 1 {
		t.Errorf("%d lines lost, told %q, want all 100, told once", log.Lost(), errs.String())
	}
}

func TestValueWithoutWordsIsALostLine(t *testing.T) {
	out := &buffer{}
	log := openLog(t, Config{JSON: true, Output: Stdout, Stdout: out})
	log.Logger().Info("one", "value", math.NaN()) // hclog writes nothing at all
	log.Logger().Info("two")
	log.Close(patience)
	if text := out.String(); log.Lost() != 1 || toldLost(text) != 1 {
		t.Errorf("%d lost, written %s", log.Lost(), text)
	}
}

func TestClosingTellsWhatWasLostAtLast(t *testing.T) {
	out := &buffer{}
	log := openLog(t, Config{JSON: true, Output: Stdout, Stdout: out})
	log.Logger().Info("one", "value", math.NaN())
	log.Close(patience)
	if text := out.String(); log.Lost() != 1 || toldLost(text) != 1 {
		t.Errorf("%d lost, written %s", log.Lost(), text)
	}
}

func TestJobThatIsWithdrawnDoesNotRun(t *testing.T) {
	out := &stuckWriter{let: make(chan struct{})}
	log := openLog(t, Config{Stderr: out})
	log.Logger().Info("one")
	ran := false
	if err := log.queue.do(func() { ran = true }, 20*time.Millisecond); !errors.Is(err, errStuck) {
		t.Errorf("a job behind a stuck line: %v, want %v", err, errStuck)
	}
	close(out.let)
	log.Close(patience)
	if ran {
		t.Error("the job ran")
	}
}

func TestLevelChangesWhileItRuns(t *testing.T) {
	out := &buffer{}
	log := openLog(t, Config{Level: "warn", Output: Stdout, Stdout: out})
	named := log.Logger().Named("relay").With("relay", "orders")
	named.Info("a")
	log.SetLevel("debug")
	named.Debug("b")
	log.SetLevel("loud") // unknown: as it was
	named.Debug("c")
	log.SetLevel("off")
	named.Error("d")
	log.SetLevel("error")
	named.Error("e")
	log.Close(patience)
	got := regexp.MustCompile(`relay: (\w): relay=orders`).FindAllStringSubmatch(out.String(), -1)
	var messages string
	for _, m := range got {
		messages += m[1]
	}
	if messages != "bce" {
		t.Errorf("logged %q, want b, c and e:\n%s", messages, out.String())
	}
}

func TestOpenRefusesWhatCannotWork(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{Level: "loud"}, `"loud"`},
		{Config{Output: "somewhere"}, `"somewhere"`},
		{Config{Output: "relative/log"}, `"relative/log"`},
		{Config{Output: "gelf+tcp://host"}, "gelf+tcp://host: "},
		{Config{Output: "gelf+udp://"}, "gelf+udp://: "},
		{Config{Output: dir}, dir},
		{Config{Output: filepath.Join(dir, "missing", "log")}, filepath.Join(dir, "missing", "log")},
	} {
		log, err := Open(tt.cfg)
		if err == nil {
			log.Close(0)
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Open(%+v): error %v, want one with %s", tt.cfg, err, tt.want)
		}
	}
}
