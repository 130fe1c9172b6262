//go:build linux

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// seed returns the seed of random tests: UNDERSTUDY_SEED, or a new one.
func seed(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64N(1e6)
	if text := os.Getenv("UNDERSTUDY_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("UNDERSTUDY_SEED=%q is not a number", text)
		}
		seed = n
	}
	t.Logf("UNDERSTUDY_SEED=%d repeats these faults", seed)
	return seed
}

// mishap is one thing that is broken in a round, for a time.
type mishap struct {
	what   string
	after  time.Duration // the beginning of the round
	length time.Duration
	begin  func()
	end    func() // nil for nothing

	cuts func() []oneWay // or these ways are cut, instead of begin and end

	process string // that is killed or stopped
	stops   bool   // the process of an instance
	toHosts bool   // the way from an instance to a host is cut
}

// draw returns a random fault.
func (s *site) draw(rng *rand.Rand) mishap {
	pick := func(names []string) string { return names[rng.IntN(len(names))] }
	m := mishap{
		after:  time.Duration(rng.IntN(3000)) * time.Millisecond,
		length: time.Second + time.Duration(rng.Int64N(int64(siteLease+2*time.Second))),
	}
	switch rng.IntN(12) {
	case 0, 1, 2: // a cut between any two that have something to say to each other
		some, others := memberNames, slices.Concat(storeNames, memberNames, hostNames)
		if rng.IntN(5) == 0 {
			some, others = storeNames, storeNames
		}
		a := pick(some)
		b := pick(slices.DeleteFunc(slices.Clone(others), func(name string) bool { return name == a }))
		all := []oneWay{{a, b}, {b, a}}
		m.what, m.toHosts = "no packets between "+a+" and "+b, slices.Contains(hostNames, b)
		switch rng.IntN(3) {
		case 0:
			all, m.what = all[:1], "no packets from "+a+" to "+b
		case 1:
			all, m.what = all[1:], "no packets from "+b+" to "+a
		}
		m.cuts = func() []oneWay { return all }
	case 3:
		m.what, m.toHosts = "no packets between instances and the primary", true
		m.cuts = func() []oneWay { return between(memberNames, []string{s.elected()}) }
	case 4:
		m.what = "no packets between instances and etcd"
		m.cuts = func() []oneWay { return between(memberNames, storeNames) }
	case 5:
		name := pick(memberNames)
		m.what = "no packets between " + name + " and etcd and other instances"
		m.cuts = func() []oneWay { return between([]string{name}, slices.Concat(storeNames, memberNames)) }
	case 6:
		some := storeNames[:1+rng.IntN(len(storeNames))]
		m.what = "3s of delay at " + strings.Join(some, ", ")
		m.begin = func() { s.delay(3*time.Second, some...) }
		m.end = func() { s.delay(0, some...) }
	case 7:
		i := s.members[pick(memberNames)]
		m.what, m.process, m.stops, m.length = "SIGSTOP of "+i.name, i.name, true, siteLease+2*time.Second
		m.begin = func() { i.Signal(syscall.SIGSTOP) }
		m.end = func() { i.Signal(syscall.SIGCONT) }
	case 8:
		var leader *etcd
		m.what, m.process = "SIGSTOP of the leader of etcd", "etcd"
		m.begin = func() { leader = s.leader(); leader.signal(syscall.SIGSTOP) }
		m.end = func() { leader.signal(syscall.SIGCONT) }
	case 9:
		i := s.members[pick(memberNames)]
		m.what, m.process = "SIGKILL of "+i.name, i.name
		m.begin, m.end = i.kill, i.start
	case 10:
		e := s.stores[pick(storeNames)]
		m.what, m.process = "SIGKILL of "+e.name, "etcd"
		m.begin, m.end = e.kill, e.start
	case 11:
		var h *logger
		m.what, m.process = "the end of the primary", "host"
		m.begin = func() { h = s.hosts[s.elected()]; h.kill() }
		m.end = func() { h.start() }
	}
	return m
}

