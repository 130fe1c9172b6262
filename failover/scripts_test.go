package failover

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/health"
	"understudy/hooks"
	"understudy/internal/proctest"
)

// Real scripts, for the check and for the triggers, from the election at the
// start over a failover to the end of Run.
func TestRealScripts(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("SKIP: scripts are run on Linux here")
	}
	dir := t.TempDir()
	seen := filepath.Join(dir, "seen")
	triggers := filepath.Join(dir, "triggers.d")
	if err := os.Mkdir(triggers, 0o700); err != nil {
		t.Fatal(err)
	}
	// Every trigger records its begin and end, so an overlap would be visible.
	note := `echo "$(basename $0) $1 $UNDERSTUDY_EVENT $UNDERSTUDY_RELAY $UNDERSTUDY_EPOCH [$UNDERSTUDY_OLD] $UNDERSTUDY_NEW" >>` + seen + `; sleep 0.1; echo end >>` + seen
	script(t, triggers, "20-second", note)
	script(t, triggers, "10-first", note+"; exit 3")
	script(t, triggers, "~not-a-backup", note)
	script(t, triggers, "backup~", note)
	if err := os.WriteFile(filepath.Join(triggers, "30-not-executable"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A host is usable while a file of its name exists.
	check := script(t, dir, "check", `test -e "`+dir+`/ok-$1" && test -n "$UNDERSTUDY_EVENT" && test "$UNDERSTUDY_NEW" = "$1"`)
	for _, host := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(dir, "ok-"+host), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	log := &strictLog{t: t}
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: log})
	runner := hooks.New(hooks.Config{Logger: logger})
	defer runner.Close()
	s := newStage()
	c, err := New(complete(Config{
		Name: "orders", Hosts: []string{"a", "b"}, Gate: s, Scripts: runner, Logger: logger,
		Checks: []Check{
			{Name: "tcp", Run: func(context.Context, string) health.Result { return health.Result{OK: true} }},
			{Name: "check", Script: check, Interval: 50 * time.Millisecond, Timeout: 20 * time.Second},
		},
		Triggers: Triggers{Path: triggers},
	}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()

	proctest.Until(t, "a is primary", func() bool { return c.Snapshot().Primary == "a" })
	if err := os.Remove(filepath.Join(dir, "ok-a")); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, "b is primary", func() bool { return c.Snapshot().Primary == "b" })

	// A trigger that hangs is ended with Run.
	script(t, triggers, "10-first", "echo $$ >"+dir+"/pid; sleep 1000")
	if err := os.Rename(filepath.Join(dir, "ok-b"), filepath.Join(dir, "ok-a")); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, "the last trigger runs", func() bool {
		pid, err := os.ReadFile(filepath.Join(dir, "pid"))
		return err == nil && strings.HasSuffix(string(pid), "\n")
	})
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	pid, _ := os.ReadFile(filepath.Join(dir, "pid"))
	if _, err := os.Stat("/proc/" + strings.TrimSpace(string(pid))); err == nil {
		t.Errorf("trigger %s still runs after Run has returned", pid)
	}

	got, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	want := ""
	for _, e := range []string{"a start orders 1 [] a", "b failover orders 2 [a] b"} {
		for _, name := range []string{"10-first", "20-second", "~not-a-backup"} {
			want += fmt.Sprintf("%s %s\nend\n", name, e)
		}
	}
	if string(got) != want {
		t.Errorf("triggers did\n%s\nwant\n%s", got, want)
	}
	for _, text := range []string{"trigger skipped: relay=orders host=b epoch=2", "trigger failed: relay=orders host=b epoch=2 script=" + triggers + "/10-first", "exit status 3"} {
		if !strings.Contains(log.String(), text) {
			t.Errorf("the log misses %q:\n%s", text, log.String())
		}
	}
}
