//go:build linux

package e2e

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/control"
	"understudy/failover"
	"understudy/internal/proctest"
)

// Every verb is used while a hundred clients come each second, and none of them
// is lost.
func TestEveryVerb(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	dir := t.TempDir()
	slow, dry := filepath.Join(dir, "slow"), filepath.Join(dir, "dry")
	// While the file is there b's check takes long and fails.
	check := script(t, `if [ -e `+slow+` ] && [ "$1" = `+o.b.Addr()+` ]; then sleep 1.5; exit 1; fi`+"\n")
	trigger := script(t, `if [ -n "$UNDERSTUDY_DRY_RUN" ]; then echo "$UNDERSTUDY_DRY_RUN $UNDERSTUDY_EVENT $UNDERSTUDY_EPOCH $1" >>`+dry+`; exit; fi`+"\n"+recording(o.record))
	o.begin("--check-host", check, "--check-interval", "300ms", "--on-failover", trigger)
	a, b := o.a.Addr(), o.b.Addr()
	load := o.load()
	follower := o.command("events", "--follow", "--json")
	watcher := o.command("status", "--watch")

	// Queries.
	o.want(0, words("status"), o.relay()+`: serving$`, `listen +`+o.addr+`$`, `primary +`+a+` for `, `epoch +1 `, `clients +\d+ live, \d+ waiting; [1-9]\d* accepted`,
		`^\* 1 `+a+` +up .*primary`, `^  2 `+b+` +up `)
	var status control.Status
	unmarshal(t, o.want(0, words("status --json")).out, &status)
	if status.PID != o.PID() || len(status.Relays) != 1 || status.Relays[0].Primary != a || len(status.Relays[0].Hosts) != 2 {
		t.Errorf("status --json: %+v", status)
	}
	o.want(0, words("why"), `^`+a+` has been primary for \S+ \(start: first usable host at the start\)$`,
		`^  `+b+` is a usable standby: `+a+` is primary and up`, `^  tcp +up +.*passed +\S+ +\S+ +ok$`, `^  check-host +up `)
	o.want(0, []string{"why", b}, `\A`+b+` is a usable standby`)
	o.want(1, words("why nowhere:1"), `has no host "nowhere:1": its hosts are `+a+", "+b)
	o.want(0, words("predict"), `^PRIMARY IS +TRAFFIC +DETECT`, `^refused +yes `, `^silent +no `, `^hung +no `, `^refused, with traffic: detect: 3 × fast-interval 100ms`)
	var prediction failover.Prediction
	unmarshal(t, o.want(0, words("predict --json")).out, &prediction)
	if len(prediction.Cases) != 6 || prediction.Cases[0].TotalSeconds <= 0 {
		t.Errorf("predict --json: %+v", prediction)
	}
	o.want(0, words("predict --port 1 --hosts h:1 --hold 0"), `^refused +no `, `^(?i)warning:? only one host: failover is impossible`, `^(?i)warning:? hold 0`)
	o.want(0, []string{"check", "--bind", o.addr, "--hosts", a + "," + b, "--check-host", check},
		`^listen `+o.addr+` +ok +served by the understudy that is running$`, `^`+a+` tcp +ok`, `^`+b+` check-host +ok`, `^control socket .* ok +.*pid `+fmt.Sprint(o.PID()))
	o.want(0, []string{"config", "--bind", o.addr, "--hosts", a}, `^hosts +`+a+` `, `^control +`+o.socket+` +.*CONTROL`)
	o.want(0, words("events"), `^#1 .* `+o.relay()+`: start, epoch 1, open$`, `why +first usable host at the start$`)

	// A drill changes nothing.
	o.want(0, words("drill"), `^good: `+b+` would take over from `+a+`$`, `^  `+b+` +tcp +ok `, `^  `+b+` +check-host +ok `, `takes \S+ at worst$`)
	if len(lines(dry)) != 0 {
		t.Error("a drill without --triggers ran the trigger")
	}
	o.want(0, words("drill --triggers"), `^good: `+b, trigger+` +ok `)
	if got := lines(dry); len(got) != 1 || got[0] != "1 failover 2 "+b {
		t.Errorf("in the drill the trigger recorded %q", got)
	}
	o.want(0, []string{"drill", b, "--json"}, `"candidate": "`+b+`"`, `"ok": true`)
	o.want(0, []string{"drill", "--without", b}, `^good: `+b+` is not primary: nothing would change, `+a+` stays$`, `^  `+a+` +tcp +ok `)
	o.want(1, []string{"drill", a}, `is primary already`)
	o.want(0, words("status"), `the last good one was \S+ ago$`)
	if !regexp.MustCompile(` drill: relay=\S+ host=` + a + ` candidate=` + b + ` good=true by="?[^" ]`).MatchString(o.Log()) {
		t.Errorf("the log does not say who ordered the drill:\n%s", o.Log())
	}
	o.wantPrimary(o.a, 1)
	o.wantTriggers(o.started())
	o.more(load)

	// Switches.
	o.want(0, []string{"switch", b, "--reason", "new disk"}, `^`+b+` is primary \(epoch 2\), after .*; `+o.named()+`$`)
	o.wantPrimary(o.b, 2)
	o.more(load)
	o.want(1, []string{"switch", b}, `^understudy: switch: `+b+`: it is primary already$`)
	o.want(1, words("switch nowhere:1"), `has no host "nowhere:1": its hosts are `)
	o.want(0, []string{"switch", a, "--drain", "1s"}, `^`+a+` is primary \(epoch 3\), after `)
	o.wantPrimary(o.a, 3)
	o.more(load)

	// A switch that is refused: no client waits while b is checked, however long
	// that takes.
	if err := os.WriteFile(slow, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	requested := time.Now()
	o.want(1, []string{"switch", b}, `^understudy: switch: `+b+`: check-host: script `+check+`: exit status 1$`)
	answered := time.Now()
	if err := os.Remove(slow); err != nil {
		t.Fatal(err)
	}
	o.b.Kill()
	o.want(1, []string{"switch", b}, `^understudy: switch: `+b+`: tcp: .*refused`)
	o.want(1, words("drill 2"), `^bad: `+b+` would not take over from `+a+`: tcp: .*refused$`, `^  `+b+` +tcp +failed `)
	o.want(1, words("drill"), `^bad: no host would take over from `+a, `not `+b+`: tcp: .*refused`)
	o.want(0, []string{"check", "--bind", o.addr, "--hosts", a + "," + b}, `^`+b+` tcp +warning +\S+ +connect: .*refused`)
	o.awaitDown(o.b)
	o.want(1, []string{"drain", a}, `^understudy: drain: .*every other host is down or drained`)
	o.wantPrimary(o.a, 3)
	o.b.Restart()
	o.awaitUp(o.b)
	o.more(load)

	// Locks.
	o.want(0, []string{"drain", a, "--reason", "more memory"}, `^`+a+` is drained until .ready.; `+o.named()+`$`)
	o.wantPrimary(o.b, 4)
	o.want(0, words("status"), `^  1 `+a+` +up .* drained .*: more memory$`)
	o.want(0, []string{"why", a}, `\A`+a+` is not elected: it is drained by .*more memory`)
	o.want(1, []string{"switch", a}, `^understudy: switch: `+a+`: it is drained$`)
	o.want(1, words("drill"), `^bad: `, `not `+a+`: drained`)
	o.want(0, []string{"ready", a}, `^`+a+` takes part in elections; `+o.named()+`$`)
	o.want(0, words("freeze --for 1h --reason audit"), `^frozen: no failover until \d{4}-`)
	o.want(0, words("status"), `(?i)frozen .*until .*: audit$`)
	o.want(0, words("why"), `frozen .*audit`)
	o.want(1, words("drill"), `no host would take over: the relay is frozen`)
	o.want(0, []string{"switch", a}, `is primary \(epoch 5\)`) // an explicit switch is allowed
	o.want(0, words("unfreeze"), `^not frozen; `+o.named()+`$`)
	o.wantPrimary(o.a, 5)

	// Usage errors.
	o.want(2, words("switch"), `switch: needs HOST`)
	o.want(2, words("switch a b"), `switch: unexpected argument "b"`)
	o.want(2, []string{"switch", b, "--drain", "soon"}, `--drain: "soon" is not a duration`)
	o.want(2, words("freeze --for ever"), `--for: "ever" is not a duration`)
	o.want(2, words("status --port 1"), `--port: is not valid for status`)
	o.want(1, words("status --control /nowhere/control.sock"), `no understudy is running here: no process serves /nowhere/control.sock`)
	o.want(2, words("status --control off"), `is off`)
	o.want(1, words("freeze --relay other"), `there is no relay "other": there is `+o.relay())
	for _, v := range words("status why switch drain ready freeze unfreeze drill predict events check config") {
		o.want(0, []string{v, "--help"}, `^Usage:`, v)
	}

	// The record.
	o.more(load)
	o.want(0, words("events"), `^#\d+ .* `+o.relay()+`: switchover, epoch 2, open$`, a+` → `+b+`$`, `why +switch by .*: new disk$`,
		`^#\d+ .* `+o.relay()+`: drill, done$`, `result +`+b+` would take over from `+a+`$`, `why +drain by .*: more memory$`, `why +freeze by .*: audit$`,
		`trigger `+trigger+`.*exit status 0`, `s +first byte$`)
	var list []failover.Incident
	unmarshal(t, o.want(0, words("events --json")).out, &list)
	list = slices.DeleteFunc(list, func(i failover.Incident) bool { return i.Order != nil })
	if len(list) != 5 {
		t.Fatalf("%d elections, want the start and four switchovers", len(list))
	}
	var reported []failover.Incident
	o.Until("the follower has seen all", func() bool {
		reported = reported[:0]
		for line := range strings.Lines(follower.Stdout()) {
			var i failover.Incident
			if json.Unmarshal([]byte(line), &i) == nil && i.Order == nil {
				reported = append(reported, i)
			}
		}
		return len(reported) >= len(list)
	})
	for n, i := range reported {
		if i.ID != list[n].ID || i.Epoch != uint64(n+1) || i.Outcome != failover.Open || !i.Done || i.FirstByte.Before(i.Opened) || i.ClientsLost != 0 {
			t.Errorf("incident %d: %+v, want it open, done, with a first byte, and the same in both lists", n+1, i)
		}
	}
	o.Until("the watcher has seen some of it", func() bool { return strings.Count(watcher.Stdout(), o.relay()+": serving\n") >= 3 })
	for name, u := range map[string]*proctest.Understudy{"events --follow": follower, "status --watch": watcher} {
		u.Signal(syscall.SIGINT)
		if code := u.Exit(); code != 0 || u.Log() != "" || strings.Contains(u.Stdout(), "\x1b") {
			t.Errorf("%s ends with %d after an interrupt, want 0 and nothing but its output", name, code)
		}
	}

	report := load.Stop()
	t.Log(report)
	wantNoneLost(t, report)
	if took := slowest(report, requested, answered); took > time.Second+report.Stall {
		t.Errorf("a client waited %v while a switch was refused, which took %v", took, answered.Sub(requested))
	}
	o.wantTriggers(o.started(), o.switched(2, a, b), o.switched(3, b, a), o.switched(4, a, b), o.switched(5, b, a))
	o.lookAgain("a")
	o.end()
	for _, left := range []string{o.socket, o.socket + ".lock"} {
		if _, err := os.Lstat(left); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left after the end: %v", left, err)
		}
	}
}

