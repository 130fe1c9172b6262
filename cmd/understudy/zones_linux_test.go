package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"understudy/internal/proctest"
)

// The zones of --tz are known on a machine without zone files, such as a
// container from scratch.
func TestZonesWithoutFiles(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: chroot needs root")
	}
	text, err := os.ReadFile(proctest.Build(t))
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "understudy"), text, 0o755); err != nil {
		t.Fatal(err)
	}
	for zone, want := range map[string]string{
		"Europe/Berlin": "no process serves /none",
		"Mars/Olympus":  `--tz: "Mars/Olympus" is not a time zone like Europe/Berlin`,
	} {
		cmd := proctest.BinaryCommand("/understudy", []string{"CONTROL=/none"}, "switch", "db2", "--at", "03:30", "--tz", zone)
		cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Chroot: root}
		u := proctest.StartCommand(t, cmd)
		if code := u.Exit(); code == 0 || !strings.Contains(u.Log(), want) {
			t.Errorf("%s: exit status %d, %q, want %q", zone, code, u.Log(), want)
		}
	}
}
