// Package rawsocket makes system calls on sockets that do not block, without notice to the
// Go scheduler.
//
// A call of x/sys/unix tells the scheduler of its begin and its end, and the first one
// after a pause wakes the runtime's monitor, which then looks every 20 µs for threads that
// do not come back. In a program that mostly waits this takes longer than the calls.
//
// All sockets must be non-blocking. An Errno of 0 means success.
//
// The functions exist on Linux only.
package rawsocket
