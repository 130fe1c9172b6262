package pemfile

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"understudy/internal/noblock"
)

const (
	// fresh is the time for which files that were read are not read again: others may
	// decide how often a certificate is needed.
	fresh = time.Second

	// patience is the longest time that a user of an Identity waits for its files. A file
	// system that hangs must not keep those from each other whose certificates are good.
	patience = 200 * time.Millisecond
)

// Identity is the certificate of this program, its key, and the authorities of those that it
// talks to. All are read from their files again when they are used, because certificates
// are renewed.
type Identity struct {
	ca, cert, key string
	report        func(error)

	mu      sync.Mutex // guards the following
	now     material
	read    time.Time     // when the files were read last
	reading chan struct{} // closed when the reading in progress has ended; nil for none
	failure string        // that was reported last; empty for none
}

// material is the content of the files.
type material struct {
	text [3][]byte
	cert tls.Certificate
	pool *x509.CertPool
}

// OpenIdentity reads the files. Report is called when they have changed and were read again,
// with nil, and when they cannot be used, with the reason: then what was read before is kept.
func OpenIdentity(ca, cert, key string, report func(error)) (*Identity, error) {
	i := &Identity{ca: ca, cert: cert, key: key, report: report}
	var err error
	i.now, err = i.load()
	return i, err
}

func (i *Identity) load() (m material, err error) {
	for n, path := range []string{i.ca, i.cert, i.key} {
		if m.text[n], err = noblock.Read(path, most); err != nil {
			return m, err
		}
	}
	if m.pool, err = pool(i.ca, m.text[0]); err != nil {
		return m, err
	}
	m.cert, err = pair(i.cert, i.key, m.text[1], m.text[2])
	return m, err
}

// Get returns what the files have.
func (i *Identity) Get() (tls.Certificate, *x509.CertPool) {
	i.mu.Lock()
	if i.reading == nil && time.Since(i.read) >= fresh {
		i.reading = make(chan struct{})
		go i.refresh(i.reading) // nobody waits for it at the end: the file system may hang
	}
	reading := i.reading
	i.mu.Unlock()
	if reading != nil {
		limit := time.NewTimer(patience)
		defer limit.Stop()
		select {
		case <-reading:
		case <-limit.C:
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.now.cert, i.now.pool
}

// refresh reads the files again.
func (i *Identity) refresh(done chan struct{}) {
	next, err := i.load()
	i.mu.Lock()
	defer i.mu.Unlock()
	defer close(done)
	i.reading, i.read = nil, time.Now()
	changed := !equal(next.text, i.now.text)
	if err == nil {
		i.now = next
	}
	switch {
	case err != nil && err.Error() == i.failure:
	case err != nil:
		i.failure = err.Error()
		i.report(err)
	case changed || i.failure != "":
		i.failure = ""
		i.report(nil)
	}
}

func equal(a, b [3][]byte) bool {
	for n := range a {
		if !bytes.Equal(a[n], b[n]) {
			return false
		}
	}
	return true
}

// VerifyMutual returns the reason why others that trust roots would refuse a certificate
// with which a program is both client and server, and proves that it is one of names. See
// [Expired].
func VerifyMutual(cert tls.Certificate, roots *x509.CertPool, names ...string) error {
	if err := IsFor(cert.Leaf, names...); err != nil {
		return err
	}
	between := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	for _, use := range []struct {
		usage x509.ExtKeyUsage
		name  string
	}{{x509.ExtKeyUsageServerAuth, "server"}, {x509.ExtKeyUsageClientAuth, "client"}} {
		_, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{use.usage}})
		if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.IncompatibleUsage {
			return fmt.Errorf("not the certificate of a %s, and it must be one of a client and of a server (extended key usage)", use.name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Expired reports whether an error of [VerifyMutual] is only for now: a certificate has
// expired, or is not valid yet.
func Expired(err error) bool {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	return ok && invalid.Reason == x509.Expired
}

// IsFor returns an error for a certificate that is for none of names. Names may be IP
// addresses; empty ones count for nothing.
func IsFor(cert *x509.Certificate, names ...string) error {
	var wanted []string
	for _, name := range names {
		if name == "" {
			continue
		}
		if cert.VerifyHostname(name) == nil {
			return nil
		}
		wanted = append(wanted, name)
	}
	has := append([]string{}, cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		has = append(has, ip.String())
	}
	if len(has) == 0 {
		has = append(has, "no name (subject alternative name)")
	}
	return fmt.Errorf("the certificate is for %s, and not for %s", strings.Join(has, ", "), strings.Join(wanted, " or "))
}
