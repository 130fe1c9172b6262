package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// file is one file of the release.
type file struct {
	src  string
	deb  string // path in the Debian package; empty for none
	tar  string // path in the tarball; empty for none
	mode int64
	conf bool // a configuration file: dpkg keeps what was edited
}

// share is the directory of the documentation in the package.
const share = "/usr/share/doc/understudy/"

// contents lists the files for one binary, in a fixed order, and makes those
// that are not in the source.
func (b *build) contents(ctx context.Context, binary string) ([]file, error) {
	made, err := b.describe(ctx)
	if err != nil {
		return nil, err
	}
	notices, err := thirdParty(ctx, binary)
	if err != nil {
		return nil, err
	}
	license, err := os.ReadFile("LICENSE")
	if err != nil {
		return nil, err
	}
	changes, err := os.ReadFile("CHANGELOG.md")
	if err != nil {
		return nil, err
	}
	manual, err := os.ReadFile(filepath.Join(made, "understudy.1")) //nolint:gosec // made above
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(binary)
	for name, data := range map[string][]byte{
		"understudy.1.gz":        compress(manual),
		"changelog.gz":           compress([]byte(b.changelog(string(changes)))),
		"copyright":              []byte(copyright(string(license))),
		"third-party-notices":    notices,
		"third-party-notices.gz": compress(notices),
	} {
		if err := write(filepath.Join(dir, name), data); err != nil {
			return nil, err
		}
	}
	stage := func(name string) string { return filepath.Join(dir, name) }
	files := []file{
		{src: binary, deb: "/usr/bin/understudy", tar: "understudy", mode: 0o755},
		{src: "packaging/deb/understudy.yaml", deb: "/etc/understudy/understudy.yaml", conf: true},
		{src: "packaging/understudy.yaml", deb: share + "examples/understudy.yaml", tar: "examples/understudy.yaml"},
		{src: "packaging/understudy.functions", deb: "/usr/share/understudy/understudy.functions", tar: "understudy.functions"},
		{src: "packaging/deb/lintian-overrides", deb: "/usr/share/lintian/overrides/understudy"},
		{src: stage("understudy.1.gz"), deb: "/usr/share/man/man1/understudy.1.gz"},
		{src: filepath.Join(made, "understudy.1"), tar: "understudy.1"},
		{src: filepath.Join(made, "understudy.bash"), deb: "/usr/share/bash-completion/completions/understudy", tar: "completion/understudy.bash"},
		{src: filepath.Join(made, "_understudy"), deb: "/usr/share/zsh/vendor-completions/_understudy", tar: "completion/_understudy"},
		{src: filepath.Join(made, "understudy.fish"), deb: "/usr/share/fish/vendor_completions.d/understudy.fish", tar: "completion/understudy.fish"},
		{src: stage("copyright"), deb: share + "copyright"},
		{src: "LICENSE", tar: "LICENSE"},
		{src: stage("changelog.gz"), deb: share + "changelog.gz"},
		{src: "CHANGELOG.md", tar: "CHANGELOG.md"},
		{src: stage("third-party-notices.gz"), deb: share + "third-party-notices.gz"},
		{src: stage("third-party-notices"), tar: "third-party-notices"},
		{src: "README.md", deb: share + "README.md", tar: "README.md"},
	}
	for _, of := range []struct{ pattern, deb, tar string }{
		{"packaging/systemd/*.service", "/usr/lib/systemd/system/", "systemd/"},
		{"packaging/systemd/*.socket", "/usr/lib/systemd/system/", "systemd/"},
		{"packaging/examples/scripts/*", share + "examples/scripts/", "examples/scripts/"},
		{"packaging/prometheus/*.yaml", share + "prometheus/", "prometheus/"},
		{"packaging/prometheus/*.libsonnet", share + "prometheus/", "prometheus/"},
		{"packaging/grafana/*.json", share + "grafana/", "grafana/"},
		{"docs/*.md", share + "docs/", "docs/"}, // where the README's links point
		{"docs/*.svg", share + "docs/", "docs/"},
		{"docs/examples/*", share + "docs/examples/", "docs/examples/"},
	} {
		found, err := filepath.Glob(of.pattern)
		if err != nil {
			return nil, err
		}
		for _, src := range found {
			name := filepath.Base(src)
			files = append(files, file{src: src, deb: of.deb + name, tar: of.tar + name})
		}
	}
	for i := range files {
		if files[i].mode != 0 {
			continue
		}
		info, err := os.Stat(files[i].src)
		if err != nil {
			return nil, err
		}
		// The umask of the checkout must not matter.
		files[i].mode = 0o644
		if info.Mode()&0o100 != 0 {
			files[i].mode = 0o755
		}
	}
	return files, nil
}

// compress is gzip without a name or a time in it.
func compress(data []byte) []byte {
	var buf bytes.Buffer
	w, _ := gzip.NewWriterLevel(&buf, gzip.BestCompression) // the level is right
	_, _ = w.Write(data)                                    // into memory
	_ = w.Close()
	return buf.Bytes()
}

// thirdParty is the licence texts of the modules in a binary, and of Go, which
// must be distributed with it.
func thirdParty(ctx context.Context, binary string) ([]byte, error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	root, err := output(ctx, nil, "go", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	buf.WriteString("understudy contains the work of others, under these licences.\n")
	add := func(title, dir string) error {
		var names []string
		for _, pattern := range []string{"LICEN[CS]E*", "COPYING*", "NOTICE*"} {
			found, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil {
				return err
			}
			names = append(names, found...)
		}
		if len(names) == 0 {
			return fmt.Errorf("%s: no licence in %s", title, dir)
		}
		slices.Sort(names)
		for _, name := range names {
			text, err := os.ReadFile(name) //nolint:gosec // of the module
			if err != nil {
				return err
			}
			fmt.Fprintf(&buf, "\n%s\n%s: %s\n\n%s\n", strings.Repeat("=", 76), title, filepath.Base(name), bytes.TrimSpace(text))
		}
		return nil
	}
	goroot := strings.TrimSpace(root)
	if err := add("Go "+info.GoVersion, goroot); err != nil {
		return nil, err
	}
	for _, m := range info.Deps {
		said, err := output(ctx, nil, "go", "list", "-m", "-json", m.Path)
		if err != nil {
			return nil, err
		}
		var module struct{ Dir string }
		if err := json.Unmarshal([]byte(said), &module); err != nil {
			return nil, fmt.Errorf("go list -m %s: %w", m.Path, err)
		}
		if err := add(m.Path+" "+m.Version, module.Dir); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), nil
}
