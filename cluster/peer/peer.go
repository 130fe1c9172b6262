// Package peer lets the members of a cluster ask each other directly: whether one
// grants a lease to the other while the store is away, and to pass a transaction
// on to the store, which the other cannot reach. A [Server] answers, a [Client]
// asks one member.
//
// It is HTTP/1.1 with JSON over TCP. Members prove who they are by a secret that
// all of them have, by certificates, or by both. With a secret each request has
// a random challenge and a code, HMAC-SHA256 of the challenge and the request;
// the answer has a code of that code and the answer. So an answer is good for one
// request only, and no clocks are compared. A request that somebody else repeats
// changes nothing: a question has no effect, and the condition of a transaction
// holds once. Each request names the cluster and the member that it is for, so
// that a wrong address does not make one member speak for another. Without
// certificates, what is said can be read on the way.
//
// With certificates each end proves which member it is: its certificate must be
// for the name of the member, or for the host of its address. So one member cannot
// speak for another, and a certificate of the same authority that is no member's
// opens nothing.
package peer

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"understudy/cluster"
)

// Member is what one member does for another: the server's at one end, a
// [Client] at the other. Its methods may be called at the same time.
type Member interface {
	// Grants reports whether the member grants a lease; see
	// [cluster.Machine.Grants].
	Grants(ctx context.Context, q Question) (bool, error)

	// Transact passes t on to the store, and not to another member.
	Transact(ctx context.Context, t cluster.Transaction) (cluster.Result, error)
}

// Question is the question for a grant.
type Question struct {
	Relay string `json:"relay"`
	From  string `json:"from"` // who asks, as in the request; the Client fills it in

	// Life is the boot number of the member that asks; Version and Boot are those of the
	// record that it knows.
	Life    uint64 `json:"life"`
	Version uint64 `json:"version"`
	Boot    uint64 `json:"boot"`
}

// Identity is the certificate of a member and the authorities of all. It is used anew
// for each connection, because certificates are renewed.
type Identity interface {
	Get() (tls.Certificate, *x509.CertPool)
}

// Config is what a [Server] and a [Client] have alike.
type Config struct {
	// Cluster and Member are the names of the cluster and of this member. Required.
	Cluster, Member string

	// Secret is what all members of the cluster have and nobody else, 16 bytes at
	// least. Identity is the certificate of this member, with its names. One of them is
	// required, and both may be given.
	Secret   []byte
	Identity Identity

	// Timeout is the longest time for one request. Required.
	Timeout time.Duration
}

// Limits. A heartbeat is some hundred bytes, and an answer has those of all
// members: 1,000 of them have half a megabyte.
const (
	maxHead    = 8 << 10
	maxRequest = 64 << 10
	maxAnswer  = 4 << 20

	// idle is the time after which a client closes a connection that it does not
	// use. That of the server is longer, so that it closes none that is used again.
	idle = 30 * time.Second

	// minSecret is the least number of bytes of a secret.
	minSecret = 16
)

// The calls.
const (
	grantsPath   = "/v1/grants"
	transactPath = "/v1/transact"
)

// The headers of a request and its answer, and the length of a challenge.
const (
	challengeHeader = "Understudy-Challenge"
	codeHeader      = "Understudy-Code"
	challengeLength = 16
)

// request is the body of each request.
type request struct {
	Cluster     string               `json:"cluster"`
	From        string               `json:"from,omitempty"` // who asks
	To          string               `json:"to"`
	Question    *Question            `json:"question,omitempty"`
	Transaction *cluster.Transaction `json:"transaction,omitempty"`
}

// answer is the body of each answer to a member.
type answer struct {
	Granted bool            `json:"granted,omitempty"`
	Result  *cluster.Result `json:"result,omitempty"`
	Error   string          `json:"error,omitempty"`
}

func (c *Config) validate() error {
	var errs []error
	if c.Cluster == "" {
		errs = append(errs, errors.New("cluster: required"))
	}
	if c.Member == "" {
		errs = append(errs, errors.New("member: required"))
	}
	switch n := len(c.Secret); {
	case n == 0 && c.Identity == nil:
		errs = append(errs, errors.New("secret: required without certificates"))
	case n > 0 && n < minSecret:
		errs = append(errs, fmt.Errorf("secret: %d bytes, want %d at least (openssl rand -hex 32)", n, minSecret))
	}
	if c.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("timeout: %v is not positive", c.Timeout))
	}
	return errors.Join(errs...)
}

// requestCode returns the code of a request; empty without a secret. Path and
// challenge have no line breaks.
func (c *Config) requestCode(path, challenge string, body []byte) string {
	return c.code([]byte("understudy request\n"+path+"\n"+challenge+"\n"), body)
}

// answerCode returns the code of the answer to the request of that code.
func (c *Config) answerCode(request string, status int, body []byte) string {
	return c.code([]byte("understudy answer\n"+request+"\n"+strconv.Itoa(status)+"\n"), body)
}

func (c *Config) code(head, body []byte) string {
	if len(c.Secret) == 0 {
		return ""
	}
	h := hmac.New(sha256.New, c.Secret)
	h.Write(slices.Concat(head, body))
	return hex.EncodeToString(h.Sum(nil))
}

// equal compares two codes in a time that tells nothing about them.
func equal(a, b string) bool { return hmac.Equal([]byte(a), []byte(b)) }
