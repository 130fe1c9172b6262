package logs

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
)

// syslogPaths is where the local syslog listens: on Linux, on macOS, on the BSDs.
var syslogPaths = []string{"/dev/log", "/var/run/syslog", "/var/run/log"}

const (
	facilityDaemon = 3 << 3

	// maxSyslog is how much rsyslog takes in one message by default.
	maxSyslog = 8 << 10
)

// syslog writes to the local syslog in the form that the C library's syslog(3)
// uses, which rsyslog, syslog-ng, BusyBox and systemd's journal all read. The
// standard library's log/syslog cannot be told how long a write may take.
type syslog struct {
	link *link
	tag  string
	json bool
}

func newSyslog(name string, json bool, paths []string, trouble *trouble) *syslog {
	return &syslog{
		link: newLink(func(ctx context.Context) (net.Conn, error) { return dialSyslog(ctx, paths) }, trouble),
		tag:  fmt.Sprintf("%s[%d]", name, os.Getpid()),
		json: json,
	}
}

// dialSyslog connects to the first socket that takes messages.
func dialSyslog(ctx context.Context, paths []string) (net.Conn, error) {
	var errs []error
	for _, path := range paths {
		for _, network := range []string{"unixgram", "unix"} {
			conn, err := new(net.Dialer).DialContext(ctx, network, path)
			if err == nil && network == "unix" {
				return zeroEnded{conn.(*net.UnixConn)}, nil
			}
			if err == nil {
				return conn, nil
			}
			errs = append(errs, err)
		}
	}
	return nil, errs[0] // of the usual place
}

// zeroEnded ends every message on a stream with a zero byte, as syslog(3) does.
type zeroEnded struct{ *net.UnixConn }

func (c zeroEnded) Write(packet []byte) (int, error) {
	n, err := c.UnixConn.Write(append(slices.Clip(packet), 0))
	return min(n, len(packet)), err
}

func (s *syslog) write(ctx context.Context, r record) error {
	text := bytes.TrimRight(r.line, "\n ")
	if !s.json { // the priority says what hclog put in front: "[WARN]  "
		if _, rest, ok := bytes.Cut(text, []byte("] ")); ok {
			text = bytes.TrimLeft(rest, " ")
		}
	}
	packet := fmt.Appendf(nil, "<%d>%s %s: ", facilityDaemon|severity(r.level), r.at.Format(time.Stamp), s.tag)
	packet = appendEscaped(packet, text, maxSyslog)
	return s.link.send(ctx, packet)
}

func (s *syslog) close() { s.link.close() }

// severity is the level in syslog's numbers, which are GELF's too.
func severity(level hclog.Level) int {
	switch level {
	case hclog.Error:
		return 3
	case hclog.Warn:
		return 4
	case hclog.Trace, hclog.Debug:
		return 7
	case hclog.NoLevel, hclog.Info, hclog.Off:
		return 6
	}
	return 6
}

// appendEscaped appends text to packet, up to a length of limit, in a form that
// stays on one line and shows what it is: control characters, and what is not
// UTF-8, are written as in a Go string.
func appendEscaped(packet, text []byte, limit int) []byte {
	const cut = "…"
	for len(text) > 0 {
		before := len(packet)
		r, size := utf8.DecodeRune(text)
		switch {
		case r == '\n':
			packet = append(packet, `\n`...)
		case r == '\r':
			packet = append(packet, `\r`...)
		case r == '\t':
			packet = append(packet, `\t`...)
		case r == utf8.RuneError && size == 1, unicode.IsControl(r) && r < utf8.RuneSelf:
			packet = fmt.Appendf(packet, `\x%02x`, text[0])
		case unicode.IsControl(r), r == '\u2028', r == '\u2029': // those two end lines as well
			packet = fmt.Appendf(packet, `\u%04x`, r)
		default:
			packet = append(packet, text[:size]...)
		}
		text = text[size:]
		if len(packet) > limit-len(cut) && len(text) > 0 || len(packet) > limit {
			return append(packet[:before], cut...)
		}
	}
	return packet
}
