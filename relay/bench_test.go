package relay

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"

	"github.com/hashicorp/go-hclog"
)

// The cost of the relay, compared with the standard library's copying and with
// no proxy at all. Client, proxy and host share one process: there a goroutine
// that wakes another costs little, which flatters the library, and a loop's
// thread is woken by the kernel. bench/ compares processes; the results of
// interest here are the allocations, and the change from one version to the
// next.

// benchPairs are the ways from a client to a host.
var benchPairs = []struct {
	name string
	pair func(b *testing.B) (client, host *net.TCPConn)
}{
	{"relay", func(b *testing.B) (client, host *net.TCPConn) {
		b.Helper()
		r, hosts := startPairs(b, Config{})
		client, host = r.pair(hosts)
		return client, host
	}},
	{"stdlib", func(b *testing.B) (client, host *net.TCPConn) {
		b.Helper()
		client, front := tcpPair(b)
		back, host := tcpPair(b)
		for _, way := range [][2]*net.TCPConn{{front, back}, {back, front}} {
			go func() {
				io.Copy(way[0], way[1])
				way[0].CloseWrite()
			}()
		}
		return client, host
	}},
	{"direct", func(b *testing.B) (client, host *net.TCPConn) {
		b.Helper()
		return tcpPair(b)
	}},
}

// tcpPair returns both ends of one loopback connection.
func tcpPair(tb testing.TB) (a, b *net.TCPConn) {
	tb.Helper()
	ln := listen(tb, "127.0.0.1:0")
	defer ln.Close()
	a = dialTo(tb, ln.Addr().String())
	c, err := ln.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return a, c.(*net.TCPConn)
}

// BenchmarkEcho is one message there and back.
func BenchmarkEcho(b *testing.B) {
	for _, size := range []int{64, 1 << 10, 16 << 10} {
		for _, way := range benchPairs {
			b.Run(fmt.Sprintf("size=%d/impl=%s", size, way.name), func(b *testing.B) {
				client, host := way.pair(b)
				done := answer(host, size)
				message := make([]byte, size)
				b.SetBytes(int64(2 * size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := client.Write(message); err != nil {
						b.Fatal(err)
					}
					if _, err := io.ReadFull(client, message); err != nil {
						b.Fatal(err)
					}
				}
				client.Close()
				<-done
			})
		}
	}
}

// answer sends every message of that size back.
func answer(c *net.TCPConn, size int) (done chan struct{}) {
	done = make(chan struct{})
	message := make([]byte, size)
	go func() {
		defer close(done)
		for {
			if _, err := io.ReadFull(c, message); err != nil {
				return
			}
			if _, err := c.Write(message); err != nil {
				return
			}
		}
	}()
	return done
}

// BenchmarkBulk is one direction, as fast as it goes.
func BenchmarkBulk(b *testing.B) {
	const piece = 256 << 10
	for _, way := range benchPairs {
		b.Run("impl="+way.name, func(b *testing.B) {
			client, host := way.pair(b)
			done := make(chan struct{})
			go func() {
				defer close(done)
				sink := make([]byte, piece)
				for {
					if _, err := host.Read(sink); err != nil {
						return
					}
				}
			}()
			message := make([]byte, piece)
			b.SetBytes(piece)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.Write(message); err != nil {
					b.Fatal(err)
				}
			}
			client.Close()
			<-done
		})
	}
}

// BenchmarkConnect is a connection with a message there and back.
func BenchmarkConnect(b *testing.B) {
	r, logged := start(b, Config{}), start(b, Config{Ended: logEndings(b)})
	h := newHost(b, echo)
	r.open(1, h.addr)
	logged.open(1, h.addr)
	for _, way := range []struct{ name, addr string }{{"relay", r.addr}, {"logged", logged.addr}, {"direct", h.addr}} {
		b.Run("impl="+way.name, func(b *testing.B) {
			b.ReportAllocs()
			message := make([]byte, 64)
			for b.Loop() {
				c, err := net.Dial("tcp", way.addr)
				if err != nil {
					b.Fatal(err)
				}
				c.Write(message)
				if _, err := io.ReadFull(c, message); err != nil {
					b.Fatal(err)
				}
				reset(c.(*net.TCPConn)) // otherwise the ports run out
			}
		})
	}
}

// BenchmarkConnects is 16 clients at a time that connect, exchange 64 bytes and
// leave, with and without a log of the connections.
func BenchmarkConnects(b *testing.B) {
	r, logged := start(b, Config{}), start(b, Config{Ended: logEndings(b)})
	h := newHost(b, echo)
	r.open(1, h.addr)
	logged.open(1, h.addr)
	for _, way := range []struct{ name, addr string }{{"relay", r.addr}, {"logged", logged.addr}} {
		b.Run("impl="+way.name, func(b *testing.B) {
			b.SetParallelism(16 / runtime.GOMAXPROCS(0))
			b.RunParallel(func(pb *testing.PB) {
				message := make([]byte, 64)
				for pb.Next() {
					c, err := net.Dial("tcp", way.addr)
					if err != nil {
						b.Error(err)
						return
					}
					c.Write(message)
					if _, err := io.ReadFull(c, message); err != nil {
						b.Error(err)
					}
					reset(c.(*net.TCPConn)) // otherwise the ports run out
				}
			})
		})
	}
}

// logEndings returns what logs connections as the program does: it queues them for
// a goroutine that formats a line.
func logEndings(b *testing.B) func(Ending) {
	b.Helper()
	log := hclog.New(&hclog.LoggerOptions{Output: io.Discard})
	all, over := make(chan Ending, 16384), make(chan struct{})
	b.Cleanup(func() { close(over) })
	go func() {
		for {
			select {
			case e := <-all:
				log.Info("connection", "client", e.Client.String(), "host", e.Host, "epoch", e.Epoch, "started", e.Started.Format(hclog.TimeFormat),
					"duration", e.Duration, "sent", e.Sent, "received", e.Received, "outcome", e.Outcome, "why", e.Why, "moved", e.Moved, "replayed", e.Replayed)
			case <-over:
				return
			}
		}
	}()
	return func(e Ending) {
		select {
		case all <- e:
		default:
			b.Error("an ending was dropped")
		}
	}
}
