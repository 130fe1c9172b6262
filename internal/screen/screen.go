// Package screen draws whole pages of text on a terminal and reads its keys, for a
// program that is used like top(1).
//
// It writes only what xterm, screen, tmux and the console of Linux have in common, so it
// needs no description of the terminal. Signals are the business of the caller: Ctrl-C
// and Ctrl-Z remain signals.
package screen

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoTerminal is wrapped by the error of Open when nothing can be drawn.
var ErrNoTerminal = errors.New("the terminal cannot show a page")

const (
	// The size of a terminal that does not report its own.
	usualWidth, usualHeight = 80, 24

	// sequenceTime is the longest time between two bytes of one key. An Escape that
	// nothing follows for so long is the key of this name.
	sequenceTime = 100 * time.Millisecond

	// See console_codes(4) and ctlseqs. Lines that are too long are cut at the edge,
	// because some characters are wider than they are thought to be.
	enter = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[0m\x1b[2J"
	leave = "\x1b[0m\x1b[H\x1b[2J\x1b[?7h\x1b[?25h\x1b[?1049l"
)

// Screen is the controlling terminal of the process.
type Screen struct {
	tty    *os.File
	colour bool

	mu    sync.Mutex // guards everything below
	mode  *unix.Termios
	shown []string // the encoded lines that are on it; nil when that is not known
	width int      // for which shown is
}

// Open takes possession of the controlling terminal: it clears it, hides the cursor and
// lets keys arrive at once and without an echo. Term is the value of TERM; without
// colour there is bold and reverse text only. Close gives the terminal back.
func Open(term string, colour bool) (*Screen, error) {
	switch term {
	case "", "dumb", "unknown":
		return nil, fmt.Errorf("%w: TERM is %q, which stands for one that cannot move its cursor", ErrNoTerminal, term)
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoTerminal, err)
	}
	s := &Screen{tty: tty, colour: colour}
	if err := s.Resume(); err != nil {
		_ = tty.Close()
		return nil, fmt.Errorf("%w: %w", ErrNoTerminal, err)
	}
	return s, nil
}

// Resume takes the terminal back after Suspend, or after another program has changed it.
// The next Draw draws everything.
func (s *Screen) Resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shown = nil
	err := s.control(func(fd int) error {
		if s.mode == nil {
			mode, err := unix.IoctlGetTermios(fd, getTermios)
			if err != nil {
				return os.NewSyscallError("ioctl", err)
			}
			s.mode = mode
		}
		keys := *s.mode
		keys.Lflag &^= unix.ICANON | unix.ECHO
		keys.Lflag |= unix.ISIG
		keys.Iflag &^= unix.IXON // Ctrl-S would stop the output, and with it everything else
		keys.Cc[unix.VMIN], keys.Cc[unix.VTIME] = 1, 0
		return os.NewSyscallError("ioctl", unix.IoctlSetTermios(fd, setTermios, &keys))
	})
	if err != nil {
		return err
	}
	_, err = io.WriteString(s.tty, enter)
	return err
}

// Suspend gives the terminal back as it was, until Resume. It may be called again.
func (s *Screen) Suspend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mode == nil {
		return
	}
	// Nothing can be done about a terminal that has gone.
	_, _ = io.WriteString(s.tty, leave)
	_ = s.control(func(fd int) error { return unix.IoctlSetTermios(fd, setTermios, s.mode) })
	s.mode = nil
}

// Close gives the terminal back as it was, and ends Keys.
func (s *Screen) Close() {
	s.Suspend()
	_ = s.tty.Close()
}

// Size returns the present number of columns and rows.
func (s *Screen) Size() (width, height int) {
	width, height = usualWidth, usualHeight
	_ = s.control(func(fd int) error {
		size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		if err == nil && size.Col > 0 && size.Row > 0 {
			width, height = int(size.Col), int(size.Row)
		}
		return err
	})
	return width, height
}

// Draw shows lines from the top of the terminal, which has the given width, and nothing
// below them. Only lines that have changed are written, all at once, so nothing flickers.
// It draws nothing while the terminal is suspended.
func (s *Screen) Draw(lines []Line, width int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mode == nil {
		return nil
	}
	if width != s.width {
		s.shown = nil // the terminal may have broken the lines that were too long
	}
	var out bytes.Buffer
	encoded := make([]string, len(lines))
	for n, line := range lines {
		encoded[n] = line.Encode(width, s.colour)
		if Width(line.String()) < width { // else it would clear the last column
			encoded[n] += "\x1b[K"
		}
	}
	change(&out, s.shown, encoded)
	s.shown, s.width = encoded, width
	_, err := s.tty.Write(out.Bytes())
	return err
}

// change writes what makes a terminal that shows the lines before show the lines after.
// If before is nil, it can show anything.
func change(out *bytes.Buffer, before, after []string) {
	if before == nil {
		out.WriteString("\x1b[2J")
	}
	for n, line := range after {
		if n < len(before) && before[n] == line {
			continue
		}
		at(out, n)
		out.WriteString(line)
	}
	if len(after) < len(before) {
		at(out, len(after))
		out.WriteString("\x1b[J")
	}
}

// at moves the cursor to the beginning of a line.
func at(out *bytes.Buffer, line int) {
	out.WriteString("\x1b[" + strconv.Itoa(line+1) + ";1H")
}

// Keys passes each key that is pressed to report, until the screen is closed or its
// terminal has gone; then it returns the error.
func (s *Screen) Keys(report func(Key)) error {
	var pending []byte
	buf := make([]byte, 256)
	for {
		wait := time.Time{} // without end
		if len(pending) > 0 {
			wait = time.Now().Add(sequenceTime)
		}
		_ = s.tty.SetReadDeadline(wait) // fails when it is closed, as Read then does
		n, err := s.tty.Read(buf)
		late := errors.Is(err, os.ErrDeadlineExceeded)
		if err != nil && !late {
			return err
		}
		pending = append(pending, buf[:n]...)
		for len(pending) > 0 {
			key, size := decode(pending, late)
			if size == 0 {
				break // the rest of it is to come
			}
			pending = pending[size:]
			if key != None {
				report(key)
			}
		}
	}
}

// control calls f with the descriptor of the terminal.
func (s *Screen) control(f func(fd int) error) error {
	raw, err := s.tty.SyscallConn()
	if err != nil {
		return err
	}
	// Not by Fd, after which no Close would end a Read.
	err2 := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(err, err2)
}
