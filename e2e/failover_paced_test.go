//go:build linux

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/control"
	"understudy/failover"
)

// slowHost is a host that accepts so many connections a second out of a queue of that
// length. It sends a byte to each.
type slowHost struct {
	accepted atomic.Int64
	ln       net.Listener
	accept   sync.WaitGroup
}

func newSlowHost(t *testing.T, addr string, perSecond, backlog int) *slowHost {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), addr)
	defer f.Close() // FileListener makes a copy
	_, text, _ := net.SplitHostPort(addr)
	port, _ := strconv.Atoi(text)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		t.Fatal(err)
	}
	h := &slowHost{}
	if h.ln, err = net.FileListener(f); err != nil {
		t.Fatal(err)
	}
	h.accept.Go(func() {
		var all []net.Conn
		defer func() {
			for _, c := range all {
				c.Close()
			}
		}()
		every := time.Second / time.Duration(perSecond)
		for next := time.Now(); ; next = next.Add(every) {
			time.Sleep(time.Until(next))
			if late := time.Now().Add(-50 * time.Millisecond); next.Before(late) {
				next = late // it does not make up for more
			}
			c, err := h.ln.Accept()
			if err != nil {
				return
			}
			if next.Before(time.Now().Add(-every)) {
				next = time.Now() // it had nothing to do
			}
			h.accepted.Add(1)
			_, _ = io.WriteString(c, "x")
			all = append(all, c)
		}
	})
	t.Cleanup(h.close)
	return h
}

func (h *slowHost) close() {
	h.ln.Close()
	h.accept.Wait()
}

// overflows is the number of connects that did not fit into the queue of a listener, in
// this network namespace.
func overflows(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/net/netstat")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for k, name := range names {
			if name == "ListenOverflows" {
				n, _ := strconv.Atoi(fields[k])
				return n
			}
		}
	}
	t.Fatal("no ListenOverflows in /proc/net/netstat")
	return 0
}

// 5,000 clients wait for a host that accepts 300 a second. Paced, each of them is served.
// All at once, most connects find the host's queue full.
func TestPacedOpen(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("SKIP: takes more than a minute")
	}
	if !isolate(t) {
		return
	}
	const many, perSecond, backlog = 5000, 300, 128
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 2*many+1000 {
		t.Skipf("SKIP: needs %d descriptors, the limit is %d (ulimit -n)", 2*many+1000, limit.Cur)
	}
	if err := os.WriteFile("/proc/sys/net/core/somaxconn", []byte(strconv.Itoa(2*many)), 0o644); err != nil {
		t.Skipf("SKIP: the queue of the relay is too short: %v", err)
	}
	type result struct {
		served, overflows int
		pacing            *failover.Pacing
	}
	open := func(t *testing.T, rate string, longest time.Duration) (r result) {
		t.Helper()
		a, b, front, socket := freeAddr(t), freeAddr(t), freeAddr(t), socketPath(t)
		first := newSlowHost(t, a, perSecond, backlog)
		u := start(t, "--bind", front, "--hosts", a+","+b, "--open-rate", rate, "--hold", "45s", "--control", socket)
		u.Until("it to serve", func() bool {
			c, err := net.Dial("tcp", front)
			if err != nil {
				return false
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Second))
			n, _ := c.Read(make([]byte, 1))
			return n == 1
		})
		first.close()
		u.WaitLog("no host is usable")
		var clients sync.WaitGroup
		var served, queued atomic.Int64
		places := make(chan struct{}, 64)
		for k := range many {
			places <- struct{}{}
			clients.Go(func() {
				c, err := net.DialTimeout("tcp", front, patience)
				<-places
				if err != nil {
					t.Errorf("client %d: %v", k, err)
					return
				}
				defer c.Close()
				queued.Add(1)
				c.SetDeadline(time.Now().Add(2 * time.Minute))
				if n, _ := c.Read(make([]byte, 1)); n == 1 {
					served.Add(1)
				}
				_, _ = c.Read(make([]byte, 1)) // it stays, until the host ends it
			})
		}
		u.Until("all clients to wait", func() bool { return queued.Load() == many })
		before, began := overflows(t), time.Now()
		host := newSlowHost(t, b, perSecond, backlog)
		status := func() (r control.RelayStatus) {
			s, err := control.NewClient(socket).Status(context.Background())
			if err == nil {
				r = s.Relays[0]
			}
			return r
		}
		for time.Since(began) < longest { // until each was served or lost
			if c := status().Clients; served.Load()+int64(c.Expired) >= many {
				break
			}
			time.Sleep(200 * time.Millisecond)
		}
		r.served, r.overflows = int(served.Load()), overflows(t)-before
		now := status()
		fmt.Printf("--open-rate %s: %d of %d served in %.1fs, %d accepted by the host, %d times its queue was full, %d elections, %d expired\n",
			rate, r.served, many, time.Since(began).Seconds(), host.accepted.Load(), r.overflows, now.Epoch, now.Clients.Expired)
		if rate == "auto" {
			u.Until("the record to be complete", func() bool {
				events, err := control.NewClient(socket).Events(context.Background(), "")
				if err != nil || len(events) == 0 {
					return false
				}
				last := events[len(events)-1]
				r.pacing = last.Pacing
				if last.Done && last.ClientsHeld != many {
					t.Errorf("the record has %d clients that waited, want %d", last.ClientsHeld, many)
				}
				return last.Done
			})
		}
		u.Signal(syscall.SIGKILL) // its clients would be drained
		host.close()
		clients.Wait()
		return r
	}
	paced := open(t, "auto", 2*time.Minute)
	// On a busy machine the host does not keep up with what it says it takes, so its queue
	// is full even so. A connect that did not fit looks made from outside; whoever has bad
	// luck with several in turn is served after minutes.
	if lost := many - paced.served; lost > paced.overflows/100 {
		t.Errorf("paced, %d of %d clients were served, and the queue of the host was full %d times", paced.served, many, paced.overflows)
	}
	if p := paced.pacing; p == nil || p.Turns < many || p.Seconds < 5 || p.PeakRate <= p.FirstRate {
		t.Errorf("the record of the pacing is %+v", p)
	} else {
		fmt.Printf("pacing %+v\n", *p)
	}
	at := open(t, "off", 45*time.Second)
	if at.overflows < many/2 || paced.overflows > at.overflows/2 {
		t.Errorf("the queue of the host was full %d times, and %d times without pacing", paced.overflows, at.overflows)
	}
	if at.served == many {
		t.Errorf("without pacing all %d clients were served: the test shows no harm", many)
	}
}
