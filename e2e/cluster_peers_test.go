//go:build linux

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/control"
	"understudy/internal/proctest"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

// issue writes ca, cert and key of an instance into a directory. The certificate is for its
// name alone, because the addresses of all are the same here.
func (a *authority) issue(dir, name string, until time.Time) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: until, DNSNames: []string{name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		"ca": {Type: "CERTIFICATE", Bytes: a.cert.Raw}, "cert": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(dir, name+"."+file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

// Instances know each other by certificates, without a secret. One that has expired, or is of
// another authority, is refused and named, and a new one is used without a restart. Then
// nobody loses a connection while etcd is away.
func TestClusterPeersByCertificates(t *testing.T) {
	t.Parallel()
	ours, others := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	valid := time.Now().Add(24 * time.Hour)
	const lease = 2 * time.Second
	s := startSeveralBy(t, lease, func(name string) []string {
		until := valid
		if name == "c" {
			until = time.Now().Add(-time.Minute)
		}
		ours.issue(dir, name, until)
		at := filepath.Join(dir, name)
		return []string{"--peer-ca-file", at + ".ca", "--peer-cert-file", at + ".cert", "--peer-key-file", at + ".key"}
	})
	a, c := s.all[0], s.all[2]
	s.serves(0)
	talkers := []*talker{s.talk(a), s.talk(s.all[1]), s.talk(c)}
	s.answered("start", 0, talkers...)
	says := func(of, want string) func(control.RelayStatus) bool {
		return func(r control.RelayStatus) bool {
			for _, m := range r.Cluster.Members {
				if m.Name == of {
					return want == "" && m.Error == "" || want != "" && strings.Contains(m.Error, want)
				}
			}
			return false
		}
	}

	s.until("names the instance whose certificate has expired", says("c", "certificate has expired"), 0, 1)
	s.until("knows why the others refuse it", says("c", "certificate has expired"), 2)
	s.until("is refused", says("a", "it refuses our certificate: "), 2)
	if text := s.order(a, "cluster"); !regexp.MustCompile(`c does not answer this instance: .*certificate has expired`).MatchString(strings.Join(strings.Fields(text), " ")) {
		t.Errorf("cluster says: %s", text)
	}
	a.Until("the log names it", func() bool {
		return strings.Contains(a.Log(), "another instance does not answer this one") && strings.Contains(a.Log(), "request of a member refused")
	})
	if text := a.metrics(t); !strings.Contains(text, `understudy_cluster_instances_refusing{relay="orders"} 1`) {
		t.Error("the metrics do not count it")
	}
	check := proctest.StartCommand(t, proctest.BinaryCommand(program(t), nil, append([]string{"check"}, s.args[0]...)...))
	if code := check.Exit(); code != 1 {
		t.Errorf("check: exit status %d: %s", code, check.Stdout())
	}
	for _, row := range []string{`^certificate \S+/a\.cert +ok +for the other instances, valid until `, `^member b at \S+ +ok `, `^member c at \S+ +failed .*certificate has expired`} {
		if !regexp.MustCompile("(?m)" + row).MatchString(check.Stdout()) {
			t.Errorf("check: no row matches %q:\n%s", row, check.Stdout())
		}
	}

	others.issue(dir, "c", valid)
	s.until("refuses one of another authority", says("c", "unknown authority"), 0, 1)
	s.until("refuses them, too", says("a", "unknown authority"), 2)

	ours.issue(dir, "c", valid)
	s.until("answers", says("c", ""), 0, 1)
	s.until("is answered", says("a", ""), 2)
	s.until("is answered", says("b", ""), 2)

	resets := func() (n int64) {
		for _, k := range talkers {
			n += k.resets.Load()
		}
		return n
	}
	before := resets()
	s.store.kill()
	s.until("has lost etcd", func(r control.RelayStatus) bool { return r.Cluster.StoreError != "" })
	time.Sleep(3 * lease) // a lease that nobody confirms would be over long before
	s.answered("while etcd is away", 0, talkers...)
	if n := resets(); n != before {
		t.Errorf("%d connections were lost while etcd was away, want none", n-before)
	}
	s.store.start()
	s.until("has etcd again", func(r control.RelayStatus) bool { return r.Cluster.StoreError == "" })
}

// Of two processes with the same name the second one is refused. Both say where the other is,
// and the first one goes on.
func TestClusterNameTwice(t *testing.T) {
	t.Parallel()
	s := startSeveral(t, 2*time.Second)
	s.serves(0)
	a := s.all[0]
	k := s.talk(a)
	s.answered("start", 0, k)
	dir := t.TempDir()
	file := filepath.Join(dir, "twin.yaml")
	text := fmt.Sprintf("relays:\n- {name: orders, listen: [%q], hosts: [%q, %q]}\n", freeAddr(t), s.hosts[0].addr, s.hosts[1].addr)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	twin := &instance{name: "twin", socket: socketPath(t)}
	twin.Understudy = start(t, append(slices.Clone(s.args[0]), "--config", file, "--control", twin.socket, "--state-dir", filepath.Join(dir, "state"), "--cluster-listen", freeAddr(t))...)
	rival := func(in, other *instance, refused bool) {
		t.Helper()
		want := fmt.Sprintf("127.0.0.1, host %s, process %d", hostName(t), other.PID())
		in.Until(in.name+" knows of the other", func() bool {
			r, ok := in.status(t)
			return ok && r.Cluster.Rival == want && (r.Cluster.Trouble != "") == refused && strings.Contains(r.Cluster.Text, want)
		})
	}
	rival(a, twin, false)
	rival(twin, a, true)
	if !strings.Contains(a.Log(), "another process has the name of this instance") {
		t.Error("the log does not say it")
	}
	if !strings.Contains(a.metrics(t), `understudy_cluster_name_twice{relay="orders"} 1`) {
		t.Error("the metrics do not say it")
	}
	twin.Signal(syscall.SIGTERM)
	twin.Exit()
	s.until("is alone again", func(r control.RelayStatus) bool { return r.Cluster.Rival == "" }, 0)
	s.answered("end", 0, k)
	if n := k.resets.Load(); n > 0 {
		t.Errorf("%d connections were lost", n)
	}
}

func hostName(t *testing.T) string {
	t.Helper()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return name
}
