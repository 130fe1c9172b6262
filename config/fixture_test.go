package config

import (
	"strings"
	"testing"
)

// loadFile runs Load on a file of that text, called u.yaml, and on flags, each
// written "name=value", and variables.
func loadFile(tb testing.TB, text string, flags, env []string) (Settings, []Value, error) {
	tb.Helper()
	g := Given{Flags: map[string][]string{"config": {"u.yaml"}}, Environ: env}
	for _, flag := range flags {
		name, value, _ := strings.Cut(flag, "=")
		lookup(name) // panics on a slip in the test
		g.Flags[name] = append(g.Flags[name], value)
	}
	g.ReadFile = func(name string) ([]byte, error) {
		if name != "u.yaml" {
			tb.Errorf("%s is read", name)
		}
		return []byte(text), nil
	}
	return Load(g)
}
