package health

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Ask asks url for a verdict and returns its status and the first line of its
// body, "200 pong". The error is nil only if the status is 2xx; it says what
// was answered otherwise, or why nothing was. No redirect is followed and no
// proxy is used. For https tlsConfig says whom to believe; nil believes what the
// system believes. ctx limits the whole.
func Ask(ctx context.Context, url string, tlsConfig *tls.Config) (answer string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err // already names the URL
	}
	req.Header.Set("User-Agent", "understudy")
	// A transport of its own, without a proxy and gone afterwards.
	client := http.Client{
		Transport: &http.Transport{
			TLSClientConfig: tlsConfig, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxReplyHead,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err // already "Get \"http://…\": cause"
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxLoggedText))
	if err != nil {
		return "", fmt.Errorf("get %s: read body: %w", req.URL.Redacted(), err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	answer = strings.TrimSpace(fmt.Sprintf("%d %s", resp.StatusCode, escapeText(strings.TrimSpace(line), 0)))
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return answer, fmt.Errorf("get %s: answered %s", req.URL.Redacted(), answer)
	}
	return answer, nil
}
