//go:build linux

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// scriptsPage explains how the scripts for databases are used; its blocks are
// run here, and the scripts are the files that it shows.
const (
	scriptsPage = "../docs/scripts.md"
	scriptsDir  = "../packaging/examples/scripts"

	// databasesPage has commands for a database, from nothing to a failover.
	databasesPage = "../docs/databases.md"
)

// scriptsConfig writes the configuration file that the page has for a
// database, with changes like those of recipe, and returns its path.
func scriptsConfig(t *testing.T, name string, changes ...string) string {
	t.Helper()
	dir, err := filepath.Abs(scriptsDir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	text := blocks(t)[name]
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(text, changes[i]) {
			t.Fatalf("%s in %s has no %q", name, scriptsPage, changes[i])
		}
	}
	text = strings.NewReplacer(append(changes, "/etc/understudy/", dir+"/")...).Replace(text)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// blocks returns the named blocks of the page with their contents.
func blocks(t *testing.T) map[string]string {
	t.Helper()
	page, err := os.ReadFile(scriptsPage)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, rest := range strings.Split(string(page), "<!-- file: ")[1:] {
		name, rest, _ := strings.Cut(rest, " -->\n```")
		_, rest, _ = strings.Cut(rest, "\n")
		text, _, closed := strings.Cut(rest, "\n```\n")
		if !closed {
			t.Fatalf("the block %s of %s does not end", name, scriptsPage)
		}
		found[name] = text + "\n"
	}
	return found
}

// nobody is the user that runs the database servers when the tests run as root,
// because some servers refuse root.
const nobody = 65534

// uidOfDatabases is the user that runs the servers.
func uidOfDatabases() int {
	if os.Getuid() == 0 {
		return nobody
	}
	return os.Getuid()
}

// asNobody makes cmd run as the user nobody if it would run as root.
func asNobody(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return cmd
}

// databaseDir is a directory that its servers may write to, with a short
// path because of their sockets.
func databaseDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ust-db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		proctest.Until(t, "no process is left in "+dir, func() bool { return !inhabited(dir) })
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if os.Getuid() == 0 {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// inhabited reports whether a process works in a directory or below.
func inhabited(dir string) bool {
	paths, _ := filepath.Glob("/proc/[0-9]*/cwd")
	return slices.ContainsFunc(paths, func(path string) bool {
		at, err := os.Readlink(path)
		return err == nil && strings.HasPrefix(at, dir)
	})
}

// private writes a file that only its owner may read; the owner is the user
// nobody if forNobody is true.
func private(t *testing.T, path, text string, forNobody bool) {
	t.Helper()
	err := os.WriteFile(path, []byte(text), 0o600)
	if err == nil && forNobody && os.Getuid() == 0 {
		err = os.Chown(path, nobody, nobody)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// database is the server of a database that a test may kill and start again.
type database struct {
	t    *testing.T
	name string
	port int
	argv []string
	end  syscall.Signal   // ends it in order, and quickly
	asks func() *exec.Cmd // succeeds when it can be used
	own  bool             // runs as the user of the tests, not as nobody

	cmd    *exec.Cmd
	gone   chan struct{} // closed when cmd has ended
	paused bool
	log    string // path
}

// begin starts a server, which ends with the test, for the first time.
func (d *database) begin() *database {
	d.t.Helper()
	t := d.t
	t.Cleanup(func() {
		d.stop()
		if text, _ := os.ReadFile(d.log); t.Failed() {
			t.Logf("log of %s:\n%s", d.name, text)
		}
	})
	d.start()
	return d
}

func (d *database) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(d.port)) }

// start starts the server and waits until it can be used.
func (d *database) start() {
	d.t.Helper()
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command(d.argv[0], d.argv[1:]...)
	if d.own {
		d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	} else {
		asNobody(d.cmd)
	}
	d.cmd.Dir = "/"
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	gone := make(chan struct{})
	d.gone = gone
	cmd := d.cmd
	go func() {
		_ = cmd.Wait() // the test ends it by a signal
		close(gone)
	}()
	proctest.Until(d.t, d.name+" can be used", func() bool {
		select {
		case <-gone:
			d.t.Fatalf("%s ended", d.name)
		default:
		}
		return d.asks().Run() == nil
	})
}

// kill ends the server as a power cut does, all of its processes at once.
func (d *database) kill() {
	d.t.Helper()
	d.pause() // so that it does not start more of them
	for _, pid := range d.processes() {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
	<-d.gone
	d.cmd, d.paused = nil, false
}

// pause stops all processes of the server, as when its machine stands still. The kernel
// goes on accepting connections for it.
func (d *database) pause() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		d.t.Fatal(err)
	}
	for _, pid := range d.processes() {
		_ = syscall.Kill(pid, syscall.SIGSTOP) // it may have ended
	}
	d.paused = true
}

// resume undoes pause.
func (d *database) resume() {
	d.t.Helper()
	for _, pid := range d.processes() {
		_ = syscall.Kill(pid, syscall.SIGCONT) // it may have ended
	}
	d.paused = false
}

// processes lists the process of the server and those that it has started.
func (d *database) processes() []int {
	d.t.Helper()
	all := []int{d.cmd.Process.Pid}
	for _, child := range childrenOf(d.cmd.Process.Pid) {
		all = append(all, atoi(d.t, child))
	}
	return all
}

// stop ends the server, if it runs.
func (d *database) stop() {
	d.t.Helper()
	if d.cmd == nil {
		return
	}
	if d.paused {
		d.resume()
	}
	_ = d.cmd.Process.Signal(d.end)
	select {
	case <-d.gone:
	case <-time.After(20 * time.Second): // a deadline
		d.t.Errorf("%s did not end within 20s", d.name)
		d.kill()
	}
	d.cmd = nil
}

// session is a client's: it writes numbers until it cannot.
type session interface {
	write(n int) error // nil when n was acknowledged
	close()
}

// terminal is a client program of a database that runs statements from its
// standard input.
type terminal struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// newTerminal starts cmd. Errors that it prints are replies too, and wrong ones.
func newTerminal(cmd *exec.Cmd) (*terminal, error) {
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	cmd.Stderr = cmd.Stdout
	return &terminal{cmd, in, bufio.NewReader(out)}, errors.Join(err1, err2, cmd.Start())
}

// query sends a line and returns the next line of the reply.
func (s *terminal) query(statements string) (string, error) {
	if _, err := fmt.Fprintln(s.in, statements); err != nil {
		return "", err
	}
	line, err := s.out.ReadString('\n')
	return strings.TrimSpace(line), err
}

// want sends a line, which has to be replied to with n.
func (s *terminal) want(n int, statements string) error {
	line, err := s.query(statements)
	if err == nil && line != strconv.Itoa(n) {
		err = fmt.Errorf("%q is the reply to %q", line, statements)
	}
	return err
}

func (s *terminal) close() {
	s.in.Close()
	_ = s.cmd.Wait() // its output has the reason
}

// pair is the program in front of two servers of a database, with the settings
// and the scripts of the page.
type pair struct {
	*proctest.Understudy
	t            *testing.T
	a, b         *database // a is primary first
	addr, socket string
}

// newPair starts the program with the page's file for a kind of database, whose
// usual port is port, and waits until a is primary and b is up.
func newPair(t *testing.T, kind string, port int, a, b *database, env []string, args ...string) *pair {
	t.Helper()
	p := &pair{t: t, a: a, b: b, addr: freeAddr(t), socket: socketPath(t)}
	config := scriptsConfig(t, kind+".yaml", fmt.Sprintf(":%d\"", port), p.addr+"\"",
		fmt.Sprintf("db1:%d, db2:%d", port, port), a.addr()+", "+b.addr())
	p.Understudy = proctest.StartCommand(t, proctest.BinaryCommand(program(t),
		append([]string{"STATE_DIR=" + t.TempDir(), "CONTROL=" + p.socket}, env...),
		append([]string{"--config", config, "--interval", "250ms"}, args...)...))
	p.WaitLog("relay open")
	p.Until("the second server is up", func() bool { return countLog(p.Understudy, "host changed state", "host="+b.addr(), "to=up") > 0 })
	return p
}

// drill rehearses a failover with the triggers, which has to go well.
func (p *pair) drill() {
	p.t.Helper()
	if out, err := exec.Command(program(p.t), "drill", "--triggers", "--control", p.socket).CombinedOutput(); err != nil {
		p.t.Errorf("drill: %v\n%s", err, out)
	}
}

// switchTo makes a server the primary as an operator does, as soon as that is
// possible. It returns when the switch began and how long it took.
func (p *pair) switchTo(d *database) (began time.Time, took time.Duration) {
	p.t.Helper()
	p.Until("the operator can switch to "+d.name, func() bool {
		began = time.Now()
		return exec.Command(program(p.t), "switch", "--control", p.socket, d.addr()).Run() == nil
	})
	return began, time.Since(began)
}

// end checks how many elections there were and ends the program.
func (p *pair) end(want int) {
	p.t.Helper()
	wantElections(p.t, p.Understudy, want)
	end(p.t, p.Understudy)
}

// recorder writes one number after the other into a database, keeps those that
// were acknowledged, and opens a new session whenever one ends.
type recorder struct {
	stop chan struct{}
	once sync.Once
	done chan struct{}

	mu      sync.Mutex // guards what follows
	records []record
	ends    []error // of sessions
}

// record is a number that was acknowledged.
type record struct {
	n  int
	at time.Time
}

// startRecorder starts a recorder. It ends with the test.
func startRecorder(t *testing.T, open func() (session, error)) *recorder {
	t.Helper()
	r := &recorder{stop: make(chan struct{}), done: make(chan struct{})}
	go r.run(open)
	t.Cleanup(func() { r.finish() })
	return r
}

func (r *recorder) run(open func() (session, error)) {
	defer close(r.done)
	for n := 1; !r.stopped(0); n++ { // a failed write may have been stored, so its number is not used again
		s, err := open()
		for ; err == nil && !r.stopped(2*time.Millisecond); n++ { // it is no benchmark
			if err = s.write(n); err != nil {
				break
			}
			r.mu.Lock()
			r.records = append(r.records, record{n, time.Now()})
			r.mu.Unlock()
		}
		if s != nil {
			s.close()
		}
		if err != nil {
			r.mu.Lock()
			r.ends = append(r.ends, err)
			r.mu.Unlock()
		}
		r.stopped(10 * time.Millisecond)
	}
}

// stopped waits and reports whether the recorder is to end.
func (r *recorder) stopped(after time.Duration) bool {
	select {
	case <-r.stop:
		return true
	case <-time.After(after): // the pace of a recorder
		select {
		case <-r.stop:
			return true
		default:
			return false
		}
	}
}

// goesOn waits until some more numbers are acknowledged.
func (r *recorder) goesOn(u *proctest.Understudy) {
	count := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.records)
	}
	before := count()
	u.Until("more writes are acknowledged", func() bool { return count() >= before+20 })
}

