// Package etcd offers an etcd as the store of a cluster. It uses KV and Watch
// only: no leases, no locks, no sessions.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"understudy/cluster"
)

// Config is how to reach an etcd.
type Config struct {
	// Endpoints are host:port of its members. At least one. They all have TLS if
	// TLS is set.
	Endpoints []string
	TLS       *tls.Config

	// User and Password, if etcd wants them.
	User, Password string

	// Timeout is the longest time for a connect. Required.
	Timeout time.Duration
}

// Store is an etcd. It implements [cluster.Store].
type Store struct {
	clients []*clientv3.Client // one for each endpoint
	current atomic.Int64       // index of the one that is used
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
	// The default goes up to two minutes, for which an etcd that is back would not be used.
	pauses := backoff.Config{BaseDelay: cfg.Timeout / 4, Multiplier: 1.6, Jitter: 0.2, MaxDelay: cfg.Timeout}
	s := &Store{}
	scheme := "http://"
	if cfg.TLS != nil {
		scheme = "https://"
	}
	for _, endpoint := range cfg.Endpoints {
		client, err := clientv3.New(clientv3.Config{
			Endpoints: []string{scheme + endpoint}, TLS: cfg.TLS, Username: cfg.User, Password: cfg.Password,
			DialTimeout: cfg.Timeout, DialKeepAliveTime: 2 * cfg.Timeout, DialKeepAliveTimeout: cfg.Timeout,
			Logger: zap.NewNop(), MaxUnaryRetries: 1,
			DialOptions: []grpc.DialOption{grpc.WithDisableRetry(), grpc.WithConnectParams(grpc.ConnectParams{Backoff: pauses, MinConnectTimeout: cfg.Timeout})},
		})
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("etcd at %s: %w", endpoint, err)
		}
		s.clients = append(s.clients, client)
	}
	return s, nil
}

// Close closes the connections.
func (s *Store) Close() {
	for _, c := range s.clients {
		_ = c.Close() // nothing is on its way that anybody waits for
	}
}

// try calls do with the client of the endpoint that answered last and, if that
// fails before ctx ends, with the others. An endpoint that has not answered when
// ctx ends is tried last the next time.
func (s *Store) try(ctx context.Context, do func(*clientv3.Client) error) error {
	var errs []error
	for range s.clients {
		i := int(s.current.Load()) % len(s.clients)
		err := do(s.clients[i])
		if err == nil {
			return nil
		}
		s.current.CompareAndSwap(int64(i), int64((i+1)%len(s.clients)))
		errs = append(errs, fmt.Errorf("etcd at %s: %w", s.clients[i].Endpoints()[0], err))
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
	client := s.clients[s.current.Load()]
	for res := range client.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix()) {
		if err := res.Err(); err != nil {
			return fmt.Errorf("watch of etcd at %s: %w", client.Endpoints()[0], err)
		}
		for _, e := range res.Events {
			changed(keyValue(e.Kv))
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watch of etcd at %s ended", client.Endpoints()[0])
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
