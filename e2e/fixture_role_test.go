//go:build linux

package e2e

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/control"
	"understudy/internal/proctest"
)

// rolePassword is that of the user monitor, who asks for the role.
const rolePassword = "secret of the roles"

// watched is the program in front of databases that it asks for their role.
type watched struct {
	*proctest.Understudy
	t            *testing.T
	addr, socket string
	password     string // file
	client       *control.Client
}

// watch starts the program with a role check in front of servers. It does not wait for
// a primary. A check has 3 s, so that a busy machine is no failure of a host.
func watch(t *testing.T, protocol string, servers []*database, env []string, args ...string) *watched {
	t.Helper()
	w := &watched{t: t, addr: freeAddr(t), socket: socketPath(t), password: filepath.Join(t.TempDir(), "password")}
	w.client = control.NewClient(w.socket)
	private(t, w.password, rolePassword+"\n", false)
	var hosts []string
	for _, d := range servers {
		hosts = append(hosts, d.addr())
	}
	w.Understudy = proctest.StartCommand(t, proctest.BinaryCommand(program(t), append([]string{"CONTROL=" + w.socket}, env...),
		append([]string{"--bind", w.addr, "--hosts", strings.Join(hosts, ","), "--hold", "60s", "--interval", "250ms", "--timeout", "3s",
			"--role", protocol, "--role-user", "monitor", "--role-password-file", w.password}, args...)...))
	w.Until("it answers", func() bool { _, err := w.client.Status(t.Context()); return err == nil })
	return w
}

// now is the status of the relay.
func (w *watched) now() control.RelayStatus {
	w.t.Helper()
	s, err := w.client.Status(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return s.Relays[0]
}

// host is the status of a host.
func (w *watched) host(d *database) control.Host {
	w.t.Helper()
	hosts := w.now().Hosts
	i := slices.IndexFunc(hosts, func(h control.Host) bool { return h.Name == d.addr() })
	if i < 0 {
		w.t.Fatalf("the status does not list %s", d.name)
	}
	return hosts[i]
}

// awaitPrimary waits until clients are connected to d, in an epoch.
func (w *watched) awaitPrimary(d *database, epoch uint64) {
	w.t.Helper()
	w.Until(d.name+" is primary", func() bool { return w.now().Primary == d.addr() })
	w.wantPrimary(d, epoch)
}

// wantPrimary checks that clients are connected to d, in an epoch.
func (w *watched) wantPrimary(d *database, epoch uint64) {
	w.t.Helper()
	if now := w.now(); now.Primary != d.addr() || now.Epoch != epoch {
		w.t.Errorf("%q is primary in epoch %d, want %s (%s) in epoch %d: %s", now.Primary, now.Epoch, d.addr(), d.name, epoch, now.Why)
	}
}

// awaitUp waits until servers are up.
func (w *watched) awaitUp(servers ...*database) {
	w.t.Helper()
	for _, d := range servers {
		w.Until(d.name+" is up", func() bool { return w.host(d).State == "up" })
	}
}

// awaitWhy waits until the sentence about a host has a text.
func (w *watched) awaitWhy(d *database, text string) {
	w.t.Helper()
	why := ""
	defer func() {
		if w.t.Failed() {
			w.t.Logf("about %s it says: %s", d.name, why)
		}
	}()
	w.Until("why says of "+d.name+": "+text, func() bool { why = w.host(d).Why; return strings.Contains(why, text) })
}

// advises checks what the command why says to do about a host; a text that is empty
// means nothing.
func (w *watched) advises(d *database, text string) {
	w.t.Helper()
	out, err := exec.CommandContext(w.t.Context(), program(w.t), "why", d.addr(), "--control", w.socket).CombinedOutput()
	said := strings.Join(strings.Fields(string(out)), " ")
	if err != nil || (text == "") == strings.Contains(said, "do this:") || !strings.Contains(said, text) {
		w.t.Errorf("why of %s: %v, %s; want the advice %q", d.name, err, said, text)
	}
}

// last is the record of the last election, which has ended.
func (w *watched) last() (last control.Event) {
	w.t.Helper()
	w.Until("the election has ended", func() bool {
		all, err := w.client.Events(w.t.Context(), "")
		if err != nil {
			w.t.Fatal(err)
		}
		last = all[len(all)-1]
		return last.Outcome != "under way"
	})
	return last
}

// checks is the number of role checks of a server so far; with outcomes, of those.
func (w *watched) checks(d *database, outcomes ...string) (n int) {
	w.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", w.socket)
	}}}
	request, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, "http://understudy/metrics", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	answer, err := client.Do(request)
	if err != nil {
		w.t.Fatal(err)
	}
	defer answer.Body.Close()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		line := lines.Text()
		if !strings.HasPrefix(line, "understudy_checks_total{") || !strings.Contains(line, `host="`+d.addr()+`"`) || strings.Contains(line, `check="tcp"`) {
			continue
		}
		counts := len(outcomes) == 0 || slices.ContainsFunc(outcomes, func(o string) bool { return strings.Contains(line, `outcome="`+o+`"`) })
		value, err := strconv.Atoi(line[strings.LastIndexByte(line, ' ')+1:])
		if err != nil {
			w.t.Fatal(err)
		}
		if counts {
			n += value
		}
	}
	return n
}

