//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// window is the time for which answers of services are reused.
const window = time.Second

// wantOncePerWindow checks that a service was requested by agent, and once in
// each window. A window begins when the answers are in, which is after the
// service has recorded the request; but where a busy machine let the service
// take up a request only after its time was over, it is recorded in the window
// of the next. So any four in turn are compared, which take two windows at least.
func wantOncePerWindow(t *testing.T, s *service, agent string) {
	t.Helper()
	var at []time.Time
	for _, a := range s.requests() {
		if a.agent == agent {
			at = append(at, a.at)
		}
	}
	n := len(at)
	if n == 0 {
		t.Errorf("%s was never asked", s.addr)
		return
	}
	for i := 3; i < n; i++ {
		if span := at[i].Sub(at[i-3]); span < 2*window {
			t.Errorf("%s was asked four times within %v, want once in %v", s.addr, span, window)
		}
	}
	t.Logf("%s was asked %d times by %q", s.addr, n, agent)
}

// monitor is a monitor of Cloudflare's load balancer, as its API takes it.
type monitor struct {
	Type            string              `json:"type"`
	Method          string              `json:"method"`
	Port            int                 `json:"port"`
	Path            string              `json:"path"`
	Header          map[string][]string `json:"header"`
	Timeout         int                 `json:"timeout"`
	Retries         int                 `json:"retries"`
	Interval        int                 `json:"interval"`
	ExpectedCodes   string              `json:"expected_codes"`
	ExpectedBody    string              `json:"expected_body"`
	FollowRedirects bool                `json:"follow_redirects"`
}

const (
	regions         = 39
	cloudflareAgent = "Mozilla/5.0 (compatible; Cloudflare-Traffic-Manager/1.0; +https://www.cloudflare.com/traffic-manager/; pool-id: 17b5962d775c646f)"
)

// probe sends one request, over a connection of its own. It returns nil when
// the origin is healthy.
func (m monitor) probe(addr string) error {
	client := http.Client{
		Timeout:       time.Duration(m.Timeout) * time.Second,
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequest(m.Method, "http://"+addr+m.Path, http.NoBody)
	if err != nil {
		return err
	}
	req.Header = http.Header(m.Header).Clone()
	req.Host = req.Header.Get("Host")
	req.Header.Del("Host")
	req.Header.Set("User-Agent", cloudflareAgent)
	req.Header.Set("Cf-Ray", fmt.Sprintf("%016x-CDG", rand.Uint64()))
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 10<<10)) // as much as the monitor reads
	switch class, _ := strings.CutSuffix(m.ExpectedCodes, "xx"); {
	case err != nil:
		return err
	case resp.ProtoMajor != 1 || resp.ProtoMinor != 1:
		return fmt.Errorf("answered in %s", resp.Proto)
	case !strings.HasPrefix(resp.Status, class):
		return fmt.Errorf("code mismatch: %s", resp.Status)
	case !strings.Contains(strings.ToLower(string(body)), strings.ToLower(m.ExpectedBody)):
		return fmt.Errorf("body mismatch: %q", body)
	}
	return nil
}

// round is the result of all regions at one time.
type round struct {
	begin   time.Time
	well    int
	reasons map[string]int
	slowest time.Duration
}

// request sends a request from all regions at once.
func (m monitor) request(addr string) round {
	r := round{begin: time.Now(), reasons: map[string]int{}}
	var all sync.WaitGroup
	var mu sync.Mutex // guards r
	for range regions {
		all.Go(func() {
			err := m.probe(addr)
			took := time.Since(r.begin)
			mu.Lock()
			defer mu.Unlock()
			r.slowest = max(r.slowest, took)
			if err == nil {
				r.well++
			} else {
				r.reasons[err.Error()]++
			}
		})
	}
	all.Wait()
	return r
}

// harmful is the least time without running, on a busy machine, that spoils the
// measured times of this process.
const harmful = 500 * time.Millisecond

// watchStalls returns a function that returns for how long this process has not
// run in all.
func watchStalls(t *testing.T) func() time.Duration {
	t.Helper()
	const tick = 20 * time.Millisecond
	var sum atomic.Int64
	over := t.Context().Done()
	go func() {
		for last := time.Now(); ; last = time.Now() {
			select {
			case <-over:
				return
			case <-time.After(tick): // its delay is measured
			}
			if late := time.Since(last) - tick; late > tick {
				sum.Add(int64(late))
			}
		}
	}()
	return func() time.Duration { return time.Duration(sum.Load()) }
}

