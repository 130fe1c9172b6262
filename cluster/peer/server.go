package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/cluster"
	"understudy/internal/accept"
	"understudy/internal/pemfile"
)

// ServerConfig configures a Server.
type ServerConfig struct {
	Config

	// Local is the member that answers. Required.
	Local Member

	// Names returns the names of which one must be in the certificate of a member: its
	// own, and the hosts of its addresses; none for a name that is no member's. It is
	// required with an Identity.
	Names func(member string) []string

	// Connections limits the open connections. At the limit, a new one replaces the
	// oldest that has not proved that it is a member's. Required.
	Connections int

	// Logger takes records about refused requests, one in a minute at most. Nil
	// discards them.
	Logger hclog.Logger
}

// Server answers other members.
type Server struct {
	cfg     ServerConfig
	refused refusals
}

// NewServer returns a Server, or an error that names every invalid field of cfg.
// It opens nothing.
func NewServer(cfg ServerConfig) (*Server, error) {
	errs := []error{cfg.validate()}
	if cfg.Local == nil {
		errs = append(errs, errors.New("local: required"))
	}
	if cfg.Connections < 1 {
		errs = append(errs, fmt.Errorf("connections: %d is less than 1", cfg.Connections))
	}
	if cfg.Identity != nil && cfg.Names == nil {
		errs = append(errs, errors.New("names: required with certificates"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("listener for members: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Server{cfg: cfg, refused: refusals{log: cfg.Logger}}, nil
}

// Serve answers on ln, which it owns, until ctx ends. Then requests in progress
// are answered, and it returns nil when all connections are closed. It returns an
// error when ln can accept nothing any more.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	g := &limiter{Listener: accept.Retry(ln, s.cfg.Logger), limit: s.cfg.Connections}
	srv := &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: s.cfg.Timeout,
		ReadTimeout:       s.cfg.Timeout,
		WriteTimeout:      2 * s.cfg.Timeout, // from the end of the head: for the rest of the request, and the answer
		IdleTimeout:       2 * idle,
		MaxHeaderBytes:    maxHead,
		ErrorLog:          log.New(&s.refused, "", 0),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if secured, ok := c.(*tls.Conn); ok {
				c = secured.NetConn()
			}
			return context.WithValue(ctx, connKey{}, c)
		},
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				g.served.Add(1)
			case http.StateClosed:
				g.served.Done()
			case http.StateActive, http.StateIdle, http.StateHijacked:
			}
		},
		DisableGeneralOptionsHandler: true,
		Protocols:                    new(http.Protocols),
	}
	srv.Protocols.SetHTTP1(true)
	var listener net.Listener = g
	if s.cfg.Identity != nil {
		listener = tls.NewListener(g, &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: s.config})
	}

	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close() // the rest was not answered in time
		}
	})
	err := srv.Serve(listener)
	if stop() { // ctx has not ended: nothing can be accepted any more
		_ = srv.Close()
	} else {
		<-closed
		err = nil
	}
	g.served.Wait()
	if err != nil {
		return fmt.Errorf("listener for members on %s: %w", ln.Addr(), err)
	}
	return nil
}

// config returns what holds for one connection.
func (s *Server) config(*tls.ClientHelloInfo) (*tls.Config, error) {
	own, authorities := s.cfg.Identity.Get()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, NextProtos: []string{"http/1.1"},
		ClientCAs: authorities, ClientAuth: tls.RequireAndVerifyClientCert,
		SessionTicketsDisabled: true, // each connection shows the certificate that is valid then
	}, nil
}