// stamper is a host in this process that records when the kernel received the
// bytes sent to it. A client that sends "send 1s" gets bytes for that long, and
// their sum.
type stamper struct {
	t          *testing.T
	name, addr string

	mu          sync.Mutex // guards the following
	first, last time.Time  // a byte came
	unstamped   int        // reads without a time stamp of the kernel
}

// awaitStamps makes the kernel time-stamp packets until the end of the test.
// The kernel begins a while after the request, on a busy machine a long while.
func awaitStamps(t *testing.T) {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	raw, err := conn.SyscallConn()
	if err == nil {
		err2 := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) })
		err = errors.Join(err, err2)
	}
	if err != nil {
		t.Fatalf("time stamps: %v", err)
	}
	buf, oob := make([]byte, 1), make([]byte, 128)
	proctest.Until(t, "packets have their time", func() bool {
		if _, err := conn.WriteTo(buf, conn.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		_, n, _, _, err := conn.ReadMsgUDP(buf, oob)
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	})
}

func newStamper(t *testing.T, name string) *stamper {
	t.Helper()
	awaitStamps(t)
	listener := listen(t)
	s := &stamper{t: t, name: name, addr: listener.Addr().String()}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go s.serve(conn.(*net.TCPConn))
		}
	}()
	return s
}

