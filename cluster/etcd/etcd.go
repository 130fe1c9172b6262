// Package etcd offers an etcd as the store of a cluster. It uses KV and Watch
// only: no leases, no locks, no sessions.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"understudy/cluster"
	"understudy/internal/noblock"
)

// Config is how to reach an etcd.
type Config struct {
	// Endpoints are host:port of its members. At least one. They all have TLS if
	// TLS is set.
	Endpoints []string
	TLS       *tls.Config

	// User, and the file with the password, if etcd wants them. The file is read at
	// each login, so that the password can be changed.
	User, PasswordFile string

	// Timeout is the longest time for a connect. Required.
	Timeout time.Duration
}

const (
	// maxPassword limits the bytes of a password.
	maxPassword = 4 << 10

	// refusedFor is for how many times Config.Timeout a login that was refused is not
	// tried again with the same password: it costs etcd much.
	refusedFor = 5
)

// Store is an etcd. It implements [cluster.Store].
type Store struct {
	cfg       Config
	endpoints []*endpoint
	current   atomic.Int64 // index of the one that is used
}

// endpoint is a member of the etcd.
type endpoint struct {
	address string

	mu      sync.Mutex       // guards everything below; held while it logs in
	client  *clientv3.Client // nil before the first use, and after a login that was refused
	closed  bool
	refused error     // the login that was refused last; nil for none
	word    string    // the password of that
	again   time.Time // when it is tried again
}

// New returns a Store. It connects when it is used first. The caller closes it.
//
// There is one client for each endpoint, because an etcd that is cut off from
// its majority accepts requests and answers none: only trying the next one after
// a time finds that out.
func New(cfg Config) (*Store, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("etcd: no endpoints")
	}
	if cfg.Timeout <= 0 {
		return nil, fmt.Errorf("etcd: timeout: %v is not positive", cfg.Timeout)
	}
	s := &Store{cfg: cfg}
	for _, address := range cfg.Endpoints {
		s.endpoints = append(s.endpoints, &endpoint{address: address})
	}
	return s, nil
}

// Close closes the connections.
func (s *Store) Close() {
	for _, e := range s.endpoints {
		e.mu.Lock()
		e.closed = true
		e.mu.Unlock()
		e.drop(nil)
	}
}

// connect returns the client of an endpoint. With a user a new one logs in, and an error
// may be that of the login.
func (s *Store) connect(e *endpoint) (*clientv3.Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed:
		return nil, errors.New("closed")
	case e.client != nil:
		return e.client, nil
	}
	word := ""
	if s.cfg.User != "" {
		text, err := noblock.Read(s.cfg.PasswordFile, maxPassword)
		if err != nil {
			return nil, fmt.Errorf("password of %s: %w", s.cfg.User, err)
		}
		if word = strings.TrimSpace(string(text)); word == "" {
			return nil, fmt.Errorf("password of %s: %s is empty", s.cfg.User, s.cfg.PasswordFile)
		}
	}
	if e.refused != nil && word == e.word && time.Now().Before(e.again) {
		return nil, e.refused
	}
	scheme := "http://"
	if s.cfg.TLS != nil {
		scheme = "https://"
	}
	// The default goes up to two minutes, for which an etcd that is back would not be used.
	pauses := backoff.Config{BaseDelay: s.cfg.Timeout / 4, Multiplier: 1.6, Jitter: 0.2, MaxDelay: s.cfg.Timeout}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{scheme + e.address}, TLS: s.cfg.TLS, Username: s.cfg.User, Password: word,
		DialTimeout: s.cfg.Timeout, DialKeepAliveTime: 2 * s.cfg.Timeout, DialKeepAliveTimeout: s.cfg.Timeout,
		Logger: zap.NewNop(), MaxUnaryRetries: 1,
		DialOptions: []grpc.DialOption{
			grpc.WithDisableRetry(), grpc.WithChainUnaryInterceptor(waitForNothing),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: pauses, MinConnectTimeout: s.cfg.Timeout}),
		},
	})
	e.refused = nil
	if err != nil {
		if s.cfg.User != "" {
			err = fmt.Errorf("login as %s: %w", s.cfg.User, err)
		}
		if refusesLogin(err) {
			e.refused, e.word, e.again = err, word, time.Now().Add(refusedFor*s.cfg.Timeout)
		}
		return nil, err
	}
	e.client = client
	return client, nil
}

