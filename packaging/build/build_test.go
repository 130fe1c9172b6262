package main

import (
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/internal/proctest"
)

func TestMain(m *testing.M) { os.Exit(proctest.Main(m, nil)) }

var commitTime = time.Date(2026, 11, 21, 8, 45, 26, 0, time.UTC)

func TestDebVersion(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]string{
		"v1.2.3":                 "1.2.3",
		"1.2":                    "1.2",
		"v1.2.3-rc1":             "1.2.3~rc1",
		"v1.2.3-rc.1":            "1.2.3~rc.1",
		"v1.2.3-beta-2":          "1.2.3~beta.2",
		"v1.2.3-5-gabc1234":      "1.2.3+5.gabc1234",
		"v1.2.3-rc1-12-gabc1234": "1.2.3~rc1+12.gabc1234",
		"v1.2.3-dirty":           "1.2.3+dirty",
		"v1.2.3-1-gabc12-dirty":  "1.2.3+1.gabc12+dirty",
		"e799c8b":                "0~20261121084526.e799c8b",
		"e799c8b-dirty":          "0~20261121084526.e799c8b+dirty",
		"1234567":                "1234567", // a valid version
		"devel":                  "0~20261121084526.devel",
		"try/it out":             "0~20261121084526.try.it.out",
	} {
		if got := debVersion(version, commitTime); got != want {
			t.Errorf("%s: %s, want %s", version, got, want)
		}
	}
}

// The form that dpkg accepts for the version of a native package
// (deb-version(7)).
var validVersion = regexp.MustCompile(`^[0-9][0-9A-Za-z.+~]*$`)

func FuzzDebVersion(f *testing.F) {
	for _, version := range []string{"v1.2.3", "v1.2.3-rc1-5-gabc-dirty", "e799c8b", "", "-dirty", "v1-\n"} {
		f.Add(version)
	}
	f.Fuzz(func(t *testing.T, version string) {
		if got := debVersion(version, commitTime); !validVersion.MatchString(got) {
			t.Errorf("%q: %q is no version of a package", version, got)
		}
	})
}

func TestChangelog(t *testing.T) {
	t.Parallel()
	b := &build{version: "v1.2.3", time: commitTime}
	got := b.changelog(`# Changelog

Newest first.

## v1.2.3

* [FEATURE] One thing.
* [CHANGE] ` + strings.Repeat("another ", 15) + `thing.

## v1.2.2

* [FEATURE] Old.
`)
	want := `understudy (1.2.3) unstable; urgency=medium

  * [FEATURE] One thing.
  * [CHANGE] another another another another another another another another
    another another another another another another another thing.

 -- ` + maintainer + `  Sat, 21 Nov 2026 08:45:26 +0000
`
	if got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestCopyright(t *testing.T) {
	t.Parallel()
	got := copyright("MIT License\n\nCopyright (c) 2026 somebody\n\nPermission is\ngranted.\n\nNo warranty.\n")
	if want := "Copyright: 2026 somebody\nLicense: Expat\n Permission is\n granted.\n .\n No warranty.\n"; !strings.HasSuffix(got, want) {
		t.Errorf("%s\nwant at the end\n%s", got, want)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{}, {"rpm"}, {"deb", "release"}, {"-nonsense", "deb"}} {
		if err := run(context.Background(), args, io.Discard); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
	err := run(context.Background(), []string{"-out", t.TempDir(), "-version", "v1", "-arch", "sparc", "deb"}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "sparc: is none of amd64, arm64") {
		t.Error(err)
	}
}

func TestBadEpoch(t *testing.T) {
	for _, epoch := range []string{"yesterday", "-1", "1e9"} {
		t.Setenv("SOURCE_DATE_EPOCH", epoch)
		if err := run(context.Background(), []string{"-out", t.TempDir(), "-version", "v1", "deb"}, io.Discard); err == nil || !strings.Contains(err.Error(), epoch) {
			t.Errorf("%s: %v", epoch, err)
		}
	}
}

func TestBOMOfReplacedModules(t *testing.T) {
	t.Parallel()
	doc := newBOM(&debug.BuildInfo{
		GoVersion: "go1.26.1", Main: debug.Module{Path: "understudy"},
		Deps: []*debug.Module{
			{Path: "example.org/a", Version: "v1.0.0", Sum: "h1:a="},
			{Path: "example.org/b", Version: "v1.0.0", Replace: &debug.Module{Path: "example.net/c", Version: "v2.0.0+incompatible"}},
		},
	}, "v1.2.3", sha256.Sum256(nil), commitTime)
	var names []string
	for _, c := range doc.Components {
		names = append(names, c.Ref)
	}
	want := []string{"pkg:golang/std@1.26.1", "pkg:golang/example.org/a@v1.0.0", "pkg:golang/example.net/c@v2.0.0+incompatible"}
	if !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}

// checkBOM reads a bill of materials as its users do, and compares it with the
// binary.
func checkBOM(t *testing.T, path, binary, version string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var doc bom
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	match := func(what, pattern, got string) {
		t.Helper()
		if !regexp.MustCompile(`^(?:` + pattern + `)$`).MatchString(got) {
			t.Errorf("%s is %q, want %s", what, got, pattern)
		}
	}
	match("bomFormat", "CycloneDX", doc.Format)
	match("specVersion", `1\.5`, doc.Spec)
	match("serialNumber", `urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`, doc.Serial)
	if doc.Version != 1 {
		t.Errorf("version is %d, want 1", doc.Version)
	}
	if _, err := time.Parse(time.RFC3339, doc.Metadata.Timestamp); err != nil {
		t.Error(err)
	}
	program := doc.Metadata.Component
	match("type", "application", program.Type)
	match("name", "understudy", program.Name)
	match("version", regexp.QuoteMeta(version), program.Version)
	refs := map[string]bool{program.Ref: true}
	modules := map[string]string{}
	for _, c := range doc.Components {
		match("type of "+c.Name, "library", c.Type)
		match("purl of "+c.Name, `pkg:golang/[a-z0-9./_-]+@v?[0-9][0-9A-Za-z.+-]*`, c.PURL)
		if refs[c.Ref] {
			t.Errorf("%s is there twice", c.Ref)
		}
		refs[c.Ref] = true
		modules[c.Name] = c.Version
	}
	if len(doc.Dependencies) != 1 || doc.Dependencies[0].Ref != program.Ref {
		t.Fatalf("dependencies: %v, want those of the program", doc.Dependencies)
	}
	for _, ref := range doc.Dependencies[0].DependsOn {
		if !refs[ref] {
			t.Errorf("%s is not a component", ref)
		}
	}
	if got := len(doc.Dependencies[0].DependsOn); got != len(doc.Components) {
		t.Errorf("%d dependencies of %d components", got, len(doc.Components))
	}

	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range info.Deps {
		if modules[m.Path] != m.Version {
			t.Errorf("%s is %q, want %s", m.Path, modules[m.Path], m.Version)
		}
	}
	if want := len(info.Deps) + 1; len(modules) != want { // Go's library too
		t.Errorf("%d components, want %d", len(modules), want)
	}
	data, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := program.Hashes, sum(data); len(got) != 1 || got[0].Algorithm != "SHA-256" || got[0].Content != want {
		t.Errorf("hashes %v, want %s", got, want)
	}
	if !slices.ContainsFunc(program.Properties, func(p property) bool { return p.Name == "go:build:vcs.revision" }) {
		t.Error("the commit is not there")
	}
}

func sum(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data)) }
