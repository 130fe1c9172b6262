//go:build !portable

package relay

// state is the stage of a connection.
type state uint8

const (
	free         state = iota // the record is not in use
	readingProxy              // a PROXY header is expected from the client
	connecting                // a connect to the host is under way
	waiting                   // there is no host, or it did not answer: the next try is at due
	relaying                  // bytes move
)

// What is known about a socket. Events are edge-triggered, so this is where
// they are remembered until a call answers EAGAIN.
const (
	readable = 1 << iota
	writable
	hungUp    // the peer will send no more: read on until the end is seen
	urgent    // an urgent byte is on its way
	failed    // reset, timed out, broken
	watched   // registered with the loop's epoll
	looped    // (of a host) an ephemeral loopback port: the connect may meet itself
	keptAlive // (of a host) the kernel watches it; see sockopt_linux.go
)

// half is one direction: from the socket of its index to the other one.
type half struct {
	// store identifies the storage of bytes that were read and not sent yet: 0 is
	// none, n > 0 is buffer n-1, n < 0 is pipe -n-1. A direction in splice mode
	// may keep an empty pipe for as long as its turn lasts.
	store int32
	flags uint8

	first    bool // the source ended its stream before the other side did
	timedOut bool // the system has given the source up
	rewound  bool // (of the client) what is stored was sent to an earlier host
}

// Flags of a half.
const (
	ended    = 1 << iota // the source will send no more
	passedOn             // and that was passed on to the other side with a FIN
	splicing             // bytes go through a pipe
	queued               // in the loop's queue for another turn
	spared               // (of the socket) TCP_USER_TIMEOUT is off; see zerowindow_linux.go
	unheard              // (of the client) it is counted in Silent
	batched              // has a piece in the loop's batch
	givenUp              // (of the client) its opening is not kept any more; see replay_linux.go
)

// conn is one relayed connection. Records live in slabs without pointers, so
// the garbage collector never looks at them.
type conn struct {
	fd    [2]int32 // by side; -1 when there is none
	half  [2]half  // by the side it reads from
	moved [2]uint64
	epoch uint64
	// since is when the client was accepted or began to wait; from the first
	// byte on, when the last one passed. In nanoseconds of the loop's clock.
	since    int64
	accepted int64 // when the client was
	// began is when the connect to the host began; once connected, when the host
	// accepted.
	began int64
	// due is when something has to happen at the latest, for records in the
	// pending list.
	due int64
	// unansweredSince is when the client sent what its host has not answered yet; 0 if
	// there is nothing.
	unansweredSince int64
	gen             int32 // incremented with each use of the record, so that stale events are recognised
	prev, next      int32 // the pending list
	tries           uint8 // failed connects since the client began to wait
	state           state
	turns           uint8 // how often the host has answered what the client had sent, up to hangTurns
	turned          uint8 // 1 after an answer, until the client sends something
	pending         bool
	ready           [2]uint8 // by side
	moves           uint8    // to another host
	replays         uint8    // of its opening
	ends            uint8    // of hosts' streams, before a byte had passed, in this epoch
	home            int32    // the number of its host; see homes
	slot            int32    // of its relay; see tenant
	opening         int32    // what the client has sent is opening n-1 of the loop; 0 is none
	heldAt          uint32   // when the client began to wait for a host, see [heldAt]; 0 if it does not
}

// exchanged reports whether a byte, or the end of the host's stream, has
// passed. Until then the connection can be made again to another host without
// losing anything.
func (c *conn) exchanged() bool {
	return c.moved[client]|c.moved[host] != 0 || c.half[host].flags&passedOn != 0
}

func (c *conn) broken(s side) bool { return c.ready[s]&failed != 0 }

const slabSize = 256

// tag is the user data of an epoll event: which record, which of its sockets,
// and which use of the record.
type tag struct{ slot, gen int32 }

func (c *conn) tag(i int32, s side) tag { return tag{slot: i<<1 | int32(s), gen: c.gen} }

// table holds a loop's connection records.
type table struct {
	slabs []*[slabSize]conn
	free  int32 // first free record, chained by next; -1 when there is none
	used  int
	dead  []int32 // freed in this batch of events, to be reused after it

	first, last int32 // the pending list, oldest first; -1 when empty
}

func (t *table) at(i int32) *conn { return &t.slabs[uint32(i)/slabSize][uint32(i)%slabSize] }

func (t *table) size() int32 { return int32(len(t.slabs) * slabSize) }

// alloc returns a record for a connection of the relay with the given slot.
func (t *table) alloc(slot int32) (int32, *conn) {
	if t.free < 0 {
		base := t.size()
		t.slabs = append(t.slabs, new([slabSize]conn))
		for k := int32(slabSize) - 1; k >= 0; k-- {
			t.at(base + k).next = t.free
			t.free = base + k
		}
	}
	i := t.free
	c := t.at(i)
	t.free = c.next
	*c = conn{fd: [2]int32{-1, -1}, gen: c.gen + 1, prev: -1, next: -1, slot: slot}
	t.used++
	return i, c
}

// release frees a record. It is reused only after the current batch of events
// ([table.sweep]), so an event for it later in the batch finds it free.
func (t *table) release(i int32, c *conn) {
	t.unpend(i, c)
	c.state = free
	t.dead = append(t.dead, i)
	t.used--
}

func (t *table) sweep() {
	for _, i := range t.dead {
		t.at(i).next = t.free
		t.free = i
	}
	t.dead = t.dead[:0]
}

// pend adds a record to the pending list, which [loop.overdue] examines as time
// passes.
func (t *table) pend(i int32, c *conn) {
	if c.pending {
		return
	}
	c.pending = true
	c.prev, c.next = t.last, -1
	if t.last >= 0 {
		t.at(t.last).next = i
	} else {
		t.first = i
	}
	t.last = i
}

func (t *table) unpend(_ int32, c *conn) {
	if !c.pending {
		return
	}
	c.pending = false
	if c.prev >= 0 {
		t.at(c.prev).next = c.next
	} else {
		t.first = c.next
	}
	if c.next >= 0 {
		t.at(c.next).prev = c.prev
	} else {
		t.last = c.prev
	}
	c.prev, c.next = -1, -1
}
