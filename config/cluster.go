package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"understudy/internal/pemfile"
)

// minClusterSecret is the least number of bytes of a cluster's secret.
const minClusterSecret = 16

// clusterStore is where the instances of a cluster agree.
type clusterStore struct {
	endpoints []string
	tls       bool
}

// clusterURL accepts etcd://host:port,host:port and etcds:// likewise.
func clusterURL(text string) (clusterStore, error) {
	scheme, rest, found := strings.Cut(text, "://")
	if !found || scheme != "etcd" && scheme != "etcds" {
		return clusterStore{}, errors.New("is not the URL of a store: want one like etcd://192.0.2.1:2379,192.0.2.2:2379,192.0.2.3:2379, or etcds:// for TLS")
	}
	if strings.Contains(rest, "@") {
		return clusterStore{}, errors.New("has a user in it: use --cluster-user and --cluster-password-file")
	}
	s := clusterStore{tls: scheme == "etcds"}
	for at := range strings.SplitSeq(strings.TrimSuffix(rest, "/"), ",") {
		at = strings.TrimSpace(at)
		if err := checkEndpoint(at); err != nil {
			return clusterStore{}, fmt.Errorf("%s %w", quote(at), err)
		}
		if slices.Contains(s.endpoints, at) {
			return clusterStore{}, fmt.Errorf("names %s twice", quote(at))
		}
		s.endpoints = append(s.endpoints, at)
	}
	return s, nil
}

// checkEndpoint returns an error for a text that is not host:port.
func checkEndpoint(text string) error {
	if strings.HasPrefix(text, "unix:") {
		return errors.New("is a unix socket: want host:port")
	}
	return checkHost(text)
}

// clusterMember accepts NAME=host:port, and NAME alone.
func clusterMember(text string) (ClusterMember, error) {
	who, at, found := strings.Cut(text, "=")
	m := ClusterMember{Name: strings.TrimSpace(who), Address: strings.TrimSpace(at)}
	if _, err := name(m.Name); err != nil {
		return m, fmt.Errorf("is not NAME=host:port: the name %w", err)
	}
	if found {
		if err := checkEndpoint(m.Address); err != nil {
			return m, fmt.Errorf("is not NAME=host:port: %s %w", quote(m.Address), err)
		}
	}
	return m, nil
}

func addClusterMember(d *draft, m ClusterMember) {
	d.settings.Cluster.Members = append(d.settings.Cluster.Members, m)
}

// clusterSecret reads the secret of the instances from a file.
func clusterSecret(d *draft, items []string) []error {
	var err error
	d.settings.Cluster.Secret, err = d.readSecret(d.raw["cluster-secret"].origin, items[len(items)-1])
	if err == nil && len(d.settings.Cluster.Secret.value) < minClusterSecret {
		err = fmt.Errorf("%s has %d bytes, want %d at least (openssl rand -hex 32)", items[len(items)-1], len(d.settings.Cluster.Secret.value), minClusterSecret)
	}
	if err != nil {
		return []error{err}
	}
	return nil
}

// checkCluster reports settings that do not go together with a cluster, or not without
// one.
func (d *draft) checkCluster() {
	c := &d.settings.Cluster
	if !d.given("cluster") {
		for _, s := range table {
			if s.Group == agreeing && d.given(s.Flag) {
				d.problem(d.at(s.Flag), errors.New("needs --cluster, the store in which the instances agree"))
			}
		}
		*c = Cluster{}
		return
	}
	d.checkClusterStore(c)
	d.checkMembers(c)
	for _, r := range d.settings.Relays {
		at := d.at("fence")
		if r.Fence.Keep {
			d.problem(at, errors.New("keep contradicts --cluster: connections to an old primary must end before the next one is opened to"))
		}
		for _, host := range r.Hosts {
			if _, err := netip.ParseAddrPort(host); err != nil && !strings.HasPrefix(host, "unix:") {
				d.problem(d.at("hosts"), fmt.Errorf("%s is a name: each instance of a cluster resolves it by itself, so while DNS changes two of them would pass clients to two machines; use its address", quote(host)))
			}
		}
	}
	if c.OnStoreLoss == "keep" {
		d.warn(d.at("on-store-loss"), "keep: an instance that is cut off goes on with the old primary, so an election waits for every instance, however long")
	}
	if d.settings.StateDir == "" {
		d.warn(d.at("cluster"), "without --state-dir an instance does not notice after a restart that the store has gone back in time, to an old backup")
	}
}

func (d *draft) checkClusterStore(c *Cluster) {
	switch {
	case c.User != "" && !d.given("cluster-password-file"):
		d.problem(d.at("cluster-user"), errors.New("needs --cluster-password-file"))
	case c.User == "" && d.given("cluster-password-file"):
		d.problem(d.at("cluster-password-file"), errors.New("needs --cluster-user"))
	case c.User != "" && !c.TLS:
		d.warn(d.at("cluster-user"), "the password is sent without TLS: use etcds://")
	}
	if info, err := os.Stat(c.PasswordFile); c.PasswordFile != "" && err == nil && info.Mode().Perm()&0o004 != 0 {
		d.warn(d.at("cluster-password-file"), "%s can be read by everybody: chmod o-r", c.PasswordFile)
	}
	if d.given("cluster-cert-file") || d.given("cluster-key-file") {
		d.checkPair(d.at("cluster-cert-file"), c.PEM.Cert, d.at("cluster-key-file"), c.PEM.Key)
	}
	for _, flag := range []string{"cluster-ca-file", "cluster-cert-file", "cluster-key-file"} {
		if d.given(flag) && !c.TLS {
			d.problem(d.at(flag), errors.New("needs --cluster etcds: without TLS no certificate is used"))
		}
	}
	c.PEM.Digest = digest(c.PEM.CA, c.PEM.Cert, c.PEM.Key)
}

