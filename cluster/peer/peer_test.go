package peer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/cluster"
	"understudy/internal/proctest"
)

var secret = []byte("a secret of the members")

// local is the member that a server answers for.
type local struct {
	grants   func(Question) bool
	transact func(context.Context, cluster.Transaction) (cluster.Result, error)
}

func (l local) Grants(_ context.Context, q Question) (bool, error) { return l.grants(q), nil }

func (l local) Transact(ctx context.Context, t cluster.Transaction) (cluster.Result, error) {
	return l.transact(ctx, t)
}

// grantsAll grants each lease.
var grantsAll = local{grants: func(Question) bool { return true }}

// logged is what a server logs.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.text.String()), "\n")
}

// serve starts the server of the member b of the cluster c, and returns its
// address and what it logs.
func serve(tb testing.TB, change func(*ServerConfig)) (string, *logged) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	log := &logged{}
	cfg := ServerConfig{
		Config: Config{Cluster: "c", Member: "b", Secret: secret, Timeout: 30 * time.Second},
		Local:  grantsAll, Connections: 100, Logger: hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Debug}),
	}
	if change != nil {
		change(&cfg)
	}
	s, err := NewServer(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(tb.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	tb.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			tb.Error(err)
		}
	})
	return ln.Addr().String(), log
}

// client returns the client of the member a for b at address.
func client(tb testing.TB, address string, change func(*ClientConfig)) *Client {
	tb.Helper()
	cfg := ClientConfig{
		Config: Config{Cluster: "c", Member: "a", Secret: secret, Timeout: 30 * time.Second},
		To:     "b", Address: address,
	}
	if change != nil {
		change(&cfg)
	}
	c, err := NewClient(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

// wantError checks that err names the member, and has text.
func wantError(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), `member "b" at 127.0.0.1:`) || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want one that names the member and has %q", err, text)
	}
}

func TestGrants(t *testing.T) {
	proctest.NoLeaks(t)
	var asked []Question
	addr, _ := serve(t, func(c *ServerConfig) {
		c.Local = local{grants: func(q Question) bool {
			asked = append(asked, q)
			return q.Version == 7
		}}
	})
	c := client(t, addr, nil)
	for version, want := range map[uint64]bool{7: true, 8: false} {
		if got, err := c.Grants(t.Context(), Question{Relay: "db", Version: version, Boot: 1 << 63}); got != want || err != nil {
			t.Errorf("version %d: granted %v, %v", version, got, err)
		}
	}
	if q := asked[0]; q.From != "a" || q.Relay != "db" || q.Boot != 1<<63 {
		t.Errorf("asked %+v", q)
	}
}

func TestTransact(t *testing.T) {
	proctest.NoLeaks(t)
	want := cluster.Result{OK: true, Key: cluster.KeyValue{Key: "/understudy/c/db/member/a", Value: []byte{0, 255}, Revision: 1<<62 + 1}}
	for range 300 {
		want.Found = append(want.Found, cluster.KeyValue{Key: "/understudy/c/db/record", Value: bytes.Repeat([]byte("x"), 1000), Revision: 5})
	}
	addr, _ := serve(t, func(c *ServerConfig) {
		c.Local = local{transact: func(_ context.Context, tr cluster.Transaction) (cluster.Result, error) {
			if tr.Expect == 0 {
				return cluster.Result{}, errors.New("etcd is away")
			}
			if string(tr.Value) != "\x00\xff" {
				t.Errorf("passed on %+v", tr)
			}
			return want, nil
		}}
	})
	c := client(t, addr, nil)
	tr := cluster.Transaction{Key: want.Key.Key, Value: []byte{0, 255}, Expect: 1<<62 + 1, Prefix: "/understudy/c/db/"}
	if got, err := c.Transact(t.Context(), tr); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("result %v, %v", got.OK, err)
	}
	away := tr
	away.Expect = 0
	_, err := c.Transact(t.Context(), away)
	wantError(t, err, "etcd is away")

	for _, foreign := range []cluster.Transaction{
		{Key: "/understudy/other/db/record", Prefix: tr.Prefix, Expect: 1},
		{Key: "/understudy/c2/db/record", Prefix: tr.Prefix, Expect: 1},
		{Key: tr.Key, Prefix: "/understudy/", Expect: 1},
	} {
		_, err := c.Transact(t.Context(), foreign)
		wantError(t, err, "not a question or a transaction of this cluster")
	}
	long := tr
	long.Value = make([]byte, maxRequest)
	_, err = c.Transact(t.Context(), long)
	wantError(t, err, "too long")
}

