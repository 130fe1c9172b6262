package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"runtime/debug"
	"strings"
	"time"
)

// A bom is a bill of materials in CycloneDX 1.5, with the parts that apply to a
// Go program. https://cyclonedx.org/docs/1.5/json/
type bom struct {
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Serial       string       `json:"serialNumber"`
	Version      int          `json:"version"`
	Metadata     bomMetadata  `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type bomMetadata struct {
	Timestamp string    `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Ref        string     `json:"bom-ref"`
	Type       string     `json:"type"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	PURL       string     `json:"purl"`
	Hashes     []hash     `json:"hashes,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn"`
}

// writeBOM makes the bill of materials of a binary.
func (b *build) writeBOM(arch, binary string) error {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(binary) //nolint:gosec // made by this program
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(newBOM(info, b.version, sha256.Sum256(data), b.time), "", "  ")
	if err != nil {
		return err
	}
	return b.add(b.artefact(arch, ".cdx.json"), append(text, '\n'))
}

// newBOM lists the contents of the build information of a binary. The serial
// number is derived from the sum, so that equal binaries have equal bills.
func newBOM(info *debug.BuildInfo, version string, sum [sha256.Size]byte, at time.Time) bom {
	id := sum                 // of a UUID of version 8, whose content is free
	id[6] = id[6]&0x0f | 0x80 //
	id[8] = id[8]&0x3f | 0x80 // the variant of RFC 9562
	program := library(&debug.Module{Path: info.Main.Path, Version: version})
	program.Type = "application"
	program.Hashes = []hash{{"SHA-256", fmt.Sprintf("%x", sum)}}
	for _, s := range info.Settings {
		program.Properties = append(program.Properties, property{"go:build:" + s.Key, s.Value})
	}
	doc := bom{
		Format: "CycloneDX", Spec: "1.5", Version: 1,
		Serial:   fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:16]),
		Metadata: bomMetadata{at.Format(time.RFC3339), program},
	}
	all := []*debug.Module{{Path: "std", Version: strings.TrimPrefix(info.GoVersion, "go")}}
	needs := dependency{Ref: program.Ref}
	for _, m := range append(all, info.Deps...) {
		if m.Replace != nil {
			m = m.Replace
		}
		c := library(m)
		doc.Components = append(doc.Components, c)
		needs.DependsOn = append(needs.DependsOn, c.Ref)
	}
	doc.Dependencies = []dependency{needs}
	return doc
}

// library is a module.
func library(m *debug.Module) component {
	c := component{Type: "library", Name: m.Path, Version: m.Version}
	c.PURL = "pkg:golang/" + m.Path + "@" + url.PathEscape(m.Version)
	c.Ref = c.PURL
	if m.Sum != "" {
		c.Properties = []property{{"go:sum", m.Sum}}
	}
	return c
}
