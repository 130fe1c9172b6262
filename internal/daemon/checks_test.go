package daemon

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"understudy/config"
	"understudy/control"
	"understudy/internal/proctest"
)

// Two relays with the same host and the same check have it answered once for both,
// before and after a reload that adds and removes others; a relay whose check differs
// has its own.
func TestRelaysShareTheChecksOfAHost(t *testing.T) {
	a := (&proctest.Host{Name: "a"}).Start(t)
	var mu sync.Mutex // guards asked
	asked := map[string]int{}
	pong := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked[r.URL.Path]++
		mu.Unlock()
		_, _ = io.WriteString(w, "pong")
	}))
	defer pong.Close()
	_, port, err := net.SplitHostPort(pong.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "understudy.yaml"), filepath.Join(dir, "c")
	relayOf := func(name, path, addr string) string {
		return fmt.Sprintf("  - {name: %s, hosts: [%s], listen: [%s], interval: 250ms, pong_port: %s, pong_path: %s}\n", name, a.Addr(), addr, port, path)
	}
	write := func(relays ...string) {
		t.Helper()
		text := "relays:\n"
		for _, r := range relays {
			text += r
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	one, two, other := relayOf("one", "/both", proctest.FreeAddr(t)), relayOf("two", "/both", proctest.FreeAddr(t)), relayOf("other", "/other", proctest.FreeAddr(t))
	write(one, two, other)
	load := func() (config.Settings, error) {
		settings, _, err := config.Load(config.Given{Flags: map[string][]string{"config": {file}, "control": {socket}, "log-level": {"off"}}})
		return settings, err
	}
	settings, err := load()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended, bound := make(chan error, 1), make(chan struct{})
	go func() {
		signals := HandleSignals(ctx)
		defer signals.Release()
		ended <- Run(Config{ //nolint:contextcheck // the signals carry ctx
			Settings: settings, Load: load, Signals: signals, Stdout: io.Discard, Stderr: io.Discard,
			Bound: func(Bound) error { close(bound); return nil },
		})
	}()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	<-bound
	const checks = 20
	wantShared := func() {
		t.Helper()
		count := func(path string) int {
			mu.Lock()
			defer mu.Unlock()
			return asked[path]
		}
		proctest.Until(t, "each relay to be checked", func() bool { return count("/both") > 5 && count("/other") > 5 })
		both, alone := count("/both"), count("/other")
		proctest.Until(t, "some checks", func() bool { return count("/other") >= alone+checks })
		both, alone = count("/both")-both, count("/other")-alone
		// A relay that is given no processor time for 50ms asks for itself.
		if both < alone/2 || both > alone*8/5 {
			t.Errorf("the host was asked %d times for two relays with the same check, and %d times for one with its own, want about as many", both, alone)
		}
	}
	wantShared()
	write(relayOf("new", "/new", proctest.FreeAddr(t)), one, two, other)
	if _, err := control.NewClient(socket).Reload(t.Context(), control.Order{}); err != nil {
		t.Fatal(err)
	}
	wantShared()
	write(one, two, other)
	if _, err := control.NewClient(socket).Reload(t.Context(), control.Order{}); err != nil {
		t.Fatal(err)
	}
	wantShared()
}

// Many relays have descriptors reserved for their listeners and checks; one has enough
// in those that are always left.
func TestDescriptorsOfManyRelays(t *testing.T) {
	r := config.Relay{Listen: []string{":1"}, Hosts: []string{"a:1", "b:1"}, Fall: 3}
	many := config.Settings{}
	for n, want := range map[int]int{1: 0, 4: 0, 400: 400*7 - spareDescriptors} {
		many.Relays = nil
		for range n {
			many.Relays = append(many.Relays, r)
		}
		if got := Descriptors(many); got != want {
			t.Errorf("%d relays of two hosts have %d descriptors reserved, want %d", n, got, want)
		}
	}
}
