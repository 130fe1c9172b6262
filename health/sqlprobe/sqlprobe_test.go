package sqlprobe

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf16"

	"understudy/health"
	"understudy/internal/proctest"
)

// tds is as much of a SQL Server as a probe needs, after MS-TDS: it accepts one password
// and has one row for every statement.
type tds struct {
	password string
	silent   atomic.Bool // answers no statement
	fails    atomic.Bool // answers each with an error
	logins   atomic.Int64
	open     atomic.Int64 // sessions
}

const (
	tdsBatch     = 1
	tdsReply     = 4
	tdsAttention = 6
	tdsLogin     = 16
	tdsPrelogin  = 18
)

func (s *tds) serve(conn net.Conn) {
	s.open.Add(1)
	defer s.open.Add(-1)
	defer conn.Close()
	for {
		var head [8]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return
		}
		body := make([]byte, int(binary.BigEndian.Uint16(head[2:]))-len(head))
		if _, err := io.ReadFull(conn, body); err != nil {
			return
		}
		var answer []byte
		switch head[0] {
		case tdsPrelogin: // a version, and no encryption
			answer = []byte{0, 0, 11, 0, 6, 1, 0, 17, 0, 1, 0xff, 16, 0, 0, 0, 0, 0, 2}
		case tdsLogin:
			s.logins.Add(1)
			if at, n := binary.LittleEndian.Uint16(body[44:]), binary.LittleEndian.Uint16(body[46:]); reveal(body[at:at+2*n]) != s.password {
				answer = append(tdsError(18456, "Login failed for user 'probe'."), tdsDone(2, 0)...)
				break
			}
			ack := append([]byte{1, 0x74, 0, 0, 4, 4}, wide("test")...)
			ack = append(ack, 16, 0, 0, 0)
			answer = append(counted(0xad, ack), tdsDone(0, 0)...)
		case tdsBatch:
			switch {
			case s.silent.Load():
				continue
			case s.fails.Load():
				answer = append(tdsError(208, "Invalid object name 'stock'."), tdsDone(2, 0)...)
			default:
				answer = tdsRow()
			}
		case tdsAttention: // sent when the client is done with an answer that it has not read whole
			if s.silent.Load() {
				continue
			}
			answer = tdsDone(0x20, 0)
		default:
			return
		}
		reply := []byte{tdsReply, 1, 0, 0, 0, 0, 1, 0}
		binary.BigEndian.PutUint16(reply[2:], uint16(len(reply)+len(answer)))
		if _, err := conn.Write(append(reply, answer...)); err != nil {
			return
		}
	}
}

// reveal returns a password as it was before a client obscured it.
func reveal(text []byte) string {
	units := make([]uint16, len(text)/2)
	for i := range units {
		low, high := text[2*i]^0xa5, text[2*i+1]^0xa5
		units[i] = uint16(low<<4|low>>4) | uint16(high<<4|high>>4)<<8
	}
	return string(utf16.Decode(units))
}

