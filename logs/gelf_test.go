package logs

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/proctest"
)

// openGELF opens a log to a collector that is tried again soon.
func openGELF(t *testing.T, network, address string, trouble *failures) *Log {
	t.Helper()
	out := newGELF(network, address, trouble)
	out.link.retry, out.link.timeout = time.Millisecond, patience
	return openOutput(t, out, trouble, hclog.LoggerOptions{Name: "understudy", Level: hclog.Trace, JSONFormat: true, DisableTime: true})
}

// freeAddress is an address that is closed from time to time.
func freeAddress(t *testing.T) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(proctest.FreePort(t, "127.0.0.1")))
}

// collectorTCP listens for GELF over TCP; an address of "127.0.0.1:0" is any.
func collectorTCP(t *testing.T, address string) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

func accept(t *testing.T, listener net.Listener) (net.Conn, *bufio.Reader) {
	t.Helper()
	listener.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(patience))
	t.Cleanup(func() { conn.Close() })
	return conn, bufio.NewReader(conn)
}

func decode(t *testing.T, text []byte) map[string]any {
	t.Helper()
	var message map[string]any
	if err := json.Unmarshal(text, &message); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return message
}

func TestGELFFields(t *testing.T) {
	listener := collectorTCP(t, "127.0.0.1:0")
	log := openGELF(t, "tcp", listener.Addr().String(), quiet())
	before := time.Now()
	log.Logger().Named("relay").With("relay", "orders").Warn("something happened",
		"sent", uint64(1<<53+1), "took", 1500*time.Millisecond, "error", errors.New("boom"), "nothing", nil,
		"good", true, "list", []string{"a", "b"}, "id", "x", "a b", 1, "a-b", 2, "a/b", 3, "module", "m", "@odd", "o", "", "e")
	_, reader := accept(t, listener)
	text, err := reader.ReadBytes(0)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(`"_sent":9007199254740993`)) {
		t.Errorf("a large number is not whole in %s", text)
	}
	if !regexp.MustCompile(`"timestamp":\d+\.\d{6}[,}]`).Match(text) {
		t.Errorf("no timestamp with microseconds in %s", text)
	}
	got := decode(t, text[:len(text)-1])
	at := time.UnixMicro(int64(got["timestamp"].(float64) * 1e6))
	if at.Before(before.Add(-time.Millisecond)) || at.After(time.Now().Add(time.Millisecond)) {
		t.Errorf("timestamp %v", at)
	}
	if host, _ := got["host"].(string); host == "" {
		t.Error("no host")
	}
	for _, name := range []string{"timestamp", "host", "_sent"} {
		delete(got, name)
	}
	want := map[string]any{
		"version": "1.1", "short_message": "something happened", "level": 4.0,
		"_module": "understudy.relay", "_relay": "orders", "_took": 1.5e9, "_error": "boom",
		"_good": "true", "_list": `["a","b"]`, "_id_": "x", "_a_b": 1.0, "_a-b": 2.0, "_a_b_": 3.0,
		"_module_": "m", "_odd": "o", "__": "e",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestGELFMessageOfSeveralLines(t *testing.T) {
	for _, tt := range []struct{ message, short, full string }{
		{"one\ntwo", "one", "one\ntwo"},
		{"", "-", ""},
		{"\ntwo", "-", "\ntwo"},
	} {
		line, _ := json.Marshal(map[string]any{"@message": tt.message})
		text, err := gelfMessage("h", record{level: hclog.Error, at: time.Unix(1, 5000), line: line})
		if err != nil {
			t.Fatal(err)
		}
		got := decode(t, text)
		full, _ := got["full_message"].(string)
		if got["short_message"] != tt.short || full != tt.full || got["level"] != 3.0 || !bytes.Contains(text, []byte("1.000005")) {
			t.Errorf("%q became %s", tt.message, text)
		}
	}
}

// A collector that restarts gets every line, in order: those of the time
// between wait in the queue.
func TestGELFOverTCPSurvivesARestart(t *testing.T) {
	address := freeAddress(t)
	listener := collectorTCP(t, address)
	tale := &buffer{}
	log := openGELF(t, "tcp", address, &failures{who: "understudy", output: "gelf", w: tale})
	sent := 0
	expect := func(reader *bufio.Reader, count int) {
		t.Helper()
		for range count {
			if got := next(t, reader); got["_number"] != float64(sent) {
				t.Fatalf("got %v, want number %d", got, sent)
			}
			sent++
		}
	}
	number := 0
	send := func(count int) {
		for range count {
			log.Logger().Info("line", "number", number)
			number++
		}
	}
	send(10)
	conn, reader := accept(t, listener)
	expect(reader, 10)
	conn.Close() // and it listens on: the next line must not go to the old connection
	send(1)
	conn, reader = accept(t, listener)
	expect(reader, 1)

	listener.Close()
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
	send(500)
	proctest.Until(t, "trouble is reported", func() bool { return strings.Contains(tale.String(), "does not work") })
	listener = collectorTCP(t, address)
	_, reader = accept(t, listener)
	expect(reader, 500)
	log.Close(patience)
	if log.queue.lost.Load() != 0 || strings.Count(tale.String(), "\n") != 2 || !strings.Contains(tale.String(), "works again") {
		t.Errorf("%d lines lost, reported %q", log.queue.lost.Load(), tale.String())
	}
}

// brokenConn takes the half of what is written, once.
type brokenConn struct {
	net.Conn
	got bytes.Buffer
}

func (c *brokenConn) Write(packet []byte) (int, error) {
	n, _ := c.got.Write(packet[:len(packet)/2])
	return n, syscall.ECONNRESET
}

// A line that was cut off by a reset comes again, whole.
func TestLineThatWasCutComesAgain(t *testing.T) {
	listener := collectorTCP(t, "127.0.0.1:0")
	broken := &brokenConn{}
	broken.Conn, _ = net.Pipe()
	dials := 0
	out := newGELF("tcp", listener.Addr().String(), quiet())
	dial := out.link.dial
	out.link.dial = func(ctx context.Context) (net.Conn, error) {
		if dials++; dials == 1 {
			return broken, nil
		}
		return dial(ctx)
	}
	log := openOutput(t, out, quiet(), hclog.LoggerOptions{JSONFormat: true, DisableTime: true})
	log.Logger().Info("one")
	log.Logger().Info("two")
	_, reader := accept(t, listener)
	for _, want := range []string{"one", "two"} {
		if got := next(t, reader)["short_message"]; got != want {
			t.Errorf("got %v, want %s", got, want)
		}
	}
	log.Close(patience)
	if broken.got.Len() == 0 || log.queue.lost.Load() != 0 {
		t.Errorf("%d bytes on the broken connection, %d lines lost", broken.got.Len(), log.queue.lost.Load())
	}
}

func TestStuckCollectorDelaysNoCaller(t *testing.T) {
	listener := collectorTCP(t, "127.0.0.1:0")
	log := openGELF(t, "tcp", listener.Addr().String(), quiet())
	log.Logger().Info("one")
	_, reader := accept(t, listener)
	next(t, reader)
	const records = 100_000
	flood(t, log, records)
	kept, reported := 0, 0
	for kept+reported < records {
		message := next(t, reader)
		switch message["short_message"] {
		case "something happened":
			kept++
		case "log lines lost":
			reported += int(message["_lost"].(float64))
		}
	}
	if reported == 0 || kept == 0 || kept+reported != records || uint64(reported) != log.queue.lost.Load() {
		t.Errorf("%d kept and %d reported lost of %d records; Lost is %d", kept, reported, records, log.queue.lost.Load())
	}
}

// A collector that takes nothing for too long is given up for a new connection.
func TestWriteToACollectorHasATimeout(t *testing.T) {
	listener := collectorTCP(t, "127.0.0.1:0")
	out := newGELF("tcp", listener.Addr().String(), quiet())
	out.link.retry, out.link.timeout = time.Millisecond, 100*time.Millisecond
	log := openOutput(t, out, quiet(), hclog.LoggerOptions{JSONFormat: true, DisableTime: true})
	again := make(chan struct{})
	go func() {
		defer close(again)
		for range 2 {
			if conn, err := listener.Accept(); err == nil {
				defer conn.Close()
			}
		}
	}()
	text := strings.Repeat("x", 10_000)
	proctest.Until(t, "a second connection", func() bool {
		for range 100 { // much fits into a socket
			log.Logger().Info("line", "text", text)
		}
		select {
		case <-again:
			return true
		default:
			return false
		}
	})
	begin := time.Now()
	log.Close(10 * time.Millisecond)
	<-log.queue.done
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("Close took %v", took)
	}
}

