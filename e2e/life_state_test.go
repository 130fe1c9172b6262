//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy/control"
	"understudy/failover"
	"understudy/internal/proctest"
)

// kept is the state that a relay must have after a restart.
type kept struct {
	primary string
	frozen  string // the reason of the lock; empty for none
	drained string // likewise, of host c
}

// keptOf is the state that it has.
func keptOf(r control.RelayStatus) kept {
	k := kept{primary: r.Primary}
	if r.Frozen != nil {
		k.frozen = r.Frozen.Reason
	}
	for _, h := range r.Hosts {
		if h.Drained != nil {
			k.drained = h.Drained.Reason
		}
	}
	return k
}

// restarted is a program with a state directory that is killed again and again.
type restarted struct {
	*operated
	dir     string
	trigger string
	epochs  string // a line for each run of the trigger: the program's number and the epoch

	slowest time.Duration // from the start until clients were served

	known kept   // what was acknowledged
	maybe kept   // the same, if the command under way was done
	epoch uint64 // the greatest that was seen
	made  int    // programs so far
}

func newRestarted(t *testing.T) *restarted {
	t.Helper()
	k := &restarted{operated: newOperated(t), dir: filepath.Join(t.TempDir(), "state"), epochs: filepath.Join(t.TempDir(), "epochs")}
	k.trigger = script(t, `[ -n "$UNDERSTUDY_DRY_RUN" ] || echo "$RUN $UNDERSTUDY_EPOCH" >>`+k.epochs+"\n")
	k.c = (&proctest.Host{Name: "c"}).Start(t)
	k.known.primary = k.a.Addr()
	k.maybe = k.known
	return k
}

// start starts the program once more.
func (k *restarted) start() {
	k.t.Helper()
	k.made++
	k.Understudy = proctest.StartCommand(k.t, proctest.BinaryCommand(program(k.t), []string{"RUN=" + fmt.Sprint(k.made)},
		"--bind", k.addr, "--hosts", k.a.Addr()+","+k.b.Addr()+","+k.c.Addr(), "--state-dir", k.dir, "--control", k.socket,
		"--on-failover", k.trigger))
}

// kill kills it with KILL, looks at what is left, and takes in what of the
// order that was under way may have been done.
func (k *restarted) kill() {
	k.t.Helper()
	k.Signal(syscall.SIGKILL)
	if code := k.Exit(); code != -1 {
		k.t.Errorf("the program ended with %d before it was killed", code)
	}
	for _, trouble := range []string{"state file", "no control socket", "state is not kept", "not saved", "panic"} {
		if strings.Contains(k.Log(), trouble) {
			k.t.Errorf("program %d: the log has %q", k.made, trouble)
		}
	}
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		k.t.Error(err)
	}
	for _, e := range entries {
		if !slices.Contains([]string{k.relay() + ".json", k.relay() + ".lock", k.relay() + ".json.new"}, e.Name()) {
			k.t.Errorf("%s is in the state directory", e.Name())
		}
	}
}

// look waits until clients are served, and checks that all is known that was
// known before.
func (k *restarted) look() {
	k.t.Helper()
	begin := time.Now()
	k.Until("clients are served", func() bool {
		_, err := proctest.Greeting(k.addr, patience)
		return err == nil
	})
	took := time.Since(begin)
	k.slowest = max(k.slowest, took)
	wantWithin(k.t, "serving after the start", took, 15*time.Second) // there is nothing to wait for
	var now control.RelayStatus
	k.Until("the status says who is primary", func() bool { now = k.now(); return now.Primary != "" })
	if now.Epoch <= k.epoch {
		k.t.Errorf("program %d: %q is primary in epoch %d, and %d was there before", k.made, now.Primary, now.Epoch, k.epoch)
	}
	k.epoch = max(k.epoch, now.Epoch)
	is := keptOf(now)
	if is.primary != k.known.primary && is.primary != k.maybe.primary ||
		is.frozen != k.known.frozen && is.frozen != k.maybe.frozen ||
		is.drained != k.known.drained && is.drained != k.maybe.drained {
		k.t.Errorf("program %d knows %+v, want %+v, or of %+v what was under way", k.made, is, k.known, k.maybe)
	}
	k.known, k.maybe = is, is
}

