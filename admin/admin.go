// Package admin answers those who operate the program over HTTP, on a listener of its
// own: metrics, the status in JSON, and a page that shows it, live. It decides who may read
// and who may act; the connections, with their limits and timeouts, belong to the listener
// that the routes are given to.
package admin

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"understudy/internal/token"
)

// MaxConnections limits the open connections of the listener: enough for everybody who
// watches, and few enough to cost the relays nothing.
const MaxConnections = 64

// Config configures the routes.
type Config struct {
	// Token is the secret that every request has to show, as "Authorization: Bearer
	// SECRET" or as the password of Basic authentication, which is how a browser asks
	// for it. Without one the pages are open to all who reach the listener, and orders are
	// refused.
	Token string

	// Loopback says that only this machine reaches the listener. Without a Token, requests
	// then have to be addressed to an IP address or to localhost.
	Loopback bool

	// Metrics answers /metrics, and API what is below /v1. Both are required.
	Metrics, API http.Handler

	// Page answers everything else. Required. Its orders are the only requests that
	// change something; it must have none without a Token.
	Page *Page
}

// Routes returns a handler for each path; one that ends in "/" is for everything below.
func Routes(cfg Config) map[string]http.Handler {
	routes := map[string]http.Handler{
		"/metrics":   reading(cfg.Metrics),
		"/v1/":       reading(cfg.API),
		"/v1/stream": reading(cfg.Page),
		"/":          cfg.Page,
	}
	secret := token.New(cfg.Token)
	for path, next := range routes {
		switch {
		case cfg.Token != "":
			routes[path] = guarded(secret, next)
		case cfg.Loopback:
			routes[path] = local(next)
		}
	}
	return routes
}

// local lets only requests pass whose host is an address or localhost, or that name none, as
// no browser does. Otherwise the page of a stranger could read everything through a browser
// on this machine, under a name of its own that leads to loopback.
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		_, err := netip.ParseAddr(strings.Trim(host, "[]"))
		host = strings.ToLower(strings.TrimSuffix(host, "."))
		if err != nil && host != "" && host != "localhost" && !strings.HasSuffix(host, ".localhost") {
			http.Error(w, "without a token this is answered for localhost or an address only, such as http://127.0.0.1", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// reading lets only GET and HEAD pass.
func reading(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// guarded lets only requests pass that show the secret.
func guarded(secret token.Token, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !secret.Shown(r) && !secret.IsPassword(r) {
			w.Header().Add("WWW-Authenticate", `Basic realm="understudy: the token is the password", charset="UTF-8"`)
			w.Header().Add("WWW-Authenticate", "Bearer")
			http.Error(w, "unauthorized", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}
