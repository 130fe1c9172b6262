//go:build linux

package e2e

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A log file that logrotate moves away is written to until HUP and a new one
// from then on; nothing is written to standard error besides.
func TestLogFileIsReopenedByHUP(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	s := open(t, "--log-output", path)
	old := path + ".1"
	if err := os.Rename(path, old); err != nil {
		t.Fatal(err)
	}
	s.Signal(syscall.SIGHUP)
	s.Until("there is a new file", func() bool {
		_, err := os.Stat(path)
		return err == nil
	})
	s.Terminate()
	before, after := strings.Join(lines(old), "\n"), strings.Join(lines(path), "\n")
	if !strings.Contains(before, "host elected") || strings.Contains(before, "understudy: ended") {
		t.Errorf("the old file has:\n%s", before)
	}
	if !strings.Contains(after, "understudy: ended") {
		t.Errorf("the new file has:\n%s", after)
	}
	if s.Log() != "" {
		t.Errorf("standard error has:\n%s", s.Log())
	}
}

func TestLogFileThatCannotBeOpenedEndsTheStart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "missing", "log")
	u := start(t, "--bind", freeAddr(t), "--hosts", freeAddr(t), "--log-output", path)
	if code := u.Exit(); code != 1 || !strings.Contains(u.Log(), path) {
		t.Errorf("exit status %d, want 1 and the path in:\n%s", code, u.Log())
	}
}

// F46: the disk of the log is full. That is reported where people may see it.
func TestFullLogDisk(t *testing.T) {
	t.Parallel()
	s := open(t, "--log-output", "/dev/full", "--log-level", "trace")
	clients := s.load()
	s.killPrimary(clients)
	s.lookAgain("b")
	s.Terminate()
	if n := strings.Count(s.Log(), "no space left on device"); n != 1 {
		t.Errorf("the full disk is logged %d times, want once:\n%s", n, s.Log())
	}
}

// F46 again: a collector that takes the connection and reads nothing at first.
func TestStuckCollector(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", freeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	s := open(t, "--log-output", "gelf+tcp://"+listener.Addr().String(), "--log-level", "trace")
	clients := s.load()
	s.killPrimary(clients)

	if err := listener.(*net.TCPListener).SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	elected := make(chan string, 2)
	go func() { // reads until the end of the program
		defer close(elected)
		reader := bufio.NewReader(conn)
		for {
			text, err := reader.ReadBytes(0)
			if err != nil {
				return
			}
			var message struct {
				Version, Host string
				Message       string `json:"short_message"`
				Module        string `json:"_module"`
				Relay         string `json:"_relay"`
				Level         int
			}
			if err := json.Unmarshal(text[:len(text)-1], &message); err != nil || message.Version != "1.1" || message.Host == "" || message.Level == 0 {
				t.Errorf("%q is not GELF: %v", text, err)
				return
			}
			if message.Message == "host elected" {
				select {
				case elected <- message.Module + " " + message.Relay:
				default:
				}
			}
		}
	}()
	s.lookAgain("b")
	s.Terminate()
	n := 0
	for range elected {
		n++
	}
	if n != 2 {
		t.Errorf("the collector got %d elections, want 2", n)
	}
}
