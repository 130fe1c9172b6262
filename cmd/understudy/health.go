package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"understudy/verdict"
)

// verdictTimeout is the longest time that a verdict may take in total: longer than it
// takes by the limits in the settings, shorter than a person or a HEALTHCHECK would
// wait.
const verdictTimeout = 10 * time.Second

// checkHealth requests one verdict and returns it as its exit status. It is
// made for HEALTHCHECK lines of images without curl.
func checkHealth(ctx context.Context, line line, stdout, stderr io.Writer) int {
	var own *tls.Config // for our own listener
	target := "/ping"
	if len(line.args) > 0 {
		target = line.args[0]
	}
	if strings.HasPrefix(target, "/") {
		base, err := line.verdictAddress()
		if err != nil {
			return usage(stderr, err)
		}
		target = base + target
		// It is addressed by an address that its certificate does not name.
		own = &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true} //nolint:gosec // the process on this machine, and no secret is sent
	} else if !strings.HasPrefix(target, "http://") && !strings.HasPrefix(target, "https://") {
		return usage(stderr, fmt.Errorf("health: %q is neither an http URL nor a path", target))
	}
	ctx, cancel := context.WithTimeout(ctx, verdictTimeout)
	defer cancel()
	answer, err := verdict.Check(ctx, target, own)
	if err != nil {
		fmt.Fprintf(stderr, "understudy: %v\n", err)
		return exitFailed
	}
	fmt.Fprintln(stdout, answer)
	return exitDone
}

// verdictAddress returns the URL of the listener in the settings, without a
// path. The other settings are not validated here.
func (l line) verdictAddress() (string, error) {
	settings, values, _ := l.settings(nil)
	scheme := "http://"
	if settings.HTTP.Cert != "" {
		scheme = "https://"
	}
	for _, v := range values {
		if v.Flag != "http" || v.Text == "" {
			continue
		}
		host, port, err := net.SplitHostPort(v.Text)
		if err != nil {
			return "", fmt.Errorf("%s: %w", v.Origin.Name, err)
		}
		if ip := net.ParseIP(host); host == "" || ip.IsUnspecified() {
			host = "localhost" // it listens everywhere, IPv4 or IPv6
		}
		return scheme + net.JoinHostPort(host, port), nil
	}
	return "", errors.New("health: a path alone needs --http or HTTP, the address to request it from")
}
