package pemfile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// files writes a certificate that signs itself, its key and a file with neither.
func files(t *testing.T) (cert, key, other string) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, secret.Public(), secret)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, text []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		write("key", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})), write("other", []byte("neither"))
}

func TestPool(t *testing.T) {
	cert, _, other := files(t)
	if pool, err := Pool(cert); err != nil || pool.Equal(x509.NewCertPool()) {
		t.Errorf("Pool = %v, %v, want the certificate", pool, err)
	}
	if _, err := Pool(other); err == nil || !strings.Contains(err.Error(), other+": holds no certificate") {
		t.Errorf("Pool of something else = %v, want an error with its name", err)
	}
	if _, err := Pool(other + "-missing"); !os.IsNotExist(err) {
		t.Errorf("Pool of no file = %v", err)
	}
}

func TestPair(t *testing.T) {
	cert, key, other := files(t)
	if pair, err := Pair(cert, key); err != nil || len(pair.Certificate) != 1 {
		t.Errorf("Pair = %d certificates, %v", len(pair.Certificate), err)
	}
	for _, wrong := range [][2]string{{cert, other}, {other, key}, {cert, key + "-missing"}, {cert + "-missing", key}} {
		if _, err := Pair(wrong[0], wrong[1]); err == nil {
			t.Errorf("Pair(%s, %s) is no error", wrong[0], wrong[1])
		}
	}
}
