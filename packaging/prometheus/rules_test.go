package prometheus

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"understudy/metrics"
)

const board = "../grafana/understudy.json"

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// run runs a program that tests need from Debian, and returns its standard output.
func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: %s is not installed (make test-deps)", name)
	}
	var complaint strings.Builder
	c := exec.CommandContext(t.Context(), path, args...)
	c.Stderr = &complaint
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, complaint.String())
	}
	return out
}

func alerts(t *testing.T) []Alert {
	t.Helper()
	all, err := Alerts()
	if err != nil || len(all) < 15 {
		t.Fatalf("%d alerts, %v", len(all), err)
	}
	return all
}

// Prometheus accepts the rules, and each alert fires when it should and does not when
// it should not.
func TestRules(t *testing.T) {
	run(t, "promtool", "check", "rules", "rules.yaml")
	run(t, "promtool", "test", "rules", "tests.yaml", "tests-slow.yaml")
}

// Each alert has a test of either kind, and a section that says what to do; and one missed
// scrape alone raises none.
func TestEachAlertIsTestedAndExplained(t *testing.T) {
	tests := string(readFile(t, "tests.yaml")) + string(readFile(t, "tests-slow.yaml"))
	runbooks := string(readFile(t, "../../docs/operations.md"))
	seen := map[string]bool{}
	for _, a := range alerts(t) {
		if seen[a.Alert] {
			t.Errorf("%s is there twice", a.Alert)
		}
		seen[a.Alert] = true
		for _, kind := range []string{"fires", "stays silent"} {
			if !strings.Contains(tests, "  - name: "+a.Alert+" "+kind+"\n") {
				t.Errorf("no test in which %s %s", a.Alert, kind)
			}
		}
		if !strings.Contains(runbooks, "\n### "+a.Alert+"\n") || a.Annotations["runbook_url"] != "docs/operations.md#"+strings.ToLower(a.Alert) {
			t.Errorf("docs/operations.md does not say what to do for %s, or it is not where %q leads", a.Alert, a.Annotations["runbook_url"])
		}
		d, err := time.ParseDuration(a.For)
		if (err != nil || d < 30*time.Second) && a.Alert != "UnderstudyTwoWriters" {
			t.Errorf("%s waits for %q, less than two scrapes", a.Alert, a.For)
		}
		if a.Labels["severity"] == "" || a.Annotations["summary"] == "" || a.Annotations["description"] == "" {
			t.Errorf("%s lacks a severity, a summary or a description", a.Alert)
		}
	}
	for line := range strings.Lines(runbooks) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "### Understudy"); ok && !seen["Understudy"+name] {
			t.Errorf("docs/operations.md explains Understudy%s, which is no alert", name)
		}
	}
}

// The rules and the board ask for metrics that exist, with labels that they have.
func TestQueriesNameMetricsThatExist(t *testing.T) {
	known := map[string]metrics.Metric{}
	for _, m := range metrics.Table() {
		known[m.Name] = m
	}
	queries, err := BoardQueries(readFile(t, board))
	if err != nil || len(queries) < 30 {
		t.Fatalf("%d queries of the board, %v", len(queries), err)
	}
	for _, a := range alerts(t) {
		queries = append(queries, a.Expr)
	}
	for _, q := range queries {
		for _, s := range Selectors(q) {
			name, labels, _ := strings.Cut(strings.TrimSuffix(s, "}"), "{")
			if !strings.HasPrefix(name, "understudy_") {
				continue // of a library: the test with a real Prometheus asks for it
			}
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				if m := known[strings.TrimSuffix(name, suffix)]; m.Type == "histogram" {
					name = m.Name
				}
			}
			m, ok := known[name]
			if !ok {
				t.Errorf("%s: there is no metric %s", q, name)
				continue
			}
			for label := range strings.SplitSeq(labels, ", ") {
				l, _, _ := strings.Cut(label, "=")
				l = strings.TrimRight(l, "!~")
				if l != "" && l != "job" && l != "instance" && !strings.Contains(" "+strings.Join(m.Labels, " ")+" ", " "+l+" ") {
					t.Errorf("%s: %s has no label %s", q, name, l)
				}
			}
		}
	}
}

// The board can be read with several instances and in every state: a series that is that of
// one instance says of which, a prediction is not stacked on what was measured, and only
// the state in which clients are served is green.
func TestBoardTellsItsSeriesApart(t *testing.T) {
	type property struct {
		ID    string
		Value any
	}
	var file struct {
		Panels []struct {
			Title       string
			Targets     []struct{ RefID, Expr, LegendFormat string }
			FieldConfig struct {
				Defaults struct {
					Custom struct{ Stacking struct{ Mode string } }
				}
				Overrides []struct {
					Matcher    struct{ ID, Options string }
					Properties []property
				}
			}
		}
	}
	if err := json.Unmarshal(readFile(t, board), &file); err != nil {
		t.Fatal(err)
	}
	sums := regexp.MustCompile(`\b(sum|max|min|avg|count)\b`)
	state := map[string]string{}
	for _, p := range file.Panels {
		apart := map[string]bool{}
		for _, o := range p.FieldConfig.Overrides {
			for _, is := range o.Properties {
				value, _ := is.Value.(map[string]any)
				apart[o.Matcher.Options] = apart[o.Matcher.Options] || is.ID == "custom.stacking" && value["mode"] == "none"
				for _, s := range []string{"serving", "switching", "selecting", "refusing"} {
					options := strings.Trim(o.Matcher.Options, "/")
					if p.Title == "State" && is.ID == "color" && regexp.MustCompile(options).MatchString("proxy1:9002 orders: "+s) {
						state[s] += fmt.Sprint(value["fixedColor"])
					}
				}
			}
		}
		for _, q := range p.Targets {
			if !sums.MatchString(q.Expr) && !strings.Contains(q.LegendFormat, "{{instance}}") {
				t.Errorf("%s: the series of %s do not say of which instance they are", p.Title, q.Expr)
			}
			if strings.HasPrefix(q.LegendFormat, "predicted") && p.FieldConfig.Defaults.Custom.Stacking.Mode == "normal" && !apart[q.RefID] {
				t.Errorf("%s: the prediction is stacked on what was measured", p.Title)
			}
		}
	}
	want := map[string]string{"serving": "green", "switching": "orange", "selecting": "red", "refusing": "red"}
	if !reflect.DeepEqual(state, want) {
		t.Errorf("colours of states %v, want %v", state, want)
	}
}

// The mixin has the same alerts and the same board as the plain files.
func TestMixin(t *testing.T) {
	const both = `local m = import 'mixin.libsonnet'; {alerts: m.prometheusAlerts, boards: m.grafanaDashboards}`
	var mixin struct {
		Alerts any            `json:"alerts"`
		Boards map[string]any `json:"boards"`
	}
	if err := json.Unmarshal(run(t, "jsonnet", "-e", both), &mixin); err != nil {
		t.Fatal(err)
	}
	var plain, drawn any
	if err := yaml.Unmarshal(readFile(t, "rules.yaml"), &plain); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(readFile(t, board), &drawn); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(mixin.Alerts, plain) {
		t.Error("the alerts of the mixin are not those of rules.yaml")
	}
	if !reflect.DeepEqual(mixin.Boards["understudy.json"], drawn) {
		t.Error("the board of the mixin is not understudy.json")
	}
}
