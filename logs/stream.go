package logs

import (
	"context"
	"io"
	"os"
	"syscall"
	"time"
)

// stream writes lines unchanged.
type stream struct {
	w    io.Writer
	file *os.File // w, if close has to close it
	torn bool     // the last line is written only in part
}

// openFile opens a log file for appending. A named pipe without a reader is an error
// and does not block.
func openFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o640) //nolint:gosec // the operator's path, and a group of the operator's may read the log
}

func (s *stream) write(ctx context.Context, r record) error {
	line := r.line
	if s.torn {
		line = append([]byte{'\n'}, line...)
	}
	if s.file != nil { // a named pipe may be full
		stop := context.AfterFunc(ctx, func() { _ = s.file.SetWriteDeadline(time.Now()) }) // other files have no deadlines
		defer stop()
	}
	n, err := s.w.Write(line)
	if n > 0 {
		s.torn = err != nil
	}
	return err
}

// replace continues with another file.
func (s *stream) replace(file *os.File) {
	s.close()
	s.w, s.file, s.torn = file, file, false
}

func (s *stream) close() {
	if s.file != nil {
		s.file.Close()
	}
}
