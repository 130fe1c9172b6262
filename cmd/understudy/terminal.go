package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"understudy/internal/safetext"
	"understudy/internal/screen"
)

// terminal writes tables and sentences for people. Lines fit into its width and
// have colour if the terminal has it; a pipe has neither width nor colour.
// Every text from elsewhere is made printable.
type terminal struct {
	w             io.Writer
	width, height int // zero for a pipe
	colour        bool
}

const (
	// usualWidth is the width of a terminal that does not report its own.
	usualWidth = 80

	// leastWidth is the smallest width for which tables are made.
	leastWidth = 40

	// leastDetail is the smallest width of the last column of a table next to
	// the others; with less it is written below them.
	leastDetail = 20

	// deepIndent is its indent then.
	deepIndent = "      "
)

func newTerminal(w io.Writer) *terminal {
	t := &terminal{w: w}
	f, ok := w.(*os.File)
	if !ok {
		return t
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return t // no terminal
	}
	t.width, t.height = max(int(size.Col), leastWidth), int(size.Row)
	if size.Col == 0 {
		t.width = usualWidth
	}
	t.colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" // see no-color.org
	return t
}

// page returns text that replaces the content of the screen, cut to its height;
// for a pipe it changes nothing.
func (t *terminal) page(text []byte) []byte {
	if t.width == 0 {
		return text
	}
	lines := strings.SplitAfter(string(text), "\n")
	if t.height > 1 && len(lines) > t.height {
		lines = append(lines[:t.height-2], "…\n") // the cursor is in the last line
	}
	// Each line ends with a sequence that clears the rest of it, so nothing
	// flickers; see console_codes(4).
	all := strings.ReplaceAll(strings.Join(lines, ""), "\n", "\x1b[K\n")
	return []byte("\x1b[H" + all + "\x1b[J")
}

// paint returns a word for a state in its colour.
func (t *terminal) paint(word string) string { return t.paintAs(word, word) }

// paintAs returns text in the colour of a word.
func (t *terminal) paintAs(word, text string) string {
	if !t.colour {
		return text
	}
	return screen.Line{{Style: styleOf(word), Text: text}}.Encode(runes(text), true)
}

// styleOf returns the colour of a word for a state.
func styleOf(word string) screen.Style {
	switch word {
	case "up", "ok", "open", "serving", "good":
		return screen.Green
	case "down", "stale", "failed", "selecting", "bad", "aborted", "host lost":
		return screen.Red
	case "unknown", "suspected", "switching", "warning", "frozen", "under way", "interrupted":
		return screen.Yellow
	}
	return screen.Plain
}

// runes returns approximately how many columns a text takes.
func runes(text string) int { return utf8.RuneCountInString(text) }

// table writes rows, all of the same length, whose cells are aligned in
// columns. The last column contains sentences: they are broken where wrap is
// true and cut where it is not.
func (t *terminal) table(rows [][]string, wrap bool) error {
	last := len(rows[0]) - 1
	widths := make([]int, last)
	longest := 0
	for _, row := range rows {
		for i := range row {
			row[i] = safetext.Terminal(row[i])
		}
		for i := range widths {
			widths[i] = max(widths[i], runes(row[i]))
		}
		longest = max(longest, runes(row[last]))
	}
	begin := 2 * last // the column where the last one begins
	for _, w := range widths {
		begin += w
	}
	below := t.width > 0 && begin+longest > t.width && begin+leastDetail > t.width
	for t.width > 0 && below && begin-2 > t.width {
		i := slices.Index(widths, slices.Max(widths))
		widths[i]--
		begin--
	}
	room := t.width - begin
	indent := strings.Repeat(" ", begin)
	if below {
		room, indent = t.width-len(deepIndent), deepIndent
	}
	var out strings.Builder
	for n, row := range rows {
		for i, w := range widths {
			cell := cut(row[i], w)
			out.WriteString(t.paint(cell) + strings.Repeat(" ", w-runes(cell)+2))
		}
		detail := []string{row[last]}
		switch {
		case below && (n == 0 || row[last] == ""):
			detail = []string{""}
		case t.width > 0 && wrap:
			detail = broken(row[last], room)
		case t.width > 0:
			detail[0] = cut(row[last], room)
		}
		for i, text := range detail {
			if i > 0 || below && text != "" {
				out.WriteString("\n" + indent)
			}
			out.WriteString(t.paint(text))
		}
		out.WriteString("\n")
	}
	for line := range strings.Lines(out.String()) {
		if _, err := fmt.Fprintln(t.w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// cut shortens a text to a number of columns.
func cut(text string, room int) string {
	if runes(text) <= room {
		return text
	}
	return string([]rune(text)[:max(room-1, 0)]) + "…"
}

// broken breaks a text into lines, between words where possible.
func broken(text string, room int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && runes(line)+1+runes(word) <= room {
			line += " " + word
			continue
		}
		if line != "" {
			lines = append(lines, line)
		}
		r := []rune(word)
		for ; len(r) > room; r = r[room:] {
			lines = append(lines, string(r[:room]))
		}
		line = string(r)
	}
	return append(lines, line)
}

// say writes a sentence with an indent.
func (t *terminal) say(indent, text string) { t.put(indent, indent, text) }

// put writes a text that begins after first and continues after indent. First
// may contain colours, and is at least as wide as indent.
func (t *terminal) put(first, indent, text string) {
	lines := []string{safetext.Terminal(text)}
	if t.width > 0 {
		more := strings.Repeat("x", max(runes(colours.ReplaceAllString(first, ""))-runes(indent), 0))
		lines = broken(more+lines[0], t.width-runes(indent))
		lines[0] = strings.TrimPrefix(lines[0], more)
	}
	for n, line := range lines {
		begin := indent
		if n == 0 {
			begin = first
		}
		fmt.Fprintln(t.w, strings.TrimRight(begin+line, " "))
	}
}

// colours are the sequences that paint writes.
var colours = regexp.MustCompile("\x1b\\[[0-9]+m")

// headline writes a line that contains a word for a state.
func (t *terminal) headline(text, word, rest string) {
	text, word, rest = safetext.Terminal(text), safetext.Terminal(word), safetext.Terminal(rest)
	if whole := text + word + rest; t.width > 0 && runes(whole) > t.width {
		t.say("", whole)
		return
	}
	fmt.Fprintln(t.w, text+t.paint(word)+rest)
}

// field writes one line of a list of names and their values.
func (t *terminal) field(name, text string) {
	first := fmt.Sprintf("%10s  ", name)
	t.put(t.paintAs(name, first), strings.Repeat(" ", len(first)), text)
}

// inPhase describes what went wrong and in which phase of a check, once.
func inPhase(phase, text string) string {
	if phase == "" || strings.HasPrefix(text, phase) {
		return text
	}
	return phase + ": " + text
}

func seconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(time.Microsecond)
}

// millis formats a short time for people.
func millis(s float64) string { return short(seconds(s)) }

func short(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// span formats a long time for people.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0s" // the clock was set back
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	text := strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	if d >= 48*time.Hour {
		hours := int64(d.Round(time.Hour) / time.Hour)
		text = fmt.Sprintf("%dd%dh", hours/24, hours%24)
	}
	return text
}
