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

// name is what the log and the record call the caller. Root may act for
// somebody else, as sudo does, and says for whom.
func (c caller) name(claimed string) string {
	if !c.known {
		return claimed
	}
	name := "uid " + strconv.FormatUint(uint64(c.uid), 10)
	if u, err := user.LookupId(strconv.FormatUint(uint64(c.uid), 10)); err == nil {
		name = u.Username
	}
	if c.uid == 0 && claimed != "" && claimed != name {
		return claimed + " as " + name
	}
	return name
}