// order returns an operator's order to an instance to switch to a host. It may
// fail, because of other faults.
func (s *site) order(rng *rand.Rand) mishap {
	i := s.members[memberNames[rng.IntN(len(memberNames))]]
	host := hostNames[rng.IntN(len(hostNames))]
	return mishap{
		what:  "order to " + i.name + ": switch " + host,
		after: time.Duration(rng.IntN(6000)) * time.Millisecond,
		begin: func() { s.orders.Go(func() { _, _ = i.ask("switch", address(host)) }) },
	}
}

// elected is the host of the last epoch.
func (s *site) elected() string {
	s.t.Helper()
	all := lines(s.triggers())
	for _, name := range hostNames {
		if strings.HasSuffix(all[len(all)-1], " "+nodes[name]) {
			return name
		}
	}
	s.t.Fatalf("the log of the triggers ends with %q", all[len(all)-1])
	return ""
}

// delay delays what instances tell some of the stores and hear from them.
func (s *site) delay(by time.Duration, stores ...string) {
	for _, name := range stores {
		s.stores[name].delay.Store(int64(by))
	}
}

// drawRound returns the faults of a round: one to three at the same time. Two of
// the same process do not go together. And a process that is stopped cannot take
// back what it has handed to the kernel: bytes that are still under way to a host
// when the way is cut arrive when it is healed, which no instance can prevent
// (docs/cluster.md, What is not promised). So these two do not go together.
func (s *site) drawRound(rng *rand.Rand) []mishap {
	for {
		var all []mishap
		for range 1 + rng.IntN(3) {
			all = append(all, s.draw(rng))
		}
		possible := true
		for i, m := range all {
			for _, other := range all[i+1:] {
				possible = possible && (m.process == "" || m.process != other.process) &&
					(!m.stops || !other.toHosts) && (!other.stops || !m.toHosts)
			}
		}
		if !possible {
			continue
		}
		for range rng.IntN(3) {
			all = append(all, s.order(rng))
		}
		return all
	}
}

// runRound breaks and mends it all, in the order of time.
func (s *site) runRound(round []mishap) {
	s.t.Helper()
	type step struct {
		at time.Duration
		do func()
	}
	var active []oneWay
	var steps []step
	for _, m := range round {
		begin, end := m.begin, m.end
		if m.cuts != nil {
			var mine []oneWay
			begin = func() {
				mine = m.cuts()
				active = append(active, mine...)
				s.cuts(active...)
			}
			end = func() {
				for _, c := range mine {
					i := slices.Index(active, c)
					active = slices.Delete(active, i, i+1)
				}
				s.cuts(active...)
			}
		}
		steps = append(steps, step{m.after, begin})
		if end != nil {
			steps = append(steps, step{m.after + m.length, end})
		}
	}
	slices.SortStableFunc(steps, func(a, b step) int { return int(a.at - b.at) })
	start := time.Now()
	for _, st := range steps {
		time.Sleep(time.Until(start.Add(st.at)))
		st.do()
	}
	s.orders.Wait()
}

// Random faults of the network, the store, the instances and the hosts, up to
// three at the same time: bytes never go to an old primary, and everybody is
// served again when the faults are over. UNDERSTUDY_RUNS is the number of rounds.
func TestClusterNemesis(t *testing.T) {
	t.Parallel()
	if !isolateSite(t) {
		return
	}
	rng := rand.New(rand.NewPCG(seed(t), 18))
	s := newSite(t)
	var longest time.Duration
	for i := range runs(t, 2) {
		round := s.drawRound(rng)
		var what []string
		for _, m := range round {
			what = append(what, fmt.Sprintf("%s, from %v for %v", m.what, m.after.Round(time.Millisecond), m.length.Round(time.Millisecond)))
		}
		t.Logf("round %d: %s", i+1, strings.Join(what, "; "))
		s.runRound(round)
		after := s.awaitServed(fmt.Sprintf("after round %d", i+1))
		longest = max(longest, after)
		reads, epochs := s.inOrder()
		t.Logf("round %d: served again after %v; %d reads, %d epochs", i+1, after.Round(time.Millisecond), reads, epochs)
		if t.Failed() {
			break
		}
	}
	t.Logf("served again after %v at most", longest.Round(time.Millisecond))
}
