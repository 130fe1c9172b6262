//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/control"
	"understudy/failover"
)

// fetch gets a URL once; zero when there was no answer.
func fetch(t *testing.T, url string) (status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(text)
}

// After a failover no other host could take over: status, JSON, the service
// manager and a verdict that requires a standby show that until the old primary
// is back.
func TestServingWithoutAStandby(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	o := newOperated(t)
	a, b, addr, http := o.a, o.b, o.addr, freeAddr(t)
	file := filepath.Join(t.TempDir(), "u.yaml")
	text := fmt.Sprintf("interval: 100ms\nhttp: %q\nrelays: [{name: orders, listen: %q, hosts: [%q, %q]}]\nroutes:\n  /ping: {}\n  /full: {standby: required}\n",
		http, addr, a.Addr(), b.Addr())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	u := m.start(t, nil, "--config", file, "--control", o.socket)
	o.Understudy = u
	awaitGreeting(t, u, addr, "a")

	verdicts := func(full int, body string) {
		t.Helper()
		u.Until(fmt.Sprintf("/full answers %d", full), func() bool {
			status, text := fetch(t, "http://"+http+"/full")
			return status == full && strings.Contains(text, body)
		})
		if status, text := fetch(t, "http://"+http+"/ping"); status != 200 {
			t.Errorf("/ping: %d %s, want 200", status, text)
		}
	}
	since := func() bool {
		s, err := o.client.Status(t.Context())
		return err == nil && !s.Relays[0].NoStandby.IsZero()
	}
	verdicts(200, "pong")
	if since() || strings.Contains(u.Log(), "without a standby") {
		t.Error("without a standby at the start")
	}
	o.want(0, words("status"), `^● orders: serving$`)

	a.Kill()
	awaitGreeting(t, u, addr, "b")
	verdicts(503, "no standby")
	if !since() {
		t.Error("no_standby_since is not in the status")
	}
	o.want(0, words("status"), `^● orders: serving, without a standby for `)
	o.want(0, words("why"), `no other host could take over`)
	const primary = "orders: %s is primary (epoch 2)"
	u.Until("the service manager knows", func() bool {
		return strings.Contains(m.all(), fmt.Sprintf(primary+", without a standby", b.Addr()))
	})
	wantLog(t, u, 1, "[WARN]", "serving, without a standby", "relay=orders", a.Addr())

	a.Restart()
	verdicts(200, "pong")
	u.Until("the service manager knows that it is over", func() bool {
		return strings.HasSuffix(m.all(), fmt.Sprintf(primary, b.Addr()))
	})
	o.want(0, words("status"), `^● orders: serving$`)
	wantLog(t, u, 1, "a standby is usable again")
	u.Terminate()
}

// A switch that is scheduled is shown, outlives a kill -9, and is made or cancelled.
func TestScheduledSwitch(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	args := []string{"--state-dir", t.TempDir()}
	o.begin(args...)
	b := o.b.Addr()
	o.want(2, words("switch"), `switch: needs HOST`)
	o.want(2, []string{"switch", b, "--cancel"}, `--cancel: takes no host`)
	o.want(2, []string{"switch", b, "--at", "soon"}, `--at: "soon" is not a time like 03:30`)
	o.want(2, []string{"switch", b, "--at", "03:30", "--tz", "Nowhere"}, `--tz: "Nowhere" is not a time zone`)
	o.want(1, words("switch --cancel"), `no switch is scheduled`)
	o.want(0, []string{"switch", b, "--at", "2130-01-02 03:30", "--tz", "UTC", "--reason", "kernel"}, `^scheduled: switch to `+b+` at 2130-01-02 03:30 \+0000; `)
	const shown = `^ *switch  to %s at 2130-01-02 03:30 \+0000 by .*: kernel$`
	o.want(0, words("status"), fmt.Sprintf(shown, b))
	if s := o.now().Scheduled; s == nil || s.Host != b || s.Reason != "kernel" {
		t.Errorf("scheduled in JSON: %+v", s)
	}
	o.Signal(syscall.SIGKILL)
	o.Exit()
	o.begin(args...)
	o.want(0, words("status"), fmt.Sprintf(shown, b))
	o.want(0, words("switch --cancel"), `^cancelled: switch to `+b)
	if s := o.now().Scheduled; s != nil {
		t.Errorf("scheduled after it was cancelled: %+v", s)
	}

	var s failover.Scheduled
	if err := o.client.Order(t.Context(), "switch", control.Order{Host: b, At: time.Now().Add(time.Second)}, &s); err != nil {
		t.Fatal(err)
	}
	o.awaitGreeting("b")
	o.want(0, words("events"), `switchover, epoch \d+, open`, `scheduled switch`)
	o.Terminate()
}