func (d *draft) checkMembers(c *Cluster) {
	if c.Member == "" {
		host, err := os.Hostname()
		if err == nil {
			_, err = name(host)
		}
		if err != nil {
			d.problem(d.at("member"), fmt.Errorf("missing, and the host name cannot take its place: %w", err))
			return
		}
		c.Member = host
	}
	for i, m := range c.Members {
		if slices.ContainsFunc(c.Members[:i], func(o ClusterMember) bool { return o.Name == m.Name }) {
			d.problem(d.at("members"), fmt.Errorf("%s is listed twice", quote(m.Name)))
		}
	}
	if len(c.Members) > 0 && !slices.ContainsFunc(c.Members, func(m ClusterMember) bool { return m.Name == c.Member }) {
		d.problem(d.at("members"), fmt.Errorf("%s is missing, this instance (--member)", quote(c.Member)))
	}
	d.checkPeerTLS(c)
	switch {
	case c.Listen != "" && !c.KnowsPeers():
		d.problem(d.at("cluster-listen"), errors.New("needs --cluster-secret or --peer-cert-file, by which the instances know each other"))
	case c.Listen == "" && c.OnStoreLoss == "failsafe" && len(c.Members) > 1:
		d.problem(d.at("cluster-listen"), errors.New("missing: with --on-store-loss failsafe the instances ask each other while the store is away; needs --cluster-secret or --peer-cert-file, too"))
	case c.Listen == "" && c.Secret.IsSet():
		d.problem(d.at("cluster-secret"), errors.New("needs --cluster-listen"))
	case c.Listen == "" && c.Peer.Cert != "":
		d.problem(d.at("peer-cert-file"), errors.New("needs --cluster-listen"))
	}
	if c.Listen != "" {
		d.reserve(d.at("cluster-listen"), c.Listen)
	}
	for _, m := range c.Members {
		if m.Name != c.Member && m.Address == "" && c.OnStoreLoss == "failsafe" {
			d.problem(d.at("members"), fmt.Errorf("%s has no address: want NAME=host:port, to ask it while the store is away", quote(m.Name)))
		}
	}
}

// checkPeerTLS reports files for TLS with the other instances that cannot be used, or that
// the others would refuse.
func (d *draft) checkPeerTLS(c *Cluster) {
	flags := []string{"peer-ca-file", "peer-cert-file", "peer-key-file"}
	var missing []string
	given := ""
	for _, flag := range flags {
		if d.given(flag) {
			given = flag
		} else {
			missing = append(missing, "--"+flag)
		}
	}
	switch {
	case given == "":
		return
	case len(missing) > 0:
		d.problem(d.at(given), fmt.Errorf("needs %s, too", strings.Join(missing, " and ")))
		return
	}
	if info, err := os.Stat(c.Peer.Key); err == nil && info.Mode().Perm()&0o004 != 0 {
		d.warn(d.at("peer-key-file"), "%s can be read by everybody: chmod o-r", c.Peer.Key)
	}
	before := len(d.problems)
	d.checkPair(d.at("peer-cert-file"), c.Peer.Cert, d.at("peer-key-file"), c.Peer.Key)
	if len(d.problems) > before || c.Peer.CA == "" {
		return
	}
	switch err := c.VerifyPeer(); {
	case pemfile.Expired(err): // the program starts: it needs the others only while the store is away
		d.warn(d.at("peer-cert-file"), "%s: the other instances refuse it: %v", c.Peer.Cert, err)
	case err != nil:
		d.problem(d.at("peer-cert-file"), fmt.Errorf("%s: the other instances would refuse it: %w", c.Peer.Cert, err))
	}
}

// KnowsPeers reports whether the settings have something by which the instances know each
// other: a secret, or certificates.
func (c Cluster) KnowsPeers() bool { return c.Secret.IsSet() || c.Peer.Cert != "" }

// VerifyPeer returns why the other instances refuse the certificate of this one.
func (c Cluster) VerifyPeer() error {
	pair, err := pemfile.Pair(c.Peer.Cert, c.Peer.Key)
	if err != nil {
		return err
	}
	authorities, err := pemfile.Pool(c.Peer.CA)
	if err != nil {
		return err
	}
	return pemfile.VerifyMutual(pair, authorities, c.PeerNames(c.Member, c.Address())...)
}

// PeerNames returns the names of which one must be in the certificate of a member: its own,
// and the hosts of its address here and of others where it says that it answers.
func (c Cluster) PeerNames(member string, addresses ...string) []string {
	for _, m := range c.Members {
		if m.Name == member {
			addresses = append(addresses, m.Address)
		}
	}
	names := []string{member}
	for _, at := range addresses {
		if host, _, err := net.SplitHostPort(at); err == nil && !slices.Contains(names, host) {
			names = append(names, host)
		}
	}
	return names
}

// Address returns where other instances reach this one: its address in Members, or that
// where it listens if that is one; otherwise empty.
func (c Cluster) Address() string {
	for _, m := range c.Members {
		if m.Name == c.Member && m.Address != "" {
			return m.Address
		}
	}
	if host, _, err := net.SplitHostPort(c.Listen); err == nil {
		if ip, err := netip.ParseAddr(host); err == nil && !ip.IsUnspecified() {
			return c.Listen
		}
	}
	return ""
}
