//go:build linux

package e2e

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// The check of the settings looks at the store, at the record and at the other instances,
// and tells mistakes of the settings from parts that are away.
func TestClusterCheck(t *testing.T) {
	t.Parallel()
	s := startSeveral(t, 2*time.Second)
	s.serves(0)
	away := freeAddr(t)
	other := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(other, []byte("this is another one, of others"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := regexp.QuoteMeta(s.args[1][len(s.args[1])-5])
	for what, tt := range map[string]struct {
		args   []string
		status int
		rows   []string
	}{
		"of an instance that runs": {nil, 0, []string{
			`^cluster 127\S+ +ok +in use, most likely by the understudy that is running`,
			`^store ` + s.store.addr + ` +ok `,
			`^record of orders +ok +epoch 1, primary ` + s.hosts[0].addr + `, members a, b, c`,
			`^member b at ` + b + ` +ok `, `^member c at \S+ +ok `,
		}},
		"another secret": {[]string{"--cluster-secret", other}, 1, []string{`^member b at \S+ +failed .*secrets of the two members differ`}},
		"not a member": {[]string{"--member", "d", "--members", "d=" + away}, 1, []string{
			`^record of orders +failed +d is not one of its members \(a, b, c\): understudy cluster add d at one of them`}},
		"another lease": {[]string{"--lease", "3s"}, 0, []string{`^record of orders +warning +the cluster has .*lease=2s.*, and this instance .*lease=3s`}},
		"another name":  {[]string{"--cluster-name", "other"}, 1, []string{`^record of orders +ok +none yet in the cluster other`, `^member b at \S+ +failed .*this is the member "b" of the cluster "test"`}},
		"a part of the store is away": {[]string{"--cluster", "etcd://" + away + "," + s.store.addr}, 0, []string{
			`^store ` + away + ` +warning .*connection refused`, `^record of orders +ok `}},
		"the store is away":      {[]string{"--cluster", "etcd://" + away}, 1, []string{`^store ` + away + ` +failed .*connection refused`}},
		"the store wants no TLS": {[]string{"--cluster", "etcds://" + s.store.addr}, 1, []string{`^store \S+ +failed .*handshake failed`}},
		"an instance is away":    {[]string{"--members", "e=" + away}, 0, []string{`^member e at ` + away + ` +warning .*connection refused`}},
	} {
		u := proctest.StartCommand(t, proctest.BinaryCommand(program(t), nil, append([]string{"check"}, append(s.args[0], tt.args...)...)...))
		if code := u.Exit(); code != tt.status {
			t.Errorf("%s: exit status %d, want %d: %s\n%s", what, code, tt.status, u.Log(), u.Stdout())
		}
		for _, row := range tt.rows {
			if !regexp.MustCompile("(?m)" + row).MatchString(u.Stdout()) {
				t.Errorf("%s: no row matches %q:\n%s", what, row, u.Stdout())
			}
		}
	}
}

// An etcd that is full answers reads and refuses writes: the check says so, and what to do.
func TestClusterCheckOfFullStore(t *testing.T) {
	t.Parallel()
	store := startEtcdWith(t, "http", "--quota-backend-bytes", "2000000")
	large := `{"key": "eA==", "value": "` + strings.Repeat("eHh4", 250_000) + `"}`
	proctest.Until(t, "etcd is full", func() bool {
		res, err := http.Post("http://"+store.addr+"/v3/kv/put", "application/json", strings.NewReader(large))
		if err != nil {
			return false
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		return strings.Contains(string(text), "space exceeded")
	})
	u := start(t, "check", "--bind", freeAddr(t), "--hosts", "127.0.0.1:1", "--cluster", "etcd://"+store.addr, "--member", "a", "--on-store-loss", "fence")
	u.Exit()
	row := regexp.MustCompile(`(?m)^space of the store +failed +it is full .* refuses writes: compact and defragment it`)
	if !row.MatchString(u.Stdout()) {
		t.Errorf("no row matches %q:\n%s%s", row, u.Stdout(), u.Log())
	}
}
