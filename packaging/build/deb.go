package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// nfpm makes the packages. It is run, not linked: it has many modules, and the
// source of understudy needs none of them.
const nfpm = "github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4"

const maintainer = "understudy authors <maintainers@understudy.invalid>"

// writeDeb makes the Debian package.
func (b *build) writeDeb(ctx context.Context, arch string, contents []file) error {
	type info struct {
		Mode  int64     `json:"mode"`
		MTime time.Time `json:"mtime"`
	}
	type content struct {
		Src  string `json:"src"`
		Dst  string `json:"dst"`
		Type string `json:"type,omitempty"`
		Info info   `json:"file_info"`
	}
	var all []content
	for _, f := range contents {
		if f.deb == "" {
			continue
		}
		c := content{Src: f.src, Dst: f.deb, Info: info{f.mode, b.time}}
		if f.conf {
			c.Type = "config"
		}
		all = append(all, c)
	}
	version := debVersion(b.version, b.time)
	// nfpm reads YAML, of which JSON is a part.
	config, err := json.MarshalIndent(map[string]any{
		"name":             "understudy",
		"arch":             arch,
		"version":          version,
		"version_schema":   "none",
		"section":          "net",
		"priority":         "optional",
		"maintainer":       maintainer,
		"disable_globbing": true,
		"mtime":            b.time,
		"recommends":       []string{"systemd"},
		"description": "failover TCP relay with health verdicts\n" +
			"understudy relays TCP connections to the primary among several hosts. It\n" +
			"notices when the primary fails, chooses the next one, cuts the old one off,\n" +
			"runs scripts and lets the waiting clients through.\n" +
			"\n" +
			"Beside that it answers over HTTP one health verdict over everything on the\n" +
			"machine, for load balancers and people.",
		"contents": all,
		"scripts": map[string]string{
			"postinstall": "packaging/deb/postinst",
			"preremove":   "packaging/deb/prerm",
			"postremove":  "packaging/deb/postrm",
		},
	}, "", "\t")
	if err != nil {
		return err
	}
	path := filepath.Join(b.stage, "nfpm-"+arch+".json")
	if err := write(path, config); err != nil {
		return err
	}
	name := fmt.Sprintf("understudy_%s_%s.deb", version, arch)
	env := []string{fmt.Sprintf("SOURCE_DATE_EPOCH=%d", b.time.Unix()), "CGO_ENABLED=0", "GOFLAGS=-mod=mod"}
	if _, err := output(ctx, env, "go", "run", nfpm, "package", "-f", path, "-p", "deb", "-t", filepath.Join(b.out, name)); err != nil {
		return err
	}
	b.made = append(b.made, name)
	return nil
}

var (
	release = regexp.MustCompile(`^v?([0-9]+(?:\.[0-9]+)*)(?:-([0-9A-Za-z.-]+?))??(?:-([0-9]+)-g([0-9a-f]+))?$`)
	foreign = regexp.MustCompile(`[^0-9A-Za-z.]+`)
)

// debVersion is the version of a package, which sorts as versions of the
// program do: a candidate before its release, a commit after a tag behind that
// tag, and a commit before the first tag by its time.
func debVersion(version string, at time.Time) string {
	version, changed := strings.CutSuffix(version, "-dirty")
	text := "0~" + at.Format("20060102150405") + "." + foreign.ReplaceAllString(version, ".")
	if m := release.FindStringSubmatch(version); m != nil {
		text = m[1]
		if m[2] != "" {
			text += "~" + foreign.ReplaceAllString(m[2], ".")
		}
		if m[3] != "" {
			text += "+" + m[3] + ".g" + m[4]
		}
	}
	if changed {
		text += "+dirty"
	}
	return text
}

// changelog is the newest section of the list of changes in Debian's form.
func (b *build) changelog(markdown string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "understudy (%s) unstable; urgency=medium\n\n", debVersion(b.version, b.time))
	_, section, _ := strings.Cut(markdown, "\n## ")
	section, _, _ = strings.Cut(section, "\n## ")
	for line := range strings.SplitSeq(section, "\n") {
		item, ok := strings.CutPrefix(line, "* ")
		if !ok {
			continue
		}
		prefix, width := "  *", 0
		for word := range strings.FieldsSeq(item) {
			if width > 0 && width+1+len(word) > 76 {
				prefix, width = "\n   ", 0
			}
			if width == 0 {
				text.WriteString(prefix)
				width = 3
			}
			text.WriteString(" " + word)
			width += 1 + len(word)
		}
		text.WriteString("\n")
	}
	fmt.Fprintf(&text, "\n -- %s  %s\n", maintainer, b.time.Format(time.RFC1123Z))
	return text.String()
}

// copyright is the licence in Debian's form.
func copyright(license string) string {
	_, rest, _ := strings.Cut(license, "Copyright (c) ")
	owner, terms, _ := strings.Cut(rest, "\n")
	var text strings.Builder
	fmt.Fprintf(&text, `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: understudy
Comment: The program contains Go's library and modules of others; their licences
 are in %sthird-party-notices.gz.

Files: *
Copyright: %s
License: Expat
`, share, owner)
	for line := range strings.SplitSeq(strings.TrimSpace(terms), "\n") {
		if line == "" {
			line = "."
		}
		text.WriteString(" " + line + "\n")
	}
	return text.String()
}
