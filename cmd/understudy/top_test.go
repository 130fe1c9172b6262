package main

import (
	"context"
	"errors"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy/control"
	"understudy/failover"
	"understudy/internal/screen"
	"understudy/selector"
)

// newTopView returns the view of two relays whose status was requested twice.
func newTopView(t *testing.T, width, height int) *topView {
	t.Helper()
	first, second := someStatus(), someStatus()
	first.Now = before(2 * time.Second)
	second.Relays[0].Clients.Accepted += 68
	second.Relays[0].Clients.Sent += 2_400_000
	second.Relays[0].Clients.Received += 41_000_000
	second.Relays[0].Hosts[0].Live, second.Relays[0].Hosts[0].Sessions, second.Relays[0].Hosts[0].Sent = 118, 60, 2_400_000
	second.Probes = answering().Probes[:2]
	v := &topView{width: width, height: height}
	v.update([]process{{Status: first}}, nil, moment)
	v.update([]process{{Status: second}}, nil, moment)
	return v
}

// manyRelays returns the view of n relays with two hosts each.
func manyRelays(t *testing.T, width, height, n int) *topView {
	t.Helper()
	s := control.Status{PID: 4711, Now: moment}
	for i := range n {
		r := control.RelayStatus{
			Name: fmt.Sprintf("service-%02d", i+1), Listen: []string{fmt.Sprintf("127.0.0.1:%d", 20001+i)}, State: "serving", Since: before(time.Hour), Epoch: 1,
			Clients: control.Clients{Live: uint64(i * 7 % 60)},
		}
		for _, name := range []string{"a", "b"} {
			r.Hosts = append(r.Hosts, control.Host{Name: fmt.Sprintf("%s%02d:80", name, i+1), State: "up", Since: before(time.Hour), Primary: name == "a"})
		}
		r.Primary, r.Elect = r.Hosts[0].Name, r.Hosts[0].Name
		if i == 41 {
			r.Primary, r.State, r.Why = "", "selecting", "there has been no primary for 3s: no host is usable"
		}
		s.Relays = append(s.Relays, r)
	}
	v := &topView{width: width, height: height}
	v.update([]process{{Status: s}}, nil, moment)
	return v
}

// press presses keys: each character, or one of the constants.
func press(v *topView, keys ...any) *topView {
	for _, k := range keys {
		v.lines(moment) // as the screen is drawn after each key
		switch k := k.(type) {
		case string:
			for _, r := range k {
				v.key(screen.Key(r))
			}
		case screen.Key:
			v.key(k)
		}
	}
	return v
}