// wide returns a text in UTF-16.
func wide(text string) (b []byte) {
	for _, u := range utf16.Encode([]rune(text)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// counted returns a token with its length.
func counted(token byte, body []byte) []byte {
	return append(binary.LittleEndian.AppendUint16([]byte{token}, uint16(len(body))), body...)
}

func tdsError(number uint32, text string) []byte {
	body := append(binary.LittleEndian.AppendUint32(nil, number), 1, 16)
	body = append(binary.LittleEndian.AppendUint16(body, uint16(len(text))), wide(text)...)
	return counted(0xaa, append(body, 0, 0, 1, 0, 0, 0))
}

func tdsDone(status uint16, rows uint64) []byte {
	b := binary.LittleEndian.AppendUint16([]byte{0xfd}, status)
	return binary.LittleEndian.AppendUint64(append(b, 0, 0), rows)
}

// tdsRow is a result with the columns item, a text, and n, a number.
func tdsRow() []byte {
	b := []byte{0x81, 2, 0}
	b = append(b, 0, 0, 0, 0, 0, 0, 0xe7, 100, 0, 9, 4, 0xd0, 0, 0x34, 4)
	b = append(b, wide("item")...)
	b = append(b, 0, 0, 0, 0, 0, 0, 0x38, 1)
	b = append(b, wide("n")...)
	b = append(b, 0xd1, 10, 0)
	b = append(b, wide("apple")...)
	b = append(b, 7, 0, 0, 0)
	return append(b, tdsDone(16, 1)...)
}

// sqlServer starts a tds and returns its address.
func sqlServer(t *testing.T, s *tds) string {
	t.Helper()
	proctest.NoLeaks(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go s.serve(conn)
		}
	}()
	t.Cleanup(func() { proctest.Until(t, "every session has ended", func() bool { return s.open.Load() == 0 }) })
	return ln.Addr().String()
}

// want runs a check and compares its result; text is part of the error, empty for none.
func want(t *testing.T, p *Probe, timeout time.Duration, phase health.Phase, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	got := p.Check(ctx)
	if got.OK != (text == "") || got.Phase != phase || got.Err != nil && !strings.Contains(got.Err.Error(), text) {
		t.Errorf("Check = %+v, want phase %q, %q", got, phase, text)
	}
	if got.Err != nil && strings.Contains(got.Err.Error(), "s3cret") {
		t.Errorf("Check = %v, which has the password in it", got.Err)
	}
}

const (
	long  = 30 * time.Second
	short = 300 * time.Millisecond
)

func TestSQLServer(t *testing.T) {
	server := &tds{password: "s3cret"}
	host := sqlServer(t, server)
	file := filepath.Join(t.TempDir(), "password")
	password := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	probe := func(values ...Value) *Probe {
		t.Helper()
		p, err := New(Config{Driver: "sqlserver", Host: host, User: "probe", Database: "shop", PasswordFile: file, Timeout: long,
			Query: "select item, n from stock", Exists: values})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		return p
	}

	password("s3cret2")
	p := probe(Value{Column: "ITEM", Text: "apple"}, Value{Column: "n", Text: "7"})
	want(t, p, long, health.Login, `login as "probe" at `+host+" was refused")
	password("s3cret")
	logins := server.logins.Load()
	for range 5 {
		want(t, p, long, "", "")
	}
	if n := server.logins.Load() - logins; n != 1 {
		t.Errorf("%d logins for 5 checks, want 1", n)
	}
	want(t, probe(Value{Column: "n", Text: "8"}), long, health.Criteria, "no row of 1 has n=8")
	want(t, probe(Value{Column: "m", Text: "8"}), long, health.Criteria, `the result has no column "m"`)

	server.fails.Store(true)
	want(t, p, long, health.SQL, "query failed: mssql: Invalid object name 'stock'.")
	server.fails.Store(false)
	want(t, p, long, "", "")
	server.silent.Store(true)
	want(t, p, short, health.SQL, "query: no answer in time")
	server.silent.Store(false)
	want(t, p, long, "", "")
	p.Close()
	want(t, p, long, health.SQL, "closed")
}

// A server that is silent during the login, and none at all.
func TestNoServer(t *testing.T) {
	for _, driver := range []string{"postgres", "mysql", "sqlserver"} {
		t.Run(driver, func(t *testing.T) {
			proctest.NoLeaks(t)
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			probe := func(host string) *Probe {
				p, err := New(Config{Driver: driver, Host: host, User: "probe", Query: "select 1", Timeout: long})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { p.Close() })
				return p
			}
			want(t, probe(ln.Addr().String()), short, health.Login, `login as "probe" at `+ln.Addr().String()+" did not end in time")
			want(t, probe(proctest.FreeAddr(t)), long, health.Connect, "connection refused")
			go func() {
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					fmt.Fprint(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
					conn.Close()
				}
			}()
			want(t, probe(ln.Addr().String()), long, health.Login, "failed")
		})
	}
}

func TestMistakes(t *testing.T) {
	_, err := New(Config{Driver: "oracle", Host: "db1", Query: " "})
	if err == nil {
		t.Fatal("New = nil, want an error")
	}
	for _, want := range []string{`driver: "oracle"`, `host: "db1"`, "user: ", "query: ", "timeout: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v\nwant it to name %s", err, want)
		}
	}
	if _, err := New(Config{Driver: "sqlserver", Host: "unix:/s", User: "a", Query: "b", Timeout: 1}); err == nil {
		t.Error("New with a socket of SQL Server = nil, want an error")
	}
	p, err := New(Config{Driver: "mysql", Host: "127.0.0.1:1", User: "a", Query: "b", Timeout: 1, PasswordFile: "/nowhere"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	want(t, p, long, health.Login, "password file: open /nowhere")
}

func TestValueMatches(t *testing.T) {
	for _, tt := range []struct {
		got  any
		kind string
		want Value
		ok   bool
	}{
		{"apple", "", Value{Text: "apple"}, true},
		{"apple   ", "", Value{Text: "apple"}, true},
		{"Apple", "", Value{Text: "apple"}, false},
		{[]byte("apple"), "VARCHAR", Value{Text: " apple"}, true},
		{int64(7), "", Value{Text: "7"}, true},
		{int64(7), "", Value{Text: "7.0"}, true},
		{"5.00", "", Value{Text: "5"}, true},
		{"5.01", "", Value{Text: "5"}, false},
		{"0.1", "", Value{Text: ".1"}, false},
		{float64(0.25), "", Value{Text: "0.25"}, true},
		{true, "", Value{Text: "true"}, true},
		{true, "", Value{Text: "1"}, true},
		{false, "", Value{Text: "False"}, true},
		{false, "", Value{Text: "true"}, false},
		{false, "", Value{Text: "no"}, false},
		{[]byte{1}, "BIT", Value{Text: "1"}, true},
		{[]byte{1, 0}, "BIT", Value{Text: "256"}, true},
		{nil, "", Value{Null: true}, true},
		{nil, "", Value{Text: ""}, false},
		{"", "", Value{Null: true}, false},
		{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), "", Value{Text: "2026-01-02 03:04:05"}, true},
		{"1e999999999", "", Value{Text: "1"}, false},
	} {
		if ok := tt.want.matches(tt.got, tt.kind); ok != tt.ok {
			t.Errorf("%v of %#v (%s) = %v, want %v", tt.want, tt.got, tt.kind, ok, tt.ok)
		}
	}
}
