// Package docker tests the image and the compose file as their users get them.
// The image is built on a base that the test makes itself, because the test
// machine may have no access to a registry.
package docker

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
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
	// patience is the longest time that a client may wait. A client that is not
	// served by then, or is refused or reset, is lost.
	patience = 20 * time.Second
)

// engine is the Docker engine, and the objects that this test has made in it.
type engine struct {
	tb  testing.TB
	tag string
}

// newEngine skips the test if there is no engine, or no program to make a base
// of.
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

// images are shared by the tests of one run: the images that users build, by
// their base, and the images that they were built on.
var images struct {
	sync.Mutex
	built         map[string]string
	base, builder string
	refs          []string
}

func removeImages() {
	for i := range images.refs {
		ref := images.refs[len(images.refs)-1-i]
		_ = exec.Command("docker", "rmi", "-f", ref).Run()
	}
}

// shells are the shell tools that the bases of the tests have.
var shells = []string{"sh", "ls", "cat", "grep", "nc", "sleep", "id", "echo", "mkdir", "dirname", "cp", "chmod", "ps", "touch"}

// authorities is the content of the builder's file of certificate authorities.
const authorities = "-----BEGIN CERTIFICATE-----\n"

// build builds the image that users build, on a base of the test's own that has a
// shell.
func (e *engine) build() string { return e.buildOn("") }

// buildOn builds the image on another base.
func (e *engine) buildOn(base string) string {
	e.tb.Helper()
	images.Lock()
	defer images.Unlock()
	if ref := images.built[base]; ref != "" {
		return ref
	}
	if images.built == nil {
		images.built = map[string]string{}
		box := e.read(busybox)
		images.base = e.image("base", map[string]string{"bin/busybox": box}, shells...)
		// The builder has no compiler: it provides the program that this machine's
		// compiler made. Everything else is done by the Dockerfile.
		images.builder = e.image("builder", map[string]string{
			"bin/busybox":                       box,
			"prebuilt/understudy":               e.read(e.compile()),
			"etc/ssl/certs/ca-certificates.crt": authorities,
			"usr/local/bin/go": `#!/bin/sh
[ "$1" = mod ] && exit 0
while [ $# -gt 0 ]; do
	if [ "$1" = -o ]; then mkdir -p "$(dirname "$2")" && exec cp /prebuilt/understudy "$2"; fi
	shift
done
exit 1
`}, shells...)
	}
	ref, on := e.tag, images.base
	if base != "" {
		ref, on = e.tag+"-"+base, base
	}
	args := []string{
		"build", "-q", "-f", "Dockerfile", "--build-arg", "BUILDER=" + images.builder, "--build-arg", "BASE=" + on,
		"--build-arg", "VERSION=v1.2.3", "--build-arg", "REVISION=0123456789ab",
	}
	// The first stage has no name to remove it by, only an id.
	stage := lastLine(e.docker(append(args, "--target", "build", "..")...)) // warnings come first
	images.refs = append(images.refs, stage)
	e.docker(append(args, "-t", ref, "..")...)
	images.refs = append(images.refs, ref)
	images.built[base] = ref
	return ref
}

func (e *engine) read(path string) string {
	e.tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		e.tb.Fatal(err)
	}
	return string(b)
}

// compile builds the program as the Dockerfile does, and returns its path.
func (e *engine) compile() string {
	e.tb.Helper()
	m := regexp.MustCompile(`CGO_ENABLED=0 go build -trimpath -ldflags "([^"]*)" -o \S+ ./cmd/understudy\n`).FindStringSubmatch(e.read("Dockerfile"))
	if m == nil {
		e.tb.Fatal("the Dockerfile builds the program in a way that this test does not know")
	}
	path := filepath.Join(e.tb.TempDir(), "understudy")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", strings.ReplaceAll(m[1], "${VERSION}", "v1.2.3"), "-o", path, "./cmd/understudy")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		e.tb.Fatalf("go build: %v\n%s", err, out)
	}
	return path
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

// start builds the image and starts the cluster. The check script reads a host's
// answer.
func start(t *testing.T) *cluster {
	t.Helper()
	e := newEngine(t)
	return e.start(e.build(), "--read-only", "--cap-drop", "ALL",
		"-v", scriptsDir(t, 0o755)+":/etc/understudy:ro", "--health-interval", "500ms",
		"-e", "CHECK_INTERVAL=500ms", "-e", "CHECK_TIMEOUT=1", "-e", "HTTP=:9001", "-e", "MAX_BACKOFF=")
}

