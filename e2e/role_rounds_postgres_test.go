//go:build linux

package e2e

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/control"
	"understudy/failover"
)

// In rounds: the primary of three servers is killed, comes back as a standby and is
// failed back to, and an operator makes another one the primary for a while. A write is
// acknowledged when any one of the two standbys has it, so only the freshest may be
// promoted. Numbers and transactions of pgbench that were acknowledged are there at the
// end. UNDERSTUDY_RUNS=10 makes ten rounds (make soak-roles).
func TestPostgresLosesNoWrite(t *testing.T) {
	t.Parallel()
	p := newPostgres(t)
	a, b, c := p.trio("")
	app := func(d *database, name string, args ...string) {
		t.Helper()
		output(t, p.command(name, append([]string{"-q", "-h", p.dir, "-p", strconv.Itoa(d.port), "-U", "app"}, args...)...))
	}
	app(a, "pgbench", "-i", "app")
	app(a, "psql", "-X", "-c", "create table numbers (n bigint primary key)", "app")
	for _, d := range []*database{b, c, a} {
		p.configure(d.name, "synchronous_standby_names = 'ANY 1 (*)'\n")
		p.admin(d, "select pg_reload_conf()")
	}
	p.await(a, "select count(*) = 2 and bool_and(sync_state = 'quorum') from pg_stat_replication")

	config := filepath.Join(t.TempDir(), "understudy.yaml")
	private(t, config, "failback: never\n", false)
	env, args := p.promoting(t, "--elect", "freshest", "--config", config)
	w := watch(t, "postgres", []*database{a, b, c}, env, args...)
	w.awaitPrimary(a, 1)
	w.awaitUp(b, c)
	clients := startRecorder(t, func() (session, error) { return p.session(w.addr) })
	logs := t.TempDir()
	load := p.startBench(w.addr, logs, 2, 40)
	clients.goesOn(w.Understudy)

	// primary waits until another server than the last primary is the primary, and
	// makes the remaining ones follow it: the third first, since writes wait for it.
	epoch := uint64(1)
	primary := func(what string, last *database) (now *database) {
		t.Helper()
		epoch++
		w.Until(what, func() bool { return w.now().Epoch >= epoch && w.now().Primary != "" })
		var third *database
		for _, d := range []*database{a, b, c} {
			switch {
			case d.addr() == w.now().Primary:
				now = d
			case d != last:
				third = d
			}
		}
		if now == nil || now == last || third == nil {
			t.Fatalf("%s: %q is primary after %s", what, w.now().Primary, last.addr())
		}
		w.wantPrimary(now, epoch)
		if last.cmd == nil {
			p.follow(third, now)
		} else {
			p.again(third, now) // it may have received what last wrote by itself after its clients were gone
		}
		clients.goesOn(w.Understudy)
		p.again(last, now)
		return now
	}
	// failback lets the program fail back to a.
	failback := func(last *database) {
		t.Helper()
		w.Until("a has been up for the time of the failback", func() bool {
			h := w.host(a)
			return h.State == "up" && time.Since(h.Since) > 2*time.Second
		})
		for _, setting := range []string{"failback: 2s\n", "failback: never\n"} {
			private(t, config, setting, false)
			if _, err := w.client.Reload(t.Context(), control.Order{}); err != nil {
				t.Fatal(err)
			}
			if epoch == w.now().Epoch {
				w.Until("a failback", func() bool { return w.now().Epoch > epoch })
			}
		}
		if primary("a is failed back to", last) != a {
			t.Errorf("it failed back to %s, want a", w.now().Primary)
		}
	}
	for n := range runs(t, 1) {
		began := time.Now()
		a.kill()
		second := primary("another server is promoted", a)
		// The operator has mended it: how often it failed before does not count.
		for _, verb := range []string{"drain", "ready"} {
			var lock failover.Lock
			if err := w.client.Order(t.Context(), verb, control.Order{Host: a.addr()}, &lock); err != nil {
				t.Fatal(err)
			}
		}
		failback(second)
		var did control.SwitchAnswer
		w.Until("the operator can switch", func() bool {
			return w.client.Order(t.Context(), "switch", control.Order{Host: b.addr()}, &did) == nil
		})
		if primary("the operator's server is the primary", a) != b {
			t.Errorf("the operator switched to b: %+v", did)
		}
		failback(b)
		t.Logf("round %d took %v", n+1, time.Since(began).Round(time.Millisecond))
	}
	load.finish()
	records, ends := clients.finish()

	done := committed(t, logs)
	t.Logf("%d numbers acknowledged, %d sessions ended; pgbench: %d transactions committed in %d runs, gave up %d times", len(records), len(ends), done, load.runs, len(load.gave))
	wantAll(t, records, numbers(t, output(t, p.client(w.addr, "psql", "-XAtqc", "select n from numbers"))))
	if history := numbers(t, output(t, p.client(w.addr, "psql", "-XAtqc", "select count(*) from pgbench_history")))[0]; history < done {
		t.Errorf("pgbench saw %d transactions committed, the database has %d", done, history)
	}
	if said := strings.TrimSpace(output(t, p.client(w.addr, "psql", "-XAtqc", "select (select sum(delta) from pgbench_history) = (select sum(abalance) from pgbench_accounts)"))); said != "t" {
		t.Errorf("the sums of pgbench's tables are equal: %s", said)
	}
	for what, want := range map[string]int{"failover": 1, "failback": 2, "switchover": 1} {
		if got := countLog(w.Understudy, "host elected", fmt.Sprint("event=", what)); got != want*runs(t, 1) {
			t.Errorf("%d elections of the kind %s, want %d", got, what, want*runs(t, 1))
		}
	}
	end(t, w.Understudy)
}
