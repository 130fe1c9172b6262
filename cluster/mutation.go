package cluster

// mutation is a rule of the protocol that a test breaks on purpose, to see that
// the checks of the protocol notice it. Outside of tests it is always unbroken.
type mutation uint8

const (
	unbroken mutation = iota

	// receipt counts a lease from the answer, not from the request.
	receipt

	// cached counts the wait for a silent member from its last heartbeat, which may
	// have been before the fence.
	cached

	// majority takes grants of half of the other members for enough.
	majority

	// vanish takes a member whose key has vanished for one that has ended.
	vanish

	// extend extends the lease while connections of an earlier epoch live.
	extend

	// drainLate counts the time to drain from when the member read of it.
	drainLate

	// parting begins triggers, or leaves them running, although it leaves.
	parting
)