// start starts a cluster, whose relay gets more arguments. The hosts have names
// on a private network.
func (e *engine) start(image string, args ...string) *cluster {
	t := e.tb
	t.Helper()
	c := &cluster{engine: e, network: e.tag + "-net"}
	e.docker("network", "create", c.network)
	t.Cleanup(func() { e.try("network", "rm", c.network) })
	for i := range c.host {
		name := fmt.Sprintf("host%d", i+1)
		c.host[i] = e.run("-i", "--network", c.network, "--network-alias", name, "--no-healthcheck", image,
			"demo-host", fmt.Sprint(i+1), ":8000")
	}
	args = append([]string{"--network", c.network, "-e", "PORT=5432", "-e", "HOSTS=host1:8000,host2:8000"}, args...)
	c.relay = e.run(append(args, image)...)
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
		os.Chmod(d, 0o755) // the image has another user
	}
	return dir
}

// who is the number of the host that answers now, or "".
func (c *cluster) who() string {
	// The demo's hosts speak first. A client of net/http fails when the answer
	// overtakes its request.
	conn, err := net.DialTimeout("tcp", c.addr, patience)
	if err != nil {
		return ""
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	_ = conn.(*net.TCPConn).CloseWrite()
	answer, _ := io.ReadAll(conn)
	_, rest, _ := strings.Cut(string(answer), "host ")
	number, _, _ := strings.Cut(rest, " ")
	return number
}

// during opens new clients while happens runs, until host want answers, and
// fails the test for each client that was lost.
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

	// A process that has ended is a zombie for a moment, whoever reaps it.
	proctest.Until(t, "no zombie stays in the container", func() bool {
		return !strings.Contains(c.docker("exec", c.relay, "ps", "-o", "pid,stat,comm"), " Z")
	})
	if id := c.docker("exec", c.relay, "id", "-u"); id != "65534" {
		t.Errorf("runs as user %s", id)
	}
	for _, want := range []string{"start  host1:8000", "failover host1:8000 host2:8000", "failover host2:8000 host1:8000"} {
		c.awaitLog(want)
	}
}

// awaitLog waits until the relay's log, which comes through the engine, has text.
// It returns the log.
func (c *cluster) awaitLog(text string) (log string) {
	c.tb.Helper()
	proctest.Until(c.tb, "the log has "+text, func() bool {
		log = c.docker("logs", c.relay)
		return strings.Contains(log, text)
	})
	return log
}

// reaches reports whether the check script would pass for a host now.
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

// alpine is the size of alpine:3.22, the base with a shell that users get.
const alpine = 8.4 * 1024 * 1024

