//go:build linux

package e2e

import (
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/failover"
	"understudy/internal/proctest"
)

// address is how instances name a host.
func address(host string) string { return nodes[host] + ":" + hostPort }

// primary is the host that the clients of all instances are served by, and the
// other one.
func (s *site) primary() (primary, other string) {
	s.t.Helper()
	s.awaitServed("before")
	_, primary, _ = s.see("a")
	for _, name := range hostNames {
		if name != primary {
			other = name
		}
	}
	return primary, other
}

// awaitServedBy waits until the clients of some instances are served by host.
func (s *site) awaitServedBy(host string, members ...string) time.Duration {
	s.t.Helper()
	begin := time.Now()
	proctest.Until(s.t, "clients of "+strings.Join(members, ", ")+" are served by "+host, func() bool {
		for _, name := range members {
			if served, by, _ := s.see(name); served.Before(begin) || by != host {
				return false
			}
		}
		return true
	})
	return time.Since(begin)
}

// silent reports whether no client has been served for a second.
func (s *site) silent(members ...string) bool {
	for _, name := range members {
		if served, _, _ := s.see(name); time.Since(served) < time.Second {
			return false
		}
	}
	return true
}

// The primary dies; then its successor, at the same time as an instance. That takes as much
// longer as leases of the instance can last: 3 % more than a lease, and the slack of 1s.
func TestClusterPrimaryDies(t *testing.T) {
	t.Parallel()
	if !isolateSite(t) {
		return
	}
	s := newSite(t)
	first, second := s.primary()
	predicted, waits := s.members["a"].predicted(failover.Refused)
	silent := siteLease + siteLease/33 + time.Second
	if got := seconds(waits.InstanceSeconds); (got - silent).Abs() > time.Millisecond {
		t.Errorf("predicts that an instance which has died is waited for for %v, want %v", got, silent)
	}
	limit := seconds(predicted.DetectSeconds + predicted.ElectSeconds) // triggers take no time here
	s.hosts[first].kill()
	took := s.awaitServedBy(second, memberNames...)
	t.Logf("with all instances: %v", took)
	wantWithin(t, "a failover with all instances", took, limit)
	s.hosts[first].start()
	s.settled([]*member{s.members["a"], s.members["b"], s.members["c"]})
	s.hosts[second].kill()
	s.members["c"].kill()
	took = s.awaitServedBy(first, "a", "b")
	t.Logf("with an instance that died at the same time, and a lease of %v: %v", siteLease, took)
	wantWithin(t, "a failover with an instance that died at the same time", took, limit+silent)
	s.hosts[second].start()
	s.members["c"].start()
	s.awaitServed("after all")
	s.inOrder()
}

// An instance that alone cannot reach the primary changes nothing.
func TestClusterIsolatedInstance(t *testing.T) {
	t.Parallel()
	if !isolateSite(t) {
		return
	}
	s := newSite(t)
	first, _ := s.primary()
	_, before := s.inOrder()
	_, _, lostB := s.see("b")
	_, _, lostC := s.see("c")
	s.cuts(between([]string{"a"}, []string{first})...)
	proctest.Until(t, "the client of the isolated instance is not served", func() bool { return s.silent("a") })
	time.Sleep(2 * siteLease)
	s.awaitServedBy(first, "b", "c")
	for _, name := range memberNames {
		want := http.StatusOK
		if name == "a" {
			want = http.StatusServiceUnavailable
		}
		if got := s.members[name].verdict(); got != want {
			t.Errorf("the verdict of %s is %d, want %d", name, got, want)
		}
	}
	if !s.silent("a") {
		t.Error("the client of the isolated instance was served")
	}
	_, _, lateB := s.see("b")
	_, _, lateC := s.see("c")
	if lost := lateB + lateC - lostB - lostC; lost > 0 {
		t.Errorf("the clients of the other instances lost %d connections", lost)
	}
	s.cuts()
	s.awaitServedBy(first, memberNames...)
	if _, epochs := s.inOrder(); epochs != before {
		t.Errorf("%d epochs, want %d as before", epochs, before)
	}
}

