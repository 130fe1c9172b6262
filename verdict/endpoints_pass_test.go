package verdict

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// generated writes n bytes that no pattern explains, and their sum.
func generated(w io.Writer, n int64) (hash.Hash, error) {
	sum := sha256.New()
	_, err := io.CopyN(io.MultiWriter(w, sum), rand.NewChaCha8([32]byte{1}), n)
	return sum, err
}

// live returns the number of bytes of the heap that are in use. What is no longer used, and is
// not collected yet, does not count: how much that is depends on how busy the
// machine is.
func live() uint64 {
	runtime.GC()
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// D-BRP8: bodies of any size pass whole, and memory does not grow with them.
func TestEndpointsStreamLargeBodies(t *testing.T) {
	sizes := map[string]int64{"/length": 256 << 20, "/chunked": 64 << 20, "/h2": 64 << 20}
	sums := make(chan hash.Hash, 1)
	stream := func(w http.ResponseWriter, r *http.Request) {
		size := sizes[r.URL.Path]
		if r.URL.Path == "/length" {
			w.Header().Set("Content-Length", fmt.Sprint(size))
		}
		sum, err := generated(w, size)
		if err != nil {
			t.Errorf("endpoint: %v", err)
		}
		sums <- sum
	}
	plain := at(service(t, stream))
	srv := httptest.NewUnstartedServer(http.HandlerFunc(stream))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	for path, size := range sizes {
		t.Run(path[1:], func(t *testing.T) {
			url := plain
			if path == "/h2" {
				url = srv.URL
			}
			e := serveEndpoints(t, EndpointsConfig{URLs: []string{url}, TLS: trusting(srv)})
			t.Cleanup(srv.CloseClientConnections) // a stream may still be being tidied up when Close comes
			var stop atomic.Bool
			most := make(chan uint64)
			before := live()
			go func() {
				grown := uint64(0)
				for !stop.Load() {
					now := live()
					grown = max(grown, now-min(before, now))
					time.Sleep(20 * time.Millisecond) // between two looks
				}
				most <- grown
			}()
			resp, err := http.Get("http://" + e.addr + path)
			if err != nil {
				t.Fatal(err)
			}
			got := sha256.New()
			n, err := io.Copy(got, resp.Body)
			resp.Body.Close()
			http.DefaultClient.CloseIdleConnections()
			stop.Store(true)
			grown := <-most
			if n != size || err != nil || !bytes.Equal(got.Sum(nil), (<-sums).Sum(nil)) {
				t.Errorf("read %d bytes, %v, want %d and the same sum", n, err, size)
			}
			t.Logf("heap grew by %d KiB at most", grown>>10)
			if grown > 12<<20 {
				t.Errorf("heap grew by %d MiB while %d MiB passed, want a fraction", grown>>20, size>>20)
			}
		})
	}
}

// D-BRP7: what comes is passed on as it comes, the head first.
func TestEndpointsFlush(t *testing.T) {
	next := make(chan string)
	port := service(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for part := range next {
			io.WriteString(w, part)
			w.(http.Flusher).Flush()
		}
	})
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(port)}})
	conn := dialHTTP(t, e.addr)
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("head %v, %v, want it before the body", resp, err)
	}
	for i := range 5 {
		part := fmt.Sprintf("data: %d\n\n", i)
		next <- part
		got := make([]byte, len(part))
		if _, err := io.ReadFull(resp.Body, got); string(got) != part || err != nil {
			t.Fatalf("read %q, %v, want %q as soon as it was sent", got, err, part)
		}
	}
	close(next)
	if rest, err := io.ReadAll(resp.Body); len(rest) != 0 || err != nil {
		t.Errorf("read %q, %v, want the end", rest, err)
	}
}

