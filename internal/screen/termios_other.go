//go:build !linux

package screen

import "golang.org/x/sys/unix"

// See termios(4).
const (
	getTermios = unix.TIOCGETA
	setTermios = unix.TIOCSETA
)
