// Package logs makes the program's logger and brings its lines to where the
// operator wants them: a stream of the process, a file, the local syslog, or a
// GELF collector over TCP or UDP.
//
// Every output stands behind a bounded queue, and a line that is logged is put
// there and nothing more: a reader who stops, a disk that is full or a
// collector that is gone delays nobody. What finds no room is dropped and
// counted, and the log itself says how much was lost as soon as it takes lines
// again.
//
// The package decides nothing about what is logged. A [Log] owns its one
// goroutine and every descriptor that it opens; when [Log.Close] returns they
// are gone, but for a write that hangs in the kernel: nothing can end it but
// its reader, or the end of the process.
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
)

// What [Config.Output] says beside a path.
const (
	Stderr  = "stderr"
	Stdout  = "stdout"
	Syslog  = "syslog"
	GELFTCP = "gelf+tcp://" // followed by host:port
	GELFUDP = "gelf+udp://" // followed by host:port
)

// reopenPatience is how long Reopen waits for what is queued for the old file.
const reopenPatience = 5 * time.Second

// errStuck is why a file is not opened anew.
var errStuck = errors.New("the old file takes nothing")

// Config says what is logged, how and where. Zero fields mean their defaults.
type Config struct {
	// Name is the name of the root logger, syslog's tag, and who speaks on
	// Stderr.
	Name string

	// Level is trace, debug, info, warn, error or off. Defaults to info.
	Level string

	// JSON makes every line an object. GELF is JSON in any case.
	JSON bool

	// Output is [Stderr], [Stdout], [Syslog], [GELFTCP] or [GELFUDP] with
	// host:port behind it, or an absolute path. Defaults to [Stderr].
	Output string

	// Stdout and Stderr are the streams of the process, and stay the
	// caller's. Another output's trouble is told on Stderr: when it begins to
	// fail, once a minute at most, and when it works again. Default to those
	// of the os package.
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
// cannot be opened is an error that names its path. Syslog and collectors that
// cannot be reached are none: they are tried again until they can, and what
// does not fit into the queue meanwhile is lost.
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
	trouble := &trouble{who: cfg.Name, output: cfg.Output, w: cfg.Stderr}
	l := &Log{}
	var out output
	switch address, network := collector(cfg.Output); {
	case cfg.Output == "" || cfg.Output == Stderr:
		out, trouble.w = &stream{w: cfg.Stderr}, io.Discard
	case cfg.Output == Stdout:
		out, trouble.w = &stream{w: cfg.Stdout}, io.Discard
	case cfg.Output == Syslog:
		out, options.DisableTime = newSyslog(cfg.Name, cfg.JSON, syslogPaths, trouble), !cfg.JSON
	case network != "":
		if _, _, err := net.SplitHostPort(address); err != nil {
			return nil, fmt.Errorf("log output %s: %w", cfg.Output, err)
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
func (l *Log) open(options hclog.LoggerOptions, out output, trouble *trouble) {
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
	if name == "" {
		return hclog.Info, nil
	}
	level := hclog.LevelFromString(name)
	if level == hclog.NoLevel {
		return level, fmt.Errorf("log level %q is not one of trace, debug, info, warn, error or off", name)
	}
	return level, nil
}

// Logger returns the root logger.
func (l *Log) Logger() hclog.Logger { return l.logger }

// SetLevel changes the level of the root logger and of all that came from it.
// An unknown name changes nothing.
func (l *Log) SetLevel(name string) {
	if level, err := parseLevel(name); err == nil {
		l.logger.SetLevel(level)
	}
}

// Lost returns how many lines were lost so far.
func (l *Log) Lost() uint64 { return l.queue.lost.Load() }

// Reopen opens a file anew by its path, after logrotate(8) has moved it away,
// and does nothing for other outputs. Lines that are queued go to the old
// file, which is closed when Reopen returns nil; later ones go to the new one.
// If the new file cannot be opened, or the old one takes nothing for 5s, that
// is an error and the old one stays.
func (l *Log) Reopen() error {
	if l.file == nil {
		return nil
	}
	file, err := openFile(l.path)
	if err != nil {
		return fmt.Errorf("log output: %w", err)
	}
	if err := l.queue.do(func() { l.file.replace(file) }, reopenPatience); err != nil {
		file.Close()
		return fmt.Errorf("log output: reopen %s: %w", l.path, err)
	}
	return nil
}

// Close waits until everything that was logged is written, and gives up when
// nothing moves for patience: the end of the program waits for no reader. What
// is logged later is lost.
func (l *Log) Close(patience time.Duration) { l.queue.close(patience) }
