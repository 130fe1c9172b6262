package daemon

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"understudy/config"
	"understudy/control"
	"understudy/internal/proctest"
	"understudy/metrics"
)

// operated is a daemon with a configuration file.
type operated struct {
	file    string
	control *control.Client
	socket  string
}

// operate runs a daemon with the content of a configuration file until the test ends.
func operate(tb testing.TB, text string) *operated {
	tb.Helper()
	dir := tb.TempDir()
	o := &operated{file: filepath.Join(dir, "understudy.yaml"), socket: filepath.Join(dir, "c")}
	o.control = control.NewClient(o.socket)
	o.write(tb, text)
	load := func() (config.Settings, error) {
		settings, _, err := config.Load(config.Given{Flags: map[string][]string{"config": {o.file}, "control": {o.socket}, "log-level": {"off"}}})
		return settings, err
	}
	settings, err := load()
	if err != nil {
		tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(tb.Context())
	ended := make(chan error, 1)
	go func() {
		signals := HandleSignals(ctx)
		defer signals.Release()
		ended <- Run(Config{Settings: settings, Load: load, Version: "v1 (commit 0123456789ab, linux/amd64)", Signals: signals, Stdout: io.Discard, Stderr: io.Discard}) //nolint:contextcheck // the signals carry ctx
	}()
	tb.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			tb.Error(err)
		}
	})
	proctest.Until(tb, "the daemon answers", func() bool {
		_, err := o.control.Status(tb.Context())
		return err == nil
	})
	return o
}

func (o *operated) write(tb testing.TB, text string) {
	tb.Helper()
	if err := os.WriteFile(o.file, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// reload writes the file anew and reloads it.
func (o *operated) reload(t *testing.T, text string) {
	t.Helper()
	o.write(t, text)
	if _, err := o.control.Reload(t.Context(), control.Order{}); err != nil {
		t.Fatal(err)
	}
}

// scrape gets the metrics of a URL.
func scrape(t *testing.T, client *http.Client, url, token string) (status int, body string, err error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(all), err
}

// The admin listener comes with a reload, asks for a token after another, and goes; the
// control socket answers all the time.
func TestAdminListenerFollowsTheSettings(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	addr := proctest.FreeAddr(t)
	relays := "relays:\n  - {name: orders, hosts: [" + a.Addr() + "], listen: [" + proctest.FreeAddr(t) + "]}\n"
	secret := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(secret, []byte("word\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := operate(t, relays)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	want := func(when, token string, status int) {
		t.Helper()
		got, body, err := scrape(t, client, "http://"+addr+"/metrics", token)
		if err != nil && status != 0 || got != status {
			t.Fatalf("%s: status %d, %v, want %d", when, got, err, status)
		}
		if status == http.StatusOK && !strings.Contains(body, "understudy_build_info{") {
			t.Fatalf("%s: no build_info in %.500s", when, body)
		}
	}
	want("at the start", "", 0)
	o.reload(t, "admin: "+addr+"\n"+relays)
	want("with a listener", "", http.StatusOK)
	named := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		},
	}}
	if got, _, err := scrape(t, named, "http://elsewhere.example/metrics", ""); err != nil || got != http.StatusMisdirectedRequest {
		t.Errorf("by another name: status %d, %v, want 421", got, err)
	}
	o.reload(t, "admin: "+addr+"\nadmin_token_file: "+secret+"\n"+relays)
	want("with a token", "", http.StatusUnauthorized)
	want("with a token that is shown", "word", http.StatusOK)

	local := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", o.socket)
		},
	}}
	if status, body, err := scrape(t, local, "http://understudy/metrics", ""); status != http.StatusOK || !strings.Contains(body, "understudy_build_info{") {
		t.Errorf("control socket: status %d, %v, %.200s", status, err, body)
	}
	o.reload(t, relays)
	want("without a listener", "", 0)
}