// topPages are pages of top, each made from constant values.
func topPages(t *testing.T) map[string]*topView {
	t.Helper()
	withElection := newTopView(t, 100, 30)
	took := withElection.takeElection()
	withElection.elected(*took, []control.Event{{Incident: failedOver()}}, nil)
	lost := newTopView(t, 80, 24)
	lost.update(nil, errors.New("no understudy is running here: no process serves /run/x.sock"), moment.Add(-4*time.Second))
	back := newTopView(t, 80, 24)
	back.update(nil, errors.New("gone"), moment.Add(-4*time.Second))
	back.update(back.all, nil, moment)
	under := newTopView(t, 80, 24)
	under.all[0].Relays[1].State, under.all[0].Relays[1].Elect = "switching", "mx2:25"
	under.all[0].Relays[1].Progress = &failover.Progress{Host: "mx2:25", Step: failover.StageDraining, Since: before(3 * time.Second), Until: moment.Add(27 * time.Second), Connections: 2}
	return map[string]*topView{
		"relay.80x24":   newTopView(t, 80, 24),
		"wide.100x30":   withElection,
		"host.80x24":    press(newTopView(t, 80, 24), "jj"),
		"under-way":     press(under, screen.Tab),
		"probe.80x24":   press(newTopView(t, 80, 24), "G"),
		"folded.60x16":  newTopView(t, 60, 16),
		"narrow.40x12":  newTopView(t, 40, 12),
		"least.20x4":    newTopView(t, 20, 4),
		"tiny.19x3":     newTopView(t, 19, 3),
		"60.80x24":      manyRelays(t, 80, 24, 60),
		"60-end.80x24":  press(manyRelays(t, 80, 24, 60), "G"),
		"60-open.80x24": press(manyRelays(t, 80, 24, 60), screen.PageDown, screen.Enter),
		"state.80x24":   press(manyRelays(t, 80, 24, 60), ">>"),
		"filter.80x24":  press(manyRelays(t, 80, 24, 60), "/b07", screen.Enter),
		"typing.80x24":  press(manyRelays(t, 80, 24, 60), "/none"),
		"confirm.80x24": press(newTopView(t, 80, 24), "jjs"),
		"reason.80x24":  press(newTopView(t, 80, 24), "jjsrit's broken"),
		"freeze.40x12":  press(newTopView(t, 40, 12), "Gkk", "f"),
		"help.80x24":    press(newTopView(t, 80, 24), "?"),
		"help.40x12":    press(newTopView(t, 40, 12), "?"),
		"lost.80x24":    lost,
		"back.80x24":    back,
		"none.80x24":    {width: 80, height: 24, all: []process{{}}},
	}
}

// TestTopPages compares with testdata/top; -update rewrites it. A character before each
// line shows its styles: one for each text.
func TestTopPages(t *testing.T) {
	for name, v := range topPages(t) {
		t.Run(name, func(t *testing.T) {
			var got strings.Builder
			for _, line := range v.lines(moment) {
				got.WriteString(strings.TrimRight(line.String(), " "))
				got.WriteString("\n")
			}
			got.WriteString("--\n")
			for n, line := range v.lines(moment) {
				for _, text := range line {
					if text.Style != screen.Plain && strings.TrimSpace(text.Text) != "" {
						fmt.Fprintf(&got, "%d %s: %s\n", n+1, styleName(text.Style), strings.TrimSpace(text.Text))
					}
				}
			}
			path := filepath.Join("testdata", "top", name)
			if *update {
				if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", path, diff)
			}
		})
	}
}

func styleName(s screen.Style) string {
	name := ""
	if s&screen.Bold != 0 {
		name += "bold "
	}
	if s&screen.Reverse != 0 {
		name += "reverse "
	}
	return strings.TrimSpace(name + []string{"", "green", "red", "yellow"}[s&3])
}

// Every page fits into every terminal, and has the row at the cursor.
func TestTopFitsEveryTerminal(t *testing.T) {
	for name, v := range topPages(t) {
		for width := 1; width <= 200; width += 1 + width/7 {
			for height := 1; height <= 60; height += 1 + height/5 {
				v.width, v.height = width, height
				lines := v.lines(moment)
				if len(lines) > height {
					t.Errorf("%s: %d lines on a terminal of %d", name, len(lines), height)
				}
				if width < topLeastWidth || height < topLeastHeight || v.mode == topHelp || len(v.rows()) == 0 {
					continue
				}
				for _, line := range lines {
					if n := screen.Width(line.String()); n > width && !strings.Contains(line.String(), "understudy top") {
						t.Errorf("%s: %d columns on a terminal of %d: %q", name, n, width, line)
					}
				}
				marked := slices.ContainsFunc(lines[2:], func(l screen.Line) bool {
					return len(l) > 1 && l[0].Style&screen.Reverse != 0
				})
				if !marked && v.mode == topList && height > topLeastHeight {
					t.Errorf("%s on %dx%d: the cursor is nowhere", name, width, height)
				}
			}
		}
	}
}

