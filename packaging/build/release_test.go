//go:build linux

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/proctest"
)

// TestRelease builds the files of a release and uses them: everything is made
// twice and compared, inspected, and installed on a Debian system that the test
// makes.
func TestRelease(t *testing.T) {
	for _, program := range []string{"git", "dpkg-deb"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("SKIPPED: %s is not installed (apt-get install git dpkg)", program)
		}
	}
	debian := startDebian(t) // takes as long as the builds do
	dir := t.TempDir()
	source := snapshot(t, filepath.Join(dir, "source"))
	tool := filepath.Join(dir, "build")
	command(t, ".", nil, "go", "build", "-o", tool, ".")

	// The second time with the environment of another machine.
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	other := filepath.Join(dir, "elsewhere", "another")
	command(t, source, nil, tool, "-out", first, "release")
	command(t, dir, nil, "sh", "-c", `umask 077; exec "$@"`, "-", "git", "clone", "-q", source, other)
	command(t, other, []string{"TZ=Asia/Tokyo", "LC_ALL=C", "GOFLAGS=-buildvcs=false", "GOAMD64=v2"},
		"sh", "-c", `umask 027; exec "$@"`, "-", tool, "-out", second, "release")

	t.Run("equal byte for byte", func(t *testing.T) {
		names := files(t, first)
		if got := files(t, second); !slices.Equal(got, names) {
			t.Fatalf("%q, want %q", got, names)
		}
		want := []string{
			"SHA256SUMS",
			"understudy-1.0.0-linux-amd64.cdx.json", "understudy-1.0.0-linux-amd64.tar.gz",
			"understudy-1.0.0-linux-arm64.cdx.json", "understudy-1.0.0-linux-arm64.tar.gz",
			"understudy_1.0.0_amd64.deb", "understudy_1.0.0_arm64.deb",
		}
		if !slices.Equal(names, want) {
			t.Fatalf("%q, want %q", names, want)
		}
		for _, name := range names {
			if !bytes.Equal(read(t, first, name), read(t, second, name)) {
				t.Errorf("%s: two builds of one commit differ", name)
			}
		}
	})
	t.Run("sums", func(t *testing.T) {
		lines := strings.Split(strings.TrimSpace(string(read(t, first, "SHA256SUMS"))), "\n")
		if want := len(files(t, first)) - 1; len(lines) != want {
			t.Errorf("%d sums, want %d", len(lines), want)
		}
		for _, line := range lines {
			got, name, _ := strings.Cut(line, "  ")
			if want := sum(read(t, first, name)); got != want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
		}
	})
	for _, arch := range architectures {
		t.Run(arch, func(t *testing.T) { checkArchitecture(t, first, arch) })
	}
	t.Run("lintian", func(t *testing.T) {
		if _, err := exec.LookPath("lintian"); err != nil {
			t.Skip("SKIPPED: lintian is not installed (make test-deps)")
		}
		args := []string{"--allow-root", "--fail-on", "error,warning"}
		for _, arch := range architectures {
			args = append(args, filepath.Join(first, "understudy_1.0.0_"+arch+".deb"))
		}
		if out, err := exec.CommandContext(t.Context(), "lintian", args...).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("install", func(t *testing.T) {
		root := debian(t)
		// The next release, which has changed the configuration file as well.
		conf := filepath.Join(source, "packaging/deb/understudy.yaml")
		text := append([]byte("# A new first line.\n"), read(t, conf)...)
		if err := os.WriteFile(conf, text, 0o600); err != nil {
			t.Fatal(err)
		}
		commit(t, source, "v1.1.0")
		command(t, source, nil, tool, "-out", first, "-arch", runtime.GOARCH, "deb")
		checkInstallation(t, root,
			filepath.Join(first, "understudy_1.0.0_"+runtime.GOARCH+".deb"),
			filepath.Join(first, "understudy_1.1.0_"+runtime.GOARCH+".deb"))
	})
}

// snapshot copies the work tree as it is and makes it release v1.0.0.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	list, err := exec.Command("git", "-C", "../..", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Skipf("SKIPPED: the source is not in git: %v", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		info, err := os.Stat(filepath.Join("../..", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed, and not committed yet
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, name)
		if err := write(to, read(t, "../..", name)); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(to, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
	command(t, dir, nil, "git", "init", "-q")
	commit(t, dir, "v1.0.0")
	return dir
}

