package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/config"
	"understudy/internal/pemfile"
)

// lateShare is the part of the time for which a certificate is valid, as a divisor, that is
// left when it is told that nobody has renewed it.
const lateShare = 10

// openIdentity reads the files for TLS with the other instances; nil where there are none.
func openIdentity(cfg config.Cluster, log hclog.Logger) (*pemfile.Identity, error) {
	if cfg.Peer.Cert == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	id, err := pemfile.OpenIdentity(cfg.Peer.CA, cfg.Peer.Cert, cfg.Peer.Key, func(err error) {
		if err != nil {
			log.Warn("certificate for other instances not read again, the previous one stays in use", "error", err)
			return
		}
		log.Info("certificate for other instances read again", "file", cfg.Peer.Cert)
	})
	if err != nil {
		return nil, fmt.Errorf("--peer-cert-file: %w", err)
	}
	return id, nil
}

// judge returns what is wrong with the certificate of this instance, and when it expires. Late
// tells that it is valid, and should have been renewed.
func judge(cfg config.Cluster, own tls.Certificate, authorities *x509.CertPool, now time.Time) (until time.Time, late bool, err error) {
	until = own.Leaf.NotAfter
	if err = pemfile.VerifyMutual(own, authorities, cfg.PeerNames(cfg.Member, cfg.Address())...); err != nil {
		return until, false, err
	}
	if left := until.Sub(now); left < until.Sub(own.Leaf.NotBefore)/lateShare {
		return until, true, fmt.Errorf("the certificate expires at %s, and was not renewed", until.Format(time.RFC3339))
	}
	return until, false, nil
}

// here says where this process runs: the address from which it reaches the store, the host and
// the process.
func (m *membership) here() string {
	text := fmt.Sprintf("process %d", os.Getpid())
	if host, err := os.Hostname(); err == nil {
		text = "host " + host + ", " + text
	}
	// Nothing is sent: the kernel only chooses the address.
	if c, err := new(net.Dialer).DialContext(context.Background(), "udp", m.cfg.Endpoints[0]); err == nil {
		if at, ok := c.LocalAddr().(*net.UDPAddr); ok {
			text = at.IP.String() + ", " + text
		}
		_ = c.Close() // it had nothing to do
	}
	return text
}

// names returns the names of which one must be in the certificate of a member; none for a
// name that is no member's.
func (m *membership) names(member string) []string {
	known := slices.ContainsFunc(m.cfg.Members, func(o config.ClusterMember) bool { return o.Name == member })
	var addresses []string
	for _, c := range m.conducted() {
		status := c.conductor.Status().Cluster
		if status == nil || !slices.Contains(status.Record.Roster, member) {
			continue
		}
		known = true
		for _, o := range status.Members {
			if o.Name == member && o.Known {
				addresses = append(addresses, o.Member.Address)
			}
		}
	}
	if !known {
		return nil
	}
	return m.cfg.PeerNames(member, addresses...)
}