// A monitor that sends requests from all regions at once, again and again,
// while a service fails in every way: all are answered in time, the answers
// change within a window, and the services are requested once in each.
func TestCloudflareMonitor(t *testing.T) {
	t.Parallel()
	var m monitor
	stalled := watchStalls(t)
	decoder := json.NewDecoder(strings.NewReader(recipe(t, "cloudflare-monitor")))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&m); err != nil || m.Type != "http" || m.Port != 9001 || m.Retries != 2 || m.Interval == 0 || m.FollowRedirects {
		t.Fatalf("%+v: %v", m, err)
	}
	h := newHouse(t)
	flips := h.services[1]
	for _, state := range []string{isWell, isWrong, isWell, isIll, isWell, isMute, isWell, isTorn, isWell} {
		muted := flips.state.Load() == isMute
		flips.is(state)
		flipped := time.Now()
		want := 0
		if state == isWell {
			want = regions
		}
		limit := window + time.Second // for a busy machine
		if muted || state == isMute {
			limit += 2 * time.Second // the route's timeout passes first
		}
		before := stalled()
		for seen := 0; seen < 4; time.Sleep(50 * time.Millisecond) { // the pace of a monitor
			calm := stalled()
			r := m.request(h.http)
			age := r.begin.Sub(flipped)
			switch {
			case stalled()-calm > harmful:
				t.Logf("%s: a round does not count, the machine stood still", state)
			case r.slowest > 5*time.Second:
				t.Errorf("%s: a request waited %v", state, r.slowest)
				seen++
			case r.well == want:
				if seen == 0 {
					t.Logf("%s: seen by a round that began %v later (goal: %v), the slowest took %v: %d well, %v",
						state, age.Round(time.Millisecond), window, r.slowest.Round(time.Millisecond), r.well, r.reasons)
				}
				seen++
			case seen > 0 || age > limit+5*(stalled()-before):
				t.Errorf("%s: a round that began %v later has %d well, want %d: %v", state, age, r.well, want, r.reasons)
				seen++
			}
		}
	}
	for _, s := range h.services {
		wantOncePerWindow(t, s, cloudflareAgent)
		wantOncePerWindow(t, s, "understudy") // for the agent and the port, together
		for _, a := range s.requests() {
			if a.line != "GET /ping" || a.agent == cloudflareAgent && (a.monitor != "cloudflare" || a.host != "app.example.org") {
				t.Errorf("a service was asked %+v", a)
				break
			}
		}
	}
	h.Terminate()
}

const (
	pingRate  = 5000 // a second, over all connections
	pingConns = 50
	pingTime  = 4 * time.Second

	bulkConns = 4
	bulkChunk = 256 << 10
	bulkPause = 10 * time.Millisecond
	bulkSize  = int64(pingTime/bulkPause) * bulkChunk // of each transfer
)

// newBulk is a host that greets with "a" and a newline. A client that then
// sends something gets bulkSize bytes, spread over pingTime, and their sum.
func newBulk(t *testing.T) string {
	t.Helper()
	listener := listen(t)
	serve := func(conn net.Conn) {
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Minute))
		io.WriteString(conn, "a\n")
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			return
		}
		sum := sha256.New()
		random := rand.NewChaCha8([32]byte{})
		chunk := make([]byte, bulkChunk)
		begin := time.Now()
		for sent := int64(0); sent < bulkSize; sent += bulkChunk {
			time.Sleep(time.Until(begin.Add(time.Duration(sent/bulkChunk) * bulkPause))) // the pace of a transfer
			random.Read(chunk)
			sum.Write(chunk)
			if _, err := conn.Write(chunk); err != nil {
				return
			}
		}
		conn.Write(sum.Sum(nil))
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	return listener.Addr().String()
}

// receiveBulk takes a transfer and checks its sum and its end.
func receiveBulk(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	in := bufio.NewReaderSize(conn, bulkChunk)
	if line, err := in.ReadString('\n'); line != "a\n" {
		return fmt.Errorf("greeting %q: %w", line, err)
	}
	if _, err := io.WriteString(conn, "x"); err != nil {
		return err
	}
	sum := sha256.New()
	if n, err := io.CopyN(sum, in, bulkSize); err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	rest, err := io.ReadAll(in)
	if err == nil && !bytes.Equal(rest, sum.Sum(nil)) {
		err = errTorn
	}
	return err
}

// pinged is the result of many pings.
type pinged struct {
	late, took []time.Duration // of each: from when it was due, and from when it was sent, to its answer
	bad        map[string]int
}

// share is the quantile of the times.
func share(times []time.Duration, of float64) time.Duration {
	slices.Sort(times)
	if len(times) == 0 {
		return 0
	}
	return times[min(len(times)-1, int(float64(len(times))*of))]
}

