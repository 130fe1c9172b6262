//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"understudy/control"
	"understudy/internal/proctest"
)

// Events reach scripts and a webhook, whose URL is shown nowhere; a script that
// hangs delays no failover, and a reload changes the receivers.
func TestEventsReachScriptsAndAWebhook(t *testing.T) {
	t.Parallel()
	const secret = "T0KEN-of-the-webhook"
	var mu sync.Mutex
	var posts []string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var m struct{ Event, Relay, Host, Text string }
		text, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(text, &m); err != nil || r.URL.Path != "/"+secret || m.Text == "" {
			t.Errorf("%s %s: %s", r.Method, r.URL, text)
		}
		mu.Lock()
		defer mu.Unlock()
		posts = append(posts, m.Event+" "+m.Relay+" "+m.Host)
	}))
	defer server.Close()
	heard := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(posts)
	}

	a, b := (&proctest.Host{Name: "a"}).Start(t), (&proctest.Host{Name: "b", IP: "127.0.0.2"}).Start(t)
	dir, addr := t.TempDir(), freeAddr(t)
	calls, more, over := filepath.Join(dir, "calls"), filepath.Join(dir, "more"), filepath.Join(dir, "over")
	events := filepath.Join(dir, "events.d")
	if err := os.Mkdir(events, 0o755); err != nil {
		t.Fatal(err)
	}
	writeScript(t, filepath.Join(events, "10-record"), `echo "$UNDERSTUDY_EVENT $2 $1 $UNDERSTUDY_NEW ${WEBHOOK-}" >>`+calls+"\n")
	writeScript(t, filepath.Join(events, "20-hang"), "[ $UNDERSTUDY_EVENT != no-standby ] || while [ ! -e "+over+" ]; do sleep 0.05; done\n")
	file := filepath.Join(dir, "u.yaml")
	write := func(path string) {
		text := fmt.Sprintf("interval: 100ms\ntrigger_timeout: 1m\nrelays:\n- {name: orders, listen: %q, hosts: [%q, %q], on_event: %s}\n", addr, a.Addr(), b.Addr(), path)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(events)
	o := newOperated(t)
	u := proctest.StartCommand(t, proctest.BinaryCommand(program(t), []string{"WEBHOOK=" + server.URL + "/" + secret}, "--config", file, "--control", o.socket, "--log-level", "debug"))
	o.Understudy = u
	awaitGreeting(t, u, addr, "a")
	b.Kill()
	u.Until("the script runs because there is no standby", func() bool { return len(lines(calls)) > 0 })
	b.Restart()
	u.Until("the webhook hears that it is back", func() bool { return len(heard()) >= 2 })
	a.Kill() // while a script hangs
	awaitGreeting(t, u, addr, "b")
	u.Until("the webhook hears of the failover", func() bool { return len(heard()) >= 4 })
	want := []string{"no-standby orders " + a.Addr(), "standby-back orders " + a.Addr(), "primary-lost orders " + a.Addr(), "no-standby orders " + b.Addr()}
	if got := heard(); !slices.Equal(got, want) {
		t.Errorf("the webhook got %q, want %q", got, want)
	}
	if got, want := lines(calls), []string{"no-standby orders " + a.Addr() + " " + a.Addr() + " "}; !slices.Equal(got, want) {
		t.Errorf("scripts were called with %q, want %q: the next waits for the one that hangs", got, want)
	}

	// Other scripts from now on, at the next event.
	write(script(t, `echo "$UNDERSTUDY_EVENT" >>`+more+"\n"))
	if _, err := o.client.Reload(t.Context(), control.Order{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(over, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	u.Until("the new script hears of what has waited", func() bool { return len(lines(more)) == 3 })
	if got, want := lines(more), []string{"standby-back", "primary-lost", "no-standby"}; !slices.Equal(got, want) {
		t.Errorf("after the reload scripts were called with %q, want %q", got, want)
	}
	config := proctest.StartCommand(t, proctest.BinaryCommand(program(t), []string{"WEBHOOK=" + server.URL + "/" + secret}, "config", "--config", file))
	config.Exit()
	for _, text := range []string{u.Log(), u.Stdout(), config.Stdout(), config.Log(), strings.Join(lines(calls), "\n")} {
		if strings.Contains(text, secret) {
			t.Error("the URL of the webhook is shown")
		}
	}
	u.Terminate()
}