// An order is given after y, and after nothing else. The command is the one that gives
// the same order.
func TestTopOrders(t *testing.T) {
	host := "--pid 4711 --relay orders"
	for _, tt := range []struct {
		keys []any
		want string // the command of the order that is given
	}{
		{[]any{"jjs", "y"}, "understudy switch db2.example:5432 " + host},
		{[]any{"jjs", "n"}, ""},
		{[]any{"jjs", screen.Enter}, ""},
		{[]any{"jjs", screen.Escape}, ""},
		{[]any{"jjs", "q"}, ""},
		{[]any{"jjd", "r", "it's broken", screen.Enter, "y"}, "understudy drain db2.example:5432 " + host + ` --reason 'it'\''s broken'`},
		{[]any{"jjd", "r", "abc", screen.Backspace, screen.Key(0x15), "disk", screen.Enter, "y"}, "understudy drain db2.example:5432 " + host + " --reason disk"},
		{[]any{"jjd", "r", "disk", screen.Escape, "y"}, "understudy drain db2.example:5432 " + host},
		{[]any{"jj", screen.F10, "y"}, "understudy drain db2.example:5432 " + host},
		{[]any{"jjj", "r", "y"}, "understudy ready db3.example:5432 " + host},
		{[]any{"jjj", "r", "r", "y"}, ""}, // ready keeps no reason
		{[]any{"jjj", screen.F9, "y"}, "understudy ready db3.example:5432 " + host},
		{[]any{"f", "y"}, "understudy unfreeze " + host},
		{[]any{screen.Tab, "f", "y"}, "understudy freeze --pid 4711 --relay mail"},
		{[]any{"jjf", "y"}, "understudy unfreeze " + host}, // that of its relay
		{[]any{"s", "y"}, ""},      // of a relay
		{[]any{"G", "d", "y"}, ""}, // of a probe
	} {
		v := newTopView(t, 80, 24)
		v.options.PID = 4711
		got := ""
		if o := press(v, tt.keys...).takeOrder(); o != nil {
			got = o.command()
		}
		if got != tt.want {
			t.Errorf("%q: %q, want %q", tt.keys, got, tt.want)
		}
		if v.quit || v.takeOrder() != nil {
			t.Errorf("%q: quit is %v, or an order is given twice", tt.keys, v.quit)
		}
	}
}

func TestShellWord(t *testing.T) {
	for word, want := range map[string]string{
		"db1:5432": "db1:5432", "[::1]:80": "'[::1]:80'", "": "''", "a b": "'a b'", "$(x)": "'$(x)'", "a'b": `'a'\''b'`,
	} {
		if got := shellWord(word); got != want {
			t.Errorf("shellWord(%q) = %s, want %s", word, got, want)
		}
	}
}

// The cursor stays at its row when rows come, go and move.
func TestTopCursor(t *testing.T) {
	v := press(manyRelays(t, 80, 24, 60), ">>>", "jjj") // by clients
	v.cursor = v.rows()[slices.IndexFunc(v.rows(), func(r topRow) bool { return r.key.relay == "service-06" })].key
	name := func() string {
		rows := v.rows()
		return rows[v.chosen(rows)].key.relay
	}
	v.all[0].Relays[5].Clients.Live = 1000 // it comes first
	if got := name(); got != "service-06" || v.rows()[0].key != v.cursor {
		t.Errorf("when its relay comes first the cursor is at %s", got)
	}
	v.all[0].Relays[5].Clients.Live = 35
	restarted := v.all[0]
	restarted.PID = 4712
	v.update([]process{restarted}, nil, moment)
	if got := name(); got != "service-06" {
		t.Errorf("after a restart the cursor is at %s", got)
	}
	press(v, screen.Enter, "jj") // its second host
	restarted.PID = 4713
	v.update([]process{restarted}, nil, moment)
	rows := v.rows()
	if got := rows[v.chosen(rows)]; got.host == nil || got.host.Name != "b06:80" {
		t.Errorf("after a restart the cursor is at %v, want a host", got.key)
	}
	press(v, "k", "k")
	press(v, "/service-4", screen.Enter)
	if got := name(); !strings.HasPrefix(got, "service-4") {
		t.Errorf("the cursor is at %s, which is not shown", got)
	}
	press(v, screen.Escape, "g", screen.Enter, "j") // the first host of the first relay
	if v.cursor.host == "" {
		t.Errorf("the cursor is at %v, want a host", v.cursor)
	}
	if press(v, screen.Enter); v.cursor.host != "" {
		t.Errorf("the cursor is at %v, whose hosts are hidden", v.cursor)
	}
	for _, k := range []any{screen.End, screen.PageDown, screen.Down, screen.Home, screen.PageUp, screen.Up} {
		press(v, k)
	}
	if got := v.chosen(v.rows()); got != 0 {
		t.Errorf("the cursor is at row %d, want the first", got)
	}
}