func TestUnreachableCollectorDoesNotDelayClose(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		log := openGELF(t, network, "no.such.name.invalid:12201", quiet())
		log.Logger().Info("one")
		log.Close(10 * time.Millisecond)
		<-log.queue.done
		if log.queue.lost.Load() != 1 {
			t.Errorf("%s: %d lines lost, want 1", network, log.queue.lost.Load())
		}
	}
}

// collectorUDP puts datagrams together again.
type collectorUDP struct {
	t    *testing.T
	conn net.PacketConn
	part map[string][][]byte // by message id

	chunked int // messages that came in chunks
}

func newCollectorUDP(t *testing.T, address string) *collectorUDP {
	t.Helper()
	conn, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	conn.(*net.UDPConn).SetReadBuffer(1 << 20)
	conn.SetReadDeadline(time.Now().Add(patience))
	t.Cleanup(func() { conn.Close() })
	return &collectorUDP{t: t, conn: conn, part: map[string][][]byte{}}
}

func (c *collectorUDP) next() map[string]any {
	c.t.Helper()
	for {
		buf := make([]byte, 65536)
		n, _, err := c.conn.ReadFrom(buf)
		if err != nil {
			c.t.Fatal(err)
		}
		if n > maxDatagram {
			c.t.Errorf("a datagram of %d bytes", n)
		}
		datagram := buf[:n]
		if bytes.HasPrefix(datagram, []byte{0x1e, 0x0f}) {
			id, number, count := string(datagram[2:10]), int(datagram[10]), int(datagram[11])
			if c.part[id] == nil {
				c.part[id] = make([][]byte, count)
			}
			c.part[id][number] = datagram[12:]
			if whole := c.part[id]; !containsNil(whole) {
				delete(c.part, id)
				c.chunked++
				datagram = bytes.Join(whole, nil)
			} else {
				continue
			}
		}
		unzip, err := gzip.NewReader(bytes.NewReader(datagram))
		if err != nil {
			c.t.Fatal(err)
		}
		text, err := io.ReadAll(unzip)
		if err != nil {
			c.t.Fatal(err)
		}
		return decode(c.t, text)
	}
}

