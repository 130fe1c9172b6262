package correlate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/failover"
	"understudy/health"
	"understudy/selector"
)

// world is the relays of a test and the detector that looks at them.
type world struct {
	t        *testing.T
	now      time.Time
	relays   []failover.Status
	detector Detector
	problems []string
	next     time.Time
}

// newWorld makes relays from lines like "orders db1:5432 db2:5432", whose hosts
// are all up, the first of them as primary for a minute.
func newWorld(t *testing.T, lines ...string) *world {
	t.Helper()
	w := &world{t: t, now: time.Now()}
	w.detector.Network = func() (problems, facts []string) { return w.problems, []string{"conntrack 12 of 65536"} }
	for _, line := range lines {
		f := strings.Fields(line)
		r := failover.Status{Relay: f[0]}
		r.Phase, r.Primary, r.Since = selector.Serving, f[1], w.now.Add(-time.Minute)
		for _, h := range f[1:] {
			r.Hosts = append(r.Hosts, selector.Host{Name: h, State: selector.Up, Checks: []selector.Record{
				{Name: "tcp", Interval: time.Second, State: selector.Up},
				{Name: "check-host", Interval: 2 * time.Second, State: selector.Up},
			}})
		}
		w.relays = append(w.relays, r)
	}
	return w
}

// record is check k of a host.
func (w *world) record(relay, host string, k int) (*selector.Host, *selector.Record) {
	w.t.Helper()
	for i := range w.relays {
		for n := range w.relays[i].Hosts {
			if h := &w.relays[i].Hosts[n]; w.relays[i].Relay == relay && h.Name == host {
				return h, &h.Checks[k]
			}
		}
	}
	w.t.Fatalf("there is no host %s of %s", host, relay)
	return nil, nil
}

// fail has check k of a host fail in a way since a moment after the beginning.
func (w *world) fail(relay, host string, k int, after time.Duration, phase health.Phase, err error) {
	w.t.Helper()
	h, r := w.record(relay, host, k)
	h.State, r.State, r.Failing = selector.Down, selector.Down, w.now.Add(after)
	r.Last = selector.CheckResult{Phase: string(phase), Err: err}
	r.Failure = r.Last
}

// pass has check k of a host pass.
func (w *world) pass(relay, host string, k int) {
	w.t.Helper()
	h, r := w.record(relay, host, k)
	h.State, r.State, r.Failing, r.Last, r.Failure = selector.Up, selector.Up, time.Time{}, selector.CheckResult{OK: true}, selector.CheckResult{}
}

// step looks at the world after some time, and returns what has changed.
func (w *world) step(after time.Duration) string {
	var said []string
	var changes []Change
	changes, w.next = w.detector.Step(w.now.Add(after), w.relays)
	for _, c := range changes {
		level := "INFO"
		if c.Begun {
			level = "WARN"
		}
		said = append(said, level+" "+c.Text)
	}
	return strings.Join(said, "\n")
}

func (w *world) want(after time.Duration, want string) {
	w.t.Helper()
	if got := w.step(after); got != want {
		w.t.Errorf("after %v: %q, want %q", after, got, want)
	}
}

func dialError(no syscall.Errno) error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", no)}
}

const ms = time.Millisecond

// All hosts of all relays stop answering within an interval: it is said once,
// with the state of the network, and that one answers again.
func TestAllAtOnce(t *testing.T) {
	w := newWorld(t, "a db1:1 db2:1", "b db3:1 db4:1", "c db5:1 db6:1")
	w.problems = []string{"link eth0 is down", "there is no default route"}
	w.want(0, "")
	for i, r := range []string{"a", "b", "c"} {
		for k := range 2 {
			w.want(time.Second, "")
			err := context.DeadlineExceeded
			if k == 1 {
				err = dialError(syscall.EHOSTUNREACH)
			}
			w.fail(r, fmt.Sprintf("db%d:1", 2*i+k+1), 0, time.Duration(2*i+k)*80*ms, health.Connect, err)
		}
	}
	const text = "all 6 hosts of 3 relays stopped answering within 0.4 s: this machine's network is the likely cause (link eth0 is down; there is no default route)"
	w.want(2*time.Second, "WARN "+text)
	o := w.detector.Findings().Outage
	if o == nil || o.Hosts != 6 || o.Relays != 3 || o.WithinSeconds != 0.4 || o.Failure != "timeout, unreachable" || o.Text != text ||
		len(o.Network) != 3 || !o.Since.Equal(w.now) {
		t.Errorf("the outage is %+v", o)
	}
	_, r := w.record("c", "db6:1", 0)
	r.Last = selector.CheckResult{Unknown: true, Err: syscall.EMFILE} // which proves nothing
	w.want(9*time.Second, "")
	w.fail("a", "db1:1", 0, 9*time.Second, health.Connect, dialError(syscall.ECONNREFUSED))
	w.want(10*time.Second, "") // said already
	w.pass("b", "db4:1", 0)
	w.want(20*time.Second, "INFO a host answers again after all had stopped answering")
	if f := w.detector.Findings(); f.Outage != nil {
		t.Errorf("the outage that is over is %+v", f.Outage)
	}
	// It fails once more, long after the others: that is its own affair.
	w.fail("b", "db4:1", 0, 40*time.Second, health.Connect, context.DeadlineExceeded)
	w.want(41*time.Second, "")
}