// play gives commands until the program has ended. It returns an error that has
// another reason.
func (k *restarted) play(killed *atomic.Bool) error {
	for n := 0; ; n++ {
		verb, o := "switch", control.Order{Host: k.a.Addr(), Reason: fmt.Sprintf("order %d of %d", n, k.made)}
		if k.known.primary == k.a.Addr() {
			o.Host = k.b.Addr()
		}
		switch rand.IntN(8) {
		case 0:
			verb, k.maybe.frozen, o.Host = "freeze", o.Reason, ""
		case 1:
			verb, k.maybe.frozen, o.Host = "unfreeze", "", ""
		case 2:
			verb, k.maybe.drained, o.Host = "drain", o.Reason, k.c.Addr()
		case 3:
			verb, k.maybe.drained, o.Host = "ready", "", k.c.Addr()
		case 4:
			verb, o.Triggers, o.Host = "drill", true, ""
		default:
			k.maybe.primary = o.Host
		}
		var answer json.RawMessage
		err := k.client.Order(context.Background(), verb, o, &answer)
		if killed.Load() {
			return nil // if the answer arrived just in time, the state is still right
		}
		if err != nil {
			return fmt.Errorf("%s: %w", verb, err)
		}
		var done failover.Switched
		if verb == "switch" {
			if err := json.Unmarshal(answer, &done); err != nil {
				return err
			}
			k.epoch = max(k.epoch, done.Epoch)
		}
		k.known = k.maybe
	}
}

// readWhole reads the state file until the program has ended. A program that
// was killed at a moment would find the content of that moment.
func (k *restarted) readWhole(killed *atomic.Bool) error {
	for !killed.Load() {
		text, err := os.ReadFile(filepath.Join(k.dir, k.relay()+".json"))
		if err != nil {
			return err
		}
		if !json.Valid(text) {
			return fmt.Errorf("the state file is not whole: %d bytes", len(text))
		}
		time.Sleep(100 * time.Microsecond) // the program needs the processor too
	}
	return nil
}

// The program is killed at any moment, while operators switch, lock and
// rehearse, and while it starts. What was acknowledged is kept by the next
// start, and no epoch occurs twice.
func TestStateSurvivesKill(t *testing.T) {
	t.Parallel()
	k := newRestarted(t)
	for n := range runs(t, 25) {
		k.start()
		if n%5 == 4 {
			time.Sleep(rand.N(60 * time.Millisecond)) // somewhere in its start
			k.kill()
			continue
		}
		k.look()
		var killed atomic.Bool
		played, read := make(chan error, 1), make(chan error, 1)
		go func() { played <- k.play(&killed) }()
		go func() { read <- k.readWhole(&killed) }()
		time.Sleep(rand.N(250 * time.Millisecond)) // at any moment
		killed.Store(true)
		k.kill()
		if err := errors.Join(<-played, <-read); err != nil {
			t.Errorf("program %d: %v", k.made, err)
		}
		if _, err := os.Lstat(k.socket); err != nil {
			t.Errorf("no socket is left in the next one's way: %v", err)
		}
	}
	k.start()
	k.look()
	k.wantEpochs()
	k.wantRecord()
	// And an orderly end loses nothing either.
	k.end()
	k.start()
	k.look()
	k.end()
}

