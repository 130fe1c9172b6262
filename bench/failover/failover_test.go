//go:build linux

package main

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"understudy/bench/netns"
	"understudy/internal/proctest"
)

// The copy in the namespace, and the hosts, are this binary.
func TestMain(m *testing.M) {
	if netns.Inside() || len(os.Args) > 1 && os.Args[1] == roleHost {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func TestUsageIsExplained(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"-h"}, 0, "-rounds"},
		{[]string{"-only", "("}, 2, "missing closing )"},
		{[]string{"-rounds", "0"}, 2, "-rounds 0 is less than 1"},
		{[]string{"everything"}, 2, `unexpected argument "everything"`},
		{[]string{roleHost}, 1, "usage: failover host NAME"},
	} {
		var stderr bytes.Buffer
		if code := run(tt.args, io.Discard, &stderr); code != tt.code || !strings.Contains(stderr.String(), tt.says) {
			t.Errorf("failover %s: exit %d, %q, want %d, %q", strings.Join(tt.args, " "), code, stderr.String(), tt.code, tt.says)
		}
	}
}

// The generator sees what happens to its clients: served, lost after the
// greeting, answered with another client's line.
func TestLoadSeesWhatHappens(t *testing.T) {
	for _, tt := range []struct {
		name  string
		serve func(conn net.Conn)
		lost  bool
		why   string
	}{
		{"served", func(conn net.Conn) { converse(conn, "db1", false) }, false, ""},
		{"greeted and left", func(conn net.Conn) {
			_, _ = io.WriteString(conn, "db1\n")
			_, _ = conn.Read(make([]byte, 100))
			conn.Close()
		}, true, "EOF"},
		{"answered wrongly", func(conn net.Conn) {
			_, _ = io.WriteString(conn, "db1\n1 client x\n")
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}, true, "another client's answer"},
	} {
		listener, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				go tt.serve(conn)
			}
		}()
		g := startLoad(t.Context(), listener.Addr().String())
		proctest.Until(t, tt.name+": 20 clients are served or lost", func() bool {
			by, lost := g.served()
			return by[oldHost]+lost >= 20
		})
		o := g.finish().evaluate()
		listener.Close()
		wantLost, wantServed := 0, o.clients
		if tt.lost {
			wantLost, wantServed = o.clients, 0
		}
		if o.lost != wantLost || o.greeted != wantLost || o.by[oldHost] != wantServed {
			t.Errorf("%s: of %d clients %d were lost, %d after a greeting, served %v", tt.name, o.clients, o.lost, o.greeted, o.by)
		}
		if why := describeReasons(o.reasons); !strings.Contains(why, tt.why) {
			t.Errorf("%s: lost because %q, want %q", tt.name, why, tt.why)
		}
	}
}

// The connections of a pool are kept and used; one that ends is replaced, and
// costs one request.
func TestPoolsKeepTheirConnections(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var accepted, answered atomic.Int64
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			go func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, "db1\n")
				lines := bufio.NewReader(conn)
				for range 3 { // and the fourth request is lost
					line, err := lines.ReadString('\n')
					if err != nil {
						return
					}
					_, _ = io.WriteString(conn, "1 "+line)
					answered.Add(1)
				}
				_, _ = lines.ReadString('\n')
			}()
		}
	}()
	g := startPools(t.Context(), listener.Addr().String())
	proctest.Until(t, "every connection is replaced twice", func() bool { return accepted.Load() >= 3*pooled })
	o := g.finish().evaluate()
	if o.by[oldHost] != int(answered.Load()) || o.lost < pooled || int64(o.lost) > accepted.Load() || o.greeted != o.lost {
		t.Errorf("%d served, %d lost, %d greeted; want %d served and one lost for each of %d connections that ended",
			o.by[oldHost], o.lost, o.greeted, answered.Load(), accepted.Load())
	}
}