func containsNil(parts [][]byte) bool {
	for _, p := range parts {
		if p == nil {
			return true
		}
	}
	return false
}

// noise is text that does not get shorter by much.
func noise(size int) string {
	text := make([]byte, size)
	for i := range text {
		text[i] = byte(' ' + rand.IntN(95))
	}
	return string(text)
}

func TestGELFOverUDP(t *testing.T) {
	server := newCollectorUDP(t, "127.0.0.1:0")
	log := openGELF(t, "udp", server.conn.LocalAddr().String(), quiet())
	for _, size := range []int{0, 100, 1000, 1400, 1600, 1800, 3000, 20_000, 100_000} {
		text := noise(size)
		log.Logger().Info("line", "text", text)
		if got := server.next(); got["_text"] != text || got["short_message"] != "line" || got["level"] != 6.0 {
			t.Fatalf("size %d: got %v", size, got)
		}
	}
	if server.chunked < 3 {
		t.Errorf("%d messages came in chunks, want the long ones", server.chunked)
	}

	// One that no number of chunks holds is lost, and that is reported.
	log.Logger().Info("line", "text", noise(400_000))
	log.Logger().Info("after")
	if got := server.next(); got["short_message"] != "after" {
		t.Errorf("got %v", got["short_message"])
	}
	if got := server.next(); got["short_message"] != "log lines lost" || got["_lost"] != 1.0 {
		t.Errorf("got %v", got)
	}
}