func TestTopSorts(t *testing.T) {
	v := manyRelays(t, 80, 24, 60)
	first := func() string { return v.rows()[0].key.relay }
	var got []string
	for range topSorts {
		got = append(got, first())
		press(v, ">")
	}
	press(v, "R")
	got = append(got, first())
	want := []string{"service-01", "service-01", "service-42", "service-18", "service-01", "service-01", "service-60"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("first of each order (-want +got):\n%s", diff)
	}
}

// A new order is shown from its beginning, wherever the cursor was before.
func TestTopSortsIntoView(t *testing.T) {
	v := manyRelays(t, 80, 24, 60)
	for i := range v.all[0].Relays { // the order of the settings is not that of names
		r := &v.all[0].Relays[i]
		r.Name = fmt.Sprintf("service-%02d", (i+20)%60)
	}
	press(v, ">", ">") // by name: the cursor is in the middle; by state
	worst, page := v.rows()[0].key.relay, pageText(v)
	if !strings.Contains(page, "+ "+worst+" ") || !strings.Contains(page, "selecting") {
		t.Errorf("sorted by state, %s is not in view:\n%s", worst, page)
	}
	press(v, screen.End, "R")
	if first := v.rows()[0].key; v.cursor != first || !strings.Contains(pageText(v), "+ "+first.relay+" ") {
		t.Errorf("the cursor is at %v, and the first is %v:\n%s", v.cursor, first, pageText(v))
	}
}

func pageText(v *topView) string {
	var text strings.Builder
	for _, line := range v.lines(moment) {
		text.WriteString(line.String() + "\n")
	}
	return text.String()
}

// What needs an operator comes first, and is named.
func TestTopNamesTrouble(t *testing.T) {
	v := manyRelays(t, 120, 24, 4)
	relays := v.all[0].Relays
	relays[1].NoStandby = before(time.Minute)
	relays[2].Canary = &control.Canary{Result: "failed", OutageAt: before(time.Minute)}
	relays[3].Hosts[0].State, relays[3].Frozen = "down", &failover.Lock{Since: before(time.Hour)}
	press(v, ">>")
	var got []string
	for _, r := range v.rows() {
		if r.host == nil {
			got = append(got, r.key.relay+": "+noteCell(v, r).Text)
		}
	}
	want := []string{"service-04: a04:80, down, frozen", "service-03: a03:80, canary not served", "service-02: a02:80, no standby", "service-01: a01:80"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sorted by state (-want +got):\n%s", diff)
	}
}

