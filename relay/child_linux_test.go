//go:build !portable

package relay

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const portablePlane = false

func TestMain(m *testing.M) {
	if spec, ok := os.LookupEnv(childEnv); ok {
		os.Exit(runChild(spec))
	}
	goleak.VerifyTestMain(m)
}

// A relay in a process of its own, so that descriptors, processor time and
// memory are the relay's alone. The test program starts itself with childEnv
// set; parent and child exchange lines over standard input and output.

const childEnv = "RELAY_TEST_CHILD"

// childSpec configures a child's relay.
type childSpec struct {
	Loops          int
	MaxConnections int
	Hold           time.Duration
}

// child is a relay in another process.
type child struct {
	tb   testing.TB
	pid  int
	addr string
	in   io.WriteCloser
	out  *bufio.Scanner
}

// startChild starts a child. prepare, if not nil, may change the command.
func startChild(tb testing.TB, spec childSpec, prepare func(*exec.Cmd)) *child {
	tb.Helper()
	text, err := json.Marshal(spec)
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	cmd.Stderr = tb.Output()
	if prepare != nil {
		prepare(cmd)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	c := &child{tb: tb, pid: cmd.Process.Pid, in: in, out: bufio.NewScanner(out)}
	tb.Cleanup(func() {
		in.Close() // the signal to the child to end
		hung := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		defer hung.Stop()
		if err := cmd.Wait(); err != nil {
			tb.Errorf("the child: %v", err)
		}
	})
	c.addr = c.answer()
	return c
}

func (c *child) answer() string {
	c.tb.Helper()
	if !c.out.Scan() {
		c.tb.Fatalf("the child said nothing: %v", c.out.Err())
	}
	text, ok := strings.CutPrefix(c.out.Text(), "ok ")
	if !ok {
		c.tb.Fatalf("the child said %q", c.out.Text())
	}
	return text
}

// request sends the child a command and returns its answer.
func (c *child) request(command string) string {
	c.tb.Helper()
	fmt.Fprintln(c.in, command)
	return c.answer()
}

func (c *child) open(epoch int, host string) { c.request(fmt.Sprintf("open %d %s", epoch, host)) }

// report holds the figures of a child about its process.
type report struct {
	Stats      Stats
	Suspects   int64
	Goroutines int
	Heap       uint64 // live bytes after a collection
}

func (c *child) report() (r report) {
	c.tb.Helper()
	if err := json.Unmarshal([]byte(c.request("report")), &r); err != nil {
		c.tb.Fatal(err)
	}
	return r
}

func (c *child) dial() *net.TCPConn {
	c.tb.Helper()
	return dialTo(c.tb, c.addr)
}

// runChild is the main function of a child.
func runChild(text string) int {
	fail := func(err error) int {
		fmt.Println("failed", err)
		return 1
	}
	var spec childSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return fail(err)
	}
	var suspects atomic.Int64
	r, err := New(complete(Config{
		Name:           "child",
		Listen:         []string{"127.0.0.1:0"},
		Engine:         engine(spec.Loops),
		MaxConnections: spec.MaxConnections,
		Hold:           spec.Hold,
		Suspect:        func(uint64, error) { suspects.Add(1) },
	}))
	if err != nil {
		return fail(err)
	}
	if err := r.Bind(); err != nil {
		return fail(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	fmt.Println("ok", r.Addrs()[0])

	var taken []*os.File
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		word, rest, _ := strings.Cut(in.Text(), " ")
		switch word {
		case "open":
			var epoch uint64
			var to string
			fmt.Sscan(rest, &epoch, &to)
			if _, err := r.Open(epoch, to); err != nil {
				return fail(err)
			}
			fmt.Println("ok ")
		case "switch": // as fast as possible
			var epoch uint64
			var to string
			fmt.Sscan(rest, &epoch, &to)
			begin := time.Now()
			r.Hold()
			fenced := r.Fence(ctx, epoch, "", FencePolicy{})
			took := time.Since(begin)
			if _, err := r.Open(epoch, to); err != nil {
				return fail(err)
			}
			fmt.Println("ok", fenced.Reset, took.Milliseconds())
		case "report":
			runtime.GC()
			runtime.GC() // the first only moves a sync.Pool's content to its victim cache
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			text, _ := json.Marshal(report{r.Stats(), suspects.Load(), runtime.NumGoroutine(), m.HeapAlloc})
			fmt.Println("ok", string(text))
		case "exhaust": // take every descriptor that is left
			for {
				f, err := os.Open(os.DevNull)
				if err != nil {
					break
				}
				taken = append(taken, f)
			}
			fmt.Println("ok", len(taken))
		case "release":
			for _, f := range taken {
				f.Close()
			}
			taken = nil
			fmt.Println("ok ")
		}
	}
	stop()
	if err := <-done; err != nil {
		return fail(err)
	}
	return 0
}
