package daemon

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/cluster"
	"understudy/cluster/etcd"
	"understudy/cluster/peer"
	"understudy/config"
	"understudy/failover"
	"understudy/internal/boottime"
	"understudy/internal/pemfile"
)

const (
	// beats is the part of a lease, as a divisor, after which a heartbeat is due, and for
	// which its answer is waited for.
	beats = 5

	// clusterSlack is how much longer than a lease a silent instance is waited for: more
	// than a machine usually stands still with its clocks when it is moved to another one.
	clusterSlack = time.Second

	// mostHelpers is how many others are asked, one after the other, to pass one
	// transaction on. If all were, a store that is slow for a moment would get as many
	// requests from each as there are instances, and stay slow.
	mostHelpers = 2

	// peerConnections limits the connections of other instances.
	peerConnections = 256
)

// membership is this process as a member of a cluster.
type membership struct {
	cfg      config.Cluster
	etcd     *etcd.Store
	identity *pemfile.Identity // for TLS with other instances; nil: without
	server   *peer.Server      // nil where other instances are not answered
	log      hclog.Logger

	conducted func() []*conducted

	mu       sync.Mutex // guards the following
	clients  map[string]*peer.Client
	listener net.Listener            // bound, and not served yet; nil for none
	troubles map[string]*peerTrouble // of the instances that do not answer

	ownTrouble string // what is wrong with the own certificate; empty for nothing
}

// join makes the membership of the settings; nil where there is no cluster.
func (s *service) join(cfg config.Cluster) (*membership, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, nil //nolint:nilnil // there is none
	}
	if !boottime.Counts {
		return nil, errors.New("--cluster: this system has no clock that counts while it sleeps: only Linux is supported")
	}
	m := &membership{cfg: cfg, log: s.log.Named("cluster"), conducted: s.current, clients: map[string]*peer.Client{}, troubles: map[string]*peerTrouble{}}
	var err error
	if m.identity, err = openIdentity(cfg, m.log); err != nil {
		return nil, err
	}
	if m.etcd, err = newStore(cfg, cfg.Endpoints...); err != nil {
		return nil, err
	}
	if cfg.Listen != "" {
		m.server, err = peer.NewServer(peer.ServerConfig{Config: peerConfig(m.cfg, m.identity), Local: local{m}, Names: m.names, Connections: peerConnections, Logger: m.log})
		if err != nil {
			m.close()
			return nil, err
		}
	}
	return m, nil
}

// newStore returns the store of a cluster, at some of its endpoints. The caller closes it.
func newStore(cfg config.Cluster, endpoints ...string) (*etcd.Store, error) {
	with := etcd.Config{Endpoints: endpoints, User: cfg.User, PasswordFile: cfg.PasswordFile, Timeout: cfg.Lease / beats}
	if cfg.TLS {
		with.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		var err error
		if cfg.PEM.CA != "" {
			if with.TLS.RootCAs, err = pemfile.Pool(cfg.PEM.CA); err != nil {
				return nil, fmt.Errorf("--cluster-ca-file: %w", err)
			}
		}
		if cfg.PEM.Cert != "" {
			pair, err := pemfile.Pair(cfg.PEM.Cert, cfg.PEM.Key)
			if err != nil {
				return nil, fmt.Errorf("--cluster-cert-file: %w", err)
			}
			with.TLS.Certificates = []tls.Certificate{pair}
		}
	}
	store, err := etcd.New(with)
	if err != nil {
		return nil, fmt.Errorf("--cluster: %w", err)
	}
	return store, nil
}

// peerConfig is what the server and the clients have alike.
func peerConfig(cfg config.Cluster, identity *pemfile.Identity) peer.Config {
	with := peer.Config{Cluster: cfg.Name, Member: cfg.Member, Secret: []byte(cfg.Secret.Value()), Timeout: cfg.Lease / beats}
	if identity != nil { // or it would be an interface that is not nil
		with.Identity = identity
	}
	return with
}

// close closes what it holds. A nil membership holds nothing.
func (m *membership) close() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.listener != nil {
		_ = m.listener.Close() // nothing was accepted
		m.listener = nil
	}
	for _, c := range m.clients {
		c.Close()
	}
	m.etcd.Close()
}

