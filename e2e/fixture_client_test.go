//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// client is one connection of a test. Everything on it fails after 30s.
type client struct {
	*net.TCPConn
	t *testing.T
}

// dial connects and closes the connection at the end of the test.
func dial(t *testing.T, addr string) client {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return client{conn.(*net.TCPConn), t}
}

// send sends text.
func (c client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Error(err)
	}
}

// want reads as many bytes as text has, and checks that they are text.
func (c client) want(text string) {
	c.t.Helper()
	got := make([]byte, len(text))
	if n, err := io.ReadFull(c, got); string(got) != text {
		c.t.Errorf("read %q, %v, want %q", got[:n], err, text)
	}
}

// wantReset checks that the connection ends with a reset and not with a clean
// end of the stream.
func (c client) wantReset() {
	c.t.Helper()
	if rest, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		c.t.Errorf("read %d bytes and then %v, want a reset", len(rest), err)
	}
}

// countLog counts the records that contain all texts.
func countLog(u *proctest.Understudy, texts ...string) int { return len(findLog(u, texts...)) }

// wantLog checks that n records of the log contain all texts. A record that is
// missing may be under way: the program writes its log behind what it does, and
// this process reads it behind that.
func wantLog(t *testing.T, u *proctest.Understudy, n int, texts ...string) {
	t.Helper()
	u.Until(fmt.Sprintf("the log has %d records with %q", n, texts), func() bool { return countLog(u, texts...) >= n })
	if got := countLog(u, texts...); got != n {
		t.Errorf("%d records with %q, want %d", got, texts, n)
	}
}

// lastLog is the number of the last line of the log that contains all texts, 0
// if there is none.
func lastLog(u *proctest.Understudy, texts ...string) int {
	return slices.Max(append(findLog(u, texts...), 0))
}

// findLog returns the numbers of the lines of the log that contain all texts.
func findLog(u *proctest.Understudy, texts ...string) (found []int) {
	n := 0
lines:
	for line := range strings.Lines(u.Log()) {
		n++
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue lines
			}
		}
		found = append(found, n)
	}
	return found
}

// isTimeout reports whether a deadline passed.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
