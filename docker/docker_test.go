// Package docker tests the image and the compose file as their users get them.
// The image is built on a base that the test makes itself, because a machine
// that tests need not have a registry.
package docker

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/internal/proctest"
)

func TestMain(m *testing.M) { os.Exit(proctest.Main(everything{m}, nil)) }

// everything runs all tests and then removes the images, which they share.
type everything struct{ m *testing.M }

func (e everything) Run() int {
	defer removeImages()
	return e.m.Run()
}

const (
	perSecond = 50
	// patience is how long a client may wait. A loss is a client that was not
	// served by then, or was refused or reset.
	patience = 20 * time.Second
)

// engine is the Docker engine, and what this test has made in it.
type engine struct {
	tb  testing.TB
	tag string
}

// newEngine skips the test where there is no engine, or nothing to make a base of.
func newEngine(tb testing.TB) *engine {
	tb.Helper()
	if out, err := exec.CommandContext(tb.Context(), "docker", "info").CombinedOutput(); err != nil {
		tb.Skipf("SKIP: needs a running Docker engine (apt-get install docker.io): %v\n%s", err, lastLine(string(out)))
	}
	if _, err := os.Stat(busybox); err != nil {
		tb.Skipf("SKIP: needs %s to make a base image of (apt-get install busybox-static)", busybox)
	}
	var id [6]byte
	rand.Read(id[:])
	return &engine{tb: tb, tag: fmt.Sprintf("understudy-test-%x", id)}
}

const busybox = "/bin/busybox"

// docker runs the client and returns its output, without the last newline.
func (e *engine) docker(args ...string) string {
	e.tb.Helper()
	out, err := e.try(args...)
	if err != nil {
		e.tb.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (e *engine) try(args ...string) (string, error) {
	cmd := exec.Command("docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0") // the test's bases are in the engine, not in a registry
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// image makes an image of files, by path.
func (e *engine) image(name string, files map[string]string, links ...string) string {
	e.tb.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, dir := range []string{"bin/", "tmp/", "etc/", "usr/local/bin/"} {
		tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o1777 &^ 0o022})
	}
	for path, content := range files {
		tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: 0o755, Size: int64(len(content))})
		io.WriteString(tw, content)
	}
	for _, link := range links {
		tw.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + link, Linkname: "busybox"})
	}
	tw.Close()
	ref := e.tag + "-" + name
	cmd := exec.Command("docker", "import", "-", ref)
	cmd.Stdin = &buf
	if out, err := cmd.CombinedOutput(); err != nil {
		e.tb.Fatalf("docker import: %v\n%s", err, out)
	}
	images.refs = append(images.refs, ref)
	return ref
}

// images are what the tests of one run share: the image that users build, and
// what it was built on.
var images struct {
	sync.Mutex
	built string
	refs  []string
}

func removeImages() {
	for i := range images.refs {
		ref := images.refs[len(images.refs)-1-i]
		_ = exec.Command("docker", "rmi", "-f", ref).Run()
	}
}

// build builds the image that users build, on bases of the test's own.
func (e *engine) build() string {
	e.tb.Helper()
	images.Lock()
	defer images.Unlock()
	if images.built != "" {
		return images.built
	}
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			e.tb.Fatal(err)
		}
		return string(b)
	}
	shell := []string{"sh", "ls", "cat", "grep", "nc", "sleep", "id", "echo", "mkdir", "dirname", "cp", "ps", "touch"}
	box := read(busybox)
	base := e.image("base", map[string]string{"bin/busybox": box}, shell...)
	// The builder has no compiler: what it hands out is the program that this
	// machine's compiler made. Everything else is the Dockerfile's.
	builder := e.image("builder", map[string]string{
		"bin/busybox":         box,
		"prebuilt/understudy": read(proctest.Build(e.tb)),
		"usr/local/bin/go": `#!/bin/sh
[ "$1" = mod ] && exit 0
while [ $# -gt 0 ]; do
	if [ "$1" = -o ]; then mkdir -p "$(dirname "$2")" && exec cp /prebuilt/understudy "$2"; fi
	shift
done
exit 1
`}, shell...)
	args := []string{"build", "-q", "-f", "Dockerfile", "--build-arg", "BUILDER=" + builder, "--build-arg", "BASE=" + base}
	// The first stage has no name that it could be removed by, but an id.
	stage := lastLine(e.docker(append(args, "--target", "build", "..")...)) // warnings come first
	images.refs = append(images.refs, stage)
	e.docker(append(args, "-t", e.tag, "..")...)
	images.refs = append(images.refs, e.tag)
	images.built = e.tag
	return e.tag
}

