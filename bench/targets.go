package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// limit is one side of a target: at least, or at most, a value. The zero
// limit requires nothing.
type limit struct {
	op    string // "≥", ">", "≤" or "="
	value float64
}

func (l limit) String() string {
	if l.op == "" {
		return ""
	}
	return l.op + " " + number(l.value)
}

// met reports whether x keeps to l.
func (l limit) met(x float64) bool {
	switch l.op {
	case "≥":
		return x >= l.value
	case ">":
		return x > l.value
	case "≤":
		return x <= l.value
	case "=":
		return x-l.value < 0.05 && l.value-x < 0.05 // of descriptors: the loops have some of their own
	}
	return true
}

func atLeast(x float64) limit { return limit{"≥", x} }
func atMost(x float64) limit  { return limit{"≤", x} }
func above(x float64) limit   { return limit{">", x} }

// subject is the peer whose targets these are.
const subject = "understudy"

// opponents are the peers that a target compares with: each must be beaten.
type opponents struct {
	name  string
	peers []string
}

var (
	haproxy  = opponents{"HAProxy", []string{"haproxy-2", "haproxy-1"}}
	haproxy2 = opponents{"HAProxy with two threads", []string{"haproxy-2"}}
	splice   = opponents{"forced splice", []string{"haproxy-2-splice", "haproxy-1-splice"}}
	nginx    = opponents{"nginx", []string{"nginx-2"}}
	alone    = opponents{direct, []string{direct}}
)

// finding is one measured number, and what it is measured against.
type finding struct {
	against string
	value   float64
}

// target is a line of the target table.
type target struct {
	what      string
	must, aim limit
	// find returns what was measured of user's run; nothing when it was not.
	find func(r results, user string) []finding
}

// relative is a target for the ratio of one metric to that of each opponent.
func relative(what, figure, metric string, to opponents, must, aim limit) target {
	return target{what + " ÷ " + to.name, must, aim, func(r results, user string) []finding {
		var found []finding
		for _, base := range to.peers {
			if x, ok := r.ratio(of{user, figure, subject, metric}, of{user, figure, base, metric}); ok {
				found = append(found, finding{"÷ " + base, x})
			}
		}
		return found
	}}
}

// absolute is a target for one metric as it is.
func absolute(what, figure, metric string, must, aim limit) target {
	return target{what, must, aim, func(r results, user string) []finding {
		s := r.summary(user, figure, subject, metric)
		if s.N == 0 {
			return nil
		}
		return []finding{{"", s.Median}}
	}}
}

// difference is a target for how much more one metric of a figure is than
// another one of it.
func difference(what, figure, metric, from string, must, aim limit) target {
	return target{what, must, aim, func(r results, user string) []finding {
		s, base := r.summary(user, figure, subject, metric), r.summary(user, figure, subject, from)
		if s.N == 0 || base.N == 0 {
			return nil
		}
		return []finding{{"", s.Median - base.Median}}
	}}
}

// duration is a target for the time that a message takes of the whole machine,
// in a closed loop that keeps it busy: the rate, turned round.
func duration(what, figure string, to opponents, must, aim limit) target {
	t := relative(what, figure, rate, to, must, aim)
	found := t.find
	t.find = func(r results, user string) []finding {
		list := found(r, user)
		for i := range list {
			list[i].value = 1 / list[i].value
		}
		return list
	}
	return t
}

// moreThan is a target for how much more of one metric understudy has in a
// figure than in another one.
func moreThan(what, figure, from, metric string, must, aim limit) target {
	return target{what, must, aim, func(r results, user string) []finding {
		s, base := r.summary(user, figure, subject, metric), r.summary(user, from, subject, metric)
		if s.N == 0 || base.N == 0 {
			return nil
		}
		return []finding{{fmt.Sprintf("(%s, %s)", number(s.Median), number(base.Median)), s.Median - base.Median}}
	}}
}

// growth compares how much more a message costs at many connections than at
// few with the same ratio of each base.
func growth(what, few, many string, must limit) target {
	return target{what, must, limit{}, func(r results, user string) []finding {
		grown := func(peer string) map[int]float64 {
			return quotients(r.rounds(of{user, many, peer, processor}), r.rounds(of{user, few, peer, processor}))
		}
		median := func(m map[int]float64) float64 { return summarize(slices.Collect(maps.Values(m))).Median }
		own := grown(subject)
		var found []finding
		for _, base := range haproxy.peers {
			its := grown(base)
			if both := quotients(own, its); len(both) > 0 {
				found = append(found, finding{fmt.Sprintf("(%s ÷ %s of %s)", number(median(own)), number(median(its)), base), median(both)})
			}
		}
		return found
	}}
}

