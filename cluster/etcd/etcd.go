// Package etcd offers an etcd as the store of a cluster. It uses KV and Watch
// only: no leases, no locks, no sessions.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"regexp"
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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"understudy/cluster"
	"understudy/internal/password"
)

// Config is how to reach an etcd.
type Config struct {
	// Endpoints are host:port of its members. At least one. They all have TLS if
	// TLS is set.
	Endpoints []string
	TLS       *tls.Config

	// User and PasswordFile, if etcd wants them. The file is read at each login.
	User, PasswordFile string

	// Timeout is the longest time for a connect. Required.
	Timeout time.Duration
}

// Store is an etcd. It implements [cluster.Store].
type Store struct {
	cfg     Config
	clients []*clientv3.Client // one for each endpoint
	current atomic.Int64       // index of the one that is used
	login   login
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
	s := &Store{cfg: cfg}
	scheme := "http://"
	if cfg.TLS != nil {
		scheme = "https://"
	}
	for _, endpoint := range cfg.Endpoints {
		client, err := clientv3.New(clientv3.Config{
			Endpoints: []string{scheme + endpoint}, TLS: cfg.TLS,
			DialTimeout: cfg.Timeout, DialKeepAliveTime: 2 * cfg.Timeout, DialKeepAliveTimeout: cfg.Timeout,
			Logger: zap.NewNop(), MaxUnaryRetries: 1,
			DialOptions: []grpc.DialOption{
				grpc.WithDisableRetry(),
				grpc.WithConnectParams(grpc.ConnectParams{Backoff: pauses, MinConnectTimeout: cfg.Timeout}),
				grpc.WithChainUnaryInterceptor(failSoon),
				grpc.WithPerRPCCredentials(&s.login),
			},
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

// failSoon lets a request to an endpoint that refuses connections fail at once, with the
// reason, where the client would wait for it until the request is over: the next endpoint
// has its turn within the same request.
func failSoon(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, req, reply, conn, append(opts, grpc.WaitForReady(false))...)
}

// login is that of a user, and what etcd gave for it.
type login struct {
	token atomic.Pointer[string] // sent with each request; nil for none

	mu      sync.Mutex // guards the following; held while it logs in
	refused error      // the login that was refused last; nil for none
	word    string     // the password of that
	again   time.Time  // when it is tried again with the same
}

// refusedFor is for how many times Config.Timeout a login that was refused is not tried
// again with the same password: it costs etcd much.
const refusedFor = 5

// GetRequestMetadata returns the header with the token; see rpctypes.
func (l *login) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if token := l.token.Load(); token != nil {
		return map[string]string{rpctypes.TokenFieldNameGRPC: *token}, nil
	}
	return nil, nil //nolint:nilnil // no header
}

// RequireTransportSecurity returns false: where there is no TLS the settings have warned.
func (l *login) RequireTransportSecurity() bool { return false }

// loggedIn calls do, and once more after a login if etcd wants one. The client could log
// in by itself, but not start while an endpoint is away, nor with a new password.
func (s *Store) loggedIn(ctx context.Context, c *clientv3.Client, do func(*clientv3.Client) error) error {
	with := s.login.token.Load()
	err := do(c)
	if s.cfg.User == "" || !wantsLogin(err, with != nil) {
		return err
	}
	if err := s.logIn(ctx, c, with); err != nil {
		return fmt.Errorf("login as %s: %w", s.cfg.User, err)
	}
	return do(c)
}

// wantsLogin reports whether err is the answer to a request without a login, or whose token
// is not good any more. With a certificate and without a token etcd takes the request for
// one of a user without rights.
func wantsLogin(err error, token bool) bool {
	return errors.Is(err, rpctypes.ErrUserEmpty) || errors.Is(err, rpctypes.ErrInvalidAuthToken) || errors.Is(err, rpctypes.ErrAuthOldRevision) ||
		!token && errors.Is(err, rpctypes.ErrPermissionDenied)
}

// logIn replaces the token, unless another request has done that already.
func (s *Store) logIn(ctx context.Context, c *clientv3.Client, old *string) error {
	l := &s.login
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.token.Load() != old {
		return nil
	}
	word, err := password.Read(s.cfg.PasswordFile)
	if err != nil {
		return err
	}
	if l.refused != nil && word == l.word && time.Now().Before(l.again) {
		return l.refused
	}
	l.token.Store(nil) // an old one would be refused even in a login
	res, err := c.Authenticate(ctx, s.cfg.User, word)
	if errors.Is(err, rpctypes.ErrAuthFailed) {
		l.refused, l.word, l.again = err, word, time.Now().Add(refusedFor*s.cfg.Timeout)
	}
	if err != nil {
		return err
	}
	l.token.Store(&res.Token)
	l.refused, l.word = nil, ""
	return nil
}

// wrapped matches what gRPC wraps around the cause of a connect that failed.
var wrapped = regexp.MustCompile(`^connection error: desc = "(?:transport: )?(?:Error while dialing: )?(.*)"$`)

// errSilent is the cause where an endpoint does not speak.
var errSilent = errors.New("it accepts the connection and does not answer")

// plain returns an error without that.
func plain(err error) error {
	s, ok := status.FromError(err)
	if !ok || s.Code() != codes.Unavailable {
		return err
	}
	cause := wrapped.FindStringSubmatch(s.Message())
	switch {
	case cause == nil:
		return err
	case strings.HasPrefix(cause[1], "error reading server preface: ") && strings.HasSuffix(cause[1], net.ErrClosed.Error()):
		return errSilent // the client closes the connection when the time for a connect is over
	}
	return errors.New(cause[1])
}

// try calls do with the client of the endpoint that answered last and, if that
// fails before ctx ends, with the others. An endpoint that has not answered when
// ctx ends is tried last the next time.
func (s *Store) try(ctx context.Context, do func(*clientv3.Client) error) error {
	var errs []error
	for range s.clients {
		i := int(s.current.Load()) % len(s.clients)
		err := s.loggedIn(ctx, s.clients[i], do)
		if err == nil {
			return nil
		}
		s.current.CompareAndSwap(int64(i), int64((i+1)%len(s.clients)))
		errs = append(errs, fmt.Errorf("etcd at %s: %w", s.cfg.Endpoints[i], plain(err)))
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
	i := s.current.Load()
	client := s.clients[i]
	for res := range client.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix()) {
		if err := res.Err(); err != nil {
			return fmt.Errorf("watch of etcd at %s: %w", s.cfg.Endpoints[i], err)
		}
		for _, e := range res.Events {
			changed(keyValue(e.Kv))
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watch of etcd at %s ended", s.cfg.Endpoints[i])
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