// A body that breaks off never looks whole.
func TestEndpointsBodyBreaksOff(t *testing.T) {
	sent := map[string]string{
		"length":  "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
		"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
		"broken":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
		"until":   "HTTP/1.1 200 OK\r\n\r\nhalf",
	}
	ends := map[string]func(net.Conn){
		"ends":   func(net.Conn) {},
		"resets": func(c net.Conn) { time.Sleep(50 * time.Millisecond); c.(*net.TCPConn).SetLinger(0) }, // after what was sent
		"stalls": untilHungUp,
	}
	for form, head := range sent {
		for end, how := range ends {
			if form == "until" && end == "ends" {
				continue // that is how it ends
			}
			for _, version := range []string{"1.1", "1.0"} {
				t.Run(form+" "+end+" "+version, func(t *testing.T) {
					port := rawService(t, func(c net.Conn) { io.WriteString(c, head); how(c) })
					limit := time.Minute
					if end == "stalls" {
						limit = 900 * time.Millisecond
					}
					e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(port)}, Timeout: limit})
					conn := dialHTTP(t, e.addr)
					fmt.Fprintf(conn, "GET / HTTP/%s\r\nHost: x\r\n\r\n", version)
					raw, err := io.ReadAll(conn)
					if err == nil {
						resp, bad := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), nil)
						if bad != nil {
							t.Fatal(bad)
						}
						_, err = io.ReadAll(resp.Body)
					}
					if err == nil || strings.Contains(err.Error(), "timeout") {
						t.Errorf("read %q, %v, want no whole answer", raw, err)
					}
					proctest.Until(t, "the record is there", func() bool { return strings.Contains(e.log.String(), "request served") })
					if log := e.log.String(); !strings.Contains(log, "body broke off after 4 bytes") || strings.Contains(log, "panic") || end == "stalls" && form != "broken" && !strings.Contains(log, "stalled for 900ms") {
						t.Errorf("log %s, want the reason", log)
					}
				})
			}
		}
	}
}

// A client that takes nothing more is cut off, and so is the endpoint.
func TestEndpointsClientStops(t *testing.T) {
	gone := make(chan bool, 1)
	port := rawService(t, func(c net.Conn) {
		_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
		for err == nil {
			c.SetDeadline(time.Now().Add(15 * time.Second))
			_, err = c.Write(make([]byte, 64<<10))
		}
		gone <- !errors.Is(err, syscall.EAGAIN) && !strings.Contains(err.Error(), "timeout")
	})
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(port)}}, ServerConfig{answerTimeout: 500 * time.Millisecond})
	conn := dialHTTP(t, e.addr)
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if ended := <-gone; !ended {
		t.Error("the endpoint's connection was not ended")
	}
	if _, err := io.Copy(io.Discard, conn); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client read the end as %v, want a reset", err)
	}
}

// A client that leaves in the middle of a body ends the endpoint's connection:
// at once by a reset, otherwise with the next part of the body, which its system
// answers with a reset.
func TestEndpointsClientGoneMidway(t *testing.T) {
	for _, reset := range []bool{true, false} {
		t.Run(fmt.Sprintf("reset=%t", reset), func(t *testing.T) {
			gone, more := make(chan bool, 1), make(chan bool)
			port := rawService(t, func(c net.Conn) {
				_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhalf")
				if reset {
					untilHungUp(c)
				}
				<-more
				for err == nil {
					c.SetDeadline(time.Now().Add(15 * time.Second))
					_, err = io.WriteString(c, "x")
					time.Sleep(10 * time.Millisecond) // the pace of a trickle
				}
				gone <- true
			})
			e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(port)}, Timeout: time.Minute})
			conn := dialHTTP(t, e.addr)
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
				t.Fatal(err)
			}
			if reset {
				conn.SetLinger(0)
			}
			conn.Close()
			close(more)
			select {
			case <-gone:
			case <-time.After(15 * time.Second): // a deadline
				t.Error("the endpoint's connection is still open")
			}
		})
	}
}

// A client that is slow but takes something gets everything.
func TestEndpointsSlowClient(t *testing.T) {
	const size = 6 << 20
	port := service(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		w.Write(make([]byte, size))
	})
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(port)}, Timeout: time.Minute}, ServerConfig{answerTimeout: 2 * time.Second})
	conn := dialHTTP(t, e.addr)
	conn.SetReadBuffer(64 << 10)
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	part, total := make([]byte, 32<<10), 0
	for err == nil {
		var n int
		n, err = io.ReadFull(resp.Body, part)
		total += n
		if total < size/2 {
			time.Sleep(60 * time.Millisecond) // some 500 KiB a second
		}
	}
	if total != size {
		t.Errorf("read %d bytes, %v, want %d: %s", total, err, size, e.log)
	}
}
