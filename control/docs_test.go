package control

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the tables of docs/control.md anew")

// The keys in docs/control.md are those of the types, with their comments.
func TestDocumentation(t *testing.T) {
	const path = "../docs/control.md"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := string(text)
	want = section(t, want, "status", tables(t, "api.go", "Status", "RelayStatus", "Clients", "Host", "Check", "Result", "Probe", "Reload", "Changes")+
		tables(t, "../failover/lock.go", "Lock"))
	want = section(t, want, "events", tables(t, "../failover/incident.go", "Incident", "BadCheck", "FenceRun", "TriggerRun"))
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != string(text) {
		t.Error("docs/control.md does not tell what the types say: go test ./control -run Documentation -update")
	}
}

// section puts a text between the marks of its name.
func section(t *testing.T, doc, name, text string) string {
	t.Helper()
	marks := regexp.MustCompile(`(?s)(<!-- ` + name + `: [^\n]*-->\n).*(<!-- end of ` + name + ` -->)`)
	if !marks.MatchString(doc) {
		t.Fatalf("no marks for %s", name)
	}
	return marks.ReplaceAllStringFunc(doc, func(old string) string {
		m := marks.FindStringSubmatch(old)
		return m[1] + "\n" + text + m[2]
	})
}

// tables makes a table for each type of a file.
func tables(t *testing.T, file string, types ...string) string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, name := range types {
		spec, ok := parsed.Scope.Lookup(name).Decl.(*ast.TypeSpec)
		if !ok {
			t.Fatalf("%s: no type %s", file, name)
		}
		fmt.Fprintf(&out, "**%s**\n\n| key | type | meaning |\n|---|---|---|\n", name)
		for _, field := range spec.Type.(*ast.StructType).Fields.List {
			if len(field.Names) == 0 {
				fmt.Fprintf(&out, "| | | and those of %s |\n", kind(field.Type))
				continue
			}
			key := regexp.MustCompile(`json:"([^",]+)`).FindStringSubmatch(field.Tag.Value)[1]
			meaning := strings.TrimSpace(field.Comment.Text())
			if meaning == "" {
				meaning = strings.Join(strings.Fields(field.Doc.Text()), " ")
			}
			fmt.Fprintf(&out, "| `%s` | %s | %s |\n", key, kind(field.Type), strings.ReplaceAll(meaning, "|", "\\|"))
		}
		out.WriteString("\n")
	}
	return out.String()
}

// kind is what a type is in JSON.
func kind(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return kind(e.X)
	case *ast.ArrayType:
		return "list of " + kind(e.Elt)
	case *ast.SelectorExpr:
		if e.Sel.Name == "Time" {
			return "time"
		}
		if e.Sel.Name == "Kind" {
			return "string"
		}
		return e.Sel.Name
	case *ast.Ident:
		switch e.Name {
		case "int", "uint64", "float64":
			return "number"
		case "LockKind", "Outcome":
			return "string"
		}
		return e.Name
	}
	return "?"
}
