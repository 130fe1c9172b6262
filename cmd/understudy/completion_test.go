package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy/config"
	"understudy/internal/proctest"
)

// completions are command lines and the completions that must, or must not, be
// printed.
var completions = []struct {
	name      string
	line      string // the last word is completed
	want, not []string
}{
	{"commands", "understudy s", []string{"status", "switch"}, []string{"why", "--source", "demo-host"}},
	{"no command is hidden", "understudy ", []string{"run", "demo", "completion", "help"}, []string{"inactivate", "demo-host", "--hosts"}},
	{"settings without a command", "understudy --h", []string{"--hosts", "--hold", "--http", "--help"}, []string{"--json", "--port"}},
	{"version is no flag of commands", "understudy status --", []string{"--watch", "--json", "--control", "--config", "--help"}, []string{"--hosts", "--version"}},
	{"flags of a command", "understudy switch --", []string{"--drain", "--reason", "--relay"}, []string{"--for", "--hosts"}},
	{"behind the value of a flag", "understudy -p 5432 --hosts db1:5432 pre", []string{"predict"}, nil},
	{"a value that looks like a command", "understudy --ping-path status --ho", []string{"--hosts"}, nil},
	{"value in one word", "understudy --fence=k", []string{"--fence=keep"}, []string{"--fence=now"}},
	{"values", "understudy --log-level w", []string{"warn"}, []string{"error"}},
	{"values of a flag with a file", "understudy --control o", []string{"off"}, nil},
	{"commands of help", "understudy help pre", []string{"predict"}, nil},
	{"shells", "understudy completion z", []string{"zsh"}, []string{"bash"}},
	{"files", "understudy --config un", []string{"understudy.yaml"}, nil},
	{"no files for a number", "understudy --port un", nil, []string{"understudy.yaml"}},
	{"no files for a host", "understudy switch un", nil, []string{"understudy.yaml"}},
}

// completionDir makes a directory with the scripts and a file to complete.
func completionDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"bash.sh": bashCompletion, "_understudy": zshCompletion, "understudy.fish": fishCompletion, "understudy.yaml": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// shellOutput runs a shell that must succeed and print nothing on standard
// error.
func shellOutput(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(proctest.Build(t))+":"+os.Getenv("PATH"), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_DATA_HOME="+dir, "LC_ALL=C.UTF-8")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%s %q: %v\n%s", name, args, err, stderr.String())
	}
	return string(out)
}

func compareCompletions(t *testing.T, got, want, not []string) {
	t.Helper()
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("%q is not offered; what is: %q", w, got)
		}
	}
	for _, w := range not {
		if slices.Contains(got, w) {
			t.Errorf("%q is offered", w)
		}
	}
}

func TestBashCompletion(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("SKIPPED: bash is not installed (apt-get install bash)")
	}
	dir := completionDir(t)
	request := func(words []string) []string {
		script := `source ./bash.sh; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _understudy; printf '%s\n' "${COMPREPLY[@]}"`
		return strings.Fields(shellOutput(t, dir, "bash", append([]string{"--norc", "-c", script, "-"}, words...)...))
	}
	for _, c := range completions {
		t.Run(c.name, func(t *testing.T) {
			if strings.Contains(c.line, "=") {
				t.Skip("bash cuts the word at the equals sign: see below")
			}
			compareCompletions(t, request(strings.Split(c.line, " ")), c.want, c.not)
		})
	}
	t.Run("words that are cut at the equals sign", func(t *testing.T) {
		compareCompletions(t, request([]string{"understudy", "--fence", "=", "k"}), []string{"keep"}, []string{"now"})
		compareCompletions(t, request([]string{"understudy", "--fence", "="}), []string{"keep", "now"}, nil)
		compareCompletions(t, request([]string{"understudy", "--ping-path", "=", "run", "wh"}), []string{"why"}, nil)
	})
	t.Run("it is registered", func(t *testing.T) {
		got := shellOutput(t, dir, "bash", "--norc", "-c", "source ./bash.sh; complete -p understudy")
		if want := "complete -F _understudy understudy\n"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

func TestFishCompletion(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("fish"); err != nil {
		t.Skip("SKIPPED: fish is not installed (apt-get install fish)")
	}
	dir := completionDir(t)
	shellOutput(t, dir, "fish", "--no-execute", "understudy.fish")
	for _, c := range completions {
		t.Run(c.name, func(t *testing.T) {
			out := shellOutput(t, dir, "fish", "--no-config", "-c", "source understudy.fish; complete -C $argv[1]", c.line)
			var got []string
			for line := range strings.Lines(out) {
				word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
				got = append(got, word)
			}
			compareCompletions(t, got, c.want, c.not)
		})
	}
}

func TestZshCompletion(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("zsh"); err != nil {
		t.Skip("SKIPPED: zsh is not installed (apt-get install zsh)")
	}
	dir := completionDir(t)
	shellOutput(t, dir, "zsh", "-f", "-n", "_understudy")
	// compinit finds it by its first line.
	got := shellOutput(t, dir, "zsh", "-f", "-c", `fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; print -r -- $_comps[understudy]`)
	if want := "_understudy\n"; got != want {
		t.Errorf("compinit knows %q, want %q", got, want)
	}
	// _describe works only in the line editor: a replacement prints its
	// arguments.
	for _, c := range completions {
		got := shellOutput(t, dir, "zsh", "-f", "-c", `
			compdef() {}
			_describe() { print -rl -- "${(@P)4}" }
			words=("${(@s: :)1}"); CURRENT=$#words; source ./_understudy; _understudy; true`, "-", c.line)
		var items []string
		for line := range strings.Lines(got) {
			item, _, _ := strings.Cut(strings.TrimSpace(line), ":")
			items = append(items, item)
		}
		t.Run(c.name, func(t *testing.T) { compareCompletions(t, items, c.want, c.not) })
	}
}

// The words that are completed for a flag are accepted by it.
func TestFlagWordsAreAccepted(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, s := range config.Table() {
		known[s.Flag] = true
	}
	for flag, words := range settingWords {
		if !known[flag] {
			t.Errorf("--%s is no setting", flag)
		}
		for _, word := range words {
			if strings.HasSuffix(word, "://") {
				word += "127.0.0.1:12201"
			}
			_, _, err := config.Load(config.Given{Flags: map[string][]string{flag: {word}}})
			if err != nil && strings.Contains(err.Error(), fmt.Sprintf("--%s:", flag)) {
				t.Errorf("--%s %s: %v", flag, word, err)
			}
		}
	}
}
