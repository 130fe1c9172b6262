package failover

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"
)

// A lock that was read from a file lasts for the time that it had left when it
// was saved, measured by the time since boot; where that is not available, as
// the wall clock says, and never longer than when it was saved.
func TestLockFromAFile(t *testing.T) {
	here := clockNow()
	if here.Boot == "" {
		t.Skip("SKIP: this system has no name for its boot")
	}
	const fortnight = 14 * 24 * time.Hour
	for _, tt := range []struct {
		name  string
		away  time.Duration // by the time since boot
		clock time.Duration // by how much the wall clock has been set meanwhile
		boot  string        // of the file
		none  bool          // the file is from a program that saved no clock
		want  time.Duration // how long an 8s lock lasts after it was read; zero when it has expired
	}{
		{name: "an ordinary restart", away: 3 * time.Second, boot: here.Boot, want: 5 * time.Second},
		{name: "the clock went back", away: 3 * time.Second, clock: -fortnight, boot: here.Boot, want: 5 * time.Second},
		{name: "the clock went forward", away: 3 * time.Second, clock: fortnight, boot: here.Boot, want: 5 * time.Second},
		{name: "it ended while the program was away", away: 9 * time.Second, boot: here.Boot},
		{name: "it ended, and the clock went back", away: 9 * time.Second, clock: -fortnight, boot: here.Boot},
		{name: "another boot", away: 3 * time.Second, boot: "another", want: 5 * time.Second},
		{name: "another boot, ended", away: 9 * time.Second, boot: "another"},
		{name: "another boot, the clock went back", away: 3 * time.Second, clock: -fortnight, boot: "another", want: 8 * time.Second},
		{name: "another boot, the clock went forward", away: 3 * time.Second, clock: fortnight, boot: "another"},
		{name: "no clock", away: 3 * time.Second, none: true, want: 5 * time.Second},
		{name: "no clock, it went back", away: 3 * time.Second, clock: -fortnight, none: true, want: 8 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := clockNow()
			since := now.Wall.Round(0).Add(-tt.away - tt.clock)
			text := fmt.Sprintf(`"locks": [{"kind": "freeze", "since": %q, "until": %q}, {"kind": "drain", "host": "b"}]`,
				since.Format(time.RFC3339Nano), since.Add(8*time.Second).Format(time.RFC3339Nano))
			if !tt.none {
				text += fmt.Sprintf(`, "clock": {"wall": %q, "boot": %q, "seconds": %f}`,
					since.Format(time.RFC3339Nano), tt.boot, now.Seconds-tt.away.Seconds())
			}
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "orders.json"), []byte(`{"version": 1, "epoch": 3, `+text+"}"), 0o600); err != nil {
				t.Fatal(err)
			}
			k, err := OpenStateFile(dir, "orders", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			c, err := idle(k, "a", "b")
			if err != nil {
				t.Fatal(err)
			}
			if d := c.locks.find(Drain, "b"); d == nil || !d.Until.IsZero() {
				t.Errorf("the drain without an end is %+v", d)
			}
			freeze := c.locks.find(Freeze, "")
			if tt.want == 0 {
				if freeze != nil || c.Snapshot().Frozen {
					t.Errorf("the freeze goes on for %v, want it ended", time.Until(freeze.Until))
				}
				return
			}
			if freeze == nil || !c.Snapshot().Frozen {
				t.Fatalf("the freeze has ended, want it to go on for %v", tt.want)
			}
			if !strings.Contains(freeze.Until.String(), " m=") {
				t.Errorf("the freeze ends at %v, by the wall clock, want a monotonic reading", freeze.Until)
			}
			// It was read a moment after now.
			if left := freeze.Until.Sub(now.Wall); left < tt.want-time.Second || left > tt.want+2*time.Second {
				t.Errorf("the freeze goes on for %v, want %v", left, tt.want)
			}
		})
	}
}

// The time at which a lock expires is shown and saved by the present wall
// clock, and not by the wall clock at the time when it was set.
func TestLockOnAWallThatWasSet(t *testing.T) {
	now := time.Now()
	until := now.Add(8 * time.Second)
	setWall(&until, 3600) // the lock was set while the clock was an hour ahead
	l := locks{{Kind: Freeze, Until: until}, {Kind: Drain, Host: "a"}}
	shown := l.onWall(now)
	if got := shown[0].Until.Round(0).Sub(now.Round(0)); got != 8*time.Second || !shown[1].Until.IsZero() {
		t.Errorf("the locks end in %v and at %v, want in 8s, and never", got, shown[1].Until)
	}
	if l[0].Until != until {
		t.Error("the lock itself was changed")
	}
	if left, _ := l.at(now.Add(7 * time.Second)); len(left) != 2 {
		t.Errorf("after 7s there is %+v, want both locks", left)
	}
	if left, _ := l.at(now.Add(9 * time.Second)); len(left) != 1 {
		t.Errorf("after 9s there is %+v, want only the one without an end", left)
	}
}

// setWall changes the wall reading of a time and keeps its monotonic one, as
// setting a clock does. See the fields of time.Time.
func setWall(t *time.Time, seconds uint64) { *(*uint64)(unsafe.Pointer(t)) += seconds << 30 }

func TestMergeLocks(t *testing.T) {
	t.Parallel()
	freeze, drainA, drainB := Lock{Kind: Freeze, By: "x"}, Lock{Kind: Drain, Host: "a"}, Lock{Kind: Drain, Host: "b"}
	later := Lock{Kind: Freeze, By: "y"}
	for _, tt := range []struct {
		name                          string
		theirs, before, after, merged locks
	}{
		{"both set one", locks{freeze}, nil, locks{drainA}, locks{freeze, drainA}},
		{"one is removed, another set", locks{freeze, drainA}, locks{freeze}, nil, locks{drainA}},
		{"both remove one", locks{drainA, drainB}, locks{freeze, drainA, drainB}, locks{freeze, drainB}, locks{drainB}},
		{"both set the same", locks{freeze}, nil, locks{later}, locks{later}},
		{"what was not changed here stays as it is there", locks{later}, locks{freeze}, locks{freeze, drainA}, locks{later, drainA}},
	} {
		if got := tt.theirs.merge(tt.before, tt.after); !slices.Equal(got, tt.merged) {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.merged)
		}
	}
}

// The sentence about a lock is for people: its times have a zone, and no parts of a second.
func TestLockInWords(t *testing.T) {
	t.Parallel()
	since := time.Date(2026, 11, 27, 9, 34, 24, 409_000_000, time.Local)
	k := Lock{By: "root", Since: since, Until: since.Add(2 * time.Hour), Reason: "migration"}
	zone := since.Format("-0700")
	want := "frozen by root since 2026-11-27 09:34:24 " + zone + " until 2026-11-27 11:34:24 " + zone + " (migration)"
	if got := by(&k, "frozen"); got != want {
		t.Errorf("the lock is described as %q, want %q", got, want)
	}
}
