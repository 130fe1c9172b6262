package admin

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// Without a token everybody may read, with one only who shows it, in either form.
func TestRoutesAskForTheToken(t *testing.T) {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "up 1\n") })
	for _, tt := range []struct {
		name, token, method string
		set                 func(*http.Request)
		want                int
	}{
		{"no token is set", "", "GET", nil, 200},
		{"HEAD", "", "HEAD", nil, 200},
		{"nothing is changed", "", "POST", nil, 405},
		{"none is shown", "secret", "GET", nil, 401},
		{"none is shown by a POST", "secret", "POST", nil, 401},
		{"bearer", "secret", "GET", func(r *http.Request) { r.Header.Set("Authorization", "Bearer secret") }, 200},
		{"another bearer", "secret", "GET", func(r *http.Request) { r.Header.Set("Authorization", "Bearer secre") }, 401},
		{"a password", "secret", "GET", func(r *http.Request) { r.SetBasicAuth("anna", "secret") }, 200},
		{"another password", "secret", "GET", func(r *http.Request) { r.SetBasicAuth("secret", "") }, 401},
		{"two headers", "secret", "GET", func(r *http.Request) {
			r.Header["Authorization"] = []string{"Bearer secret", "Bearer secret"}
		}, 401},
		{"an empty bearer", "secret", "GET", func(r *http.Request) { r.Header.Set("Authorization", "Bearer ") }, 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, "/metrics", nil)
			if tt.set != nil {
				tt.set(r)
			}
			w := httptest.NewRecorder()
			routes := Routes(Config{Token: tt.token, Metrics: metrics, API: metrics, Page: NewPage(PageConfig{})})
			routes["/metrics"].ServeHTTP(w, r)
			if w.Code != tt.want {
				t.Errorf("status %d, want %d", w.Code, tt.want)
			}
			if asked := w.Header().Get("WWW-Authenticate") != ""; asked != (tt.want == 401) {
				t.Errorf("a browser is asked for the token: %v", asked)
			}
		})
	}
}

// Without a token, a name that leads to loopback reads nothing: a page in a browser of this
// machine could have such a name. With a token, or on another address, every name is good.
func TestRoutesRefuseNamesOfLoopback(t *testing.T) {
	answer := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for _, tt := range []struct {
		host string
		want int
	}{
		{"127.0.0.1:9002", 200}, {"127.0.0.1", 200}, {"[::1]:9002", 200}, {"[::1]", 200}, {"localhost:9002", 200}, {"LocalHost.", 200}, {"a.localhost:1", 200}, {"192.0.2.7:9002", 200}, {"", 200},
		{"evil.example:9002", 421}, {"evil.example", 421}, {"localhost.evil.example", 421}, {"notlocalhost", 421}, {"127.0.0.1.evil.example", 421},
	} {
		for path := range Routes(Config{Metrics: answer, API: answer, Page: NewPage(PageConfig{})}) {
			ask := func(cfg Config) int {
				cfg.Metrics, cfg.API, cfg.Page = answer, answer, NewPage(PageConfig{})
				r, w := httptest.NewRequest(http.MethodGet, "/page.css", nil), httptest.NewRecorder()
				r.Host = tt.host
				r.SetBasicAuth("anna", "secret")
				Routes(cfg)[path].ServeHTTP(w, r)
				return w.Code
			}
			if got := ask(Config{Loopback: true}); got != tt.want {
				t.Errorf("%s for %q: status %d, want %d", path, tt.host, got, tt.want)
			}
			if a, b := ask(Config{}), ask(Config{Loopback: true, Token: "secret"}); a != 200 || b != 200 {
				t.Errorf("%s for %q: status %d on another address, %d with the token", path, tt.host, a, b)
			}
		}
	}
}