// unprivileged compares a user's run with root's.
func unprivileged(what, figure, metric string, must, aim limit) target {
	return target{what, must, aim, func(r results, user string) []finding {
		if x, ok := r.ratio(of{user, figure, subject, metric}, of{"root", figure, subject, metric}); ok && user != "root" {
			return []finding{{"÷ root", x}}
		}
		return nil
	}}
}

// targets are the rows of the target table, one for each figure they hold for.
func targets() []target {
	var list []target
	add := func(t ...target) { list = append(list, t...) }
	none := limit{}
	for _, n := range []int{1, 8, 64} {
		figure, what := fmt.Sprintf("bulk/%d/usual", n), fmt.Sprintf("bulk %d", n)
		add(relative(what+": rate", figure, rate, alone, atLeast(0.70), atLeast(0.85)),
			relative(what+": rate", figure, rate, haproxy, atLeast(1.8), none),
			relative(what+": rate", figure, rate, splice, atLeast(1), none),
			relative(what+": processor time for each GB", figure, processor, haproxy, atMost(0.27), none),
			relative(what+": processor time for each GB", figure, processor, splice, atMost(0.9), atMost(0.75)))
	}
	add(relative("connections/s", "connect/16/usual", rate, haproxy, atLeast(1.1), atLeast(1.3)),
		relative("connections/s", "connect/16/usual", rate, alone, none, atLeast(0.65)),
		relative("connections/s: p99", "connect/16/usual", p99, haproxy, atMost(0.9), none))
	for _, size := range []string{"64B", "1KiB"} {
		figure, what := "echo/"+size+"/64/usual", "echo "+size+" 64"
		add(relative(what+": rate", figure, rate, haproxy, atLeast(1.1), atLeast(1.4)),
			relative(what+": rate", figure, rate, nginx, above(1), none),
			relative(what+": p99", figure, p99, haproxy, atMost(1), none))
	}
	for _, size := range []string{"64B", "1KiB", "16KiB"} {
		figure, what := "echo/"+size+"/1000/usual", "echo "+size+" 1,000"
		add(relative(what+": rate", figure, rate, haproxy, atLeast(1.15), atLeast(1.35)),
			relative(what+": p99", figure, p99, haproxy, atMost(0.8), atMost(0.6)))
	}
	for _, n := range []string{"64", "1000"} { // with one, the busy polling is intended
		for _, size := range []string{"64B", "1KiB", "16KiB"} {
			add(relative("echo "+size+" "+n+": processor time for each message", "echo/"+size+"/"+n+"/usual", processor, haproxy, atMost(0.85), atMost(0.7)))
		}
	}
	for _, size := range []string{"64B", "1KiB", "16KiB"} {
		add(relative("echo "+size+" 1: p50", "echo/"+size+"/1/usual", p50, haproxy, atMost(0.9), none))
	}
	add(relative("echo 64B 1, a processor of its own: p50", "own-core/64B/1/usual", p50, haproxy, none, atMost(0.5)))
	for _, p := range []string{p50, p99} {
		add(relative("small messages while bulk flows: "+p, "mixed/64B/8/usual", p, haproxy, atMost(0.1), atMost(0.03)),
			relative("small messages while bulk flows: "+p, "mixed/64B/8/usual", p, splice, atMost(1), none))
	}
	for _, n := range []string{"1000", "9000"} {
		figure, what := "idle/"+n+"/usual", "idle "+n
		add(absolute(what+": descriptors", figure, descriptors, limit{"=", 2}, none),
			absolute(what+": descriptors after use", figure, descriptors+used1MiB, limit{"=", 2}, none),
			absolute(what+": process memory, KiB", figure, processMemory, atMost(0.5), atMost(0.1)),
			// A tenth of a KiB for each connection is one page for forty: noise.
			difference(what+": its growth after use, KiB", figure, processMemory+used1MiB, processMemory, atMost(0.1), none))
	}
	// Of the whole system's memory a thousand connections are too small a part
	// to be distinguished from the rest.
	add(relative("idle 9000: system memory", "idle/9000/usual", systemMemory, haproxy, atMost(1), none),
		relative("idle 9000: system memory after use", "idle/9000/usual", systemMemory+used1MiB, haproxy, atMost(1), none),
		absolute("idle 9000: processor time while nothing happens, ms/s", "idle/9000/usual", resting, atMost(10), none),
		absolute("idle 9000: p99 of a new connection, µs", "idle/9000/usual", p99+besideIdle, atMost(5000), none),
		absolute("process memory at start, MiB", "start/usual", resident, atMost(16), atMost(10)),
		growth("processor time for each message, 1,000 ÷ 100 connections", "echo/64B/100/usual", "echo/64B/1000/usual", atMost(1)),
		growth("processor time for each message, 9,000 ÷ 100 connections", "echo/64B/100/usual", "echo/64B/9000/usual", atMost(1)),
		unprivileged("unprivileged, 200 busy connections: rate", "bulk/200/usual", rate, atLeast(0.9), atLeast(1)))
	return slices.Concat(list, shapeTargets(lean), shapeTargets(wide))
}

