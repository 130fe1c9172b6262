package opening

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// openings are replayable, each written from the section that defines it. An
// opening that can be cut in several places and stay one consists of several
// parts.
var openings = []struct {
	name     string
	protocol string
	parts    []string
}{
	// RFC 8446, section 4.1.2.
	{"ClientHello", "tls", []string{records(1<<14, helloOf("", extension(0, "\x00\x0c\x00\x00\x09localhost"), extension(43, "\x02\x03\x04")))}},
	{"ClientHello with a session", "tls", []string{records(1<<14, helloOf(strings.Repeat("s", 32), extension(16, "\x00\x03\x02h2")))}},
	{"ClientHello without extensions", "tls", []string{records(1<<14, helloOf(""))}},
	{"ClientHello in a record of version 3.4", "tls", []string{"\x16\x03\x04" + records(1<<14, helloOf(""))[3:]}},
	{"ClientHello in records of one byte", "tls", []string{records(1, helloOf("", extension(43, "\x02\x03\x04")))}},
	{"ClientHello in two records", "tls", []string{records(1000, helloOf("", extension(51, strings.Repeat("k", 1216))))}},
	{"the longest ClientHello", "tls", []string{records(1<<14, helloOf("", extension(21, strings.Repeat("\x00", Max-5-4-47))))}},

	// PostgreSQL documentation, "Message Formats".
	{"SSLRequest", "postgresql", []string{"\x00\x00\x00\x08\x04\xd2\x16\x2f"}},
	{"GSSENCRequest", "postgresql", []string{"\x00\x00\x00\x08\x04\xd2\x16\x30"}},
	{"StartupMessage", "postgresql", []string{startupMessage(3<<16, "user", "app", "database", "app", "options", "")}},
	{"StartupMessage of protocol 3.2", "postgresql", []string{startupMessage(3<<16|2, "database", "app", "user", "app", "_pq_.x", "1")}},
	{"StartupMessage with short words", "postgresql", []string{startupMessage(3<<16, "x", "1", "user", "a")}},
	{"StartupMessage of a replica", "postgresql", []string{startupMessage(3<<16, "user", "app", "replication", "true")}},

	// RFC 9112, section 2.1.
	{"GET", "http", []string{"GET /a?b=c HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nX-Empty:\r\n\r\n"}},
	{"GET of HTTP/1.0", "http", []string{"GET / HTTP/1.0\r\n\r\n"}},
	{"HEAD", "http", []string{"HEAD http://a/ HTTP/1.1\r\nHost: a\r\n\r\n"}},
	{"OPTIONS", "http", []string{"OPTIONS * HTTP/1.1\r\nhost:\ta\r\ncontent-length:\t0 \r\n\r\n"}},
	{"TRACE", "http", []string{"TRACE / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 2\r\n\r\n"}},
	{"GET to upgrade", "http", []string{"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"}},
	{"GET with every character of a name", "http", []string{"GET / HTTP/1.1\r\n!#$%&'*+-.^_`|~09azAZ: a\r\n\r\n"}},
	{"GET with a raw path", "http", []string{"GET /bücher HTTP/1.1\r\nHost: a\r\nX-Name: ü\r\n\r\n"}},
	{"the longest GET", "http", []string{"GET / HTTP/1.1\r\nA: " + strings.Repeat("a", Max-23) + "\r\n\r\n"}},

	// RFC 9113, sections 3.4, 6.3, 6.5 and 6.9.
	{"preface", "http2", []string{magic, frame(4, 0, 0, "\x00\x03\x00\x00\x00\x64\x00\x04\x00\x10\x00\x00"), frame(8, 0, 0, "\x00\x10\x00\x00"), frame(2, 0, 3, "\x00\x00\x00\x00\xc8"), frame(4, 0, 0, "")}},

	// RFC 4253, section 4.2.
	{"identification", "ssh", []string{"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u6\r\n"}},
	{"short identification", "ssh", []string{"SSH-2.0-Go\r\n"}},
	{"the shortest identification", "ssh", []string{"SSH-2.0-a\r\n"}},
	{"the longest identification", "ssh", []string{"SSH-2.0-" + strings.Repeat("a", 245) + "\r\n"}},

	// AMQP 0-9-1, section 4.2.2; AMQP 1.0, sections 2.2, 5.2.1 and 5.3.1.
	{"AMQP 0-9-1", "amqp", []string{"AMQP\x00\x00\x09\x01"}},
	{"AMQP 1.0", "amqp", []string{"AMQP\x00\x01\x00\x00"}},
	{"AMQP 1.0 with TLS", "amqp", []string{"AMQP\x02\x01\x00\x00"}},
	{"AMQP 1.0 with SASL", "amqp", []string{"AMQP\x03\x01\x00\x00"}},

	// MQTT 3.1.1 and 5.0, section 3.1.
	{"CONNECT of MQTT 3.1.1", "mqtt", []string{mqtt(0x10, 4, 0x02, "", text16("client"))}},
	{"CONNECT with everything", "mqtt", []string{mqtt(0x10, 4, 0xee, "", text16("client"), text16("will"), text16("bye"), text16("me"), text16("secret"))}},
	{"CONNECT of two length bytes", "mqtt", []string{mqtt(0x10, 4, 0x02, "", text16(strings.Repeat("c", 300)))}},
	{"CONNECT of 128 bytes", "mqtt", []string{mqtt(0x10, 4, 0x02, "", text16(strings.Repeat("c", 116)))}},
	{"CONNECT of MQTT 5.0", "mqtt", []string{mqtt(0x10, 5, 0x02, "\x00", text16(""))}},
	{"CONNECT of MQTT 5.0 with everything", "mqtt", []string{mqtt(0x10, 5, 0xf6, "\x05\x11\x00\x00\x00\x1e", text16("client"), "\x05\x18\x00\x00\x00\x05", text16("will"), text16("bye"), text16("me"), text16("secret"))}},
	{"CONNECT of MQTT 5.0 with a password only", "mqtt", []string{mqtt(0x10, 5, 0x40, "\x00", text16("c"), text16("token"))}},

	// Redis documentation, "Redis serialization protocol specification".
	{"PING", "redis", []string{resp("PING")}},
	{"HELLO AUTH CLIENT SELECT PING", "redis", []string{resp("hello", "3", "auth", "default", "secret", "setname", "me"), resp("CLIENT", "SETINFO", "LIB-NAME", "x"), resp("client", "SetName", "me"), resp("CLIENT", "TRACKING", "ON", "OPTIN"), resp("CLIENT", "ID"), resp("SELECT", "09"), resp("PING", "x")}},
	{"AUTH", "redis", []string{resp("AUTH", "a b\r\nSET x y"), resp("AUTH", "user", "\x00\xff")}},
	{"ECHO", "redis", []string{resp("ECHO", "")}},
	{"inline commands", "redis", []string{"PING\r\n", "ping x\n", " AUTH  user secret \r\n", "HELLO\r\n", "hello 3\r\n", "SELECT 1\r\n", "ECHO hi\r\n", "CLIENT SETNAME me\r\n", "CLIENT GETNAME\r\n", "CLIENT INFO\r\n", "CLIENT NO-EVICT on\r\n", "CLIENT NO-TOUCH on\r\n", resp("PING")}},

	// MongoDB documentation, "MongoDB Wire Protocol"; BSON 1.1.
	{"OP_MSG hello", "mongodb", []string{opMsg(0, document("\x10hello\x00\x01\x00\x00\x00", "\x02$db\x00\x06\x00\x00\x00admin\x00"))}},
	{"OP_MSG hello with checksum", "mongodb", []string{opMsg(1, document("\x01hello\x00\x00\x00\x00\x00\x00\x00\xf0\x3f")+"\x01\x02\x03\x04")}},
	{"OP_MSG isMaster for a stream of answers", "mongodb", []string{opMsg(1<<16, document("\x08isMaster\x00\x01"))}},
	{"OP_QUERY isMaster", "mongodb", []string{opQuery(0, "admin.$cmd", document("\x10isMaster\x00\x01\x00\x00\x00", "\x08helloOk\x00\x01"))}},
	{"OP_QUERY ismaster to a secondary", "mongodb", []string{opQuery(4, "admin.$cmd", document("\x10ismaster\x00\x01\x00\x00\x00"))}},

	// Kafka documentation, "Kafka protocol guide": Request Header v1 and v2,
	// ApiVersions Request.
	{"ApiVersions version 0", "kafka", []string{kafka(18, 0, "\x00\x00\x00\x01", text16("client"))}},
	{"ApiVersions version 2 without a name", "kafka", []string{kafka(18, 2, "\x00\x00\x00\x01", "\xff\xff")}},
	{"ApiVersions version 3", "kafka", []string{kafka(18, 3, "\x00\x00\x00\x01", text16("rdkafka"), "\x00", "\x0blibrdkafka", "\x062.0.2", "\x00")}},
	{"ApiVersions version 4", "kafka", []string{kafka(18, 4, "\x00\x00\x00\x01", text16(""), "\x00", "\x02a", "\x81\x01"+strings.Repeat("b", 128), "\x00")}},
	{"ApiVersions version 5", "kafka", []string{kafka(18, 5, "\x00\x00\x00\x00", text16("kgo"), "\x00", "\x04kgo", "\x08v1.22.3", "\x00", "\xff\xff\xff\xff", "\x00")}},
	{"ApiVersions version 5 with a cluster", "kafka", []string{kafka(18, 5, "\x00\x00\x00\x00", text16("kgo"), "\x00", "\x04kgo", "\x08v1.22.3", "\x04abc", "\x00\x00\x00\x07", "\x00")}},

	// RFC 4511, sections 4.1.1, 4.2 and 5.1.
	{"simple bind", "ldap", []string{element(0x30, "\x02\x01\x01", element(0x60, "\x02\x01\x03", element(4, "cn=a,dc=b"), element(0x80, "secret")))}},
	{"anonymous bind", "ldap", []string{"0\x0c\x02\x01\x01`\x07\x02\x01\x03\x04\x00\x80\x00"}},
	{"bind with long lengths", "ldap", []string{"0\x84\x00\x00\x00\x0e\x02\x01\x01`\x82\x00\x07\x02\x01\x03\x04\x00\x80\x00"}},
	{"bind with SASL", "ldap", []string{element(0x30, "\x02\x01\x01", element(0x60, "\x02\x01\x03", element(4), element(0xa3, element(4, "EXTERNAL"))))}},
	{"bind with SASL and credentials", "ldap", []string{element(0x30, "\x02\x04\x7f\x00\x00\x00", element(0x60, "\x02\x01\x03", element(4), element(0xa3, element(4, "PLAIN"), element(4, "\x00a\x00b"))))}},
	{"bind with a control", "ldap", []string{element(0x30, "\x02\x01\x01", element(0x60, "\x02\x01\x03", element(4, "cn=a"), element(0x80, strings.Repeat("s", 200))), element(0xa0, element(0x30, element(4, "1.3.6.1.4.1.42.2.27.8.5.1"))))}},
}

