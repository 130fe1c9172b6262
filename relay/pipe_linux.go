//go:build !portable

package relay

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is requested with F_SETPIPE_SZ. Every pipe counts in full against
	// the user's fs.pipe-user-pages-soft (64 MiB by default), used or not; see
	// pipe(7).
	pipeSize = 512 << 10

	// pipesMax is the number of pipes that all loops together hold: 48 MiB, below that
	// limit with room for the other programs of the same user.
	pipesMax = 48 << 20 / pipeSize

	// pipesPerLoop is the most that one loop makes.
	pipesPerLoop = 64

	// pipeSmallest is the least that is worth two system calls. Past the
	// user's limit the system hands out pipes of 8 KiB and refuses to enlarge
	// them.
	pipeSmallest = 64 << 10

	// pipeRest is the time for which an unused pipe stays in the pool, and how long the
	// pool requests no pipe after the system refused one.
	pipeRest = time.Second
)

// pipe is a buffer in the kernel between two sockets. One direction of one
// connection owns it from take to put.
//
// Invariant: bytes are spliced in only while n is 0, so EAGAIN from that
// splice is always about the socket, never about the pipe.
type pipe struct {
	r, w int32
	n    int // bytes in the pipe
}

// pipes is a loop's pool.
//
// Invariant: a pipe in the pool is empty. One that may hold bytes is closed
// instead of given back.
type pipes struct {
	all   []pipe        // by index; a closed one has r < 0
	free  []int32       // indexes of open, unused pipes, most recently used last
	holes []int32       // indexes of closed ones
	limit int           // how many this loop makes at most
	total *atomic.Int32 // open ones of all loops
	below int32         // every descriptor of a pipe is lower; see pipesBelow
	open  int

	// spare is the fewest that were free at any time since the last trim: that
	// many were not needed.
	spare int
	// barren is when the system last refused a pipe.
	barren time.Time
}

// take returns an empty pipe, or false if none is available.
func (p *pipes) take(now time.Time) (int32, bool) {
	if k := len(p.free); k > 0 {
		i := p.free[k-1]
		p.free = p.free[:k-1]
		p.spare = min(p.spare, k-1)
		return i, true
	}
	if p.exhausted(now) {
		return 0, false
	}
	// The place is taken first: other loops make pipes at the same time.
	if p.total.Add(1) > pipesMax {
		p.total.Add(-1)
		return 0, false
	}
	made, ok := makePipe(p.below)
	if !ok {
		p.total.Add(-1)
		p.barren = now
		return 0, false
	}
	return p.add(made), true
}

// makePipe makes a pipe whose descriptors are below the given one.
func makePipe(below int32) (made pipe, ok bool) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return pipe{}, false
	}
	size, err := unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	if err != nil {
		size, err = unix.FcntlInt(uintptr(fds[1]), unix.F_GETPIPE_SZ, 0)
	}
	if err != nil || size < pipeSmallest || int32(max(fds[0], fds[1])) >= below {
		closeFd(int32(fds[0]))
		closeFd(int32(fds[1]))
		return pipe{}, false
	}
	return pipe{r: int32(fds[0]), w: int32(fds[1])}, true
}

// add puts a pipe that is in use into the pool and returns its index. One from
// another pool may exceed the limit for as long as it is in use.
func (p *pipes) add(made pipe) int32 {
	p.open++
	if k := len(p.holes); k > 0 {
		i := p.holes[k-1]
		p.holes = p.holes[:k-1]
		p.all[i] = made
		return i
	}
	p.all = append(p.all, made)
	return int32(len(p.all) - 1)
}

// release takes a pipe that is in use out of the pool, for another pool.
func (p *pipes) release(i int32) pipe {
	taken := p.all[i]
	p.all[i] = pipe{r: -1, w: -1}
	p.holes = append(p.holes, i)
	p.open--
	return taken
}

// pipesBelow is the first descriptor that is too high for a pipe. The system
// hands out the lowest that is free, so a high one means that few are left, and
// those are reserved for checks, scripts and verdicts.
func pipesBelow() int32 {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil || lim.Cur > 1<<30 {
		return 1 << 30
	}
	return int32(lim.Cur) - 40
}

// exhausted reports whether take has no pipe to return.
func (p *pipes) exhausted(now time.Time) bool {
	return len(p.free) == 0 && (p.open >= p.limit || p.total.Load() >= pipesMax || now.Sub(p.barren) < pipeRest)
}

// put returns a pipe to the pool; one that still holds bytes is closed.
func (p *pipes) put(i int32) {
	if p.all[i].n != 0 {
		p.close(i)
		return
	}
	p.free = append(p.free, i)
}

func (p *pipes) close(i int32) {
	unused := p.release(i)
	p.total.Add(-1)
	closeFd(unused.r)
	closeFd(unused.w)
}

// trim closes the pipes that were not used since the last trim and reports
// whether any are left.
func (p *pipes) trim() bool {
	idle := min(p.spare, len(p.free))
	for _, i := range p.free[:idle] {
		p.close(i)
	}
	p.free = append(p.free[:0], p.free[idle:]...)
	p.spare = len(p.free)
	return p.open > 0
}
