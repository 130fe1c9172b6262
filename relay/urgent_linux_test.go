package relay

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// Urgent (out-of-band) bytes; see tcp(7). splice(2) stops in front of one with
// EAGAIN although there is more to read, or with a false end of stream.

func control(tb testing.TB, c *net.TCPConn, f func(fd int) error) {
	tb.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil || inner != nil {
		tb.Fatal(err, inner)
	}
}

// sendUrgent sends one byte as urgent, after all that was written before.
func sendUrgent(tb testing.TB, c *net.TCPConn, b byte) {
	tb.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), []byte{b}, unix.MSG_OOB|unix.MSG_NOSIGNAL, nil)
		return sent != unix.EAGAIN
	})
	if err != nil || sent != nil {
		tb.Errorf("sending an urgent byte: %v, %v", err, sent)
	}
}

// lookAgain is the time for which a reader waits for an event before it checks whether
// there is something to read nevertheless. Once in some ten thousand urgent
// bytes that are read inline, none comes: ss(8) then shows the bytes in the
// reader's own queue, delivered whole, and the next read returns them. A relay
// that held something back would still be detected: checking again moves
// nothing in the relay.
const lookAgain = 250 * time.Millisecond

// again reports whether a failed read is to be tried again because there is
// time left until end.
func again(c *net.TCPConn, err error, end time.Time) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(end) {
		return false
	}
	return c.SetReadDeadline(time.Now().Add(lookAgain)) == nil
}

// readInline reads n bytes of c, which must have SO_OOBINLINE set.
func readInline(tb testing.TB, c *net.TCPConn, n int) []byte {
	tb.Helper()
	all := make([]byte, n)
	end := time.Now().Add(patience)
	c.SetReadDeadline(time.Now().Add(lookAgain))
	for got := 0; got < n; {
		more, err := c.Read(all[got:])
		got += more
		if err != nil && !again(c, err, end) {
			tb.Fatalf("%d bytes of %d: %v", got, n, err)
		}
	}
	c.SetReadDeadline(time.Time{})
	return all
}

// readMarked reads c, which must have SO_OOBINLINE set, to its end, and returns
// the offset of the last urgent byte; -1 for none.
func readMarked(c *net.TCPConn) (all []byte, mark int, err error) {
	mark = -1
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, mark, err
	}
	b := make([]byte, 64<<10)
	end := time.Now().Add(patience)
	c.SetReadDeadline(time.Now().Add(lookAgain))
	for {
		// Only once there is a next byte it is certain whether that is the urgent
		// one. A read ends in front of it.
		var n int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			if n, _, failed = unix.Recvfrom(int(fd), b[:1], unix.MSG_PEEK); failed != nil || n == 0 {
				return failed != unix.EAGAIN
			}
			if at, err := unix.IoctlGetInt(int(fd), unix.SIOCATMARK); err == nil && at != 0 {
				mark = len(all)
			}
			n, failed = unix.Read(int(fd), b)
			return true
		})
		if again(c, err, end) {
			continue
		}
		if err := errors.Join(err, failed); err != nil || n == 0 {
			return all, mark, err
		}
		all = append(all, b[:n]...)
	}
}

func inline(tb testing.TB, c *net.TCPConn) {
	tb.Helper()
	control(tb, c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) })
}

func TestUrgentByte(t *testing.T) {
	if portablePlane {
		t.Skip("SKIP: the portable plane is woken for ordinary bytes only and may come too late for an urgent one")
	}
	t.Parallel()
	const size = 64 << 10
	data := randomBytes(size)
	offsets := []int{1, 2, 3, 1447, 1448, 1449, 32<<10 - 1, 32 << 10, 32<<10 + 1, size - 2, size - 1, size}
	for k := range 20 {
		offsets = append(offsets, 1+k*k*157)
	}
	r, hosts := startPairs(t, Config{})
	for _, fin := range []bool{false, true} {
		for k, at := range offsets {
			client, host := r.pair(hosts)
			a, b := client, host
			if k%2 == 1 {
				a, b = host, client
			}
			inline(t, b)
			a.Write(data[:at])
			sendUrgent(t, a, '!')
			if fin && at == size {
				a.CloseWrite() // the end right behind the urgent byte
			}
			a.Write(data[at:])
			if !fin { // all must arrive although no end of the stream follows
				got := readInline(t, b, size+1)
				if want := string(data[:at]) + "!" + string(data[at:]); string(got) != want {
					t.Errorf("urgent at %d: other bytes than were sent", at)
				}
			}
			a.CloseWrite()
			if fin {
				got, mark, err := readMarked(b)
				if want := string(data[:at]) + "!" + string(data[at:]); err != nil || string(got) != want {
					t.Errorf("urgent at %d: %d bytes, %v, want %d and a clean end", at, len(got), err, size+1)
				}
				if mark != at {
					t.Errorf("urgent at %d: arrived as urgent at %d", at, mark)
				}
			}
			client.Close()
			host.Close()
		}
	}
}