// A member answers for itself only: a grant of another must not count for it.
func TestRequestForAnother(t *testing.T) {
	addr, _ := serve(t, nil)
	for what, change := range map[string]func(*ClientConfig){
		"another member":  func(c *ClientConfig) { c.To = "x" },
		"another cluster": func(c *ClientConfig) { c.Cluster = "x" },
	} {
		c := client(t, addr, change)
		if granted, err := c.Grants(t.Context(), Question{}); granted || err == nil || !strings.Contains(err.Error(), `this is the member "b" of the cluster "c"`) {
			t.Errorf("%s: granted %v, %v", what, granted, err)
		}
	}
}

// A wrong secret is refused, and logged once.
func TestWrongSecret(t *testing.T) {
	proctest.NoLeaks(t)
	addr, log := serve(t, func(c *ServerConfig) {
		c.Local = local{grants: func(Question) bool {
			t.Error("a stranger was answered")
			return true
		}}
	})
	c := client(t, addr, func(c *ClientConfig) { c.Secret = []byte("the secret of others") })
	for range 10 {
		granted, err := c.Grants(t.Context(), Question{})
		if granted {
			t.Error("granted")
		}
		wantError(t, err, "the secrets of the two members differ")
	}
	lines := log.lines()
	if len(lines) != 1 || !strings.Contains(lines[0], "[WARN]  request of a member refused: from=127.0.0.1:") {
		t.Errorf("logged:\n%s", strings.Join(lines, "\n"))
	}
}

// The next line counts what was refused since the last.
func TestRefusalsAreCounted(t *testing.T) {
	log := &logged{}
	r := refusals{log: hclog.New(&hclog.LoggerOptions{Output: log})}
	for range 5 {
		r.add("192.0.2.1:5", "why")
	}
	r.next = time.Time{} // a minute later
	r.add("192.0.2.1:6", "why")
	if lines := log.lines(); len(lines) != 2 || !strings.Contains(lines[1], "from=192.0.2.1:6 refused=5") {
		t.Errorf("logged:\n%s", strings.Join(lines, "\n"))
	}
}

// proxied is a server in the way of a client, with each answer changed.
func proxied(t *testing.T, addr string, change func(*http.Response)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := r.Clone(r.Context())
		out.RequestURI, out.URL.Scheme, out.URL.Host = "", "http", addr
		res, err := transport.RoundTrip(out)
		if err != nil {
			t.Error(err)
			return
		}
		defer res.Body.Close()
		change(res)
		w.Header().Set(codeHeader, res.Header.Get(codeHeader))
		w.WriteHeader(res.StatusCode)
		_, _ = io.Copy(w, res.Body)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close(); <-done; transport.CloseIdleConnections() })
	return ln.Addr().String()
}

// Whoever is in the way can neither repeat an answer nor change one.
func TestForgedAnswers(t *testing.T) {
	proctest.NoLeaks(t)
	addr, _ := serve(t, func(c *ServerConfig) {
		c.Local = local{grants: func(q Question) bool { return q.Version == 1 }}
	})
	var first *http.Response
	body := func(text string) io.ReadCloser { return io.NopCloser(strings.NewReader(text)) }
	for what, change := range map[string]func(*http.Response){
		"an old answer": func(res *http.Response) {
			if first == nil {
				first = res
				return
			}
			res.Header, res.Body, res.StatusCode = first.Header, body(`{"granted":true}`), first.StatusCode
		},
		"another body":   func(res *http.Response) { res.Body = body(`{"granted":true} `) },
		"another status": func(res *http.Response) { res.StatusCode = http.StatusAccepted },
		"no code":        func(res *http.Response) { res.Header.Del(codeHeader) },
	} {
		t.Run(what, func(t *testing.T) {
			c := client(t, proxied(t, addr, change), nil)
			if what == "an old answer" {
				if granted, err := c.Grants(t.Context(), Question{Version: 1}); !granted || err != nil {
					t.Fatalf("the first answer: granted %v, %v", granted, err)
				}
			}
			granted, err := c.Grants(t.Context(), Question{Version: 2})
			if granted {
				t.Error("granted")
			}
			wantError(t, err, "without a proof of the secret")
		})
	}
}

