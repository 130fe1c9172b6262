// Package verdict answers for this machine and for others: over HTTP on /ping,
// /status, as a heartbeat and with the first usable response of several
// endpoints; to HAProxy as an agent; and as a TCP port that is open or closed. It
// also has the HTTP listener with its limits.
//
// A [Member] counts in a verdict, and the caller supplies its state: this package
// itself checks only the ports to which a request is replayed.
package verdict
