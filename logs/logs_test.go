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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"understudy/internal/proctest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var notice = regexp.MustCompile(`log lines lost.*?lost"?[=:](\d+)`)

func TestStuckReaderDelaysNoCallerAndLossIsReported(t *testing.T) {
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
		kept, reported := strings.Count(text, "something happened"), reportedLost(text)
		if kept == 0 || reported == 0 || kept+reported != records || uint64(reported) != log.queue.lost.Load() {
			t.Errorf("json %v: %d kept and %d reported lost of %d records; Lost is %d", asJSON, kept, reported, records, log.queue.lost.Load())
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
	if log.queue.lost.Load() < 80 {
		t.Errorf("%d long lines lost, want most of 100", log.queue.lost.Load())
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
	log.Logger().Info("two") // no effect
	close(out.let)
	<-log.queue.done
	log.Close(time.Minute)
	if got := out.String(); strings.Count(got, "\n") != 1 || log.queue.lost.Load() != 1 {
		t.Errorf("written %q, %d lost, want one line each", got, log.queue.lost.Load())
	}
}

type slowWriter struct{ buffer }

func (w *slowWriter) Write(p []byte) (int, error) {
	time.Sleep(5 * time.Millisecond) // what makes it slow
	return w.buffer.Write(p)
}

func TestClosingALogWaitsForASlowReader(t *testing.T) {
	out := &slowWriter{}
	log := openLog(t, Config{Output: Stdout, Stdout: out})
	for range 20 {
		log.Logger().Info("one")
	}
	log.Close(patience) // patience is for each line, not for all of them
	if got := strings.Count(out.String(), "\n"); got != 20 || log.queue.lost.Load() != 0 {
		t.Errorf("%d lines written and %d lost, want 20 and 0", got, log.queue.lost.Load())
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

func TestLinesLostToAFullDiskAreReported(t *testing.T) {
	disk := &fullDisk{room: 10}
	errs := &buffer{}
	log := openOutput(t, &stream{w: disk}, &failures{who: "understudy", output: "/log", w: errs},
		hclog.LoggerOptions{Name: "understudy", DisableTime: true})
	for i, message := range []string{"one", "two"} {
		log.Logger().Info(message)
		proctest.Until(t, message+" is lost", func() bool { return log.queue.lost.Load() == uint64(i+1) })
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
		t.Errorf("reported %q, want %q", errs.String(), tale)
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
	if log.queue.lost.Load() != 100 || strings.Count(errs.String(), "no space left on device") != 1 {
		t.Errorf("%d lines lost, reported %q, want all 100, reported once", log.queue.lost.Load(), errs.String())
	}
}

func TestValueWithoutWordsIsALostLine(t *testing.T) {
	out := &buffer{}
	log := openLog(t, Config{JSON: true, Output: Stdout, Stdout: out})
	log.Logger().Info("one", "value", math.NaN()) // hclog writes nothing at all
	log.Logger().Info("two")
	log.Close(patience)
	if text := out.String(); log.queue.lost.Load() != 1 || reportedLost(text) != 1 {
		t.Errorf("%d lost, written %s", log.queue.lost.Load(), text)
	}
}

func TestClosingTellsWhatWasLostAtLast(t *testing.T) {
	out := &buffer{}
	log := openLog(t, Config{JSON: true, Output: Stdout, Stdout: out})
	log.Logger().Info("one", "value", math.NaN())
	log.Close(patience)
	if text := out.String(); log.queue.lost.Load() != 1 || reportedLost(text) != 1 {
		t.Errorf("%d lost, written %s", log.queue.lost.Load(), text)
	}
}

func TestJobThatIsWithdrawnDoesNotRun(t *testing.T) {
	out := &stuckWriter{let: make(chan struct{})}
	log := openLog(t, Config{Stderr: out})
	log.Logger().Info("one")
	ran := false
	if err := log.queue.do(func() { ran = true }, 20*time.Millisecond); !errors.Is(err, errBlocked) {
		t.Errorf("a job behind a stuck line: %v, want %v", err, errBlocked)
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
		{Config{Output: Stdout}, `log level ""`},
		{Config{Level: "info"}, `log output ""`},
		{Config{Level: "info", Output: "somewhere"}, `"somewhere"`},
		{Config{Level: "info", Output: "relative/log"}, `"relative/log"`},
		{Config{Level: "info", Output: "gelf+tcp://host"}, "gelf+tcp://host: "},
		{Config{Level: "info", Output: "gelf+udp://"}, "gelf+udp://: "},
		{Config{Level: "info", Output: dir}, dir},
		{Config{Level: "info", Output: filepath.Join(dir, "missing", "log")}, filepath.Join(dir, "missing", "log")},
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
