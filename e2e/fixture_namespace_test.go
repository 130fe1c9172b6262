//go:build linux

package e2e

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// insideVariable names the test that runs again in its own namespaces.
const insideVariable = "UNDERSTUDY_E2E_INSIDE"

// isolate runs the calling test again, in a copy of this process that has a
// network and a view of the mounts of its own, and reports true there. In the
// caller it reports false when that is over. Whatever the test does to its
// network and its mounts goes away with the copy. The programs that it needs
// are named by the packages that have them.
func isolate(t *testing.T, needs ...string) bool {
	t.Helper()
	if os.Getenv(insideVariable) == t.Name() {
		run(t, "ip", "link", "set", "lo", "up")
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root, for a network namespace")
	}
	packages := map[string]string{"ip": "iproute2", "nft": "nftables", "etcd": "etcd-server", "keepalived": "keepalived"}
	for _, name := range append(needs, "ip") {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIP: needs %s (apt-get install %s)", name, packages[name])
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^"+t.Name()+"$", "-test.v")
	if deadline, ok := t.Deadline(); ok {
		cmd.Args = append(cmd.Args, "-test.timeout="+time.Until(deadline).String())
	}
	if testing.Short() {
		cmd.Args = append(cmd.Args, "-test.short")
	}
	cmd.Env = append(os.Environ(), insideVariable+"="+t.Name(), programVariable+"="+program(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   syscall.CLONE_NEWNET,
		Unshareflags: syscall.CLONE_NEWNS, // and makes every mount private
		Pdeathsig:    syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	t.Logf("in a namespace of its own:\n%s", out)
	if err != nil {
		t.Errorf("in a namespace of its own: %v", err)
	}
	if strings.Contains(string(out), "--- SKIP") {
		t.Skip("SKIP: see above")
	}
	return false
}

// run runs a command that must succeed. An argument may hold several words.
func run(t *testing.T, words ...string) {
	t.Helper()
	argv := strings.Fields(strings.Join(words, " "))
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}