// goesOn waits until a server was checked for a number of times more.
func (w *watched) goesOn(d *database, times int) {
	w.t.Helper()
	before := w.checks(d)
	w.Until(strconv.Itoa(times)+" more checks of "+d.name, func() bool { return w.checks(d) >= before+times })
}

// wantTwoWriters checks that two servers are reported to be primary at once, and that
// d stays.
func (w *watched) wantTwoWriters(d *database, epoch uint64, other *database) {
	w.t.Helper()
	w.Until("two primaries are reported", func() bool { return len(w.now().Writers) == 2 })
	w.goesOn(other, 6)
	w.wantPrimary(d, epoch)
	if now := w.now(); !slices.ContainsFunc(now.Warnings, func(text string) bool {
		return strings.Contains(text, "both say that they are primary") && strings.Contains(text, other.addr())
	}) {
		w.t.Errorf("no warning of two primaries: %q", now.Warnings)
	}
	if countLog(w.Understudy, "two hosts say that they are primary") == 0 {
		w.t.Error("the log has no line about two primaries")
	}
}

// wantNoPrimary checks that there is no primary although a server says that it is one:
// what was written to the last primary is missing there.
func (w *watched) wantNoPrimary(other *database) {
	w.t.Helper()
	w.Until("the primary is lost", func() bool { return w.now().Primary == "" })
	w.goesOn(other, 10)
	if now := w.now(); now.Primary != "" {
		w.t.Errorf("%q is primary, want none: %s", now.Primary, now.Why)
	}
}

// wantLoss checks what the last election was predicted to lose: at least and at most so
// many bytes.
func (w *watched) wantLoss(d *database, least, most uint64) {
	w.t.Helper()
	e := w.last()
	if e.Event != "failover" || e.New != d.addr() || e.Loss == nil || e.Loss.Host != d.addr() || e.Loss.Bytes == nil {
		w.t.Errorf("the last election: %+v with the loss %+v, want a failover to %s with the bytes it lacked", e.Incident, e.Loss, d.name)
		return
	}
	if *e.Loss.Bytes < least || *e.Loss.Bytes > most {
		w.t.Errorf("%d bytes were predicted to be lost, want %d to %d", *e.Loss.Bytes, least, most)
	}
}

// wantFollowed checks that a server that somebody else promoted got clients after a few
// checks had found that: the first that said so, those under way beside it, and one that
// verified it. The figure is none of the machine's speed.
func (w *watched) wantFollowed(d *database, before int, since time.Time) {
	w.t.Helper()
	n := w.checks(d, "passed") - before
	w.t.Logf("promoted by somebody else: followed after %d checks that say so, %v after the promotion", n, time.Since(since).Round(time.Millisecond))
	if n < 1 || n > 6 {
		w.t.Errorf("%d checks said that %s is primary before clients were connected to it, want 1 to 6", n, d.name)
	}
}

// wantPromotedByHand checks what happens when somebody promotes b while the primary a is
// paused: clients follow, for which served waits; a, which then says primary too, is an alarm and gets no client;
// and it is not elected when b dies.
func (w *watched) wantPromotedByHand(a, b *database, promote, served func()) {
	w.t.Helper()
	before := w.checks(b, "passed")
	promote()
	promoted := time.Now()
	w.Until(b.name+" is primary", func() bool { return w.now().Primary == b.addr() })
	w.wantFollowed(b, before, promoted)
	served()
	epoch := w.now().Epoch
	a.resume()
	w.wantTwoWriters(b, epoch, a)
	b.kill()
	w.wantNoPrimary(a)
	w.awaitWhy(a, "it says primary beside "+b.addr())
}
