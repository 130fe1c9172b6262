package opening

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/internal/proctest"
)

func TestMain(m *testing.M) { os.Exit(proctest.Main(m, nil)) }

// What real clients say to a host that accepts them and does not answer.
func TestOpeningsOfClients(t *testing.T) {
	for _, tt := range []struct {
		name     string
		protocol string
		command  string // HOST and PORT are the listener's
	}{
		{"psql", "postgresql", "psql|-X|host=HOST port=PORT user=app dbname=app sslmode=prefer"},
		{"psql without TLS", "postgresql", "psql|-X|host=HOST port=PORT user=app dbname=app sslmode=disable options=-cwork_mem=1MB"},

		{"openssl", "tls", "openssl|s_client|-connect|HOST:PORT|-servername|localhost"},
		{"openssl with TLS 1.2", "tls", "openssl|s_client|-connect|HOST:PORT|-tls1_2"},
		{"openssl in several records", "tls", "openssl|s_client|-connect|HOST:PORT|-max_send_frag|512|-alpn|" + strings.Repeat("abcdefghijklmnopqrstuvwxyz,", 30) + "z"},

		{"curl", "http", "curl|-q|http://HOST:PORT/a?b=c"},
		{"curl with a cookie and HTTP/1.0", "http", "curl|-q|-0|-b|a=b|http://HOST:PORT/"},
		{"curl HEAD", "http", "curl|-q|-I|http://HOST:PORT/"},
		{"curl OPTIONS", "http", "curl|-q|-X|OPTIONS|http://HOST:PORT/"},
		{"curl TRACE", "http", "curl|-q|-X|TRACE|http://HOST:PORT/"},
		{"curl to upgrade to HTTP/2", "http", "curl|-q|--http2|http://HOST:PORT/"},
		{"curl with TLS", "tls", "curl|-q|-k|https://HOST:PORT/"},
		{"curl with LDAP", "ldap", "curl|-q|ldap://HOST:PORT/dc=a"},
		{"curl with MQTT", "mqtt", "curl|-q|-u|me:secret|mqtt://HOST:PORT/a"},

		{"redis-cli", "redis", "redis-cli|-h|HOST|-p|PORT|PING"},
		{"redis-cli with a password", "redis", "redis-cli|-h|HOST|-p|PORT|--no-auth-warning|-a|secret|SET|a|b"},
		{"redis-cli with a database", "redis", "redis-cli|-h|HOST|-p|PORT|-n|2|SET|a|b"},
		{"redis-cli with RESP3", "redis", "redis-cli|-h|HOST|-p|PORT|-3|SET|a|b"},

		{"ssh", "ssh", "ssh|-F|none|-o|BatchMode=yes|-o|UserKnownHostsFile=/dev/null|-o|GlobalKnownHostsFile=/dev/null|-o|StrictHostKeyChecking=no|-p|PORT|HOST"},

		{"mosquitto_pub", "mqtt", "mosquitto_pub|-h|HOST|-p|PORT|-t|a|-m|b"},
		{"mosquitto_pub with MQTT 5.0 and a will", "mqtt", "mosquitto_pub|-h|HOST|-p|PORT|-V|mqttv5|-u|me|-P|secret|-x|30|--will-topic|gone|--will-payload|bye|-t|a|-m|b|-q|1"},

		{"kcat", "kafka", "kcat|-b|HOST:PORT|-L"},
		{"ldapsearch", "ldap", "ldapsearch|-x|-H|ldap://HOST:PORT|-D|cn=a,dc=b|-w|secret"},
		{"pymongo", "mongodb", "/usr/bin/python3|-c|import pymongo; pymongo.MongoClient('HOST', PORT).admin.command('ping')"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := capture(t, whole, tt.command)
			if protocol, ok := Replayable(b); protocol != tt.protocol || !ok {
				t.Errorf("Replayable(%q) = %q, %t, want %q, true", b, protocol, ok, tt.protocol)
			}
			if tt.protocol == "tls" {
				checkCuts(t, b)
			}
			if several := tt.protocol == "tls" && len(b) > 5+int(b[3])<<8+int(b[4]); several != strings.Contains(tt.name, "records") {
				t.Errorf("several records: %t", several)
			}
		})
	}
}

