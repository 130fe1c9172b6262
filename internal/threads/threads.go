// Package threads makes the Go runtime create threads before they are needed.
//
// The runtime creates one more thread whenever too many are in system calls,
// and ends the program when it cannot. Another process that takes the last task
// of a control group (pids.max) or of a user (RLIMIT_NPROC) could end the
// program this way. The runtime keeps and reuses the threads that it has.
package threads

import (
	"runtime"
	"sync"
)

var reserved struct {
	sync.Mutex
	n int
}

// Reserve makes sure that the runtime has n threads in addition to those that
// goroutines are locked to permanently. It does nothing when as many were
// reserved before.
func Reserve(n int) {
	reserved.Lock()
	defer reserved.Unlock()
	if n <= reserved.n {
		return
	}
	reserved.n = n
	var all, held sync.WaitGroup
	held.Add(n)
	for range n {
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread() // or the thread would end with the goroutine
			held.Done()
			held.Wait() // all of them hold one at the same time
		})
	}
	all.Wait()
}
