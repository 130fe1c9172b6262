package screen

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"understudy/internal/safetext"
)

// Style is how a text looks: one colour, and any of the others.
type Style uint8

// The styles.
const (
	Green Style = 1 + iota
	Red
	Yellow
	colours Style = 3

	Bold    Style = 4
	Reverse Style = 8
	Plain   Style = 0
)

// Text is a text in one style. It may come from elsewhere: it is made safe when it is
// drawn.
type Text struct {
	Style Style
	Text  string
}

// Line is one line of a screen.
type Line []Text

// String returns the text of a line, made safe and without its styles.
func (l Line) String() string {
	var all strings.Builder
	for _, t := range l {
		all.WriteString(safetext.Terminal(t.Text))
	}
	return all.String()
}

// Encode returns what a terminal has to get in order to show the beginning of l that fits
// into width columns.
func (l Line) Encode(width int, colour bool) string {
	var out strings.Builder
	for _, t := range l {
		text := []rune(safetext.Terminal(t.Text))
		text = text[:min(len(text), max(width, 0))]
		width -= len(text)
		if len(text) == 0 {
			continue
		}
		begin := t.Style.begin(colour)
		out.WriteString(begin)
		out.WriteString(string(text))
		if begin != "" {
			out.WriteString("\x1b[0m")
		}
	}
	return out.String()
}

// begin returns the sequence that begins a style; empty for Plain.
func (s Style) begin(colour bool) string {
	var codes []string
	if s&Bold != 0 {
		codes = append(codes, "1")
	}
	if s&Reverse != 0 {
		codes = append(codes, "7")
	}
	if c := s & colours; colour && c != 0 {
		codes = append(codes, strconv.Itoa([]int{Green: 32, Red: 31, Yellow: 33}[c]))
	}
	if len(codes) == 0 {
		return ""
	}
	return "\x1b[" + strings.Join(codes, ";") + "m"
}

// Width returns approximately how many columns a text takes.
func Width(text string) int { return utf8.RuneCountInString(text) }
