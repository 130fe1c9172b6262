package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// countingWriter counts what is written to it.
type countingWriter struct{ writes, bytes int }

func (w *countingWriter) Write(p []byte) (int, error) {
	w.writes++
	w.bytes += len(p)
	return len(p), nil
}

// Each write takes a system call, for a pipe, a terminal or a file.
func TestOutputIsWrittenInLargePieces(t *testing.T) {
	var text strings.Builder
	text.WriteString("http: \"127.0.0.1:0\"\nroutes: {/ping: {probes: p0}}\nprobes:\n")
	for n := range 1000 {
		fmt.Fprintf(&text, "  p%d: {http: {url: \"http://localhost:9200/%d\"}}\n", n, n)
	}
	file := filepath.Join(t.TempDir(), "u.yaml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"config", "--config", file}, {"--help"}, {"check", "--help"}, {"man"}, {"completion", "bash"}, {"completion", "zsh"}, {"completion", "fish"},
	} {
		var out countingWriter
		if code := run(t.Context(), args, &out, io.Discard); code != exitDone || out.bytes == 0 {
			t.Fatalf("%q: exit status %d, %d bytes", args, code, out.bytes)
		}
		t.Logf("%q: %d bytes in %d writes", args, out.bytes, out.writes)
		if most := 32 + out.bytes/1024; out.writes > most {
			t.Errorf("%q: %d bytes in %d writes, want %d at most", args, out.bytes, out.writes, most)
		}
	}
}
