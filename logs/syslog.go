package logs

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/safetext"
)

// syslogPaths are the sockets of the local syslog on Linux, macOS and the BSDs.
var syslogPaths = []string{"/dev/log", "/var/run/syslog", "/var/run/log"}

const (
	facilityDaemon = 3 << 3

	// maxSyslog is the default limit of rsyslog for one message, in bytes.
	maxSyslog = 8 << 10
)

// syslog writes to the local syslog in the form that the C library's syslog(3)
// uses, which rsyslog, syslog-ng, BusyBox and systemd's journal all read. The
// standard library's log/syslog has no write timeout.
type syslog struct {
	link *link
	tag  string
	json bool
}

func newSyslog(name string, json bool, paths []string, trouble *failures) *syslog {
	return &syslog{
		link: newLink(func(ctx context.Context) (net.Conn, error) { return dialSyslog(ctx, paths) }, trouble),
		tag:  fmt.Sprintf("%s[%d]", name, os.Getpid()),
		json: json,
	}
}

// dialSyslog connects to the first socket that accepts messages.
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
	// The priority contains the level, so hclog's prefix, "[WARN]  ", is removed.
	// hclog has no option to omit the level, and its sinks get fields instead of
	// a line, which would need a second text format.
	if !s.json {
		if _, rest, ok := bytes.Cut(text, []byte("] ")); ok {
			text = bytes.TrimLeft(rest, " ")
		}
	}
	packet := fmt.Appendf(nil, "<%d>%s %s: ", facilityDaemon|severity(r.level), r.at.Format(time.Stamp), s.tag)
	packet = safetext.Append(packet, string(text), maxSyslog)
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
