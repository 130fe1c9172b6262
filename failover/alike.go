package failover

import (
	"slices"

	"understudy/selector"
)

// Alike reports whether two states of a relay look alike to people: only durations, lags and
// the times of checks differ. In a cluster no two do.
func Alike(a, b *Status) bool {
	return a.Cluster == nil && b.Cluster == nil &&
		!differ(a.Snapshot, b.Snapshot) && slices.EqualFunc(a.Hosts, b.Hosts, hostsAlike) &&
		a.Elect == b.Elect && a.Epoch == b.Epoch && a.Since.Equal(b.Since) && a.Elected.Equal(b.Elected) && a.Verifying == b.Verifying &&
		a.Awaited == b.Awaited && a.Planned == b.Planned && a.RetryAt.Equal(b.RetryAt) && a.NoStandby.Equal(b.NoStandby) &&
		a.Frozen == b.Frozen && slices.EqualFunc(a.Locks, b.Locks, locksAlike) && a.Scheduled == b.Scheduled && a.GoodDrill.Equal(b.GoodDrill) &&
		a.Save.Kept == b.Save.Kept && text(a.Save.Error) == text(b.Save.Error) &&
		a.Silence.Remarkable() == b.Silence.Remarkable() && a.Hang.Hangs() == b.Hang.Hangs() &&
		canariesAlike(a.Canary, b.Canary)
}

func hostsAlike(a, b selector.Host) bool {
	return a.Addr == b.Addr && a.Since.Equal(b.Since) && a.Rejected == b.Rejected && a.Drained == b.Drained &&
		a.Failures == b.Failures && a.Guarded == b.Guarded && a.Unfit == b.Unfit && slices.EqualFunc(a.Checks, b.Checks, checksAlike)
}

func checksAlike(a, b selector.Record) bool {
	return a.Name == b.Name && a.Suspected == b.Suspected && a.Last.At.IsZero() == b.Last.At.IsZero() &&
		a.Last.OK == b.Last.OK && a.Last.Unknown == b.Last.Unknown && a.Last.Phase == b.Last.Phase && text(a.Last.Err) == text(b.Last.Err)
}

func locksAlike(a, b Lock) bool {
	return a.Kind == b.Kind && a.Host == b.Host && a.By == b.By && a.Reason == b.Reason && a.Since.Equal(b.Since) && a.Until.Equal(b.Until)
}

func canariesAlike(a, b *CanaryStatus) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Last == b.Last && text(a.LastError) == text(b.LastError) && a.Since.Equal(b.Since) && text(a.Error) == text(b.Error) && a.Over.Equal(b.Over)
}

// text returns the text of an error; empty for none.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