// shapeTargets are those of a shape other than the usual one.
func shapeTargets(s shape) []target {
	var list []target
	none := limit{}
	in := func(what string) string { return what + ", " + string(s) }
	id := func(name string) string { return name + "/" + string(s) }
	add := func(t ...target) { list = append(list, t...) }
	for _, size := range []string{"64B", "1KiB"} {
		figure, what := id("echo/"+size+"/64"), in("echo "+size+" 64")
		add(relative(what+": rate", figure, rate, haproxy, atLeast(1.1), atLeast(1.25)),
			relative(what+": rate", figure, rate, nginx, atLeast(1), none),
			relative(what+": p99", figure, p99, haproxy, atMost(0.95), atMost(0.75)),
			relative(what+": processor time for each message", figure, processor, haproxy2, atMost(0.9), atMost(0.85)))
	}
	figure, what := id("echo/64B/1000"), in("echo 64B 1,000")
	add(relative(what+": rate", figure, rate, haproxy, atLeast(1.15), atLeast(1.3)),
		relative(what+": p99", figure, p99, haproxy, atMost(0.75), none))
	figure, what = id("connect/16"), in("connections/s")
	add(relative(what, figure, rate, haproxy, atLeast(1.1), atLeast(1.3)),
		relative(what+": p99", figure, p99, haproxy, atMost(0.9), none))
	for _, n := range []string{"1", "8"} {
		figure, what := id("bulk/"+n), in("bulk "+n)
		add(relative(what+": rate", figure, rate, splice, atLeast(1), none),
			relative(what+": processor time for each GB", figure, processor, splice, atMost(0.9), atMost(0.75)))
	}
	if s == lean {
		for _, leg := range []string{"client", "host"} { // see withLeg
			add(duration(in("echo 64B 64, "+leg+" by a unix socket")+": time for a message", id("echo-unix-"+leg+"/64B/64"), alone, atMost(1.4), atMost(1.25)))
		}
		figure, what = id("relays/400"), "400 relays"
		add(moreThan(what+": more threads than with 1", figure, id("relays/1"), threads, atMost(0), none),
			absolute(what+": memory of each, KiB", figure, eachRelay, atMost(60), none),
			relative(what+": memory of each", figure, eachRelay, haproxy2, none, atMost(1)),
			absolute(what+": processor time while only checks happen, ms/s", figure, resting, atMost(30), none),
			relative(what+": processor time while only checks happen", figure, resting, haproxy2, none, atMost(1)))
		figure, what = id("mixed/64B/8"), in("small messages while bulk flows")
		add(relative(what+": p99", figure, p99, haproxy, atMost(0.15), atMost(0.05)),
			relative(what+": p99", figure, p99, splice, atMost(1), none))
	}
	return list
}

// verdicts is the target table with the values of user's run. It also counts
// the musts that were measured and not met.
func verdicts(r results, user string) (t table, unmet int) {
	t.add("target", "must", "aim", "measured", "must met", "aim met")
	for _, target := range targets() {
		found := target.find(r, user)
		var measured []string
		must, aim := true, true
		for _, f := range found {
			measured = append(measured, strings.TrimSpace(number(f.value)+" "+f.against))
			must = must && target.must.met(f.value)
			aim = aim && target.aim.met(f.value)
		}
		if len(found) > 0 && !must {
			unmet++
		}
		t.add(target.what, target.must.String(), target.aim.String(), cmp.Or(strings.Join(measured, ", "), "–"),
			word(target.must, must, len(found)), word(target.aim, aim, len(found)))
	}
	return t, unmet
}

// word is yes or no, or empty if nothing was required or measured.
func word(l limit, met bool, found int) string {
	switch {
	case l.op == "":
		return ""
	case found == 0:
		return "not measured"
	case met:
		return "yes"
	}
	return "**no**"
}
