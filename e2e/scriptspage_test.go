//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"understudy/hooks"
)

// The page shows the scripts as they are in the repository, all of them.
func TestScriptsPageShowsTheScripts(t *testing.T) {
	shown := blocks(t)
	for name, text := range shown {
		if strings.HasSuffix(name, ".yaml") { // of the page alone
			if out, err := exec.Command(program(t), "config", "--config", scriptsConfig(t, name)).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", name, err, out)
			}
			continue
		}
		file, err := os.ReadFile(filepath.Join(scriptsDir, name))
		if err != nil {
			t.Error(err)
		} else if string(file) != text {
			t.Errorf("%s shows another %s than %s has", scriptsPage, name, scriptsDir)
		}
	}
	for _, path := range scripts(t, "*") {
		if _, found := shown[filepath.Base(path)]; !found {
			t.Errorf("%s does not show %s", scriptsPage, path)
		}
	}
}

// The scripts are what the program accepts, and what shellcheck finds nothing in.
func TestScriptsAreSound(t *testing.T) {
	for _, path := range scripts(t, "*.sh") {
		if err := hooks.Inspect(path); err != nil {
			t.Error(err)
		}
	}
	checker := needs(t, "shellcheck")
	if out, err := exec.Command(checker, append([]string{"-s", "sh"}, scripts(t, "*.sh")...)...).CombinedOutput(); err != nil {
		t.Errorf("shellcheck: %v\n%s", err, out)
	}
}

func scripts(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(scriptsDir, pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scripts in %s: %v", scriptsDir, err)
	}
	return paths
}

// cloud stands for Cloudflare's API, and answers with one status.
type cloud struct {
	*httptest.Server

	mu   sync.Mutex // guards said
	said []string   // a line for each request
}

func newCloud(t *testing.T, status int) *cloud {
	t.Helper()
	c := &cloud{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		c.mu.Lock()
		c.said = append(c.said, strings.TrimSpace(fmt.Sprintln(r.Method, r.URL.Path, r.Header.Get("Authorization"), string(body))))
		c.mu.Unlock()
		w.WriteHeader(status)
	}))
	t.Cleanup(c.Close)
	return c
}

// The triggers for Cloudflare ask for the change, in a drill only whether they
// could, and fail when it is refused or nobody said what the host's address is.
func TestCloudflareScripts(t *testing.T) {
	needs(t, "curl")
	needs(t, "awk")
	dir := t.TempDir()
	for name, text := range map[string]string{
		"header": "Authorization: Bearer token-of-ours", "dns": "zone1 record1", "balancer": "zone1 balancer1",
		"addresses": "db1:5432 192.0.2.1\ndb2:5432 192.0.2.2", "pools": "db1:5432 pool1\ndb2:5432 pool2\ndb3:5432 pool3",
	} {
		private(t, filepath.Join(dir, "cloudflare."+name), text+"\n", false)
	}
	for _, tt := range []struct {
		name, script, host string
		env                []string
		status             int
		want               string // the request
		fails              bool
	}{
		{"record", "cloudflare-dns.sh", "db2:5432", nil, 200, `PATCH /zones/zone1/dns_records/record1 Bearer token-of-ours {"content":"192.0.2.2"}`, false},
		{"record in a drill", "cloudflare-dns.sh", "db2:5432", []string{"UNDERSTUDY_DRY_RUN=1"}, 200, `GET /zones/zone1/dns_records/record1 Bearer token-of-ours`, false},
		{"record of nobody", "cloudflare-dns.sh", "db9:5432", nil, 200, "", true},
		{"record refused", "cloudflare-dns.sh", "db1:5432", nil, 403, `PATCH /zones/zone1/dns_records/record1 Bearer token-of-ours {"content":"192.0.2.1"}`, true},
		{"pools", "cloudflare-pools.sh", "db2:5432", nil, 200, `PATCH /zones/zone1/load_balancers/balancer1 Bearer token-of-ours {"default_pools":["pool2","pool1","pool3"]}`, false},
		{"pools in a drill", "cloudflare-pools.sh", "db2:5432", []string{"UNDERSTUDY_DRY_RUN=1"}, 200, `GET /zones/zone1/load_balancers/balancer1 Bearer token-of-ours`, false},
		{"pools of nobody", "cloudflare-pools.sh", "db9:5432", nil, 200, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCloud(t, tt.status)
			cmd := exec.CommandContext(t.Context(), filepath.Join(scriptsDir, tt.script), tt.host)
			cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "CLOUDFLARE_API=" + c.URL, "CLOUDFLARE_DIR=" + dir}, tt.env...)
			out, err := cmd.CombinedOutput()
			if (err != nil) != tt.fails {
				t.Errorf("ended with %v: %s", err, out)
			}
			var want []string
			if tt.want != "" {
				want = []string{tt.want}
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if !slices.Equal(c.said, want) {
				t.Errorf("asked for\n%q, want\n%q", c.said, want)
			}
		})
	}
}

// MongoDB's script asks the host, and nobody else, and passes its answer on.
func TestMongoDBCheck(t *testing.T) {
	bin := t.TempDir()
	record := filepath.Join(bin, "record")
	writeScript(t, filepath.Join(bin, "mongosh"), "printf '%s\\n' \"$@\" >"+record+"\nexit $ANSWER\n")
	for _, status := range []int{0, 1} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(scriptsDir, "mongodb-check.sh"), "[::1]:27017")
		cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), fmt.Sprint("ANSWER=", status)}
		_ = cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != status {
			t.Errorf("exit status %d when mongosh ends with %d", code, status)
		}
		if got := lines(record); !slices.Contains(got, "mongodb://[::1]:27017/?directConnection=true&serverSelectionTimeoutMS=3000") {
			t.Errorf("mongosh was told %q", got)
		}
	}
}