// run starts a container that ends with the test.
func (e *engine) run(args ...string) string {
	e.tb.Helper()
	id := e.docker(append([]string{"run", "-d"}, args...)...)
	id = lastLine(id) // warnings come first
	e.tb.Cleanup(func() {
		if e.tb.Failed() {
			log, _ := e.try("logs", id)
			e.tb.Logf("docker logs %v:\n%s", args, log)
		}
		e.try("rm", "-f", "-v", id)
	})
	return id
}

// address of a container on its network.
func (e *engine) address(id, port string) string {
	e.tb.Helper()
	ip := e.docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", id)
	return net.JoinHostPort(ip, port)
}

// cluster is two hosts and the relay in front of them, in containers.
type cluster struct {
	*engine
	network, relay, addr string
	host                 [2]string
}

// start builds the image and starts the cluster. The hosts have names on a
// private network; the check script reads a host's answer.
func start(t *testing.T) *cluster {
	t.Helper()
	e := newEngine(t)
	c := &cluster{engine: e, network: e.tag + "-net"}
	image := e.build()
	e.docker("network", "create", c.network)
	t.Cleanup(func() { e.try("network", "rm", c.network) })
	for i := range c.host {
		name := fmt.Sprintf("host%d", i+1)
		c.host[i] = e.run("-i", "--network", c.network, "--network-alias", name, "--no-healthcheck", image,
			"demo-host", fmt.Sprint(i+1), ":8000")
	}
	scripts := scriptsDir(t, 0o755)
	c.relay = e.run("--network", c.network, "--read-only", "--cap-drop", "ALL",
		"-v", scripts+":/etc/understudy:ro", "--health-interval", "500ms",
		"-e", "PORT=5432", "-e", "HOSTS=host1:8000,host2:8000", "-e", "CHECK_INTERVAL=500ms", "-e", "CHECK_TIMEOUT=1",
		"-e", "HTTP=:9001", "-e", "MAX_BACKOFF=", image)
	c.addr = e.address(c.relay, "5432")
	proctest.Until(t, "the relay to have a primary", func() bool { return c.who() != "" })
	return c
}

// scriptsDir holds a check script that passes when the host greets, and a
// trigger that leaves an orphan behind.
func scriptsDir(tb testing.TB, mode os.FileMode) string {
	tb.Helper()
	dir := tb.TempDir()
	for path, content := range map[string]string{
		"check-host.sh":           "#!/bin/sh\nnc -w 1 \"${1%:*}\" \"${1##*:}\" </dev/null | grep -q hello\n",
		"triggers.d/10-orphan.sh": "#!/bin/sh\n(sleep 0.2 & )\necho \"$UNDERSTUDY_EVENT $UNDERSTUDY_OLD $1\"\n",
	} {
		file := filepath.Join(dir, path)
		os.MkdirAll(filepath.Dir(file), 0o755)
		if err := os.WriteFile(file, []byte(content), mode); err != nil {
			tb.Fatal(err)
		}
	}
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755) // the image's user is not ours
	}
	return dir
}

// who is the number of the host that answers now, or "".
func (c *cluster) who() string {
	hc := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := hc.Get("http://" + c.addr + "/")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	_, rest, _ := strings.Cut(string(body), "host ")
	number, _, _ := strings.Cut(rest, " ")
	return number
}

// during keeps new clients coming while something happens, until host want
// answers, and fails the test for each client that was lost.
func (c *cluster) during(t *testing.T, want string, happens func()) {
	t.Helper()
	load := proctest.StartLoad(t, c.addr, perSecond, patience)
	proctest.Until(t, "clients to be served", func() bool { return load.Served() > perSecond/2 })
	happens()
	proctest.Until(t, "host "+want+" to answer", func() bool { return c.who() == want })
	served := load.Served()
	proctest.Until(t, "clients to be served by it", func() bool { return load.Served() > served+perSecond/2 })
	r := load.Stop()
	t.Log(r)
	for _, lost := range r.Lost() {
		t.Errorf("lost a client after %v: %v", lost.Latency, lost.Err)
	}
}