// waitForNothing has a request fail with the reason where the connect or the handshake has
// failed: by its own choice the client waits for the next one, and then says that it is late.
func waitForNothing(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, req, reply, conn, append(slices.Clip(opts), grpc.WaitForReady(false))...)
}

// drop closes the client of an endpoint if it is c, or any if c is nil.
func (e *endpoint) drop(c *clientv3.Client) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client != nil && (c == nil || e.client == c) {
		_ = e.client.Close() // nothing is on its way that anybody waits for
		e.client = nil
	}
}

// refusesLogin reports whether etcd does not accept the user, the password, or what it had
// given for them.
func refusesLogin(err error) bool {
	for _, refusal := range []error{rpctypes.ErrAuthFailed, rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision, rpctypes.ErrUserEmpty} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}

// try calls do with the client of the endpoint that answered last and, if that
// fails before ctx ends, with the others. An endpoint that has not answered when
// ctx ends is tried last the next time.
func (s *Store) try(ctx context.Context, do func(*clientv3.Client) error) error {
	var errs []error
	for range s.endpoints {
		i := int(s.current.Load()) % len(s.endpoints)
		e := s.endpoints[i]
		client, err := s.connect(e)
		if err == nil {
			err = do(client)
			if refusesLogin(err) {
				e.drop(client) // the next one logs in anew
			}
		}
		if err == nil {
			return nil
		}
		s.current.CompareAndSwap(int64(i), int64((i+1)%len(s.endpoints)))
		errs = append(errs, fmt.Errorf("etcd at %s: %w", e.address, err))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// Read returns all keys that begin with prefix.
func (s *Store) Read(ctx context.Context, prefix string) (found []cluster.KeyValue, err error) {
	err = s.try(ctx, func(c *clientv3.Client) error {
		res, err := c.Get(ctx, prefix, clientv3.WithPrefix()) // linearizable
		if err != nil {
			return err
		}
		found = appendKeys(nil, res.Kvs)
		return nil
	})
	return found, err
}

// Transact carries out t. It is tried at one endpoint after the other only
// because its condition makes it harmless to carry it out twice.
func (s *Store) Transact(ctx context.Context, t cluster.Transaction) (result cluster.Result, err error) {
	gets := []clientv3.Op{clientv3.OpGet(t.Key)}
	if t.Prefix != "" {
		gets = append(gets, clientv3.OpGet(t.Prefix, clientv3.WithPrefix()))
	}
	puts := append([]clientv3.Op{clientv3.OpPut(t.Key, string(t.Value))}, gets...)
	err = s.try(ctx, func(c *clientv3.Client) error {
		res, err := c.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(t.Key), "=", t.Expect)).
			Then(puts...).Else(gets...).Commit()
		if err != nil {
			return err
		}
		result = cluster.Result{OK: res.Succeeded}
		ranges := res.Responses
		if res.Succeeded {
			ranges = ranges[1:]
		}
		for i, r := range ranges {
			found := appendKeys(nil, r.GetResponseRange().Kvs)
			if i > 0 {
				result.Found = append(result.Found, found...)
			} else if len(found) > 0 {
				result.Key = found[0]
			}
		}
		return nil
	})
	return result, err
}

// Watch calls changed for every key below prefix that has changed. It returns an
// error when the endpoint that it watches has no leader any more.
func (s *Store) Watch(ctx context.Context, prefix string, changed func(cluster.KeyValue)) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	e := s.endpoints[s.current.Load()]
	client, err := s.connect(e)
	if err != nil {
		return fmt.Errorf("watch of etcd at %s: %w", e.address, err)
	}
	for res := range client.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix()) {
		if err := res.Err(); err != nil {
			return fmt.Errorf("watch of etcd at %s: %w", e.address, err)
		}
		for _, e := range res.Events {
			changed(keyValue(e.Kv))
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watch of etcd at %s ended", e.address)
}

func appendKeys(to []cluster.KeyValue, kvs []*mvccpb.KeyValue) []cluster.KeyValue {
	for _, kv := range kvs {
		to = append(to, keyValue(kv))
	}
	return to
}

func keyValue(kv *mvccpb.KeyValue) cluster.KeyValue {
	return cluster.KeyValue{Key: string(kv.Key), Value: kv.Value, Revision: kv.ModRevision}
}
