// Package safetext makes untrusted text safe to show: on one line, in UTF-8,
// and without characters that a terminal or a log reader would act on.
package safetext

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// cut is the end of a text that was shortened.
const cut = "…"

// Escape returns text with everything that is not printable escaped as in a Go
// string: control characters, the invisible ones that change how a text reads,
// and bytes that are not UTF-8. Backslashes are left alone, for the sake of
// regular expressions and paths, so the text cannot always be read back.
func Escape(text string) string {
	if plain(text) {
		return text
	}
	return string(Append(make([]byte, 0, len(text)+16), text, 0))
}

// Quoted returns text as [Escape] does, with backslashes and double quotes
// escaped as well: between double quotes it can be read back.
func Quoted(text string) string {
	if strings.ContainsAny(text, `\"`) {
		text = strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text)
	}
	return Escape(text)
}

// Append appends text to dst as [Escape] does. It keeps dst at limit bytes at
// most and ends a shortened text with "…"; zero is no limit.
func Append(dst []byte, text string, limit int) []byte {
	for len(text) > 0 {
		before := len(dst)
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && size == 1:
			const hex = "0123456789abcdef"
			dst = append(dst, '\\', 'x', hex[text[0]>>4], hex[text[0]&15])
		case strconv.IsPrint(r):
			dst = append(dst, text[:size]...)
		default:
			quoted := strconv.AppendQuoteRune(dst, r)
			copy(quoted[before:], quoted[before+1:])
			dst = quoted[:len(quoted)-2]
		}
		text = text[size:]
		if limit > 0 && (len(dst) > limit-len(cut) && text != "" || len(dst) > limit) {
			return append(dst[:before], cut...)
		}
	}
	return dst
}

// plain reports whether Escape would change nothing, as for most lines.
func plain(text string) bool {
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return false
		}
	}
	return true
}

// HasControl reports whether text contains a control character of ASCII. One of them
// could end a line of a protocol or a log.
func HasControl(text string) bool {
	return strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// Line returns the words of text with one space between them, so that it is one
// line.
func Line(text string) string { return strings.Join(strings.Fields(text), " ") }

// Terminal returns text with characters that could move a cursor, change a
// colour or turn the direction of writing replaced by a dot, and line breaks
// and tabs by a space. Its visible width does not change.
func Terminal(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case !strconv.IsPrint(r):
			return '·'
		}
		return r
	}, text)
}
