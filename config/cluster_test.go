package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// clusterFlags returns flags of a relay in a cluster, which are valid, with changes: a flag
// without values is left out.
func clusterFlags(t *testing.T, changes map[string][]string) map[string][]string {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("sixteen bytes at least\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := map[string][]string{
		"port": {"5432"}, "hosts": {"192.0.2.1:5432,192.0.2.2:5432"}, "state-dir": {t.TempDir()},
		"cluster": {"etcd://192.0.2.7:2379,192.0.2.8:2379"}, "member": {"a"}, "members": {"a=192.0.2.3:9010,b=192.0.2.4:9010"},
		"cluster-listen": {":9010"}, "cluster-secret": {secret},
	}
	for flag, texts := range changes {
		flags[flag] = texts
		if len(texts) == 0 {
			delete(flags, flag)
		}
	}
	return flags
}

func TestCluster(t *testing.T) {
	s, _, err := Load(Given{Flags: clusterFlags(t, nil)})
	if err != nil {
		t.Fatal(err)
	}
	c := s.Cluster
	if len(c.Endpoints) != 2 || c.Endpoints[1] != "192.0.2.8:2379" || c.TLS || c.Member != "a" || len(c.Members) != 2 ||
		c.Members[1] != (ClusterMember{"b", "192.0.2.4:9010"}) || c.Name != "main" || c.Agree != "majority" || c.OnStoreLoss != "failsafe" {
		t.Errorf("%+v", c)
	}
	if c.Address() != "192.0.2.3:9010" || len(s.Warnings) != 0 {
		t.Errorf("address %q, warnings %q", c.Address(), s.Warnings)
	}
	if strings.Contains(c.Secret.String(), "sixteen") {
		t.Error("the secret is shown")
	}

	// Without --cluster there is nothing of it.
	s, _, err = Load(Given{Flags: map[string][]string{"port": {"1"}, "hosts": {"db:1"}}})
	if err != nil || s.Cluster.Endpoints != nil || s.Cluster.Lease != 0 {
		t.Errorf("%+v, %v", s.Cluster, err)
	}
}

// Each mistake is named where it was made.
func TestClusterMistakes(t *testing.T) {
	for _, tt := range []struct {
		flag, text, want string
	}{
		{"cluster", "", "--members: needs --cluster"},
		{"cluster", "consul://x:1", "--cluster: \"consul://x:1\" is not the URL of a store"},
		{"cluster", "etcd://u:p@x:1", "has a user in it"},
		{"cluster", "etcd://x:1,x:1", "names \"x:1\" twice"},
		{"cluster", "etcd://x", "--cluster: "},
		{"fence", "keep", "--fence: keep contradicts --cluster"},
		{"hosts", "db1:5432,192.0.2.2:5432", "\"db1:5432\" is a name"},
		{"member", "c", "--members: \"c\" is missing, this instance"},
		{"members", "a=192.0.2.3:1,a=192.0.2.3:2", "\"a\" is listed twice"},
		{"members", "a=192.0.2.3:1,b", "\"b\" has no address"},
		{"members", "a=192.0.2.3:1,.x=y:1", "is not NAME=host:port"},
		{"cluster-listen", "", "missing: with --on-store-loss failsafe the instances ask each other"},
		{"cluster-secret", "", "needs --cluster-secret or --peer-cert-file"},
		{"cluster-user", "u", "needs --cluster-password-file"},
		{"cluster-ca-file", "/nowhere", "--cluster-ca-file"},
		{"lease", "10ms", "--lease: \"10ms\" is shorter than 1s"},
		{"agree", "most", "--agree: "},
	} {
		t.Run(tt.flag+" "+tt.text, func(t *testing.T) {
			var texts []string
			if tt.text != "" {
				texts = []string{tt.text}
			}
			_, _, err := Load(Given{Flags: clusterFlags(t, map[string][]string{tt.flag: texts})})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}

	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(Given{Flags: clusterFlags(t, map[string][]string{"cluster-secret": {short}})}); err == nil || strings.Contains(err.Error(), `"short"`) || !strings.Contains(err.Error(), "has 5 bytes") {
		t.Errorf("a short secret: %v", err)
	}
}

// What is valid and unwise is a warning.
func TestClusterWarnings(t *testing.T) {
	for flag, tt := range map[string]struct{ text, want string }{
		"on-store-loss": {"keep", "an election waits for every instance"},
		"state-dir":     {"", "does not notice after a restart that the store has gone back"},
	} {
		var texts []string
		if tt.text != "" {
			texts = []string{tt.text}
		}
		s, _, err := Load(Given{Flags: clusterFlags(t, map[string][]string{flag: texts})})
		if err != nil || len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], tt.want) {
			t.Errorf("%s %s: %q, %v", flag, tt.text, s.Warnings, err)
		}
	}
}

