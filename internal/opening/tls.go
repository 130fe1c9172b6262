package opening

import "slices"

// clientHello reports whether b is a ClientHello without early data, or its
// beginning from the version on: RFC 8446, sections 4.1.2 and 5.1.
//
// One with early data is not, although the client has not sent any yet: it is
// about to send a request, and servers that share a record of ClientHellos
// refuse the second (section 8.2).
func clientHello(b []byte) bool {
	var message []byte // what the records carry
	whole := true      // the last record is complete
	for len(b) > 0 {
		c := cursor{b: b}
		kind, major, minor, size := c.uint(1), c.uint(1), c.uint(1), int(c.uint(2))
		switch {
		case kind != 22: // handshake
			return false
		case c.bad: // the header of a record is cut
			whole, b = false, nil
			continue
		case major != 3 || minor > 4 || size == 0 || size > 1<<14:
			return false
		}
		part := c.take(min(size, len(c.b)))
		whole, b = len(part) == size, c.b
		if message == nil {
			message = slices.Clip(part) // appending to it copies it
		} else {
			message = append(message, part...)
		}
	}
	c := cursor{b: message}
	kind, size, major := c.uint(1), int(c.uint(3)), c.uint(1)
	c.take(1)                                               // minor version
	if c.bad || kind != 1 || major != 3 || size > Max-5-4 { // too long behind its two headers
		return false
	}
	switch have := len(message) - 4; {
	case have < size:
		return true
	case have > size || !whole: // something follows
		return false
	}
	c.take(32) // random
	session, suites, compression := c.vector(1), c.vector(2), c.vector(1)
	if c.bad || len(session) > 32 || len(suites) == 0 || len(suites)%2 != 0 || len(compression) == 0 {
		return false
	}
	if len(c.b) == 0 {
		return true // before TLS 1.3, extensions are optional
	}
	extensions := cursor{b: c.vector(2)}
	for len(extensions.b) > 0 {
		kind := extensions.uint(2)
		extensions.vector(2)
		if kind == 42 { // early_data
			return false
		}
	}
	return c.done() && extensions.done()
}
