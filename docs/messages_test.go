package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// loggedMessages are the constant messages that the program logs as warnings
// and errors, with the level and place of each.
func loggedMessages(t *testing.T) map[string]string {
	t.Helper()
	messages := map[string]string{}
	eachSource(t, func(path string, file *ast.File) {
		if strings.HasSuffix(path, "_test.go") || notTheProgram.MatchString(filepath.ToSlash(path)) {
			return
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || f.Sel.Name != "Warn" && f.Sel.Name != "Error" {
				return true
			}
			if text, ok := call.Args[0].(*ast.BasicLit); ok && text.Kind == token.STRING {
				if message, err := strconv.Unquote(text.Value); err == nil {
					messages[message] = strings.ToUpper(f.Sel.Name) + " in " + path
				}
			}
			return true
		})
	})
	return messages
}

var notTheProgram = regexp.MustCompile(`^\.\./(bench|e2e|packaging|docker|internal/proctest)/`)

// eachSource parses each Go file of the repository and calls f with its path.
func eachSource(t *testing.T, f func(path string, file *ast.File)) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err == nil {
			f(path, file)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

var messageRow = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (WARN|ERROR) \\|[^|]+\\|[^|]+\\|$")

// troubleshooting.md explains each warning and error that the program logs, and
// no other.
func TestTroubleshootingHasEveryMessage(t *testing.T) {
	page, err := os.ReadFile("troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	logged, listed := loggedMessages(t), map[string]bool{}
	if len(logged) < 30 {
		t.Fatalf("found only %d messages in the code", len(logged))
	}
	for _, row := range messageRow.FindAllStringSubmatch(string(page), -1) {
		listed[row[1]] = true
		if logged[row[1]] == "" {
			t.Errorf("troubleshooting.md explains %q, which is not logged", row[1])
		}
	}
	for message, path := range logged {
		if !listed[message] {
			t.Errorf("troubleshooting.md does not explain %q of %s", message, path)
		}
	}
}