// serve answers one request.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != grantsPath && r.URL.Path != transactPath {
		http.Error(w, "only members of a cluster are answered here", http.StatusNotFound)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		status := http.StatusBadRequest
		if _, long := errors.AsType[*http.MaxBytesError](err); long {
			status = http.StatusRequestEntityTooLarge
		}
		http.Error(w, err.Error(), status)
		return
	}
	code, challenge := r.Header.Get(codeHeader), r.Header.Get(challengeHeader)
	if random, err := hex.DecodeString(challenge); err != nil || len(random) != challengeLength ||
		!equal(code, s.cfg.requestCode(r.URL.Path, challenge, body)) {
		s.refused.add(r.RemoteAddr, "it does not have the secret of the cluster")
		w.Header().Set("Connection", "close")
		http.Error(w, "not the secret of this cluster", http.StatusUnauthorized)
		return
	}
	r.Context().Value(connKey{}).(*conn).proved()

	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
	defer cancel()
	status, a := s.answer(ctx, r, body)
	text, err := json.Marshal(a)
	if err != nil || len(text) > maxAnswer {
		status, text = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be sent"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set(codeHeader, s.cfg.answerCode(code, status, text))
	w.WriteHeader(status)
	_, _ = w.Write(text) // who asks notices what is missing
}

// answer returns the answer to the request of a member.
func (s *Server) answer(ctx context.Context, r *http.Request, body []byte) (int, answer) {
	path := r.URL.Path
	var q request
	if err := json.Unmarshal(body, &q); err != nil {
		return http.StatusBadRequest, answer{Error: "not a request of a member: " + err.Error()}
	}
	if q.Cluster != s.cfg.Cluster || q.To != s.cfg.Member {
		return http.StatusMisdirectedRequest, answer{Error: fmt.Sprintf("this is the member %q of the cluster %q, and the request is for %q of %q",
			s.cfg.Member, s.cfg.Cluster, q.To, q.Cluster)}
	}
	if err := s.proves(r, &q); err != nil {
		s.refused.add(r.RemoteAddr, err.Error())
		return http.StatusForbidden, answer{Error: err.Error()}
	}
	var a answer
	var err error
	switch t := q.Transaction; {
	case path == grantsPath && q.Question != nil:
		a.Granted, err = s.cfg.Local.Grants(ctx, *q.Question)
	case path == transactPath && t != nil && s.owns(t.Key) && (t.Prefix == "" || s.owns(t.Prefix)):
		var result cluster.Result
		result, err = s.cfg.Local.Transact(ctx, *t)
		a.Result = &result
	default:
		return http.StatusBadRequest, answer{Error: "not a question or a transaction of this cluster"}
	}
	if err != nil {
		return http.StatusBadGateway, answer{Error: err.Error()}
	}
	return http.StatusOK, a
}

// proves returns an error for a request whose certificate is not that of the member who
// asks.
func (s *Server) proves(r *http.Request, q *request) error {
	if s.cfg.Identity == nil {
		return nil
	}
	if q.Question != nil && q.Question.From != q.From {
		return fmt.Errorf("the request is of %q, and asks for %q", q.From, q.Question.From)
	}
	names := s.cfg.Names(q.From)
	if len(names) == 0 {
		return fmt.Errorf("%q is no member of the cluster", q.From)
	}
	return pemfile.IsFor(r.TLS.PeerCertificates[0], names...)
}

// owns reports whether a key belongs to the cluster.
func (s *Server) owns(key string) bool {
	return strings.HasPrefix(key, strings.TrimSuffix(cluster.Prefix(s.cfg.Cluster, ""), "/"))
}

// refusals logs that requests were refused, once in a minute, because others
// decide how many there are.
type refusals struct {
	log hclog.Logger

	mu    sync.Mutex // guards everything below
	next  time.Time  // when the next record may be logged
	since int        // refused since the last record
}

func (r *refusals) add(from, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.since++
	now := time.Now()
	if now.Before(r.next) {
		return
	}
	r.log.Warn("request of a member refused", "from", from, "refused", r.since, "error", why)
	r.next, r.since = now.Add(time.Minute), 0
}

// Write takes what net/http reports.
func (r *refusals) Write(p []byte) (int, error) {
	text := bytes.TrimSpace(p)
	if tail, ok := bytes.CutPrefix(text, []byte("http: TLS handshake error from ")); ok {
		from, why, _ := strings.Cut(string(tail), ": ")
		r.add(from, why)
	} else if bytes.HasPrefix(text, []byte("http: panic serving")) {
		r.log.Error("http handler panicked", "error", string(text))
	}
	return len(p), nil
}