// While etcd is away nobody loses a connection. A primary that dies then is not
// replaced before etcd is back, and then without anybody's help.
func TestClusterStoreAway(t *testing.T) {
	t.Parallel()
	if !isolateSite(t) {
		return
	}
	s := newSite(t)
	first, second := s.primary()
	_, before := s.inOrder()
	lost := s.lost()
	away := 4 * siteLease
	if text := os.Getenv("UNDERSTUDY_OUTAGE"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("UNDERSTUDY_OUTAGE=%q is not a duration", text)
		}
		away = d
	}
	for _, name := range storeNames {
		s.stores[name].kill()
	}
	time.Sleep(away)
	s.awaitServedBy(first, memberNames...)
	if n := s.lost() - lost; n > 0 {
		t.Errorf("clients lost %d connections while etcd was away for %v", n, away)
	}
	s.hosts[first].kill()
	proctest.Until(t, "nobody is served", func() bool { return s.silent(memberNames...) })
	time.Sleep(2 * siteLease)
	if !s.silent(memberNames...) {
		t.Error("clients are served without a primary")
	}
	for _, name := range memberNames {
		if got := s.members[name].verdict(); got != http.StatusServiceUnavailable {
			t.Errorf("the verdict of %s is %d, want %d", name, got, http.StatusServiceUnavailable)
		}
	}
	if _, epochs := s.inOrder(); epochs != before {
		t.Errorf("%d epochs, want %d: there is no agreement without etcd", epochs, before)
	}
	for _, name := range storeNames {
		s.stores[name].start()
	}
	t.Logf("after etcd was back: %v", s.awaitServedBy(second, memberNames...))
	s.inOrder()
}

// An instance that is stopped during a switch, and goes on after it, moves
// nothing to the old primary.
func TestClusterStoppedInstance(t *testing.T) {
	t.Parallel()
	if !isolateSite(t) {
		return
	}
	s := newSite(t)
	_, second := s.primary()
	s.members["a"].Signal(syscall.SIGSTOP)
	stopped := time.Now()
	if out, err := s.members["b"].ask("switch", address(second)); err != nil {
		t.Errorf("switch: %v\n%s", err, out)
	}
	s.awaitServedBy(second, "b", "c")
	t.Logf("with an instance that is stopped, and a lease of %v: %v", siteLease, time.Since(stopped))
	time.Sleep(time.Until(stopped.Add(siteLease + 2*time.Second)))
	s.members["a"].Signal(syscall.SIGCONT)
	s.awaitServedBy(second, memberNames...)
	s.inOrder()
}

// What an instance that is killed has handed to the kernel ends with it: it does
// not arrive at the old primary after the change.
func TestClusterKilledWithBytesUnderWay(t *testing.T) {
	t.Parallel()
	if !isolateSite(t) {
		return
	}
	s := newSite(t)
	first, second := s.primary()
	s.cuts(oneWay{"a", first})
	time.Sleep(500 * time.Millisecond) // the client of a sends what does not arrive
	s.members["a"].kill()
	if out, err := s.members["b"].ask("switch", address(second)); err != nil {
		t.Errorf("switch: %v\n%s", err, out)
	}
	s.awaitServedBy(second, "b", "c")
	s.cuts()
	time.Sleep(15 * time.Second) // longer than the kernel waits until it sends again
	s.members["a"].start()
	s.awaitServedBy(second, memberNames...)
	s.inOrder()
}

// An etcd that is restored from a backup, which knows less than the instances,
// is not believed.
func TestClusterRestoredBackup(t *testing.T) {
	t.Parallel()
	if !isolateSite(t) {
		return
	}
	s := newSite(t)
	_, second := s.primary()
	stop := func() {
		for _, name := range storeNames {
			s.stores[name].kill()
		}
	}
	start := func() {
		for _, name := range storeNames {
			s.stores[name].start()
		}
		s.leader()
	}
	stop()
	for _, name := range storeNames {
		if err := os.CopyFS(s.stores[name].data()+".backup", os.DirFS(s.stores[name].data())); err != nil {
			t.Fatal(err)
		}
	}
	start()
	s.awaitServed("after the backup")
	proctest.Until(t, "the switch is done", func() bool {
		out, err := s.members["b"].ask("switch", address(second))
		if err != nil {
			t.Logf("switch: %v\n%s", err, out)
		}
		return err == nil
	})
	s.awaitServedBy(second, memberNames...)
	stop()
	for _, name := range storeNames {
		data := s.stores[name].data()
		if err := os.RemoveAll(data); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(data+".backup", data); err != nil {
			t.Fatal(err)
		}
	}
	start()
	for _, name := range memberNames {
		proctest.Until(t, "status of "+name+" names the cause", func() bool {
			out, _ := s.members[name].ask("status")
			return strings.Contains(out, "gone back in time")
		})
	}
	proctest.Until(t, "nobody is served", func() bool { return s.silent(memberNames...) })
	s.inOrder()

	// docs/cluster.md, After a backup of etcd was restored.
	for _, name := range memberNames {
		s.members[name].kill()
	}
	for _, name := range memberNames {
		if err := os.RemoveAll(s.members[name].state()); err != nil {
			t.Fatal(err)
		}
		s.members[name].start()
	}
	s.awaitServed("without what the instances remembered")
}
