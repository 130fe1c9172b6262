// Package logs makes the program's logger and brings its lines to where the
// operator wants them: a stream of the process, a file, the local syslog, or a
// GELF collector over TCP or UDP.
//
// Every output has a bounded queue, and logging only queues the line: a reader that
// stops, a full disk or an unreachable collector delays no caller. Lines that do not
// fit are dropped and counted, and the log reports their number as soon as it accepts
// lines again.
//
// A [Log] owns its one goroutine and every descriptor that it opens. When [Log.Close]
// returns they are closed, except for a write that hangs in the kernel: only its
// reader or the end of the process can end it.
package logs

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/redact"
)

// The values of [Config.Output] that are no path.
const (
	Stderr  = "stderr"
	Stdout  = "stdout"
	Syslog  = "syslog"
	GELFTCP = "gelf+tcp://" // followed by host:port
	GELFUDP = "gelf+udp://" // followed by host:port
)

// reopenTimeout limits the time in which Reopen writes the queued lines to the old file.
const reopenTimeout = 5 * time.Second

// errBlocked is the error of a file that is not reopened.
var errBlocked = errors.New("the old file accepts no writes")

// Config configures a [Log].
type Config struct {
	// Name is the name of the root logger, syslog's tag, and the prefix of
	// messages on Stderr.
	Name string

	// Level is trace, debug, info, warn, error or off. Required.
	Level string

	// JSON makes every line an object. GELF is JSON in any case.
	JSON bool

	// Output is [Stderr], [Stdout], [Syslog], [GELFTCP] or [GELFUDP] with
	// host:port behind it, or an absolute path. Required.
	Output string

	// Stdout and Stderr are the streams of the process; the Log does not close
	// them. Failures of another output are reported on Stderr: when it begins
	// to fail, once a minute at most, and when it works again. Nil is that of
	// the os package.
	Stdout, Stderr io.Writer
}

// Log is an open log. Its methods may be called at any time and from any
// goroutine.
type Log struct {
	logger hclog.Logger
	queue  *queue
	file   *stream // nil when the output is not a file
	path   string  // of file
}

// Open opens the output and starts the queue in front of it. A file that
// cannot be opened is an error that names its path. An unreachable syslog or collector
// is no error: it is tried again, and lines that do not fit into the queue meanwhile
// are lost.
func Open(cfg Config) (*Log, error) {
	level, err := parseLevel(cfg.Level)
	if err != nil {
		return nil, err
	}
	if cfg.Stdout == nil {
		cfg.Stdout = os.Stdout
	}
	if cfg.Stderr == nil {
		cfg.Stderr = os.Stderr
	}
	options := hclog.LoggerOptions{Name: cfg.Name, Level: level, JSONFormat: cfg.JSON}
	trouble := &failures{who: cfg.Name, output: cfg.Output, w: cfg.Stderr}
	l := &Log{}
	var out output
	switch address, network := collector(cfg.Output); {
	case cfg.Output == Stderr:
		out, trouble.w = &stream{w: cfg.Stderr}, io.Discard
	case cfg.Output == Stdout:
		out, trouble.w = &stream{w: cfg.Stdout}, io.Discard
	case cfg.Output == Syslog:
		out, options.DisableTime = newSyslog(cfg.Name, cfg.JSON, syslogPaths, trouble), !cfg.JSON
	case network != "":
		if _, _, err := net.SplitHostPort(address); err != nil {
			return nil, fmt.Errorf("log output %s: the port is missing: want %sHOST:PORT or %sHOST:PORT", redact.URL(cfg.Output), GELFTCP, GELFUDP)
		}
		out, options.JSONFormat, options.DisableTime = newGELF(network, address, trouble), true, true
	case filepath.IsAbs(cfg.Output):
		file, err := openFile(cfg.Output)
		if err != nil {
			return nil, fmt.Errorf("log output: %w", err)
		}
		l.file, l.path = &stream{w: file, file: file}, cfg.Output
		out = l.file
	default:
		return nil, fmt.Errorf("log output %q is not one of %s, %s, %s, %sHOST:PORT, %sHOST:PORT or an absolute path",
			cfg.Output, Stderr, Stdout, Syslog, GELFTCP, GELFUDP)
	}
	l.open(options, out, trouble)
	return l, nil
}

// open starts the queue and makes the logger that writes to it.
func (l *Log) open(options hclog.LoggerOptions, out output, trouble *failures) {
	l.queue = newQueue(out, trouble, options)
	options.Output = l.queue
	l.logger = hclog.New(&options)
}

// collector splits the output of a GELF collector; network is empty for any
// other.
func collector(output string) (address, network string) {
	if address, ok := strings.CutPrefix(output, GELFTCP); ok {
		return address, "tcp"
	}
	if address, ok := strings.CutPrefix(output, GELFUDP); ok {
		return address, "udp"
	}
	return "", ""
}

func parseLevel(name string) (hclog.Level, error) {
	level := hclog.LevelFromString(name)
	if level == hclog.NoLevel {
		return level, fmt.Errorf("log level %q is not one of trace, debug, info, warn, error or off", name)
	}
	return level, nil
}

// Logger returns the root logger.
func (l *Log) Logger() hclog.Logger { return l.logger }

// Crowded reports whether the queue is half full. A caller that logs much, and can
// wait, waits then: the other half is for everybody else.
func (l *Log) Crowded() bool {
	return len(l.queue.records) > queueLines/2 || l.queue.waiting.Load() > queueBytes/2
}

// Dropped returns how many lines did not fit into the queue, or could not be written.
func (l *Log) Dropped() uint64 { return l.queue.lost.Load() }

// SetLevel changes the level of the root logger and of all its sub-loggers.
// An unknown name changes nothing.
func (l *Log) SetLevel(name string) {
	if level, err := parseLevel(name); err == nil {
		l.logger.SetLevel(level)
	}
}

// Reopen opens a file anew by its path, after logrotate(8) has moved it away,
// and does nothing for other outputs. Lines that are queued go to the old
// file, which is closed when Reopen returns nil; later ones go to the new one.
// If the new file cannot be opened, or nothing can be written to the old one for 5s,
// Reopen returns an error and keeps the old file.
func (l *Log) Reopen() error {
	if l.file == nil {
		return nil
	}
	file, err := openFile(l.path)
	if err != nil {
		return fmt.Errorf("log output: %w", err)
	}
	if err := l.queue.do(func() { l.file.replace(file) }, reopenTimeout); err != nil {
		file.Close()
		return fmt.Errorf("log output: reopen %s: %w", l.path, err)
	}
	return nil
}

// Close waits until all queued lines are written, or until none was written for
// timeout, so that a blocked reader does not delay the end of the program. Later lines
// are lost.
func (l *Log) Close(timeout time.Duration) { l.queue.close(timeout) }
