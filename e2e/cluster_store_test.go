//go:build linux

package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy/control"
	"understudy/internal/proctest"
)

// papers are an authority and what it has signed, each in a file: a certificate for
// 127.0.0.1, for servers and clients, and its key.
type papers struct{ ca, cert, key string }

// newPapers makes an authority and signs a certificate, which has no name: with one, etcd
// takes that for the user.
func newPapers(t *testing.T) papers {
	t.Helper()
	dir := t.TempDir()
	p := papers{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	save := func(path, kind string, der []byte) {
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sign := func(of, by *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, of, by, public, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	generate := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	caKey, key := generate(), generate()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	save(p.ca, "CERTIFICATE", sign(ca, ca, &caKey.PublicKey, caKey))
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	save(p.cert, "CERTIFICATE", sign(leaf, ca, &key.PublicKey, caKey))
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	save(p.key, "PRIVATE KEY", der)
	return p
}

// etcd with TLS wants a certificate, a user and a password. What is wrong with them is
// said, and mended without a restart; a password that is changed costs no connection.
func TestClusterLogsIn(t *testing.T) {
	t.Parallel()
	p := newPapers(t)
	store := startEtcdWith(t, "https", "--cert-file", p.cert, "--key-file", p.key, "--trusted-ca-file", p.ca, "--client-cert-auth")
	pair, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	text, _ := os.ReadFile(p.ca)
	pool.AppendCertsFromPEM(text)
	admin := &http.Client{
		Timeout:   30 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool}},
	}
	token := ""
	ask := func(path string, body any) (answer struct{ Token string }, err error) {
		text, err := json.Marshal(body)
		if err != nil {
			return answer, err
		}
		req, err := http.NewRequest(http.MethodPost, "https://"+store.addr+"/v3/"+path, bytes.NewReader(text))
		if err != nil {
			return answer, err
		}
		if token != "" {
			req.Header.Set("Authorization", token)
		}
		res, err := admin.Do(req)
		if err != nil {
			return answer, err
		}
		defer res.Body.Close()
		text, err = io.ReadAll(res.Body)
		if err == nil && res.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", res.Status, text)
		}
		if err == nil {
			err = json.Unmarshal(text, &answer)
		}
		return answer, err
	}
	must := func(path string, body any) string {
		t.Helper()
		answer, err := ask(path, body)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return answer.Token
	}
	type words map[string]any
	proctest.Until(t, "etcd answers", func() bool {
		_, err := ask("kv/range", words{"key": []byte("/")})
		return err == nil
	})
	must("auth/user/add", words{"name": "root", "password": "of all"})
	must("auth/role/add", words{"name": "root"})
	must("auth/user/grant", words{"user": "root", "role": "root"})
	must("auth/role/add", words{"name": "instances"})
	must("auth/role/grant", words{"name": "instances", "perm": words{"permType": "READWRITE", "key": []byte("/understudy/"), "range_end": []byte("/understudy0")}})
	must("auth/user/add", words{"name": "proxy", "password": "the first password"})
	must("auth/user/grant", words{"user": "proxy", "role": "instances"})
	must("auth/enable", words{})
	token = must("auth/authenticate", words{"name": "root", "password": "of all"})

	order := new(atomic.Int64)
	hosts := startWitnessed(t, 'A', order).addr + "," + startWitnessed(t, 'B', order).addr
	password := filepath.Join(t.TempDir(), "password")
	write := func(word string) {
		t.Helper()
		if err := os.WriteFile(password, []byte(word+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(member string, more ...string) *instance {
		t.Helper()
		in := &instance{name: member, addr: freeAddr(t), socket: socketPath(t)}
		in.Understudy = start(t, append([]string{
			"--bind", in.addr, "--hosts", hosts, "--control", in.socket, "--state-dir", t.TempDir(), "--interval", "200ms",
			"--cluster", "etcds://" + store.addr, "--cluster-name", "of-" + member, "--member", member, "--lease", "2s",
			"--cluster-ca-file", p.ca, "--cluster-user", "proxy", "--cluster-password-file", password,
		}, more...)...)
		return in
	}
	fails := func(in *instance, texts ...string) {
		t.Helper()
		in.Until("the store of "+in.name+" is said to fail: "+strings.Join(texts, ", "), func() bool {
			r, ok := in.status(t)
			for _, text := range texts {
				ok = ok && strings.Contains(r.Cluster.Text, text)
			}
			return ok
		})
	}
	write("a wrong password")
	a := run("a", "--cluster-cert-file", p.cert, "--cluster-key-file", p.key)
	fails(a, "login as proxy", "authentication failed, invalid user ID or password")
	write("the first password")
	s := &several{t: t, all: []*instance{a}}
	s.until("serves", func(r control.RelayStatus) bool { return r.Primary != "" })
	k := s.talk(a)
	a.Until("a client is answered", func() bool { return k.said.Load() > 5 })

	// The other half of a change of the password.
	must("auth/user/changepw", words{"name": "proxy", "password": "the second password"})
	fails(a, "authentication failed, invalid user ID or password")
	time.Sleep(3 * time.Second) // longer than its lease
	write("the second password")
	a.Until("it has the store again", func() bool {
		r, ok := a.status(t)
		return ok && r.Cluster.StoreFails.IsZero() && r.Cluster.LeaseSeconds > 0
	})
	before := k.said.Load()
	a.Until("the client is still answered", func() bool { return k.said.Load() > before+5 })
	if n := k.resets.Load(); n != 0 {
		t.Errorf("a new password cost %d connections", n)
	}

	// A right password does not replace the certificate.
	b := run("b")
	fails(b, "the store has not answered", "certificate")
	for _, in := range s.all {
		for _, word := range []string{"a wrong password", "the first password", "the second password"} {
			if strings.Contains(in.Log(), word) {
				t.Errorf("the log of %s has a password:\n%s", in.name, in.Log())
			}
		}
	}
}

// With on-store-loss keep, an instance that has died is waited for until somebody says that
// it is dead: cluster force.
func TestClusterForce(t *testing.T) {
	t.Parallel()
	const lease = time.Second
	s := startSeveral(t, lease, "--on-store-loss", "keep", "--interval", "200ms")
	a, b := s.all[0], s.all[1]
	s.until("serves", func(r control.RelayStatus) bool { return r.Primary != "" })
	r, _ := a.status(t)
	primary := 0
	if r.Primary == s.hosts[1].addr {
		primary = 1
	}
	s.serves(primary)
	if code, text := s.try(a, "cluster", "force"); code == 0 || !strings.Contains(text, "waits for nobody") {
		t.Errorf("force without an election: exit status %d: %s", code, text)
	}
	epoch := r.Epoch
	b.Signal(syscall.SIGKILL)
	b.Exit()
	s.hosts[primary].refuse()
	var driver *instance
	proctest.Until(t, "an instance waits for b", func() bool {
		for _, in := range []*instance{a, s.all[2]} {
			if r, ok := in.status(t); ok && strings.Contains(r.Cluster.Text, "waiting for b") {
				driver = in
			}
		}
		return driver != nil
	})
	time.Sleep(3 * lease) // more than the wait where leases end
	if r, ok := driver.status(t); !ok || r.Primary != "" || !strings.Contains(r.Cluster.Text, "waiting for b") {
		t.Errorf("after three leases: primary %q, %s", r.Primary, r.Cluster.Text)
	}
	if code, text := s.try(driver, "cluster", "force", "--reason", "b has no power"); code != 0 || !strings.Contains(text, "waits for nobody any more") {
		t.Errorf("force: exit status %d: %s", code, text)
	}
	s.serves(1-primary, 0, 2)
	if r, _ := driver.status(t); r.Epoch != epoch+1 {
		t.Errorf("epoch %d, want %d", r.Epoch, epoch+1)
	}
	if !strings.Contains(driver.Log(), "forced: instances that are silent are taken for dead") {
		t.Error("the log does not tell that it was forced")
	}
	if text := s.order(driver, "events"); !regexp.MustCompile(`orders: cluster-force, done\n +member +b\n +why +cluster-force by .+: b has no power\n`).MatchString(text) {
		t.Errorf("events say: %s", text)
	}
	// Who changes the members is in the record of all.
	s.order(a, "cluster", "forget", "b", "--reason", "b is sold")
	for i, in := range []*instance{a, s.all[2]} {
		where := `\n +where +at another instance of the cluster`
		if i == 0 {
			where = ""
		}
		want := regexp.MustCompile(`orders: cluster-forget, done\n +member +b\n +why +cluster-forget by .+: b is sold` + where + `\n`)
		in.Until("the record of "+in.name+" has it", func() bool { return want.MatchString(s.order(in, "events")) })
	}
}
