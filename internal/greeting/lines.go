package greeting

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
)

// maxLines limits the lines before the greeting or of it.
const maxLines = 100

// smtp reads the greeting of a mail server (RFC 5321, section 4.2) and sends QUIT. Mail
// servers log such a connection as they log every other, without a warning.
func smtp(in *bufio.Reader, conn net.Conn, _ string) error {
	code, text, err := reply(in)
	if err != nil {
		return err
	}
	if code != "220" {
		return wrong("%s, want 220", quote(code+" "+text))
	}
	return quit(conn)
}

// ftp reads the greeting of a file server (RFC 959, section 5.4) and sends QUIT. Such a
// server may announce with 120 that its greeting takes a while.
func ftp(in *bufio.Reader, conn net.Conn, _ string) error {
	code, text, err := reply(in)
	if err == nil && code == "120" {
		code, text, err = reply(in)
	}
	if err != nil {
		return err
	}
	if code != "220" {
		return wrong("%s, want 220", quote(code+" "+text))
	}
	return quit(conn)
}

// quit sends QUIT. The server has answered already, so what follows does not count.
func quit(conn net.Conn) error {
	_, err := io.WriteString(conn, "QUIT\r\n")
	return err
}

// reply reads a reply of three digits and a text, of one or several lines, and returns
// the text of the first one.
func reply(in *bufio.Reader) (code, text string, err error) {
	first, err := line(in)
	if err != nil {
		return "", "", err
	}
	if len(first) < 3 || strings.Trim(first[:3], "0123456789") != "" {
		return "", "", wrong("%s, want a reply of three digits", quote(first))
	}
	code, text = first[:3], first[3:]
	last := func(l string) bool { return l == code || strings.HasPrefix(l, code+" ") }
	if !last(first) && !strings.HasPrefix(text, "-") {
		return "", "", wrong("%s, want a reply of three digits", quote(first))
	}
	for l, n := first, 0; !last(l); n++ {
		if n == maxLines {
			return "", "", wrong("a reply of more than %d lines", maxLines)
		}
		if l, err = line(in); err != nil {
			return "", "", err
		}
	}
	return code, strings.TrimLeft(text, " -"), nil
}

// ssh reads the identification of a server (RFC 4253, section 4.2), sends one and leaves.
// OpenSSH then logs "Connection closed by …" at the level INFO. Without ours it logs an
// error too; after a proper SSH_MSG_DISCONNECT it logs two lines. Since version 9.8 it
// counts a second of penalty for each end before a login, whatever its form.
func ssh(in *bufio.Reader, conn net.Conn, _ string) error {
	var last string
	for range maxLines {
		l, err := line(in)
		switch {
		case err != nil && last != "" && errors.Is(err, io.EOF):
			return wrong("%s, and closed the connection", quote(last)) // like "Exceeded MaxStartups"
		case err != nil:
			return err
		case strings.HasPrefix(l, "SSH-2.0-"), strings.HasPrefix(l, "SSH-1.99-"):
			_, err := io.WriteString(conn, "SSH-2.0-understudy\r\n")
			return err
		case strings.HasPrefix(l, "SSH-"):
			return wrong("%s, want version 2", quote(l))
		}
		last = l
	}
	return wrong("%d lines and no SSH-2.0-", maxLines)
}

// line reads a line and returns it without its end.
func line(in *bufio.Reader) (string, error) {
	l, err := in.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", wrong("%s, and no end of the line in %d bytes", quote(l), len(l))
	case err != nil && len(l) > 0 && errors.Is(err, io.EOF):
		return "", wrong("%s, and no end of the line", quote(l))
	case err != nil:
		return "", err
	}
	return strings.TrimRight(string(l), "\r\n"), nil
}
