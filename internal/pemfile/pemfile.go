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
	return pool(path, text)
}

func pool(path string, text []byte) (*x509.CertPool, error) {
	all := x509.NewCertPool()
	if !all.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: holds no certificate in PEM", path)
	}
	return all, nil
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
	return pair(cert, key, certPEM, keyPEM)
}

func pair(cert, key string, certPEM, keyPEM []byte) (tls.Certificate, error) {
	both, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%s, %s: %w", cert, key, err)
	}
	return both, nil
}
