package hooks

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"
)

const (
	// outputLimit bounds what one run can write to the log, in bytes.
	outputLimit = 64 << 10
	// recordCost is what a record takes of outputLimit beside its text, so
	// that many short lines are bounded as one long one is.
	recordCost = 100
	// lineLimit is where a line is cut, in bytes before escaping.
	lineLimit = 4 << 10
	// tailLimit is how much of the end is kept for the result.
	tailLimit = 1 << 10
)

// output reads what a script writes, for as long as it writes: a script whose
// output nobody reads would hang, one whose pipe is closed would be killed.
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
	last []byte     // at most tailLimit, and whether it is cut shows in its length
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
			o.lastLook(buf)
		}
		if err != nil {
			break
		}
	}
	o.endLine()
}

// lastLook reads what is in the pipe and does not wait for more. A deadline
// that has passed hides it, and on a busy machine it may be all there was.
func (o *output) lastLook(buf []byte) {
	conn, err := o.pipe.SyscallConn()
	if err != nil || o.pipe.SetReadDeadline(time.Time{}) != nil {
		return
	}
	for total := 0; total < outputLimit; { // somebody may be filling it
		var n int
		if conn.Read(func(fd uintptr) bool { n, err = syscall.Read(int(fd), buf); return true }) != nil || err != nil || n <= 0 {
			return
		}
		o.write(buf[:n])
		total += n
	}
}

// finish ends copy after grace, if the end of the output has not done so, and
// waits for it.
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

// write takes the next bytes of the output.
func (o *output) write(p []byte) {
	o.remember(p)
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

// endLine hands on the line that has begun, if it says anything.
func (o *output) endLine() {
	line := bytes.TrimSuffix(o.line, []byte{'\r'})
	text := escape(line)
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

// remember keeps the end of the output.
func (o *output) remember(p []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p = p[max(0, len(p)-tailLimit):]
	keep := min(len(o.last), tailLimit-len(p))
	o.last = append(o.last[:copy(o.last, o.last[len(o.last)-keep:])], p...)
}

// tail returns the end of the output in one line.
func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	last := o.last
	if len(last) == tailLimit { // cut: begin with a whole line if there is one
		if i := bytes.IndexByte(last, '\n'); i >= 0 && i+1 < len(bytes.TrimSpace(last)) {
			last = last[i+1:]
		}
	}
	return escape(bytes.TrimSpace(last))
}

// rest returns the lines that were not emitted and the number of bytes that
// were dropped. It is called after finish.
func (o *output) rest() (lines []string, dropped int64) { return o.lines, o.dropped }

// escape returns p with everything that is not printable escaped as in a Go
// string: control characters, the invisible ones that change how a text reads,
// and bytes that are not UTF-8. Backslashes are left alone, for the sake of
// regular expressions and paths.
func escape(p []byte) string {
	if printable(p) {
		return string(p)
	}
	out := make([]byte, 0, len(p)+16)
	for len(p) > 0 {
		c, size := utf8.DecodeRune(p)
		switch {
		case c == utf8.RuneError && size == 1:
			const hex = "0123456789abcdef"
			out = append(out, '\\', 'x', hex[p[0]>>4], hex[p[0]&15])
		case strconv.IsPrint(c):
			out = append(out, p[:size]...)
		default:
			quoted := strconv.AppendQuoteRune(nil, c)
			out = append(out, quoted[1:len(quoted)-1]...)
		}
		p = p[size:]
	}
	return string(out)
}

// printable reports whether escape has nothing to do. Most lines are so.
func printable(p []byte) bool {
	for _, b := range p {
		if b < ' ' || b > '~' {
			return false
		}
	}
	return true
}
