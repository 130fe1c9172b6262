package opening

import "bytes"

// startup reports whether b is an SSLRequest, a GSSENCRequest or a
// StartupMessage of protocol 3: PostgreSQL documentation, "Message Formats".
func startup(b []byte) bool {
	c := cursor{b: b}
	size, code := c.uint(4), c.uint(4)
	switch {
	case c.bad || uint64(size) != uint64(len(b)):
		return false
	case code == 1234<<16|5679 || code == 1234<<16|5680: // SSLRequest, GSSENCRequest
		return c.done()
	case code>>16 != 3:
		return false
	}
	user := false
	for name := c.cstring(); len(name) > 0; name = c.cstring() {
		value := c.cstring()
		user = user || string(name) == "user" && len(value) > 0
	}
	return user && c.done()
}

// identification reports whether b is the line by which a client of SSH
// identifies itself: RFC 4253, section 4.2. Clients send the next message,
// KEXINIT, when they have read the server's line.
func identification(b []byte) bool {
	version, prefixed := bytes.CutPrefix(b, []byte("SSH-2.0-"))
	version, ended := bytes.CutSuffix(version, []byte("\r\n"))
	return prefixed && ended && len(b) <= 255 && len(version) > 0 && version[0] != ' ' &&
		all(version, func(c byte) bool { return c >= ' ' && c < 0x7f })
}

// protocolHeader reports whether b is a protocol header of AMQP 0-9-1 (section
// 4.2.2) or 1.0 (sections 2.2, 5.2.1 and 5.3.1: plain, TLS and SASL).
func protocolHeader(b []byte) bool {
	switch string(b) {
	case "AMQP\x00\x00\x09\x01", "AMQP\x00\x01\x00\x00", "AMQP\x02\x01\x00\x00", "AMQP\x03\x01\x00\x00":
		return true
	}
	return false
}

// connect reports whether b is a CONNECT of MQTT 3.1.1 or 5.0: section 3.1 of
// each.
//
// It takes over the session of the client's identifier, and the host publishes
// the client's will if the connection breaks. A client of MQTT that loses its
// connection connects again by itself, with the same effects.
func connect(b []byte) bool {
	const (
		reserved = 1 << iota
		_        // clean start
		will
		willQoS1
		willQoS2
		willRetain
		password
		user
	)
	c := cursor{b: b}
	if c.uint(1) != 0x10 || uint64(c.uvarint()) != uint64(len(c.b)) {
		return false
	}
	name, level, flags := c.vector(2), c.uint(1), c.uint(1)
	c.take(2) // keep alive
	properties := func() {
		if level == 5 {
			c.field(c.uvarint())
		}
	}
	switch {
	case string(name) != "MQTT" || level != 4 && level != 5 || flags&reserved != 0,
		flags&will == 0 && flags&(willQoS1|willQoS2|willRetain) != 0,
		flags&willQoS1 != 0 && flags&willQoS2 != 0,
		flags&password != 0 && flags&user == 0 && level == 4:
		return false
	}
	properties()
	c.vector(2) // client identifier
	if flags&will != 0 {
		properties()
		c.vector(2) // topic
		c.vector(2) // payload
	}
	if flags&user != 0 {
		c.vector(2)
	}
	if flags&password != 0 {
		c.vector(2)
	}
	return c.done()
}

// hello reports whether b is one command hello, or isMaster, as it was called:
// MongoDB documentation, "MongoDB Wire Protocol", OP_MSG and OP_QUERY.
func hello(b []byte) bool {
	c := cursor{b: b}
	size := c.uintLE()
	c.take(4) // request
	responseTo, code, flags := c.uintLE(), c.uintLE(), c.uintLE()
	if c.bad || uint64(size) != uint64(len(b)) || responseTo != 0 {
		return false
	}
	switch code {
	case 2013: // OP_MSG
		const checksum, exhaustAllowed = 1, 1 << 16
		if flags&^(checksum|exhaustAllowed) != 0 || c.uint(1) != 0 { // a section with the command
			return false
		}
		if flags&checksum != 0 {
			c.b = c.b[:max(0, len(c.b)-4)]
		}
	case 2004: // OP_QUERY
		const secondaryOK = 4
		if flags&^secondaryOK != 0 || !bytes.HasSuffix(c.cstring(), []byte(".$cmd")) {
			return false
		}
		c.take(8) // how many documents to skip and to return
	default:
		return false
	}
	// A document of BSON. Its first element is the command, whatever its value.
	document := c.b
	if uint64(c.uintLE()) != uint64(len(document)) || !bytes.HasSuffix(document, []byte{0}) {
		return false
	}
	c.take(1) // type of the value
	switch string(c.cstring()) {
	case "hello", "isMaster", "ismaster":
		return !c.bad
	}
	return false
}

// apiVersions reports whether b is one ApiVersions request of version 0 to 5:
// Kafka documentation, "Kafka protocol guide".
func apiVersions(b []byte) bool {
	const null = 0xffff
	c := cursor{b: b}
	size, key, version := c.uint(4), c.uint(2), c.uint(2)
	if c.bad || uint64(size)+4 != uint64(len(b)) || key != 18 || version > 5 {
		return false
	}
	c.take(4) // correlation
	if n := c.uint(2); n != null {
		c.field(n) // name of the client
	}
	if version < 3 {
		return c.done()
	}
	// The length of a compact string is sent plus one, and 0 is null: where null
	// is not allowed, 0 minus one is longer than any field.
	header := c.uint(1)
	c.field(c.uvarint() - 1) // software
	c.field(c.uvarint() - 1) // its release
	if version >= 5 {
		c.field(max(c.uvarint(), 1) - 1) // cluster, or null
		c.take(4)                        // node
	}
	body := c.uint(1)
	return c.done() && header == 0 && body == 0 // no tagged fields
}

// bind reports whether b is one bind request: RFC 4511, sections 4.1.1 and 4.2.
func bind(b []byte) bool {
	const (
		sequence = 0x30
		integer  = 0x02
		octets   = 0x04
		request  = 0x60 // [APPLICATION 0]
		simple   = 0x80 // [0]
		sasl     = 0xa3 // [3]
		controls = 0xa0 // [0]
	)
	all := cursor{b: b}
	message := all.element(sequence)
	number := message.element(integer)
	r := message.element(request)
	if message.next(controls) {
		message.element(controls)
	}
	version := r.element(integer)
	r.element(octets) // name
	if r.next(simple) {
		r.element(simple)
	} else {
		s := r.element(sasl)
		s.element(octets) // mechanism
		if s.next(octets) {
			s.element(octets) // credentials
		}
		if !s.done() {
			return false
		}
	}
	return all.done() && message.done() && r.done() &&
		!number.bad && len(number.b) >= 1 && len(number.b) <= 4 && string(version.b) == "\x03"
}

// next reports whether an element with the tag of BER is next.
func (c *cursor) next(tag byte) bool { return len(c.b) > 0 && c.b[0] == tag }

// element returns the contents of the next element of BER, which must have the
// tag and a definite length: RFC 4511, section 5.1.
func (c *cursor) element(tag byte) cursor {
	found := c.next(tag)
	c.take(1)
	size := c.uint(1)
	if size > 0x80 && size <= 0x84 {
		size = c.uint(int(size & 0x7f))
	} else if size >= 0x80 {
		found = false
	}
	contents := c.field(size)
	if !found {
		c.b, c.bad = nil, true
	}
	return cursor{b: contents, bad: c.bad}
}
