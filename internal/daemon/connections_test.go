package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/logs"
	"understudy/relay"
)

// someEnding is a connection that has ended.
var someEnding = relay.Ending{
	Client: netip.MustParseAddrPort("192.0.2.7:53211"), Host: "10.0.0.5:5432", Epoch: 3,
	Started: time.Date(2026, 11, 26, 20, 29, 58, 101e6, time.UTC), Duration: 3410922 * time.Microsecond,
	Sent: 1822, Received: 90112, Outcome: "finished", Why: "client closed", Moved: 2, Replayed: 1,
}

// neverCrowded is a log that takes everything.
func neverCrowded() bool { return false }

// runToTheEnd logs what is queued.
func runToTheEnd(t *testing.T, c *connectionLog) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := c.run(ctx); err != nil {
		t.Error(err)
	}
}

func TestConnectionLine(t *testing.T) {
	fenced := someEnding
	fenced.Outcome, fenced.Why, fenced.FencedBy = "fenced", "fenced", 4
	unix := someEnding
	unix.Client, unix.Host = netip.AddrPort{}, "unix:/run/x"
	for _, tt := range []struct {
		ending relay.Ending
		json   bool
		want   string
	}{
		{someEnding, false, `[INFO]  u.relay: connection: relay=orders client=192.0.2.7:53211 host=db1:5432 address=10.0.0.5:5432 epoch=3 started=2026-11-26T20:29:58.101Z duration=3.410922s sent=1822 received=90112 outcome=finished why="client closed" moved=2 replayed=1` + "\n"},
		{fenced, false, `why="fenced by epoch 4"`},
		{unix, false, `client=- host=unix:/run/x epoch=3`},
		{someEnding, true, `"started":"2026-11-26T20:29:58.101Z"`},
	} {
		var out bytes.Buffer
		c := newConnectionLog(hclog.New(&hclog.LoggerOptions{Name: "u", Output: &out, DisableTime: true, JSONFormat: tt.json}), neverCrowded, tt.json)
		c.of("orders", func(address string) string { return strings.Replace(address, "10.0.0.5", "db1", 1) })(tt.ending)
		runToTheEnd(t, c)
		if got := out.String(); !strings.Contains(got, tt.want) {
			t.Errorf("logged %s, want %s", got, tt.want)
		}
	}
}

// lockedBuffer is a buffer that is written to and read at the same time.
type lockedBuffer struct {
	mu  sync.Mutex // guards all
	all bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.String()
}

// While the log takes nothing, no relay waits: what does not fit is dropped, counted
// and reported once a minute.
func TestConnectionsAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lockedBuffer
		var crowded atomic.Bool
		crowded.Store(true)
		c := newConnectionLog(hclog.New(&hclog.LoggerOptions{Output: &out, DisableTime: true}), crowded.Load, false)
		add := c.of("orders", func(address string) string { return address })
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		over := make(chan struct{})
		add(someEnding) // which run takes
		go func() {
			defer close(over)
			if err := c.run(ctx); err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		begin := time.Now()
		for range connectionQueue + 250 {
			add(someEnding)
		}
		if took := time.Since(begin); took != 0 || c.dropped.Load() != 250 {
			t.Errorf("%v later %d connections are dropped, want 250 at once", took, c.dropped.Load())
		}
		crowded.Store(false)
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if lines := strings.Count(out.String(), "connection: "); lines != connectionQueue+1 {
			t.Errorf("%d connections are logged, want %d", lines, connectionQueue+1)
		}
		warnings := func(want string) {
			t.Helper()
			synctest.Wait()
			if got := fmt.Sprint(regexp.MustCompile(`dropped=\d+`).FindAllString(out.String(), -1)); got != want {
				t.Errorf("reported %s, want %s", got, want)
			}
		}
		warnings("[]")
		time.Sleep(3 * time.Minute)
		warnings("[dropped=250]")

		// At the end the log has a second.
		crowded.Store(true)
		synctest.Wait()
		for range 10 {
			add(someEnding)
		}
		synctest.Wait()
		begin = time.Now()
		stop()
		<-over
		if took := time.Since(begin); took > logTimeout+crowdedPoll {
			t.Errorf("the end took %v", took)
		}
		warnings("[dropped=250 dropped=9]") // run had taken one
	})
}

// 10,000 connections that end in a moment are all in the file, and so is what else is
// logged at that time.
func TestConnectionsInFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	journal, err := logs.Open(logs.Config{Level: "info", Output: path, Stdout: io.Discard, Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	c := newConnectionLog(journal.Logger(), journal.Crowded, false)
	add := c.of("orders", func(address string) string { return address })
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := c.run(ctx); err != nil {
			t.Error(err)
		}
	}()
	const connections, others = 10000, 100
	for k := range connections {
		add(someEnding)
		if k%(connections/others) == 0 {
			journal.Logger().Info("another line")
		}
	}
	stop()
	<-over
	journal.Close(time.Minute)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), ": connection: "); n != connections || c.dropped.Load() != 0 {
		t.Errorf("%d connections logged and %d dropped, want all %d logged", n, c.dropped.Load(), connections)
	}
	if n := strings.Count(string(text), "another line"); n != others || strings.Contains(string(text), "log lines lost") {
		t.Errorf("%d other lines, want %d, and none lost", n, others)
	}
}

// BenchmarkConnectionLog queues, formats and writes to a file, at the pace of the
// reader.
func BenchmarkConnectionLog(b *testing.B) {
	journal, err := logs.Open(logs.Config{Level: "info", Output: filepath.Join(b.TempDir(), "log"), Stdout: io.Discard, Stderr: io.Discard})
	if err != nil {
		b.Fatal(err)
	}
	defer journal.Close(time.Minute)
	c := newConnectionLog(journal.Logger(), journal.Crowded, false)
	add := c.of("orders", func(address string) string { return address })
	ctx, stop := context.WithCancel(b.Context())
	over := make(chan struct{})
	go func() { defer close(over); _ = c.run(ctx) }()
	b.ReportAllocs()
	for b.Loop() {
		for len(c.queue) == cap(c.queue) {
			time.Sleep(time.Millisecond)
		}
		add(someEnding)
	}
	stop()
	<-over
	if n := c.dropped.Load(); n != 0 {
		b.Errorf("%d dropped", n)
	}
}
