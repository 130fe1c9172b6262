package greeting

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
)

// CheckUser is the name with which the exchange of MySQL logs in, without a password. It
// need not exist.
const CheckUser = "understudy_check"

// Packets and capabilities of MySQL: "Connection Phase" of its protocol's documentation.
const (
	mysqlOK      = 0x00
	mysqlVersion = 0x0a // of the greeting
	mysqlSwitch  = 0xfe // to another way of authentication
	mysqlError   = 0xff

	mysqlQuit = 0x01

	mysqlProtocol41 = 0x00000200
	mysqlSecure     = 0x00008000
	mysqlPlugin     = 0x00080000

	mysqlTooManyConnections = 1040
)

// mysql reads the greeting of MySQL or MariaDB and attempts a login as [CheckUser]
// without a password. Both count an address that leaves in any other way before the end
// of the login, with or without COM_QUIT, and refuse it after max_connect_errors of them
// in a row; a login that is refused ends the handshake and is not counted there. MariaDB
// 10.11 still counts it in Aborted_connects; it counts nothing if the user exists.
//
// A server that has too many connections is one that answers.
func mysql(in *bufio.Reader, conn net.Conn, _ string) error {
	seq, p, err := mysqlPacket(in)
	if err != nil {
		return err
	}
	if no, text, ok := mysqlErrorOf(p); ok {
		if no == mysqlTooManyConnections {
			return nil
		}
		return wrong("error %d: %s", no, quote(text))
	}
	_, behind, ok := bytes.Cut(p[1:], []byte{0})
	// A connection id, half of a nonce, a zero and capabilities follow the version.
	if seq != 0 || p[0] != mysqlVersion || !ok || len(behind) < 4+8+1+2 {
		return wrong("%s, want one of MySQL's protocol 10", quote(p))
	}
	mysqlLogin(in, conn, seq+1)
	return nil
}

// mysqlLogin attempts a login. What comes of it is not for the check.
func mysqlLogin(in *bufio.Reader, conn net.Conn, seq byte) {
	p := binary.LittleEndian.AppendUint32(nil, mysqlProtocol41|mysqlSecure|mysqlPlugin)
	p = binary.LittleEndian.AppendUint32(p, 1<<24) // the longest packet
	p = append(p, 45)                              // utf8mb4
	p = append(p, make([]byte, 23)...)
	p = append(p, CheckUser+"\x00\x00mysql_native_password\x00"...)
	for range 4 {
		if _, err := conn.Write(mysqlFrame(seq, p)); err != nil {
			return
		}
		last, answer, err := mysqlPacket(in)
		if err != nil {
			return
		}
		switch answer[0] {
		case mysqlOK:
			_, _ = conn.Write(mysqlFrame(0, []byte{mysqlQuit})) // the greeting was good
			return
		case mysqlSwitch:
			seq, p = last+1, nil
			if bytes.HasPrefix(answer[1:], []byte("caching_sha2_password\x00")) || bytes.HasPrefix(answer[1:], []byte("sha256_password\x00")) {
				p = []byte{0} // how these say that there is no password
			}
		default:
			return
		}
	}
}

// mysqlFrame returns a packet with its header.
func mysqlFrame(seq byte, p []byte) []byte {
	n := len(p)
	return append([]byte{byte(n), byte(n >> 8), byte(n >> 16), seq}, p...) //nolint:gosec // G115: three bytes of the length
}

// mysqlPacket reads a packet, which has at least one byte.
func mysqlPacket(in io.Reader) (seq byte, p []byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(head[0]) | int(head[1])<<8 | int(head[2])<<16
	if n == 0 || n > maxGreeting {
		return 0, nil, wrong("a packet of %d bytes", n)
	}
	p = make([]byte, n)
	_, err = io.ReadFull(in, p)
	return head[3], p, err
}

// mysqlErrorOf returns the number and the text of an error packet.
func mysqlErrorOf(p []byte) (no uint16, text string, ok bool) {
	if p[0] != mysqlError || len(p) < 3 {
		return 0, "", false
	}
	no, p = binary.LittleEndian.Uint16(p[1:]), p[3:]
	if len(p) >= 6 && p[0] == '#' {
		p = p[6:] // SQLSTATE
	}
	return no, string(p), true
}

// gssRequest asks PostgreSQL for encryption by GSSAPI.
var gssRequest = []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30}

// postgres asks PostgreSQL whether it encrypts, and leaves after the answer. It asks for
// GSSAPI: after a yes to SSLRequest the server waits for a TLS handshake, and logs an
// error when the client leaves before its end. After this request PostgreSQL 15 logs
// nothing, whatever it answered. A server before version 12 rejects it with an error that
// is an answer too.
func postgres(in *bufio.Reader, conn net.Conn, _ string) error {
	if _, err := conn.Write(gssRequest); err != nil {
		return err
	}
	answer, err := in.ReadByte()
	if err != nil {
		return err
	}
	switch answer {
	case 'G', 'S', 'N':
		return nil
	case 'E':
		state, text, err := postgresError(in)
		if err != nil || state == "0A000" { // feature_not_supported
			return err
		}
		return wrong("error %s", quote(strings.TrimSpace(state+" "+text)))
	}
	return wrong("%s, want PostgreSQL's answer to GSSENCRequest", quote([]byte{answer}))
}

// postgresError reads an error behind its first byte: in the format of protocol 3, or, of
// a server that cannot start a process, a text alone.
func postgresError(in *bufio.Reader) (state, text string, err error) {
	head, err := in.Peek(4)
	if err != nil {
		return "", "", err
	}
	n := binary.BigEndian.Uint32(head)
	if n < 4 || n > maxGreeting {
		text, err := in.ReadSlice(0)
		if len(text) == 0 {
			return "", "", err
		}
		return "", string(bytes.TrimRight(text, "\x00")), nil
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(in, p); err != nil {
		return "", "", fmt.Errorf("error message: %w", err)
	}
	for field := range bytes.SplitSeq(p[4:], []byte{0}) {
		if len(field) == 0 {
			break
		}
		switch field[0] {
		case 'C':
			state = string(field[1:])
		case 'M':
			text = string(field[1:])
		}
	}
	return state, text, nil
}
