package screen

import (
	"bytes"
	"unicode/utf8"
)

// Key is a key: the character that it types, or one of the constants. A key with Ctrl
// types a control character, such as 0x0c for Ctrl-L.
type Key rune

// The keys that type no character. None is what no constant stands for.
const (
	None Key = -1 - iota
	Up
	Down
	Left
	Right
	PageUp
	PageDown
	Home
	End
	F1
	F9
	F10

	Tab       Key = '\t'
	Enter     Key = '\r'
	Escape    Key = 0x1b
	Backspace Key = 0x7f
)

// sequences are those that terminals send for a key: xterm in both of its modes, screen,
// rxvt and the console of Linux.
var sequences = map[string]Key{
	"\x1b[A": Up, "\x1bOA": Up,
	"\x1b[B": Down, "\x1bOB": Down,
	"\x1b[C": Right, "\x1bOC": Right,
	"\x1b[D": Left, "\x1bOD": Left,
	"\x1b[5~": PageUp, "\x1b[6~": PageDown,
	"\x1b[H": Home, "\x1bOH": Home, "\x1b[1~": Home, "\x1b[7~": Home,
	"\x1b[F": End, "\x1bOF": End, "\x1b[4~": End, "\x1b[8~": End,
	"\x1bOP": F1, "\x1b[11~": F1, "\x1b[[A": F1,
	"\x1b[20~": F9, "\x1b[21~": F10,
}

// longestSequence limits the bytes of a sequence.
const longestSequence = 32

// decode returns the first key in text and how many bytes it has; zero when the rest of
// it is still to come. If late, nothing more comes.
func decode(text []byte, late bool) (key Key, size int) {
	if text[0] != byte(Escape) {
		return decodeCharacter(text, late)
	}
	if len(text) == 1 {
		if late {
			return Escape, 1
		}
		return None, 0
	}
	size = sequenceSize(text)
	switch {
	case size == 0 && len(text) < longestSequence && !late:
		return None, 0
	case size <= 1: // by itself, or followed by what is no sequence
		return Escape, 1
	}
	if k, ok := sequences[string(text[:size])]; ok {
		return k, size
	}
	return None, size
}

// decodeCharacter is decode for anything but a sequence.
func decodeCharacter(text []byte, late bool) (key Key, size int) {
	switch {
	case text[0] == '\n':
		return Enter, 1
	case text[0] == '\b':
		return Backspace, 1
	case !utf8.FullRune(text) && !late:
		return None, 0
	}
	r, size := utf8.DecodeRune(text)
	if r == utf8.RuneError {
		return None, size
	}
	return Key(r), size
}

// sequenceSize returns the bytes of the sequence that text, of at least two bytes, begins
// with; zero when its end is missing. See ECMA-48, 5.4.
func sequenceSize(text []byte) int {
	switch text[1] {
	case '[':
		if bytes.HasPrefix(text, []byte("\x1b[[")) { // a function key of the console of Linux
			if len(text) < 4 {
				return 0
			}
			return 4
		}
		for i, b := range text[2:] {
			if b >= 0x40 && b <= 0x7e {
				return i + 3
			}
		}
		return 0
	case 'O':
		if len(text) < 3 {
			return 0
		}
		return 3
	case byte(Escape):
		return 1 // twice
	}
	return 2 // a key with Alt
}
