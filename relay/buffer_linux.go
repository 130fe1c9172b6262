//go:build !portable

package relay

// buffersKept is the number of unused buffers of each size that a loop keeps.
const buffersKept = 16

// buffer holds bytes that were read from one side and not accepted by the
// other.
type buffer struct {
	data []byte // the whole
	rest []byte // what is still to be sent
}

// buffers is a loop's pool of them, in four sizes, so that the rest of a small
// message, or an opening, does not hold 32 KiB.
type buffers struct {
	all   []buffer
	holes []int32
	spare [4][][]byte
}

func sizeClass(n int) (class, size int) {
	switch {
	case n <= 2<<10:
		return 0, 2 << 10
	case n <= 8<<10:
		return 1, 8 << 10
	case n <= openingMost:
		return 2, openingMost
	default:
		return 3, chunk
	}
}

// keep copies p, at most chunk bytes, into a buffer and returns its index.
func (b *buffers) keep(p []byte) int32 {
	class, size := sizeClass(len(p))
	var data []byte
	if k := len(b.spare[class]); k > 0 {
		data = b.spare[class][k-1]
		b.spare[class] = b.spare[class][:k-1]
	} else {
		data = make([]byte, size)
	}
	return b.add(buffer{data: data, rest: data[:copy(data, p)]})
}

// put returns a buffer to the pool and discards its contents.
func (b *buffers) put(i int32) {
	class, _ := sizeClass(len(b.all[i].data))
	if len(b.spare[class]) < buffersKept {
		b.spare[class] = append(b.spare[class], b.all[i].data)
	}
	b.release(i)
}

// release takes a buffer out of the pool with its contents, for another pool.
func (b *buffers) release(i int32) buffer {
	kept := b.all[i]
	b.all[i] = buffer{}
	b.holes = append(b.holes, i)
	return kept
}

// add puts a buffer with its contents into the pool and returns its index.
func (b *buffers) add(kept buffer) int32 {
	if k := len(b.holes); k > 0 {
		i := b.holes[k-1]
		b.holes = b.holes[:k-1]
		b.all[i] = kept
		return i
	}
	b.all = append(b.all, kept)
	return int32(len(b.all) - 1)
}
