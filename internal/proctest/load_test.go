package proctest

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) { os.Exit(Main(m, nil)) }

func TestReport(t *testing.T) {
	begin := time.Now()
	at := func(start, latency time.Duration, host string) Conn {
		c := Conn{Start: begin.Add(start), Latency: latency, Host: host}
		if host == "" {
			c.Err = errors.New("lost")
		}
		return c
	}
	// The gap is between greetings: a client that waited ends it late.
	r := Report{Conns: []Conn{
		at(0, time.Millisecond, "a"),
		at(100*time.Millisecond, time.Millisecond, ""),
		at(50*time.Millisecond, 250*time.Millisecond, "b"),
		at(310*time.Millisecond, time.Millisecond, "b"),
	}}
	if got, want := r.Gap(), 299*time.Millisecond; got != want {
		t.Errorf("gap %v, want %v", got, want)
	}
	if got, want := r.Slowest(), 250*time.Millisecond; got != want {
		t.Errorf("slowest %v, want %v", got, want)
	}
	if len(r.Lost()) != 1 || r.By()["a"] != 1 || r.By()["b"] != 2 {
		t.Errorf("lost %v, by %v", r.Lost(), r.By())
	}
}

func TestHostIsKilledStoppedAndComesBack(t *testing.T) {
	h := (&Host{Name: "a"}).Start(t)
	load := StartLoad(t, h.Addr(), 100, 2*time.Second)
	Until(t, "clients are served", func() bool { return load.Served() > 10 })
	h.Kill()
	if _, err := Greeting(h.Addr(), time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a killed host gives %v, want refused", err)
	}
	Until(t, "clients are lost", func() bool { return load.Lost() > 0 })
	h.Restart()
	h.Stop()
	if who, err := Greeting(h.Addr(), 200*time.Millisecond); err == nil {
		t.Errorf("a stopped host greets with %q", who)
	}
	h.Continue()
	Until(t, "the host greets again", func() bool {
		who, err := Greeting(h.Addr(), time.Second)
		return err == nil && who == "a"
	})
	if r := load.Stop(); len(r.Lost()) == 0 || r.By()["a"] == 0 {
		t.Errorf("the report does not say who was lost and who was served: %v", r)
	}
}

// Two test binaries at the same time never get the same port.
func TestFreePortIsNobodyElses(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("SKIPPED: only Linux has abstract sockets")
	}
	port := FreePort(t, "127.0.0.1")
	if reserve(t, port) {
		t.Errorf("port %d can be taken once more", port)
	}
}

func TestHostStopsListeningAndListensAgain(t *testing.T) {
	h := (&Host{Name: "x"}).Start(t)
	conn, err := net.Dial("tcp", h.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("x\n"))
	if n, err := io.ReadFull(conn, got); string(got) != "x\n" {
		t.Fatalf("read %q, %v", got[:n], err)
	}
	h.StopListening()
	if _, err := Greeting(h.Addr(), time.Second); err == nil {
		t.Error("greeted by a host that does not listen")
	}
	h.Listen()
	if who, err := Greeting(h.Addr(), 10*time.Second); who != "x" {
		t.Errorf("greeted by %q, %v, want x", who, err)
	}
	// The connection from before is served all the time.
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	got = make([]byte, len("hello"))
	if n, err := io.ReadFull(conn, got); string(got) != "hello" {
		t.Errorf("the connection from before read %q, %v", got[:n], err)
	}
}
