package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// Bytes that are read from one side are delivered to the other, whatever the
// pieces, the pauses and the ends.

func TestSizesBothWays(t *testing.T) {
	t.Parallel()
	r := start(t, Config{})
	r.open(1, newHost(t, echo).addr)
	for _, size := range append(sizes, 48<<20) {
		c := r.dial()
		data := randomBytes(size)
		var sent sync.WaitGroup
		sent.Go(func() { sendAll(c, data) })
		wantAll(t, fmt.Sprint("echo of ", size), c, data)
		sent.Wait()
		c.Close()
	}
}

func TestBothDirectionsAtOnce(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{Engine: engine(2)})
	for _, size := range sizes {
		client, host := r.pair(hosts)
		up, down := randomBytes(size), randomBytes(size + 7)[7:]
		var wg sync.WaitGroup
		wg.Go(func() { sendAll(client, up) })
		wg.Go(func() { sendAll(host, down) })
		wg.Go(func() { wantAll(t, fmt.Sprint("host, size ", size), host, up) })
		wg.Go(func() { wantAll(t, fmt.Sprint("client, size ", size), client, down) })
		wg.Wait()
	}
}

// Chunks of the sizes that a writer sends, one connection for each.
func TestWriterChunks(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{})
	for _, tt := range []struct {
		name         string
		chunk, total int
	}{
		{"one byte at a time", 1, 64 << 10},
		{"a segment of 536 bytes at a time", 536, 512 << 10},
		{"a pipe less one", 64<<10 - 1, 4 << 20},
		{"a pipe", 64 << 10, 4 << 20},
		{"a pipe and one", 64<<10 + 1, 4 << 20},
		{"a large pipe less one", 512<<10 - 1, 8 << 20},
		{"a large pipe and one", 512<<10 + 1, 8 << 20},
	} {
		client, host := r.pair(hosts)
		data := randomBytes(tt.total)
		var wg sync.WaitGroup
		wg.Go(func() {
			for rest := data; len(rest) > 0; {
				n, err := client.Write(rest[:min(tt.chunk, len(rest))])
				if err != nil {
					t.Errorf("%s: %v", tt.name, err)
					return
				}
				rest = rest[n:]
			}
			client.CloseWrite()
		})
		wantAll(t, tt.name, host, data)
		wg.Wait()
	}
}

// Small segments fill the slots of a pipe long before its bytes, and a slow
// reader's window opens in small steps: proxies have stalled there for ever.
func TestSmallSegmentsToSlowReader(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{})
	client, host := r.pair(hosts)
	host.SetReadBuffer(32 << 10)
	data := randomBytes(3 << 20)
	var sent sync.WaitGroup
	sent.Go(func() {
		defer client.CloseWrite()
		for rest := data; len(rest) > 0; {
			n, err := client.Write(rest[:min(1448, len(rest))])
			if err != nil {
				t.Error(err)
				return
			}
			rest = rest[n:]
		}
	})
	defer sent.Wait()
	b := make([]byte, 32<<10)
	for got := 0; ; {
		host.SetReadDeadline(time.Now().Add(5 * time.Second)) // ready now: a longer pause is a stall
		n, err := host.Read(b)
		if !bytes.Equal(b[:n], data[got:got+n]) {
			t.Fatal("other bytes than were sent")
		}
		got += n
		if err != nil {
			if !errors.Is(err, io.EOF) || got != len(data) {
				t.Errorf("after %d of %d bytes: %v", got, len(data), err)
			}
			client.SetDeadline(time.Now())
			return
		}
		time.Sleep(time.Millisecond) // a reader that is slow
	}
}

// A reader that rests in the middle of messages, each too small for a pipe: the
// one that no longer fits is cut somewhere, and goes on there.
func TestMessagesToRestingReader(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{})
	data := randomBytes(20_001)
	for _, way := range []string{"client rests", "host rests"} {
		client, host := r.pair(hosts)
		a, b := client, host
		if way == "client rests" {
			a, b = host, client
		}
		sent := 0
		a.SetWriteDeadline(time.Now().Add(2 * time.Second)) // until no more is accepted
		for {
			n, err := a.Write(data[sent%len(data):])
			sent += n
			if err != nil {
				break
			}
			time.Sleep(500 * time.Microsecond) // for the relay to take it
		}
		a.CloseWrite()
		wantAll(t, way, b, bytes.Repeat(data, sent/len(data)+1)[:sent])
	}
}

