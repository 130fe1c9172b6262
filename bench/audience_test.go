//go:build linux

package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestAdminOf(t *testing.T) {
	for line, want := range map[string]string{
		"--spin off": "", "--admin 127.0.0.1:1 --spin off": "127.0.0.1:1", "--spin off --admin=127.0.0.1:2": "127.0.0.1:2", "--admin": "",
	} {
		if got := adminOf(strings.Fields(line)); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

// Everybody in the audience gets something before the measurement, and a failure is told.
func TestAudience(t *testing.T) {
	var streams, scrapes atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		streams.Add(1)
		_, _ = io.WriteString(w, "event: tick\nid: x-1\ndata: {}\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		scrapes.Add(1)
		_, _ = io.WriteString(w, "up 1\n")
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	admin := strings.TrimPrefix(server.URL, "http://")
	a, err := attend(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	if streams.Load() != watchers || scrapes.Load() == 0 {
		t.Errorf("%d watchers and %d scrapes, want %d and some", streams.Load(), scrapes.Load(), watchers)
	}
	if err := a.leave(); err != nil {
		t.Error(err)
	}

	if a, err = attend(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
	server.CloseClientConnections()
	for failed := false; !failed; time.Sleep(time.Millisecond) {
		a.mu.Lock()
		failed = a.err != nil
		a.mu.Unlock()
	}
	if err := a.leave(); err == nil {
		t.Error("nobody says that the listener has gone")
	}
}