// others are not replayable: they have an effect, go on, or are not well formed.
var others = []struct{ name, bytes string }{
	{"nothing", ""},
	{"garbage", "\x00\xff\x17garbage\r\n\r\n"},
	{"zeros", strings.Repeat("\x00", Max)},
	{"a line", "hello world\r\n"},
	{"SMTP, which the server opens", "EHLO a\r\n"},
	{"MySQL, which the server opens", "\x20\x00\x00\x01\x8d\xa6\x0f\x00\x00\x00\x00\x01\x08" + strings.Repeat("\x00", 23)},

	{"ClientHello with early data", records(1<<14, helloOf("", extension(43, "\x02\x03\x04"), extension(42, ""), extension(41, "psk")))},
	{"ClientHello with early data in small records", records(10, helloOf("", extension(42, "")))},
	{"ClientHello and early data", records(1<<14, helloOf("", extension(42, ""))) + "\x17\x03\x03\x00\x01x"},
	{"ClientHello and ChangeCipherSpec", records(1<<14, helloOf("")) + "\x14\x03\x03\x00\x01\x01"},
	{"ClientHello and the beginning of a record", records(1<<14, helloOf("")) + "\x16\x03"},
	{"ClientHello and an empty record", records(1<<14, helloOf("")) + "\x16\x03\x01\x00\x00"},
	{"half a ClientHello and an alert", records(1<<14, helloOf("")[:20]) + "\x15\x03\x01\x00\x02\x02\x00"},
	{"two ClientHellos", records(1<<14, helloOf("")+helloOf(""))},
	{"ClientHello in a record that goes on", "\x16\x03\x01\x00\x31" + helloOf("") + "\x01"},
	{"ClientHello in a record that is longer", "\x16\x03\x01\x00\x40" + helloOf("")},
	{"half a ClientHello in a record of more than 16 KiB", "\x16\x03\x01\x40\x01" + helloOf("")[:20]},
	{"ClientHello in a record of version 2", "\x16\x02\x00" + records(1<<14, helloOf(""))[3:]},
	{"ClientHello in a record of version 3.5", "\x16\x03\x05" + records(1<<14, helloOf(""))[3:]},
	{"ClientHello of version 2", "\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x02" + helloOf("")[5:]},
	{"ClientHello and more in one message", records(1<<14, helloOf("")+"\x00\x00")},
	{"the beginning of a ClientHello longer than the limit", "\x16\x03\x01\x40\x00\x01\x00\x3f\xf8\x03\x03" + strings.Repeat("r", 100)},
	{"ServerHello", "\x16\x03\x01\x00\x2d\x02" + helloOf("")[1:]},
	{"ClientHello of SSL 2.0", "\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10" + strings.Repeat("x", 37)},
	{"ClientHello with a session of 33 bytes", records(1<<14, helloOf(strings.Repeat("s", 33)))},
	{"ClientHello whose session is longer", records(1<<14, lie(helloOf(""), 4+34, 32))},
	{"ClientHello without cipher suites", records(1<<14, "\x01\x00\x00\x29\x03\x03"+strings.Repeat("r", 32)+"\x00\x00\x00\x01\x00\x00\x00")},
	{"ClientHello with half a cipher suite", records(1<<14, "\x01\x00\x00\x28\x03\x03"+strings.Repeat("r", 32)+"\x00\x00\x01\x13\x01\x00")},
	{"ClientHello without compression methods", records(1<<14, "\x01\x00\x00\x27\x03\x03"+strings.Repeat("r", 32)+"\x00\x00\x02\x13\x01\x00")},
	{"ClientHello whose extensions are shorter", records(1<<14, lie(helloOf("", extension(43, "abc")), 4+34+1+4+2+1, 6))},
	{"ClientHello whose extension is longer", records(1<<14, lie(helloOf("", extension(43, "abc")), 4+34+1+4+2+2+3, 4))},

	{"CancelRequest", "\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x00\x00\x01\x00\x00\x00\x02"},
	{"CancelRequest with a long key", "\x00\x00\x00\x2c\x04\xd2\x16\x2e\x00\x00\x00\x01" + strings.Repeat("k", 32)},
	{"SSLRequest that is longer", "\x00\x00\x00\x09\x04\xd2\x16\x2fx"},
	{"SSLRequest that claims more", "\x00\x00\x00\x09\x04\xd2\x16\x2f"},
	{"SSLRequest and ClientHello", "\x00\x00\x00\x08\x04\xd2\x16\x2f" + records(1<<14, helloOf(""))},
	{"SSLRequest and StartupMessage", "\x00\x00\x00\x08\x04\xd2\x16\x2f" + startupMessage(3<<16, "user", "app")},
	{"StartupMessage of protocol 2", startupMessage(2<<16, "user", "app")},
	{"StartupMessage of protocol 4", startupMessage(4<<16, "user", "app")},
	{"StartupMessage without a user", startupMessage(3<<16, "database", "app")},
	{"StartupMessage with an empty user", startupMessage(3<<16, "user", "")},
	{"StartupMessage without parameters", "\x00\x00\x00\x08\x00\x03\x00\x00"},
	{"StartupMessage without its end", "\x00\x00\x00\x11\x00\x03\x00\x00user\x00app\x00"},
	{"StartupMessage with more behind its end", "\x00\x00\x00\x14\x00\x03\x00\x00user\x00app\x00\x00ab"},
	{"StartupMessage and a query", startupMessage(3<<16, "user", "app") + "Q\x00\x00\x00\x0dselect 1\x00"},
	{"a query of PostgreSQL", "Q\x00\x00\x00\x0dselect 1\x00"},

	{"POST", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"},
	{"POST with content", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"},
	{"PUT", "PUT / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"DELETE", "DELETE / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"PATCH", "PATCH / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"CONNECT", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"get", "get / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"GET with content", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"},
	{"GET whose content is to come", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"},
	{"GET with 00 bytes of content", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 00\r\n\r\n"},
	{"GET with two lengths", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\ncontent-length: 4\r\n\r\n"},
	{"GET with a list of lengths", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0\r\n\r\n"},
	{"GET with chunks", "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"},
	{"GET with chunks in small letters", "GET / HTTP/1.1\r\nHost: a\r\ntransfer-encoding:chunked\r\n\r\n"},
	{"GET that is a DELETE", "GET / HTTP/1.1\r\nHost: a\r\nX-HTTP-Method-Override: DELETE\r\n\r\n"},
	{"GET that is a PUT", "GET / HTTP/1.1\r\nHost: a\r\nx-http-method: PUT\r\n\r\n"},
	{"GET that is a PATCH", "GET / HTTP/1.1\r\nHost: a\r\nX-Method-Override: PATCH\r\n\r\n"},
	{"two GETs", "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"GET and POST", "GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"GET with bare line feeds", "GET / HTTP/1.1\nHost: a\n\n"},
	{"GET with one bare line feed", "GET / HTTP/1.1\r\nHost: a\nB: c\r\n\r\n"},
	{"GET that ends with a bare line feed", "GET / HTTP/1.1\r\nHost: a\r\n\n"},
	{"GET with a bare carriage return", "GET / HTTP/1.1\r\nA: b\rContent-Length: 5\r\n\r\n"},
	{"GET behind an empty line", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"GET of HTTP/0.9", "GET /\r\n"},
	{"GET of HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n"},
	{"GET of HTTP/2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n"},
	{"GET without a target", "GET  HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"GET with two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"GET with a space in its target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"GET with a control character in its target", "GET /a\x01 HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"GET with a folded header", "GET / HTTP/1.1\r\nHost: a\r\n Content-Length: 5\r\n\r\n"},
	{"GET with a space behind a name", "GET / HTTP/1.1\r\nContent-Length : 5\r\n\r\n"},
	{"GET with a name that is no token", "GET / HTTP/1.1\r\nA@B: a\r\n\r\n"},
	{"GET with a header without a name", "GET / HTTP/1.1\r\n: a\r\n\r\n"},
	{"GET with a header without a colon", "GET / HTTP/1.1\r\nHost\r\n\r\n"},
	{"GET with a zero byte in a header", "GET / HTTP/1.1\r\nHost: a\x00\r\n\r\n"},
	{"GET longer than the limit", "GET / HTTP/1.1\r\nA: " + strings.Repeat("a", Max-22) + "\r\n\r\n"},

	{"preface and a request", magic + frame(4, 0, 0, "") + frame(1, 5, 1, "\x82\x84\x86")},
	{"preface and data", magic + frame(4, 0, 0, "") + frame(0, 1, 1, "x")},
	{"preface and PING", magic + frame(4, 0, 0, "") + frame(6, 0, 0, "12345678")},
	{"preface and GOAWAY", magic + frame(4, 0, 0, "") + frame(7, 0, 0, "12345678")},
	{"preface and an acknowledgement", magic + frame(4, 1, 0, "")},
	{"preface without SETTINGS", magic + frame(8, 0, 0, "\x00\x10\x00\x00")},
	{"preface and PRIORITY first", magic + frame(2, 0, 3, "\x00\x00\x00\x00\xc8")},
	{"preface and half a setting", magic + frame(4, 0, 0, "\x00\x03\x00")},
	{"preface and SETTINGS of a stream", magic + frame(4, 0, 1, "")},
	{"preface and WINDOW_UPDATE of a stream", magic + frame(4, 0, 0, "") + frame(8, 0, 1, "\x00\x10\x00\x00")},
	{"preface and a short WINDOW_UPDATE", magic + frame(4, 0, 0, "") + frame(8, 0, 0, "\x00\x10\x00")},
	{"preface and PRIORITY of no stream", magic + frame(4, 0, 0, "") + frame(2, 0, 0, "\x00\x00\x00\x00\xc8")},
	{"preface and a short PRIORITY", magic + frame(4, 0, 0, "") + frame(2, 0, 3, "\x00\x00\x00\x00")},
	{"preface and a frame that claims more", magic + "\xff\xff\xff\x04\x00\x00\x00\x00\x00"},
	{"PRI with a header", "PRI * HTTP/2.0\r\nHost: a\r\n\r\nSM\r\n\r\n"},

	{"identification of protocol 1", "SSH-1.5-OpenSSH\r\n"},
	{"identification of both protocols", "SSH-1.99-OpenSSH\r\n"},
	{"identification without a name", "SSH-2.0-\r\n"},
	{"identification with a space first", "SSH-2.0- a\r\n"},
	{"identification with a bare line feed", "SSH-2.0-OpenSSH\n"},
	{"identification with a control character", "SSH-2.0-a\x00b\r\n"},
	{"identification with a DEL", "SSH-2.0-a\x7f\r\n"},
	{"identification longer than 255 bytes", "SSH-2.0-" + strings.Repeat("a", 246) + "\r\n"},
	{"identification and KEXINIT", "SSH-2.0-OpenSSH\r\n\x00\x00\x00\x0c\x0a\x14" + strings.Repeat("k", 10)},
	{"two identifications", "SSH-2.0-a\r\nSSH-2.0-b\r\n"},

	{"AMQP 0-9", "AMQP\x01\x01\x00\x09"},
	{"AMQP 1.1", "AMQP\x00\x01\x01\x00"},
	{"AMQP header and open", "AMQP\x00\x01\x00\x00\x00\x00\x00\x0c\x02\x00\x00\x00\x00\x53\x10\xc0"},
	{"two AMQP headers", "AMQP\x03\x01\x00\x00AMQP\x00\x01\x00\x00"},

	{"CONNECT and SUBSCRIBE", mqtt(0x10, 4, 2, "", text16("c")) + "\x82\x06\x00\x01\x00\x01a\x00"},
	{"CONNECT and PUBLISH", mqtt(0x10, 4, 2, "", text16("c")) + "\x30\x04\x00\x01ab"},
	{"PUBLISH", "\x30\x04\x00\x01ab"},
	{"SUBSCRIBE", "\x82\x06\x00\x01\x00\x01a\x00"},
	{"CONNECT of MQTT 3.1", "\x10\x11\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x03abc"},
	{"CONNECT of MQTT 6", mqtt(0x10, 6, 2, "", text16("c"))},
	{"CONNECT with flags in its type", mqtt(0x11, 4, 2, "", text16("c"))},
	{"CONNECT with the reserved flag", mqtt(0x10, 4, 3, "", text16("c"))},
	{"CONNECT with a will's flags and no will", mqtt(0x10, 4, 0x20, "", text16("c"))},
	{"CONNECT with a will of QoS 3", mqtt(0x10, 4, 0x1c, "", text16("c"), text16("w"), text16("b"))},
	{"CONNECT with a password and no user", mqtt(0x10, 4, 0x40, "", text16("c"), text16("p"))},
	{"CONNECT without its will", mqtt(0x10, 4, 4, "", text16("c"))},
	{"CONNECT with more", mqtt(0x10, 4, 2, "", text16("c"), "x")},
	{"CONNECT whose name is longer", mqtt(0x10, 4, 2, "", "\x00\x09c")},
	{"CONNECT without properties", mqtt(0x10, 5, 2, "")},
	{"CONNECT whose properties are longer", mqtt(0x10, 5, 2, "\x7f", text16("c"))},
	{"CONNECT with five length bytes", "\x10\xff\xff\xff\xff\x01" + mqtt(0x10, 4, 2, "", text16("c"))[2:]},
	{"CONNECT with a right length of five bytes", "\x10\x8d\x80\x80\x80\x00" + mqtt(0x10, 4, 2, "", text16("c"))[2:]},
	{"CONNECT that claims less", lie(mqtt(0x10, 4, 2, "", text16("c")), 1, 5)},

	{"SET", resp("SET", "a", "b")},
	{"EVAL", resp("EVAL", "return redis.call('set','a','b')", "0")},
	{"SUBSCRIBE of Redis", resp("SUBSCRIBE", "a")},
	{"PING and SET", resp("PING") + resp("SET", "a", "b")},
	{"PING and half a SET", resp("PING") + resp("SET", "a", "b")[:12]},
	{"CLIENT", resp("CLIENT")},
	{"CLIENT KILL", resp("CLIENT", "KILL", "TYPE", "normal")},
	{"CLIENT PAUSE", resp("client", "pause", "1000")},
	{"CLIENT UNBLOCK", resp("CLIENT", "UNBLOCK", "1")},
	{"CLIENT REPLY", resp("CLIENT", "REPLY", "OFF")},
	{"CLIENT TRACKING to another connection", resp("CLIENT", "TRACKING", "ON", "redirect", "7")},
	{"AUTH without a password", resp("AUTH")},
	{"AUTH with more", resp("AUTH", "a", "b", "c")},
	{"ECHO without a word", resp("ECHO")},
	{"PING with more", resp("PING", "a", "b")},
	{"SELECT of SQL", "SELECT nextval('a')\r\n"},
	{"SELECT of nothing", resp("SELECT", "")},
	{"HELLO to somebody", "HELLO world\r\n"},
	{"HELLO of nothing", resp("HELLO", "")},
	{"RESET", resp("RESET")},
	{"QUIT", resp("QUIT")},
	{"MULTI", resp("MULTI")},
	{"inline SET", "SET a b\r\n"},
	{"inline PING and SET", "PING\r\nSET a b\r\n"},
	{"inline PING with quotes", "PING \"a\r\n"},
	{"inline PING with a zero byte", "PING \x00\r\n"},
	{"inline PING with a carriage return", "PING a\rSET\r\n"},
	{"inline CLIENT KILL", "client kill 127.0.0.1:1\r\n"},
	{"an empty line", "\r\n"},
	{"an empty array", "*0\r\n"},
	{"an array without words", "*1\r\n"},
	{"an array of numbers", "*1\r\n:1\r\n"},
	{"an array with a bare line feed", "*1\n$4\r\nPING\r\n"},
	{"an array of -1", "*-1\r\n"},
	{"an array without a number", "*\r\n$4\r\nPING\r\n"},
	{"an array that claims more", "*99999\r\n$4\r\nPING\r\n"},
	{"an array of 2^64 words", "*18446744073709551616\r\n$4\r\nPING\r\n"},
	{"a word that claims more", "*1\r\n$5\r\nPING\r\n"},
	{"a word that claims less", "*1\r\n$3\r\nPING\r\n"},
	{"a word with another end", "*1\r\n$4\r\nPINGx\n"},
	{"a word with yet another end", "*1\r\n$4\r\nPING\rx"},
	{"a word that claims far more", "*1\r\n$99999\r\nPING\r\n"},
	{"a word of -1", "*1\r\n$-1\r\nPING\r\n"},
	{"more than 16 KiB of PING", strings.Repeat("PING\r\n", Max/6+1)},

	{"OP_MSG insert", opMsg(0, document("\x02insert\x00\x02\x00\x00\x00a\x00", "\x10hello\x00\x01\x00\x00\x00"))},
	{"OP_MSG hello without an answer", opMsg(2, document("\x10hello\x00\x01\x00\x00\x00"))},
	{"OP_MSG hello with an unknown flag", opMsg(4, document("\x10hello\x00\x01\x00\x00\x00"))},
	{"OP_MSG hello with more", opMsg(0, document("\x10hello\x00\x01\x00\x00\x00")+"\x00")},
	{"OP_MSG hello with a second section", opMsg(0, document("\x10hello\x00\x01\x00\x00\x00")+"\x00"+document())},
	{"OP_MSG of documents", header(2013, "\x00\x00\x00\x00\x01"+document("\x10hello\x00\x01\x00\x00\x00"))},
	{"OP_MSG hello with half a checksum", opMsg(1, document("\x10hello\x00\x01\x00\x00\x00")+"\x01\x02")},
	{"OP_MSG of a checksum", opMsg(1, "\x00")},
	{"OP_MSG without a document", opMsg(0, "")},
	{"OP_MSG without a section", header(2013, "\x00\x00\x00\x00")},
	{"OP_MSG with an empty document", opMsg(0, document())},
	{"OP_MSG whose document claims more", opMsg(0, "\xff\x00\x00\x00\x10hello\x00\x01\x00\x00\x00\x00")},
	{"OP_MSG whose document has no end", opMsg(0, "\x10\x00\x00\x00\x10hello\x00\x01\x00\x00\x01")},
	{"OP_MSG whose element has no end", opMsg(0, "\x0a\x00\x00\x00\x10hello")},
	{"OP_MSG HELLO", opMsg(0, document("\x10HELLO\x00\x01\x00\x00\x00"))},
	{"OP_MSG that is an answer", lie(opMsg(0, document("\x10hello\x00\x01\x00\x00\x00")), 8, 1)},
	{"OP_MSG that claims more", lie(opMsg(0, document("\x10hello\x00\x01\x00\x00\x00")), 0, 0xff)},
	{"two OP_MSG hellos", strings.Repeat(opMsg(0, document("\x10hello\x00\x01\x00\x00\x00")), 2)},
	{"OP_QUERY find", opQuery(0, "a.b", document("\x10isMaster\x00\x01\x00\x00\x00"))},
	{"OP_QUERY shutdown", opQuery(0, "admin.$cmd", document("\x10shutdown\x00\x01\x00\x00\x00"))},
	{"OP_QUERY isMaster with a tail", opQuery(2, "admin.$cmd", document("\x10isMaster\x00\x01\x00\x00\x00"))},
	{"OP_QUERY isMaster with an unknown flag", opQuery(1, "admin.$cmd", document("\x10isMaster\x00\x01\x00\x00\x00"))},
	{"OP_QUERY isMaster with fields", opQuery(0, "admin.$cmd", document("\x10isMaster\x00\x01\x00\x00\x00")+document())},
	{"OP_QUERY without a name", header(2004, "\x00\x00\x00\x00admin.$cmd")},
	{"OP_INSERT", header(2002, "\x00\x00\x00\x00a.b\x00"+document("\x10hello\x00\x01\x00\x00\x00"))},

	{"Metadata", kafka(3, 0, "\x00\x00\x00\x01", text16("c"), "\x00\x00\x00\x00")},
	{"Produce", kafka(0, 3, "\x00\x00\x00\x01", text16("c"), "\xff\xff\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00")},
	{"SaslHandshake", kafka(17, 1, "\x00\x00\x00\x01", text16("c"), text16("PLAIN"))},
	{"ApiVersions version 6", kafka(18, 6, "\x00\x00\x00\x01", text16("c"), "\x00\x02a\x02b\x00\x00\x00\x00\x00\x00")},
	{"ApiVersions and Metadata", kafka(18, 0, "\x00\x00\x00\x01", text16("c")) + kafka(3, 0, "\x00\x00\x00\x01", text16("c"), "\x00\x00\x00\x00")},
	{"two ApiVersions", strings.Repeat(kafka(18, 0, "\x00\x00\x00\x01", text16("c")), 2)},
	{"ApiVersions version 0 with more", kafka(18, 0, "\x00\x00\x00\x01", text16("c"), "x")},
	{"ApiVersions whose name is longer", kafka(18, 0, "\x00\x00\x00\x01", "\x00\x09c")},
	{"ApiVersions with a name of -2", kafka(18, 0, "\x00\x00\x00\x01", "\xff\xfe")},
	{"ApiVersions version 3 without software", kafka(18, 3, "\x00\x00\x00\x01", text16("c"), "\x00\x00\x02b\x00")},
	{"ApiVersions version 3 without its release", kafka(18, 3, "\x00\x00\x00\x01", text16("c"), "\x00\x02a\x00\x00")},
	{"ApiVersions version 3 with a tag in its header", kafka(18, 3, "\x00\x00\x00\x01", text16("c"), "\x01\x02a\x02b\x00")},
	{"ApiVersions version 3 with a tag", kafka(18, 3, "\x00\x00\x00\x01", text16("c"), "\x00\x02a\x02b\x01")},
	{"ApiVersions version 5 without a node", kafka(18, 5, "\x00\x00\x00\x01", text16("c"), "\x00\x02a\x02b\x00\x00")},
	{"ApiVersions that claims more", lie(kafka(18, 0, "\x00\x00\x00\x01", text16("c")), 3, 99)},
	{"ApiVersions of 4 GiB", "\xff\xff\xff\xff" + kafka(18, 0, "\x00\x00\x00\x01", text16("c"))[4:]},

	{"bind and search", element(0x30, "\x02\x01\x01", element(0x60, "\x02\x01\x03\x04\x00\x80\x00")) + element(0x30, "\x02\x01\x02", element(0x63))},
	{"two binds", strings.Repeat("0\x0c\x02\x01\x01`\x07\x02\x01\x03\x04\x00\x80\x00", 2)},
	{"bind of LDAPv2", "0\x0c\x02\x01\x01`\x07\x02\x01\x02\x04\x00\x80\x00"},
	{"unbind", "0\x05\x02\x01\x01\x42\x00"},
	{"search", element(0x30, "\x02\x01\x01", element(0x63, "\x04\x00"))},
	{"modify", element(0x30, "\x02\x01\x01", element(0x66, "\x04\x00\x30\x00"))},
	{"extended request", element(0x30, "\x02\x01\x01", element(0x77, element(0x80, "1.3.6.1.4.1.1466.20037")))},
	{"bind with another authentication", "0\x0c\x02\x01\x01`\x07\x02\x01\x03\x04\x00\x8a\x00"},
	{"bind without authentication", "0\x0a\x02\x01\x01`\x05\x02\x01\x03\x04\x00"},
	{"bind with more in the request", "0\x0e\x02\x01\x01`\x09\x02\x01\x03\x04\x00\x80\x00\x80\x00"},
	{"bind with more in the message", "0\x0e\x02\x01\x01`\x07\x02\x01\x03\x04\x00\x80\x00\x04\x00"},
	{"bind with SASL without a mechanism", element(0x30, "\x02\x01\x01", element(0x60, "\x02\x01\x03\x04\x00", element(0xa3)))},
	{"bind with SASL and more", element(0x30, "\x02\x01\x01", element(0x60, "\x02\x01\x03\x04\x00", element(0xa3, "\x04\x00\x04\x00\x04\x00")))},
	{"bind without a number", "0\x0b\x02\x00`\x07\x02\x01\x03\x04\x00\x80\x00"},
	{"bind with a number of five bytes", "0\x10\x02\x05\x01\x01\x01\x01\x01`\x07\x02\x01\x03\x04\x00\x80\x00"},
	{"bind of indefinite length", "0\x80\x02\x01\x01`\x07\x02\x01\x03\x04\x00\x80\x00\x00\x00"},
	{"bind of indefinite length and 128 bytes", "0\x80" + element(0x30, "\x02\x01\x01", element(0x60, "\x02\x01\x03", element(4), "\x80\x74"+strings.Repeat("s", 116)))[4:]},
	{"bind with a length of five bytes", "0\x85\x00\x00\x00\x00\x0c\x02\x01\x01`\x07\x02\x01\x03\x04\x00\x80\x00"},
	{"bind that claims 4 GiB", "0\x84\xff\xff\xff\xff\x02\x01\x01`\x07\x02\x01\x03\x04\x00\x80\x00"},
	{"bind whose request is longer", "0\x0c\x02\x01\x01`\x08\x02\x01\x03\x04\x00\x80\x00"},
	{"bind whose name is longer", "0\x0c\x02\x01\x01`\x07\x02\x01\x03\x04\x03\x80\x00"},
}

const magic = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

func TestReplayable(t *testing.T) {
	for _, tt := range openings {
		b := []byte(strings.Join(tt.parts, ""))
		if protocol, ok := Replayable(b); protocol != tt.protocol || !ok {
			t.Errorf("%s: Replayable(%.100q) = %q, %t, want %q, true", tt.name, b, protocol, ok, tt.protocol)
		}
	}
	for _, tt := range others {
		if protocol, ok := Replayable([]byte(tt.bytes)); protocol != "" || ok {
			t.Errorf("%s: Replayable(%.100q) = %q, %t, want \"\", false", tt.name, tt.bytes, protocol, ok)
		}
	}
}

// Of an opening that is cut anywhere, only whole parts are replayable, and a
// ClientHello from its version on.
func TestReplayableCutAtEveryByte(t *testing.T) {
	for _, tt := range openings {
		b := []byte(strings.Join(tt.parts, ""))
		var whole []int
		end := 0
		for _, part := range tt.parts {
			end += len(part)
			whole = append(whole, end)
		}
		for n := range b {
			want := slices.Contains(whole, n)
			if tt.protocol == "tls" {
				want = carried(b[:n]) >= 6 // type, length and version
			}
			if protocol, ok := Replayable(b[:n]); ok != want || ok && protocol != tt.protocol {
				t.Errorf("%s: the first %d of %d bytes: Replayable = %q, %t, want %t", tt.name, n, len(b), protocol, ok, want)
			}
		}
	}
}

// The longest record that RFC 8446, section 5.1, allows, with the beginning of the
// longest ClientHello that is recognized.
func TestReplayableLongestLengths(t *testing.T) {
	b := []byte("\x16\x03\x01\x40\x00\x01\x00\x3f\xf7\x03\x03" + strings.Repeat("r", 100))
	if protocol, ok := Replayable(b); protocol != "tls" || !ok {
		t.Errorf("Replayable(%.20q) = %q, %t, want \"tls\", true", b, protocol, ok)
	}
}

// carried returns how many bytes of messages the records of TLS in b carry.
func carried(b []byte) (n int) {
	for len(b) >= 5 {
		size := min(int(binary.BigEndian.Uint16(b[3:])), len(b)-5)
		n += size
		b = b[5+size:]
	}
	return n
}

// Behind an opening, no byte may follow, and of other openings only those that
// are further parts of the same.
func TestReplayableRefusesWhatFollows(t *testing.T) {
	for _, first := range openings {
		b := []byte(strings.Join(first.parts, ""))
		for c := range 256 {
			if protocol, ok := Replayable(append(slices.Clip(b), byte(c))); ok {
				t.Errorf("%s and the byte %#x: Replayable = %q, true", first.name, c, protocol)
			}
		}
		for _, second := range openings {
			want := first.protocol == "redis" && second.protocol == "redis"
			protocol, ok := Replayable(append(slices.Clip(b), strings.Join(second.parts, "")...))
			if ok != want {
				t.Errorf("%s and %s: Replayable = %q, %t, want %t", first.name, second.name, protocol, ok, want)
			}
		}
		for _, second := range others[1:] { // all but nothing
			if protocol, ok := Replayable(append(slices.Clip(b), second.bytes...)); ok {
				t.Errorf("%s and %s: Replayable = %q, true", first.name, second.name, protocol)
			}
		}
	}
}

func TestReplayableAllocates(t *testing.T) {
	for _, tt := range openings {
		b := []byte(strings.Join(tt.parts, ""))
		if strings.Contains(tt.name, "records") {
			continue // they are put together
		}
		if n := testing.AllocsPerRun(10, func() { Replayable(b) }); n != 0 {
			t.Errorf("%s: %v allocations", tt.name, n)
		}
	}
	for _, tt := range others {
		b := []byte(tt.bytes)
		if strings.Contains(tt.name, "ClientHello") {
			continue
		}
		if n := testing.AllocsPerRun(10, func() { Replayable(b) }); n != 0 {
			t.Errorf("%s: %v allocations", tt.name, n)
		}
	}
}

func FuzzReplayable(f *testing.F) {
	for _, tt := range openings {
		f.Add([]byte(strings.Join(tt.parts, "")), []byte("x"))
		for _, part := range tt.parts {
			f.Add([]byte(strings.Join(tt.parts, "")), []byte(part))
		}
	}
	for _, tt := range others {
		f.Add([]byte(tt.bytes), []byte("x"))
	}
	f.Fuzz(func(t *testing.T, b, more []byte) {
		before := bytes.Clone(b)
		protocol, ok := Replayable(b)
		if again, same := Replayable(slices.Clip(before)); again != protocol || same != ok || !bytes.Equal(before, b) {
			t.Fatalf("Replayable(%q) = %q, %t, then %q, %t", b, protocol, ok, again, same)
		}
		if ok != (protocol != "") || ok && (len(b) == 0 || len(b) > Max) {
			t.Fatalf("Replayable of %d bytes = %q, %t", len(b), protocol, ok)
		}
		if !ok {
			return
		}
		if protocol == "http" {
			r := bufio.NewReader(bytes.NewReader(b))
			request, err := http.ReadRequest(r)
			if err != nil {
				return // stricter than a host may be
			}
			rest, err := io.ReadAll(r)
			if len(rest) > 0 || err != nil || request.ContentLength != 0 || request.TransferEncoding != nil ||
				!slices.Contains([]string{"GET", "HEAD", "OPTIONS", "TRACE"}, request.Method) {
				t.Fatalf("Replayable(%q) is %q, for net/http: %s, length %d, encoding %q, %d bytes behind it, %v",
					b, protocol, request.Method, request.ContentLength, request.TransferEncoding, len(rest), err)
			}
		}
		if len(more) == 0 {
			return
		}
		longer, ok := Replayable(slices.Concat(b, more))
		switch {
		case !ok:
		case longer != protocol:
			t.Fatalf("Replayable(%q) = %q, and with %q it is %q", b, protocol, more, longer)
		case protocol == "redis":
			if _, ok := Replayable(more); !ok {
				t.Fatalf("Replayable(%q) is true, and still with %q", b, more)
			}
		case protocol == "http2":
			if _, ok := Replayable(slices.Concat([]byte(magic+frame(4, 0, 0, "")), more)); !ok && string(b) != magic {
				t.Fatalf("Replayable(%q) is true, and still with %q", b, more)
			}
		case protocol == "tls": // b was incomplete
		default:
			t.Fatalf("Replayable(%q) is true, and still with %q", b, more)
		}
	})
}

func BenchmarkReplayable(bench *testing.B) {
	for _, tt := range []struct{ name, bytes string }{
		{"opening=tls", records(1<<14, helloOf(strings.Repeat("s", 32), extension(0, "\x00\x0c\x00\x00\x09localhost"), extension(51, strings.Repeat("k", 1216))))},
		{"opening=http", "GET /index.html HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n"},
		{"opening=http-browser", "GET /index.html HTTP/1.1\r\nHost: www.example.com\r\nCookie: " + strings.Repeat("c", 500) + "\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\nAccept: text/html,*/*;q=0.8\r\n\r\n"},
		{"opening=postgresql", startupMessage(3<<16, "user", "app", "database", "app", "application_name", "psql")},
		{"opening=redis", resp("HELLO", "3", "AUTH", "default", "secret") + resp("CLIENT", "SETINFO", "LIB-NAME", "x") + resp("SELECT", "1")},
		{"opening=ssh", "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u6\r\n"},
		{"opening=ldap", "0\x0c\x02\x01\x01`\x07\x02\x01\x03\x04\x00\x80\x00"},
		{"opening=none", "\x00\x01\x02\x03\x04\x05\x06\x07"},
		{"opening=none-16KiB", strings.Repeat("x", Max)},
		{"opening=http-16KiB", "GET / HTTP/1.1\r\nA: " + strings.Repeat("a", Max-23) + "\r\n\r\n"},
	} {
		b := []byte(tt.bytes)
		bench.Run(tt.name, func(bench *testing.B) {
			bench.SetBytes(int64(len(b)))
			bench.ReportAllocs()
			for bench.Loop() {
				Replayable(b)
			}
		})
	}
}

func ExampleReplayable() {
	for _, sent := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\n",
		"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n",
		"PING\r\n",
		"PING\r\nDEL a\r\n",
	} {
		protocol, ok := Replayable([]byte(sent))
		fmt.Printf("%t %q\n", ok, protocol)
	}
	// Output:
	// true "http"
	// false ""
	// false ""
	// true "redis"
	// false ""
}

// helloOf is a ClientHello with a session and extensions: RFC 8446, section
// 4.1.2.
func helloOf(session string, extensions ...string) string {
	body := "\x03\x03" + strings.Repeat("r", 32) + string(rune(len(session))) + session + "\x00\x02\x13\x01" + "\x01\x00"
	if extensions != nil {
		body += text16(strings.Join(extensions, ""))
	}
	return "\x01\x00" + text16(body)
}

func extension(kind uint16, data string) string {
	return string(binary.BigEndian.AppendUint16(nil, kind)) + text16(data)
}

// records puts a message into records of at most size bytes: RFC 8446, section
// 5.1.
func records(size int, message string) string {
	var b strings.Builder
	for part := range slices.Chunk([]byte(message), size) {
		b.WriteString("\x16\x03\x01" + text16(string(part)))
	}
	return b.String()
}

// text16 puts the length of a text before it, in two bytes.
func text16(text string) string {
	return string(binary.BigEndian.AppendUint16(nil, uint16(len(text)))) + text
}

func startupMessage(version uint32, parameters ...string) string {
	body := string(binary.BigEndian.AppendUint32(nil, version)) + strings.Join(parameters, "\x00") + "\x00\x00"
	return string(binary.BigEndian.AppendUint32(nil, uint32(4+len(body)))) + body
}

func frame(kind, flags byte, stream uint32, payload string) string {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	return string(binary.BigEndian.AppendUint32(append(b, flags), stream)) + payload
}

// mqtt is a packet with the fields of CONNECT.
func mqtt(kind, level, flags byte, fields ...string) string {
	body := text16("MQTT") + string([]byte{level, flags}) + "\x00\x3c" + strings.Join(fields, "")
	return string(binary.AppendUvarint([]byte{kind}, uint64(len(body)))) + body
}

func resp(words ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(words))
	for _, word := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(word), word)
	}
	return b.String()
}

// header puts the header of MongoDB's messages before a body.
func header(code uint32, body string) string {
	b := binary.LittleEndian.AppendUint32(nil, uint32(16+len(body)))
	b = append(b, "\x07\x00\x00\x00\x00\x00\x00\x00"...)
	return string(binary.LittleEndian.AppendUint32(b, code)) + body
}

func opMsg(flags uint32, body string) string {
	return header(2013, string(binary.LittleEndian.AppendUint32(nil, flags))+"\x00"+body)
}

func opQuery(flags uint32, collection, body string) string {
	return header(2004, string(binary.LittleEndian.AppendUint32(nil, flags))+collection+"\x00"+"\x00\x00\x00\x00\xff\xff\xff\xff"+body)
}

func document(elements ...string) string {
	body := strings.Join(elements, "") + "\x00"
	return string(binary.LittleEndian.AppendUint32(nil, uint32(4+len(body)))) + body
}

func kafka(key, version uint16, fields ...string) string {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, key), version)
	body := string(b) + strings.Join(fields, "")
	return string(binary.BigEndian.AppendUint32(nil, uint32(len(body)))) + body
}

// element is an element of BER with contents of less than 64 KiB.
func element(tag byte, contents ...string) string {
	body := strings.Join(contents, "")
	if len(body) < 0x80 {
		return string([]byte{tag, byte(len(body))}) + body
	}
	return string([]byte{tag, 0x82}) + text16(body)
}

// lie sets the byte at an offset.
func lie(message string, at int, value byte) string {
	return message[:at] + string([]byte{value}) + message[at+1:]
}
