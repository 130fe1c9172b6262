//go:build linux

package e2e

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"testing"

	"understudy/control"
	"understudy/internal/proctest"
)

// openings are the first messages of clients of TLS, PostgreSQL and HTTP.
func openings(t *testing.T) [][]byte {
	t.Helper()
	near, far := net.Pipe()
	go func() {
		_ = tls.Client(near, &tls.Config{ServerName: "db.example", NextProtos: []string{"h2"}}).Handshake() // ends with far
	}()
	hello := make([]byte, 5)
	_, err := io.ReadFull(far, hello)
	if err == nil {
		body := make([]byte, binary.BigEndian.Uint16(hello[3:]))
		_, err = io.ReadFull(far, body)
		hello = append(hello, body...)
	}
	far.Close()
	if err != nil {
		t.Fatal(err)
	}
	login := []byte("\x00\x03\x00\x00user\x00app\x00database\x00app\x00\x00")
	login = append(binary.BigEndian.AppendUint32(nil, uint32(len(login)+4)), login...)
	return [][]byte{hello, login, []byte("GET / HTTP/1.1\r\nHost: db.example\r\n\r\n")}
}

// The primary is killed, stopped, and replaced by an operator, under the load of
// clients that speak first: none of them is lost, those that came before the
// fault included. What is not replayed is lost, and counted.
func TestReplayUnderLoad(t *testing.T) {
	t.Parallel()
	known, unknown := openings(t), [][]byte{[]byte("good morning\n")}
	killed := func(o *operated) { o.a.Kill() }
	stopped := func(o *operated) { o.a.Stop() }
	switched := func(o *operated) { o.want(0, []string{"switch", o.b.Addr()}) }
	for _, tt := range []struct {
		name     string
		openings [][]byte
		fault    func(o *operated)
		args     string
		loses    bool
	}{
		{"killed", known, killed, "", false},
		{"stopped", known, stopped, "", false},
		{"switched", known, switched, "", false},
		{"off", known, stopped, "--replay off --on-silence fail", true},
		{"unknown", unknown, stopped, "--on-silence fail", true},
		{"always", unknown, stopped, "--replay always", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			addr := freeAddr(t)
			o := &operated{show: &show{t: t, addr: addr}, socket: socketPath(t)}
			o.a = (&proctest.Host{Name: "a", Listens: true}).Start(t)
			o.b = (&proctest.Host{Name: "b", Listens: true}).Start(t)
			o.Understudy = start(t, append(words(tt.args), "--bind", addr, "--control", o.socket, "--hosts", o.a.Addr()+","+o.b.Addr())...)
			o.client = control.NewClient(o.socket)
			o.WaitLog("relay open")
			o.awaitUp(o.b)
			load := proctest.StartLoad(t, addr, perSecond, patience, tt.openings...)
			// Too few of them to know a usual time, on which it would depend when a host
			// counts as silent.
			o.Until("clients are served", func() bool { return load.Served() >= perSecond/4 })
			tt.fault(o)
			o.Until("the second host is primary", func() bool { return elections(o.Understudy) == 2 })
			report := finish(o.Understudy, load)
			n, lost := o.now().Clients, report.Lost()
			t.Logf("%v; %d openings were sent again", report, n.Replayed)
			if (len(lost) > 0) != tt.loses || n.Unanswered != uint64(len(lost)) {
				t.Errorf("%d of %d clients lost, want some: %t; unanswered %d", len(lost), len(report.Conns), tt.loses, n.Unanswered)
			}
			if tt.name != "killed" && tt.name != "switched" && (n.Replayed == 0) != tt.loses { // there it is a matter of luck
				t.Errorf("%d openings were sent again, want some: %t", n.Replayed, !tt.loses)
			}
			if report.By()["b"] == 0 {
				t.Error("the second host served nobody")
			}
			o.Terminate()
		})
	}
}
