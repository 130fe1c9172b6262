//go:build linux

package daemon

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// scraped is a daemon with many relays whose metrics are asked for.
type scraped struct {
	tb     testing.TB
	url    string
	relays []string // where they listen
	client http.Client
}

// manyRelays runs a daemon with n relays of two hosts each.
func manyRelays(tb testing.TB, n int) *scraped {
	tb.Helper()
	a, b := (&proctest.Host{Name: "a"}).Start(tb), (&proctest.Host{Name: "b"}).Start(tb)
	admin := proctest.FreeAddr(tb)
	s := &scraped{tb: tb, url: "http://" + admin + "/metrics"}
	var text strings.Builder
	fmt.Fprintf(&text, "admin: %s\nrelays:\n", admin)
	for k := range n {
		s.relays = append(s.relays, proctest.FreeAddr(tb))
		fmt.Fprintf(&text, "  - {name: relay-%d, hosts: [%s, %s], listen: [%s]}\n", k, a.Addr(), b.Addr(), s.relays[k])
	}
	operate(tb, text.String())
	for _, addr := range s.relays {
		proctest.AwaitGreeting(tb, addr, "a")
	}
	return s
}

// scrape asks for the metrics and returns the number of lines.
func (s *scraped) scrape() (lines int) {
	s.tb.Helper()
	resp, err := s.client.Get(s.url)
	if err != nil {
		s.tb.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewScanner(resp.Body)
	for in.Scan() {
		lines++
	}
	if in.Err() != nil || resp.StatusCode != http.StatusOK {
		s.tb.Fatal(resp.Status, in.Err())
	}
	return lines
}

// quickest returns the shortest time of a few scrapes.
func (s *scraped) quickest() time.Duration {
	s.tb.Helper()
	least := time.Hour
	for range 5 {
		begin := time.Now()
		s.scrape()
		least = min(least, time.Since(begin))
	}
	return least
}

// open opens connections through the relays, which stay open until the test ends.
func (s *scraped) open(n int) {
	s.tb.Helper()
	conns := make([]net.Conn, n)
	next := make(chan int)
	var dialers sync.WaitGroup
	for range 8 {
		dialers.Go(func() {
			for k := range next {
				c, err := net.DialTimeout("tcp", s.relays[k%len(s.relays)], time.Minute)
				if err != nil {
					s.tb.Error(err)
					continue
				}
				conns[k] = c
				_ = c.SetReadDeadline(time.Now().Add(time.Minute))
				if _, err := c.Read(make([]byte, 8)); err != nil { // the greeting
					s.tb.Error(err)
				}
			}
		})
	}
	for k := range n {
		next <- k
	}
	close(next)
	dialers.Wait()
	s.tb.Cleanup(func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	})
}

// descriptors skips a test that needs more descriptors than the process may have.
func descriptors(tb testing.TB, n uint64) {
	tb.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < n {
		tb.Skipf("SKIPPED: this needs %d descriptors (ulimit -n), and %d are allowed: %v", n, limit.Cur, err)
	}
}

// A scrape fills values into what the last one has made: what it allocates does not grow
// with the lines of its answer. Connections cost it nothing.
func TestScrapeIsCheap(t *testing.T) {
	descriptors(t, 8000)
	s := manyRelays(t, 10)
	lines := s.scrape()
	if lines < 10*300 {
		t.Fatalf("%d lines of 10 relays", lines)
	}
	var perLine []float64
	proctest.Until(t, "a scrape allocates less than once for each line", func() bool {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s.scrape()
		runtime.ReadMemStats(&after) // counts what checks and others allocate meanwhile, too
		perLine = append(perLine, float64(after.Mallocs-before.Mallocs)/float64(lines))
		return perLine[len(perLine)-1] < 1
	})
	t.Logf("allocations for each of %d lines: %.2f", lines, slices.Min(perLine))

	without := s.quickest()
	s.open(2000)
	proctest.Until(t, "a scrape beside 2000 connections takes no longer than 1.5 of one without any", func() bool {
		with := s.quickest()
		t.Logf("%v without connections, %v with 2000", without, with)
		return with < without*3/2
	})
}

func BenchmarkScrape(b *testing.B) {
	for _, connections := range []int{0, 5000} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			descriptors(b, uint64(3*connections+2000))
			s := manyRelays(b, 40)
			s.open(connections)
			lines := s.scrape()
			b.ReportAllocs()
			var before, after unix.Rusage
			_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
			for b.Loop() {
				s.scrape()
			}
			_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
			used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(used)/1e6/float64(b.N), "cpu-ms/op")
			b.ReportMetric(float64(lines), "lines")
		})
	}
}
