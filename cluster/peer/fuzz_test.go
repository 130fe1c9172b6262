package peer

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"understudy/cluster"
)

// Whatever strangers send to the port, the server survives, and no member is
// asked.
func FuzzStranger(f *testing.F) {
	addr, log := serve(f, func(c *ServerConfig) {
		c.Timeout = time.Second
		c.Local = local{
			grants: func(Question) bool { panic("a stranger was answered") },
			transact: func(context.Context, cluster.Transaction) (cluster.Result, error) {
				panic("a stranger was answered")
			},
		}
	})
	f.Add([]byte("GET / HTTP/1.1\r\nHost: b\r\n\r\n"))
	f.Add([]byte("POST /v1/grants HTTP/1.1\r\nHost: b\r\nContent-Length: 2\r\nUnderstudy-Challenge: 00112233445566778899aabbccddeeff\r\nUnderstudy-Code: 00\r\n\r\n{}"))
	f.Add([]byte("POST /v1/transact HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"))
	f.Add([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		_, _ = conn.Write(sent)
		_ = conn.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, conn) // ends with the connection
		if text := strings.Join(log.lines(), "\n"); strings.Contains(text, "panic") {
			t.Fatal(text)
		}
	})
}

// Whatever a member sends, the answer has a code, and goes to the member that
// the request is for.
func FuzzRequest(f *testing.F) {
	for _, body := range []string{
		`{"cluster":"c","to":"b","question":{"relay":"db","from":"a","version":1,"boot":2}}`,
		`{"cluster":"c","to":"b","transaction":{"Key":"/understudy/c/db/member/a","Value":"e30=","Expect":1,"Prefix":"/understudy/c/db/"}}`,
		`{"cluster":"x","to":"b","question":null}`, `[]`, `null`, ``,
	} {
		f.Add(true, body)
		f.Add(false, body)
	}
	s, err := NewServer(ServerConfig{
		Config: Config{Cluster: "c", Member: "b", Secret: secret, Timeout: 30 * time.Second}, Connections: 1,
		Local: local{
			grants: func(Question) bool { return true },
			transact: func(_ context.Context, t cluster.Transaction) (cluster.Result, error) {
				if !strings.HasPrefix(t.Key, "/understudy/c/") || t.Prefix != "" && !strings.HasPrefix(t.Prefix, "/understudy/c/") {
					panic("a foreign key: " + t.Key + " " + t.Prefix)
				}
				return cluster.Result{OK: true}, nil
			},
		},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, grants bool, body string) {
		path := transactPath
		if grants {
			path = grantsPath
		}
		r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
		challenge := strings.Repeat("0", 2*challengeLength)
		code := s.cfg.requestCode(path, challenge, []byte(body))
		r.Header.Set(challengeHeader, challenge)
		r.Header.Set(codeHeader, code)
		ctx := context.WithValue(r.Context(), connKey{}, &conn{limiter: &limiter{}})
		w := httptest.NewRecorder()
		s.serve(w, r.WithContext(ctx))
		switch w.Code {
		case http.StatusOK, http.StatusBadRequest, http.StatusMisdirectedRequest:
		case http.StatusRequestEntityTooLarge:
			return
		default:
			t.Errorf("status %d", w.Code)
		}
		if w.Header().Get(codeHeader) != s.cfg.answerCode(code, w.Code, w.Body.Bytes()) {
			t.Error("the answer has no code")
		}
	})
}

// Whatever answers, it is no grant without the secret.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 16\r\nUnderstudy-Code: 00\r\n\r\n{\"granted\":true}"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { ln.Close() })
	c := client(f, ln.Addr().String(), nil)
	f.Fuzz(func(t *testing.T, answer []byte) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = conn.Read(make([]byte, maxHead))
			_, _ = conn.Write(answer)
		}()
		if granted, err := c.Grants(t.Context(), Question{}); granted || err == nil {
			t.Errorf("granted %v, %v", granted, err)
		}
		<-done
	})
}
