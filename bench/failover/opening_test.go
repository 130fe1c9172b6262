//go:build linux

package main

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"

	recognizer "understudy/internal/opening"
	"understudy/internal/proctest"
)

// All openings but the last are those that understudy recognizes.
func TestOpeningsAreRecognized(t *testing.T) {
	for _, o := range openings() {
		if _, ok := recognizer.Replayable(o.bytes); ok != (o.name != "unknown") {
			t.Errorf("%s is recognized: %t", o.name, ok)
		}
	}
}

// Clients take turns to say the openings, and losses are counted by them.
func TestClientsThatSpeakFirst(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	unknown := openings()[3]
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				first := make([]byte, len(unknown.bytes)) // all are as long as this one
				if _, err := io.ReadFull(conn, first); err != nil || bytes.Equal(first, unknown.bytes) {
					conn.Close()
					return
				}
				converse(conn, oldHost, true)
			}()
		}
	}()
	g := startOpenings(t.Context(), listener.Addr().String())
	proctest.Until(t, "clients are served and lost", func() bool {
		by, lost := g.served()
		return by[oldHost] >= 30 && lost >= 10
	})
	o := g.finish().evaluate()
	if o.lostBy[unknown.name] != o.lost || o.by[oldHost]+o.lost != o.clients || o.lost < o.clients/5 {
		t.Errorf("of %d clients %v were served, %d lost: %v", o.clients, o.by, o.lost, o.lostBy)
	}
	d := &driver{settings: settings{rounds: 1}, proxies: proxies("")[:1]}
	d.results = []result{{fault: "killed, client first", proxy: subject, outcome: outcome{by: map[string]int{}, lostBy: map[string]int{"TLS": 1, "PostgreSQL": 2, "HTTP GET": 3, "unknown": 4}, lost: 10}}}
	page := d.resultsOfOpenings(machine{})
	for _, want := range []string{"| longest gap | lost: TLS | lost: PostgreSQL | lost: HTTP GET | lost: unknown | slowest |", "| killed, client first | understudy | 0 ms | 1 | 2 | 3 | 4 | 0 ms |", "\n1 round. "} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q:\n%s", want, page)
		}
	}
}
