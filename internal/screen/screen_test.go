package screen

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDecode(t *testing.T) {
	for _, tt := range []struct {
		text string
		late bool
		want Key
		size int
	}{
		{"q", false, 'q', 1},
		{"qx", false, 'q', 1},
		{"ü", false, 'ü', 2},
		{"ü"[:1], false, None, 0},
		{"ü"[:1], true, None, 1},
		{"\xff", false, None, 1},
		{"\n", false, Enter, 1},
		{"\r", false, Enter, 1},
		{"\b", false, Backspace, 1},
		{"\x7f", false, Backspace, 1},
		{"\x0c", false, 0x0c, 1},
		{"\x1b", false, None, 0},
		{"\x1b", true, Escape, 1},
		{"\x1b\x1b", false, Escape, 1},
		{"\x1b[", false, None, 0},
		{"\x1b[", true, Escape, 1},
		{"\x1b[A", false, Up, 3},
		{"\x1bOA", false, Up, 3},
		{"\x1b[5~q", false, PageUp, 4},
		{"\x1b[5", false, None, 0},
		{"\x1b[[A", false, F1, 4},
		{"\x1b[[", false, None, 0},
		{"\x1bOP", false, F1, 3},
		{"\x1b[21~", false, F10, 5},
		{"\x1b[1;5A", false, None, 6}, // Ctrl-Up
		{"\x1bq", false, None, 2},     // Alt-q
	} {
		if key, size := decode([]byte(tt.text), tt.late); key != tt.want || size != tt.size {
			t.Errorf("decode(%q, %v) = %d, %d, want %d, %d", tt.text, tt.late, key, size, tt.want, tt.size)
		}
	}
}

// Keys that come in any pieces are the same keys, and nothing is kept for ever.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("q\x1b[A\x1bOBü\x1b[[A\x1b"), 3)
	f.Add([]byte("\x1b[1;2\x00\xff"), 1)
	f.Fuzz(func(t *testing.T, text []byte, at int) {
		read := func(pieces ...[]byte) (keys []Key) {
			var pending []byte
			for n, piece := range pieces {
				pending = append(pending, piece...)
				for len(pending) > 0 {
					key, size := decode(pending, n == len(pieces)-1)
					if size == 0 {
						break
					}
					pending = pending[size:]
					keys = append(keys, key)
				}
			}
			if len(pending) > 0 {
				t.Fatalf("%q stays", pending)
			}
			return keys
		}
		if at < 0 || at > len(text) {
			t.Skip()
		}
		whole := read(text, nil)
		if diff := cmp.Diff(whole, read(text[:at], text[at:], nil)); diff != "" {
			t.Errorf("%q cut at %d (-whole +pieces):\n%s", text, at, diff)
		}
	})
}

func TestEncode(t *testing.T) {
	line := Line{{Text: "ab"}, {Style: Bold | Red, Text: "c\x1b[2Jd"}, {Style: Reverse, Text: "é\n"}}
	for _, tt := range []struct {
		width  int
		colour bool
		want   string
	}{
		{80, true, "ab\x1b[1;31mc·[2Jd\x1b[0m\x1b[7mé \x1b[0m"},
		{80, false, "ab\x1b[1mc·[2Jd\x1b[0m\x1b[7mé \x1b[0m"},
		{3, true, "ab\x1b[1;31mc\x1b[0m"},
		{1, true, "a"},
		{0, true, ""},
	} {
		if got := line.Encode(tt.width, tt.colour); got != tt.want {
			t.Errorf("width %d, colour %v: %q, want %q", tt.width, tt.colour, got, tt.want)
		}
	}
	if got, want := line.String(), "abc·[2Jdé "; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
}

// Only lines that differ are written.
func TestChange(t *testing.T) {
	for _, tt := range []struct {
		name          string
		before, after []string
		want          string
	}{
		{"everything", nil, []string{"a", "b"}, "\x1b[2J\x1b[1;1Ha\x1b[2;1Hb"},
		{"nothing", []string{"a", "b"}, []string{"a", "b"}, ""},
		{"one line", []string{"a", "b", "c"}, []string{"a", "x", "c"}, "\x1b[2;1Hx"},
		{"fewer lines", []string{"a", "b", "c"}, []string{"a"}, "\x1b[2;1H\x1b[J"},
		{"more lines", []string{"a"}, []string{"a", "b"}, "\x1b[2;1Hb"},
	} {
		var out bytes.Buffer
		if change(&out, tt.before, tt.after); out.String() != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, out.String(), tt.want)
		}
	}
}
