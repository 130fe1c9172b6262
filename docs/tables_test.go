//go:build linux

package docs_test

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// treeTests are the tests of the repository, as "package.Name", scripts of the
// command line as "script/name.txtar", and the references in the comments of
// test files to items of faults.md and compatibility.md, with a file for each.
func treeTests(t *testing.T) (tests map[string]bool, cited map[string]string) {
	t.Helper()
	tests, cited = map[string]bool{}, map[string]string{}
	scripts, err := filepath.Glob("../cmd/understudy/testdata/script/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatal("found no scripts of the command line: ", err)
	}
	for _, path := range scripts {
		tests["script/"+filepath.Base(path)] = true
	}
	eachSource(t, func(path string, file *ast.File) {
		if !strings.HasSuffix(path, "_test.go") {
			return
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				tests[filepath.Base(filepath.Dir(path))+"."+f.Name.Name] = true
			}
		}
		for _, c := range file.Comments {
			for _, item := range itemName.FindAllString(c.Text(), -1) {
				cited[item] = path
			}
		}
	})
	return tests, cited
}

var (
	itemName = regexp.MustCompile(`\b(?:F[0-9]{2,3}|(?:CF|BRP|DP|HS) ?[0-9]+|D-(?:CF|BRP|DP|HS)[0-9]+)\b`)
	itemRow  = regexp.MustCompile(`(?m)^\| ((?:F|CF |BRP |DP |HS |D-[A-Z]+)[0-9]+)(?:-([0-9]+))? \|(.*)\|([^|]*)\|$`)
	testName = regexp.MustCompile("`([^`]+)`")
)

// A fault whose test was renamed or removed would look covered without being
// so, and a number in a comment that is on no page is useless to a reader.
func TestTablesNameTestsThatExist(t *testing.T) {
	tests, cited := treeTests(t)
	for _, page := range []string{"faults.md", "compatibility.md"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		rows := itemRow.FindAllStringSubmatch(string(text), -1)
		if len(rows) < 50 {
			t.Fatalf("%s: %d rows", page, len(rows))
		}
		for _, row := range rows {
			item, what := row[1], row[3]
			if last, err := strconv.Atoi(row[2]); err == nil { // "HS 2-3"
				series, number, _ := strings.Cut(item, " ")
				for n, _ := strconv.Atoi(number); n <= last; n++ {
					delete(cited, series+" "+strconv.Itoa(n))
				}
			}
			delete(cited, item)
			delete(cited, strings.Replace(item, " ", "", 1)) // "CF24"
			named := testName.FindAllStringSubmatch(row[4], -1)
			for _, name := range named {
				if !tests[name[1]] {
					t.Errorf("%s: %s: there is no %s", page, item, name[1])
				}
			}
			if len(named) == 0 && !strings.Contains(what, ": not ") {
				t.Errorf("%s: %s: names neither a test nor the reason why there is none", page, item)
			}
		}
	}
	for item, path := range cited {
		t.Errorf("%s refers to %s, which is neither in faults.md nor in compatibility.md", path, item)
	}
}