// A half-close waits behind the bytes before it, however long the reader rests,
// and the other direction goes on.
func TestHalfCloseBehindPendingBytes(t *testing.T) {
	t.Parallel()
	const size, rest = 50 << 20, 2 * time.Second
	r, hosts := startPairs(t, Config{})
	data := randomBytes(size)
	var wg sync.WaitGroup
	for _, tt := range []string{"client ends first", "host ends first"} {
		client, host := r.pair(hosts)
		first, second := client, host
		if tt == "host ends first" {
			first, second = host, client
		}
		wg.Go(func() {
			var sending sync.WaitGroup
			sending.Go(func() { sendAll(first, data) })
			time.Sleep(rest) // the rest of a reader
			wantAll(t, tt+", its stream", second, data)
			sending.Wait()
			sending.Go(func() { sendAll(second, data) })
			time.Sleep(rest / 4) // another rest
			wantAll(t, tt+", the answer", first, data)
			sending.Wait()
		})
	}
	wg.Wait()
	proctest.Until(t, "both to be counted as finished", func() bool { return r.Stats().Finished == 2 })
}

func TestSimultaneousClose(t *testing.T) {
	t.Parallel()
	const times = 100
	r, hosts := startPairs(t, Config{})
	for range times {
		client, host := r.pair(hosts)
		var wg sync.WaitGroup
		wg.Go(func() { client.Close() })
		wg.Go(func() { host.Close() })
		wg.Wait()
	}
	proctest.Until(t, "every connection to be counted as finished", func() bool { return r.Stats().Finished == times })
}

func TestResetAtEveryStage(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{})
	stages := []struct {
		name string
		// before brings the connection to its stage: a resets then, and b must
		// read exactly these bytes before the reset.
		before func(a, b *net.TCPConn) []byte
	}{
		{"idle", func(_, _ *net.TCPConn) []byte { return nil }},
		{"with bytes that b has not read", func(a, _ *net.TCPConn) []byte {
			data := randomBytes(100 << 10)
			a.Write(data)
			return data
		}},
		{"with bytes from b that a has not read", func(_, b *net.TCPConn) []byte {
			b.Write(randomBytes(100 << 10))
			acked(t, b)
			return nil
		}},
		{"after b's half-close", func(a, b *net.TCPConn) []byte {
			b.CloseWrite()
			wantAll(t, "b's end", a, nil)
			a.Write([]byte("more"))
			return []byte("more")
		}},
	}
	for _, way := range []string{"client", "host"} {
		for _, stage := range stages {
			client, host := r.pair(hosts)
			a, b := client, host
			if way == "host" {
				a, b = host, client
			}
			want := stage.before(a, b)
			acked(t, a)
			reset(a)
			wantReset(t, way+" resets "+stage.name, b, want)
			b.Close()
		}
		t.Run(way+" resets in the middle of a transfer", func(t *testing.T) {
			client, host := r.pair(hosts)
			a, b := client, host
			if way == "host" {
				a, b = host, client
			}
			data := randomBytes(16 << 20)
			var sending sync.WaitGroup
			sending.Go(func() {
				a.Write(data[:8<<20+1])
				reset(a) // what is still in its kernel's queue is lost, and that is seen
			})
			got, err := io.ReadAll(b)
			sending.Wait()
			if !isReset(err) || !bytes.HasPrefix(data, got) {
				t.Errorf("%d bytes, then %v, want the first of those sent, then a reset", len(got), err)
			}
		})
		t.Run(way+" resets after its own half-close", func(t *testing.T) {
			client, host := r.pair(hosts)
			a, b := client, host
			if way == "host" {
				a, b = host, client
			}
			a.CloseWrite()
			wantAll(t, "a's end", b, nil)
			reset(a)
			var err error
			proctest.Until(t, "b's writes to fail because nothing reads them", func() bool {
				_, err = b.Write(make([]byte, 1024))
				return err != nil
			})
			if !isReset(err) {
				t.Errorf("b's writes end with %v, want a reset", err)
			}
		})
	}
	proctest.Until(t, "all to be over", func() bool { return r.Stats().Live == 0 })
	if s := r.Stats(); s.Finished != 0 || s.Aborted != 0 {
		t.Errorf("stats %+v: a failed connection was counted as something else than a reset", s)
	}
}

