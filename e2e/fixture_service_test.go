//go:build linux

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
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
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// states of a service
const (
	isWell  = "well"
	isWrong = "wrong"  // 200, and something else in the body
	isIll   = "ill"    // 500
	isLost  = "lost"   // 404
	isMute  = "mute"   // never answers
	isTorn  = "broken" // closes the connection
)

// service is a local HTTP service whose state the test chooses.
type service struct {
	addr  string
	well  string // the body of the answer when it is well
	state atomic.Value

	mu       sync.Mutex // guards received
	received []received
}

// newService starts a service that is well. It ends with the test.
func newService(t *testing.T, well string) *service {
	t.Helper()
	listener := listen(t)
	s := &service{addr: listener.Addr().String(), well: well}
	s.state.Store(isWell)
	server := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return s
}

func (s *service) port() string { return s.addr[strings.LastIndexByte(s.addr, ':')+1:] }

func (s *service) is(state string) { s.state.Store(state) }

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	at := time.Now()
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.received = append(s.received, received{
		at: at, line: r.Method + " " + r.RequestURI, body: string(body), agent: r.UserAgent(), monitor: r.Header.Get("X-Monitor"),
		host: r.Host, forwarded: r.Header.Get("X-Forwarded-For"),
	})
	s.mu.Unlock()
	w.Header().Set("X-Service", s.addr)
	switch s.state.Load() {
	case isWell:
		io.WriteString(w, s.well)
	case isWrong:
		io.WriteString(w, "maintenance")
	case isIll:
		w.WriteHeader(http.StatusInternalServerError)
		io.WriteString(w, "broken")
	case isLost:
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, "unknown")
	case isMute:
		<-r.Context().Done()
	case isTorn:
		panic(http.ErrAbortHandler)
	}
}

// requests are those that it got so far.
func (s *service) requests() []received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.received)
}

const houseToken = "a-token-of-the-house"

// newHouse starts the services and the program.
func newHouse(t *testing.T, more ...string) *house {
	t.Helper()
	dir := t.TempDir()
	h := &house{
		t:        t,
		host:     (&proctest.Host{Name: "a"}).Start(t),
		services: [2]*service{newService(t, "pong"), newService(t, "pong")},
		elastic:  newService(t, "1475871424 16:17:04 elasticsearch green 1 1"),
		apis:     [2]*service{newService(t, "one"), newService(t, "two")},
		orders:   freeAddr(t), http: freeAddr(t), agent: freeAddr(t), tcp: freeAddr(t),
		flags: filepath.Join(dir, "flags"), dead: filepath.Join(dir, "dead"), token: filepath.Join(dir, "token"),
		config: filepath.Join(dir, "understudy.yaml"),
	}
	text := recipe(t, "understudy.yaml",
		":9001", h.http, ":5432\"]", h.orders+"\"]", "db1:5432, db2:5432", h.host.Addr(),
		"localhost:9200", h.elastic.addr, "interval: 3s", "interval: 100ms",
		"3000, 3001", h.services[0].port()+", "+h.services[1].port(), ":9101", h.agent, ":9102", h.tcp,
		"/var/run/http_status", h.flags, "/var/lib/understudy/dead", h.dead, "/etc/understudy/token", h.token,
		"one.example", h.apis[0].addr, "two.example", h.apis[1].addr)
	err := errors.Join(os.Mkdir(h.flags, 0o755), os.Mkdir(h.dead, 0o755),
		os.WriteFile(h.token, []byte(houseToken+"\n"), 0o600), os.WriteFile(h.config, []byte(text), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	h.start(more...)
	return h
}

// needs skips the test where a program is missing.
func needs(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: %s is not installed (make test-deps)", name)
	}
	return path
}

func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// selfSigned makes a certificate for 127.0.0.1 and returns the paths of it and
// its key.
func selfSigned(t *testing.T) (cert, key string) {
	t.Helper()
	return certificate(t, t.TempDir(), "127.0.0.1")
}

// certificate makes a certificate for a name or an address, which is its own
// authority, and its key, in a directory. The user that runs the databases can
// read them.
func certificate(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	certDER, err := x509.CreateCertificate(rand.Reader, template, template, &secret.PublicKey, secret)
	keyDER, err2 := x509.MarshalPKCS8PrivateKey(secret)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	private(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certDER})), true)
	private(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})), true)
	return cert, key
}