func TestWhatIsNotAllAtOnce(t *testing.T) {
	timeout := context.DeadlineExceeded
	for _, tt := range []struct {
		name string
		play func(w *world)
	}{
		{"another relay's host answers", func(w *world) {
			w.fail("a", "db1:1", 0, 0, health.Connect, timeout)
			w.fail("a", "db2:1", 0, 0, health.Connect, timeout)
			w.fail("b", "db3:1", 0, 0, health.Connect, timeout)
		}},
		{"seconds apart", func(w *world) {
			w.fail("a", "db1:1", 0, 0, health.Connect, timeout)
			w.fail("a", "db2:1", 0, 0, health.Connect, timeout)
			w.fail("b", "db3:1", 0, 2*time.Second, health.Connect, timeout)
			w.fail("b", "db4:1", 0, 2*time.Second, health.Connect, timeout)
		}},
		{"in different ways", func(w *world) {
			w.fail("a", "db1:1", 0, 0, health.Connect, timeout)
			w.fail("a", "db2:1", 0, 0, health.Connect, timeout)
			w.fail("b", "db3:1", 0, 0, health.Connect, timeout)
			w.fail("b", "db4:1", 0, 0, health.Connect, dialError(syscall.ECONNREFUSED))
		}},
		{"one is only suspected", func(w *world) {
			for _, h := range []string{"a db1:1", "a db2:1", "b db3:1", "b db4:1"} {
				relay, host, _ := strings.Cut(h, " ")
				w.fail(relay, host, 0, 0, health.Connect, timeout)
			}
			h, r := w.record("b", "db4:1", 0)
			h.State, r.State = selector.Up, selector.Up
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, "a db1:1 db2:1", "b db3:1 db4:1")
			w.want(0, "")
			tt.play(w)
			w.want(5*time.Second, "")
		})
	}

	w := newWorld(t, "a db1:1") // the only host there is
	w.want(0, "")
	w.fail("a", "db1:1", 0, 0, health.Connect, timeout)
	w.want(5*time.Second, "")

	w = newWorld(t, "a db1:1 db2:1") // services that have not been started yet
	w.fail("a", "db1:1", 0, 0, health.Connect, dialError(syscall.ECONNREFUSED))
	w.fail("a", "db2:1", 0, 0, health.Connect, dialError(syscall.ECONNREFUSED))
	w.want(5*time.Second, "")
}

// The cause that is named is one that fits.
func TestCauses(t *testing.T) {
	const one, two = "a db1:1 db2:1", "all 2 hosts of 1 relay stopped answering within 0.1 s: "
	for _, tt := range []struct {
		name  string
		hosts string
		check int
		phase health.Phase
		err   error
		want  string
	}{
		{"this machine's firewall", one, 0, health.Connect, dialError(syscall.EPERM), two + "this machine's firewall is the likely cause"},
		{"no route", one, 0, health.Connect, dialError(syscall.ENETUNREACH), two + "this machine's network is the likely cause"},
		{"no address to connect from", one, 0, health.Connect, errors.New("no address"), two + "this machine's network is the likely cause"},
		{"a check that did not end", one, 0, "", errors.New("overdue"), two + "this machine's network is the likely cause"},
		{"refused", one, 0, health.Connect, dialError(syscall.ECONNREFUSED), two + "something that they have in common is the likely cause, and not one host"},
		{"reset", one, 0, health.Read, dialError(syscall.ECONNRESET), two + "something that they have in common is the likely cause, and not one host"},
		{"refused here", "a 127.0.0.1:1 [::1]:2", 0, health.Connect, dialError(syscall.ECONNREFUSED), two + "this machine is the likely cause: they are all on it"},
		{"silent here", "a 127.0.0.1:1 127.0.0.1:2", 0, health.Connect, context.DeadlineExceeded, two + "this machine's network is the likely cause"},
		{"one machine", "a db1:1 DB1.:2", 0, health.Connect, context.DeadlineExceeded, two + "they are all on db1, which is the likely cause, or the way there"},
		{"names", one, 0, health.Resolve, errors.New("no such host"), two + "the name servers, or the way to them, are the likely cause"},
		{"scripts", one, 1, health.Script, errors.New("exit status 1"), two + "what the check check-host depends on is the likely cause"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.hosts)
			w.want(0, "")
			for i, h := range w.relays[0].Hosts {
				w.fail("a", h.Name, tt.check, time.Duration(i)*100*ms, tt.phase, tt.err)
			}
			w.want(time.Second, "WARN "+tt.want)
		})
	}
}

