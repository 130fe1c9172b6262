package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"understudy/config"
)

const reference = "../../docs/reference.md"

// The tables of the reference are made from those of the program, so that they
// cannot differ.
func TestReferenceHasEverySettingAndVerb(t *testing.T) {
	text, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for name, table := range map[string]string{"settings": settingsTable(t), "verbs": verbsTable()} {
		begin, end := "<!-- "+name+": made by go test ./cmd/understudy -run Reference -update -->\n", "<!-- end of "+name+" -->"
		before, rest, found := strings.Cut(page, begin)
		_, after, found2 := strings.Cut(rest, end)
		if !found || !found2 {
			t.Fatalf("%s: the marks around the %s are missing", reference, name)
		}
		page = before + begin + table + end + after
	}
	if page == string(text) {
		return
	}
	if !*update {
		t.Fatalf("%s: a table is out of date: go test ./cmd/understudy -run Reference -update", reference)
	}
	if err := os.WriteFile(reference, []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}
}

func settingsTable(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	group := ""
	for _, s := range config.Table() {
		if s.Group != group {
			group = s.Group
			fmt.Fprintf(&b, "\n### %s\n\n| flag | variable | key | default | |\n|---|---|---|---|---|\n", group)
		}
		fmt.Fprintf(&b, "| %s | `%s` | %s | %s | %s |\n",
			flagCell(settingText(s)), s.Env, codeCell(keyOf(t, s)), codeCell(s.Default), inCell(s.Help))
	}
	return b.String() + "\n"
}

