package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"syscall"

	"understudy/failover"
)

// Client asks a running process.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a Client for the socket at path. It opens nothing.
func NewClient(path string) *Client {
	return &Client{path: path, http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			// Where nobody chose a place, somebody else must not have been there
			// first.
			if path == DefaultPath() {
				if err := trusted(filepath.Dir(path)); err != nil {
					return nil, err
				}
			}
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}}}
}

// Status asks for everything that is known.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	err = c.get(ctx, "status", nil, &s)
	return s, err
}

// Prediction asks what a relay's settings promise.
func (c *Client) Prediction(ctx context.Context, relay string) (p failover.Prediction, err error) {
	err = c.get(ctx, "predict", url.Values{"relay": {relay}}, &p)
	return p, err
}

// Events asks for a relay's incidents, the oldest first.
func (c *Client) Events(ctx context.Context, relay string) (list []failover.Incident, err error) {
	err = c.get(ctx, "events", url.Values{"relay": {relay}}, &list)
	return list, err
}

// Follow hands each incident of a relay to tell, those before and those to
// come, until ctx ends, the process does, or tell fails.
func (c *Client) Follow(ctx context.Context, relay string, tell func(failover.Incident) error) error {
	body, err := c.do(ctx, http.MethodGet, "events", url.Values{"relay": {relay}, "follow": {"1"}}, nil)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	in := json.NewDecoder(body)
	for {
		var i failover.Incident
		switch err := in.Decode(&i); {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return errors.New("the process has ended")
		case err != nil:
			return err
		}
		if err := tell(i); err != nil {
			return err
		}
	}
}

// Order has the process do something: switch, drain, ready, freeze, unfreeze,
// drill or reload. What comes back goes into out.
func (c *Client) Order(ctx context.Context, verb string, o Order, out any) error {
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return c.ask(ctx, http.MethodPost, verb, nil, text, out)
}

// Reload has the process read its configuration again.
func (c *Client) Reload(ctx context.Context, o Order) (did Changes, err error) {
	err = c.Order(ctx, "reload", o, &did)
	return did, err
}

func (c *Client) get(ctx context.Context, what string, query url.Values, out any) error {
	return c.ask(ctx, http.MethodGet, what, query, nil, out)
}

func (c *Client) ask(ctx context.Context, method, what string, query url.Values, body []byte, out any) error {
	answer, err := c.do(ctx, method, what, query, body)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Close() }()
	if err := json.NewDecoder(answer).Decode(out); err != nil {
		return fmt.Errorf("the answer of %s cannot be understood: %w", c.path, err)
	}
	return nil
}

// do asks and returns the body of a good answer.
func (c *Client) do(ctx context.Context, method, what string, query url.Values, body []byte) (io.ReadCloser, error) {
	target := url.URL{Scheme: "http", Host: "understudy", Path: "/v1/" + what, RawQuery: query.Encode()}
	r, err := http.NewRequestWithContext(ctx, method, target.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(r)
	if err != nil {
		return nil, c.explain(err)
	}
	if res.StatusCode == http.StatusOK {
		return res.Body, nil
	}
	defer func() { _ = res.Body.Close() }()
	var f failure
	if err := json.NewDecoder(io.LimitReader(res.Body, orderLimit)).Decode(&f); err != nil || f.Error == "" {
		return nil, fmt.Errorf("%s answers %s", c.path, res.Status)
	}
	return nil, errors.New(f.Error)
}

// explain says what an operator can do about a process that does not answer.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no understudy is running here: nobody serves %s (--control or CONTROL chooses another socket)", c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("not allowed to open %s: ask as the user that understudy runs as, or as root", c.path)
	}
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err
	}
	return fmt.Errorf("%s: %w", c.path, err)
}
