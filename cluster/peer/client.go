package peer

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"understudy/cluster"
	"understudy/internal/pemfile"
)

// ClientConfig configures a Client.
type ClientConfig struct {
	Config

	// To is the name of the member that is asked, and Address host:port of its
	// server. Required.
	To, Address string
}

// Client asks one member. It implements [Member].
type Client struct {
	cfg       ClientConfig
	scheme    string
	transport *http.Transport
}

// NewClient returns a Client, or an error that names every invalid field of cfg.
// It connects when it is used first. The caller closes it.
func NewClient(cfg ClientConfig) (*Client, error) {
	errs := []error{cfg.validate()}
	if cfg.To == "" {
		errs = append(errs, errors.New("to: required"))
	}
	if _, port, err := net.SplitHostPort(cfg.Address); err != nil || port == "" {
		errs = append(errs, fmt.Errorf("address: %q is not host:port", cfg.Address))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("client for the member %q: %w", cfg.To, err)
	}
	c := &Client{cfg: cfg, scheme: "http"}
	c.transport = &http.Transport{
		DialContext:         (&net.Dialer{Timeout: cfg.Timeout}).DialContext,
		TLSHandshakeTimeout: cfg.Timeout,
		// Some for the questions of many relays, while the store is away.
		MaxConnsPerHost: 8, MaxIdleConnsPerHost: 8, IdleConnTimeout: idle,
		MaxResponseHeaderBytes: maxHead,
		DisableCompression:     true,
		Protocols:              new(http.Protocols),
	}
	c.transport.Protocols.SetHTTP1(true)
	if cfg.Identity != nil {
		c.scheme = "https"
		c.transport.TLSClientConfig = &tls.Config{
			MinVersion:         tls.VersionTLS13,
			InsecureSkipVerify: true, //nolint:gosec // verify does it: the name may be that of the member, and authorities change
			VerifyConnection:   c.verify,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				own, _ := cfg.Identity.Get()
				return &own, nil
			},
		}
	}
	return c, nil
}

// verify checks that the certificate of the server is that of the member.
func (c *Client) verify(state tls.ConnectionState) error {
	_, authorities := c.cfg.Identity.Get()
	chain := state.PeerCertificates
	options := x509.VerifyOptions{Roots: authorities, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, between := range chain[1:] {
		options.Intermediates.AddCert(between)
	}
	if _, err := chain[0].Verify(options); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: chain, Err: err}
	}
	host, _, _ := net.SplitHostPort(c.cfg.Address) // NewClient has checked it
	return pemfile.IsFor(chain[0], c.cfg.To, host)
}

// Close closes the connections that are not in use. Those in use are closed
// after their request.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Grants asks for a grant.
func (c *Client) Grants(ctx context.Context, q Question) (bool, error) {
	q.From = c.cfg.Member
	a, err := c.call(ctx, grantsPath, request{Question: &q})
	return a.Granted, err
}

// Transact asks the member to pass t on to the store. After an error it may have
// been carried out, or may still be.
func (c *Client) Transact(ctx context.Context, t cluster.Transaction) (cluster.Result, error) {
	a, err := c.call(ctx, transactPath, request{Transaction: &t})
	if err == nil && a.Result == nil {
		err = c.failed(errors.New("the answer has no result"))
	}
	if err != nil {
		return cluster.Result{}, err
	}
	return *a.Result, nil
}

// failed returns the error that names the member.
func (c *Client) failed(err error) error {
	return fmt.Errorf("member %q at %s: %w", c.cfg.To, c.cfg.Address, err)
}

// call sends a request, and returns the answer if it is one to this request, of
// the member that was asked.
func (c *Client) call(ctx context.Context, path string, r request) (answer, error) {
	r.Cluster, r.From, r.To = c.cfg.Cluster, c.cfg.Member, c.cfg.To
	body, err := json.Marshal(r)
	if err != nil {
		return answer{}, c.failed(err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	a, err := c.exchange(ctx, path, body)
	if err != nil {
		return answer{}, c.failed(explain(err))
	}
	return a, nil
}

// explain says what an error of TLS means here.
func explain(err error) error {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return errors.New("it answers without TLS: it has no certificate, and this member has one")
	}
	if failed, ok := errors.AsType[*net.OpError](err); ok && failed.Op == "remote error" {
		return fmt.Errorf("it refuses our certificate: %w", failed.Err)
	}
	return err
}

func (c *Client) exchange(ctx context.Context, path string, body []byte) (answer, error) {
	if len(body) > maxRequest {
		return answer{}, fmt.Errorf("a request of %d bytes is too long, %d are allowed", len(body), maxRequest)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.scheme+"://"+c.cfg.Address+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	random := make([]byte, challengeLength)
	_, _ = rand.Read(random) // never fails
	challenge := hex.EncodeToString(random)
	code := c.cfg.requestCode(path, challenge, body)
	req.Header.Set(challengeHeader, challenge)
	req.Header.Set(codeHeader, code)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "understudy")
	req.Header["X-Idempotency-Key"] = []string{} // never sent: it allows to repeat it on a new connection where an idle one has just ended

	res, err := c.transport.RoundTrip(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return answer{}, fmt.Errorf("reading the answer: %w", err)
	case len(text) > maxAnswer:
		return answer{}, fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	case res.StatusCode == http.StatusBadRequest && bytes.Contains(text, []byte("HTTP request to an HTTPS server")): // of net/http
		return answer{}, errors.New("it answers with TLS only: it has a certificate, and this member has none")
	case res.StatusCode == http.StatusUnauthorized:
		return answer{}, errors.New("it refuses our secret: the secrets of the two members differ")
	case !equal(res.Header.Get(codeHeader), c.cfg.answerCode(code, res.StatusCode, text)):
		return answer{}, fmt.Errorf("status %d, without a proof of the secret: another program answers there, or the secrets differ", res.StatusCode)
	}
	var a answer
	if err := json.Unmarshal(text, &a); err != nil {
		return answer{}, fmt.Errorf("status %d, and the answer is not of understudy: %w", res.StatusCode, err)
	}
	if a.Error != "" || res.StatusCode != http.StatusOK {
		return answer{}, fmt.Errorf("status %d: %s", res.StatusCode, a.Error)
	}
	return a, nil
}
