package verdict

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// stateOf is the state of a member that a test changes.
type stateOf struct{ atomic.Pointer[error] }

func (s *stateOf) get() error { return *s.Load() }

func TestDeadFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "elastic.dead")
	var state stateOf
	set := func(err error) { state.Store(&err) }
	restart := func() *DeadFiles {
		d, err := NewDeadFiles(DeadFilesConfig{Dir: dir, Members: []Member{
			{Name: "elastic", State: state.get},
			{Name: "search", State: func() error { return errDead }, Ignore: true},
		}, Unknown: func(why error) bool { return errors.Is(why, errUnknown) }})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := restart()
	sync := func() {
		t.Helper()
		if err := d.sync(); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what, content string) {
		t.Helper()
		got, err := os.ReadFile(path)
		if content == "" && !errors.Is(err, fs.ErrNotExist) || content != "" && string(got) != content {
			t.Errorf("%s: the file is %q, %v, want %q", what, got, err, content)
		}
	}

	set(errUnknown)
	sync()
	want("not known yet", "")
	set(errors.New("down: a\nb" + strings.Repeat("x", 1<<20)))
	sync()
	content, err := os.ReadFile(path)
	if err != nil || len(content) > 8<<10 || !strings.HasPrefix(string(content), deadMark+`probe elastic is down: a\nbxx`) || bytes.Count(content, []byte("\n")) != 1 {
		t.Errorf("down: the file is %.200q (%d bytes), %v, want the mark and a short reason", content, len(content), err)
	}
	set(errDead)
	sync()
	want("down for another reason", string(content)) // there is no need to touch it
	os.Remove(path)
	sync()
	want("removed while it is down", deadMark+"probe elastic is down: connection refused\n")

	// Another process finds the file of this one.
	d = restart()
	set(errUnknown)
	sync()
	want("not known after a restart", deadMark+"probe elastic is down: connection refused\n")
	set(nil)
	sync()
	want("up after a restart", "")
	sync()

	put(t, path, "maintenance")
	sync()
	want("an operator's file while it is up", "maintenance")
	set(errDead)
	sync()
	want("an operator's file while it is down", "maintenance")
	d = restart()
	set(nil)
	sync()
	want("an operator's file after a restart", "maintenance")
	put(t, path, "")
	sync()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("an operator's empty file: %v", err)
	}

	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 2 || names[1].Name() != "search.dead" {
		t.Errorf("the directory holds %v, %v, want elastic.dead and search.dead", names, err)
	}
}

// A file that an operator creates meanwhile is kept.
func TestDeadFilesReplaceNothing(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	put(t, filepath.Join(dir, "elastic.dead"), "maintenance")
	if err := writeDead(root, "elastic.dead", "elastic", errDead); err != nil {
		t.Fatal(err)
	}
	got, _ := os.ReadFile(filepath.Join(dir, "elastic.dead"))
	names, _ := os.ReadDir(dir)
	if string(got) != "maintenance" || len(names) != 1 {
		t.Errorf("the file is %q among %v, want the operator's alone", got, names)
	}
}

// A directory that cannot be used is said once, and once that it can again.
func TestDeadFilesRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dead")
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		d, err := NewDeadFiles(DeadFilesConfig{
			Dir: dir, Members: []Member{memberOf("elastic", errDead)},
			Logger: hclog.New(&hclog.LoggerOptions{Output: &log}),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		time.Sleep(10500 * time.Millisecond) // virtual
		synctest.Wait()
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second) // virtual
		synctest.Wait()
		if _, err := os.Stat(filepath.Join(dir, "elastic.dead")); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		if strings.Count(log.String(), "not written") != 1 || strings.Count(log.String(), "written again") != 1 {
			t.Errorf("log is\n%swant one record that files are not written, and one that they are", &log)
		}
	})
}

func TestNewDeadFilesNamesEveryMistake(t *testing.T) {
	_, err := NewDeadFiles(DeadFilesConfig{Members: []Member{{Name: "a/b"}, memberOf(strings.Repeat("n", 251), nil)}})
	if err == nil {
		t.Fatal("NewDeadFiles = nil, want an error")
	}
	for _, want := range []string{"dir: ", `members[0]: "a/b.dead"`, `members[0]: "a/b" has no state`, "members[1]: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("NewDeadFiles = %v\nwant it to name %s", err, want)
		}
	}
}
