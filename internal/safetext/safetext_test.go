package safetext

import (
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestEscape(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"plain → ünïcode\ufffd", "plain → ünïcode\ufffd"},
		{"a\nb\r\tc", `a\nb\r\tc`},
		{"\x00\x1b[31m\x7f", `\x00\x1b[31m\x7f`},
		{"\xff\u0085\u2028\u202e", `\xff\u0085\u2028\u202e`},
		{`back\slash "quoted" 'single'`, `back\slash "quoted" 'single'`},
		{"\U0010ffff", `\U0010ffff`},
	} {
		if got := Escape(tt.in); got != tt.want {
			t.Errorf("Escape(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestAppendIsCut(t *testing.T) {
	for _, text := range []string{strings.Repeat("x", 10000), strings.Repeat("ü", 5000), strings.Repeat("\x00", 5000)} {
		for limit := 100; limit < 110; limit++ {
			got := Append([]byte("head "), text, limit)
			if len(got) > limit || len(got) < limit-8 || !utf8.Valid(got) || !strings.HasSuffix(string(got), "…") {
				t.Errorf("limit %d: %d bytes, %q", limit, len(got), got)
			}
		}
	}
	if got := string(Append(nil, "short", 8)); got != "short" {
		t.Errorf("a text that fits became %q", got)
	}
}

func TestLine(t *testing.T) {
	if got := Line(" a\r\nb\t c\n"); got != "a b c" {
		t.Errorf("%q", got)
	}
}

func TestHasControl(t *testing.T) {
	for _, text := range []string{"\x00", "a\nb", "a\tb", "\x1f", "\x7f"} {
		if !HasControl(text) {
			t.Errorf("%q has no control character", text)
		}
	}
	for _, text := range []string{"", "a b~", "\u0080é→"} {
		if HasControl(text) {
			t.Errorf("%q has a control character", text)
		}
	}
}

func TestTerminal(t *testing.T) {
	if got, want := Terminal("a\x1b[2J\x07\n\u202eb\xff"), "a·[2J· ·b\ufffd"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func FuzzEscape(f *testing.F) {
	for _, seed := range []string{"", "plain", "\x1b[31mred", "a\r\nb\x00", "\xff\xc2", "é ✓ \u202e \u2028", `back\slash`, "\U0010ffff\u0085", `"`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out := Escape(in)
		for _, got := range []string{out, Quoted(in), Terminal(in), string(Append(nil, in, 64))} {
			if !utf8.ValidString(got) {
				t.Errorf("of %q came %q, which is not UTF-8", in, got)
			}
			for _, c := range got {
				if !strconv.IsPrint(c) && c != ' ' {
					t.Errorf("of %q came %q with %q in it", in, got, c)
				}
			}
		}
		if len(out) < len(in) {
			t.Errorf("Escape(%q) = %q is shorter, so limits of its length do not hold", in, out)
		}
		if Escape(out) != out {
			t.Errorf("Escape(%q) = %q is escaped twice", in, out)
		}
		if got := len(Append(nil, in, 64)); got > 64 {
			t.Errorf("Append of %q with a limit of 64 has %d bytes", in, got)
		}
		if back, err := strconv.Unquote(`"` + Quoted(in) + `"`); err != nil || back != in {
			t.Errorf("Quoted(%q) = %q, which reads back as %q, %v", in, Quoted(in), back, err)
		}
	})
}
