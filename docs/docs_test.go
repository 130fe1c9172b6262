//go:build linux

// Package docs_test keeps the pages in this directory true: it runs their
// commands as they are written, and follows their links.
package docs_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// pages are those whose commands are run. The word behind the language of a
// block determines what the test does with it:
//
//	```sh run          it is run and must succeed; run=1 wants another exit status
//	```sh start=NAME   it is a program that goes on; stop and kill end it
//	```sh file=PATH    it is a script that is written to PATH; any language does
//	```sh hand         it needs what a test has not: systemd, Docker, a package
//	```output          every line of it came from the commands before, in this
//	                   order; … stands for anything
//
// Commands that a reader need not see are in a comment that begins with run,
// start=, stop= or kill=. A page is run from its beginning to its end on a
// stage of its own; see [page.set].
var pages = []string{"quickstart.md", "operations.md", "cloudflare.md", "migrate.md"}

const (
	// onStage is set, to the path of the program, in the copy of this process
	// that runs a page.
	onStage = "UNDERSTUDY_DOCS_STAGE"

	// patience is the longest time that one block may take on a busy machine.
	patience = time.Minute
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "answer" {
		os.Exit(answer(os.Args[1:]))
	}
	flag.Parse()
	os.Exit(proctest.Main(m, nil))
}

// answer is a program of the stage: an HTTP server at an address that answers
// everything with a status and a body. It ends with its standard input.
func answer(args []string) int {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	status, err := strconv.Atoi(args[1])
	if err == nil {
		server := http.Server{Addr: args[0], ReadHeaderTimeout: patience, Handler: http.HandlerFunc(
			func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				_, _ = io.WriteString(w, strings.Join(args[2:], " "))
			})}
		err = server.ListenAndServe()
	}
	fmt.Fprintln(os.Stderr, "answer:", err)
	return 1
}

// TestPages runs the commands of every page.
func TestPages(t *testing.T) {
	for _, name := range pages {
		t.Run(name, func(t *testing.T) {
			steps, err := parse(name)
			if err != nil {
				t.Fatal(err)
			}
			if os.Getenv(onStage) != "" {
				p := &page{t: t, name: name, work: t.TempDir(), started: map[string]*process{}}
				p.set()
				p.play(steps)
				return
			}
			t.Parallel()
			enter(t)
		})
	}
}

// enter runs the calling test again, in a copy of this process that has
// processes, a network and a view of the mounts of its own, all of which end
// with it.
func enter(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root, for namespaces")
	}
	for name, from := range map[string]string{"ip": "iproute2", "bash": "bash", "curl": "curl", "haproxy": "haproxy"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIP: needs %s (apt-get install %s)", name, from)
		}
	}
	program := os.Getenv("UNDERSTUDY_PROGRAM") // built already
	if program == "" {
		program = proctest.Build(t)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent, child, _ := strings.Cut(t.Name(), "/")
	cmd := exec.Command(self, "-test.v", "-test.run=^"+parent+"$/^"+regexp.QuoteMeta(child)+"$")
	if deadline, ok := t.Deadline(); ok {
		cmd.Args = append(cmd.Args, "-test.timeout="+time.Until(deadline).String())
	}
	cmd.Env = append(os.Environ(), onStage+"="+program)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   syscall.CLONE_NEWNET | syscall.CLONE_NEWPID,
		Unshareflags: syscall.CLONE_NEWNS, // and makes every mount private
		Pdeathsig:    syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("on its stage: %v\n%s", err, out)
		return
	}
	if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skipf("SKIP: on its stage:\n%s", out)
	}
	t.Logf("on its stage:\n%s", out)
}

// TestQuickstartEditsThePackagedFile compares the lines that a new user has to
// write with the four lines of the package's file that begin with '#'.
func TestQuickstartEditsThePackagedFile(t *testing.T) {
	steps, err := parse("quickstart.md")
	if err != nil {
		t.Fatal(err)
	}
	packaged, err := os.ReadFile("../packaging/deb/understudy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for line := range strings.Lines(string(packaged)) {
		if text, found := strings.CutPrefix(line, "#"); found && (len(want) > 0 || text == "relays:\n") {
			want = append(want, text)
		}
	}
	n := slices.IndexFunc(steps, func(s step) bool { return s.do == "file" })
	if n < 0 || len(want) != 4 || steps[n].text != strings.Join(want, "") {
		t.Errorf("quickstart.md does not have these four lines of the package's file:\n%s", strings.Join(want, ""))
	}
}

// step is one thing that a page has a reader, or the test, do.
type step struct {
	line int    // where the block begins, counted from 1
	do   string // run, start, stop, kill, file, output or hand
	with string // exit status, name or path
	text string
}

var (
	fence   = regexp.MustCompile("^```([a-z]*) ?(.*)$")
	comment = regexp.MustCompile(`^<!-- (run|start|stop|kill)(?:=(\S+))?( -->)?$`)
	word    = regexp.MustCompile(`^(run|start|file|hand)(?:=(\S+))?$`)
)