// A host that has been down for long is no reason to say nothing when all others
// stop; and when nothing ever answered, nothing stopped.
func TestHostsThatWereDownBefore(t *testing.T) {
	w := newWorld(t, "a db1:1 db2:1", "b db3:1 db4:1")
	w.want(0, "")
	w.fail("a", "db2:1", 0, -time.Hour, health.Connect, dialError(syscall.ECONNREFUSED))
	w.want(0, "")
	for _, h := range []string{"a db1:1", "b db3:1", "b db4:1"} {
		relay, host, _ := strings.Cut(h, " ")
		w.fail(relay, host, 0, 0, health.Connect, context.DeadlineExceeded)
	}
	w.want(time.Second, "WARN all 3 hosts of 2 relays that still answered stopped answering within 0.0 s: this machine's network is the likely cause")
	w.relays = nil
	w.want(2*time.Second, "INFO the hosts that had stopped answering are not configured any more")

	w = newWorld(t, "a db1:1 db2:1")
	w.fail("a", "db1:1", 0, 0, health.Connect, dialError(syscall.ENETUNREACH))
	w.fail("a", "db2:1", 0, 0, health.Connect, dialError(syscall.ENETUNREACH))
	w.want(time.Second, "WARN all 2 hosts of 1 relay failed within 0.0 s: this machine's network is the likely cause")
}

// Two relays of the same machines have different primaries: a warning that names
// both, once for each change, until they agree.
func TestRelaysDisagree(t *testing.T) {
	w := newWorld(t, "a db1:5432 db2:5432", "b db2:6432 db1:6432", "c db3:1 db1:1")
	primary := func(relay int, host string, after time.Duration) {
		r := &w.relays[relay]
		r.Phase, r.Primary, r.Since = selector.Serving, host, w.now.Add(after)
		if host == "" {
			r.Phase = selector.Selecting
		}
	}
	const text = "relays a and b have the same machines as hosts and disagree about the primary: a has db1:5432, b has db2:6432"
	w.want(0, "WARN "+text)
	w.want(time.Second, "")
	if d := w.detector.Findings().Disagreements; len(d) != 1 || d[0].Text != text || len(d[0].Primaries) != 2 || d[0].Primaries[1] != (PrimaryOfRelay{"b", "db2:6432"}) {
		t.Errorf("the disagreements are %+v", d)
	}
	primary(1, "", time.Second) // an election proves nothing
	w.want(2*time.Second, "")
	primary(1, "db1:6432", 3*time.Second)
	w.want(5*time.Second, "")
	if at := w.now.Add(6 * time.Second); !w.next.Equal(at) {
		t.Errorf("the next look is %v after, want 6s", w.next.Sub(w.now))
	}
	w.want(6*time.Second, "INFO relays agree about the primary again")
	primary(0, "db2:5432", 10*time.Second)
	primary(1, "db2:6432", 11*time.Second) // both follow the same failover
	w.want(13*time.Second, "")
	w.want(20*time.Second, "")
	primary(1, "db1:6432", 30*time.Second)
	w.want(33*time.Second, "WARN relays a and b have the same machines as hosts and disagree about the primary: a has db2:5432, b has db1:6432")
	w.relays = w.relays[:1]
	w.want(40*time.Second, "INFO the relays that disagreed about the primary have other hosts now")
	if d := w.detector.Findings().Disagreements; len(d) != 0 {
		t.Errorf("the disagreements are %+v", d)
	}
}

// Relays whose hosts are not the same machines have nothing to agree about, nor
// have those whose hosts have no name.
func TestRelaysThatNeedNotAgree(t *testing.T) {
	for _, lines := range [][]string{
		{"a db1:1 db2:1", "b db2:1 db3:1"},
		{"a db1:1 db2:1", "b db2:1 db1:1 db3:1"},
		{"a db1:1 db1:2", "b db1:3 db1:4"},
		{"a unix:/a unix:/b", "b unix:/b unix:/a"},
	} {
		w := newWorld(t, lines...)
		w.want(time.Hour, "")
	}
}