// A truncated stream must never look like a whole one, and what had arrived
// before a reset is delivered before it, 200 times out of 200.
func TestResetKeepsItsBytes(t *testing.T) {
	t.Parallel()
	const size, times, atOnce = 256 << 10, 200, 10
	data := randomBytes(size)
	r, hosts := startPairs(t, Config{})
	for _, way := range []string{"client", "host"} {
		var wg sync.WaitGroup
		for range times / 2 {
			client, host := r.pair(hosts)
			a, b := client, host
			if way == "host" {
				a, b = host, client
			}
			wg.Go(func() {
				defer b.Close()
				var read sync.WaitGroup
				read.Go(func() {
					b.SetReadBuffer(16 << 10)
					wantReset(t, way+" sends and resets", &slowReader{b}, data)
				})
				a.Write(data)
				acked(t, a) // a reset overtakes what is still in its sender's queue
				reset(a)
				read.Wait()
			})
			if rand.IntN(atOnce) == 0 {
				wg.Wait()
			}
		}
		wg.Wait()
	}
}

// The same with readers that keep up, so that the reset finds the relay in the
// middle of moving the bytes before it.
func TestResetBehindMovingBytes(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{Engine: engine(2)})
	data := randomBytes(1 << 20)
	var wg sync.WaitGroup
	for k := range 120 {
		client, host := r.pair(hosts)
		a, b := client, host
		if k%2 == 0 {
			a, b = host, client
		}
		wg.Go(func() {
			defer b.Close()
			var read sync.WaitGroup
			sent := data[:200_000+k*6000]
			read.Go(func() { wantReset(t, fmt.Sprint("connection ", k), b, sent) })
			a.Write(sent)
			acked(t, a)
			reset(a)
			read.Wait()
		})
		if k%8 == 7 {
			wg.Wait()
		}
	}
	wg.Wait()
}

type slowReader struct{ r io.Reader }

func (s *slowReader) Read(b []byte) (int, error) {
	time.Sleep(500 * time.Microsecond) // what makes it slow
	return s.r.Read(b[:min(len(b), 8<<10)])
}

// The idle limit is for connections over which nothing passes. One that failed
// still delivers what had arrived.
func TestResetKeepsItsBytesBesideIdleTimeout(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{IdleTimeout: 2 * time.Second})
	time.Sleep(3 * time.Second) // so that the relay is older than the limit
	client, host := r.pair(hosts)
	client.SetReadBuffer(16 << 10)
	data := randomBytes(1 << 20)
	host.SetWriteBuffer(4 << 20)
	var sent sync.WaitGroup
	sent.Go(func() {
		host.Write(data)
		acked(t, host)
		reset(host)
	})
	wantReset(t, "client", &slowReader{client}, data)
	sent.Wait()
}

// Client first: a megabyte before the host has accepted. Server first: the
// host's greeting before the client has sent a byte.
func TestWhoSpeaksFirst(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{})
	c := r.dial()
	data := randomBytes(1 << 20)
	var sent sync.WaitGroup
	sent.Go(func() { sendAll(c, data) })
	time.Sleep(100 * time.Millisecond) // the host does not read for this long
	h, err := hosts.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	h.SetDeadline(time.Now().Add(patience))
	wantAll(t, "client first", h, data)
	sent.Wait()

	c = r.dial()
	h, err = hosts.Accept()
	if err != nil {
		t.Fatal(err)
	}
	sent.Go(func() { sendAll(h.(*net.TCPConn), data) })
	wantAll(t, "server first", c, data)
	sent.Wait()
	h.Close()
}

// Conversations of random writes, rests, half-closes and resets on both ends,
// and for each end what it must read: all that the other sent and its end, or a
// reset if the other end reset.
func TestRandomConversations(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{Engine: engine(2)})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for n := range 120 {
		client, host := r.pair(hosts)
		rng := rand.New(rand.NewPCG(seed, uint64(n)))
		wg.Go(func() { converse(t, fmt.Sprint("conversation ", n), rng, client, host) })
		if n%12 == 11 {
			wg.Wait()
		}
	}
	wg.Wait()
	proctest.Until(t, "all to be over", func() bool { return r.Stats().Live == 0 })
	if s := r.Stats(); s.Finished+s.Reset != s.Accepted {
		t.Errorf("stats %+v: a conversation was neither finished nor reset", s)
	}
}

