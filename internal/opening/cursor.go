package opening

import "bytes"

// cursor takes fields off the front of a message. A field that is longer than
// what is left makes the cursor bad and empty, and every field after it is
// empty or 0, so that a recognizer checks once, at the end.
type cursor struct {
	b   []byte
	bad bool
}

// done reports whether every field was there and nothing is left.
func (c *cursor) done() bool { return !c.bad && len(c.b) == 0 }

// take returns the next n bytes.
func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.b, c.bad = nil, true
		return nil
	}
	field := c.b[:n]
	c.b = c.b[n:]
	return field
}

// uint returns the next n bytes, most significant first, as a number.
func (c *cursor) uint(n int) (number uint32) {
	for _, digit := range c.take(n) {
		number = number<<8 | uint32(digit)
	}
	return number
}

// uintLE returns the next four bytes, least significant first, as a number.
func (c *cursor) uintLE() (number uint32) {
	for i, digit := range c.take(4) {
		number |= uint32(digit) << (8 * i)
	}
	return number
}

// uvarint returns the next number of one to four bytes with seven bits each,
// least significant first.
func (c *cursor) uvarint() (number uint32) {
	for shift := 0; shift < 28; shift += 7 {
		digit := c.uint(1)
		number |= digit & 0x7f << shift
		if digit < 0x80 {
			return number
		}
	}
	c.b, c.bad = nil, true
	return 0
}

// vector returns the next field that has its length before it, in n bytes,
// most significant first.
func (c *cursor) vector(n int) []byte { return c.field(c.uint(n)) }

// field returns the next n bytes, where n was sent by the client.
func (c *cursor) field(n uint32) []byte {
	if n > Max {
		n = Max + 1 // more than there is, and fits an int
	}
	return c.take(int(n))
}

// cstring returns the bytes before the next zero byte, and takes both.
func (c *cursor) cstring() []byte {
	n := bytes.IndexByte(c.b, 0)
	if n < 0 {
		n = len(c.b)
	}
	text := c.take(n)
	c.take(1)
	return text
}
