// Package cluster lets several instances of understudy agree on one primary, so
// that no byte reaches an old primary through any of them after a byte has
// reached the new one through another.
//
// A [Machine] makes the decisions of one member for one relay. Like the
// selector it is pure: events and the time go in, actions come out, and it has
// no sockets, no goroutines and no clock. Its owner carries out the actions and
// calls [Machine.Step] at [Machine.Wake] at the latest.
//
// The members share one [Record] in a [Store], of which nothing is required but
// a linearizable register with compare-and-swap. A change of primary has four
// steps: the driver, which is any member, swaps the record to a fence with the
// next epoch; every member ends the connections of earlier epochs and
// acknowledges the epoch in its own key; the driver waits for all of them, or
// until every lease of an earlier epoch is over; then its triggers run, and it
// swaps the record to open.
//
// A member moves bytes only while it has a lease. It gets one by writing its own
// key and reading the record in one transaction, and counts it on its own clock
// from before the request was sent. Two clocks are never compared. The time is
// that of a clock that also counts while the machine sleeps, such as
// CLOCK_BOOTTIME of Linux.
package cluster

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Agree is the rule for the number of members that must see the primary down
// before one of them may replace it.
type Agree string

// The rules of agreement. Only members with a fresh heartbeat count.
const (
	Majority Agree = "majority"
	Any      Agree = "any"
	All      Agree = "all"
)

// OnStoreLoss is the policy of a member while it cannot reach the store.
type OnStoreLoss string

const (
	// Failsafe goes on while every other member of the roster confirms that it
	// knows of no change.
	Failsafe OnStoreLoss = "failsafe"

	// Fence ends all connections when the lease is over.
	Fence OnStoreLoss = "fence"

	// Keep goes on without a lease. A change of primary then waits for the
	// acknowledgement of every member, however long that takes.
	Keep OnStoreLoss = "keep"
)

// Config holds what a [Machine] needs. Nothing in it has a default. All
// durations but Slack and FailsafeLimit are required.
type Config struct {
	// Member is the name of this member. No other member of the cluster has it.
	Member string

	// Boot identifies this life of the member: a random number, never zero.
	Boot uint64

	// Roster are the members of a cluster that has no record yet. Where there is
	// a record, its roster counts. It must name Member.
	Roster []string

	// Settings are those that all members must have alike, as words. A member
	// neither opens nor drives while those of the record are others.
	Settings string

	// Address and Version are shown to other members: where this one answers
	// them, and the version of its program.
	Address, Version string

	// Lease is how long a member may move bytes after it sent its last successful
	// heartbeat.
	Lease time.Duration

	// Heartbeat is the time from one heartbeat to the next.
	Heartbeat time.Duration

	// Request is the longest time for which an answer of the store is waited for
	// before the next request. An answer that comes later still counts.
	Request time.Duration

	// Slack is how much longer than a lease another member is waited for, beyond
	// the allowance for clocks that run at different rates.
	Slack time.Duration

	// Agree is how many must see the primary down.
	Agree Agree

	// OnStoreLoss is the reaction to a store that cannot be reached.
	OnStoreLoss OnStoreLoss

	// FailsafeLimit bounds the time for which a member goes on without the store.
	// Zero is no bound.
	FailsafeLimit time.Duration

	// Epoch is the highest epoch that an earlier life of this member has seen. A
	// record with a lower one is refused. Zero is none.
	Epoch uint64
}

// rateError is the part of a lease, as a divisor, by which the waiting side
// waits longer: two clocks that are each 1 % wrong, and some more.
const rateError = 33

// Wait returns the time after which every lease of a member that did not
// acknowledge a fence is over, on the clock of the member that waits.
func (c Config) Wait() time.Duration { return c.wait(0) }

// wait is Wait for a fence that lets connections finish for drain.
func (c Config) wait(drain time.Duration) time.Duration {
	lease := c.Lease + drain
	return lease + lease/rateError + c.Slack
}

func (c Config) validate() error {
	var errs []error
	if c.Member == "" {
		errs = append(errs, errors.New("member: required"))
	} else if !slices.Contains(c.Roster, c.Member) {
		errs = append(errs, fmt.Errorf("roster: %q is missing", c.Member))
	}
	for i, name := range c.Roster {
		if name == "" {
			errs = append(errs, fmt.Errorf("roster[%d]: empty", i))
		} else if slices.Contains(c.Roster[:i], name) {
			errs = append(errs, fmt.Errorf("roster[%d]: %q is listed twice", i, name))
		}
	}
	if c.Boot == 0 {
		errs = append(errs, errors.New("boot: required"))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"lease", c.Lease}, {"heartbeat", c.Heartbeat}, {"request", c.Request}} {
		if d.value <= 0 {
			errs = append(errs, fmt.Errorf("%s: %v is not positive", d.name, d.value))
		}
	}
	if c.Heartbeat >= c.Lease {
		errs = append(errs, fmt.Errorf("heartbeat: %v is not shorter than the lease of %v", c.Heartbeat, c.Lease))
	}
	if c.Slack < 0 {
		errs = append(errs, fmt.Errorf("slack: %v is negative", c.Slack))
	}
	if c.FailsafeLimit < 0 {
		errs = append(errs, fmt.Errorf("failsafe-limit: %v is negative", c.FailsafeLimit))
	}
	if !slices.Contains([]Agree{Majority, Any, All}, c.Agree) {
		errs = append(errs, fmt.Errorf("agree: %q is not majority, any or all", c.Agree))
	}
	if !slices.Contains([]OnStoreLoss{Failsafe, Fence, Keep}, c.OnStoreLoss) {
		errs = append(errs, fmt.Errorf("on-store-loss: %q is not failsafe, fence or keep", c.OnStoreLoss))
	}
	return errors.Join(errs...)
}
