package failover

import "time"

// clock is one moment read from two clocks. Its JSON is in the state file, so
// that the next process can compute how much time has passed since it was
// written.
type clock struct {
	Wall time.Time `json:"wall"` // may be set, forward and back

	// Boot identifies the boot of the machine; empty where it has no
	// identifier. Seconds have passed since then, including those in which the
	// machine was suspended.
	Boot    string  `json:"boot,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
}

// clockNow reads the clocks.
func clockNow() clock {
	boot, uptime := sinceBoot()
	return clock{Wall: time.Now(), Boot: boot, Seconds: uptime.Seconds()}
}

// since returns how much time has passed since an earlier moment of the same
// boot; false when the boot differs or is not known.
func (now clock) since(then clock) (time.Duration, bool) {
	if then.Boot == "" || then.Boot != now.Boot || now.Seconds < then.Seconds {
		return 0, false
	}
	return time.Duration((now.Seconds - then.Seconds) * float64(time.Second)), true
}