// Every metric of the documentation is there from the start, for each host of the
// settings, and a reload takes away those of a host and a relay that it removes.
func TestMetricsFollowTheRelays(t *testing.T) {
	t.Parallel()
	a, b := (&proctest.Host{Name: "a"}).Start(t), (&proctest.Host{Name: "b"}).Start(t)
	admin, http1, one, two := proctest.FreeAddr(t), proctest.FreeAddr(t), proctest.FreeAddr(t), proctest.FreeAddr(t)
	trigger := filepath.Join(t.TempDir(), "10-tell")
	if err := os.WriteFile(trigger, []byte("#!/bin/sh\nexit 0\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	first, second := proctest.StartRedis(t, true, 5000), proctest.StartRedis(t, false, 5000)
	keys := "  - {name: keys, hosts: [" + first.Addr() + ", " + second.Addr() + "], listen: [" + proctest.FreeAddr(t) + "], role: redis, promote: true, on_failover: " + trigger + "}\n"
	head := "admin: " + admin + "\nhttp: " + http1 + "\n" +
		"probes:\n  here: {vip: {addresses: [127.0.0.1]}}\nroutes:\n  /ping: {}\n  /metrics: {metrics: true}\nrelays:\n"
	orders := func(hosts string) string {
		return "  - {name: orders, hosts: [" + hosts + "], listen: [" + one + "], canary: 1s, on_failover: " + trigger + "}\n"
	}
	o := operate(t, head+orders(a.Addr()+", "+b.Addr())+"  - {name: mail, hosts: ["+b.Addr()+"], listen: ["+two+"]}\n"+keys)
	proctest.AwaitGreeting(t, one, "a")
	proctest.AwaitGreeting(t, two, "b")
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(url string) string {
		t.Helper()
		status, body, err := scrape(t, client, url, "")
		if err != nil || status != http.StatusOK {
			t.Fatalf("%s: status %d, %v", url, status, err)
		}
		return body
	}
	proctest.Until(t, "the third relay serves", func() bool {
		return strings.Contains(get("http://"+admin+"/metrics"), `understudy_relay_state{relay="keys",state="serving"} 1`)
	})
	get("http://" + http1 + "/ping")
	before := ""
	proctest.Until(t, "the replica is known to lack nothing", func() bool {
		before = get("http://" + admin + "/metrics")
		return strings.Contains(before, `understudy_host_lag_seconds{host="`+second.Addr()+`",relay="keys"} 0`)
	})
	first.Write(2000)
	proctest.Until(t, "the replica lacks something", func() bool {
		before = get("http://" + admin + "/metrics")
		return strings.Contains(before, `understudy_host_lag_bytes{host="`+second.Addr()+`",relay="keys"} 2000`)
	})
	for _, m := range metrics.Table() {
		name := m.Name
		if m.Type == "histogram" {
			name += "_count"
		}
		if strings.HasPrefix(name, "understudy_cluster_") {
			continue // there is none: TestClusterAgrees looks at them
		}
		if !strings.Contains(before, "\n"+name+"{") && !strings.Contains(before, "\n"+name+" ") {
			t.Errorf("no value of %s", m.Name)
		}
	}
	for _, want := range []string{
		`understudy_host_primary{host="` + a.Addr() + `",relay="orders"} 1`,
		`understudy_host_primary{host="` + b.Addr() + `",relay="orders"} 0`,
		`understudy_host_usable{relay="mail"} 1`,
		`understudy_relay_state{relay="orders",state="serving"} 1`,
		`understudy_relay_state{relay="orders",state="refusing"} 0`,
		`understudy_host_connects_total{host="` + b.Addr() + `",outcome="made",relay="orders"} 0`,
		`understudy_trigger_runs_total{outcome="passed",relay="orders",trigger="10-tell"} 1`,
		`understudy_elections_total{event="start",outcome="open",relay="orders"} 1`,
		`understudy_elections_total{event="failover",outcome="host_lost",relay="orders"} 0`,
		`understudy_host_role{host="` + first.Addr() + `",relay="keys",role="primary"} 1`,
		`understudy_host_role{host="` + first.Addr() + `",relay="keys",role="unknown"} 0`,
		`understudy_host_role{host="` + second.Addr() + `",relay="keys",role="replica"} 1`,
		`understudy_host_writers{relay="keys"} 1`,
		`understudy_host_lag_bytes{host="` + second.Addr() + `",relay="keys"} 2000`,
		`understudy_failover_predicted_loss_bytes{relay="keys"} 2000`,
		`understudy_verdict_up{route="/ping"} 1`,
		`understudy_probe_stale{probe="here"} 0`,
		`understudy_build_info{goversion="` + runtime.Version() + `",revision="`, `,version="v1"} 1`,
		"go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(before, want) {
			t.Errorf("no %s", want)
		}
	}
	for line := range strings.Lines(before) {
		name, labels, _ := strings.Cut(line, "{")
		if (strings.HasPrefix(name, "understudy_host_role") || strings.Contains(name, "_lag_") || strings.Contains(name, "_loss_") || name == "understudy_host_writers") &&
			strings.Contains(labels, `relay="orders"`) {
			t.Errorf("orders has no role check, and there is %s", line)
		}
	}
	second.Become(true)
	proctest.Until(t, "two writers are counted", func() bool {
		return strings.Contains(get("http://"+admin+"/metrics"), `understudy_host_writers{relay="keys"} 2`)
	})
	st, err := o.control.Status(t.Context())
	if err != nil || len(st.Verdicts) != 1 || st.Verdicts[0].Route != "/ping" || !st.Verdicts[0].Good() || st.Verdicts[0].Requests != 1 || st.Verdicts[0].Since.IsZero() {
		t.Errorf("verdicts: %+v, %v", st.Verdicts, err)
	}
	if body := get("http://" + http1 + "/metrics"); !strings.Contains(body, "understudy_build_info{") {
		t.Error("the route of the HTTP listener has no metrics")
	}
	o.reload(t, head+orders(a.Addr()))
	proctest.Until(t, "the series of what is removed are gone", func() bool {
		after := get("http://" + admin + "/metrics")
		return !strings.Contains(after, `relay="mail"`) && !strings.Contains(after, `host="`+b.Addr()+`"`) &&
			strings.Contains(after, `understudy_trigger_runs_total{outcome="passed",relay="orders",trigger="10-tell"} 1`)
	})
}