func TestChunks(t *testing.T) {
	const room = maxDatagram - chunkHeader
	for _, tt := range []struct{ size, datagrams int }{
		{1, 1}, {maxDatagram, 1}, {maxDatagram + 1, 2}, {2 * room, 2}, {2*room + 1, 3}, {128 * room, 128}, {128*room + 1, 0},
	} {
		message := []byte(noise(tt.size))
		got, err := chunks(message)
		if len(got) != tt.datagrams || (err != nil) != (tt.datagrams == 0) {
			t.Errorf("%d bytes: %d datagrams, %v, want %d", tt.size, len(got), err, tt.datagrams)
		}
		if len(got) < 2 {
			continue
		}
		var whole []byte
		for i, d := range got {
			if len(d) > maxDatagram || int(d[10]) != i || int(d[11]) != len(got) || !bytes.Equal(d[:10], got[0][:10]) {
				t.Fatalf("%d bytes: datagram %d begins with % x", tt.size, i, d[:12])
			}
			whole = append(whole, d[12:]...)
		}
		if !bytes.Equal(whole, message) {
			t.Errorf("%d bytes do not come out as they went in", tt.size)
		}
	}
}

// A closed UDP port answers once, to the datagram before: that one counts as
// lost, and when the collector is there again it gets what comes.
func TestGELFOverUDPSurvivesARestart(t *testing.T) {
	address := freeAddress(t)
	server := newCollectorUDP(t, address)
	log := openGELF(t, "udp", address, quiet())
	log.Logger().Info("one")
	server.next()
	server.conn.Close()
	proctest.Until(t, "lost lines are noticed", func() bool {
		log.Logger().Info("into the void")
		return log.queue.lost.Load() > 0
	})
	server = newCollectorUDP(t, address)
	log.Logger().Info("two")
	var seen []any
	for len(seen) == 0 || seen[len(seen)-1] != "two" {
		seen = append(seen, server.next()["short_message"])
		if len(seen) > 10000 {
			t.Fatal("the line after the restart does not come")
		}
	}
}

// The error of a connected UDP socket is about an earlier datagram; an error of
// another kind is about this one.
func TestUDPSocketIsMadeAnewAfterAWhile(t *testing.T) {
	server := newCollectorUDP(t, "127.0.0.1:0")
	dials := 0
	l := newLink(func(ctx context.Context) (net.Conn, error) {
		dials++
		return new(net.Dialer).DialContext(ctx, "udp", server.conn.LocalAddr().String())
	}, quiet())
	defer l.close()
	for range 3 {
		if err := l.send(t.Context(), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	l.made = l.made.Add(-2 * datagramAge)
	if err := l.send(t.Context(), []byte("x")); err != nil || dials != 2 {
		t.Errorf("%d dials, %v, want 2", dials, err)
	}
}

func TestWriteThatHangsEndsWithItsContext(t *testing.T) {
	near, far := net.Pipe() // takes nothing that is not read
	defer far.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	l := newLink(func(context.Context) (net.Conn, error) { return near, nil }, quiet())
	l.timeout = patience
	if err := l.send(ctx, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("send: %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestLinkEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l := newLink(func(context.Context) (net.Conn, error) {
		cancel()
		return nil, syscall.ECONNREFUSED
	}, quiet())
	if err := l.send(ctx, []byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("send: %v, want %v", err, context.Canceled)
	}
}

// Whatever is logged, a collector gets valid JSON with names that it takes.
func FuzzGELF(f *testing.F) {
	f.Add("client", "something happened", "192.0.2.1:5")
	f.Add("id", "", "\x00\xff")
	f.Add("@message", "a\nb", "<&>")
	f.Add("a b/ü", "\n", "\u2028")
	name := regexp.MustCompile(`^_[\w.\-]*$`)
	f.Fuzz(func(t *testing.T, key, message, value string) {
		var out bytes.Buffer
		log := hclog.New(&hclog.LoggerOptions{Name: "understudy", JSONFormat: true, DisableTime: true, Output: &out})
		log.Info(message, key, value, key+" ", 1, "@"+key, []string{value})
		text, err := gelfMessage("host", record{level: hclog.Info, at: time.Now(), line: out.Bytes()})
		if err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(text, 0) >= 0 {
			t.Errorf("a zero byte in %q", text)
		}
		got := decode(t, text)
		if short, _ := got["short_message"].(string); strings.TrimSpace(short) == "" || got["version"] != "1.1" || got["host"] != "host" {
			t.Errorf("got %v", got)
		}
		for k, v := range got {
			switch k {
			case "version", "host", "short_message", "full_message", "timestamp", "level":
				continue
			}
			_, number := v.(float64)
			_, text := v.(string)
			if !name.MatchString(k) || k == "_id" || !number && !text {
				t.Errorf("field %q: %v", k, v)
			}
		}
	})
}