// wantEpochs checks that each run of the trigger had an epoch that is greater
// than all before. Those of one program come one after the other; the last one
// of a program that was killed may come late.
func (k *restarted) wantEpochs() {
	k.t.Helper()
	of := map[int][]uint64{}
	all := lines(k.epochs)
	for _, line := range all {
		var made int
		var epoch uint64
		if _, err := fmt.Sscan(line, &made, &epoch); err != nil {
			k.t.Fatalf("%q: %v", line, err)
		}
		of[made] = append(of[made], epoch)
	}
	last := uint64(0)
	for made := 1; made <= k.made; made++ {
		for _, epoch := range of[made] {
			if epoch <= last {
				k.t.Errorf("program %d ran the trigger for epoch %d, and there was %d before", made, epoch, last)
			}
			last = max(last, epoch)
		}
	}
	k.t.Logf("%d programs, %d elections, epoch %d, clients were served after %v at most", k.made, len(all), last, k.slowest)
	if last > k.epoch {
		k.t.Errorf("the trigger ran for epoch %d, the program is at %d", last, k.epoch)
	}
}

// wantRecord checks the record of all programs.
func (k *restarted) wantRecord() {
	k.t.Helper()
	list, err := k.client.Events(k.t.Context(), "")
	if err != nil {
		k.t.Fatal(err)
	}
	elections := 0
	for _, i := range list {
		if i.Order == nil {
			elections++
		}
	}
	if orders := len(list) - elections; elections == 0 || elections > 100 || orders > 100 {
		k.t.Errorf("%d elections and %d orders are kept, want some elections, and a hundred of each at most", elections, orders)
	}
	for n, i := range list {
		if n > 0 && i.ID <= list[n-1].ID {
			k.t.Errorf("incident %d follows incident %d", i.ID, list[n-1].ID)
		}
		if n < len(list)-1 && !i.Done {
			k.t.Errorf("incident %d is not over: %+v", i.ID, i)
		}
	}
}

// A freeze outlives the program: when it starts again and the primary is down,
// no other host is elected. A lock whose time is over does not come back.
func TestFreezeSurvivesRestart(t *testing.T) {
	t.Parallel()
	k := newRestarted(t)
	k.start()
	k.look()
	k.want(0, words("switch "+k.b.Addr()))
	k.want(0, words("drain --for 1s --reason disk "+k.c.Addr()))
	k.want(0, words("freeze --reason audit"))
	frozen := time.Now()
	k.kill()
	k.b.Kill()
	time.Sleep(time.Until(frozen.Add(time.Second))) // the drain is over by the clock then
	k.start()
	k.WaitLog("no host is usable")
	k.want(0, words("why"), `there has been no primary`, `frozen.*audit`)
	if now := keptOf(k.now()); now != (kept{frozen: "audit"}) {
		t.Errorf("it knows %+v, want the freeze and no more", now)
	}
	if n := elections(k.Understudy); n != 0 {
		t.Errorf("%d elections, and the relay is frozen", n)
	}
	k.b.Restart()
	k.awaitGreeting("b")
	k.wantPrimary(k.b, 3)
	k.b.Kill()
	k.WaitLog("primary is down, no failover")
	k.want(0, words("unfreeze"))
	k.awaitGreeting("a")
	k.wantPrimary(k.a, 4)
	k.end()
}

// While the state cannot be saved, status shows that, why, and since when. It
// is saved once that is possible.
func TestStatusSaysThatSavingFails(t *testing.T) {
	t.Parallel()
	k := newRestarted(t)
	k.start()
	k.look()
	k.Until("the election is saved", func() bool { return k.now().Kept })
	away := k.dir + "-away"
	if err := os.Rename(k.dir, away); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	k.want(1, words("freeze --reason audit"), "no such file or directory")
	now := k.now()
	if now.Kept || !strings.Contains(now.SaveError, "no such file or directory") || now.SaveFails.Before(before) || now.SaveFails.After(time.Now()) {
		t.Errorf("kept %v, save error %q since %v, want false and why since %v", now.Kept, now.SaveError, now.SaveFails, before)
	}
	k.want(0, words("status"), `not saved for .*no such file or directory`)
	if err := os.Rename(away, k.dir); err != nil {
		t.Fatal(err)
	}
	k.Until("the state is saved again", func() bool { return k.now().Kept })
	if now := k.now(); now.SaveError != "" || !now.SaveFails.IsZero() {
		t.Errorf("saved again, and the save error is %q since %v", now.SaveError, now.SaveFails)
	}
	if text, err := os.ReadFile(filepath.Join(k.dir, k.relay()+".json")); err != nil || !strings.Contains(string(text), "audit") {
		t.Errorf("the state file has %s, %v, want the freeze in it", text, err)
	}
	k.end()
}

