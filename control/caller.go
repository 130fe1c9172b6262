package control

import (
	"os/user"
	"strconv"
)

// callerKey is the key of a request's [caller] in its context.
type callerKey struct{}

// caller is the user at the other end of a connection.
type caller struct {
	known bool
	uid   uint32
}

// name returns the caller's name for the log and the record. Root may give orders
// for another user, as sudo does; onBehalfOf is that user's name.
func (c caller) name(onBehalfOf string) string {
	if !c.known {
		return onBehalfOf
	}
	name := "uid " + strconv.FormatUint(uint64(c.uid), 10)
	if u, err := user.LookupId(strconv.FormatUint(uint64(c.uid), 10)); err == nil {
		name = u.Username
	}
	if c.uid == 0 && onBehalfOf != "" && onBehalfOf != name {
		return onBehalfOf + " as " + name
	}
	return name
}