func (s *stamper) serve(conn *net.TCPConn) {
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err == nil {
		// The time of the read is not precise enough: a goroutine can be late.
		err2 := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) })
		err = errors.Join(err, err2)
	}
	if err != nil {
		s.t.Errorf("time stamps: %v", err)
		return
	}
	if _, err := fmt.Fprintln(conn, s.name); err != nil {
		return
	}
	var output []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := s.read(raw, buf)
		if n == 0 || err != nil {
			return
		}
		if len(output) < 64 {
			output = append(output, buf[:n]...)
		}
		line, _, ended := strings.Cut(string(output), "\n")
		if text, ok := strings.CutPrefix(line, "send "); ok && ended {
			period, err := time.ParseDuration(text)
			if err != nil {
				s.t.Error(err)
			}
			sendSummed(conn, period)
			return
		}
	}
}

// read reads and records the time.
func (s *stamper) read(raw syscall.RawConn, buf []byte) (n int, err error) {
	var control [128]byte
	var controlled int
	err2 := raw.Read(func(fd uintptr) bool {
		n, controlled, _, _, err = unix.Recvmsg(int(fd), buf, control[:], 0)
		return !errors.Is(err, unix.EAGAIN)
	})
	if err = errors.Join(err, err2); err != nil || n == 0 {
		return 0, err
	}
	at := time.Time{}
	messages, _ := unix.ParseSocketControlMessage(control[:controlled])
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS {
			at = time.Unix((*unix.Timespec)(unsafe.Pointer(&m.Data[0])).Unix())
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if at.IsZero() {
		s.unstamped++
		return n, nil
	}
	if s.first.IsZero() {
		s.first = at
	}
	s.last = at
	return n, nil
}

// heard returns when the first and the last byte came.
func (s *stamper) heard() (first, last time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first, s.last
}

// sendSummed sends bytes for some time, and then their sum; see receive.
func sendSummed(conn net.Conn, period time.Duration) {
	sum := sha256.New()
	random := rand.NewChaCha8([32]byte{})
	chunk := make([]byte, sourceChunk)
	for end := time.Now().Add(period); time.Now().Before(end); time.Sleep(20 * time.Millisecond) { // the pace of a transfer
		random.Read(chunk)
		sum.Write(chunk)
		if _, err := conn.Write(chunk); err != nil {
			return
		}
	}
	conn.Write(sum.Sum(nil))
}

// write connects again and again, and writes all the time, until over is
// closed. It returns how its connections ended.
func write(addr string, over <-chan struct{}) (ends []error) {
	for {
		select {
		case <-over:
			return ends
		default:
		}
		ends = append(ends, writeOnce(addr, over))
	}
}

func writeOnce(addr string, over <-chan struct{}) error {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
		return err
	}
	for {
		if _, err := conn.Write(make([]byte, 100)); err != nil {
			return err
		}
		select {
		case <-over:
			return nil
		case <-time.After(time.Millisecond): // the pace of a writer
		}
	}
}