// peerFiles writes an authority, a certificate that it has signed, for the member a of
// clusterFlags, with changes, and its key.
func peerFiles(t *testing.T, change func(*x509.Certificate)) map[string][]string {
	t.Helper()
	dir := t.TempDir()
	file := func(name, kind string, der []byte) []string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{path}
	}
	caKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	cert := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"a"}}
	if change != nil {
		change(cert)
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, ca, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]string{
		"peer-ca-file": file("ca", "CERTIFICATE", caDER), "peer-cert-file": file("cert", "CERTIFICATE", der), "peer-key-file": file("key", "EC PRIVATE KEY", keyDER),
	}
}

// Certificates take the place of the secret, or are beside it.
func TestPeerCertificates(t *testing.T) {
	for name, change := range map[string]func(*x509.Certificate){
		"the name":    nil,
		"the address": func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, []net.IP{net.IPv4(192, 0, 2, 3)} },
	} {
		files := peerFiles(t, change)
		for _, secret := range []bool{false, true} {
			flags := clusterFlags(t, files)
			if !secret {
				delete(flags, "cluster-secret")
			}
			s, _, err := Load(Given{Flags: flags})
			if err != nil || len(s.Warnings) != 0 || !s.Cluster.KnowsPeers() || s.Cluster.Peer.Cert != files["peer-cert-file"][0] {
				t.Errorf("%s, secret %v: %+v, %q, %v", name, secret, s.Cluster.Peer, s.Warnings, err)
			}
		}
	}
	if got := (Cluster{Members: []ClusterMember{{"b", "b.example:1"}}}).PeerNames("b", "192.0.2.4:1", "", "b.example:2"); strings.Join(got, " ") != "b 192.0.2.4 b.example" {
		t.Errorf("names %q", got)
	}
}

// Certificates that the others would refuse are named. That one has expired keeps no instance
// from starting.
func TestPeerCertificateMistakes(t *testing.T) {
	text := func(content string) []string {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{path}
	}
	for name, tt := range map[string]struct {
		cert   func(*x509.Certificate)
		change func(flags map[string][]string)
		want   string
	}{
		"no authority":      {nil, func(f map[string][]string) { delete(f, "peer-ca-file") }, "--peer-key-file: needs --peer-ca-file, too"},
		"only a key":        {nil, func(f map[string][]string) { delete(f, "peer-ca-file"); delete(f, "peer-cert-file") }, "--peer-key-file: needs --peer-ca-file and --peer-cert-file, too"},
		"no key":            {nil, func(f map[string][]string) { delete(f, "peer-key-file") }, "--peer-cert-file: needs --peer-key-file, too"},
		"no file":           {nil, func(f map[string][]string) { f["peer-cert-file"] = []string{"/nowhere"} }, "--peer-cert-file: "},
		"no key file":       {nil, func(f map[string][]string) { f["peer-key-file"] = []string{"/nowhere"} }, "--peer-key-file: "},
		"no PEM":            {nil, func(f map[string][]string) { f["peer-ca-file"] = text("x") }, "--peer-ca-file: "},
		"another key":       {nil, func(f map[string][]string) { f["peer-key-file"] = peerFiles(t, nil)["peer-key-file"] }, "private key does not match public key"},
		"another authority": {nil, func(f map[string][]string) { f["peer-ca-file"] = peerFiles(t, nil)["peer-ca-file"] }, "the other instances would refuse it: x509: certificate signed by unknown authority"},
		"a server only":     {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, nil, "not the certificate of a client"},
		"another member":    {func(c *x509.Certificate) { c.DNSNames = []string{"b"} }, nil, "the certificate is for b, and not for a or 192.0.2.3"},
		"no listener":       {nil, func(f map[string][]string) { delete(f, "cluster-listen"); f["on-store-loss"] = []string{"fence"} }, "--peer-cert-file: needs --cluster-listen"},
		"no cluster":        {nil, func(f map[string][]string) { delete(f, "cluster") }, "--peer-cert-file: needs --cluster, "},
	} {
		t.Run(name, func(t *testing.T) {
			flags := clusterFlags(t, peerFiles(t, tt.cert))
			delete(flags, "cluster-secret")
			if tt.change != nil {
				tt.change(flags)
			}
			_, _, err := Load(Given{Flags: flags})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}

	for name, tt := range map[string]struct {
		cert func(*x509.Certificate)
		mode os.FileMode
		want string
	}{
		"expired": {func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, 0o600, "the other instances refuse it: x509: certificate has expired"},
		"open":    {nil, 0o644, "can be read by everybody: chmod o-r"},
	} {
		files := peerFiles(t, tt.cert)
		if err := os.Chmod(files["peer-key-file"][0], tt.mode); err != nil {
			t.Fatal(err)
		}
		s, _, err := Load(Given{Flags: clusterFlags(t, files)})
		if err != nil || len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], tt.want) {
			t.Errorf("%s: %q, %v", name, s.Warnings, err)
		}
	}
}
