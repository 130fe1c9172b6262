package pemfile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// issuer writes certificates that an authority has signed, and its own.
type issuer struct {
	t             *testing.T
	ca            *x509.Certificate
	caKey         *ecdsa.PrivateKey
	dir           string
	pool          *x509.CertPool
	caFile        string
	certFile, key string
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{t: t, dir: t.TempDir(), pool: x509.NewCertPool()}
	i.caFile, i.certFile, i.key = filepath.Join(i.dir, "ca"), filepath.Join(i.dir, "cert"), filepath.Join(i.dir, "key")
	i.caKey, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, i.caKey.Public(), i.caKey)
	if err != nil {
		t.Fatal(err)
	}
	if i.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	i.pool.AddCert(i.ca)
	i.write(i.caFile, "CERTIFICATE", der)
	return i
}

func (i *issuer) write(path, kind string, der []byte) {
	i.t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		i.t.Fatal(err)
	}
}

// issue makes a certificate with this serial number and writes it, with its key.
func (i *issuer) issue(serial int64, change func(*x509.Certificate)) tls.Certificate {
	i.t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"a"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.ca, key.Public(), i.caKey)
	if err != nil {
		i.t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		i.t.Fatal(err)
	}
	i.write(i.certFile, "CERTIFICATE", der)
	i.write(i.key, "EC PRIVATE KEY", keyDER)
	leaf, _ := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// reports are what an Identity has reported.
type reports struct {
	mu  sync.Mutex
	all []error
}

func (r *reports) add(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, err)
}

func (r *reports) list() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all
}

// A renewed certificate is used; one that does not fit its key is not, which is reported
// once.
func TestIdentity(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	i.issue(2, nil)
	var said reports
	id, err := OpenIdentity(i.caFile, i.certFile, i.key, said.add)
	if err != nil {
		t.Fatal(err)
	}
	serial := func() int64 {
		cert, pool := id.Get()
		if !pool.Equal(i.pool) {
			t.Fatal("another authority")
		}
		return cert.Leaf.SerialNumber.Int64()
	}
	if serial() != 2 || len(said.list()) != 0 {
		t.Errorf("serial %d, reported %v", serial(), said.list())
	}
	old, _ := os.ReadFile(i.key)
	i.issue(3, nil)
	whole, _ := os.ReadFile(i.key)
	if err := os.WriteFile(i.key, old, 0o600); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, "the key that does not fit is reported", func() bool { return serial() == 2 && len(said.list()) == 1 && said.list()[0] != nil })
	id.refreshNow()
	if err := os.WriteFile(i.key, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, "the new one is used", func() bool { return serial() == 3 })
	if all := said.list(); len(all) != 2 || all[1] != nil {
		t.Errorf("reported %v, want one error and the end of it", all)
	}
}

// refreshNow reads the files at once.
func (i *Identity) refreshNow() {
	i.mu.Lock()
	done := make(chan struct{})
	i.reading = done
	i.mu.Unlock()
	i.refresh(done)
}

// A file that cannot be read soon does not keep anybody.
func TestIdentityWithoutItsFiles(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	i.issue(2, nil)
	var said reports
	id, err := OpenIdentity(i.caFile, i.certFile, i.key, said.add)
	if err != nil {
		t.Fatal(err)
	}
	id.mu.Lock()
	id.reading = make(chan struct{}) // as if it hung
	id.mu.Unlock()
	if cert, _ := id.Get(); cert.Leaf == nil || cert.Leaf.SerialNumber.Int64() != 2 {
		t.Error("nothing while the files are read")
	}
	os.Remove(i.certFile)
	if err := syscall.Mkfifo(i.certFile, 0o600); err != nil {
		t.Fatal(err)
	}
	id.refreshNow()
	if cert, _ := id.Get(); cert.Leaf.SerialNumber.Int64() != 2 || len(said.list()) != 1 {
		t.Errorf("a pipe: reported %v", said.list())
	}
	if _, err := OpenIdentity(i.caFile, i.certFile, i.key, said.add); err == nil {
		t.Error("a pipe is no error at the start")
	}
}

// What others would refuse is named.
func TestVerifyMutual(t *testing.T) {
	t.Parallel()
	i, other := newIssuer(t), newIssuer(t)
	use := func(u ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = u }
	}
	for name, tt := range map[string]struct {
		cert    tls.Certificate
		names   []string
		want    string // empty: nothing is wrong
		expired bool
	}{
		"any use":         {i.issue(2, nil), []string{"a"}, "", false},
		"both uses":       {i.issue(2, use(x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)), []string{"a"}, "", false},
		"an address":      {i.issue(2, nil), []string{"b", "192.0.2.1"}, "", false},
		"a server":        {i.issue(2, use(x509.ExtKeyUsageServerAuth)), []string{"a"}, "not the certificate of a client", false},
		"a client":        {i.issue(2, use(x509.ExtKeyUsageClientAuth)), []string{"a"}, "not the certificate of a server", false},
		"another name":    {i.issue(2, nil), []string{"b", ""}, "the certificate is for a, 192.0.2.1, and not for b", false},
		"another issuer":  {other.issue(2, nil), []string{"a"}, "unknown authority", false},
		"expired":         {i.issue(2, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), []string{"a"}, "has expired", true},
		"not valid yet":   {i.issue(2, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), []string{"a"}, "not yet valid", true},
		"no name at all":  {i.issue(2, func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, nil }), []string{"a"}, "no name (subject alternative name)", false},
		"a wildcard":      {i.issue(2, func(c *x509.Certificate) { c.DNSNames = []string{"*.example.com"} }), []string{"a.example.com"}, "", false},
		"an address, too": {i.issue(2, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv6loopback} }), []string{"::1"}, "", false},
	} {
		err := VerifyMutual(tt.cert, i.pool, tt.names...)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if Expired(err) != tt.expired {
			t.Errorf("%s: expired: %v", name, Expired(err))
		}
	}
	if Expired(errors.New("x")) || Expired(nil) {
		t.Error("another error has expired")
	}
}
