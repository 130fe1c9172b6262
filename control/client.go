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
	"syscall"
)

// ErrNone is wrapped by the error of a request when no process serves the socket.
var ErrNone = errors.New("no understudy is running here")

// Client sends requests to a running process.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a Client for the socket at path. It opens nothing.
func NewClient(path string) *Client {
	return &Client{path: path, http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}}}
}

// Path returns the path of the socket.
func (c *Client) Path() string { return c.path }

// Status returns the status of the process.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	err = c.get(ctx, "status", nil, &s)
	return s, err
}

// Prediction returns the times that follow from a relay's settings.
func (c *Client) Prediction(ctx context.Context, relay string) (p PredictAnswer, err error) {
	err = c.get(ctx, "predict", url.Values{"relay": {relay}}, &p)
	return p, err
}

// Events returns the records of a relay's elections, the oldest first.
func (c *Client) Events(ctx context.Context, relay string) (list []Event, err error) {
	err = c.get(ctx, "events", url.Values{"relay": {relay}}, &list)
	return list, err
}

// Follow passes the record of each election of a relay to report, past and future ones, until ctx
// ends, the process ends, or report fails.
func (c *Client) Follow(ctx context.Context, relay string, report func(Event) error) error {
	body, err := c.do(ctx, http.MethodGet, "events", url.Values{"relay": {relay}, "follow": {"1"}}, nil)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	in := json.NewDecoder(body)
	for {
		var e Event
		switch err := in.Decode(&e); {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return errors.New("the process has ended")
		case err != nil:
			return err
		}
		if err := report(e); err != nil {
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
	return c.send(ctx, http.MethodPost, verb, nil, text, out)
}

// Reload makes the process read its configuration again.
func (c *Client) Reload(ctx context.Context, o Order) (did Changes, err error) {
	err = c.Order(ctx, "reload", o, &did)
	return did, err
}

func (c *Client) get(ctx context.Context, what string, query url.Values, out any) error {
	return c.send(ctx, http.MethodGet, what, query, nil, out)
}

func (c *Client) send(ctx context.Context, method, what string, query url.Values, body []byte, out any) error {
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

// do sends a request and returns the body of a successful answer.
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

// explain adds to an error what an operator can do about it.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: no process serves %s (--control or CONTROL chooses another socket)", ErrNone, c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("not allowed to open %s: run this as the user of understudy, or as root", c.path)
	}
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err
	}
	return fmt.Errorf("%s: %w", c.path, err)
}
