// Package opening recognizes the first bytes of clients that have no effect on
// a host: a handshake, a greeting, a login, a request that only reads. A client
// whose host failed before its first answer can be connected to another host,
// and such bytes sent again.
//
// The rule: bytes are replayable when all of them together are one opening of
// the list below and nothing else. Bytes that are only the beginning of an
// opening, that go on behind it, whose lengths do not agree, or that are longer
// than [Max] are not. A recognizer is stricter than the hosts are: an opening in
// an unusual form is not replayed, which costs one client a reset, while a
// recognizer that accepts too much would make something happen twice.
//
// A ClientHello of TLS is the one opening that is also replayable while it is
// incomplete, because today's are longer than one segment: its first eleven
// bytes show what it is, a server acts on no part of it, and nothing that has
// an effect can be sent before its end.
//
// What is recognized, and where its form is defined:
//
//   - tls: a ClientHello in one or several records, without the extension
//     early_data (RFC 8446, sections 4.1.2, 4.2.10 and 5.1; RFC 5246, section
//     7.4.1.2).
//   - postgresql: one SSLRequest, GSSENCRequest or StartupMessage of protocol 3
//     (PostgreSQL documentation, "Message Formats"). CancelRequest is not: it
//     ends a query.
//   - http: the head of one HTTP/1.0 or HTTP/1.1 request with the method GET,
//     HEAD, OPTIONS or TRACE and without content (RFC 9110, section 9.2.1; RFC
//     9112, sections 2 to 6).
//   - http2: the client preface, then whole frames SETTINGS, WINDOW_UPDATE and
//     PRIORITY (RFC 9113, sections 3.4 and 6). HEADERS is not: it is a request,
//     and compressed.
//   - ssh: the identification of protocol 2.0 (RFC 4253, section 4.2).
//   - amqp: one protocol header of AMQP 0-9-1 (section 4.2.2) or AMQP 1.0
//     (sections 2.2, 5.2.1 and 5.3.1).
//   - mqtt: one CONNECT of MQTT 3.1.1 or 5.0 (section 3.1 of each).
//   - redis: commands PING, HELLO, AUTH, ECHO, SELECT and those of CLIENT that
//     change only the connection, as arrays or inline (Redis documentation,
//     "Redis serialization protocol specification").
//   - mongodb: one hello or isMaster, as OP_MSG or as OP_QUERY (MongoDB
//     documentation, "MongoDB Wire Protocol").
//   - kafka: one ApiVersions request of version 0 to 5 (Kafka documentation,
//     "Kafka protocol guide").
//   - ldap: one bind request of LDAPv3 (RFC 4511, sections 4.1.1, 4.2 and 5.1).
//
// Where the server speaks first, as with MySQL and SMTP, the client has said
// nothing when its host fails, and there is nothing to recognize.
package opening

// Max is the length in bytes of the longest opening that is recognized. A
// caller that keeps what a client sends need not keep more.
const Max = 16 << 10

// Replayable reports whether b, which is all that a client has sent, is an
// opening without effect, and the name of its protocol, as in the list above.
// The name is "" when ok is false. No bytes at all are not an opening.
//
// Replayable only reads b, keeps no reference to it, and takes time in
// proportion to its length. It allocates memory only for a ClientHello in
// several records.
func Replayable(b []byte) (protocol string, ok bool) {
	switch {
	case len(b) == 0 || len(b) > Max:
		return "", false
	case clientHello(b):
		return "tls", true
	case safeRequest(b):
		return "http", true
	case startup(b):
		return "postgresql", true
	case commands(b):
		return "redis", true
	case preface(b):
		return "http2", true
	case identification(b):
		return "ssh", true
	case hello(b):
		return "mongodb", true
	case apiVersions(b):
		return "kafka", true
	case connect(b):
		return "mqtt", true
	case protocolHeader(b):
		return "amqp", true
	case bind(b):
		return "ldap", true
	}
	return "", false
}