// Nothing that such a client says is replayable, however much of it has come.
func TestOpeningsOfClientsWithEffect(t *testing.T) {
	for _, tt := range []struct{ name, command, last string }{
		{"curl POST", "curl|-q|-d|some content|http://HOST:PORT/", "some content"},
		{"curl POST in chunks", "curl|-q|-d|some content|-H|Transfer-Encoding: chunked|http://HOST:PORT/", "0\r\n\r\n"},
		{"curl POST of nothing", "curl|-q|-d||http://HOST:PORT/", "\r\n\r\n"},
		{"curl GET with content", "curl|-q|-X|GET|-d|some content|http://HOST:PORT/", "some content"},
		{"curl PUT", "curl|-q|-X|PUT|-d|some content|http://HOST:PORT/", "some content"},
		{"curl DELETE", "curl|-q|-X|DELETE|http://HOST:PORT/", "\r\n\r\n"},
		{"redis-cli SET", "redis-cli|-h|HOST|-p|PORT|SET|some|content", "content\r\n"},
		{"redis-cli EVAL", "redis-cli|-h|HOST|-p|PORT|EVAL|return 1|0|content", "content\r\n"},
		{"redis-cli SUBSCRIBE", "redis-cli|-h|HOST|-p|PORT|SUBSCRIBE|content", "content\r\n"},
		{"redis-cli CLIENT KILL", "redis-cli|-h|HOST|-p|PORT|CLIENT|KILL|USER|content", "content\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := capture(t, func(b []byte) bool { return bytes.HasSuffix(b, []byte(tt.last)) }, tt.command)
			for n := range len(b) + 1 {
				if protocol, ok := Replayable(b[:n]); ok {
					t.Errorf("Replayable(%q) = %q, true", b[:n], protocol)
				}
			}
		})
	}
}

// A client of HTTP/2 that knows what it speaks sends its request at once: what
// comes before it is replayable, and all together is not.
func TestOpeningsOfHTTP2(t *testing.T) {
	check := func(t *testing.T, b []byte) {
		t.Helper()
		end := request(b)
		if protocol, ok := Replayable(b[:end]); protocol != "http2" || !ok {
			t.Errorf("Replayable(%q) = %q, %t, want \"http2\", true", b[:end], protocol, ok)
		}
		for n := end + 1; n <= len(b); n++ {
			if protocol, ok := Replayable(b[:n]); ok {
				t.Errorf("Replayable(%q) = %q, true", b[:n], protocol)
			}
		}
	}
	requested := func(b []byte) bool { return request(b) > 0 }
	t.Run("curl", func(t *testing.T) {
		t.Parallel()
		check(t, capture(t, requested, "curl|-q|--http2-prior-knowledge|http://HOST:PORT/"))
	})
	t.Run("net/http", func(t *testing.T) {
		t.Parallel()
		var protocols http.Protocols
		protocols.SetUnencryptedHTTP2(true)
		check(t, captureFunc(t, requested, get(&http.Transport{Protocols: &protocols})))
	})
}

// request returns where the frame HEADERS begins, or 0.
func request(b []byte) int {
	for n := len(magic); n+9 <= len(b); {
		if b[n+3] == 1 {
			return n
		}
		n += 9 + int(b[n])<<16 + int(b[n+1])<<8 + int(b[n+2])
	}
	return 0
}

func get(transport http.RoundTripper) func(ctx context.Context, addr string) {
	return func(ctx context.Context, addr string) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", http.NoBody)
		if err == nil {
			_, _ = transport.RoundTrip(r) // ends with ctx
		}
	}
}

// The openings of Go's own clients.
func TestOpeningsOfGo(t *testing.T) {
	for _, tt := range []struct {
		name, protocol string
		client         func(ctx context.Context, addr string)
	}{
		{"net/http", "http", get(&http.Transport{})},
		{"crypto/tls", "tls", func(ctx context.Context, addr string) {
			d := tls.Dialer{Config: &tls.Config{ServerName: "localhost", NextProtos: []string{"h2", "http/1.1"}}}
			_, _ = d.DialContext(ctx, "tcp", addr) // ends with ctx
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := captureFunc(t, whole, tt.client)
			if protocol, ok := Replayable(b); protocol != tt.protocol || !ok {
				t.Errorf("Replayable(%q) = %q, %t, want %q, true", b, protocol, ok, tt.protocol)
			}
			if tt.protocol == "tls" {
				checkCuts(t, b)
			}
		})
	}
}