// In the middle of bulk. The ordinary bytes all arrive; a reader that does not
// set SO_OOBINLINE, as most do not, does not see them.
func TestUrgentByteInBulk(t *testing.T) {
	if portablePlane {
		t.Skip("SKIP: the portable plane is woken for ordinary bytes only and may come too late for an urgent one")
	}
	t.Parallel()
	r, hosts := startPairs(t, Config{})
	data := randomBytes(4 << 20)
	var wg sync.WaitGroup
	for k := range 24 {
		client, host := r.pair(hosts)
		a, b := client, host
		if k%2 == 1 {
			a, b = host, client
		}
		at := 1 + k*170_001
		marked := k%4 < 2
		if marked {
			inline(t, b)
		}
		wg.Go(func() {
			a.Write(data[:at])
			sendUrgent(t, a, '!')
			a.Write(data[at:])
			a.CloseWrite()
		})
		wg.Go(func() {
			name := fmt.Sprint("urgent at ", at)
			if !marked {
				wantAll(t, name, b, data)
				return
			}
			got, _, err := readMarked(b)
			if err != nil || len(got) != len(data)+1 || !bytes.Equal(got[:at], data[:at]) || got[at] != '!' || !bytes.Equal(got[at+1:], data[at:]) {
				t.Errorf("%s: %d bytes, %v, want %d with the urgent one in its place", name, len(got), err, len(data)+1)
			}
		})
		if k%4 == 3 {
			wg.Wait()
		}
	}
	wg.Wait()
}

// The very first byte of a connection is an urgent one, when the relay has no
// state of either side yet.
func TestUrgentByteFirst(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{Engine: engine(2)})
	data := randomBytes(200 << 10)
	for k := range 40 {
		client := r.dial()
		clientFirst := k%2 == 0
		if clientFirst && k%4 == 0 {
			sendUrgent(t, client, '!') // perhaps before there is a host
		}
		c, err := hosts.Accept()
		if err != nil {
			t.Fatal(err)
		}
		host := c.(*net.TCPConn)
		host.SetDeadline(time.Now().Add(patience))
		a, b := client, host
		if !clientFirst {
			a, b = host, client
		}
		if !clientFirst || k%4 != 0 {
			sendUrgent(t, a, '!')
		}
		if k%8 < 4 {
			time.Sleep(5 * time.Millisecond) // alone on its way
		}
		go sendAll(a, data)
		// A reader that does not set SO_OOBINLINE does not see them.
		wantAll(t, fmt.Sprintf("way %d", k), b, data)
		sendAll(b, data[:1000])
		wantAll(t, fmt.Sprintf("way %d, back", k), a, data[:1000])
		client.Close()
		host.Close()
	}
}

// Other properties of a connection: small segments, a small window, and the
// options of both of the relay's sockets.

func TestSmallSegmentsAndWindows(t *testing.T) {
	t.Parallel()
	r := start(t, Config{})
	ln := listen(t, "127.0.0.1:0")
	defer ln.Close()
	small := func(c *net.TCPConn) {
		control(t, c, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, 536) })
		c.SetReadBuffer(1 << 10)
	}
	raw, _ := ln.(*net.TCPListener).SyscallConn()
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 536)
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<10)
	})
	r.open(1, ln.Addr().String())
	client, host := r.pair(ln)
	small(client)
	up, down := randomBytes(40<<10), randomBytes(40 << 10)[3:]
	var wg sync.WaitGroup
	wg.Go(func() { sendAll(client, up) })
	wg.Go(func() { sendAll(host, down) })
	wg.Go(func() { wantAll(t, "host", host, up) })
	wg.Go(func() { wantAll(t, "client", client, down) })
	wg.Wait()
}

// relayEnd finds the relay's socket whose peer is the given one.
func relayEnd(tb testing.TB, peer net.Addr) int {
	tb.Helper()
	var lim unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &lim)
	for fd := range int(min(lim.Cur, 4096)) {
		if sa, err := unix.Getpeername(fd); err == nil {
			if a, ok := sa.(*unix.SockaddrInet4); ok && fmt.Sprintf("%s:%d", net.IP(a.Addr[:]), a.Port) == peer.String() {
				return fd
			}
		}
	}
	tb.Fatalf("no socket with the peer %s", peer)
	return -1
}

func TestSocketOptions(t *testing.T) {
	t.Parallel()
	r, hosts := startPairs(t, Config{UserTimeout: 7 * time.Second})
	client, host := r.pair(hosts)
	for name, end := range map[string]*net.TCPConn{"client": client, "host": host} {
		fd := relayEnd(t, end.LocalAddr())
		for _, tt := range []struct {
			name          string
			level, option int
			want          int
		}{
			{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 10},
			{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 5},
			{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 4},
			{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 7000},
			{"SO_PROTOCOL", unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP},
		} {
			// Those of a host's socket are set once the connection has lasted for a
			// while.
			proctest.Until(t, fmt.Sprintf("%s towards the %s is %d", tt.name, name, tt.want), func() bool {
				got, err := unix.GetsockoptInt(fd, tt.level, tt.option)
				return err == nil && got == tt.want
			})
		}
	}
}
