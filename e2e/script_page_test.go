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
	"syscall"
	"testing"

	"understudy/hooks"
	"understudy/internal/proctest"
)

// The page shows the configurations as they are in the repository, and the pages name all
// scripts.
func TestScriptsPageShowsTheScripts(t *testing.T) {
	shown := blocks(t)
	for name, text := range shown {
		if out, err := exec.Command(program(t), "config", "--config", scriptsConfig(t, name)).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		file, err := os.ReadFile(filepath.Join(scriptsDir, name))
		if err != nil {
			t.Error(err)
		} else if string(file) != text {
			t.Errorf("%s shows another %s than %s has", scriptsPage, name, scriptsDir)
		}
	}
	var pages string
	for _, page := range []string{scriptsPage, databasesPage} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		pages += string(text)
	}
	for _, path := range scripts(t, "*") {
		if name := filepath.Base(path); !strings.Contains(pages, name) {
			t.Errorf("neither %s nor %s names %s", scriptsPage, databasesPage, name)
		}
	}
	for _, path := range scripts(t, "*.yaml") {
		if name := filepath.Base(path); shown[name] == "" {
			t.Errorf("%s does not show %s", scriptsPage, name)
		}
	}
}

// The program accepts the scripts, and shellcheck finds nothing in them.
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

// cloud replaces Cloudflare's API, and answers with one status.
type cloud struct {
	*httptest.Server

	mu       sync.Mutex // guards requests
	requests []string   // a line for each request
}

func newCloud(t *testing.T, status int) *cloud {
	t.Helper()
	c := &cloud{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		c.mu.Lock()
		c.requests = append(c.requests, strings.TrimSpace(fmt.Sprintln(r.Method, r.URL.Path, r.Header.Get("Authorization"), string(body))))
		c.mu.Unlock()
		w.WriteHeader(status)
	}))
	t.Cleanup(c.Close)
	return c
}

// The triggers for Cloudflare request the change, in a drill only check that
// they could, and fail when it is refused or the host's address is not
// configured.
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
		{"record of no host", "cloudflare-dns.sh", "db9:5432", nil, 200, "", true},
		{"record refused", "cloudflare-dns.sh", "db1:5432", nil, 403, `PATCH /zones/zone1/dns_records/record1 Bearer token-of-ours {"content":"192.0.2.1"}`, true},
		{"pools", "cloudflare-pools.sh", "db2:5432", nil, 200, `PATCH /zones/zone1/load_balancers/balancer1 Bearer token-of-ours {"default_pools":["pool2","pool1","pool3"]}`, false},
		{"pools in a drill", "cloudflare-pools.sh", "db2:5432", []string{"UNDERSTUDY_DRY_RUN=1"}, 200, `GET /zones/zone1/load_balancers/balancer1 Bearer token-of-ours`, false},
		{"pools of no host", "cloudflare-pools.sh", "db9:5432", nil, 200, "", true},
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
			if !slices.Equal(c.requests, want) {
				t.Errorf("asked for\n%q, want\n%q", c.requests, want)
			}
		})
	}
}

// MongoDB's script queries the host alone, and distinguishes no from unknown.
func TestMongoDBCheck(t *testing.T) {
	bin := t.TempDir()
	record := filepath.Join(bin, "record")
	writeScript(t, filepath.Join(bin, "mongosh"), "printf '%s\\n' \"$@\" >"+record+"\nexit $ANSWER\n")
	for status, want := range map[int]int{0: 0, 42: 1, 1: 75, 127: 75} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(scriptsDir, "mongodb-check.sh"), "[::1]:27017")
		cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), fmt.Sprint("ANSWER=", status)}
		_ = cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != want {
			t.Errorf("exit status %d when mongosh ends with %d, want %d", code, status, want)
		}
		if got := lines(record); !slices.Contains(got, "mongodb://[::1]:27017/?directConnection=true&serverSelectionTimeoutMS=3000") {
			t.Errorf("mongosh got %q", got)
		}
	}
}

// checkOnce runs a check script for a host with variables and returns its exit
// status and output. Only the programs in bin are there.
func checkOnce(t *testing.T, name, host, bin string, variables ...string) (int, string) {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(scriptsDir, name))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, host)
	cmd.Env = append([]string{"PATH=" + bin, "STATE_DIR=" + t.TempDir(), "UNDERSTUDY_RELAY=main", "UNDERSTUDY_EVENT=failover"}, variables...)
	out, _ := cmd.CombinedOutput()
	return cmd.ProcessState.ExitCode(), string(out)
}

// binWith is a directory that has only the programs called names.
func binWith(t *testing.T, names ...string) string {
	t.Helper()
	bin := t.TempDir()
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	return bin
}

// A Redis that cannot be queried is unknown.
func TestRedisThatCannotBeAsked(t *testing.T) {
	t.Parallel()
	a := newRedis(t).serve("a", nil)
	bin := binWith(t, "sh", "cat", "sed", "tr", "timeout", "redis-cli")
	right, wrong := filepath.Join(t.TempDir(), "right"), filepath.Join(t.TempDir(), "wrong")
	private(t, right, redisPassword+"\n", false)
	private(t, wrong, "wrong\n", false)
	request := func(what, bin, password string, want int) {
		t.Helper()
		if code, output := checkOnce(t, "redis-check.sh", a.addr(), bin, "REDIS_PASSWORD_FILE="+password); code != want {
			t.Errorf("%s: exit status %d, want %d: %s", what, code, want, output)
		}
	}
	request("it is well", bin, right, 0)
	request("the password is refused", bin, wrong, 75)
	request("the password cannot be read", bin, wrong+".missing", 75)
	request("redis-cli is missing", binWith(t, "sh", "cat", "sed", "tr", "timeout"), right, 75)
	output(t, redisCLI(t, a.port, "config", "set", "maxclients", "1"))
	holder := redisCLI(t, a.port, "blpop", "nothing", "0")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, "it has all the clients that it may have", func() bool {
		code, output := checkOnce(t, "redis-check.sh", a.addr(), bin, "REDIS_PASSWORD_FILE="+right)
		return code == 75 && strings.Contains(output, "max number of clients reached")
	})
	_ = holder.Process.Kill()
	_ = holder.Wait()
	if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	request("it does not answer", bin, right, 75)
	if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// A MariaDB or MySQL whose client fails, hangs or is missing is unknown; one
// that answers has the state of its answer.
func TestMySQLThatCannotBeAsked(t *testing.T) {
	t.Parallel()
	needs(t, "timeout")
	for _, tt := range []struct {
		name, mysql string
		want        int
	}{
		{"a primary", "case $* in *read_only*) echo 0 ;; esac", 0},
		{"a replica that applies nothing", `case $* in *read_only*) echo 1 ;; *) echo ' Slave_SQL_Running: No' ;; esac`, 1},
		{"too many connections", "echo 'ERROR 1040 (08004): Too many connections' >&2; exit 1", 75},
		{"refused for the second query", "case $* in *read_only*) echo 1 ;; *) exit 1 ;; esac", 75},
		{"no answer", "exec sleep 60", 75},
		{"missing", "", 75},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			bin := binWith(t, "sh", "sed", "timeout", "sleep")
			if tt.mysql != "" {
				writeScript(t, filepath.Join(bin, "mysql"), tt.mysql+"\n")
			}
			if code, output := checkOnce(t, "mysql-check.sh", "db1:3306", bin); code != tt.want {
				t.Errorf("exit status %d, want %d: %s", code, tt.want, output)
			}
		})
	}
}
