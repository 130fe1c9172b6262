package roles

import (
	"crypto/tls"
	"errors"
	"net"

	"understudy/internal/address"
	"understudy/internal/pemfile"
)

// The modes of TLS.
const (
	TLSAuto    = "auto"    // off to a loopback address and a unix socket, verify to others
	TLSOff     = "off"     // never
	TLSPrefer  = "prefer"  // if the host has it; its certificate is not verified
	TLSRequire = "require" // always; its certificate is not verified
	TLSVerify  = "verify"  // always, with a certificate that is valid for the host's name
)

// TLSModes returns the modes of TLS.
func TLSModes() []string { return []string{TLSAuto, TLSOff, TLSPrefer, TLSRequire, TLSVerify} }

// TLSConfig configures the encryption of sessions. The files are read at each login.
type TLSConfig struct {
	Mode       string // one of [TLSModes]
	ServerName string // for SNI and the certificate, instead of the host's name
	CA         string // file of the authorities to trust instead of the system's; empty for those
	Cert, Key  string // files of our own certificate, or both empty
}

// tlsChoice is what one connection uses.
type tlsChoice struct {
	config *tls.Config // nil for plain text
	prefer bool        // plain text will do
}

// choose returns what a connection to host, whose address is remote, uses.
func (c TLSConfig) choose(remote net.Addr, host string) (tlsChoice, error) {
	mode := c.Mode
	if mode == TLSAuto {
		mode = TLSVerify
		if tcp, ok := remote.(*net.TCPAddr); !ok || tcp.IP.IsLoopback() {
			mode = TLSOff
		}
	}
	if mode == TLSOff {
		return tlsChoice{}, nil
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: c.ServerName,
		InsecureSkipVerify: mode != TLSVerify, //nolint:gosec // the operator's choice, by its name
	}
	if h, err := address.ParseHost(host); err == nil && cfg.ServerName == "" {
		cfg.ServerName = h.Name
	}
	if c.CA != "" {
		pool, err := pemfile.Pool(c.CA)
		if err != nil {
			return tlsChoice{}, refused(err)
		}
		cfg.RootCAs = pool
	}
	if c.Cert != "" {
		pair, err := pemfile.Pair(c.Cert, c.Key)
		if err != nil {
			return tlsChoice{}, refused(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return tlsChoice{config: cfg, prefer: mode == TLSPrefer}, nil
}

// tlsError reports whether err means that the two sides could not agree on TLS, as
// with a certificate that has expired: that is no failure of the host.
func tlsError(err error) bool {
	_, verify := errors.AsType[*tls.CertificateVerificationError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	// An alert that the other side sent is a net.OpError with this operation.
	op, ok := errors.AsType[*net.OpError](err)
	return verify || alert || record || ok && op.Op == "remote error"
}
