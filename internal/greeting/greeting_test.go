package greeting

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// mysqlGreeting is what MariaDB 10.11 sends first.
var mysqlGreeting = string(mysqlFrame(0, []byte("\x0a5.5.5-10.11.19-MariaDB-0+deb12u1\x00\x7d\x00\x00\x00#]-f>Aim\x00"+
	"\xfe\xf7\x08\x02\x00\xff\x81\x15\x00\x00\x00\x00\x00\x00\x1d\x00\x00\x00abcdefghijkl\x00mysql_native_password\x00")))

// mysqlError returns an error packet.
func mysqlErrorPacket(seq byte, no uint16, text string) string {
	return string(mysqlFrame(seq, append(binary.LittleEndian.AppendUint16([]byte{mysqlError}, no), text...)))
}

// limit is the longest time that an exchange may take that should take no time at all.
const limit = 30 * time.Second

const denied = "#28000Access denied for user"

// postgresErrorMessage returns an error of protocol 3.
func postgresErrorMessage(state, text string) string {
	fields := "SFATAL\x00C" + state + "\x00M" + text + "\x00\x00"
	return "E" + string(binary.BigEndian.AppendUint32(nil, uint32(len(fields)+4))) + fields
}

func TestExchange(t *testing.T) {
	login := CheckUser + "\x00\x00mysql_native_password\x00"
	quit := string(mysqlFrame(0, []byte{mysqlQuit}))
	for name, tt := range map[string]struct {
		protocol string
		sent     string // by the server, which then closes the connection
		received string // at the end of what it received
		want     string // in the error; empty for none
	}{
		"SMTP":                   {"smtp", "220 mail.example ESMTP\r\n", "QUIT\r\n", ""},
		"SMTP in lines":          {"smtp", "220-mail.example\r\n220-hello\r\n220 go on\r\n", "QUIT\r\n", ""},
		"SMTP without text":      {"smtp", "220\r\n", "QUIT\r\n", ""},
		"SMTP refuses":           {"smtp", "554-no\r\n554 service\r\n", "", `wrong greeting: "554 no", want 220`},
		"SMTP is busy":           {"smtp", "421 too many connections\r\n", "", `wrong greeting: "421 too many connections"`},
		"HTTP for SMTP":          {"smtp", "HTTP/1.1 400 Bad Request\r\n", "", `wrong greeting: "HTTP/1.1 400 Bad Request", want a reply`},
		"four digits":            {"smtp", "2200 a\r\n", "", "wrong greeting"},
		"SMTP ends in its lines": {"smtp", "220-a\r\n", "", "EOF"},
		"SMTP for ever":          {"smtp", strings.Repeat("220-a\r\n", 200), "", "wrong greeting: a reply of more than 100 lines"},
		"a line for ever":        {"smtp", strings.Repeat("2", 8192), "", "wrong greeting"},
		"no end of the line":     {"smtp", "220 mail", "", "wrong greeting"},
		"nothing":                {"smtp", "", "", "EOF"},

		"FTP":               {"ftp", "220 ready\r\n", "QUIT\r\n", ""},
		"FTP with any text": {"ftp", "220-Welcome\r\n421 is no code here\r\n\r\n220 ready\r\n", "QUIT\r\n", ""},
		"FTP takes a while": {"ftp", "120 in 5 minutes\r\n220 ready\r\n", "QUIT\r\n", ""},
		"FTP refuses":       {"ftp", "421 no\r\n", "", "wrong greeting"},

		"SSH":              {"ssh", "SSH-2.0-OpenSSH_9.2p1\r\n", "SSH-2.0-understudy\r\n", ""},
		"SSH with a text":  {"ssh", "for friends only\r\nSSH-1.99-x\n", "SSH-2.0-understudy\r\n", ""},
		"SSH is full":      {"ssh", "Exceeded MaxStartups\r\n", "", `wrong greeting: "Exceeded MaxStartups", and closed`},
		"SSH of version 1": {"ssh", "SSH-1.5-x\r\n", "", `wrong greeting: "SSH-1.5-x", want version 2`},
		"lines for ever":   {"ssh", strings.Repeat("a\r\n", 200), "", "wrong greeting: 100 lines"},

		"MySQL":                    {"mysql", mysqlGreeting + mysqlErrorPacket(2, 1045, denied), login, ""},
		"MySQL logs in":            {"mysql", mysqlGreeting + "\x07\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00", quit, ""},
		"MySQL switches":           {"mysql", mysqlGreeting + string(mysqlFrame(2, []byte("\xfecaching_sha2_password\x00nonce"))) + "\x07\x00\x00\x04\x00\x00\x00\x02\x00\x00\x00", quit, ""},
		"MySQL switches for ever":  {"mysql", mysqlGreeting + strings.Repeat("\x02\x00\x00\x02\xfea", 20), "\x00\x00\x00\x03", ""},
		"MySQL is full":            {"mysql", mysqlErrorPacket(0, 1040, "Too many connections"), "", ""},
		"MySQL blocks us":          {"mysql", mysqlErrorPacket(0, 1129, "Host '192.0.2.1' is blocked"), "", `wrong greeting: error 1129: "Host '192.0.2.1' is blocked"`},
		"MySQL does not know us":   {"mysql", mysqlErrorPacket(0, 1130, "#HY000Host is not allowed"), "", `wrong greeting: error 1130: "Host is not allowed"`},
		"SSH for MySQL":            {"mysql", "SSH-2.0-OpenSSH_9.2p1\r\n", "", "wrong greeting: a packet of"},
		"MySQL of an old protocol": {"mysql", "\x02\x00\x00\x00\x09a", "", "wrong greeting"},
		"an error that is cut off": {"mysql", "\x02\x00\x00\x00\xff\x10", "", "wrong greeting"},
		"half a packet":            {"mysql", mysqlGreeting[:50], "", "unexpected EOF"},
		"an empty packet":          {"mysql", "\x00\x00\x00\x00", "", "wrong greeting"},

		"PostgreSQL says G":          {"postgres", "G", string(gssRequest), ""},
		"PostgreSQL says N":          {"postgres", "N", string(gssRequest), ""},
		"PostgreSQL 11":              {"postgres", postgresErrorMessage("0A000", "unsupported frontend protocol"), string(gssRequest), ""},
		"PostgreSQL cannot":          {"postgres", postgresErrorMessage("53200", "out of memory"), "", `wrong greeting: error "53200 out of memory"`},
		"PostgreSQL cannot fork":     {"postgres", "Ecould not fork new process\n\x00", "", `wrong greeting: error "could not fork new process"`},
		"half an error":              {"postgres", postgresErrorMessage("53200", "out of memory")[:20], "", "unexpected EOF"},
		"HTTP for PostgreSQL":        {"postgres", "HTTP/1.1 400", "", "wrong greeting"},
		"PostgreSQL closes":          {"postgres", "", "", "EOF"},
		"an error without a length":  {"postgres", "E", "", "EOF"},
		"an error of the wrong size": {"postgres", "E\x00\x00\x00\x03\x00", "", "wrong greeting"},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			received := make(chan string, 1)
			go func() {
				var got bytes.Buffer
				read := make(chan struct{})
				go func() { defer close(read); io.Copy(&got, theirs) }()
				io.WriteString(theirs, tt.sent)
				if tt.want != "" {
					theirs.Close()
				}
				<-read
				received <- got.String()
			}()
			ours.SetDeadline(time.Now().Add(limit))
			err := Exchange(tt.protocol, ours, "db1")
			ours.Close()
			got := <-received
			if err == nil != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Exchange = %v, want %q", err, tt.want)
			}
			if strings.HasPrefix(tt.want, "wrong") != errors.Is(err, ErrWrong) {
				t.Errorf("Exchange = %#v, which wraps ErrWrong: %v", err, errors.Is(err, ErrWrong))
			}
			if !strings.HasSuffix(got, tt.received) {
				t.Errorf("the server received %q, want %q at the end", got, tt.received)
			}
		})
	}
}