func commit(t *testing.T, dir, tag string) {
	t.Helper()
	env := []string{
		"GIT_AUTHOR_NAME=test", "GIT_AUTHOR_EMAIL=test@localhost", "GIT_AUTHOR_DATE=2026-11-21T08:45:26Z",
		"GIT_COMMITTER_NAME=test", "GIT_COMMITTER_EMAIL=test@localhost", "GIT_COMMITTER_DATE=2026-11-21T08:45:26Z",
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
	}
	command(t, dir, env, "git", "add", "-A")
	command(t, dir, env, "git", "commit", "-q", "-m", tag)
	command(t, dir, env, "git", "tag", tag)
}

// checkArchitecture checks the package, the tarball and the bill of materials
// of one architecture.
func checkArchitecture(t *testing.T, dist, arch string) {
	t.Helper()
	deb := filepath.Join(dist, "understudy_1.0.0_"+arch+".deb")
	for field, want := range map[string]string{
		"Package": "understudy", "Version": "1.0.0", "Architecture": arch, "Section": "net", "Depends": "",
	} {
		if got := strings.TrimSpace(command(t, ".", nil, "dpkg-deb", "-f", deb, field)); got != want {
			t.Errorf("%s: %q, want %q", field, got, want)
		}
	}
	dir := t.TempDir()
	command(t, ".", nil, "dpkg-deb", "-e", deb, dir+"/DEBIAN")
	if got, want := string(read(t, dir, "DEBIAN/conffiles")), "/etc/understudy/understudy.yaml\n"; got != want {
		t.Errorf("conffiles: %q, want %q", got, want)
	}
	inside := untar(t, strings.NewReader(command(t, ".", nil, "dpkg-deb", "--fsys-tarfile", deb)), "./")
	for name, mode := range map[string]int64{
		"usr/bin/understudy":                                  0o755,
		"etc/understudy/understudy.yaml":                      0o644,
		"usr/lib/systemd/system/understudy.service":           0o644,
		"usr/lib/systemd/system/understudy@.service":          0o644,
		"usr/lib/systemd/system/understudy.socket":            0o644,
		"usr/share/man/man1/understudy.1.gz":                  0o644,
		"usr/share/bash-completion/completions/understudy":    0o644,
		"usr/share/zsh/vendor-completions/_understudy":        0o644,
		"usr/share/fish/vendor_completions.d/understudy.fish": 0o644,
		"usr/share/understudy/understudy.functions":           0o644,
		"usr/share/doc/understudy/copyright":                  0o644,
		"usr/share/doc/understudy/changelog.gz":               0o644,
		"usr/share/doc/understudy/third-party-notices.gz":     0o644,
		"usr/share/doc/understudy/examples/understudy.yaml":   0o644,

		"usr/share/doc/understudy/examples/scripts/postgres-role.sql":  0o644,
		"usr/share/doc/understudy/examples/scripts/postgres-rejoin.sh": 0o755,
	} {
		switch f, ok := inside[name]; {
		case !ok:
			t.Errorf("%s is not in the package", name)
		case f.mode != mode || len(f.data) == 0:
			t.Errorf("%s: mode %o, %d bytes", name, f.mode, len(f.data))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(inside)) {
		if f := inside[name]; f.owner != "root/root" || f.mode&0o022 != 0 {
			t.Errorf("%s: of %s, mode %o", name, f.owner, f.mode)
		}
	}
	if page := gunzip(t, inside["usr/share/man/man1/understudy.1.gz"].data); !strings.HasPrefix(page, `.TH UNDERSTUDY 1 "2026-11-21" "understudy v1.0.0"`) {
		t.Errorf("manual page: %.80s", page)
	}
	if text := gunzip(t, inside["usr/share/doc/understudy/changelog.gz"].data); !strings.HasPrefix(text, "understudy (1.0.0) ") {
		t.Errorf("changelog: %.80s", text)
	}
	notices := gunzip(t, inside["usr/share/doc/understudy/third-party-notices.gz"].data)
	for _, text := range []string{"The Go Authors", "github.com/hashicorp/go-hclog", "golang.org/x/sys"} {
		if !strings.Contains(notices, text) {
			t.Errorf("the notices have no %q", text)
		}
	}
	if text := string(inside["usr/share/doc/understudy/copyright"].data); !strings.Contains(text, "WARRANTY OF ANY KIND") {
		t.Errorf("no licence in the copyright file:\n%s", text)
	}

	top := "understudy-1.0.0-linux-" + arch
	tarball := untar(t, strings.NewReader(gunzip(t, read(t, dist, top+".tar.gz"))), top+"/")
	for _, name := range []string{
		"understudy", "LICENSE", "README.md", "CHANGELOG.md", "understudy.1", "third-party-notices", "understudy.functions",
		"completion/understudy.bash", "completion/_understudy", "completion/understudy.fish",
		"systemd/understudy.service", "examples/understudy.yaml", "docs/configuration.md", "docs/examples/status.json",
	} {
		if len(tarball[name].data) == 0 {
			t.Errorf("%s is not in the tarball", name)
		}
	}
	if !bytes.Equal(tarball["understudy"].data, inside["usr/bin/understudy"].data) || tarball["understudy"].mode != 0o755 {
		t.Error("the tarball has another program than the package")
	}
	binary := filepath.Join(dir, "understudy")
	if err := os.WriteFile(binary, tarball["understudy"].data, 0o700); err != nil {
		t.Fatal(err)
	}
	checkBOM(t, filepath.Join(dist, top+".cdx.json"), binary, "v1.0.0")
	if arch != runtime.GOARCH {
		return
	}
	got := command(t, ".", nil, binary, "--version")
	if want := "understudy v1.0.0 (commit "; !strings.HasPrefix(got, want) || strings.Contains(got, "with changes") || !strings.Contains(got, runtime.Version()) {
		t.Errorf("--version: %q, want version, commit and Go version", got)
	}
}

// startDebian begins to make a Debian system in a directory, and returns a
// function that waits for it and returns the directory. It skips the test if
// that cannot be done here.
func startDebian(t *testing.T) func(*testing.T) string {
	t.Helper()
	skip := func(why string) func(*testing.T) string {
		return func(t *testing.T) string {
			t.Helper()
			t.Skip("SKIPPED: " + why)
			return ""
		}
	}
	program, err := exec.LookPath("debootstrap")
	if err != nil {
		return skip("debootstrap is not installed (make test-deps)")
	}
	if os.Getuid() != 0 {
		return skip("debootstrap needs root")
	}
	root := t.TempDir()
	// In memory, where dpkg's many fsyncs cost nothing.
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=755,size=1g"); err == nil {
		t.Cleanup(func() {
			if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, "--variant=minbase", "bookworm", root)
	cmd.Stdout, cmd.Stderr = &said, &said
	// Its mounts and processes end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	done := make(chan error, 1)
	if err := cmd.Start(); err != nil {
		return skip(fmt.Sprintf("no debootstrap here: %v", err))
	}
	go func() { done <- cmd.Wait() }()
	waited := false
	wait := func() error {
		waited = true
		return <-done
	}
	t.Cleanup(func() { // before the directory is removed
		if !waited {
			_ = wait() // t.Context has ended it
		}
	})
	return func(t *testing.T) string {
		t.Helper()
		if err := wait(); err != nil {
			lines := strings.Split(strings.TrimSpace(said.String()), "\n")
			t.Skipf("SKIPPED: debootstrap: %v\n%s", err, strings.Join(lines[max(0, len(lines)-5):], "\n"))
		}
		return root
	}
}

// checkInstallation installs, runs, upgrades, removes and purges.
func checkInstallation(t *testing.T, root, oldDeb, newDeb string) {
	t.Helper()
	in := func(name string, args ...string) (string, error) {
		cmd := proctest.BinaryCommand(name, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "CONTROL=auto"}, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		cmd.Dir = "/"
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(name string, args ...string) string {
		t.Helper()
		out, err := in(name, args...)
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return out
	}
	exists := func(name string) bool {
		_, err := os.Lstat(filepath.Join(root, name))
		return err == nil
	}
	for name, deb := range map[string]string{"old.deb": oldDeb, "new.deb": newDeb} {
		if err := write(filepath.Join(root, "srv", name), read(t, deb)); err != nil {
			t.Fatal(err)
		}
	}
	before := everything(t, root)
	const conf = "/etc/understudy/understudy.yaml"

	must("/usr/bin/dpkg", "-i", "/srv/old.deb")
	if got := must("/usr/bin/understudy", "--version"); !strings.HasPrefix(got, "understudy v1.0.0 (commit ") {
		t.Errorf("version %q", got)
	}
	// It is not configured yet, and nothing starts it.
	if out, err := in("/usr/bin/understudy", "--config", conf); err == nil || !strings.Contains(out, "sets neither hosts nor http") {
		t.Errorf("as it was installed: %v\n%s", err, out)
	}
	for name := range everything(t, root) {
		if strings.HasPrefix(name, "/etc/systemd/") && strings.Contains(name, "understudy") {
			t.Errorf("%s: the unit is enabled", name)
		}
	}

	// Four lines, without the '#', configure a relay. The test writes its own
	// values.
	host := (&proctest.Host{Name: "host"}).Start(t)
	addr := fmt.Sprintf("127.0.0.1:%d", proctest.FreePort(t, "127.0.0.1"))
	_, edited, _ := strings.Cut(string(read(t, root, conf)), "\n#relays:")
	edited = strings.ReplaceAll("#relays:"+edited, "#", "")
	if got := strings.Count(edited, "\n"); got != 4 {
		t.Errorf("%d lines to edit, want 4:\n%s", got, edited)
	}
	edited = strings.NewReplacer(":5432\"", addr+"\"", "[db1:5432, db2:5432]", `["`+host.Addr()+`"]`).Replace(edited)
	if err := os.WriteFile(filepath.Join(root, conf), []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := proctest.BinaryCommand("/usr/bin/understudy", []string{"CONTROL=auto"}, "--config", conf)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	cmd.Dir = "/"
	u := proctest.StartCommand(t, cmd)
	u.Until("the relay to answer", func() bool {
		name, err := proctest.Greeting(addr, 10*time.Second)
		return err == nil && name == "host"
	})
	if got := must("/usr/bin/understudy", "status"); !strings.Contains(got, host.Addr()) {
		t.Errorf("status:\n%s", got)
	}
	u.Signal(syscall.SIGTERM)
	if got := u.Exit(); got != 0 {
		t.Errorf("exit status %d, want 0", got)
	}
	if err := os.RemoveAll(filepath.Join(root, "run/understudy")); err != nil { // as the next boot does
		t.Fatal(err)
	}

	// The same again, and the next release: the edited file stays.
	must("/usr/bin/dpkg", "-i", "/srv/old.deb")
	if got := string(read(t, root, conf)); got != edited {
		t.Errorf("installed again, the configuration is\n%s", got)
	}
	must("/usr/bin/dpkg", "--force-confdef", "--force-confold", "-i", "/srv/new.deb")
	if got := string(read(t, root, conf)); got != edited {
		t.Errorf("after the upgrade the configuration is\n%s", got)
	}
	if got := must("/usr/bin/understudy", "--version"); !strings.HasPrefix(got, "understudy v1.1.0 (commit ") {
		t.Errorf("version after the upgrade: %q", got)
	}

	// Files that a running service and its operator leave.
	for _, dir := range []string{"/var/lib/private/understudy", "/var/lib/private/understudy-orders", "/var/log/private/understudy", "/etc/systemd/system/multi-user.target.wants"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"/var/lib/understudy": "private/understudy", "/var/lib/understudy-orders": "private/understudy-orders", "/var/log/understudy": "private/understudy",
		"/etc/systemd/system/multi-user.target.wants/understudy.service":        "/lib/systemd/system/understudy.service",
		"/etc/systemd/system/multi-user.target.wants/understudy@orders.service": "/usr/lib/systemd/system/understudy@.service",
	} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	must("/usr/bin/dpkg", "-r", "understudy")
	if exists("/usr/bin/understudy") || !exists(conf) || !exists("/var/lib/private/understudy") {
		t.Error("removed, the program is there or its configuration or state is not")
	}
	must("/usr/bin/dpkg", "-P", "understudy")
	after := everything(t, root)
	for name := range after {
		if !before[name] {
			t.Errorf("%s is left after the purge", name)
		}
	}
	for name := range before {
		if !after[name] {
			t.Errorf("%s was taken away", name)
		}
	}
}

// everything returns the names of all files, except those of dpkg's database.
func everything(t *testing.T, root string) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch name := strings.TrimPrefix(path, root); name {
		case "/proc", "/sys", "/var/lib/dpkg":
			return fs.SkipDir
		case "/var/log/dpkg.log", "/etc/systemd/system/multi-user.target.wants", "/var/lib/private", "/var/log/private":
			// dpkg's, and what is systemd's on a machine that runs it
		default:
			all[name] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

type found struct {
	mode  int64
	owner string
	data  []byte
}

// untar reads a tarball, the names of whose files all begin with prefix.
func untar(t *testing.T, from io.Reader, prefix string) map[string]found {
	t.Helper()
	all := map[string]found{}
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		name, ok := strings.CutPrefix(h.Name, prefix)
		if !ok {
			t.Errorf("%s is not in %s", h.Name, prefix)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = found{h.Mode, h.Uname + "/" + h.Gname, data}
		if h.ModTime.Unix() != commitTime.Unix() {
			t.Errorf("%s is of %v, want the time of the commit", h.Name, h.ModTime)
		}
	}
}

func gunzip(t *testing.T, data []byte) string {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func read(t *testing.T, parts ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// command runs a program that has to succeed, and returns its standard output.
func command(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "SOURCE_DATE_EPOCH=") }), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, stderr.String())
	}
	return string(out)
}
