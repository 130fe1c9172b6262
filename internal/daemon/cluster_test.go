package daemon

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/cluster"
	"understudy/cluster/etcd"
	"understudy/cluster/peer"
	"understudy/config"
	"understudy/internal/proctest"
)

// helping is a member that counts what it is asked to pass on.
type helping struct {
	asked *atomic.Int64
	fails bool
}

func (h helping) Grants(context.Context, peer.Question) (bool, error) { return false, nil }

func (h helping) Transact(context.Context, cluster.Transaction) (cluster.Result, error) {
	h.asked.Add(1)
	if h.fails {
		return cluster.Result{}, errors.New("no store either")
	}
	return cluster.Result{OK: true}, nil
}

// An instance that cannot reach the store asks another one to pass its transaction
// on, then a second one, and never all of them.
func TestFewHelpers(t *testing.T) {
	for _, fails := range []bool{false, true} {
		var asked atomic.Int64
		secret := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(secret, []byte("a secret of the members"), 0o600); err != nil {
			t.Fatal(err)
		}
		settings, _, err := config.Load(config.Given{Flags: map[string][]string{
			"bind": {"127.0.0.1:5432"}, "hosts": {"127.0.0.1:1"}, "cluster": {"etcd://127.0.0.1:1"}, "cluster-name": {"c"}, "member": {"m"},
			"members": {"m=127.0.0.1:9010"}, "cluster-listen": {"127.0.0.1:9010"}, "cluster-secret": {secret}, "lease": {"30s"},
		}})
		if err != nil {
			t.Fatal(err)
		}
		m := &membership{cfg: settings.Cluster, clients: map[string]*peer.Client{}, troubles: map[string]*peerTrouble{}}
		for _, name := range []string{"n", "o", "p", "q", "r"} {
			with := peerConfig(m.cfg, nil)
			with.Member = name
			server, err := peer.NewServer(peer.ServerConfig{Config: with, Local: helping{&asked, fails}, Connections: 10})
			if err != nil {
				t.Fatal(err)
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- server.Serve(ctx, ln) }()
			t.Cleanup(func() { stop(); <-done })
			m.cfg.Members = append(m.cfg.Members, config.ClusterMember{Name: name, Address: ln.Addr().String()})
		}
		if m.etcd, err = etcd.New(etcd.Config{Endpoints: []string{proctest.FreeAddr(t)}, Timeout: time.Second}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.close)
		ctx, stop := context.WithTimeout(t.Context(), 15*time.Second)
		res, err := sharedStore{m}.Transact(ctx, cluster.Transaction{Key: "/understudy/c/db/member/m", Prefix: "/understudy/c/db/"})
		stop()
		if fails && (err == nil || asked.Load() != 2) || !fails && (err != nil || !res.OK || asked.Load() > mostHelpers) {
			t.Errorf("helpers that fail: %v: %+v, %v, %d asked", fails, res, err, asked.Load())
		}
	}
}

// An instance that does not answer twice is told of once, and that it answers again.
func TestTroublesOfPeers(t *testing.T) {
	var log bytes.Buffer
	m := &membership{cfg: config.Cluster{Member: "a"}, log: hclog.New(&hclog.LoggerOptions{Output: &log}), troubles: map[string]*peerTrouble{}}
	refused := errors.New("certificate has expired")
	m.note("b", refused)
	m.note("b", context.Canceled)
	if !m.failed("b") || m.unanswered("b") != "" || log.Len() > 0 {
		t.Errorf("after one question: %v, %q, %s", m.failed("b"), m.unanswered("b"), &log)
	}
	for range 3 {
		m.note("b", refused)
	}
	if got := m.unanswered("b"); got != refused.Error() || m.unanswered("c") != "" || strings.Count(log.String(), "another instance does not answer") != 1 {
		t.Errorf("after more: %q, %s", got, &log)
	}
	m.note("b", nil)
	if m.failed("b") || m.unanswered("b") != "" || !strings.Contains(log.String(), "another instance answers again") {
		t.Errorf("after an answer: %s", &log)
	}
	m.note("b", refused)
	m.note("b", nil)
	if n := strings.Count(log.String(), "\n"); n != 2 {
		t.Errorf("a question that fails once is logged: %s", &log)
	}
}

// A certificate of which little time is left was not renewed.
func TestJudge(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now().Add(-time.Hour).Truncate(time.Second)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: began, NotAfter: began.Add(10 * time.Hour), DNSNames: []string{"a"}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	own := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	for after, wantLate := range map[time.Duration]bool{8 * time.Hour: false, 9*time.Hour + time.Second: true} {
		until, late, err := judge(config.Cluster{Member: "a"}, own, pool, began.Add(after))
		if late != wantLate || (err != nil) != wantLate || !until.Equal(leaf.NotAfter) {
			t.Errorf("after %v: until %v, late %v, %v", after, until, late, err)
		}
	}
	if _, late, err := judge(config.Cluster{Member: "b"}, own, pool, began); err == nil || late {
		t.Errorf("of another member: late %v, %v", late, err)
	}
}