// Rates are those of one process: a new one with the same number has none yet.
func TestTopRates(t *testing.T) {
	at := func(seconds int, accepted uint64, started time.Time) []process {
		return []process{{Status: control.Status{PID: 1, Started: started, Now: moment.Add(time.Duration(seconds) * time.Second), Relays: []control.RelayStatus{{
			Name: "r", Clients: control.Clients{Accepted: accepted, Sent: 10 * accepted, Received: 100 * accepted},
			Hosts: []control.Host{{Name: "h", Sessions: accepted, Sent: 10 * accepted}},
		}}}}}
	}
	relay, host := topKey{pid: 1, relay: "r"}, topKey{pid: 1, relay: "r", host: "h"}
	want := map[topKey]topRate{relay: {5, 50, 500}, host: {5, 50, 0}}
	if diff := cmp.Diff(want, ratesOf(at(0, 10, moment), at(2, 20, moment)), cmp.AllowUnexported(topKey{}, topRate{})); diff != "" {
		t.Errorf("rates (-want +got):\n%s", diff)
	}
	for name, after := range map[string][]process{"restarted": at(2, 3, moment.Add(time.Second)), "no time": at(0, 20, moment)} {
		if got := ratesOf(at(0, 10, moment), after); len(got) != 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// The last election of the relay at the cursor is requested once for each update, until
// it is complete.
func TestTopElections(t *testing.T) {
	v := newTopView(t, 80, 24)
	first := v.takeElection()
	if first == nil || v.takeElection() != nil {
		t.Fatalf("requested %v first, and again", first)
	}
	unfinished := failedOver()
	unfinished.Done = false
	v.elected(*first, []control.Event{{Incident: unfinished}}, nil)
	if v.takeElection() != nil {
		t.Error("requested again without an update")
	}
	v.update(v.all, nil, moment)
	second := v.takeElection()
	if second == nil {
		t.Fatal("an election that is not complete is not requested again")
	}
	v.elected(*second, []control.Event{{Incident: failedOver()}, {Incident: remoteDrain()}}, nil)
	v.update(v.all, nil, moment)
	if v.takeElection() != nil {
		t.Error("a complete election is requested again")
	}
	if last := v.elections[electionKey(*second)]; last.ID != failedOver().ID {
		t.Errorf("the last election is %+v, want that before the order", last)
	}
	v.all[0].Relays[0].Epoch++
	third := v.takeElection()
	if third == nil {
		t.Fatal("the next election is not requested")
	}
	if v.elected(*third, nil, errors.New("no answer")); v.takeElection() != nil {
		t.Error("requested again at once after a failure")
	}
}

// One of several processes that does not answer keeps its last values.
func TestTopSilentProcess(t *testing.T) {
	one, two := someStatus(), manyRelays(t, 80, 24, 1).all[0].Status
	one.PID = 1
	v := &topView{width: 80, height: 24}
	v.update([]process{{Status: one}, {Status: two}}, nil, moment)
	v.update([]process{{Status: one}, {Status: control.Status{PID: two.PID}, err: errors.New("stopped")}}, nil, moment)
	if len(v.rows()) != len(one.Relays)+len(one.Relays[0].Hosts)+len(one.Relays[1].Hosts)+3 {
		t.Errorf("%d rows", len(v.rows()))
	}
	if got := v.lines(moment)[1].String(); got != "no answer for 0s: pid 4711: stopped" {
		t.Errorf("the notice is %q", got)
	}
	v.update([]process{{Status: one}}, nil, moment)
	if got := v.lines(moment)[1].String(); got != "answers again, after 0s" && got != "pid 4711 has ended" {
		t.Errorf("the notice is %q", got)
	}
}

func TestScaled(t *testing.T) {
	for n, want := range map[float64]string{
		0: "0", 0.04: "0", 0.5: "0.5", 1: "1", 9.94: "9.9", 9.96: "10", 33.4: "33", 999: "999", 999.6: "1k", 1234: "1.2k", 12345: "12k",
		999_400: "999k", 1_234_567: "1.2M", 2.5e9: "2.5G", 1e24: "1000000E",
	} {
		if got := scaled(n); got != want {
			t.Errorf("scaled(%v) = %s, want %s", n, got, want)
		}
	}
}

// No text of a host, a script or another operator can control the terminal.
func TestTopIsSafe(t *testing.T) {
	const evil = "a\x1b[2J\x1b]0;title\x07\r\n\tb\u009b31m\u202e\x9bc"
	s := someStatus()
	r := &s.Relays[0]
	r.Name, r.Why, r.Elect, r.Primary, r.State, r.Listen, r.Warnings = evil, evil, evil, evil, evil, []string{evil}, []string{evil}
	r.Frozen = &failover.Lock{By: evil, Reason: evil}
	r.Hosts[0].Name, r.Hosts[0].Why, r.Hosts[0].State, r.Hosts[0].Drained = evil, evil, evil, &failover.Lock{By: evil, Reason: evil}
	r.Hosts[0].Checks = []control.Check{{Name: evil, State: evil, Streak: -1, Last: &control.Result{Phase: evil, Error: evil}}}
	s.Probes = []control.Probe{{Name: evil, State: evil, Why: evil}}
	v := &topView{width: 120, height: 40}
	v.update([]process{{Status: s}}, nil, moment)
	i := failedOver()
	i.Reason, i.Old, i.Failure, i.Event, i.Triggers[0].Output = evil, evil, evil, selector.Kind(evil), evil
	v.elected(*v.takeElection(), []control.Event{{Incident: i}}, nil)
	v.answered(topOrder{verb: "switch", host: evil}, "", errors.New(evil))
	for _, keys := range [][]any{nil, {"j"}, {"s"}, {screen.Escape, "G"}, {"/" + "x\u202e"}} {
		for _, line := range press(v, keys...).lines(moment) {
			text := line.Encode(v.width, false)
			text = strings.NewReplacer("\x1b[0m", "", "\x1b[1m", "", "\x1b[7m", "", "\x1b[1;7m", "").Replace(text)
			if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u202e' }) {
				t.Errorf("after %q: %q", keys, text)
			}
		}
	}
}

// crashTop is a top in which something is wrong.
func crashTop(in string) error {
	s, err := screen.Open(os.Getenv("TERM"), true)
	if err != nil {
		return err
	}
	defer s.Close()
	run := topRun{screen: s, view: &topView{}, do: make(chan func())}
	run.look = func(ctx context.Context) ([]process, error) {
		if in == "a goroutine" {
			panic("on purpose")
		}
		run.send(ctx, func() { panic("on purpose") })
		return nil, errors.New("not reached")
	}
	return run.run(context.Background(), time.Millisecond)
}

// pictured returns a view a few seconds after a failover, as the README shows it.
func pictured(t *testing.T) *topView {
	t.Helper()
	host := func(name, state string, since time.Duration, primary bool, live uint64, latency float64) control.Host {
		h := control.Host{Name: name, State: state, Since: before(since), Primary: primary, Live: live, Sessions: live, Why: name + " is " + state}
		last := &control.Result{At: before(time.Second / 2), OK: state == "up", Seconds: latency}
		if !last.OK {
			last.Phase, last.Error = "connect", "connect: connection refused"
		}
		h.Checks = []control.Check{{Name: "tcp", State: state, Streak: 1, Last: last}}
		return h
	}
	s := control.Status{PID: 4711, Started: before(75 * time.Hour), Now: before(time.Second), Relays: []control.RelayStatus{
		{
			Name: "orders", Listen: []string{":5432"}, State: "serving", Since: before(12 * time.Second), Primary: "db1.example:5432", Elect: "db1.example:5432",
			Elected: before(12 * time.Second), Epoch: 7, Event: "failover", NoStandby: before(12 * time.Second),
			Why:     "db1.example:5432 has been primary for 12s (failover: db2.example:5432 is down: tcp: connection refused)",
			Clients: control.Clients{Live: 117, Accepted: 48210, Finished: 47931, Reset: 12, Fenced: 150},
			Hosts: []control.Host{
				host("db1.example:5432", "up", 75*time.Hour, true, 117, 0.00041),
				host("db2.example:5432", "down", 12*time.Second, false, 0, 0.0003),
			},
		},
		{
			Name: "mail", Listen: []string{":25"}, State: "serving", Since: before(75 * time.Hour), Primary: "mx1:25", Elect: "mx1:25",
			Elected: before(75 * time.Hour), Epoch: 1, Event: "start", Clients: control.Clients{Live: 8, Accepted: 9120},
			Frozen: &failover.Lock{Kind: failover.Freeze, By: "anna"},
			Hosts: []control.Host{
				host("mx1:25", "up", 75*time.Hour, true, 8, 0.0011),
				host("mx2:25", "up", 26*time.Hour, false, 0, 0.0013),
			},
		},
	}}
	s.Relays[1].Hosts[1].Drained = &failover.Lock{Kind: failover.Drain, By: "anna", Reason: "new disk", Since: before(26 * time.Hour)}
	v := &topView{width: 100, height: 24}
	v.update([]process{{Status: s}}, nil, moment)
	now := s
	now.Now, now.Relays = moment, slices.Clone(s.Relays)
	for i, more := range []topRate{{34, 1_240_000, 20_300_000}, {0.8, 4_100, 980}} {
		r := &now.Relays[i]
		r.Clients.Accepted += uint64(more.connections + 0.5)
		r.Clients.Sent, r.Clients.Received = uint64(more.sent), uint64(more.received)
		r.Hosts = slices.Clone(r.Hosts)
		r.Hosts[0].Sessions, r.Hosts[0].Sent, r.Hosts[0].Received = r.Hosts[0].Sessions+uint64(more.connections), uint64(more.sent), uint64(more.received)
	}
	v.update([]process{{Status: now}}, nil, moment)
	i := failedOver()
	i.BoundSeconds, i.OverBound = 2.8, false
	v.elected(*v.takeElection(), []control.Event{{Incident: i}}, nil)
	return v
}

// The picture in the README is what top draws; -update makes it anew.
func TestTopPicture(t *testing.T) {
	const path = "../../docs/top.svg"
	v := pictured(t)
	got := svg(v.lines(moment), v.width)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not what top draws: go test ./cmd/understudy -run Picture -update", path)
	}
	if len(got) > 100_000 {
		t.Errorf("%s has %d bytes, want 100,000 at most", path, len(got))
	}
}

