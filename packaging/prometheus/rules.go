// Package prometheus has the alerts and the board for understudy, and tells their
// queries to tests.
package prometheus

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Alert is one alert.
type Alert struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

//go:embed rules.yaml
var rules []byte

// Alerts returns the alerts of rules.yaml.
func Alerts() ([]Alert, error) {
	var file struct {
		Groups []struct {
			Rules []Alert `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal(rules, &file); err != nil {
		return nil, err
	}
	var all []Alert
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	return all, nil
}

// BoardQueries returns the queries of a board of Grafana, with values in place of its
// variables.
func BoardQueries(board []byte) ([]string, error) {
	var file struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Annotations struct{ List []struct{ Expr string } }
	}
	if err := json.Unmarshal(board, &file); err != nil {
		return nil, fmt.Errorf("board: %w", err)
	}
	var all []string
	for _, p := range file.Panels {
		for _, t := range p.Targets {
			all = append(all, t.Expr)
		}
	}
	for _, a := range file.Annotations.List {
		all = append(all, a.Expr)
	}
	variables := strings.NewReplacer("$__rate_interval", "1m", "$job", ".*", "$instance", ".*", "$relay", ".*")
	for k := range all {
		all[k] = variables.Replace(all[k])
	}
	return all, nil
}

var metric = regexp.MustCompile(`\b(?:understudy|go|process)_[a-z0-9_]+(?:\{[^}]*\})?`)

// Selectors returns the selectors of series in a query, each once.
func Selectors(query string) []string {
	all := metric.FindAllString(query, -1)
	slices.Sort(all)
	return slices.Compact(all)
}
