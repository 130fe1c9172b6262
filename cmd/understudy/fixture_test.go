package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"understudy/internal/proctest"
)

func startOperated(t *testing.T, args ...string) operated {
	t.Helper()
	o := operated{
		a: (&proctest.Host{Name: "a"}).Start(t), b: (&proctest.Host{Name: "b"}).Start(t), addr: proctest.FreeAddr(t),
		env: []string{"CONTROL=" + filepath.Join(t.TempDir(), "c.sock")},
	}
	o.Understudy = proctest.Start(t, o.env, append([]string{"-b", o.addr, "-H", o.a.Addr() + "," + o.b.Addr()}, args...)...)
	o.WaitLog("relay open")
	return o
}

// unprivileged makes cmd respect the modes of files, even for root.
func unprivileged(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	if os.Getuid() != 0 {
		return cmd
	}
	path, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skip("SKIPPED: root needs setpriv (package util-linux) to be kept out of anything")
	}
	return startedBy(cmd, path, "--bounding-set=-all", "--inh-caps=-all")
}

// startedBy makes another program start cmd.
func startedBy(cmd *exec.Cmd, path string, args ...string) *exec.Cmd {
	cmd.Args = append(append([]string{path}, args...), append([]string{cmd.Path}, cmd.Args[1:]...)...)
	cmd.Path = path
	return cmd
}

// script writes an executable script and returns its path.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script.sh")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// lines returns the lines of a file that may not exist.
func lines(path string) []string {
	text, _ := os.ReadFile(path)
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// awaitEnd waits until a process of this machine has ended.
func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	proctest.Until(t, fmt.Sprintf("process %d is gone", pid), func() bool {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	})
}
