package control

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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
	want = section(t, want, "status", tables(t, "api.go", "Status", "RelayStatus", "Clients", "Canary", "PacingProgress", "Host", "Role", "Address", "Check", "Result", "Verdict", "Probe", "Reload", "Changes", "Cluster", "Waited", "Instance")+
		tables(t, "../failover/lock.go", "Lock")+tables(t, "../failover/scheduled.go", "Scheduled")+tables(t, "../failover/progress.go", "Progress")+tables(t, "../correlate/correlate.go", "Outage", "Disagreement", "PrimaryOfRelay"))
	want = section(t, want, "events", tables(t, "api.go", "Event")+tables(t, "../failover/incident.go", "Incident", "Ordered", "Loss", "BadCheck", "Pacing", "FenceRun", "TriggerRun")+tables(t, "../failover/canary.go", "CanaryRun"))
	want = section(t, want, "predict", tables(t, "api.go", "PredictAnswer")+tables(t, "../failover/predict.go", "Prediction", "Case", "Wait", "ClusterWaits"))
	want = section(t, want, "answers", tables(t, "api.go", "Answered")+
		tables(t, "../failover/operate.go", "Switched")+tables(t, "../failover/drill.go", "DrillReport", "Step", "Candidate"))
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

// The types whose JSON others read, each with the keys of its documentation and, if it
// has one, its example.
var documents = []struct {
	value   any
	example string // in docs/examples
}{
	{&Status{}, "status.json"},
	{&[]Event{}, "events.json"},
	{&PredictAnswer{}, "predict.json"},
	{&SwitchAnswer{}, ""},
	{&ScheduleAnswer{}, ""},
	{&LockAnswer{}, ""},
	{&DrillAnswer{}, ""},
	{&ReloadAnswer{}, ""},
	{&Order{}, ""},
}

// Every key of every type that can be in a document is in docs/control.md.
func TestDocumentationHasEveryType(t *testing.T) {
	text, err := os.ReadFile("../docs/control.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range documents {
		for kind, keys := range keysOf(reflect.TypeOf(d.value)) {
			begin := "**" + kind.Name() + "**\n"
			if kind == reflect.TypeFor[Order]() {
				begin = "The body of a POST is an order."
			}
			_, table, found := strings.Cut(string(text), begin)
			table, _, _ = strings.Cut(table, "\n**")
			if !found && kind != reflect.TypeFor[ReloadAnswer]() {
				t.Errorf("docs/control.md does not describe %v: give TestDocumentation its file", kind)
			}
			for key := range keys {
				if !strings.Contains(table, "| `"+key+"` | ") && found {
					t.Errorf("docs/control.md: %v has no key %s", kind, key)
				}
			}
		}
	}
}

// The examples are JSON as the program writes it, and have every key that there is.
func TestExamples(t *testing.T) {
	for _, d := range documents {
		if d.example == "" {
			continue
		}
		path := "../docs/examples/" + d.example
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		value := reflect.New(reflect.TypeOf(d.value).Elem())
		in := json.NewDecoder(bytes.NewReader(text))
		in.DisallowUnknownFields()
		if err := in.Decode(value.Interface()); err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		for kind, keys := range keysOf(value.Type()) {
			for key, index := range keys {
				if !hasValue(value.Elem(), kind, index) {
					t.Errorf("%s: no %v has a value for %s", path, kind, key)
				}
			}
		}
		var written bytes.Buffer
		out := json.NewEncoder(&written)
		out.SetIndent("", "  ")
		if err := out.Encode(value.Interface()); err != nil {
			t.Fatal(err)
		}
		switch {
		case bytes.Equal(written.Bytes(), text):
		case *update:
			if err := os.WriteFile(path, written.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		default:
			t.Errorf("%s is not what the program would write: go test ./control -run Examples -update (-want +got):\n%s", path, cmp.Diff(written.String(), string(text)))
		}
	}
}

// keysOf returns the keys of each struct that a value of type of can contain, with the
// number of their field. Those of an embedded struct belong to that one.
func keysOf(of reflect.Type) map[reflect.Type]map[string]int {
	all := map[reflect.Type]map[string]int{}
	var add func(reflect.Type)
	add = func(of reflect.Type) {
		switch of.Kind() {
		case reflect.Pointer, reflect.Slice:
			add(of.Elem())
		case reflect.Struct:
			if all[of] != nil || of == reflect.TypeFor[time.Time]() {
				return
			}
			keys := map[string]int{}
			for i := range of.NumField() {
				f := of.Field(i)
				key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if f.IsExported() && key != "-" {
					add(f.Type)
				}
				if key != "-" && key != "" {
					keys[key] = i
				}
			}
			if len(keys) > 0 {
				all[of] = keys
			}
		default: // it has no keys
		}
	}
	add(of)
	return all
}

// hasValue reports whether a struct of type of, anywhere in v, has a value in its field
// number index, or is never written without one.
func hasValue(v reflect.Value, of reflect.Type, index int) bool {
	switch v.Kind() {
	case reflect.Pointer:
		return !v.IsNil() && hasValue(v.Elem(), of, index)
	case reflect.Slice:
		for i := range v.Len() {
			if hasValue(v.Index(i), of, index) {
				return true
			}
		}
	case reflect.Struct:
		if v.Type() == of {
			return !v.Field(index).IsZero() || !strings.Contains(of.Field(index).Tag.Get("json"), ",omit")
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && hasValue(v.Field(i), of, index) {
				return true
			}
		}
	default: // no struct is in it
	}
	return false
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
			if field.Tag == nil {
				continue // unexported
			}
			key := regexp.MustCompile(`json:"([^",]+)`).FindStringSubmatch(field.Tag.Value)[1]
			if key == "-" {
				continue
			}
			meaning := strings.TrimSpace(field.Comment.Text())
			if meaning == "" {
				meaning = strings.Join(strings.Fields(field.Doc.Text()), " ")
			}
			if meaning == "" {
				t.Errorf("%s: %s.%s has no comment, so its key has no meaning in docs/control.md", file, name, field.Names[0])
			}
			fmt.Fprintf(&out, "| `%s` | %s | %s |\n", key, kind(field.Type), strings.ReplaceAll(meaning, "|", "\\|"))
		}
		out.WriteString("\n")
	}
	return out.String()
}

// kind returns the JSON type of e.
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
		case "LockKind", "Outcome", "Failure":
			return "string"
		}
		return e.Name
	}
	return "?"
}
