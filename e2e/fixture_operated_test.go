//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/control"
	"understudy/failover"
	"understudy/internal/proctest"
)

// operated is a show with a control socket.
type operated struct {
	*show
	socket string
	client *control.Client
}

// newOperated starts hosts a and b.
func newOperated(t *testing.T) *operated {
	t.Helper()
	socket := socketPath(t)
	return &operated{newShow(t), socket, control.NewClient(socket)}
}

// operate starts hosts a and b, and the program in front of them with args and
// a control socket, and waits until a is primary and b is up.
func operate(t *testing.T, args ...string) *operated {
	t.Helper()
	o := newOperated(t)
	o.begin(args...)
	return o
}

func (o *operated) begin(args ...string) {
	o.t.Helper()
	o.show.begin(append([]string{"--control", o.socket}, args...)...)
	o.awaitUp(o.b)
}

// socketPath is a place for a control socket. A socket's path may have 107
// bytes, which the directory of a test with a long name can exceed.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "control.sock")
}

// named is an expression for the relay as it appears in answers to commands.
func (o *operated) named() string {
	return fmt.Sprintf(`relay %s \(%s, pid %d\)`, o.relay(), o.addr, o.PID())
}

// result is the output of a command and how it ended.
type result struct {
	out, err string
	status   int
}

// command starts a verb in a process of its own.
func (o *operated) command(words ...string) *proctest.Understudy {
	o.t.Helper()
	return proctest.StartCommand(o.t, proctest.BinaryCommand(program(o.t), []string{"CONTROL=" + o.socket}, words...))
}

// run runs a verb in a process of its own, to its end.
func (o *operated) run(words ...string) result {
	o.t.Helper()
	u := o.command(words...)
	status := u.Exit()
	return result{u.Stdout(), u.Log(), status}
}

// want runs a verb and checks its exit status, and that what it prints has a
// match for each expression. Errors, and nothing else, are printed to standard
// error.
func (o *operated) want(status int, words []string, expressions ...string) result {
	o.t.Helper()
	got := o.run(words...)
	if got.status != status {
		o.t.Errorf("%q: exit status %d, want %d; it printed:\n%s%s", words, got.status, status, got.out, got.err)
	}
	inTable := words[0] == "drill" || words[0] == "check"
	if silent := got.err == ""; silent != (status == 0) && !inTable {
		o.t.Errorf("%q: exit status %d, and standard error has %q", words, got.status, got.err)
	}
	for _, e := range expressions {
		if !regexp.MustCompile("(?m)" + e).MatchString(got.out + got.err) {
			o.t.Errorf("%q: nothing matches %s in:\n%s%s", words, e, got.out, got.err)
		}
	}
	if strings.Contains(got.out+got.err, "\x1b") {
		o.t.Errorf("%q: colours in a pipe: %q", words, got.out)
	}
	return got
}

// words are those of a command line without blanks in them.
func words(text string) []string { return strings.Fields(text) }

// now is the status of the relay.
func (o *operated) now() control.RelayStatus {
	o.t.Helper()
	s, err := o.client.Status(o.t.Context())
	if err != nil {
		o.t.Fatal(err)
	}
	return s.Relays[0]
}

// hostState is the state of a host now.
func (o *operated) hostState(h *proctest.Host) string {
	o.t.Helper()
	for _, now := range o.now().Hosts {
		if now.Name == h.Addr() {
			return now.State
		}
	}
	o.t.Fatalf("the status does not list %s", h.Addr())
	return ""
}

func (o *operated) awaitUp(h *proctest.Host) {
	o.t.Helper()
	o.Until(h.Name+" is up", func() bool { return o.hostState(h) == "up" })
}

func (o *operated) awaitDown(h *proctest.Host) {
	o.t.Helper()
	o.Until(h.Name+" is down", func() bool { return o.hostState(h) == "down" })
}

// wantPrimary checks which host is primary, and in which epoch.
func (o *operated) wantPrimary(h *proctest.Host, epoch uint64) {
	o.t.Helper()
	// A client can be served a moment before the status names the host.
	o.Until("the status names a primary", func() bool { return o.now().Primary != "" })
	if now := o.now(); now.Primary != h.Addr() || now.Epoch != epoch {
		o.t.Errorf("primary is %q in epoch %d, want %s (%s) in epoch %d", now.Primary, now.Epoch, h.Addr(), h.Name, epoch)
	}
}

// load starts a hundred clients a second.
func (o *operated) load() *proctest.Load {
	o.t.Helper()
	l := proctest.StartLoad(o.t, o.addr, 100, patience)
	o.Until("clients are served", func() bool { return l.Served() >= 25 })
	return l
}

// more waits until some more clients were served.
func (o *operated) more(l *proctest.Load) {
	o.t.Helper()
	served := l.Served()
	o.Until("more clients are served", func() bool { return l.Served() >= served+10 })
}

// wantNoneLost checks that every client was served. See wantNoLoss for resets
// that do not count.
func wantNoneLost(t *testing.T, r proctest.Report) {
	t.Helper()
	lost := slices.DeleteFunc(r.Lost(), func(c proctest.Conn) bool {
		reset := errors.Is(c.Err, syscall.ECONNRESET) || errors.Is(c.Err, syscall.EPIPE)
		return reset && r.Stall > 50*time.Millisecond
	})
	if len(lost) > 0 {
		t.Errorf("%d of %d clients lost, first: %v", len(lost), len(r.Conns), lost[0].Err)
	}
	if len(r.Conns) < 100 {
		t.Errorf("only %d clients came", len(r.Conns))
	}
}

// slowest is the longest wait of a client that came in a period.
func slowest(r proctest.Report, from, to time.Time) time.Duration {
	var most time.Duration
	for _, c := range r.Conns {
		if c.Start.After(from) && c.Start.Before(to) {
			most = max(most, c.Latency)
		}
	}
	return most
}

// switched is the line that the trigger records for a planned change.
func (s *show) switched(epoch int, before, elect string) string {
	return s.triggerLine("switchover", epoch, before, elect)
}

func unmarshal(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Errorf("%v in:\n%s", err, text)
	}
}

// order gives an order over the control socket.
func (o *operated) order(verb string, order control.Order) error {
	var k failover.Lock
	return o.client.Order(o.t.Context(), verb, order, &k)
}
