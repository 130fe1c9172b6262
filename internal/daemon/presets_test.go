package daemon

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"understudy/config"
)

// The presets judge the answers that the manuals of the services have.
func TestPresets(t *testing.T) {
	for _, tt := range []struct {
		preset, path string
		status       int
		body         string
		want         bool
	}{
		{"patroni", "/primary", 200, `{"state": "running", "role": "primary"}`, true},
		{"patroni", "/primary", 503, `{"state": "running", "role": "replica"}`, false},
		{"etcd", "/health", 200, `{"health":"true","reason":""}`, true},
		{"etcd", "/health", 503, `{"health":"false","reason":"RAFT NO LEADER"}`, false},
		{"vault", "/v1/sys/health", 200, `{"initialized":true,"sealed":false,"standby":false}`, true},
		{"vault", "/v1/sys/health", 429, `{"initialized":true,"sealed":false,"standby":true}`, false},
		{"vault", "/v1/sys/health", 503, `{"initialized":true,"sealed":true,"standby":true}`, false},
		{"consul", "/v1/status/leader", 200, `"10.1.10.12:8300"`, true},
		{"consul", "/v1/status/leader", 200, `""`, false},
		{"elasticsearch", "/_cluster/health", 200, `{"cluster_name":"a","status":"yellow","timed_out":false}`, true},
		{"elasticsearch", "/_cluster/health", 200, `{"cluster_name":"a","status":"red","timed_out":false}`, false},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != tt.path {
				t.Errorf("%s asks for %s, want %s", tt.preset, r.URL.Path, tt.path)
			}
			w.WriteHeader(tt.status)
			_, _ = io.WriteString(w, tt.body)
		}))
		_, port, err := net.SplitHostPort(s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "understudy.yaml")
		text := fmt.Sprintf("listen: [\"127.0.0.1:1\"]\nhosts: [\"127.0.0.1:2\"]\nchecks: [%s: {port: %s}]\n", tt.preset, port)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		settings, _, err := config.Load(config.Given{Flags: map[string][]string{"config": {file}}})
		if err != nil {
			t.Fatal(err)
		}
		check, err := newCheck(settings.Relays[0].Checks[0], connects{})
		if err != nil {
			t.Fatal(err)
		}
		if res := check(t.Context(), "127.0.0.1:2"); res.OK != tt.want {
			t.Errorf("%s with %d %s: %+v, want %v", tt.preset, tt.status, tt.body, res, tt.want)
		}
		s.Close()
	}
}
