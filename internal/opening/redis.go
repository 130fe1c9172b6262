package opening

import (
	"bytes"
	"strconv"
)

// command is a command of Redis: how many words it has, the first two, and
// whether a word is REDIRECT.
type command struct {
	words        int
	name, second []byte
	redirect     bool
}

func (c *command) add(word []byte) {
	switch c.words {
	case 0:
		c.name = word
	case 1:
		c.second = word
	}
	c.redirect = c.redirect || bytes.EqualFold(word, []byte("REDIRECT"))
	c.words++
}

// harmless reports whether c changes at most the connection it arrives on.
//
// Of CLIENT, these are not: KILL, PAUSE, UNPAUSE and UNBLOCK, which act on other
// connections; TRACKING with REDIRECT, which names another connection of the
// same host; and REPLY, after which there may be no answer.
func (c *command) harmless() bool {
	switch {
	case c.is("PING"):
		return c.words <= 2
	case c.is("ECHO"):
		return c.words == 2
	case c.is("AUTH"):
		return c.words == 2 || c.words == 3
	case c.is("SELECT"):
		return c.words == 2 && all(c.second, digit) && len(c.second) > 0
	case c.is("HELLO"):
		return c.words == 1 || all(c.second, digit) && len(c.second) > 0
	case c.is("CLIENT"):
		for _, name := range []string{"SETINFO", "SETNAME", "GETNAME", "ID", "INFO", "NO-EVICT", "NO-TOUCH", "TRACKING"} {
			if bytes.EqualFold(c.second, []byte(name)) {
				return !c.redirect
			}
		}
	}
	return false
}

func (c *command) is(name string) bool { return bytes.EqualFold(c.name, []byte(name)) }

// commands reports whether b is one or several whole commands of Redis that are
// harmless.
func commands(b []byte) bool {
	for len(b) > 0 {
		var c command
		var ok bool
		if b[0] == '*' {
			b, ok = c.readArray(b)
		} else {
			b, ok = c.readInline(b)
		}
		if !ok || !c.harmless() {
			return false
		}
	}
	return true
}

// readArray reads a command as an array of bulk strings: "*1\r\n$4\r\nPING\r\n".
func (c *command) readArray(b []byte) (rest []byte, ok bool) {
	words, b, ok := cutNumber(b, '*')
	for ok && c.words < words {
		var size int
		if size, b, ok = cutNumber(b, '$'); !ok || len(b) < size+2 || b[size] != '\r' || b[size+1] != '\n' {
			return nil, false
		}
		c.add(b[:size])
		b = b[size+2:]
	}
	return b, ok
}

// readInline reads a command as a line of words, as people type it. A line with
// quotes, which can hold spaces and more, is not read.
func (c *command) readInline(b []byte) (rest []byte, ok bool) {
	line, rest, ok := bytes.Cut(b, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if !ok || !all(line, inline) {
		return nil, false
	}
	for {
		line = bytes.TrimLeft(line, " ")
		if len(line) == 0 {
			return rest, true
		}
		var word []byte
		word, line, _ = bytes.Cut(line, []byte(" "))
		c.add(word)
	}
}

// cutNumber cuts a line off b that is the mark and a number.
func cutNumber(b []byte, mark byte) (number int, rest []byte, ok bool) {
	line, rest, ok := cutLine(b)
	if !ok || len(line) < 2 || len(line) > 6 || line[0] != mark || !all(line[1:], digit) {
		return 0, nil, false
	}
	number, err := strconv.Atoi(string(line[1:]))
	return number, rest, err == nil
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

func inline(c byte) bool { return c >= ' ' && c != 0x7f && c != '"' && c != '\'' }