// openssl with a session that allows early data announces it in its ClientHello
// and sends it at once.
func TestOpeningWithEarlyData(t *testing.T) {
	needs(t, "openssl")
	dir := t.TempDir()
	selfSigned(t, dir)
	port := strconv.Itoa(proctest.FreePort(t, "127.0.0.1"))
	server := program(t, dir, "openssl|s_server|-quiet|-accept|127.0.0.1:"+port+"|-cert|cert.pem|-key|key.pem|-tls1_3|-early_data|-no_anti_replay")
	hold(t, server)
	proctest.Until(t, "s_server listens", func() bool {
		var d net.Dialer
		c, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:"+port)
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
	hold(t, program(t, dir, "openssl|s_client|-connect|127.0.0.1:"+port+"|-sess_out|session.pem"))
	proctest.Until(t, "the session is written", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "session.pem"))
		return err == nil && bytes.HasSuffix(text, []byte("-----END SSL SESSION PARAMETERS-----\n"))
	})
	if err := os.WriteFile(filepath.Join(dir, "early"), []byte("GET / HTTP/1.0\r\n\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	applicationData := func(b []byte) bool { return bytes.Contains(b, []byte("\x17\x03\x03")) }
	b := capture(t, applicationData, "openssl|s_client|-connect|HOST:PORT|-sess_in|"+filepath.Join(dir, "session.pem")+"|-early_data|"+filepath.Join(dir, "early"))
	end := 5 + int(b[3])<<8 + int(b[4]) // of the first record, with the ClientHello
	if !readable(b[:end]) {
		t.Fatalf("%q is not a ClientHello", b[:end])
	}
	for n := end; n <= len(b); n++ {
		if protocol, ok := Replayable(b[:n]); ok {
			t.Errorf("Replayable(%q) = %q, true", b[:n], protocol)
		}
	}
}

// checkCuts fails the test unless b is a ClientHello to crypto/tls, and no part
// of it is enough for a server to act on.
func checkCuts(t *testing.T, b []byte) {
	t.Helper()
	if !readable(b) {
		t.Errorf("crypto/tls reads no ClientHello in %q", b)
	}
	for n := range b {
		if readable(b[:n]) {
			t.Errorf("crypto/tls reads a ClientHello in %d of %d bytes", n, len(b))
		}
		if protocol, ok := Replayable(b[:n]); ok != (n >= 11) {
			t.Errorf("the first %d of %d bytes: Replayable = %q, %t", n, len(b), protocol, ok)
		}
	}
}

// readable reports whether a server of crypto/tls reads a ClientHello in b.
func readable(b []byte) (yes bool) {
	server := tls.Server(recording{Reader: bytes.NewReader(b)}, &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			yes = true
			return nil, errors.New("enough")
		},
	})
	_ = server.Handshake() // fails in any case
	return yes
}

// recording is a connection from which a recording is read.
type recording struct {
	net.Conn
	io.Reader
}

func (r recording) Read(b []byte) (int, error)     { return r.Reader.Read(b) }
func (recording) Write(b []byte) (int, error)      { return len(b), nil }
func (recording) Close() error                     { return nil }
func (recording) SetWriteDeadline(time.Time) error { return nil }

// whole reports whether b is replayable, and not an incomplete ClientHello.
func whole(b []byte) bool {
	_, ok := Replayable(b)
	return ok && (b[0] != 22 || readable(b))
}

// capture starts a program, whose arguments are separated by a bar, and returns
// what it sends to a host that does not answer; see captureFunc.
func capture(t *testing.T, enough func([]byte) bool, args string) []byte {
	t.Helper()
	name, _, _ := strings.Cut(args, "|")
	needs(t, name)
	if strings.Contains(args, "import pymongo") && exec.Command(name, "-c", "import pymongo").Run() != nil {
		t.Skip("SKIPPED: pymongo is not installed (make test-deps)")
	}
	return captureFunc(t, enough, func(_ context.Context, addr string) {
		host, port, _ := net.SplitHostPort(addr)
		hold(t, program(t, t.TempDir(), strings.NewReplacer("HOST", host, "PORT", port).Replace(args)))
	})
}

// captureFunc lets a client connect to a listener that does not answer, and
// returns what the client sends until enough is true, and in a moment after it:
// what a client sends of its own accord it sends at once.
func captureFunc(t *testing.T, enough func([]byte) bool, client func(ctx context.Context, addr string)) []byte {
	t.Helper()
	l, err := net.Listen("tcp", proctest.FreeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		client(ctx, l.Addr().String())
	}()
	defer func() { cancel(); <-ended }()

	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var all []byte
	b := make([]byte, 1<<16)
	for first := time.Now(); ; {
		patience := 200 * time.Millisecond
		complete := enough(all)
		if !complete {
			patience = time.Until(first.Add(time.Minute))
		}
		_ = c.SetReadDeadline(time.Now().Add(patience))
		n, err := c.Read(b)
		all = append(all, b[:n]...)
		switch {
		case err == nil:
		case complete:
			return slices.Clip(all)
		default:
			t.Fatalf("after %q: %v", all, err)
		}
	}
}

// needs skips the test where a program is missing.
func needs(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("SKIPPED: %s is not installed (make test-deps)", name)
	}
}

// program is a command, its arguments separated by a bar, with a home that is
// empty. It ends with the test.
func program(t *testing.T, dir, args string) *exec.Cmd {
	t.Helper()
	argv := strings.Split(args, "|")
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "LC_ALL=C", "LDAPNOINIT=1", "KRB5CCNAME=" + filepath.Join(dir, "none")}
	return cmd
}

// hold starts cmd with a standard input that stays open until the test ends, and
// cmd with it.
func hold(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Error(err)
		return
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Process.Kill() // fails when it has ended
		_ = cmd.Wait()         // "signal: killed"
	})
}

// selfSigned writes cert.pem and key.pem.
func selfSigned(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	cert, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600),
		os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	if err != nil {
		t.Fatal(err)
	}
}
