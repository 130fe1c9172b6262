package hooks

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"understudy/internal/safetext"
)

const (
	// outputLimit bounds what one run can write to the log, in bytes.
	outputLimit = 64 << 10
	// recordCost is counted against outputLimit for each record in addition to
	// its text, so that many short lines are limited as well.
	recordCost = 100
	// lineLimit limits a line, in bytes before escaping.
	lineLimit = 4 << 10
	// tailLimit limits the bytes of the end that are kept for the result.
	tailLimit = 1 << 10
)

// output reads everything that a script writes: without a reader the script would
// block, and a closed pipe would kill it.
type output struct {
	pipe *os.File
	emit func(line string) // gets each line; nil keeps them for rest
	done chan struct{}     // closed at the end of the output

	// Only copy uses these while it runs.
	line    []byte // the line that has begun, cut at lineLimit
	left    int    // of outputLimit
	lines   []string
	dropped int64 // bytes

	mu   sync.Mutex // guards last
	last []byte     // the end of the output; cut when its length is tailLimit
}

// newOutput returns an output that owns pipe.
func newOutput(pipe *os.File, emit func(string)) *output {
	return &output{pipe: pipe, emit: emit, done: make(chan struct{}), left: outputLimit}
}

// copy reads until the end of the output, or until finish ends it.
func (o *output) copy() {
	defer close(o.done)
	defer o.pipe.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := o.pipe.Read(buf)
		o.write(buf[:n])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			o.readAvailable(buf)
		}
		if err != nil {
			break
		}
	}
	o.endLine()
}

// readAvailable reads what is in the pipe and does not wait for more. A read after
// the deadline does not return it, and on a busy machine it may be all output.
func (o *output) readAvailable(buf []byte) {
	conn, err := o.pipe.SyscallConn()
	if err != nil || o.pipe.SetReadDeadline(time.Time{}) != nil {
		return
	}
	for total := 0; total < outputLimit; { // another process may still be filling it
		var n int
		if conn.Read(func(fd uintptr) bool { n, err = syscall.Read(int(fd), buf); return true }) != nil || err != nil || n <= 0 {
			return
		}
		o.write(buf[:n])
		total += n
	}
}

// finish ends copy after grace, if it has not ended with the output, and waits for
// it.
func (o *output) finish(grace time.Duration) {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-o.done:
		return
	case <-timer.C:
	}
	_ = o.pipe.SetReadDeadline(time.Unix(1, 0)) // fails only if copy is at its end
	<-o.done
}

// write processes the next bytes of the output.
func (o *output) write(p []byte) {
	o.keep(p)
	for len(p) > 0 && o.left > 0 {
		part, ended := p, false
		if i := bytes.IndexByte(p, '\n'); i >= 0 {
			part, ended = p[:i], true
			p = p[i+1:]
		} else {
			p = nil
		}
		room := min(lineLimit-len(o.line), len(part))
		o.line = append(o.line, part[:room]...)
		o.dropped += int64(len(part) - room)
		if ended {
			o.endLine()
		}
	}
	o.dropped += int64(len(p))
}

// endLine emits or keeps the current line, unless it is empty.
func (o *output) endLine() {
	line := bytes.TrimSuffix(o.line, []byte{'\r'})
	text := safetext.Escape(string(line))
	o.line = o.line[:0]
	if text == "" {
		return
	}
	o.left -= len(text) + recordCost
	switch {
	case o.left < 0:
		o.dropped += int64(len(line))
	case o.emit != nil:
		o.emit(text)
	default:
		o.lines = append(o.lines, text)
	}
}

// keep updates the end of the output that is kept.
func (o *output) keep(p []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p = p[max(0, len(p)-tailLimit):]
	keep := min(len(o.last), tailLimit-len(p))
	o.last = append(o.last[:copy(o.last, o.last[len(o.last)-keep:])], p...)
}

// tail returns the end of the output in one line, and the last line of it that is
// not blank, cut at reasonLimit.
func (o *output) tail() (text, line string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	last := o.last
	if len(last) == tailLimit { // cut: begin with a whole line if there is one
		if i := bytes.IndexByte(last, '\n'); i >= 0 && i+1 < len(bytes.TrimSpace(last)) {
			last = last[i+1:]
		}
	}
	last = bytes.TrimSpace(last)
	end := bytes.TrimSpace(last[bytes.LastIndexByte(last, '\n')+1:])
	return safetext.Escape(string(last)), string(safetext.Append(nil, string(end), reasonLimit))
}

// rest returns the lines that were not emitted and the number of bytes that
// were dropped. It is called after finish.
func (o *output) rest() (lines []string, dropped int64) { return o.lines, o.dropped }