// Bind binds the address for other instances.
func (m *membership) Bind() error {
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", m.cfg.Listen)
	if err != nil {
		return fmt.Errorf("--cluster-listen: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.listener = ln
	return nil
}

// Run answers other instances, and asks them, until ctx ends.
func (m *membership) Run(ctx context.Context) error {
	m.mu.Lock()
	ln := m.listener
	m.listener = nil
	m.mu.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	watching, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() { m.watch(watching) })
	return m.server.Serve(ctx, ln)
}

// client returns the client for a member, or an error where it is not known how to reach it.
func (m *membership) client(member, address string) (*peer.Client, error) {
	for _, known := range m.cfg.Members {
		if known.Name == member {
			address = cmp.Or(known.Address, address)
		}
	}
	if !m.cfg.KnowsPeers() || address == "" {
		return nil, fmt.Errorf("member %q cannot be asked: its address, or --cluster-secret or --peer-cert-file, is missing", member)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := member + "\x00" + address
	if c := m.clients[key]; c != nil {
		return c, nil
	}
	c, err := peer.NewClient(peer.ClientConfig{Config: peerConfig(m.cfg, m.identity), To: member, Address: address})
	if err == nil {
		m.clients[key] = c
	}
	return c, err
}

// local is what this instance does for others.
type local struct{ of *membership }

// Grants asks the conductor of the relay.
func (l local) Grants(ctx context.Context, q peer.Question) (bool, error) {
	for _, c := range l.of.conducted() {
		if c.name == q.Relay {
			return c.conductor.Grants(ctx, q.From, q.Life, q.Version, q.Boot), nil
		}
	}
	return false, fmt.Errorf("there is no relay %q", q.Relay)
}

// Transact passes t on to the store.
func (l local) Transact(ctx context.Context, t cluster.Transaction) (cluster.Result, error) {
	return l.of.etcd.Transact(ctx, t)
}

// sharedStore is the store of a cluster, which other instances help to reach.
type sharedStore struct{ *membership }

// Read returns all keys that begin with prefix.
func (s sharedStore) Read(ctx context.Context, prefix string) ([]cluster.KeyValue, error) {
	return s.etcd.Read(ctx, prefix)
}

// Watch tells of changes.
func (s sharedStore) Watch(ctx context.Context, prefix string, changed func(cluster.KeyValue)) error {
	return s.etcd.Watch(ctx, prefix, changed)
}

// Transact carries out t. When the store does not answer soon, or cannot be reached, the
// other instances are asked to pass t on; its condition makes it harmless to carry it out
// twice.
func (s sharedStore) Transact(ctx context.Context, t cluster.Transaction) (cluster.Result, error) {
	type answer struct {
		result cluster.Result
		err    error
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	answers := make(chan answer, 1+len(s.cfg.Members))
	ask := func(do func(context.Context, cluster.Transaction) (cluster.Result, error)) {
		go func() {
			result, err := do(ctx, t)
			answers <- answer{result, err}
		}()
	}
	ask(s.etcd.Transact)
	waiting := 1
	helpers := slices.DeleteFunc(slices.Clone(s.cfg.Members), func(m config.ClusterMember) bool { return m.Name == s.cfg.Member })
	mathrand.Shuffle(len(helpers), func(i, j int) { helpers[i], helpers[j] = helpers[j], helpers[i] }) //nolint:gosec // G404: the choice is no secret
	helpers = helpers[:min(len(helpers), mostHelpers)]
	patience := time.NewTimer(s.cfg.Lease / beats / 3)
	defer patience.Stop()
	var errs []error
	for {
		select {
		case a := <-answers:
			if a.err == nil {
				return a.result, nil
			}
			errs = append(errs, a.err)
			waiting--
		case <-patience.C:
		}
		for asked := false; !asked && len(helpers) > 0; helpers = helpers[1:] {
			if c, err := s.client(helpers[0].Name, ""); err == nil {
				ask(c.Transact)
				waiting++
				asked = true
			}
		}
		patience.Reset(s.cfg.Lease / beats / 3)
		if waiting == 0 {
			return cluster.Result{}, errors.Join(errs...)
		}
	}
}

// clusterOf returns what the conductor of a relay needs to agree with other instances; nil
// where there is no cluster.
func (s *service) clusterOf(c *conducted, cfg config.Relay) *failover.Cluster {
	m := s.membership
	if m == nil {
		return nil
	}
	with := ClusterConfig(cfg, m.cfg)
	with.Machine.Version = s.version
	with.Store, with.Lease = sharedStore{m}, &c.lease
	with.Ask = func(ctx context.Context, member, address string, life, version, boot uint64) (bool, error) {
		granted := false
		client, err := m.client(member, address)
		if err == nil {
			granted, err = client.Grants(ctx, peer.Question{Relay: c.name, Life: life, Version: version, Boot: boot})
		}
		m.note(member, err)
		return granted, err
	}
	with.Unanswered, with.Here = m.unanswered, m.here
	return with
}

// ClusterConfig converts the settings of a cluster to those of the conductor of a relay, as
// far as they need no running part; nil where there is no cluster.
func ClusterConfig(r config.Relay, c config.Cluster) *failover.Cluster {
	if len(c.Endpoints) == 0 {
		return nil
	}
	roster := []string{}
	for _, other := range c.Members {
		roster = append(roster, other.Name)
	}
	if len(roster) == 0 {
		roster = append(roster, c.Member)
	}
	var boot [8]byte
	_, _ = rand.Read(boot[:]) // never fails
	return &failover.Cluster{
		Name: c.Name,
		Machine: cluster.Config{
			Member: c.Member, Boot: max(1, binary.BigEndian.Uint64(boot[:])), Roster: roster,
			Settings: alike(r, c), Address: c.Address(),
			Lease: c.Lease, Heartbeat: c.Lease / beats, Request: c.Lease / beats, Slack: clusterSlack,
			Agree: cluster.Agree(c.Agree), OnStoreLoss: cluster.OnStoreLoss(c.OnStoreLoss), FailsafeLimit: c.FailsafeLimit,
		},
		DrainTimeout: r.DrainTimeout,
	}
}

// alike returns the settings that all instances must have alike, as people read them.
func alike(r config.Relay, c config.Cluster) string {
	text := fmt.Sprintf("hosts=%s lease=%v agree=%s on-store-loss=%s", strings.Join(r.Hosts, ","), c.Lease, c.Agree, c.OnStoreLoss)
	if r.Role.Protocol != "" {
		text += fmt.Sprintf(" role=%s promote=%v elect=%s", r.Role.Protocol, r.Role.Promote, r.Elect)
	}
	if r.OnFailover != "" { // an instance without would promote nobody
		text += " triggers=yes"
	}
	return text
}
