package hooks

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
)

// collect returns what an output makes of text, in pieces of size n.
func collect(text []byte, n int) (lines []string, dropped int64, tail string) {
	o := newOutput(os.Stdin, nil)
	for len(text) > 0 {
		k := min(n, len(text))
		o.write(text[:k])
		text = text[k:]
	}
	o.endLine()
	lines, dropped = o.rest()
	last, _ := o.tail()
	return lines, dropped, last
}

func TestOutputLimits(t *testing.T) {
	for _, tt := range []struct {
		name    string
		text    string
		lines   int
		longest int
		dropped int64
	}{
		{"nothing", "", 0, 0, 0},
		{"one line without an end", "abc", 1, 3, 0},
		{"line of the limit", strings.Repeat("x", lineLimit) + "\n", 1, lineLimit, 0},
		{"line over the limit", strings.Repeat("x", lineLimit+5) + "\nnext\n", 2, lineLimit, 5},
		{"short lines", strings.Repeat("y\n", 10000), outputLimit / 101, 1, 10000*2 - outputLimit/101*2 - 1},
		{"carriage return before the end", "abc\r\n\r\n", 1, 3, 0},
	} {
		for _, n := range []int{1, 7, 1 << 20} {
			lines, dropped, _ := collect([]byte(tt.text), n)
			longest := 0
			for _, line := range lines {
				longest = max(longest, len(line))
			}
			if len(lines) != tt.lines || longest != tt.longest || dropped != tt.dropped {
				t.Errorf("%s in pieces of %d: %d lines, longest %d, dropped %d, want %d, %d, %d",
					tt.name, n, len(lines), longest, dropped, tt.lines, tt.longest, tt.dropped)
			}
		}
	}
}

func TestTailIsTheEnd(t *testing.T) {
	long := strings.Repeat("filler line\n", 10000) + "the reason\n"
	for _, n := range []int{1, 100, 1 << 20} {
		_, _, tail := collect([]byte(long), n)
		if !strings.HasSuffix(tail, `\nthe reason`) || !strings.HasPrefix(tail, "filler line") || len(tail) > tailLimit*2 {
			t.Errorf("in pieces of %d: tail = %q", n, tail)
		}
	}
}

// A deadline does not hide what had been written before it.
func TestLastOutputIsNotLost(t *testing.T) {
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pw.Close() // another process holds the pipe
	o := newOutput(pr, nil)
	pw.WriteString("the reason\n")
	pr.SetReadDeadline(time.Unix(1, 0))
	o.copy()
	if lines, _ := o.rest(); len(lines) != 1 || lines[0] != "the reason" {
		t.Errorf("lines = %q, want the one that was written", lines)
	}
}

// How the output is cut into pieces on its way changes nothing.
func FuzzOutputPieces(f *testing.F) {
	f.Add([]byte("a\nb\r\n\n\xffc"), 1)
	f.Add(bytes.Repeat([]byte("0123456789\n"), 8000), 4093)
	f.Fuzz(func(t *testing.T, text []byte, n int) {
		if n < 1 {
			t.Skip()
		}
		lines, dropped, tail := collect(text, n)
		whole, wholeDropped, wholeTail := collect(text, len(text)+1)
		if strings.Join(lines, "\n") != strings.Join(whole, "\n") || dropped != wholeDropped || tail != wholeTail {
			t.Errorf("%q in pieces of %d: %q, %d, %q; whole: %q, %d, %q", text, n, lines, dropped, tail, whole, wholeDropped, wholeTail)
		}
		size := 0
		for _, line := range lines {
			size += len(line)
		}
		if size > outputLimit {
			t.Errorf("%d bytes of lines, want at most %d", size, outputLimit)
		}
	})
}
