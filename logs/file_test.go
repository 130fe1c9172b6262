package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestFileIsAppendedToAndForFewToRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for range 2 {
		log := openLog(t, Config{Output: path})
		log.Logger().Info("one")
		log.Close(patience)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode(); mode&^0o640 != 0 {
		t.Errorf("mode %v, want 0640 at most", mode)
	}
	if text := readFile(t, path); strings.Count(text, "understudy: one\n") != 2 {
		t.Errorf("the file has %q, want both lines", text)
	}
}

// logrotate(8) moves the file and sends HUP: every line is in one of the files,
// once, and in its place.
func TestReopenUnderLoadLosesAndDuplicatesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	log := openLog(t, Config{Output: path})
	const writers, lines, turns = 4, 1000, 10 // fewer lines than the queue holds
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for i := range lines {
				log.Logger().Info("line", "writer", w, "number", i)
				if i%50 == 0 {
					time.Sleep(time.Millisecond) // so that the file is changed under a writer
				}
			}
		})
	}
	files := make([]string, 0, turns+1)
	for i := range turns {
		old := fmt.Sprintf("%s.%02d", path, i)
		if err := os.Rename(path, old); err != nil {
			t.Fatal(err)
		}
		if err := log.Reopen(); err != nil {
			t.Fatal(err)
		}
		files = append(files, old)
		before := readFile(t, old)
		log.Logger().Info("turned", "turn", i)
		proctest.Until(t, "the new file is written to", func() bool {
			return strings.Contains(readFile(t, path), fmt.Sprintf("turned: turn=%d\n", i))
		})
		if after := readFile(t, old); after != before {
			t.Errorf("after Reopen the old file got %q", after[len(before):])
		}
	}
	writing.Wait()
	log.Close(patience)
	var text string
	for _, file := range append(files, path) {
		part := readFile(t, file)
		if !strings.HasSuffix(part, "\n") && part != "" {
			t.Errorf("%s ends within a line", file)
		}
		text += part
	}
	next := make([]int, writers)
	for _, m := range regexp.MustCompile(`line: writer=(\d+) number=(\d+)\n`).FindAllStringSubmatch(text, -1) {
		var w, n int
		fmt.Sscan(m[1], &w)
		fmt.Sscan(m[2], &n)
		if n != next[w] {
			t.Fatalf("writer %d: line %d where %d is due", w, n, next[w])
		}
		next[w]++
	}
	for w, n := range next {
		if n != lines {
			t.Errorf("writer %d: %d lines, want %d", w, n, lines)
		}
	}
	if log.queue.lost.Load() != 0 {
		t.Errorf("%d lines lost", log.queue.lost.Load())
	}
}

func TestReopenThatFailsKeepsTheOldFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	moved := dir + ".old"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	log := openLog(t, Config{Output: filepath.Join(dir, "log")})
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	if err := log.Reopen(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), dir) {
		t.Errorf("Reopen: %v, want one that says that %s is missing", err, dir)
	}
	log.Logger().Info("one")
	log.Close(patience)
	if text := readFile(t, filepath.Join(moved, "log")); !strings.Contains(text, "one") {
		t.Errorf("the old file has %q", text)
	}
}

func TestReopenOfOtherOutputsAndOfAClosedLog(t *testing.T) {
	log := openLog(t, Config{})
	if err := log.Reopen(); err != nil {
		t.Error(err)
	}
	log = openLog(t, Config{Output: filepath.Join(t.TempDir(), "log")})
	log.Close(patience)
	if err := log.Reopen(); !errors.Is(err, errClosed) {
		t.Errorf("Reopen of a closed log: %v, want %v", err, errClosed)
	}
}

// A named pipe is a file that may have no reader, or one that stops.
func TestNamedPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(complete(Config{Output: path})); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Open of a pipe without a reader: %v", err)
	}
	reader, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	log := openLog(t, Config{Output: path})
	flood(t, log, 30_000)
	ran := false
	if err := log.queue.do(func() { ran = true }, 20*time.Millisecond); !errors.Is(err, errBlocked) {
		t.Errorf("a job behind a stuck line: %v, want %v", err, errBlocked)
	}
	log.Close(20 * time.Millisecond)
	<-log.queue.done // a full pipe blocks no caller for good
	if ran {
		t.Error("a job ran that was withdrawn")
	}
	if got := log.queue.waiting.Load(); got != 0 {
		t.Errorf("%d bytes wait in a closed log", got)
	}
}
