//go:build linux

package e2e

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"understudy/internal/proctest"
)

const (
	// What an agreement may cost when all instances and etcd are well.
	costOfAgreement = 100 * time.Millisecond

	// So many answers of etcd, one after the other, are in a change of the primary. On a busy
	// machine they are late.
	storeAnswers = 8
)

// A failover of instances that agree takes hardly longer than that of one that decides
// alone. Both see each fault at the same moment, with the same settings and in front of the
// same hosts, so what the machine does to one it does to the other. Clients come to one
// instance, as behind a virtual address, or to all. UNDERSTUDY_RUNS is the number of faults
// of each kind, and without it those with clients at all instances are left out.
func TestClusterCostOfFailover(t *testing.T) {
	t.Parallel()
	if !isolateSite(t) {
		return
	}
	s := newSiteOf(t, "--open-rate", "off") // and otherwise the defaults
	for _, h := range s.hosts {
		h.mu.Lock()
		h.greets = true
		h.mu.Unlock()
	}
	alone := s.newAlone()
	all := []*member{s.members["a"], s.members["b"], s.members["c"], alone}
	n, long := runs(t, 2), os.Getenv("UNDERSTUDY_RUNS") != ""
	for _, k := range []struct {
		fault  string
		others bool // clients come to them too
	}{{"killed", false}, {"killed", true}, {"silent", false}, {"silent", true}} {
		if k.others && !long {
			continue
		}
		what := "primary " + k.fault + ", clients at one instance"
		if k.others {
			what = "primary " + k.fault + ", clients at all instances"
		}
		var with, without, more []time.Duration
		var noise time.Duration // for which the clients did not run, or etcd
		for range n {
			a, d, stalled := s.compare(all, k.fault, k.others)
			with, without, more = append(with, a), append(without, d), append(more, a-d)
			noise = max(noise, stalled)
		}
		// What differs from fault to fault without a cluster is not the cluster's.
		noise += slices.Max(without) - slices.Min(without)
		t.Logf("%s: with a cluster %s, without %s, longer by %s; noise %v", what, spread(with), spread(without), spread(more), noise.Round(time.Millisecond))
		if got := median(more); got > costOfAgreement+noise {
			t.Errorf("%s: a failover takes %v longer with a cluster (median of %d), want %v, and noise of %v, at most", what, got, n, costOfAgreement, noise)
		}
	}
}

// compare breaks the primary of all instances, and returns the gaps in the service of the
// clients of the first one and of the last one, and for how long the clients or etcd did not
// run.
// Clients come to the others too if that is wanted. Afterwards all is well again.
func (s *site) compare(all []*member, fault string, others bool) (first, last, stalled time.Duration) {
	s.t.Helper()
	primary := s.settled(all)
	other := hostNames[1-slices.Index(hostNames, primary)]
	var loads []*proctest.Load
	for i, m := range all {
		if i == 0 || i == len(all)-1 || others {
			loads = append(loads, proctest.StartLoad(s.t, nodes[m.name]+":"+relayPort, 100, 30*time.Second))
		}
	}
	served := func(what string, more int) {
		s.t.Helper()
		for i, l := range loads {
			before := l.Served()
			proctest.Until(s.t, fmt.Sprintf("%s: clients of instance %d are served", what, i), func() bool { return l.Served() >= before+more })
		}
	}
	served("before the fault", 30)
	var names []string
	for _, m := range all {
		names = append(names, m.name)
	}
	if fault == "killed" {
		s.hosts[primary].kill()
	} else {
		s.cuts(between([]string{primary}, names)...)
	}
	for _, m := range all {
		proctest.Until(s.t, m.name+" has another primary", func() bool {
			r, ok := m.relay()
			return ok && r.Primary == address(other)
		})
	}
	served("after the fault", 30)
	for _, m := range all[:len(all)-1] {
		if r, ok := m.relay(); ok {
			stalled = max(stalled, storeAnswers*seconds(r.Cluster.StoreSeconds))
		}
	}
	var reports []proctest.Report
	for _, l := range loads {
		reports = append(reports, l.Stop())
		stalled = max(stalled, reports[len(reports)-1].Stall)
	}
	if fault == "killed" {
		s.hosts[primary].start()
	} else {
		s.cuts()
	}
	return reports[0].Gap(), reports[len(reports)-1].Gap(), stalled
}

// settled waits until all instances have the same primary and see all hosts up, and
// returns it.
func (s *site) settled(all []*member) (primary string) {
	s.t.Helper()
	proctest.Until(s.t, "all instances have the same primary, and all hosts are up", func() bool {
		at := ""
		for _, m := range all {
			r, ok := m.relay()
			if !ok || r.Primary == "" || at != "" && r.Primary != at {
				return false
			}
			at = r.Primary
			for _, h := range r.Hosts {
				if h.State != "up" {
					return false
				}
			}
		}
		for _, name := range hostNames {
			if at == address(name) {
				primary = name
			}
		}
		return primary != ""
	})
	return primary
}

// median is the middle one, or the lesser one of two.
func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[(len(sorted)-1)/2]
}

// spread is the median and the maximum, as text.
func spread(all []time.Duration) string {
	return fmt.Sprintf("%v (at most %v)", median(all).Round(time.Millisecond), slices.Max(all).Round(time.Millisecond))
}
