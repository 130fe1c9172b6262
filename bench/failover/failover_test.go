//go:build linux

package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/bench/netns"
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
// greeting, answered with somebody else's line.
func TestLoadSeesWhatHappens(t *testing.T) {
	for _, tt := range []struct {
		name  string
		serve func(conn net.Conn)
		lost  bool
		why   string
	}{
		{"served", func(conn net.Conn) { converse(conn, "db1") }, false, ""},
		{"greeted and left", func(conn net.Conn) {
			_, _ = io.WriteString(conn, "db1\n")
			_, _ = conn.Read(make([]byte, 100))
			conn.Close()
		}, true, "EOF"},
		{"answered wrongly", func(conn net.Conn) {
			_, _ = io.WriteString(conn, "db1\n1 client x\n")
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}, true, "somebody else's answer"},
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
		for deadline := time.Now().Add(30 * time.Second); ; {
			by, lost := g.served()
			if by[oldHost]+lost >= 20 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: served %v, lost %d in 30 s", tt.name, by, lost)
			}
			time.Sleep(5 * time.Millisecond)
		}
		o := g.finish().judge()
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

// The page that is kept says what these files say: text is changed in them.
func TestKeptPageHasTheTexts(t *testing.T) {
	page, err := os.ReadFile("../../docs/failover.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(page, []byte(preface)) || !bytes.HasSuffix(page, []byte(limits)) {
		t.Error("docs/failover.md differs from preface.md or limits.md: make bench-failover, or put the new text there too")
	}
}

// Everything runs: one round of what ends quickly, for whoever is there. What
// is asserted of understudy is what holds on any machine.
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
	code := run([]string{"-quick", "-out", out, "-only", "silenced/understudy|replaced/(understudy|haproxy tuned)"}, &stdout, &stderr)
	t.Logf("%s%s", stderr.String(), stdout.String())
	if code != 0 {
		t.Fatalf("exit %d", code)
	}
	for _, row := range []string{
		// Gap, clients lost, two times, served by each, wrong, sessions left. Who
		// was being answered when it happened is lost, few on any machine.
		`\| silenced \| understudy \| [^|]+ \| \d \|[^|]+\|[^|]+\| [1-9]\d* / [1-9]\d* \| 0 \| 0 \|\n`,
		`\| replaced \| understudy \| [^|]+ \| \d \|[^|]+\|[^|]+\| [1-9]\d* / [1-9]\d* \| 0 \| 0 \|\n`,
		`\| replaced \| haproxy tuned \| [^|]+ \| \d+ \|[^|]+\|[^|]+\| [1-9]\d* / [1-9]\d* \| \d+ \| 0 \|\n`,
	} {
		if !regexp.MustCompile(row).MatchString(stdout.String()) {
			t.Errorf("the table has no row like %s", row)
		}
	}
	page, err := os.ReadFile(out)
	if !bytes.Contains(page, stdout.Bytes()) || !bytes.Contains(page, []byte("--pong-port")) {
		t.Errorf("the page (%v) lacks the table or the settings:\n%s", err, page)
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
