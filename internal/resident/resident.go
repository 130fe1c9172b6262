// Package resident returns the memory that only the start of a process needed.
//
// Every package that is linked runs some code at the start, from one end of the
// program's file to the other, and the kernel maps 64 KiB around each place.
// Most of that is never used again.
package resident

import "runtime/debug"

// Trim returns to the system the heap that is free and the pages of the program's
// file. What the process still needs of the file is mapped again when it is used,
// from the page cache, 64 KiB at a time. An error means that those pages stay; the
// process works as before.
func Trim() error {
	debug.FreeOSMemory()
	return unmapFile()
}