// A run of some trials leaves the tables of the others in the page, with the
// runs that they state.
func TestPartsOfThePageAreKept(t *testing.T) {
	d := &driver{settings: settings{rounds: 3}, proxies: proxies("")[:1]}
	trial := func(fault string) []result {
		return []result{{fault: fault, proxy: d.proxies[0].name, outcome: outcome{by: map[string]int{}}}}
	}
	d.results = trial("killed")
	first := d.report(machine{date: "yesterday"}, "")
	d.results = trial("killed, pools")
	second := d.report(machine{date: "today"}, first)
	d.results = trial("stopped")
	third := d.report(machine{date: "tomorrow"}, second)
	for page, want := range map[string]string{
		first: "yesterday killed/", second: "yesterday killed/ today killed, pools/", third: "tomorrow stopped/ today killed, pools/",
	} {
		var got []string
		for _, m := range regexp.MustCompile(`(?m)^- (\w+day|tomorrow), |^\| ([a-z, ]+) \| understudy \|`).FindAllStringSubmatch(page, -1) {
			if m[1] != "" {
				got = append(got[:len(got)-1], m[1], got[len(got)-1]) // the run comes after its rows
			} else {
				got = append(got, m[2]+"/")
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("rows and runs: %q, want %q:\n%s", got, want, page)
		}
		if n := strings.Count(page, "## Settings\n"); n != 1 || !strings.HasSuffix(page, limits) {
			t.Errorf("%d parts on settings:\n%s", n, page)
		}
	}
}

func TestTableHasMedianAndWorst(t *testing.T) {
	trial := func(gap time.Duration, never bool, lost int) result {
		return result{fault: "killed", proxy: "x", outcome: outcome{gap: gap, never: never, lost: lost, by: map[string]int{oldHost: 3, newHost: 4}}}
	}
	for _, tt := range []struct {
		trials []result
		want   string // gap and lost
	}{
		{[]result{trial(30*ms, false, 2), trial(10*ms, false, 0), trial(20*ms, false, 1)}, "| 20 ms (30 ms) | 1 (2) |"},
		{[]result{trial(20*ms, false, 5)}, "| 20 ms | 5 |"},
		{[]result{trial(13*time.Second, false, 0), trial(12*time.Second, true, 0)}, "| over 12.0 s | 0 |"},
	} {
		got := row("killed", "x", tt.trials)
		if !strings.HasPrefix(got, "| killed | x "+tt.want) {
			t.Errorf("row of %d trials = %s, want %s", len(tt.trials), got, tt.want)
		}
		if served := strconv.Itoa(3*len(tt.trials)) + " / " + strconv.Itoa(4*len(tt.trials)); !strings.Contains(got, served) {
			t.Errorf("row of %d trials = %s, want the sum %s of who served", len(tt.trials), got, served)
		}
	}
}

// The committed page has the text of these files: edit the text there.
func TestKeptPageHasTheTexts(t *testing.T) {
	page, err := os.ReadFile("../../docs/failover.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(page, []byte(preface)) || !bytes.HasSuffix(page, []byte(limits)) {
		t.Error("docs/failover.md differs from preface.md or limits.md: make bench-failover, or put the new text there too")
	}
}

// Everything runs: one round of the quick trials, for the proxies that are
// installed. The assertions on understudy hold on any machine.
func TestQuickRun(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: takes half a minute")
	}
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root, for a network namespace")
	}
	for program, name := range map[string]string{"nft": "nftables", "haproxy": "haproxy"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("SKIP: needs %s (apt-get install %s)", program, name)
		}
	}
	out := filepath.Join(t.TempDir(), "failover.md")
	var stdout, stderr bytes.Buffer
	code := run([]string{"-quick", "-out", out, "-only", "silenced/understudy|replaced/(understudy|haproxy tuned)|pools/understudy|killed, client first/understudy"}, &stdout, &stderr)
	t.Logf("%s%s", stderr.String(), stdout.String())
	if code != 0 {
		t.Fatalf("exit %d", code)
	}
	for _, row := range []string{
		// Gap, clients lost, two times, served by each, wrong, sessions left. Clients
		// that were being answered at the fault are lost, few on any machine.
		`\| silenced \| understudy \| [^|]+ \| \d \|[^|]+\|[^|]+\| [1-9]\d* / [1-9]\d* \| 0 \| 0 \|\n`,
		`\| replaced \| understudy \| [^|]+ \| \d \|[^|]+\|[^|]+\| [1-9]\d* / [1-9]\d* \| 0 \| 0 \|\n`,
		`\| killed, pools \| understudy \| [^|]+ \| \d+ \|[^|]+\|[^|]+\| [1-9]\d* / [1-9]\d* \| 0 \| 0 \|\n`,
		// No opening that is recognized is lost.
		`\| killed, client first \| understudy \| [^|]+ \| 0 \| 0 \| 0 \| \d+ \|[^|]+\| 0 \| 0 \|\n`,
		`\| replaced \| haproxy tuned \| [^|]+ \| \d+ \|[^|]+\|[^|]+\| [1-9]\d* / [1-9]\d* \| \d+ \| 0 \|\n`,
	} {
		if !regexp.MustCompile(row).MatchString(stdout.String()) {
			t.Errorf("the table has no row like %s", row)
		}
	}
	page, err := os.ReadFile(out)
	if !bytes.Contains(page, []byte("--pong-port")) {
		t.Errorf("the page (%v) lacks the settings:\n%s", err, page)
	}
	for table := range strings.SplitSeq(stdout.String(), "\n\n") {
		if !bytes.Contains(page, []byte(table)) {
			t.Errorf("the page lacks the table\n%s:\n%s", table, page)
		}
	}
	if left := hostsLeft(t); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// hostsLeft lists processes of this binary that are hosts.
func hostsLeft(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		exe, _ := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if exe == self && bytes.Contains(line, []byte("\x00"+roleHost+"\x00")) {
			left = append(left, e.Name())
		}
	}
	return strings.Join(left, " ")
}
