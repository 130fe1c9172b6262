//go:build linux

package main

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of this file go straight to the kernel: Go's scheduler is not told
// of them. Its bookkeeping is 0.1 µs a call, and while a thread is known to wait
// in the kernel the runtime's monitor wakes again and again to look at it; both
// are taken from the proxy. A thread that blocks here keeps its slot for Go
// code; a signal of the runtime, which wants to stop it, ends the call with
// EINTR.

func bareRead(fd int, p []byte) (int, error) {
	return bare(syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))) //nolint:gosec // G103: the slice outlives the call
}

func bareWrite(fd int, p []byte) (int, error) {
	return bare(syscall.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))) //nolint:gosec // G103: the slice outlives the call
}

// bareWait is epoll_wait(2), by the call that every port of Linux has.
func bareWait(fd int, events []unix.EpollEvent, ms int) (int, error) {
	return bare(syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(ms), 0, 0)) //nolint:gosec // G103: the slice outlives the call
}

func bare(n, _ uintptr, errno syscall.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