// keyOf returns the setting's name in the file, determined by reading a file.
// The key of the file itself cannot be set in it.
func keyOf(t *testing.T, s config.Setting) string {
	t.Helper()
	if s.Flag == "config" {
		return ""
	}
	key := strings.ReplaceAll(s.Flag, "-", "_")
	if key == "bind" {
		key = "listen"
	}
	file := filepath.Join(t.TempDir(), "understudy.yaml")
	if err := os.WriteFile(file, []byte(key+": wrong!\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := config.Load(config.Given{Flags: map[string][]string{"config": {file}}})
	if err == nil || strings.Contains(err.Error(), "unknown key") {
		t.Errorf("the file does not know %s: %v", key, err)
	}
	return key
}

func verbsTable() string {
	var b strings.Builder
	group := ""
	for _, v := range verbs() {
		if v.hidden {
			continue
		}
		if v.group != group {
			group = v.group
			fmt.Fprintf(&b, "\n### %s\n\n| verb | | flags |\n|---|---|---|\n", group)
		}
		var own []string
		for _, f := range v.ownFlags() {
			own = append(own, flagCell(f)+" "+inCell(f.help))
		}
		switch {
		case v.settings && v.maxArgs > 0: // as in its help
			own = append(own, "settings that say where: `--http`, `--http-cert`, `--config`")
		case v.settings:
			own = append(own, "every setting")
		}
		for _, s := range config.Table() {
			if v.takes(s) {
				own = append(own, "`--"+s.Flag+"`")
			}
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", inCell(strings.TrimSpace(v.name+" "+v.args)), inCell(v.summary), strings.Join(own, "; "))
	}
	return b.String() + "\n"
}

func flagCell(f flagText) string {
	name := "--" + f.long
	if f.short != 0 {
		name = fmt.Sprintf("-%c, %s", f.short, name)
	}
	return codeCell(strings.TrimSpace(name + " " + f.value))
}

func codeCell(text string) string {
	if text == "" {
		return ""
	}
	return "`" + inCell(text) + "`"
}

func inCell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// The reference names every variable that the program reads and every signal
// that it handles, and no variable that scripts do not get.
func TestReferenceHasEveryVariableAndSignal(t *testing.T) {
	text, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	known := namesInSource(t)
	if !slices.Contains(known, "UNDERSTUDY_EVENT") || !slices.Contains(known, "NO_COLOR") || !slices.Contains(known, "HUP") {
		t.Fatalf("not found in the source: %v", known)
	}
	for _, name := range known {
		if !strings.Contains(page, "`"+name+"`") {
			t.Errorf("%s does not say what %s does", reference, name)
		}
	}
	for _, name := range regexp.MustCompile(`\bUNDERSTUDY_[A-Z_]+`).FindAllString(page, -1) {
		if !slices.Contains(known, name) {
			t.Errorf("%s tells of %s, which no script gets", reference, name)
		}
	}
	for _, status := range []int{exitDone, exitFailed, exitUsage} {
		if !strings.Contains(page, fmt.Sprintf("\n| `%d` | ", status)) {
			t.Errorf("%s does not say what exit status %d means", reference, status)
		}
	}
}

// namesInSource returns the variables that the program's packages read or set
// by name, and the signals that they handle, without SIG.
func namesInSource(t *testing.T) (names []string) {
	t.Helper()
	ours := regexp.MustCompile(`^(UNDERSTUDY|LISTEN|NOTIFY|WATCHDOG)_[A-Z_]+$`)
	add := func(e ast.Expr) {
		if l, ok := e.(*ast.BasicLit); ok && l.Kind == token.STRING {
			if s, err := strconv.Unquote(l.Value); err == nil {
				names = append(names, s)
			}
		}
	}
	files, err := filepath.Glob("../../*/*.go")
	more, err2 := filepath.Glob("*.go")
	inside, err3 := filepath.Glob("../../internal/*/*.go")
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Concat(files, more, inside) {
		if dir := filepath.Base(filepath.Dir(name)); strings.HasSuffix(name, "_test.go") || dir == "bench" || dir == "proctest" {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BasicLit:
				if s, err := strconv.Unquote(n.Value); err == nil && ours.MatchString(strings.TrimSuffix(s, "=")) && !strings.HasSuffix(s, "_") {
					names = append(names, strings.TrimSuffix(s, "="))
				}
			case *ast.CallExpr:
				f, ok := n.Fun.(*ast.SelectorExpr)
				if !ok {
					break
				}
				switch from, _ := f.X.(*ast.Ident); {
				case from == nil:
				case from.Name == "os" && (f.Sel.Name == "Getenv" || f.Sel.Name == "LookupEnv"):
					add(n.Args[0])
				case from.Name == "signal" && strings.HasPrefix(f.Sel.Name, "Notify"):
					for _, arg := range n.Args {
						if s, ok := arg.(*ast.SelectorExpr); ok && strings.HasPrefix(s.Sel.Name, "SIG") {
							names = append(names, strings.TrimPrefix(s.Sel.Name, "SIG"))
						}
					}
				}
			}
			return true
		})
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// README.md names no flag that the program does not have. The table of every
// setting is in the reference.
func TestREADMENamesOnlyFlagsThatExist(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	known := []string{"help", "version", "build"} // --build is docker compose's
	for _, s := range config.Table() {
		known = append(known, s.Flag)
	}
	for _, v := range verbs() {
		for _, f := range v.ownFlags() {
			known = append(known, f.long)
		}
	}
	found := regexp.MustCompile(`--([a-z][a-z-]*)`).FindAllStringSubmatch(string(text), -1)
	if len(found) == 0 {
		t.Fatal("README.md names no flag at all")
	}
	for _, m := range found {
		if !slices.Contains(known, m[1]) {
			t.Errorf("README.md names --%s, which does not exist", m[1])
		}
	}
	if lines := strings.Count(string(text), "\n"); lines > 120 {
		t.Errorf("README.md has %d lines; two screens are enough", lines)
	}
}

// The newest release in the changelog is the version of builds without a tag.
func TestChangelogHasTheRelease(t *testing.T) {
	text, err := os.ReadFile("../../CHANGELOG.md")
	if err != nil {
		t.Fatal(err)
	}
	headings := regexp.MustCompile(`(?m)^## (\d.*)$`).FindAllStringSubmatch(string(text), -1)
	if len(headings) == 0 || "v"+headings[0][1] != release {
		t.Errorf("headings %q, want %s first", headings, strings.TrimPrefix(release, "v"))
	}
}
