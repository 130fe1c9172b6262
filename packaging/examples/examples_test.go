package examples

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A trigger that cannot note whom it promotes changes nothing: it once promoted
// the standby beside a primary, whose own note had failed.
func TestTriggersThatCannotWriteTheirNote(t *testing.T) {
	dir := t.TempDir()
	for _, client := range []string{"psql", "mysql", "redis-cli"} {
		if err := os.WriteFile(filepath.Join(dir, client), []byte("#!/bin/sh\necho called >>"+dir+"/calls\necho t\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"postgres-promote.sh", "mysql-promote.sh", "redis-promote.sh"} {
		for _, dry := range []string{"", "1"} {
			cmd := exec.Command("sh", "scripts/"+name, "db2:1")
			cmd.Env = []string{
				"PATH=" + dir + ":" + os.Getenv("PATH"), "STATE_DIR=" + dir + "/missing", "REDIS_PASSWORD_FILE=" + password,
				"UNDERSTUDY_RELAY=orders", "UNDERSTUDY_EVENT=failover", "UNDERSTUDY_OLD=db1:1", "UNDERSTUDY_NEW=db2:1", "UNDERSTUDY_DRY_RUN=" + dry,
			}
			out, err := cmd.CombinedOutput()
			if want := "cannot note the primary in " + dir + "/missing: set state_dir\n"; err == nil || string(out) != want {
				t.Errorf("%s, dry run %q: %v, %q, want %q", name, dry, err, out, want)
			}
		}
	}
	if calls, err := os.ReadFile(filepath.Join(dir, "calls")); err == nil {
		t.Errorf("a server was called %d times", strings.Count(string(calls), "\n"))
	}
}
