package health

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"understudy/internal/criteria"
)

func TestTCPExchange(t *testing.T) {
	echo := func(conn net.Conn) { io.Copy(conn, conn) }
	pieces := func(list ...string) func(net.Conn) {
		return func(conn net.Conn) {
			for _, s := range list {
				io.WriteString(conn, s)
				time.Sleep(5 * time.Millisecond) // each piece comes by itself
			}
		}
	}
	endless := func(conn net.Conn) {
		for err := error(nil); err == nil; {
			_, err = conn.Write(bytes.Repeat([]byte("a"), 4096))
		}
	}
	for _, tt := range []struct {
		name         string
		serve        func(net.Conn)
		send, expect string
		phase        Phase
		want         string // part of the error; empty for a pass
	}{
		{"connect only", serveNothing, "", "", "", ""},
		{"connect only, and a banner", serveBanner, "", "", "", ""},
		{"reset instead of an answer", func(conn net.Conn) { io.ReadFull(conn, make([]byte, 4)); serveReset(conn) }, "PING", "+PONG", Read, "reset"},
		{"send only", echo, "PING\r\n", "", "", ""},
		{"banner", serveBanner, "", "220", "", ""},
		{"PING", echo, "PING\r\n", "PING\r\n", "", ""},
		{"in pieces", pieces("+P", "O", "NG\r\n"), "", "+PONG", "", ""},
		{"in the middle", pieces("hello +PO", "NG bye"), "", "+PONG", "", ""},
		{"bytes that are no text", pieces("\x00\xff\x00"), "", "\xff\x00", "", ""},
		{"behind much else", pieces(strings.Repeat("a", criteria.BodyLimit-4) + "PONG"), "", "PONG", "", ""},
		{"too far behind", pieces(strings.Repeat("a", criteria.BodyLimit-3) + "PONG"), "", "PONG", Criteria, `no "PONG" in 65536 bytes`},
		{"something else and the end", func(conn net.Conn) { io.WriteString(conn, "-ERR\x1b\r\n"); conn.Close() }, "", "+PONG", Criteria, `sent "-ERR\x1b\r\n" and closed the connection, want "+PONG"`},
		{"the end", serveClose, "", "+PONG", Criteria, `sent "" and closed the connection`},
		{"something else for ever", endless, "", "+PONG", Criteria, `no "+PONG" in 65536 bytes`},
		{"nothing", serveNothing, "", "+PONG", Read, "i/o timeout"},
		{"something else and nothing", serveBanner, "", "+PONG", Read, `sent "220 ready\r\n", want "+PONG": `},
	} {
		t.Run(tt.name, func(t *testing.T) {
			timeout := checkLimit
			if strings.Contains(tt.name, "nothing") {
				timeout = 2 * time.Second
			}
			host := listenHost(t, "tcp", "127.0.0.1:0", tt.serve)
			check, err := TCPExchange(TCPConfig{Port: portOf(t, host), Send: []byte(tt.send), Expect: []byte(tt.expect)})
			if err != nil {
				t.Fatal(err)
			}
			got := check(checkContext(t, timeout), "127.0.0.1:1")
			if got.OK != (tt.want == "") || got.Phase != tt.phase || got.Err != nil && !strings.Contains(got.Err.Error(), tt.want) {
				t.Errorf("TCPExchange = %+v, want phase %q, %q", got, tt.phase, tt.want)
			}
			if got.Latency > timeout+checkLimit/2 {
				t.Errorf("TCPExchange took %v", got.Latency)
			}
		})
	}
}

// One that trickles does not outlive the timeout, nor one that takes nothing.
func TestTCPExchangeEndsInTime(t *testing.T) {
	const timeout = 300 * time.Millisecond
	check, err := TCPExchange(TCPConfig{Send: bytes.Repeat([]byte("a"), criteria.BodyLimit), Expect: []byte("+PONG")})
	if err != nil {
		t.Fatal(err)
	}
	for name, serve := range map[string]func(net.Conn){
		"takes nothing": serveNothing,
		"trickles": func(conn net.Conn) {
			for err := error(nil); err == nil; time.Sleep(20 * time.Millisecond) { // the pace of a trickle
				_, err = io.WriteString(conn, "a")
			}
		},
	} {
		host := listenHost(t, "unix", filepath.Join(t.TempDir(), "s"), serve)
		got := check(checkContext(t, timeout), host)
		if got.OK || !isTimeout(got.Err) || got.Latency < timeout/2 || got.Latency > timeout+checkLimit/2 {
			t.Errorf("%s: TCPExchange = %+v, want a timeout after %v", name, got, timeout)
		}
	}
}

func TestTCPExchangeMistakes(t *testing.T) {
	_, err := TCPExchange(TCPConfig{Port: 65536, Send: make([]byte, criteria.BodyLimit+1), Expect: make([]byte, criteria.BodyLimit+1)})
	if err == nil {
		t.Fatal("TCPExchange = nil, want an error")
	}
	for _, want := range []string{"port: 65536", "send: 65537 bytes", "expect: 65537 bytes"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("TCPExchange = %v\nwant it to name %s", err, want)
		}
	}
	check, err := TCPExchange(TCPConfig{Expect: []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	if got := check(checkContext(t, checkLimit), "db1:x"); got.OK || got.Phase != Resolve {
		t.Errorf("TCPExchange of a bad host = %+v", got)
	}
	if got := check(checkContext(t, checkLimit), refusedHost(t)); got.OK || got.Phase != Connect {
		t.Errorf("TCPExchange of a host that refuses = %+v", got)
	}
}

func FuzzTCPExpect(f *testing.F) {
	f.Add([]byte("hello +PONG bye"), []byte("+PONG"), 3)
	f.Add([]byte("aaaaab"), []byte("aab"), 1)
	f.Add(bytes.Repeat([]byte("a"), criteria.BodyLimit+5), []byte("ab"), 1000)
	f.Fuzz(func(t *testing.T, said, expect []byte, piece int) {
		if len(expect) == 0 {
			t.Skip() // is not read for
		}
		var in io.Reader = bytes.NewReader(said)
		switch {
		case piece == 1:
			in = iotest.OneByteReader(in)
		case piece > 1:
			in = &pieceReader{in, piece}
		}
		got, found, err := findBytes(in, expect)
		if want := bytes.Contains(said[:min(len(said), criteria.BodyLimit)], expect); found != want {
			t.Errorf("findBytes of %q in %d bytes = %v, want %v", expect, len(said), found, want)
		}
		if len(got) > criteria.BodyLimit || !bytes.HasPrefix(said, got) {
			t.Errorf("findBytes returns %d bytes that were not said", len(got))
		}
		if !found && err == nil && len(got) != criteria.BodyLimit || err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("findBytes ends after %d bytes of %d with %v", len(got), len(said), err)
		}
	})
}

// pieceReader reads n bytes at a time, at most.
type pieceReader struct {
	io.Reader
	n int
}

func (r *pieceReader) Read(b []byte) (int, error) { return r.Reader.Read(b[:min(len(b), r.n)]) }