// parse reads the steps of a page.
func parse(name string) ([]step, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var steps []step
	lines := strings.Split(string(text), "\n")
	for i := 0; i < len(lines); i++ {
		s, end := step{line: i + 1}, "```"
		if m := fence.FindStringSubmatch(lines[i]); m != nil {
			switch w := word.FindStringSubmatch(m[2]); {
			case m[1] == "output" && m[2] == "":
				s.do = "output"
			case w != nil:
				s.do, s.with = w[1], w[2]
			case m[2] != "" || m[1] == "sh":
				return nil, fmt.Errorf("%s:%d: says not what becomes of it: %s", name, i+1, lines[i])
			}
		} else if m := comment.FindStringSubmatch(lines[i]); m != nil {
			s.do, s.with, end = m[1], m[2], "-->"
			if m[3] != "" {
				steps = append(steps, s)
				continue
			}
		} else {
			continue
		}
		n := slices.Index(lines[i+1:], end)
		if n < 0 {
			return nil, fmt.Errorf("%s:%d: has no end", name, i+1)
		}
		s.text = strings.Join(lines[i+1:i+1+n], "\n") + "\n"
		i += n + 1
		if s.do != "" {
			steps = append(steps, s)
		}
	}
	return steps, nil
}

// page is a page that is run.
type page struct {
	t       *testing.T
	name    string
	work    string // directory of the commands
	env     []string
	last    string // what the last run printed
	started map[string]*process
}

// process is a process that a start step has started.
type process struct {
	*exec.Cmd
	out    transcript
	stdin  *os.File
	exited chan struct{}
}

// transcript is the output of a process.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (x *transcript) Write(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.text.Write(p)
}

func (x *transcript) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.text.String()
}

// names are the hosts of the pages. Those at 192.0.2 are separate machines, in
// a network namespace behind a virtual cable; hosts lists their other names.
const names = `127.0.0.1 localhost
192.0.2.1 proxy1
192.0.2.11 db1 host1
192.0.2.12 db2 host2
192.0.2.13 db3 one.example
192.0.2.14 db4 two.example
`