// A switch with --drain: transfers that end in time are whole, the others are
// reset when the time is over, and from then on not one byte gets to the old
// primary.
func TestOrderedSwitchWithDrain(t *testing.T) {
	t.Parallel()
	const drain = 2 * time.Second
	a, b := newStamper(t, "a"), newStamper(t, "b")
	socket := socketPath(t)
	o := &operated{&show{t: t, addr: freeAddr(t)}, socket, control.NewClient(socket)}
	// New clients wait for as long as the switch takes, whatever hold is.
	o.Understudy = start(t, "--bind", o.addr, "--hosts", a.addr+","+b.addr, "--control", socket, "--hold", "1s")
	o.awaitGreeting("a")
	load := o.load()

	over := make(chan struct{})
	var writers sync.WaitGroup
	ends := make([][]error, 10)
	for i := range ends {
		writers.Go(func() { ends[i] = write(o.addr, over) })
	}
	o.Until("a hears the writers", func() bool { first, _ := a.heard(); return !first.IsZero() })

	type transfer struct {
		period time.Duration
		err    error
		end    time.Time
	}
	transfers := make([]transfer, 20)
	var all sync.WaitGroup
	for i := range transfers {
		tr := &transfers[i]
		tr.period = 500 * time.Millisecond
		if i%2 == 1 {
			tr.period = 20 * time.Second
		}
		c := dial(t, o.addr)
		c.want("a\n")
		c.send("send " + tr.period.String() + "\n")
		all.Go(func() {
			tr.err = receive(c)
			tr.end = time.Now()
		})
	}
	begin := time.Now()
	o.want(0, []string{"switch", b.addr, "--drain", drain.String()}, `^`+b.addr+` is primary \(epoch 2\)`)
	took := time.Since(begin)
	all.Wait()
	if took < drain || took > drain+10*time.Second {
		t.Errorf("the switch took %v, want %v and little more", took, drain)
	}
	earliest, latest := time.Hour, time.Duration(0)
	for i, tr := range transfers {
		if tr.period < drain {
			if tr.err != nil {
				t.Errorf("transfer %d would have ended in time: %v", i, tr.err)
			}
			continue
		}
		if !errors.Is(tr.err, syscall.ECONNRESET) {
			t.Errorf("transfer %d, which is too long, ends with %v, want a reset", i, tr.err)
		}
		earliest, latest = min(earliest, tr.end.Sub(begin)), max(latest, tr.end.Sub(begin))
	}
	t.Logf("the switch took %v, the transfers that were too long were reset after %v to %v", took, earliest, latest)
	if earliest < drain || latest > drain+10*time.Second {
		t.Errorf("transfers were reset %v to %v after the order, want %v and little more", earliest, latest, drain)
	}

	report := finish(o.Understudy, load)
	t.Log(report)
	wantNoneLost(t, report)
	o.Until("b hears the writers", func() bool { first, _ := b.heard(); return !first.IsZero() })
	time.Sleep(300 * time.Millisecond) // time for bytes in flight to reach a
	close(over)
	writers.Wait()
	_, last := a.heard()
	first, _ := b.heard()
	t.Logf("the first byte got to the new primary %v after the last one to the old", first.Sub(last))
	if !first.After(last) {
		t.Errorf("the old primary was sent something %v after the first byte to the new one", last.Sub(first))
	}
	for _, s := range []*stamper{a, b} {
		s.mu.Lock()
		if s.unstamped > 0 {
			t.Errorf("%d reads of %s had no time", s.unstamped, s.name)
		}
		s.mu.Unlock()
	}
	for i, e := range ends {
		if len(e) != 2 || !errors.Is(e[0], syscall.ECONNRESET) && !errors.Is(e[0], syscall.EPIPE) || e[1] != nil {
			t.Errorf("writer %d: its connections ended so: %v, want a reset and then none", i, e)
		}
	}
	end(t, o.Understudy)
}

