//go:build linux

package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// witness is a host in this process that greets with its name and records what
// it is sent.
type witness struct {
	name string
	addr string

	mu    sync.Mutex // guards heard
	heard strings.Builder
}

func newWitness(t *testing.T, name string) *witness {
	t.Helper()
	return newWitnessAt(listen(t), name)
}

// newWitnessAt makes one of a listener, which it does not close.
func newWitnessAt(listener net.Listener, name string) *witness {
	w := &witness{name: name, addr: listener.Addr().String()}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go w.serve(conn)
		}
	}()
	return w
}

func (w *witness) serve(conn net.Conn) {
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, w.name); err != nil {
		return
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		w.mu.Lock()
		w.heard.Write(buf[:n])
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (w *witness) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.heard.String()
}

func (w *witness) port() string { return w.addr[strings.LastIndexByte(w.addr, ':')+1:] }

const (
	sourceChunk = 8 << 10
	sourcePause = 100 * time.Millisecond
)

// newSource serves transfers that take from shortest to twice as long more.
func newSource(t *testing.T, shortest time.Duration) *source {
	t.Helper()
	listener := listen(t)
	s := &source{addr: listener.Addr().String()}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				sum := sha256.New()
				random := rand.NewChaCha8([32]byte{})
				chunk := make([]byte, sourceChunk)
				end := time.Now().Add(shortest + rand.N(2*shortest))
				for time.Now().Before(end) {
					random.Read(chunk)
					sum.Write(chunk)
					if _, err := conn.Write(chunk); err != nil {
						return
					}
					time.Sleep(sourcePause) // the pace of a source
				}
				conn.Write(sum.Sum(nil))
			}()
		}
	}()
	return s
}

// errTorn is the error of a transfer that ended cleanly although it was not
// whole.
var errTorn = errors.New("clean end of a stream that is not whole")

// receive reads a transfer to its end and checks its sum.
func receive(conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(4 * time.Minute)) // others may have to begin first
	all, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if len(all) < sha256.Size {
		return errTorn
	}
	body, sum := all[:len(all)-sha256.Size], all[len(all)-sha256.Size:]
	if sha256.Sum256(body) != [sha256.Size]byte(sum) {
		return errTorn
	}
	return nil
}

// transfers starts n transfers and returns a function that awaits their ends.
func transfers(t *testing.T, addr string, n int) (await func() []error) {
	t.Helper()
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		conn, err := net.DialTimeout("tcp", addr, patience)
		if err != nil {
			t.Fatal(err)
		}
		begun := make([]byte, 1)
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.ReadFull(conn, begun); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			defer conn.Close()
			errs[i] = receive(&replayed{conn, begun})
		})
	}
	return func() []error { all.Wait(); return errs }
}

// echoHost greets with its name and then echoes what it reads.
func echoHost(t *testing.T, name string) (addr string) {
	t.Helper()
	l := listen(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintln(c, name)
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}