// An answer of another program, one that ends early and one that is too long are
// errors, and never a grant.
func TestBadAnswers(t *testing.T) {
	proctest.NoLeaks(t)
	for what, tt := range map[string]struct{ answer, want string }{
		"another protocol": {"SSH-2.0-OpenSSH_9.2\r\n", "malformed HTTP"},
		"another program":  {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "another program answers there"},
		"cut":              {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"granted\":true}", "reading the answer: unexpected EOF"},
		"nothing":          {"", "EOF"},
		"a long head":      {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*maxHead), "exceeded"},
		"a long body":      {"HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("x", maxAnswer+1), "longer than"},
		"a redirect":       {"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n", "another program answers there"},
	} {
		t.Run(what, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					_, _ = conn.Read(make([]byte, maxHead))
					_, _ = io.WriteString(conn, tt.answer)
					conn.Close()
				}
			}()
			t.Cleanup(func() { ln.Close(); <-done })
			granted, err := client(t, ln.Addr().String(), nil).Grants(t.Context(), Question{})
			if granted {
				t.Error("granted")
			}
			wantError(t, err, tt.want)
		})
	}
}

// A member that does not answer costs the timeout, and one that is gone nothing.
// Then an answer comes over a new connection.
func TestSlowAndGone(t *testing.T) {
	proctest.NoLeaks(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := client(t, silent.Addr().String(), func(c *ClientConfig) { c.Timeout = 50 * time.Millisecond })
	_, err = c.Grants(t.Context(), Question{})
	wantError(t, err, context.DeadlineExceeded.Error())
	silent.Close()
	c = client(t, silent.Addr().String(), nil)
	_, err = c.Grants(t.Context(), Question{})
	wantError(t, err, "connection refused")

	// The server ends, with an idle connection of the client, and begins anew.
	ctx, stop := context.WithCancel(t.Context())
	cfg := ServerConfig{Config: Config{Cluster: "c", Member: "b", Secret: secret, Timeout: 30 * time.Second}, Local: grantsAll, Connections: 1}
	s, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		ln, err := net.Listen("tcp", silent.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(ctx, ln) }()
		if granted, err := c.Grants(t.Context(), Question{}); !granted || err != nil {
			t.Errorf("granted %v, %v", granted, err)
		}
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		ctx, stop = context.WithCancel(t.Context())
	}
	stop()
}

// A store that hangs costs the timeout of the server, and the member says so.
func TestSlowStore(t *testing.T) {
	addr, _ := serve(t, func(c *ServerConfig) {
		c.Timeout = 50 * time.Millisecond
		c.Local = local{transact: func(ctx context.Context, _ cluster.Transaction) (cluster.Result, error) {
			<-ctx.Done()
			return cluster.Result{}, ctx.Err()
		}}
	})
	_, err := client(t, addr, nil).Transact(t.Context(), cluster.Transaction{Key: "/understudy/c/db/member/a"})
	wantError(t, err, "status 502: context deadline exceeded")
}

// Strangers that take all connections keep no member out, and members keep
// theirs.
func TestConnectionsAreLimited(t *testing.T) {
	proctest.NoLeaks(t)
	addr, _ := serve(t, func(c *ServerConfig) { c.Connections = 2 })
	first := client(t, addr, nil)
	ask := func(c *Client) error {
		granted, err := c.Grants(t.Context(), Question{})
		if err == nil && !granted {
			err = errors.New("not granted")
		}
		return err
	}
	if err := ask(first); err != nil {
		t.Fatal(err)
	}
	var strangers []net.Conn
	for range 10 {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		strangers = append(strangers, conn)
	}
	for _, conn := range strangers[:9] { // each has replaced the one before
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !isReset(err) {
			t.Errorf("a connection of a stranger: %v, want its end", err)
		}
	}
	second := client(t, addr, nil)
	if err := ask(second); err != nil {
		t.Errorf("a member, while strangers have all connections: %v", err)
	}
	if err := ask(client(t, addr, nil)); err == nil {
		t.Error("a third member was answered where two are allowed")
	}
	for _, c := range []*Client{first, second} {
		if err := ask(c); err != nil {
			t.Errorf("a member with a connection: %v", err)
		}
	}
	first.Close()
	proctest.Until(t, "there is room for another", func() bool { return ask(client(t, addr, nil)) == nil })
}

