package verdict

import (
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// A client that does not read events is noticed although the system would keep them for it,
// and one that reads is not.
func TestServerEndsStreamThatNobodyReads(t *testing.T) {
	ended := make(chan int, 2)
	s := startServer(t, ServerConfig{answerTimeout: time.Second, Routes: map[string]http.Handler{
		"/events": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			out, sent := http.NewResponseController(w), 0
			defer func() { ended <- sent }()
			for event := []byte(strings.Repeat("x", 100) + "\n"); ; sent += len(event) {
				if err := out.SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
					t.Error(err)
				}
				if _, err := w.Write(event); err != nil || out.Flush() != nil {
					return
				}
				select {
				case <-time.After(10 * time.Millisecond):
				case <-r.Context().Done():
					return
				}
			}
		}),
	}})
	watch := func(buffer int) net.Conn {
		d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, buffer) })
		}}
		conn, err := d.DialContext(t.Context(), "tcp", s.Addr().String())
		if err == nil {
			_, err = conn.Write([]byte("GET /events HTTP/1.1\r\nHost: x\r\n\r\n"))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	reads := watch(1 << 16)
	watch(1)
	begin, buf := time.Now(), make([]byte, 1<<12)
	proctest.Until(t, "the stream that nobody reads ends", func() bool {
		_ = reads.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := reads.Read(buf); err != nil {
			t.Fatalf("the other stream has ended: %v", err)
		}
		return len(ended) > 0
	})
	t.Logf("it ended %v after its begin, with %d bytes", time.Since(begin), <-ended)
}
