// Package systemd tests the units as systemd reads them. They are not started
// here: that takes a machine that systemd runs.
package systemd

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy/config"
)

var units = []string{"understudy.service", "understudy@.service", "understudy.socket"}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// settings are the lines of a unit except blank lines and comments.
func settings(text string) (list []string) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			list = append(list, line)
		}
	}
	return list
}

// analyze runs systemd-analyze and returns its output.
func analyze(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", append([]string{"--no-pager"}, args...)...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("SKIP: needs systemd-analyze (apt-get install systemd)")
	}
	return string(out), err
}

// The services may do little: 1.5 of 10 at most, by systemd's count.
func TestExposure(t *testing.T) {
	for _, unit := range []string{"understudy.service", "understudy@.service"} {
		out, err := analyze(t, "security", "--offline=true", "--threshold=15", "./"+unit)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		t.Log(lines[len(lines)-1])
		if err != nil {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}

// systemd accepts the units that a package installs, without a warning.
func TestUnitsVerify(t *testing.T) {
	root := t.TempDir()
	write := func(path, text string, mode os.FileMode) {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	const dir = "usr/lib/systemd/system"
	write("usr/bin/understudy", "#!/bin/true\n", 0o755)
	for _, target := range []string{"network-online", "nss-lookup", "multi-user", "sockets", "sysinit", "basic", "shutdown"} {
		write(filepath.Join(dir, target+".target"), "[Unit]\nDescription="+target+"\n", 0o644)
	}
	for _, unit := range units {
		write(filepath.Join(dir, unit), read(t, unit), 0o644)
	}
	for _, unit := range []string{"understudy.service", "understudy@orders.service", "understudy.socket"} {
		out, err := analyze(t, "verify", "--man=no", "--recursive-errors=no", "--root="+root, unit)
		// Its output is also about units of the machine that it runs on.
		var ours []string
		for line := range strings.Lines(out) {
			if strings.Contains(line, "understudy") {
				ours = append(ours, line)
			}
		}
		if err != nil || ours != nil {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}

// The instance unit differs from the other one in names only.
func TestInstanceIsTheSame(t *testing.T) {
	want := strings.NewReplacer(
		"Description=understudy,", "Description=understudy %i,",
		"/etc/understudy/understudy.yaml", "/etc/understudy/%i.yaml",
		"/etc/default/understudy", "/etc/default/understudy-%i",
		"/run/understudy/", "/run/understudy-%i/",
		"/var/lib/understudy", "/var/lib/understudy-%i",
		"Directory=understudy", "Directory=understudy-%i",
	).Replace(strings.Join(settings(read(t, "understudy.service")), "\n"))
	if got := strings.Join(settings(read(t, "understudy@.service")), "\n"); got != want {
		t.Errorf("understudy@.service says\n%s\n\nwant\n%s", got, want)
	}
}

// The unit sets variables of the program, and has the promised settings
// for restarts.
func TestServiceSays(t *testing.T) {
	lines := settings(read(t, "understudy.service"))
	for _, line := range []string{
		"Type=notify", "Restart=always", "StartLimitIntervalSec=0", "LimitNOFILE=1048576", "KillMode=mixed",
		"RuntimeDirectory=understudy", "StateDirectory=understudy", "AmbientCapabilities=CAP_NET_BIND_SERVICE",
	} {
		if !slices.Contains(lines, line) {
			t.Errorf("there is no %s", line)
		}
	}
	for _, line := range lines {
		text, ok := strings.CutPrefix(line, "Environment=")
		for pair := range strings.FieldsSeq(text) {
			name, _, _ := strings.Cut(pair, "=")
			if ok && !slices.ContainsFunc(config.Table(), func(s config.Setting) bool { return s.Env == name }) {
				t.Errorf("%s is no variable of understudy", name)
			}
		}
	}
}