func isReset(err error) bool { return err != nil && strings.Contains(err.Error(), "reset") }

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

// identity is a certificate and the authorities of others, of which another one may take
// the place.
type identity struct {
	mu   sync.Mutex
	cert tls.Certificate
	pool *x509.CertPool
}

func (i *identity) Get() (tls.Certificate, *x509.CertPool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cert, i.pool
}

func (i *identity) renew(next *identity) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cert = next.cert
}

// member returns the identity of a member with a certificate of a for a name, that trusts
// those of a.
func (a authority) member(t *testing.T, name string, change ...func(*x509.Certificate)) *identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour)}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	for _, do := range change {
		do(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &identity{cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool: pool}
}

func expired(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }

// namesOf are the names of the members a, at 127.0.0.1, and d.
func namesOf(member string) []string {
	return map[string][]string{"a": {"a", "127.0.0.1"}, "d": {"d"}}[member]
}

// Certificates do without a secret. Each end proves by its name or its address which member
// it is; other certificates of the authority, and those of another one, are refused.
func TestCertificates(t *testing.T) {
	proctest.NoLeaks(t)
	ours, others := newAuthority(t), newAuthority(t)
	between := func(server, own *identity, from string) (*logged, error) {
		addr, log := serve(t, func(c *ServerConfig) { c.Secret, c.Identity, c.Names = nil, server, namesOf })
		c := client(t, addr, func(c *ClientConfig) { c.Secret, c.Identity, c.Member = nil, own, from })
		granted, err := c.Grants(t.Context(), Question{})
		if granted != (err == nil) {
			t.Errorf("granted %v, %v", granted, err)
		}
		return log, err
	}
	trusting := func(i *identity, a authority) *identity {
		i.pool = x509.NewCertPool()
		i.pool.AddCert(a.cert)
		return i
	}
	only := func(u x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{u} }
	}
	b, a := ours.member(t, "b"), ours.member(t, "a")
	for name, tt := range map[string]struct {
		server, client *identity
		from           string
		want, logged   string // empty: there is no error
	}{
		"names":                       {b, a, "a", "", ""},
		"addresses":                   {ours.member(t, "127.0.0.1"), ours.member(t, "127.0.0.1"), "a", "", ""},
		"the server is another":       {ours.member(t, "d"), a, "a", "the certificate is for d, and not for b or 127.0.0.1", "bad certificate"},
		"the server of no name":       {ours.member(t, "", func(c *x509.Certificate) { c.DNSNames = nil }), a, "a", "no name (subject alternative name)", ""},
		"the server has expired":      {ours.member(t, "b", expired), a, "a", "certificate has expired", ""},
		"the server is a client":      {ours.member(t, "b", only(x509.ExtKeyUsageClientAuth)), a, "a", "incompatible key usage", ""},
		"the server of another":       {others.member(t, "b"), a, "a", "unknown authority", ""},
		"the client speaks for d":     {b, a, "d", "the certificate is for a, and not for d", "the certificate is for a, and not for d"},
		"the client is no member":     {b, ours.member(t, "e"), "e", `"e" is no member of the cluster`, `\"e\" is no member`},
		"the client has expired":      {b, ours.member(t, "a", expired), "a", "it refuses our certificate: tls: expired certificate", "certificate has expired"},
		"the client is a server":      {b, ours.member(t, "a", only(x509.ExtKeyUsageServerAuth)), "a", "it refuses our certificate: ", "incompatible key usage"},
		"the client of another":       {b, trusting(others.member(t, "a"), ours), "a", "it refuses our certificate: ", "unknown authority"},
		"the client has none":         {b, nil, "a", "it answers with TLS only", ""},
		"the server has none":         {nil, a, "a", "it answers without TLS", ""},
		"both of another that is new": {trusting(others.member(t, "b"), others), trusting(others.member(t, "a"), others), "a", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var log *logged
			var err error
			switch {
			case tt.client == nil: // it has a secret instead
				addr, l := serve(t, func(c *ServerConfig) { c.Secret, c.Identity, c.Names = nil, tt.server, namesOf })
				log = l
				_, err = client(t, addr, nil).Grants(t.Context(), Question{})
			case tt.server == nil:
				addr, l := serve(t, nil)
				log = l
				_, err = client(t, addr, func(c *ClientConfig) { c.Secret, c.Identity = nil, tt.client }).Grants(t.Context(), Question{})
			default:
				log, err = between(tt.server, tt.client, tt.from)
			}
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantError(t, err, tt.want)
			if tt.logged != "" {
				proctest.Until(t, "the refusal is logged", func() bool {
					return strings.Contains(log.lines()[0], "request of a member refused") && strings.Contains(log.lines()[0], tt.logged)
				})
			}
		})
	}
}

