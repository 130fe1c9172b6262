//go:build linux

package docs_test

import (
	"bytes"
	"flag"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// parts are the packages of the picture in architecture.md, in its order: those
// that import the others first. Leaves below internal are open to all and left
// out, and so are tests, benchmarks and packaging.
var parts = []string{
	"cmd/understudy", "internal/daemon", "admin", "metrics", "control", "correlate", "failover",
	"relay", "selector", "health", "roles", "verdict", "hooks", "cluster/etcd", "cluster/peer", "cluster", "config", "logs",
}

// importsOf returns the parts that the part in dir imports outside of tests.
func importsOf(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	files, err := filepath.Glob(filepath.Join("..", dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in %s, %v", dir, err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range file.Imports {
			path, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if part, ours := strings.CutPrefix(path, "understudy/"); ours && slices.Contains(parts, part) {
				all = append(all, part)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

var update = flag.Bool("update", false, "write the picture of architecture.md anew")

const picture = "<!-- imports: made by go test ./docs -run Architecture -update -->\n"

// The picture of the parts in architecture.md shows what the code imports.
func TestArchitecturePicture(t *testing.T) {
	var b strings.Builder
	b.WriteString("\n```\n")
	for _, part := range parts {
		imports := importsOf(t, part)
		if len(imports) == 0 {
			fmt.Fprintf(&b, "%s\n", part)
			continue
		}
		fmt.Fprintf(&b, "%-15s ──▶ %s\n", part, strings.Join(imports, " "))
	}
	b.WriteString("```\n\n")
	page, err := os.ReadFile("architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	head, rest, found := bytes.Cut(page, []byte(picture))
	_, tail, ended := bytes.Cut(rest, []byte("<!-- end of imports -->\n"))
	if !found || !ended {
		t.Fatal("architecture.md has no place for the imports")
	}
	want := slices.Concat(head, []byte(picture), []byte(b.String()), []byte("<!-- end of imports -->\n"), tail)
	if bytes.Equal(page, want) {
		return
	}
	if *update {
		if err := os.WriteFile("architecture.md", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Error("architecture.md does not show what the code imports: go test ./docs -run Architecture -update")
}

// Every file and directory that architecture.md names exists.
func TestArchitectureNamesFilesThatExist(t *testing.T) {
	page, err := os.ReadFile("architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:[a-z0-9_]+/)+[a-z0-9_]+\\.go)`").FindAllSubmatch(page, -1)
	if len(named) < 30 {
		t.Fatalf("architecture.md names %d files: the ways are missing", len(named))
	}
	for _, m := range named {
		if _, err := fs.Stat(os.DirFS(".."), string(m[1])); err != nil {
			t.Errorf("architecture.md names %s, which is not there", m[1])
		}
	}
}