// set sets the stage: empty directories where services have theirs, the names
// above, and programs beside those of this machine: understudy; on HOST
// COMMAND… for a command on another machine; answer ADDR STATUS BODY… for an
// HTTP service; and await COMMAND…, which repeats a command until it succeeds.
func (p *page) set() {
	t := p.t
	t.Helper()
	bin := filepath.Join(p.work, "bin")
	p.work = filepath.Join(p.work, "work")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	etc := map[string][]byte{"hosts": []byte(names), "nsswitch.conf": []byte("hosts: files\npasswd: files\ngroup: files\n")}
	for _, name := range []string{"passwd", "group", "services", "protocols"} {
		etc[name], _ = os.ReadFile("/etc/" + name) // a machine without one does not need it here
	}
	for _, dir := range []string{"/etc", "/run", "/var/lib"} {
		err = errors.Join(err, syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"))
	}
	if err != nil {
		t.Skip("SKIP: no mounts of its own: ", err)
	}
	for name, text := range etc {
		err = errors.Join(err, os.WriteFile("/etc/"+name, text, 0o644))
	}
	scripts := map[string]string{
		"on":    `shift; exec ip netns exec machines "$@"`,
		"await": `for i in $(seq 300); do "$@" >/dev/null 2>&1 && exit 0; sleep 0.1; done; exec "$@"`,
	}
	err = errors.Join(err, os.Mkdir(bin, 0o755), os.Mkdir(p.work, 0o755), os.Mkdir("/etc/understudy", 0o755),
		os.Symlink(os.Getenv(onStage), filepath.Join(bin, "understudy")), os.Symlink(self, filepath.Join(bin, "answer")),
		os.WriteFile(filepath.Join(p.work, ".curlrc"), []byte("no-progress-meter\n"), 0o644))
	for name, text := range scripts {
		err = errors.Join(err, os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/bash\n"+text+"\n"), 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	p.env = []string{"PATH=" + bin + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "HOME=" + p.work, "LC_ALL=C.UTF-8", "TERM=dumb"}
	network := `set -e
ip link set lo up
ip netns add machines
ip link add cable type veth peer name cable netns machines
ip addr add 192.0.2.1/24 dev cable
ip link set cable up
for n in 11 12 13 14; do ip -n machines addr add 192.0.2.$n/24 dev cable; done
ip -n machines link set cable up
ip -n machines link set lo up
`
	if out, err := exec.Command("bash", "-c", network).CombinedOutput(); err != nil {
		t.Skipf("SKIP: no network of its own: %v: %s", err, out)
	}
}

// play does the steps in turn, and ends what was started.
func (p *page) play(steps []step) {
	p.t.Helper()
	failed := false
	for _, s := range steps {
		if err := p.do(s); err != nil {
			p.t.Errorf("%s:%d: %s: %v", p.name, s.line, s.do, err)
			failed = true
			if s.do != "output" { // the following steps may depend on it
				break
			}
		}
	}
	for name, c := range p.started {
		if err := p.end(name, syscall.SIGTERM); err != nil {
			p.t.Errorf("%s: at its end: %v", p.name, err)
			failed = true
		}
		if failed {
			p.t.Logf("%s printed:\n%s", name, c.out.String())
		}
	}
}

func (p *page) do(s step) error {
	switch s.do {
	case "run":
		return p.run(s.text, s.with)
	case "start":
		return p.start(s.with, s.text)
	case "stop":
		return p.end(s.with, syscall.SIGTERM)
	case "kill":
		return p.end(s.with, syscall.SIGKILL)
	case "output":
		return printed(s.text, p.last)
	case "file":
		path := s.with
		if !filepath.IsAbs(path) {
			path = filepath.Join(p.work, path)
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(s.text, "#!") {
			mode = 0o755
		}
		return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(s.text), mode))
	}
	return nil // by hand
}

func (p *page) command(ctx context.Context, text string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", text)
	cmd.Dir, cmd.Env = p.work, p.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

func (p *page) run(text, status string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := p.command(ctx, text).CombinedOutput()
	p.last = string(out)
	p.t.Logf("$ %s%s", text, out)
	var exit *exec.ExitError
	if errors.As(err, &exit) && status == strconv.Itoa(exit.ExitCode()) {
		return nil
	}
	if err == nil && status != "" && status != "0" {
		return fmt.Errorf("exit status 0, want %s", status)
	}
	return err
}

func (p *page) start(name, text string) error {
	if p.started[name] != nil {
		return fmt.Errorf("%s runs already", name)
	}
	c := &process{Cmd: p.command(context.Background(), text), exited: make(chan struct{})}
	c.Stdout, c.Stderr = &c.out, &c.out
	c.WaitDelay = time.Second // what it has started must not hang the test
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	c.Stdin, c.stdin = r, w
	err = c.Start()
	r.Close()
	if err != nil {
		w.Close()
		return err
	}
	go func() {
		_ = c.Wait() // its state has the status
		close(c.exited)
	}()
	p.started[name] = c
	return nil
}

// end ends what was started. The program itself has to end with status 0 on
// TERM.
func (p *page) end(name string, how syscall.Signal) error {
	c := p.started[name]
	if c == nil {
		return fmt.Errorf("no %s runs", name)
	}
	delete(p.started, name)
	defer c.stdin.Close()
	_ = syscall.Kill(-c.Process.Pid, how) // it may have ended
	select {
	case <-c.exited:
	case <-time.After(patience): // a deadline
		_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
		return fmt.Errorf("%s does not end", name)
	}
	if code := c.ProcessState.ExitCode(); name == "understudy" && how == syscall.SIGTERM && code != 0 {
		return fmt.Errorf("%s ended with status %d:\n%s", name, code, c.out.String())
	}
	return nil
}

// printed returns an error with the line of want that is missing in got.
func printed(want, got string) error {
	rest := strings.Split(got, "\n")
	for line := range strings.SplitSeq(want, "\n") {
		if strings.TrimSpace(line) == "" {
			continue
		}
		parts := strings.Split(strings.Join(strings.Fields(line), " "), "…")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(strings.TrimSpace(parts[i]))
		}
		pattern := regexp.MustCompile("^" + strings.Join(parts, ".*") + "$")
		n := slices.IndexFunc(rest, func(s string) bool { return pattern.MatchString(strings.Join(strings.Fields(s), " ")) })
		if n < 0 {
			return fmt.Errorf("not printed: %q", line)
		}
		rest = rest[n+1:]
	}
	return nil
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	code    = regexp.MustCompile("(?ms)^```.*?^```$")
	marks   = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// TestLinks follows every link from one file of the project to another, and
// looks for its heading.
func TestLinks(t *testing.T) {
	files, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(files, "../README.md", "../CONTRIBUTING.md") {
		for _, m := range link.FindAllStringSubmatch(prose(t, name), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, ":") {
				continue // elsewhere
			}
			path := name
			if target != "" {
				path = filepath.Join(filepath.Dir(name), target)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: %s: %v", name, m[0], err)
				continue
			}
			if anchor != "" && !slices.Contains(anchors(t, path), anchor) {
				t.Errorf("%s: %s has no heading #%s", name, path, anchor)
			}
		}
	}
}

// prose is a page without its blocks of code.
func prose(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return code.ReplaceAllString(string(text), "")
}

// anchors are the names of a page's headings, as GitHub and others make them.
func anchors(t *testing.T, name string) (all []string) {
	t.Helper()
	for _, m := range heading.FindAllStringSubmatch(prose(t, name), -1) {
		all = append(all, strings.ReplaceAll(marks.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return all
}

// The pictures of the README are there at once also where the line is slow.
func TestPicturesAreSmall(t *testing.T) {
	sum := 0
	for _, name := range []string{"page.png", "top.svg"} {
		picture, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sum += len(picture)
	}
	if sum == 0 || sum >= 200_000 {
		t.Errorf("the pictures have %d bytes, want less than 200,000", sum)
	}
}