// A question in the name of another member than the one that asks is refused.
func TestCertificateOfAQuestion(t *testing.T) {
	ours := newAuthority(t)
	addr, _ := serve(t, func(c *ServerConfig) { c.Secret, c.Identity, c.Names = nil, ours.member(t, "b"), namesOf })
	c := client(t, addr, func(c *ClientConfig) { c.Secret, c.Identity = nil, ours.member(t, "a") })
	_, err := c.call(t.Context(), grantsPath, request{Question: &Question{From: "d"}})
	wantError(t, err, `the request is of "a", and asks for "d"`)
}

// With both, a certificate alone is not enough.
func TestCertificatesAndSecret(t *testing.T) {
	ours := newAuthority(t)
	addr, _ := serve(t, func(c *ServerConfig) { c.Identity, c.Names = ours.member(t, "b"), namesOf })
	c := client(t, addr, func(c *ClientConfig) { c.Identity = ours.member(t, "a") })
	if granted, err := c.Grants(t.Context(), Question{}); !granted || err != nil {
		t.Errorf("with a secret too: granted %v, %v", granted, err)
	}
	c = client(t, addr, func(c *ClientConfig) { c.Secret, c.Identity = nil, ours.member(t, "a") })
	_, err := c.Grants(t.Context(), Question{})
	wantError(t, err, "it refuses our secret")
}

// A certificate that is renewed holds for the next connection, at both ends.
func TestRenewedCertificates(t *testing.T) {
	ours := newAuthority(t)
	for name, ends := range map[string][2]*identity{
		"server": {ours.member(t, "b", expired), ours.member(t, "a")},
		"client": {ours.member(t, "b"), ours.member(t, "a", expired)},
	} {
		addr, _ := serve(t, func(c *ServerConfig) { c.Secret, c.Identity, c.Names = nil, ends[0], namesOf })
		c := client(t, addr, func(c *ClientConfig) { c.Secret, c.Identity = nil, ends[1] })
		_, err := c.Grants(t.Context(), Question{})
		wantError(t, err, "expired")
		ends[0].renew(ours.member(t, "b"))
		ends[1].renew(ours.member(t, "a"))
		if granted, err := c.Grants(t.Context(), Question{}); !granted || err != nil {
			t.Errorf("%s: after the renewal: granted %v, %v", name, granted, err)
		}
	}
}

func TestBadConfig(t *testing.T) {
	_, err := NewServer(ServerConfig{Config: Config{Identity: &identity{}}})
	for _, want := range []string{"cluster: required", "member: required", "timeout: 0s", "local: required", "connections: 0", "names: required"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: has no %q", err, want)
		}
	}
	_, err = NewClient(ClientConfig{Config: Config{Secret: []byte("short")}, To: "b", Address: "nowhere"})
	for _, want := range []string{`client for the member "b"`, "secret: 5 bytes", `address: "nowhere"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: has no %q", err, want)
		}
	}
	if _, err := NewServer(ServerConfig{}); err == nil || !strings.Contains(err.Error(), "secret: required") {
		t.Errorf("no secret: %v", err)
	}
}
