package verdict

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"understudy/internal/redact"
	"understudy/internal/safetext"
)

// Check requests the verdict at target and returns the status and the first line
// of the body, "200 pong". The error is nil only if the status is 2xx; otherwise
// it holds the answer, or why there was none. No redirect is followed and no proxy
// is used. For https, tlsConfig is the client configuration; nil trusts the
// system's certificate authorities. ctx limits the whole request.
func Check(ctx context.Context, target string, tlsConfig *tls.Config) (answer string, err error) {
	shown := redact.URL(target)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return "", fmt.Errorf("get %s: %w", shown, withoutURL(err))
	}
	req.Header.Set("User-Agent", ownAgent)
	// A separate transport: it uses no proxy and keeps no connection.
	client := http.Client{
		Transport: &http.Transport{
			TLSClientConfig: tlsConfig, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxReplyHead,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("get %s: %w", shown, withoutURL(err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxLoggedText))
	if err != nil {
		return "", fmt.Errorf("get %s: read body: %w", shown, err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	answer = strings.TrimSpace(fmt.Sprintf("%d %s", resp.StatusCode, safetext.Escape(strings.TrimSpace(line))))
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return answer, fmt.Errorf("get %s: answered %s", shown, answer)
	}
	return answer, nil
}

// withoutURL returns the cause of an error that contains the URL, since the URL
// may contain secrets.
func withoutURL(err error) error {
	if repeated, ok := errors.AsType[*url.Error](err); ok {
		return repeated.Err
	}
	return err
}