// The trigger of a switch fails, and the policy is to abort: the old primary
// goes on and serves the clients that came meanwhile.
func TestSwitchWhoseTriggerFails(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	trigger := script(t, recording(o.record)+`[ "$1" != `+o.b.Addr()+` ] || { sleep 0.5; echo "no such zone"; exit 3; }`)
	o.begin("--trigger-policy", "abort", "--on-failover", trigger)
	load := o.load()
	requested := time.Now()
	o.want(1, []string{"switch", o.b.Addr()}, `^understudy: switch: .*`+regexp.QuoteMeta(trigger)+`.*exit status 3.*; `+o.a.Addr()+` goes on$`)
	answered := time.Now()
	o.wantPrimary(o.a, 3)
	report := finish(o.Understudy, load)
	t.Log(report)
	wantNoneLost(t, report)
	if n := len(slices.DeleteFunc(report.Conns, func(c proctest.Conn) bool { return c.Start.Before(requested) || c.Start.After(answered) })); n == 0 {
		t.Error("no client came meanwhile")
	}
	if n := report.By()["b"]; n > 0 {
		t.Errorf("%d clients were let through to the host whose trigger failed", n)
	}
	o.wantTriggers(o.started(), o.switched(2, o.a.Addr(), o.b.Addr()), o.triggerLine("failover", 3, o.b.Addr(), o.a.Addr()))
	o.want(0, words("events"), `^#2 .* `+o.relay()+`: switchover, epoch 2, aborted$`, `^ *failed .*exit status 3\)$`, `no such zone \(exit status 3\)$`)
	o.lookAgain("a")
	o.end()
}

// F12, F30: the host that is switched to dies while its trigger runs, or hangs
// and ignores TERM, while operators give further commands. The old primary goes
// on, no trigger runs beside another one or twice, and no client is lost.
func TestNewPrimaryDiesDuringASwitch(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, does, timeout string }{
		{"slow trigger", "until [ -e %s ]; do sleep 0.05; done", "30s"},
		{"trigger ignores TERM", "trap '' TERM; while :; do sleep 0.1; done; : %s", "10s"}, // time for the verbs below
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := newOperated(t)
			dir := t.TempDir()
			runs, enough := filepath.Join(dir, "runs"), filepath.Join(dir, "enough")
			o.begin("--hold", "20s", "--trigger-timeout", tt.timeout, "--on-failover", script(t, `[ -z "$UNDERSTUDY_DRY_RUN" ] || exit 0
echo "begin $UNDERSTUDY_EPOCH $(date +%s%N)" >>`+runs+"\n"+recording(o.record)+`if [ "$1" = `+o.b.Addr()+" ]; then "+fmt.Sprintf(tt.does, enough)+`; fi
echo "end $UNDERSTUDY_EPOCH" >>`+runs+"\n"))
			a, b := o.a.Addr(), o.b.Addr()
			load := o.load()
			stop := o.bustle(nil)
			verb := o.command("switch", b)
			o.Until("the trigger runs", func() bool { return len(lines(o.record)) == 2 })
			o.want(0, words("status"), o.relay()+`: switching$`, `no primary|none`)
			o.want(0, words("why"), `\A`+b+` was elected \S+ ago and clients wait`)
			o.want(1, []string{"switch", a}, `another switchover is under way`)
			o.want(1, []string{"drain", b}, `another switchover is under way`)
			o.want(0, words("freeze --reason audit"))
			o.b.Kill()
			o.awaitDown(o.b)
			if err := os.WriteFile(enough, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if code := verb.Exit(); code != 1 || !strings.Contains(verb.Log(), a+" goes on") {
				t.Errorf("the switch ended with %d: %s", code, verb.Log())
			}
			o.wantPrimary(o.a, 3)
			stop()
			report := finish(o.Understudy, load)
			t.Log(report)
			wantNoneLost(t, report)
			if n := report.By()["b"]; n > 0 {
				t.Errorf("%d clients were let through to a host that never was primary", n)
			}
			o.wantTriggers(o.started(), o.switched(2, a, b), o.triggerLine("failover", 3, b, a))
			wantInTurn(t, lines(runs))
			o.want(0, words("unfreeze"))
			o.lookAgain("a")
			o.end()
		})
	}
}

// wantInTurn checks that no trigger began before the one before it was over, or
// had been killed, which is a second and two for TERM later.
func wantInTurn(t *testing.T, runs []string) {
	t.Helper()
	seen := map[string]bool{}
	open, since := "", int64(0)
	for _, line := range runs {
		f := strings.Fields(line)
		if f[0] == "end" {
			if f[1] != open {
				t.Errorf("a trigger of epoch %s ended in that of %s: %q", f[1], open, runs)
			}
			open = ""
			continue
		}
		var at int64
		fmt.Sscan(f[2], &at)
		if open != "" && time.Duration(at-since) < 2*time.Second {
			t.Errorf("two triggers at once: %q", runs)
		}
		if seen[f[1]] {
			t.Errorf("the trigger ran twice for epoch %s: %q", f[1], runs)
		}
		seen[f[1]], open, since = true, f[1], at
	}
}