// A state file that cannot be parsed is set aside, one that another process has
// locked is left alone, and clients are served in either case.
func TestStateFileThatIsOfNoUse(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"cut off": `{"version": 1, "relay": "main", "epo`,
		"newer":   `{"version": 99, "relay": "main", "epoch": 7}`,
		"empty":   "",
	} {
		t.Run(name, func(t *testing.T) {
			k := newRestarted(t)
			file := filepath.Join(k.dir, k.relay()+".json")
			if err := errors.Join(os.MkdirAll(k.dir, 0o700), os.WriteFile(file, []byte(text), 0o600)); err != nil {
				t.Fatal(err)
			}
			k.start()
			k.look()
			k.wantPrimary(k.a, 1)
			wantLog(t, k.Understudy, 1, "[WARN]", "state file cannot be read", file)
			aside, _ := filepath.Glob(file + ".aside-*")
			if len(aside) != 1 {
				t.Fatalf("set aside: %q", aside)
			}
			if got, err := os.ReadFile(aside[0]); string(got) != text || err != nil {
				t.Errorf("%s has %q, %v, want what was there", aside[0], got, err)
			}

			addr := "127.0.0.2:" + k.relay() // of the same name: that is its port
			second := start(t, "--bind", addr, "--hosts", k.b.Addr(), "--state-dir", k.dir)
			awaitGreeting(t, second, addr, "b")
			wantLog(t, second, 1, "state is not kept", "another process keeps it")
			end(t, second)
			k.wantPrimary(k.a, 1)
			k.end()
		})
	}
}

// The clock goes back by a fortnight while the program is away, or forward: a
// lock of some seconds lasts for those and no longer, one of an hour goes on.
// The clock of this machine stays; that of the state file is moved.
func TestLocksAcrossRestartsAndClocks(t *testing.T) {
	t.Parallel()
	for name, moved := range map[string]time.Duration{"back": 14 * 24 * time.Hour, "forward": -14 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newRestarted(t)
			k.start()
			k.look()
			k.want(0, words("drain --for 1h --reason disk "+k.c.Addr()))
			frozen := time.Now() // before, because the program may be faster than this process
			k.want(0, words("freeze --for 8s --reason audit"))
			k.known.drained, k.known.frozen = "disk", "audit"
			k.maybe = k.known
			k.kill()
			moveTimes(t, filepath.Join(k.dir, k.relay()+".json"), moved)
			k.start()
			k.look() // both are there
			k.Until("the freeze has ended", func() bool { return k.now().Frozen == nil })
			if took := time.Since(frozen); took < 7*time.Second {
				t.Errorf("a freeze of 8s ended after %v", took)
			}
			if d := k.now().Hosts[2].Drained; d == nil {
				t.Error("the drain of an hour has ended")
			} else if left := time.Until(d.Until); left < 50*time.Minute || left > time.Hour {
				t.Errorf("the drain of an hour ends in %v", left)
			}
			k.end()
		})
	}
}

// moveTimes moves every time of a state file, as if the clock had been set since
// it was written.
func moveTimes(t *testing.T, file string, by time.Duration) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	moved := regexp.MustCompile(`"\d{4}-\d\d-\d\dT[^"]+"`).ReplaceAllStringFunc(string(text), func(s string) string {
		at, err := time.Parse(`"`+time.RFC3339Nano+`"`, s)
		if err != nil {
			t.Error(err)
		}
		return at.Add(by).Format(`"` + time.RFC3339Nano + `"`)
	})
	if err := os.WriteFile(file, []byte(moved), 0o600); err != nil {
		t.Fatal(err)
	}
}
