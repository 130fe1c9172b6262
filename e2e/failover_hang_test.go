//go:build linux

package e2e

import (
	"bufio"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// A host that stands still goes on accepting connections, so the default checks
// pass. Its clients notice, and none of them is lost: what they have said has no
// effect, and is said again to the next host.
func TestHangIsNoticedByClients(t *testing.T) {
	t.Parallel()
	s := newShow(t)
	s.begin("--interval", "500ms")
	type outcome struct {
		host  string
		err   error
		began time.Time
		took  time.Duration
	}
	var mu sync.Mutex
	var all []outcome
	var clients sync.WaitGroup
	client := func() {
		began := time.Now()
		c, err := net.Dial("tcp", s.addr)
		host := ""
		if err == nil {
			defer c.Close()
			_ = c.SetDeadline(began.Add(patience))
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			host, err = bufio.NewReader(c).ReadString('\n')
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, outcome{strings.TrimSpace(host), err, began, time.Since(began)})
	}
	served := func(host string) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, o := range all {
			if o.host == host {
				n++
			}
		}
		return n
	}
	over := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		for {
			clients.Go(client)
			select {
			case <-over:
				return
			case <-time.After(20 * time.Millisecond): // the pace of the load
			}
		}
	})
	s.Until("a serves", func() bool { return served("a") > 150 })
	s.a.Stop()
	stopped := time.Now()
	s.Until("b serves", func() bool { return served("b") > 50 })
	close(over)
	load.Wait()
	clients.Wait()
	var longest time.Duration
	for _, o := range all {
		if o.err != nil || o.host == "" {
			t.Errorf("a client that came %v after the stop: %q, %v", o.began.Sub(stopped), o.host, o.err)
		}
		if o.host == "b" {
			longest = max(longest, o.took)
		}
	}
	t.Logf("%d clients, the one that waited longest: %v", len(all), longest)
	wantWithin(t, "the failover from a host that hangs", longest, 15*time.Second)
	if countLog(s.Understudy, "host elected", "answered none of") != 1 {
		t.Error("the election does not say why")
	}
	s.a.Continue()
	end(t, s.Understudy)
}