func TestFailoverInContainers(t *testing.T) {
	c := start(t)
	if got := c.who(); got != "1" {
		t.Fatalf("host %s answers at first, want 1", got)
	}
	c.during(t, "2", func() { c.docker("kill", c.host[0]) })
	c.docker("start", c.host[0])
	proctest.Until(t, "host 1 to run again", func() bool { return c.reaches(c.host[0]) })

	c.during(t, "1", func() { c.docker("pause", c.host[1]) })
	c.docker("unpause", c.host[1])
	proctest.Until(t, "host 2 to answer again", func() bool { return c.reaches(c.host[1]) })

	c.during(t, "2", func() { c.docker("network", "disconnect", "-f", c.network, c.host[0]) })

	if ps := c.docker("exec", c.relay, "ps", "-o", "pid,stat,comm"); strings.Contains(ps, " Z") {
		t.Errorf("zombies in the container:\n%s", ps)
	}
	if id := c.docker("exec", c.relay, "id", "-u"); id != "65534" {
		t.Errorf("runs as user %s", id)
	}
	log := c.docker("logs", c.relay)
	for _, want := range []string{"start  host1:8000", "failover host1:8000 host2:8000", "failover host2:8000 host1:8000"} {
		if n := strings.Count(log, want); n < 1 {
			t.Errorf("no trigger said %q", want)
		}
	}
}

// reaches says whether the check script would pass for a host now.
func (c *cluster) reaches(id string) bool {
	addr := c.address(id, "8000")
	line, err := proctest.Greeting(addr, time.Second)
	return err == nil && strings.HasPrefix(line, "HTTP/1.0 200")
}

func TestHealthcheckAndStop(t *testing.T) {
	c := start(t)
	healthy := func(want string) func() bool {
		return func() bool { return c.docker("inspect", "-f", "{{.State.Health.Status}}", c.relay) == want }
	}
	proctest.Until(t, "the container to be healthy", healthy("healthy"))
	for _, h := range c.host {
		c.docker("kill", h)
	}
	proctest.Until(t, "the container to be unhealthy", healthy("unhealthy"))

	begin := time.Now()
	c.docker("stop", "-t", "60", c.relay)
	var state struct{ ExitCode int }
	json.Unmarshal([]byte(c.docker("inspect", "-f", "{{json .State}}", c.relay)), &state)
	if took := time.Since(begin); state.ExitCode != 0 || took > 40*time.Second {
		t.Errorf("docker stop: exit status %d after %v", state.ExitCode, took)
	}
}

func TestScriptsDirInContainer(t *testing.T) {
	e := newEngine(t)
	image := e.build()
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"not executable", []string{"-v", scriptsDir(t, 0o644) + ":/etc/understudy:ro"}, "/etc/understudy/check-host.sh"},
		{"moved", []string{"-v", scriptsDir(t, 0o644) + ":/etc/flopsy:ro", "-e", "SCRIPTS_DIR=/etc/flopsy"}, "/etc/flopsy/check-host.sh"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"run", "--rm", "-e", "PORT=5432", "-e", "HOSTS=127.0.0.1:1"}, tt.args...)
			out, err := e.try(append(args, image)...)
			var exit *exec.ExitError
			if !asExit(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(out, tt.want) || !strings.Contains(out, "executable") {
				t.Errorf("%v\n%s\nwant exit status 2 and why", err, out)
			}
		})
	}
}

func TestComposeFile(t *testing.T) {
	e := newEngine(t)
	if _, err := exec.LookPath("docker-compose"); err != nil {
		t.Skip("SKIP: needs docker-compose (apt-get install docker-compose)")
	}
	image := e.build()
	e.docker("tag", image, "understudy:latest")
	t.Cleanup(func() { e.try("rmi", "understudy:latest") })
	compose := func(args ...string) (string, error) {
		cmd := exec.Command("docker-compose", append([]string{"-p", e.tag, "-f", "compose.yaml"}, args...)...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	t.Cleanup(func() { compose("down", "-t", "1", "-v") })
	if out, err := compose("up", "-d", "--no-build"); err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := compose("logs", "--no-color")
			t.Log(out)
		}
	})
	c := &cluster{engine: e, addr: "127.0.0.1:8080"}
	proctest.Until(t, "host 1 to answer", func() bool { return c.who() == "1" })
	if out, err := compose("kill", "host1"); err != nil {
		t.Fatalf("kill: %v\n%s", err, out)
	}
	proctest.Until(t, "host 2 to answer", func() bool { return c.who() == "2" })
}

func asExit(err error, to **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError) //nolint:errorlint // exec returns it bare
	*to = e
	return ok
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndex(s, "\n")+1:]
}