func converse(t *testing.T, name string, rng *rand.Rand, client, host *net.TCPConn) {
	t.Helper()
	defer client.Close()
	defer host.Close()
	type end struct {
		*net.TCPConn
		sent  []byte
		ended bool
		got   []byte
		err   error
	}
	ends := [2]*end{{TCPConn: client}, {TCPConn: host}}
	var reading sync.WaitGroup
	for _, e := range ends {
		slow := rng.IntN(3) == 0
		e.SetReadBuffer([]int{32 << 10, 256 << 10, 1 << 20}[rng.IntN(3)])
		reading.Go(func() {
			var r io.Reader = e
			if slow {
				r = &slowReader{e}
			}
			e.got, e.err = io.ReadAll(r)
		})
	}
	resetBy := -1
	script := ""
	fail := func(format string, args ...any) {
		t.Errorf("%s:%s: %s", name, script, fmt.Sprintf(format, args...))
	}
	for range 2 + rng.IntN(20) {
		k := rng.IntN(2)
		e := ends[k]
		switch dice := rng.IntN(20); {
		case dice < 14:
			if e.ended {
				continue
			}
			data := make([]byte, []int{1, 100, 5000, 70_000, 300_000}[rng.IntN(5)])
			rand.NewChaCha8([32]byte{byte(rng.Uint32())}).Read(data)
			script += fmt.Sprintf(" %d writes %d,", k, len(data))
			if _, err := e.Write(data); err != nil {
				fail("write: %v", err)
			}
			e.sent = append(e.sent, data...)
		case dice < 16:
			time.Sleep(time.Duration(rng.IntN(5)) * time.Millisecond) // a pause is a step of the script too
		case dice < 18:
			script += fmt.Sprintf(" %d ends,", k)
			e.ended = true
			e.CloseWrite()
		case dice == 18:
			script += fmt.Sprintf(" %d resets", k)
			acked(t, e.TCPConn)
			resetBy = k
			reset(e.TCPConn)
		}
		if resetBy >= 0 {
			break
		}
	}
	if resetBy < 0 {
		for _, e := range ends {
			e.CloseWrite()
		}
	}
	reading.Wait()
	for k, e := range ends {
		other := ends[1-k]
		switch {
		case resetBy == k: // its own read ended with its own close
		case resetBy == 1-k && !other.ended:
			if !isReset(e.err) || !bytes.Equal(e.got, other.sent) {
				fail("end %d read %d of %d bytes, then %v, want all, then a reset", k, len(e.got), len(other.sent), e.err)
			}
		case resetBy == 1-k && isReset(e.err): // it had ended already: either is the truth
			if !bytes.HasPrefix(other.sent, e.got) {
				fail("end %d read other bytes than were sent", k)
			}
		default:
			if e.err != nil || !bytes.Equal(e.got, other.sent) {
				fail("end %d read %d of %d bytes, then %v, want all and a clean end", k, len(e.got), len(other.sent), e.err)
			}
		}
	}
}

// Readers that stop must not delay other connections.
func TestBlockedReadersDelayNoOther(t *testing.T) {
	t.Parallel()
	r := start(t, Config{Engine: engine(1)})
	endless := make([]byte, 64<<10)
	r.open(1, newHost(t, func(c *net.TCPConn) {
		var kind [1]byte
		io.ReadFull(c, kind[:])
		if kind[0] == 'e' {
			echo(c)
			return
		}
		c.SetWriteBuffer(64 << 10)
		for {
			if _, err := c.Write(endless); err != nil {
				return
			}
		}
	}).addr)
	for range 60 {
		c := r.dial()
		c.SetReadBuffer(32 << 10)
		io.WriteString(c, "b")
	}
	c := r.dial()
	io.WriteString(c, "e")
	var last uint64
	proctest.Until(t, "the bulk to be stuck", func() bool {
		now := r.Stats().Received
		stuck := now == last && now > 1<<20
		last = now
		time.Sleep(50 * time.Millisecond) // nothing passes for this long
		return stuck
	})
	for range 20 {
		begin := time.Now()
		io.WriteString(c, "ping")
		readSome(t, c, 4)
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("an echo took %s beside stuck readers", d)
		}
	}
}

// One bulk transfer that never pauses leaves room for small messages.
func TestBulkLeavesRoomForSmall(t *testing.T) {
	t.Parallel()
	r := start(t, Config{Engine: engine(1)})
	var over atomic.Bool
	r.open(1, newHost(t, func(c *net.TCPConn) {
		var kind [1]byte
		io.ReadFull(c, kind[:])
		if kind[0] == 'e' {
			echo(c)
			return
		}
		b := make([]byte, 256<<10)
		for !over.Load() {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}).addr)
	var bulk sync.WaitGroup
	for range 4 {
		c := r.dial()
		io.WriteString(c, "b")
		bulk.Go(func() { io.Copy(io.Discard, c) })
	}
	c := r.dial()
	io.WriteString(c, "e")
	for range 100 {
		begin := time.Now()
		io.WriteString(c, "ping")
		readSome(t, c, 4)
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("an echo took %s beside bulk", d)
		}
	}
	over.Store(true)
	bulk.Wait()
}
