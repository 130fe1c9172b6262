//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy/internal/proctest"
	"understudy/packaging/prometheus"
)

// prometheusServer is a Prometheus that scrapes the program each second.
type prometheusServer struct {
	t    *testing.T
	addr string
}

func startPrometheus(t *testing.T, target string, flags ...string) *prometheusServer {
	t.Helper()
	program := needs(t, "prometheus")
	dir := t.TempDir()
	rules, err := filepath.Abs("../packaging/prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "prometheus.yml")
	text := "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [" + rules + "]\n" +
		"scrape_configs:\n  - {job_name: understudy, static_configs: [{targets: ['" + target + "']}]}\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &prometheusServer{t, freeAddr(t)}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c := exec.CommandContext(t.Context(), program, append(flags, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+p.addr, "--log.level=warn")...)
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
		if t.Failed() {
			said, _ := os.ReadFile(log.Name())
			t.Logf("prometheus: %s", said)
		}
	})
	proctest.Until(t, "prometheus is ready", func() bool {
		resp, err := http.Get("http://" + p.addr + "/-/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return p
}

// ask returns the values of a query.
func (p *prometheusServer) ask(query string) (values []string, err error) {
	p.t.Helper()
	resp, err := http.Get("http://" + p.addr + "/api/v1/query?query=" + url.QueryEscape(query))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct {
				Value     [2]any
				Histogram []any
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if answer.Status != "success" {
		return nil, fmt.Errorf("%s: %s", query, answer.Error)
	}
	for _, r := range answer.Data.Result {
		if r.Histogram != nil {
			values = append(values, "histogram")
		} else {
			values = append(values, fmt.Sprint(r.Value[1]))
		}
	}
	return values, nil
}

// A real Prometheus scrapes the program through a failover. Every query of the board
// finds data then, and so does every selector of the alerts; none of the alerts that say
// that the program is wrong fires.
func TestPrometheusThroughAFailover(t *testing.T) {
	needs(t, "prometheus")
	admin, answers := freeAddr(t), freeAddr(t)
	s := newShow(t)
	file := filepath.Join(t.TempDir(), "understudy.yaml")
	first, second := proctest.StartRedis(t, true, 5000), proctest.StartRedis(t, false, 5000)
	text := "admin: " + admin + "\nhttp: " + answers + "\nprobes:\n  here: {vip: {addresses: [127.0.0.1]}}\nrelays:\n" +
		"  - {name: show, hosts: [" + s.a.Addr() + ", " + s.b.Addr() + "], listen: [" + s.addr + "], canary: 1s, on_failover: " + script(t, recording(s.record)) + "}\n" +
		"  - {name: keys, hosts: [" + first.Addr() + ", " + second.Addr() + "], listen: [" + freeAddr(t) + "], role: redis, promote: true, on_failover: " + script(t, recording(s.record)) + "}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run("--config", file)
	p := startPrometheus(t, admin)
	clients := s.load()
	ping := func() {
		resp, err := http.Get("http://" + answers + "/ping")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	ping()
	s.Until("the primary was scraped", func() bool {
		v, err := p.ask(`understudy_host_primary{host="` + s.a.Addr() + `"} == 1 and on () count_over_time(understudy_host_primary{host="` + s.a.Addr() + `"}[1m]) >= 3`)
		return err == nil && len(v) == 1
	})
	s.killPrimary(clients)
	ping()
	s.Until("the failover was scraped", func() bool {
		v, err := p.ask(`increase(understudy_elections_total{event="failover", outcome="open"}[1m]) > 0 and on () understudy_host_primary{host="` + s.b.Addr() + `"} == 1`)
		return err == nil && len(v) == 1
	})

	alerts, err := prometheus.Alerts()
	if err != nil {
		t.Fatal(err)
	}
	board, err := os.ReadFile("../packaging/grafana/understudy.json")
	if err != nil {
		t.Fatal(err)
	}
	queries, err := prometheus.BoardQueries(board)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range alerts {
		if _, err := p.ask(a.Expr); err != nil {
			t.Errorf("%s: %v", a.Alert, err)
		}
		for _, q := range prometheus.Selectors(a.Expr) {
			if !strings.HasPrefix(q, "understudy_cluster_") { // TestClusterAgrees finds those
				queries = append(queries, q)
			}
		}
	}
	asked := map[string]bool{}
	for _, q := range queries {
		if asked[q] {
			continue
		}
		asked[q] = true
		q, _ = strings.CutSuffix(q, "> 0") // an annotation: no change in the last minute is an answer
		s.Until(q+" has data", func() bool {
			v, err := p.ask(q)
			if err != nil {
				t.Fatal(err)
			}
			return len(v) > 0
		})
	}
	if v, err := p.ask(`count_over_time((understudy_connections_accepted_total - on (job, instance, relay) sum by (job, instance, relay) (understudy_connections_closed_total) - on (job, instance, relay) sum by (job, instance, relay) (understudy_connections{state!="queued"}) != 0)[5m:1s])`); err != nil || len(v) != 0 {
		t.Errorf("the law did not hold at every scrape: %v, %v", v, err)
	}
	fine := startPrometheus(t, admin, "--enable-feature=native-histograms")
	s.Until("there are native histograms", func() bool {
		v, err := fine.ask(`histogram_count(understudy_check_duration_seconds) > 0`)
		return err == nil && len(v) > 0
	})
	if v, err := p.ask(`ALERTS{alertname=~"UnderstudyLawBroken|UnderstudyAbsent|UnderstudyLogDropped"}`); err != nil || len(v) != 0 {
		t.Errorf("alerts: %v, %v", v, err)
	}
}
