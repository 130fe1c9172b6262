//go:build !portable

package relay

// Reading first, then sending.
//
// The kernel's way through recv(2) and its way through send(2), which takes in
// the other socket's receiving side, are each longer than what a processor's
// caches for instructions and branches hold. A loop that goes from one to the
// other with each message runs both of them cold. So the small pieces of a batch
// of events are read one after the other, side by side into one buffer, and then
// sent one after the other. That is worth 5 to 10 % of the processor time of a
// message, the more the fuller the batches are.
//
// Invariant: a connection has one piece in the batch at most, and is not touched
// before that is sent. Pieces wait only while events are handled, and
// [loop.handle] and [loop.woken] see to it there.

const (
	// batchPiece is how large a piece may be to wait for its batch: where the
	// copying is the work, a warm buffer counts for more.
	batchPiece = 4 << 10

	// batchPieces is how many wait at most, so that the first does not wait long.
	batchPieces = 64

	// batchBytes is how much they are together.
	batchBytes = 32 << 10
)

// piece is what was read from one side of a connection and is sent to the other
// when the batch is complete.
type piece struct {
	i     int32
	from  side
	at, n int32 // where it is in the batch's buffer
}

// batch is a loop's buffer. There is always room for one read behind the pieces
// that wait in it.
type batch struct {
	buf    [batchBytes + chunk]byte
	used   int
	pieces []piece
	open   bool // pieces may wait
}

// warm makes the buffer resident, so that the first bytes meet no page faults.
func (b *batch) warm() {
	for i := 0; i < len(b.buf); i += 4 << 10 {
		b.buf[i] = 0
	}
}

// room is where to read to: chunk bytes, untouched until the next call.
func (b *batch) room() []byte { return b.buf[b.used : b.used+chunk] }

// waits says whether a piece of n bytes that was just read from side s can wait
// for its batch: when there is nothing else to be done about the connection.
func (b *batch) waits(c *conn, s side, n int) bool {
	return b.open && n <= batchPiece && c.ready[s]&readable == 0 && c.ready[s.other()]&readable == 0
}

// put has the first n bytes of the room sent with the batch.
func (b *batch) put(i int32, c *conn, s side, n int) {
	c.half[s].flags |= batched
	b.pieces = append(b.pieces, piece{i: i, from: s, at: int32(b.used), n: int32(n)})
	b.used += n
}

// full says that the batch is to be sent before more is read.
func (b *batch) full() bool {
	return len(b.pieces) == batchPieces || b.used > batchBytes-batchPiece
}

// sendBatch sends every piece that waits.
func (l *loop) sendBatch() {
	b := &l.batch
	open := b.open
	b.open = false
	for _, p := range b.pieces {
		c := l.at(p.i)
		c.half[p.from].flags &^= batched
		l.sendCopied(c, p.from, b.buf[p.at:p.at+p.n], 0)
		if c.exchanged() {
			c.since = l.now
		}
		if c.broken(p.from.other()) {
			l.serve(p.i, c)
		}
	}
	b.pieces = b.pieces[:0]
	b.used = 0
	b.open = open
}