// F12: the old primary dies in the middle of a switch: the switch is made.
func TestOldPrimaryDiesDuringASwitch(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	o.begin("--on-failover", script(t, `[ -z "$UNDERSTUDY_DRY_RUN" ] || exit 0`+"\n"+recording(o.record)+`[ "$1" != `+o.b.Addr()+` ] || sleep 0.5`))
	load := o.load()
	stop := o.bustle(nil)
	verb := o.command("switch", o.b.Addr())
	o.Until("the trigger runs", func() bool { return len(lines(o.record)) == 2 })
	o.a.Kill()
	if code := verb.Exit(); code != 0 {
		t.Errorf("the switch ended with %d: %s", code, verb.Log())
	}
	o.wantPrimary(o.b, 2)
	stop()
	report := finish(o.Understudy, load)
	t.Log(report)
	wantNoneLost(t, report)
	o.wantTriggers(o.started(), o.switched(2, o.a.Addr(), o.b.Addr()))
	o.lookAgain("b")
	o.end()
}

// TERM in the middle of a switch: the operator gets an error, the connections
// get their drain timeout, and no trigger runs any more.
func TestTermDuringASwitch(t *testing.T) {
	t.Parallel()
	o := operate(t, "--drain-timeout", "1s")
	stays := dial(t, o.addr)
	stays.want("a\n")
	verb := o.command("switch", o.b.Addr(), "--drain", "20s")
	o.Until("the switch is under way", func() bool { return o.now().State == "switching" })
	o.want(0, words("why"), `\A`+o.b.Addr()+` was elected`)
	requested := time.Now() // before, because the program may be faster than this process
	o.Signal(syscall.SIGTERM)
	if code := verb.Exit(); code != 1 || !strings.Contains(verb.Log(), "the program is ending") {
		t.Errorf("the switch ended with %d: %s", code, verb.Log())
	}
	stays.wantReset()
	if took := time.Since(requested); took < time.Second {
		t.Errorf("it was cut after %v, the drain timeout is 1s", took)
	}
	if code := o.Exit(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	wantWithin(t, "the end", time.Since(requested), 15*time.Second) // the switch may take 20s
	counts(t, o.Understudy)
	o.wantTriggers(o.started())
}

// bustle runs queries, drills and commands that are refused, all at the same
// time, and once in a while the given command. The function that it returns
// ends that.
func (o *operated) bustle(order func() error) (stop func()) {
	o.t.Helper()
	over := make(chan struct{})
	var all sync.WaitGroup
	var did atomic.Int64
	again := func(what string, do func() error) {
		all.Go(func() {
			for {
				if err := do(); err != nil {
					o.t.Errorf("%s: %v", what, err)
					return
				}
				did.Add(1)
				select {
				case <-over:
					return
				case <-time.After(30 * time.Millisecond): // the pace of a bustle
				}
			}
		})
	}
	ctx := o.t.Context()
	again("status", func() error { _, err := o.client.Status(ctx); return err })
	again("predict", func() error { _, err := o.client.Prediction(ctx, ""); return err })
	again("events", func() error { _, err := o.client.Events(ctx, ""); return err })
	again("drill", func() error {
		var r failover.DrillReport
		err := o.client.Order(ctx, "drill", control.Order{Triggers: true}, &r)
		if err != nil && (strings.Contains(err.Error(), "another drill") || strings.Contains(err.Error(), "election")) {
			return nil // the real command has priority
		}
		return err
	})
	again("switch", func() error {
		if err := o.client.Order(ctx, "switch", control.Order{Host: "nowhere:1"}, new(failover.Switched)); err == nil {
			return errors.New("to a host that does not exist")
		}
		return nil
	})
	if order != nil {
		again("order", order)
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			close(over)
			all.Wait()
			if did.Load() == 0 {
				o.t.Error("no verb was played")
			}
		})
	}
	o.t.Cleanup(stop)
	return stop
}

