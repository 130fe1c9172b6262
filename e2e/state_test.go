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

// kept is what a relay must know after a restart.
type kept struct {
	primary string
	frozen  string // the reason of the lock; empty for none
	drained string // likewise, of host c
}

// keptOf is what it knows.
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

// keeper is a program with a state directory that is killed again and again.
type keeper struct {
	*operated
	dir     string
	trigger string
	epochs  string // a line for each run of the trigger: the program's number and the epoch

	slowest time.Duration // from the start until clients were served

	known kept   // what was acknowledged
	maybe kept   // the same with the order that is under way
	epoch uint64 // the greatest that was seen
	made  int    // programs so far
}

func newKeeper(t *testing.T) *keeper {
	t.Helper()
	k := &keeper{operated: newOperated(t), dir: filepath.Join(t.TempDir(), "state"), epochs: filepath.Join(t.TempDir(), "epochs")}
	k.trigger = script(t, `[ -n "$UNDERSTUDY_DRY_RUN" ] || echo "$RUN $UNDERSTUDY_EPOCH" >>`+k.epochs+"\n")
	k.c = (&proctest.Host{Name: "c"}).Start(t)
	k.known.primary = k.a.Addr()
	k.maybe = k.known
	return k
}

// start starts the program once more.
func (k *keeper) start() {
	k.t.Helper()
	k.made++
	k.Understudy = proctest.StartCommand(k.t, proctest.BinaryCommand(program(k.t), []string{"RUN=" + fmt.Sprint(k.made)},
		"--bind", k.addr, "--hosts", k.a.Addr()+","+k.b.Addr()+","+k.c.Addr(), "--state-dir", k.dir, "--control", k.socket,
		"--on-failover", k.trigger))
}

// kill kills it with KILL, looks at what is left, and takes in what of the
// order that was under way may have been done.
func (k *keeper) kill() {
	k.t.Helper()
	k.Signal(syscall.SIGKILL)
	if code := k.Exit(); code != -1 {
		k.t.Errorf("the program ended with %d before it was killed", code)
	}
	for _, trouble := range []string{"set aside", "no control socket", "nothing is remembered", "not saved", "panic"} {
		if strings.Contains(k.Log(), trouble) {
			k.t.Errorf("program %d: the log has %q", k.made, trouble)
		}
	}
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		k.t.Error(err)
	}
	for _, e := range entries {
		if !slices.Contains([]string{"main.json", "main.lock", "main.json.new"}, e.Name()) {
			k.t.Errorf("%s is in the state directory", e.Name())
		}
	}
}

// look waits until clients are served, and checks that all is known that was
// known before.
func (k *keeper) look() {
	k.t.Helper()
	begin := time.Now()
	k.Until("clients are served", func() bool {
		_, err := proctest.Greeting(k.addr, patience)
		return err == nil
	})
	took := time.Since(begin)
	k.slowest = max(k.slowest, took)
	wantWithin(k.t, "serving after the start", took, 5*time.Second)
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

// play gives orders until the program is gone. It returns an error that has
// another reason.
func (k *keeper) play(killed *atomic.Bool) error {
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
			return nil // with an answer that came just in time it is still right
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

// readWhole reads the state file until the program is gone. What is there at one
// moment is what a program would find that was killed then.
func (k *keeper) readWhole(killed *atomic.Bool) error {
	for !killed.Load() {
		text, err := os.ReadFile(filepath.Join(k.dir, "main.json"))
		if err != nil {
			return err
		}
		if !json.Valid(text) {
			return fmt.Errorf("the state file is not whole: %d bytes", len(text))
		}
		time.Sleep(100 * time.Microsecond)
	}
	return nil
}

// The program is killed at any moment, while operators switch, lock and
// rehearse, and while it starts. What was acknowledged is known after the next
// start, and no epoch is there twice.
func TestStateSurvivesKill(t *testing.T) {
	t.Parallel()
	k := newKeeper(t)
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
		time.Sleep(rand.N(250 * time.Millisecond))
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
func (k *keeper) wantEpochs() {
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
func (k *keeper) wantRecord() {
	k.t.Helper()
	list, err := k.client.Events(k.t.Context(), "")
	if err != nil {
		k.t.Fatal(err)
	}
	if len(list) == 0 || len(list) > 100 {
		k.t.Errorf("%d incidents are kept, want some, and a hundred at most", len(list))
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

// A freeze outlives the program: when it starts again and the primary is gone,
// nobody else is elected. A lock whose time is over does not come back.
func TestFreezeSurvivesRestart(t *testing.T) {
	t.Parallel()
	k := newKeeper(t)
	k.start()
	k.look()
	k.want(0, words("switch "+k.b.Addr()))
	k.want(0, words("drain --for 1s --reason disk "+k.c.Addr()))
	k.want(0, words("freeze --reason audit"))
	frozen := time.Now()
	k.kill()
	k.b.Kill()
	time.Sleep(time.Until(frozen.Add(time.Second)))
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
	k.WaitLog("primary is down and stays")
	k.want(0, words("unfreeze"))
	k.awaitGreeting("a")
	k.wantPrimary(k.a, 4)
	k.end()
}

// A state file that cannot be understood is set aside, one that another process
// keeps is left to it, and clients are served in either case.
func TestStateFileThatIsOfNoUse(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"cut off": `{"version": 1, "relay": "main", "epo`,
		"newer":   `{"version": 99, "relay": "main", "epoch": 7}`,
		"empty":   "",
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeeper(t)
			file := filepath.Join(k.dir, "main.json")
			if err := errors.Join(os.MkdirAll(k.dir, 0o700), os.WriteFile(file, []byte(text), 0o600)); err != nil {
				t.Fatal(err)
			}
			k.start()
			k.look()
			k.wantPrimary(k.a, 1)
			if countLog(k.Understudy, "[WARN]", "state file set aside", file) != 1 {
				t.Error("the log does not say that the file was set aside")
			}
			aside, _ := filepath.Glob(file + ".aside-*")
			if len(aside) != 1 {
				t.Fatalf("set aside: %q", aside)
			}
			if got, err := os.ReadFile(aside[0]); string(got) != text || err != nil {
				t.Errorf("%s has %q, %v, want what was there", aside[0], got, err)
			}

			addr := freeAddr(t)
			second := start(t, "--bind", addr, "--hosts", k.b.Addr(), "--state-dir", k.dir)
			awaitGreeting(t, second, addr, "b")
			if countLog(second, "nothing is remembered", "another process keeps it") != 1 {
				t.Error("the second process does not say that its state is not kept")
			}
			end(t, second)
			k.wantPrimary(k.a, 1)
			k.end()
		})
	}
}