// source is a connection to a server that sends bytes, whatever it receives.
type source struct {
	net.Conn
	in io.Reader
}

func (s source) Read(p []byte) (int, error)      { return s.in.Read(p) }
func (s source) Write(p []byte) (int, error)     { return len(p), nil }
func (s source) SetReadDeadline(time.Time) error { return nil }

// fuzz seeds a fuzz test of one protocol.
func fuzz(f *testing.F, protocol string, seeds ...string) {
	f.Helper()
	for _, seed := range seeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		in := bytes.NewReader(sent)
		err := Exchange(protocol, source{in: in}, "db1")
		switch read := len(sent) - in.Len(); {
		case read > maxGreeting:
			t.Errorf("Exchange reads %d bytes", read)
		case err == nil && read == 0:
			t.Error("Exchange of nothing = nil")
		case err != nil && len(err.Error()) > 1000:
			t.Errorf("Exchange = an error of %d bytes", len(err.Error()))
		}
	})
}

func FuzzMySQL(f *testing.F) {
	fuzz(f, "mysql", mysqlGreeting, mysqlGreeting+mysqlErrorPacket(2, 1045, denied), mysqlErrorPacket(0, 1129, "blocked"))
}

func FuzzSMTP(f *testing.F) { fuzz(f, "smtp", "220 a\r\n", "220-a\r\n220 b\r\n", "554 no\r\n") }

func FuzzFTP(f *testing.F) { fuzz(f, "ftp", "120 wait\r\n220 a\r\n", "220-a\r\nb\r\n220 c\r\n") }

func FuzzSSH(f *testing.F) { fuzz(f, "ssh", "SSH-2.0-x\r\n", "a\r\nSSH-2.0-x\r\n", "SSH-1.5-x\r\n") }

func FuzzPostgres(f *testing.F) {
	fuzz(f, "postgres", "G", "S", postgresErrorMessage("0A000", "no"), "Ecould not fork\n\x00")
}

// A greeting is read in pieces of any size.
func TestExchangeInPieces(t *testing.T) {
	for protocol, sent := range map[string]string{
		"mysql": mysqlGreeting, "smtp": "220-a\r\n220 b\r\n", "ftp": "220 a\r\n", "ssh": "a\r\nSSH-2.0-x\r\n", "postgres": "G",
	} {
		if err := Exchange(protocol, source{in: bufio.NewReaderSize(oneByte{strings.NewReader(sent)}, 16)}, ""); err != nil {
			t.Errorf("Exchange of %s = %v", protocol, err)
		}
	}
}

// oneByte reads one byte at a time.
type oneByte struct{ io.Reader }

func (r oneByte) Read(p []byte) (int, error) { return r.Reader.Read(p[:1]) }