// F08, F10: the primary flaps while operators lock and unlock, query and drill.
// There is one switch, with failback one more, and the connections to the new
// primary do not notice that the old one returns.
func TestFlappingPrimaryWithVerbs(t *testing.T) {
	t.Parallel()
	const flaps, half = 4, 700 * time.Millisecond
	for name, args := range map[string][]string{"sticky": nil, "failback": {"--failback", "5s"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOperated(t)
			o.begin(append(args, "--interval", "200ms", "--on-failover", script(t, `[ -z "$UNDERSTUDY_DRY_RUN" ] || exit 0`+"\n"+recording(o.record)))...)
			load := o.load()
			stop := o.bustle(nil)
			o.a.Kill()
			killed := time.Now()
			o.awaitGreeting("b")
			stays := dial(t, o.addr)
			stays.want("b\n")
			a := control.Order{Host: o.a.Addr()}
			stopOrders := o.bustle(func() error {
				return errors.Join(o.order("freeze", control.Order{}), o.order("drain", a), o.order("ready", a), o.order("unfreeze", control.Order{}))
			})
			for range flaps {
				o.a.Restart()
				time.Sleep(half) // a flap is up for this long,
				o.a.Kill()
				time.Sleep(half) // and down
			}
			stopOrders()
			o.a.Restart()
			// An operator declares a ready; otherwise it would have to stay up for
			// longer, because it failed so often.
			o.want(0, []string{"ready", o.a.Addr()})
			o.awaitUp(o.a)
			stays.send("still here")
			stays.want("still here")
			o.wantTriggers(o.started(), o.failedOver())
			want, at := []string{o.started(), o.failedOver()}, "b"
			if args != nil {
				o.awaitGreeting("a")
				stays.wantReset()
				want, at = append(want, o.triggerLine("failback", 3, o.b.Addr(), o.a.Addr())), "a"
			}
			stop()
			report := finish(o.Understudy, load)
			t.Log(report)
			wantNoneLost(t, report)
			for _, c := range report.Conns {
				if c.Host == "a" && c.Start.After(killed) && args == nil {
					t.Errorf("a client that came %v after the first flap was served by a", c.Start.Sub(killed))
					break
				}
			}
			o.wantTriggers(want...)
			stays.Close()
			o.lookAgain(at)
			o.end()
		})
	}
}

// F11: the network between the program and the primary goes away and comes
// back while operators try to go back there. Until one of these switches is
// accepted, not one byte gets to the old primary.
func TestSilentNetworkWithVerbs(t *testing.T) {
	t.Parallel()
	if !isolate(t, "nft") {
		return
	}
	run(t, "nft", "add table inet fault")
	run(t, "nft", "add chain inet fault input { type filter hook input priority 0; }")
	a, b := newWitness(t, "a"), newWitness(t, "b")
	socket := socketPath(t)
	o := &operated{&show{t: t, addr: freeAddr(t), record: filepath.Join(t.TempDir(), "record")}, socket, control.NewClient(socket)}
	o.Understudy = start(t, "--bind", o.addr, "--hosts", a.addr+","+b.addr, "--control", socket)
	o.awaitGreeting("a")
	old := dial(t, o.addr)
	old.want("a\n")
	old.send("before the fault;")
	o.Until("a has heard it", func() bool { return a.text() == "before the fault;" })
	load := o.load()
	stop := o.bustle(func() error {
		return errors.Join(o.order("freeze", control.Order{ForSeconds: 0.2}), o.order("unfreeze", control.Order{}))
	})

	run(t, "nft", "add rule inet fault input tcp dport", a.port(), "drop")
	broken := time.Now()
	old.send("into the void;")
	o.want(1, []string{"switch", a.addr}) // it is primary already, or does not answer
	o.awaitGreeting("b")
	old.wantReset()
	wantWithin(t, "the end of the connections to the old primary", time.Since(broken), 10*time.Second)
	o.want(1, []string{"switch", a.addr}, `^understudy: switch: `+a.addr+`: tcp: `)
	o.want(1, []string{"drain", b.addr}, `every other host is down or drained`)
	healthy := dial(t, o.addr)
	healthy.want("b\n")
	before := a.text()
	run(t, "nft", "flush chain inet fault input")
	o.Until("a is up again", func() bool { return o.now().Hosts[0].State == "up" })
	time.Sleep(time.Second) // longer than a retransmission would take to come through
	if after := a.text(); after != before {
		t.Errorf("after the network healed the old primary heard %q", strings.TrimPrefix(after, before))
	}
	healthy.send("to the new primary;")
	o.Until("b has heard its client", func() bool { return b.text() == "to the new primary;" })
	if now := o.now(); now.Epoch != 2 {
		t.Errorf("epoch %d, want 2", now.Epoch)
	}
	stop()
	o.want(0, []string{"switch", a.addr}, `is primary \(epoch 3\)`)
	o.awaitGreeting("a")
	report := finish(o.Understudy, load)
	t.Log(report)
	for _, c := range report.Lost() {
		// Clients that a had greeted before may be reset.
		if c.Start.After(broken) {
			t.Errorf("a client that came %v after the fault: %v", c.Start.Sub(broken), c.Err)
			break
		}
	}
	end(t, o.Understudy)
}

