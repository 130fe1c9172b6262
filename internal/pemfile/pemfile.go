// Package pemfile reads the certificates and keys of settings from their files.
package pemfile

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"understudy/internal/noblock"
)

// most is the most bytes that are read of a file.
const most = 1 << 20

// Pool reads the certificates of authorities. It never waits for a file that is a pipe.
func Pool(path string) (*x509.CertPool, error) {
	text, err := noblock.Read(path, most)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: holds no certificate in PEM", path)
	}
	return pool, nil
}

// Pair reads a certificate and its key, likewise.
func Pair(cert, key string) (tls.Certificate, error) {
	certPEM, err := noblock.Read(cert, most)
	if err != nil {
		return tls.Certificate{}, err
	}
	keyPEM, err := noblock.Read(key, most)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%s, %s: %w", cert, key, err)
	}
	return pair, nil
}
