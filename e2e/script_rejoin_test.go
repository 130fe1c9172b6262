//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/internal/proctest"
)

// Two servers of PostgreSQL are killed in turn. The one that comes back each time is
// made a standby again by postgres-rejoin.sh, so that the next one may be killed: with
// the check script of the page, and with a role check.
func TestPostgresRejoins(t *testing.T) {
	t.Parallel()
	for _, check := range []string{"script", "role"} {
		t.Run(check, func(t *testing.T) {
			t.Parallel()
			wantRejoins(t, check == "role")
		})
	}
}

func wantRejoins(t *testing.T, byRole bool) {
	t.Helper()
	p := newPostgres(t)
	a := p.primary("wal_keep_size = 512MB\nwal_retrieve_retry_interval = 200ms\n")
	role, err := os.ReadFile(filepath.Join(scriptsDir, "postgres-rejoin-role.sql"))
	if err != nil {
		t.Fatal(err)
	}
	for statement := range strings.SplitSeq(strings.TrimSpace(string(role)), ";") {
		if strings.Contains(statement, "grant") || strings.Contains(statement, "create") {
			p.admin(a, statement)
		}
	}
	p.admin(a, "alter role rewind password '"+standbyPassword+"'", "create table numbers (n bigint)", roleUser)
	private(t, filepath.Join(p.dir, "pgpass"), "*:*:*:standby:"+standbyPassword+"\n*:*:*:rewind:"+standbyPassword+"\n", true)
	b := p.standby(a, "b")
	servers := map[string]*database{strconv.Itoa(a.port): a, strconv.Itoa(b.port): b}

	// The host's service manager is the test: a command leaves its name in a file,
	// and waits until it is done.
	orders := t.TempDir()
	manager := script(t, "touch "+orders+"/$1-$2\nwhile [ -e "+orders+"/$1-$2 ]; do sleep 0.05; done\n")
	become := "sh -c"
	if os.Getuid() == 0 {
		become = fmt.Sprintf("setpriv --reuid=%d --regid=%d --clear-groups sh -c", nobody, nobody)
	}
	shell := script(t, "case $2 in manage*) shift; set -- $1; shift; exec "+manager+` "$@" ;; esac`+"\nexport PGPASSFILE="+filepath.Join(p.dir, "pgpass")+"\ncd / && exec "+become+` "$2"`+"\n")
	// One host is reached by ssh, as by default, of which there is a stub; the other
	// one by a command of the operator's.
	ssh := filepath.Join(t.TempDir(), "ssh")
	private(t, ssh, "#!/bin/sh\n"+`[ "$*" = "-o BatchMode=yes -o ConnectTimeout=5 -l postgres $7 $8" ] && [ $# = 8 ] || { echo "ssh: unexpected: $*"; exit 255; }
shift 6
echo "$1: $2" >>"$0.log"
exec `+shell+` "$@"`+"\n", true)
	if err := os.Chmod(ssh, 0o755); err != nil {
		t.Fatal(err)
	}
	rejoin := script(t, `case $1 in *:`+strconv.Itoa(a.port)+`) name=a PATH=`+filepath.Dir(ssh)+`:$PATH ;; *) name=b; export REJOIN_SHELL=`+shell+` ;; esac
export PATH REJOIN_DATA=`+p.dir+`/$name REJOIN_PATH=`+p.bin+` REJOIN_FOLLOW="user=standby passfile=`+p.dir+`/pgpass" REJOIN_START="manage start ${1##*:}" REJOIN_STOP="manage stop ${1##*:}"
exec `+absolute(t, filepath.Join(scriptsDir, "postgres-rejoin.sh"))+` "$@"`+"\n")
	var u *proctest.Understudy
	var socket string
	env, args := p.promoting(t, "--on-standby", rejoin)
	if byRole {
		w := watch(t, "postgres", []*database{a, b}, env, args...)
		w.awaitPrimary(a, 1)
		w.awaitUp(b)
		u, socket = w.Understudy, w.socket
	} else {
		r := newPair(t, "postgres", 5432, a, b, env, "--check-interval", "500ms", "--on-standby", rejoin)
		u, socket = r.Understudy, r.socket
	}
	managed := func() {
		for port, d := range servers {
			stop, start := filepath.Join(orders, "stop-"+port), filepath.Join(orders, "start-"+port)
			if _, err := os.Stat(stop); err == nil {
				d.stop()
				_ = os.Remove(stop)
			}
			if _, err := os.Stat(start); err == nil {
				d.start()
				_ = os.Remove(start)
			}
		}
	}
	primary, standby := a, b
	for n := range runs(t, 3) {
		p.admin(primary, fmt.Sprintf("insert into numbers values (%d)", n))
		p.await(primary, "select count(*) = 1 and bool_and(replay_lsn >= pg_current_wal_lsn()) from pg_stat_replication")
		primary.kill()
		killed := time.Now()
		u.Until("the standby is promoted", func() bool {
			return countLog(u, "relay open", "host="+standby.addr()) > 0 && elections(u) == n+2 && countLog(u, "relay open") == n+2
		})
		primary.start() // as a service manager does
		u.Until("it is a standby again", func() bool {
			managed()
			return countLog(u, "rejoin script ended") == n+1 &&
				exec.Command(program(t), "drill", "--control", socket).Run() == nil
		})
		t.Logf("kill %d: with a standby again after %v", n+1, time.Since(killed).Round(time.Millisecond))
		primary, standby = standby, primary
		p.awaitStandby(primary)
	}
	if got := strings.TrimSpace(p.admin(primary, "select count(*) from numbers")); got != strconv.Itoa(runs(t, 3)) {
		t.Errorf("%s rows are left of %d", got, runs(t, 3))
	}
	if log := strings.Join(lines(ssh+".log"), "\n"); !strings.Contains(log, "127.0.0.1: manage stop") || !strings.Contains(log, "pg_rewind -D ") || !strings.Contains(log, "127.0.0.1: manage start") {
		t.Errorf("by ssh were run:\n%s", log)
	}
	end(t, u)
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
