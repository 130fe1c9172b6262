package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy/config"
)

// The page has everything that the help has.
func TestManualHasEveryVerbAndFlag(t *testing.T) {
	t.Parallel()
	page := manual("2026-11-21")
	has := func(text string) {
		t.Helper()
		if !strings.Contains(page, text) {
			t.Errorf("the manual page has no %q", text)
		}
	}
	for _, v := range verbs() {
		item := ".B " + roffArgument(strings.TrimSpace(v.name+" "+v.args)) + "\n"
		if v.hidden {
			if strings.Contains(page, item) {
				t.Errorf("the manual page has the hidden %s", v.name)
			}
			continue
		}
		has(item)
		for _, f := range v.ownFlags() {
			has(`\fB\-\-` + roff(f.long) + `\fR`)
		}
	}
	for _, s := range config.Table() {
		has(`\fB\-\-` + roff(s.Flag) + `\fR`)
		has(`(variable \fB` + s.Env + `\fR)`)
		has(".SS " + roffArgument(s.Group))
	}
	has("text or json.\n") // no capital: the word is entered literally
	has("\nMake another host primary, now or ")
	has(`.TH UNDERSTUDY 1 "2026-11-21"`)
}

func TestManualIsWellFormed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "understudy.1")
	if err := os.WriteFile(path, []byte(manual("2026-11-21")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, lint := range []struct{ program, deb string }{
		{"groff", "groff"},
		{"man", "man-db"},
		{"mandoc", "mandoc"},
	} {
		t.Run(lint.program, func(t *testing.T) {
			t.Parallel()
			program, err := exec.LookPath(lint.program)
			if err != nil {
				t.Skipf("SKIPPED: %s is not installed (apt-get install %s)", lint.program, lint.deb)
			}
			args := map[string][]string{
				"groff":  {"-man", "-Tutf8", "-ww", "-z", path},
				"man":    {"--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", path},
				"mandoc": {"-Tlint", "-Wwarning", path},
			}[lint.program]
			cmd := exec.Command(program, args...)
			cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANROFFSEQ=", "MANWIDTH=80")
			var stderr strings.Builder
			cmd.Stderr = &stderr
			stdout, err := cmd.Output()
			said := stderr.String()
			if lint.program == "mandoc" {
				said += string(stdout)
			}
			if err != nil || said != "" {
				t.Errorf("%v\n%s", err, said)
			}
		})
	}
}

func TestRoff(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":            "",
		"a-b":         `a\-b`,
		".hidden":     `\&.hidden`,
		"'tis `so`":   `\(aqtis \(gaso\(ga`,
		`C:\n ~^`:     `C:\en \(ti\(ha`,
		"one.two":     "one.two",
		`say "hello"`: `say "hello"`,
	} {
		if got := roff(text); got != want {
			t.Errorf("roff(%q) = %q, want %q", text, got, want)
		}
	}
	if got, want := roffArgument(`say "-h"`), `"say \(dq\-h\(dq"`; got != want {
		t.Errorf("roffArgument: %s, want %s", got, want)
	}
}
