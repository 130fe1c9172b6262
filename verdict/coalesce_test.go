package verdict

import (
	"crypto/sha256"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func testKey(s string) [sha256.Size]byte { return sha256.Sum256([]byte(s)) }

func TestCoalescerSharesUnderWayAndForASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c coalescer
		requested := 0
		slow := func() []reply {
			requested++
			time.Sleep(2 * time.Second) // virtual
			return []reply{{port: requested}}
		}
		var callers sync.WaitGroup
		for range 39 {
			callers.Go(func() {
				if got, _ := c.do(testKey("a"), slow); got[0].port != 1 {
					t.Errorf("replies of replay %d, want 1", got[0].port)
				}
			})
		}
		callers.Wait()
		time.Sleep(time.Second - 1) // virtual
		if got, shared := c.do(testKey("a"), slow); got[0].port != 1 || !shared {
			t.Errorf("just under a second later: replay %d, shared %v, want 1 and true", got[0].port, shared)
		}
		time.Sleep(time.Nanosecond) // virtual
		if got, shared := c.do(testKey("a"), slow); got[0].port != 2 || shared {
			t.Errorf("a second later: replay %d, shared %v, want 2 and false", got[0].port, shared)
		}
	})
}

// F68: 5,000 requests a second, and each service is asked once in a window: in
// the time that a replay takes and a second more.
func TestCoalescerReplaysOncePerWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c coalescer
		var requested []time.Time
		replay := func() []reply {
			requested = append(requested, time.Now()) // one at a time, or the race detector tells
			time.Sleep(100 * time.Millisecond)        // virtual
			return []reply{{}}
		}
		var callers sync.WaitGroup
		for range 5 * 5000 {
			callers.Go(func() { c.do(testKey("a"), replay) })
			time.Sleep(time.Second / 5000) // virtual
		}
		callers.Wait()
		if len(requested) != 5 {
			t.Errorf("asked %d times in 5s, want 5", len(requested))
		}
		for i := 1; i < len(requested); i++ {
			if apart := requested[i].Sub(requested[i-1]); apart < 1100*time.Millisecond {
				t.Errorf("asked again after %s, want 1.1s", apart)
			}
		}
	})
}

func TestCoalescerIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c coalescer
		quick := func() []reply { return []reply{{}} }
		for i := range 10 * maxShared {
			c.do(testKey(strings.Repeat("x", i)), quick)
			if len(c.shared) > maxShared {
				t.Fatalf("%d requests are remembered, want at most %d", len(c.shared), maxShared)
			}
		}
		time.Sleep(time.Second) // virtual
		c.do(testKey("new"), quick)
		if len(c.shared) != 1 {
			t.Errorf("a second later %d requests are remembered, want 1", len(c.shared))
		}
	})
}

// Requests that share a replay that panics get an error.
func TestCoalescerSurvivesPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c coalescer
		go func() {
			defer func() { recover() }()
			c.do(testKey("a"), func() []reply { time.Sleep(time.Second); panic("on purpose") }) // virtual
		}()
		synctest.Wait()
		if got, shared := c.do(testKey("a"), nil); got != nil || !shared {
			t.Errorf("do() = %v, %v, want nothing, shared", got, shared)
		}
		if got, _ := c.do(testKey("a"), func() []reply { return []reply{{}} }); len(got) != 1 {
			t.Errorf("after the panic do() = %v, want a replay of its own", got)
		}
	})
}

func TestPortRequestKey(t *testing.T) {
	request := func(head string) [sha256.Size]byte {
		r, err := http.ReadRequest(readerOf(head + "\r\n\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		return newPortRequest(r).key()
	}
	plain := request("GET /ping HTTP/1.1\r\nHost: a")
	for _, tt := range []struct {
		name, head string
		same       bool
	}{
		{"HEAD", "HEAD /ping HTTP/1.1\r\nHost: a", true},
		{"HTTP/1.0", "GET /ping HTTP/1.0\r\nHost: a", true},
		{"accepted encoding", "GET /ping HTTP/1.1\r\nHost: a\r\nAccept-Encoding: br", true},
		{"connection header", "GET /ping HTTP/1.1\r\nHost: a\r\nConnection: x, close\r\nX: y", true},
		{"trace id", "GET /ping HTTP/1.1\r\nHost: a\r\nTraceparent: 00-1", true},
		{"other host", "GET /ping HTTP/1.1\r\nHost: b", false},
		{"other case of path", "GET /Ping HTTP/1.1\r\nHost: a", false},
		{"empty query", "GET /ping? HTTP/1.1\r\nHost: a", false},
		{"range", "GET /ping HTTP/1.1\r\nHost: a\r\nRange: bytes=0-0", false},
		{"condition", "GET /ping HTTP/1.1\r\nHost: a\r\nIf-None-Match: *", false},
		{"unknown secret", "GET /ping HTTP/1.1\r\nHost: a\r\nX-Api-Key: s", false},
		{"accepted type", "GET /ping HTTP/1.1\r\nHost: a\r\nAccept: application/xml", false},
		{"user agent", "GET /ping HTTP/1.1\r\nHost: a\r\nUser-Agent: bad bot", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if same := request(tt.head) == plain; same != tt.same {
				t.Errorf("the same request: %v, want %v", same, tt.same)
			}
		})
	}
}
