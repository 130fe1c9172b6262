package noblock

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// within fails the test when f does not return soon: it waits for a file.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second): // a deadline
		t.Fatalf("%s waits", what)
	}
}

func TestOnlyRegularFiles(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	socket, err := net.Listen("unix", at("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := errors.Join(
		os.WriteFile(at("file"), []byte("text"), 0o600), os.Symlink("file", at("link")),
		syscall.Mkfifo(at("fifo"), 0o600), os.Mkdir(at("directory"), 0o700), os.Symlink("fifo", at("to fifo")),
	); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path string
		flag int
		want string // of the error; empty for none
	}{
		{at("file"), os.O_RDONLY, ""},
		{at("file"), os.O_RDWR | syscall.O_NOFOLLOW, ""},
		{at("link"), os.O_RDONLY, ""},
		{at("link"), os.O_RDONLY | syscall.O_NOFOLLOW, "is not a regular file but a symbolic link"},
		{at("fifo"), os.O_RDONLY, "is not a regular file but a named pipe"},
		{at("fifo"), os.O_WRONLY, "is not a regular file but a named pipe"},
		{at("to fifo"), os.O_RDONLY, "is not a regular file but a named pipe"},
		{at("directory"), os.O_RDONLY, "is not a regular file but a directory"},
		{at("socket"), os.O_RDONLY, "is not a regular file but a socket"},
		{os.DevNull, os.O_RDONLY, "is not a regular file but a device"},
		{at("new"), os.O_WRONLY | os.O_CREATE | syscall.O_NOFOLLOW, ""},
		{at("missing"), os.O_RDONLY, "no such file"},
	} {
		within(t, tt.path, func() {
			f, err := Open(tt.path, tt.flag, 0o600)
			if err == nil {
				f.Close()
			}
			if err == nil && tt.want != "" || err != nil && (tt.want == "" || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Open(%s, %#x) = %v, want %q", tt.path, tt.flag, err, tt.want)
			}
		})
	}
	if text, err := Read(at("file"), 3); string(text) != "tex" || err != nil {
		t.Errorf("Read = %q, %v, want the first 3 bytes", text, err)
	}
	for _, name := range []string{"fifo", "file"} {
		within(t, name, func() {
			if _, err := OpenRoot(at(name)); !errors.Is(err, syscall.ENOTDIR) {
				t.Errorf("OpenRoot(%s) = %v, want ENOTDIR", name, err)
			}
		})
	}
}
