// Package webhook delivers small messages to an HTTP server, and retries for a
// while when that fails.
//
// The URL is often a secret: no error of this package contains any part of it,
// except what the network reports about the server.
package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

const (
	// tryTimeout is the longest time that one request may take, from the look-up of
	// the name to the status.
	tryTimeout = 5 * time.Second

	// firstDelay is the time until a failed delivery is retried. It doubles
	// each time; tries is the number of attempts.
	firstDelay = time.Second
	tries      = 6
)

// Client delivers messages. Its zero value is ready; it may be used by many
// goroutines.
type Client struct {
	// Transport defaults to one that uses the proxies of the environment.
	Transport http.RoundTripper
}

// statusError is the status of a server that did not accept a message.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("the server answered %d", int(e)) }

// again reports whether the server may accept the message later.
func (e statusError) again() bool {
	return e >= 500 || e == http.StatusRequestTimeout || e == http.StatusTooManyRequests
}

// Check returns why text is not a valid URL to deliver to. The error does not
// contain it.
func Check(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "":
		return errors.New("is not a URL: want https://host/path")
	case u.Scheme != "http" && u.Scheme != "https":
		return errors.New("is not a URL of http or https")
	}
	return nil
}

// Deliver posts body, which is JSON, to a URL. When the server cannot be reached,
// answers with a 5xx, 408 or 429, or takes longer than 5 s, it tries again after
// 1, 2, 4, 8 and 16 s. Redirections are not followed. The error is that of the
// last try, or that of ctx when it ends before.
func (c *Client) Deliver(ctx context.Context, to string, body []byte) error {
	delay := firstDelay
	for n := 1; ; n++ {
		err := c.post(ctx, to, body)
		var status statusError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case n == tries || errors.As(err, &status) && !status.again():
			return err
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		delay *= 2
	}
}

// post makes one attempt.
func (c *Client) post(ctx context.Context, to string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return Check(to)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "understudy")
	client := http.Client{Transport: c.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(req)
	if err != nil {
		if with, ok := errors.AsType[*url.Error](err); ok { // its text contains the URL
			err = with.Err
		}
		return err
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10) // so that the connection can be used again
	if res.StatusCode/100 != 2 {
		return statusError(res.StatusCode)
	}
	return nil
}