// svg returns a picture of a page on a dark terminal.
func svg(lines []screen.Line, width int) string {
	const wide, high, margin, dark, light = 8.4, 18, 12, "#1c1f24", "#d8dce2"
	var out strings.Builder
	w, h := float64(width)*wide+2*margin, len(lines)*high+2*margin
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %d" width="%.0f" height="%d" font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14" fill="%s">`+"\n", w, h, w, h, light)
	fmt.Fprintf(&out, `<rect width="100%%" height="100%%" rx="8" fill="%s"/>`+"\n", dark)
	for n, line := range lines {
		column := 0
		for _, text := range line {
			x, y, fill := margin+float64(column)*wide, margin+n*high, []string{light, "#7fd18b", "#f28b82", "#f2cc60"}[text.Style&3]
			size := screen.Width(text.Text)
			column += size
			if text.Style&screen.Reverse != 0 {
				fmt.Fprintf(&out, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", x, y, float64(size)*wide, high, fill)
				fill = dark
			}
			shown := strings.TrimRight(text.Text, " ")
			rest := strings.TrimLeft(shown, " ")
			if rest == "" {
				continue
			}
			x += float64(screen.Width(shown)-screen.Width(rest)) * wide
			weight := ""
			if text.Style&screen.Bold != 0 {
				weight = ` font-weight="bold"`
			}
			fmt.Fprintf(&out, `<text x="%.1f" y="%d" textLength="%.1f" xml:space="preserve" fill="%s"%s>%s</text>`+"\n",
				x, y+high-5, float64(screen.Width(rest))*wide, fill, weight, html.EscapeString(rest))
		}
	}
	out.WriteString("</svg>\n")
	return out.String()
}