func TestImageIsSmall(t *testing.T) {
	e := newEngine(t)
	size := func(ref string) float64 {
		n, err := strconv.ParseFloat(e.docker("image", "inspect", "-f", "{{.Size}}", ref), 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	image := e.build()
	n := size(image) - size(images.base) + alpine
	t.Logf("%.1f MiB on Alpine", n/1024/1024)
	if n > 34*1024*1024 {
		t.Errorf("the image has %.1f MiB on Alpine, more than 34", n/1024/1024)
	}
	if n := size(e.buildOn("scratch")); n > 26*1024*1024 {
		t.Errorf("the image has %.1f MiB on scratch, more than 26", n/1024/1024)
	}
}

func TestImageLabels(t *testing.T) {
	e := newEngine(t)
	var labels map[string]string
	text := e.docker("image", "inspect", "-f", "{{json .Config.Labels}}", e.build())
	if err := json.Unmarshal([]byte(text), &labels); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"title": "understudy", "licenses": "MIT", "version": "v1.2.3", "revision": "0123456789ab", "base.name": images.base,
		"description": "Failover TCP relay with health verdicts",
	} {
		if got := labels["org.opencontainers.image."+name]; got != want {
			t.Errorf("label %s is %q, want %q", name, got, want)
		}
	}
	if out := e.docker("run", "--rm", e.build(), "--version"); !strings.Contains(out, "v1.2.3") {
		t.Errorf("the version is %s", out)
	}
}

// confined removes the privileges that a container does not need.
var confined = []string{
	"--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "12345:54321", "--tmpfs", "/tmp",
}

// With an unknown user and a read-only root everything works, including
// scripts, commands and a volume for the state.
func TestAnyUser(t *testing.T) {
	e := newEngine(t)
	image, volume := e.build(), e.tag+"-state"
	t.Cleanup(func() { e.try("volume", "rm", volume) }) // after the container
	c := e.start(image, append(confined, "-v", scriptsDir(t, 0o755)+":/etc/understudy:ro",
		"-v", volume+":/var/lib/understudy", "-e", "STATE_DIR=/var/lib/understudy")...)
	if got := c.who(); got != "1" {
		t.Errorf("host %s answers", got)
	}
	if id := e.docker("exec", c.relay, "id", "-u"); id != "12345" {
		t.Errorf("runs as user %s", id)
	}
	if out := e.docker("exec", c.relay, "understudy", "status"); !strings.Contains(out, "host1:8000") {
		t.Errorf("status says %s", out)
	}
	if log := c.awaitLog("start  host1:8000"); strings.Contains(log, "[WARN]  understudy: ") {
		t.Errorf("there are warnings:\n%s", log)
	}

	// Another container with the volume has the state.
	proctest.Until(t, "host 2 can be switched to", func() bool { // it is up after two passed checks
		_, err := e.try("exec", c.relay, "understudy", "switch", "host2:8000")
		return err == nil
	})
	e.docker("rm", "-f", c.relay)
	again := e.run(append(append([]string{"--network", c.network, "-e", "PORT=5432", "-e", "HOSTS=host1:8000,host2:8000",
		"-v", volume + ":/var/lib/understudy", "-e", "STATE_DIR=/var/lib/understudy"}, confined...), image)...)
	c.relay, c.addr = again, e.address(again, "5432")
	proctest.Until(t, "host 2 to be primary again", func() bool { return c.who() == "2" })
}

// docker stop with a connection that stays open: the image drains for less than
// the 10 s after which Docker sends SIGKILL.
func TestStopWithAnOpenConnection(t *testing.T) {
	e := newEngine(t)
	c := e.start(e.buildOn("scratch"))
	conn, err := net.DialTimeout("tcp", c.addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Half a request: the host waits for the rest, and so does the connection.
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n"); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, "the relay to have the connection", func() bool {
		return strings.Contains(e.docker("exec", c.relay, "/usr/local/bin/understudy", "status"), "1 live")
	})
	e.docker("stop", c.relay) // with Docker's own limit
	if code := e.docker("inspect", "-f", "{{.State.ExitCode}}", c.relay); code != "0" {
		t.Errorf("exit status %s, want 0 (137 is SIGKILL)", code)
	}
	if log := e.docker("logs", c.relay); !strings.Contains(log, "drain") {
		t.Errorf("the connection was not drained:\n%s", log)
	}
}

// Without a shell there are no scripts; everything else works.
func TestScratchImage(t *testing.T) {
	e := newEngine(t)
	c := e.start(e.buildOn("scratch"), append(confined, "--health-interval", "500ms")...)
	c.during(t, "2", func() { c.docker("kill", c.host[0]) })
	proctest.Until(t, "the container to be healthy", func() bool {
		return e.docker("inspect", "-f", "{{.State.Health.Status}}", c.relay) == "healthy"
	})
	if out := e.docker("exec", c.relay, "/usr/local/bin/understudy", "status"); !strings.Contains(out, "host2:8000") {
		t.Errorf("status says %s", out)
	}
	if out, err := e.try("exec", c.relay, "/bin/sh", "-c", "true"); err == nil {
		t.Errorf("there is a shell: %s", out)
	}
	if out := e.docker("cp", c.relay+":/etc/ssl/certs/ca-certificates.crt", "-"); !strings.Contains(out, strings.TrimSpace(authorities)) {
		t.Errorf("there are no authorities: %s", out)
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
	if out, err := compose("config", "-q"); err != nil {
		t.Fatalf("config: %v\n%s", err, out)
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
	if out, err := compose("exec", "-T", "understudy", "understudy", "status"); err != nil || !strings.Contains(out, "host2:8000") {
		t.Errorf("status: %v\n%s", err, out)
	}
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