// pings sends pingRate requests a second to addr for pingTime over pingConns
// persistent connections.
func pings(addr string) (pinged, error) {
	all := pinged{bad: map[string]int{}}
	var mu sync.Mutex // guards all
	var errs []error
	var working sync.WaitGroup
	begin := time.Now().Add(50 * time.Millisecond)
	for i := range pingConns {
		working.Go(func() {
			own, err := pingAlong(addr, begin.Add(time.Duration(i)*time.Second/pingRate), pingConns*time.Second/pingRate, begin.Add(pingTime))
			mu.Lock()
			defer mu.Unlock()
			all.late, all.took = append(all.late, own.late...), append(all.took, own.took...)
			for text, n := range own.bad {
				all.bad[text] += n
			}
			if err != nil {
				errs = append(errs, err)
			}
		})
	}
	working.Wait()
	return all, errors.Join(errs...)
}

// pingAlong sends requests over one connection, from due until end.
func pingAlong(addr string, due time.Time, pause time.Duration, end time.Time) (pinged, error) {
	own := pinged{bad: map[string]int{}}
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return own, err
	}
	defer conn.Close()
	conn.SetDeadline(end.Add(30 * time.Second))
	in := bufio.NewReader(conn)
	request := []byte("GET /ping HTTP/1.1\r\nHost: app.example.org\r\nUser-Agent: many\r\n\r\n")
	for ; due.Before(end); due = due.Add(pause) {
		time.Sleep(time.Until(due)) // the pace of a monitor
		sent := time.Now()
		if _, err := conn.Write(request); err != nil {
			return own, err
		}
		status, body, err := readAnswer(in)
		if err != nil {
			return own, err
		}
		own.took = append(own.took, time.Since(sent))
		own.late = append(own.late, time.Since(due))
		if status != "HTTP/1.1 200 OK" || body != "pong" {
			own.bad[status+": "+body]++
		}
	}
	return own, nil
}

// readAnswer reads an answer with a Content-Length, with less processor time
// than net/http.
func readAnswer(in *bufio.Reader) (status, body string, err error) {
	length := 0
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return "", "", err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		if status == "" {
			status = string(line)
		}
		if text, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(text)); err != nil {
				return "", "", err
			}
		}
	}
	buf := make([]byte, length)
	_, err = io.ReadFull(in, buf)
	return status, string(buf), err
}

// F68: 5,000 pings a second beside a relay that moves data. It does not run
// beside other tests of this package: the answers are timed.
func TestManyPings(t *testing.T) {
	services := []*service{newService(t, "pong"), newService(t, "pong")}
	addr, verdict := freeAddr(t), freeAddr(t)
	cmd := proctest.BinaryCommand(program(t), nil, "--bind", addr, "--hosts", newBulk(t), "--http", verdict,
		"--lport", services[0].port(), "--lport", services[1].port(), "--ping-timeout", "9s")
	stdout, err := os.Create(filepath.Join(t.TempDir(), "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	cmd.Stdout = stdout // not through this process, which has enough to do
	u := proctest.StartCommand(t, cmd)
	awaitGreeting(t, u, addr, "a")

	var bulk sync.WaitGroup
	var torn atomic.Int64
	for range bulkConns {
		bulk.Go(func() {
			if err := receiveBulk(addr); err != nil {
				torn.Add(1)
				t.Errorf("a transfer beside it: %v", err)
			}
		})
	}
	clients := proctest.StartLoad(t, addr, 20, patience)
	before := processorTime(t, u.PID())
	begin := time.Now()
	got, err := pings(verdict)
	elapsed := time.Since(begin)
	used := processorTime(t, u.PID()) - before
	report := clients.Stop()
	bulk.Wait()
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d pings in %v, %.0f a second (goal: %d); from when they were sent p50 %v, p99 %v (goal: 20ms), p99.9 %v, slowest %v; from when they were due p50 %v, p99 %v; the program used %v of processor time",
		len(got.took), elapsed.Round(time.Millisecond), float64(len(got.took))/elapsed.Seconds(), pingRate,
		share(got.took, 0.5), share(got.took, 0.99), share(got.took, 0.999), share(got.took, 1),
		share(got.late, 0.5), share(got.late, 0.99), used)
	t.Logf("beside them %d transfers of %d MB, %d of them torn; new clients: %v", bulkConns, bulkSize>>20, torn.Load(), report)
	if want := pingRate * int(pingTime/time.Second); len(got.took) < want-pingConns {
		t.Errorf("%d pings, want %d", len(got.took), want)
	}
	if len(got.bad) > 0 {
		t.Errorf("answers that are not 200 pong: %v", got.bad)
	}
	wantWithin(t, "half of the pings", share(got.took, 0.5), time.Second)
	if lost := report.Lost(); len(lost) > 0 {
		t.Errorf("%d new clients were lost", len(lost))
	}
	for _, s := range services {
		wantOncePerWindow(t, s, "many")
	}
	if n := end(t, u); n["reset"]+n["fenced"]+n["expired"]+n["aborted"] > 0 {
		t.Errorf("connections of the relay were harmed: %v", n)
	}
}
