package config

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of settings into README.md")

// The README's table of settings is made from the table in this package, so
// neither can say what the other does not.
func TestREADMEHasEverySetting(t *testing.T) {
	const file, begin, end = "../README.md", "<!-- settings: made by go test ./config -update -->\n", "<!-- end of settings -->"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	_, after, found2 := strings.Cut(rest, end)
	if !found || !found2 {
		t.Fatalf("%s: the marks around the settings are missing", file)
	}
	want := before + begin + markdown() + end + after
	if string(text) == want {
		return
	}
	if !*update {
		t.Fatalf("%s: the table of settings is out of date: go test ./config -update", file)
	}
	if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

func markdown() string {
	var b strings.Builder
	group := ""
	for _, s := range Table() {
		if s.Group != group {
			group = s.Group
			fmt.Fprintf(&b, "\n**%s**\n\n| flag | variable | default | |\n|---|---|---|---|\n", group)
		}
		name := "--" + s.Flag
		if s.Short != 0 {
			name = fmt.Sprintf("-%c, %s", s.Short, name)
		}
		if s.Value != "" {
			name += " " + s.Value
		}
		fallback := ""
		if s.Default != "" {
			fallback = "`" + s.Default + "`"
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", name, s.Env, fallback, strings.ReplaceAll(s.Help, "|", `\|`))
	}
	return b.String() + "\n"
}