// finish ends the recorder and returns what was acknowledged, and how its
// sessions ended.
func (r *recorder) finish() ([]record, []error) {
	r.once.Do(func() { close(r.stop) })
	<-r.done
	return r.records, r.ends
}

// longestGap is the longest time between two writes that were acknowledged one
// after the other, in a period.
func longestGap(records []record, from, to time.Time) (gap time.Duration) {
	for i := 1; i < len(records); i++ {
		if records[i].at.After(from) && records[i-1].at.Before(to) {
			gap = max(gap, records[i].at.Sub(records[i-1].at))
		}
	}
	return gap
}

// wantAll checks that every number that was acknowledged is there.
func wantAll(t *testing.T, records []record, there []int) {
	t.Helper()
	slices.Sort(there)
	missing := 0
	for _, rec := range records {
		if _, found := slices.BinarySearch(there, rec.n); !found {
			if missing++; missing == 1 {
				t.Errorf("number %d, acknowledged at %v, is missing", rec.n, rec.at)
			}
		}
	}
	if missing > 0 {
		t.Errorf("%d of %d acknowledged writes are missing", missing, len(records))
	}
}

// numbers reads a number from each line.
func numbers(t *testing.T, text string) (all []int) {
	t.Helper()
	for line := range strings.Lines(text) {
		n, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, n)
	}
	return all
}

// output runs a command, which has to succeed, and returns its output.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w\n%s", err, exit.Stderr)
		}
		t.Fatalf("%q: %v", cmd.Args, err)
	}
	return string(out)
}

func atoi(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