// The relay is frozen when the primary dies: nothing switches, and clients wait
// until that is over, or the primary is back.
func TestFreeze(t *testing.T) {
	t.Parallel()
	o := operate(t, "--hold", "30s")
	o.want(0, words("freeze --reason audit"))
	load := o.load()
	o.a.Kill()
	o.WaitLog("primary is down, no failover")
	waiter := dial(t, o.addr)
	o.want(0, words("why"), `\A`+o.a.Addr()+` has been primary .* is down, and no failover happens because the relay is frozen.*audit`)
	time.Sleep(time.Second)           // long enough for several failovers
	wantElections(t, o.Understudy, 1) // the relay is frozen

	// The primary comes back by itself.
	o.a.Restart()
	waiter.want("a\n")
	waiter.Close()
	o.awaitUp(o.a)
	o.wantPrimary(o.a, 1)
	o.more(load)

	// Once more; now the primary is replaced.
	o.a.Kill()
	o.awaitDown(o.a)
	waiter = dial(t, o.addr)
	o.want(0, words("unfreeze"))
	thawed := time.Now()
	waiter.want("b\n")
	took := time.Since(thawed)
	t.Logf("served %v after the end of the freeze", took)
	wantWithin(t, "the failover after the end of the freeze", took, 10*time.Second) // the hold is 30s
	waiter.Close()
	o.wantPrimary(o.b, 2)
	report := finish(o.Understudy, load)
	t.Log(report)
	wantNoneLost(t, report)
	o.wantTriggers(o.started(), o.failedOver())
	o.lookAgain("b")
	o.end()
}

// A slow switch reports its progress and its outcome.
func TestProgressOfASwitch(t *testing.T) {
	t.Parallel()
	slow := script(t, "[ -e \"$0.slow\" ] && sleep 1.5\ntrue\n")
	o := newOperated(t)
	o.begin("--on-failover", slow)
	if err := os.WriteFile(slow+".slow", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	leaver, stayer := dial(t, o.addr), dial(t, o.addr)
	for _, c := range []client{leaver, stayer} {
		c.want("a\n")
	}
	verb := o.command("switch", "2", "--drain", "2s", "--json")
	verb.Until("it drains", func() bool { return strings.Contains(verb.Stdout(), "draining") })
	leaver.Close()
	waiter := dial(t, o.addr)
	verb.Until("the trigger runs", func() bool { return strings.Contains(verb.Stdout(), `"trigger"`) })
	if code := verb.Exit(); code != 0 {
		t.Fatalf("exit status %d: %s", code, verb.Log())
	}
	waiter.want("b\n")
	var steps []string
	in := json.NewDecoder(strings.NewReader(verb.Stdout()))
	var receipt control.SwitchAnswer
	for {
		var line struct {
			Progress *failover.Progress
			control.SwitchAnswer
		}
		if err := in.Decode(&line); err != nil {
			break
		}
		p := line.Progress
		if p == nil {
			receipt = line.SwitchAnswer
			continue
		}
		if step := string(p.Step); len(steps) == 0 || steps[len(steps)-1] != step {
			steps = append(steps, step)
		}
		if p.Step == failover.StageDraining && (p.Connections < 1 || p.Connections > 3 || p.Until.Sub(p.Since).Round(100*time.Millisecond) != 2*time.Second) || p.Step == failover.StageTrigger && p.Script != slow {
			t.Errorf("progress: %+v", *p)
		}
	}
	if text := strings.Join(steps, " "); text != "draining trigger" && text != "checking draining trigger" && text != "draining trigger opening" {
		t.Errorf("steps: %s", text)
	}
	if r := receipt; r.Host != o.b.Addr() || r.Epoch != 2 || r.Waited != 1 || r.Fence == nil || r.Fence.Finished != 1 || r.Fence.Reset != 1 || len(r.Triggers) != 1 || r.Seconds < 3.5 || r.Relay != portOf(o.addr) || !slices.Equal(r.Listen, []string{o.addr}) || r.PID != o.PID() {
		t.Errorf("receipt: %+v, %+v", r, r.Fence)
	}
	o.awaitUp(o.a)
	o.want(0, words("switch 1 --drain 1s"), `^  draining 1 connection, 1s left$`, `^  trigger `+slow+`, 1s$`,
		`^`+o.a.Addr()+` is primary \(epoch 3\), after \S+; `+o.named()+`$`,
		`^  0 clients waited; earlier connections: 0 finished, 1 reset; the drain took \S+; trigger script.sh took \S+$`)
	o.want(0, words("why 2"), `^  clients: 0 live of [1-9]\d* since the start; 0 B sent to it, \d+ B received$`)
	o.end()
}

// Two processes use the same control socket path. The first keeps it, the
// second logs that and serves its clients.
func TestControlSocketIsTaken(t *testing.T) {
	t.Parallel()
	o := operate(t)
	info, err := os.Lstat(o.socket)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket's mode is %v, want 0600", info.Mode())
	}
	addr := freeAddr(t)
	second := start(t, "--bind", addr, "--hosts", o.b.Addr(), "--control", o.socket)
	awaitGreeting(t, second, addr, "b")
	wantLog(t, second, 1, "[WARN]", "no control socket", o.socket, "another process serves it")
	o.wantPrimary(o.a, 1)
	end(t, second)
	o.wantPrimary(o.a, 1) // the end of the second took nothing away
	var status control.Status
	unmarshal(t, o.want(0, words("status --json")).out, &status)
	if status.PID != o.PID() {
		t.Errorf("process %d answers, want %d", status.PID, o.PID())
	}
	o.end()
	if _, err := os.Lstat(o.socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is there after the end: %v", err)
	}
}
