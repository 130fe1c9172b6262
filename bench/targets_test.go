package main

import (
	"slices"
	"strings"
	"testing"
)

// verdict is the row of the target table whose name and must begin so.
func verdict(t *testing.T, r results, user, what, must string) []string {
	t.Helper()
	table, _ := verdicts(r, user)
	for _, row := range table.rows[1:] {
		if row[0] == what && row[1] == must {
			return row[3:]
		}
	}
	t.Fatalf("no target %q, %q", what, must)
	return nil
}

func TestTargetsAreComparedWithEveryPeerTheyName(t *testing.T) {
	for _, tt := range []struct {
		name   string
		figure string
		metric string
		peers  map[string][]float64
		what   string
		must   string
		want   []string // measured, must met, aim met
	}{
		{
			"faster than both HAProxies", "connect/16/usual", rate,
			map[string][]float64{subject: {140}, "haproxy-2": {100}, "haproxy-1": {100}},
			"connections/s ÷ HAProxy", "≥ 1.10", []string{"1.40 ÷ haproxy-2, 1.40 ÷ haproxy-1", "yes", "yes"},
		},
		{
			"faster than one of them only", "connect/16/usual", rate,
			map[string][]float64{subject: {120}, "haproxy-2": {100}, "haproxy-1": {110}},
			"connections/s ÷ HAProxy", "≥ 1.10", []string{"1.20 ÷ haproxy-2, 1.09 ÷ haproxy-1", "**no**", "**no**"},
		},
		{
			"must met, aim not", "bulk/8/usual", rate,
			map[string][]float64{subject: {80}, direct: {100}},
			"bulk 8: rate ÷ direct", "≥ 0.70", []string{"0.80 ÷ direct", "yes", "**no**"},
		},
		{
			"less is better for processor time", "bulk/8/usual", processor,
			map[string][]float64{subject: {0.3}, "haproxy-2": {1}, "haproxy-1": {2}},
			"bulk 8: processor time for each GB ÷ HAProxy", "≤ 0.27", []string{"0.30 ÷ haproxy-2, 0.15 ÷ haproxy-1", "**no**", ""},
		},
		{
			"the median of rounds counts, not the best", "bulk/8/usual", rate,
			map[string][]float64{subject: {60, 60, 100}, direct: {100, 100, 100}},
			"bulk 8: rate ÷ direct", "≥ 0.70", []string{"0.60 ÷ direct", "**no**", "**no**"},
		},
		{
			"two descriptors and the loops' own", "idle/9000/usual", descriptors,
			map[string][]float64{subject: {2.003}},
			"idle 9000: descriptors", "= 2.00", []string{"2.00", "yes", ""},
		},
		{
			"a pipe that stays", "idle/9000/usual", descriptors,
			map[string][]float64{subject: {4}},
			"idle 9000: descriptors", "= 2.00", []string{"4.00", "**no**", ""},
		},
		{
			"nothing to compare with", "connect/16/usual", rate,
			map[string][]float64{subject: {100}},
			"connections/s ÷ HAProxy", "≥ 1.10", []string{"–", "not measured", "not measured"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := verdict(t, runOf("root", tt.figure, tt.metric, tt.peers), "root", tt.what, tt.must)
			if !slices.Equal(got, tt.want) {
				t.Errorf("%s is rated %q, want %q", tt.what, got, tt.want)
			}
		})
	}
}

func TestMemoryMayNotGrowWithUse(t *testing.T) {
	r := runOf("root", "idle/1000/usual", processMemory, map[string][]float64{subject: {0.1}})
	for after, want := range map[float64]string{0.15: "yes", 0.1: "yes", 0.05: "yes", 0.3: "**no**"} {
		all := slices.Concat(r, runOf("root", "idle/1000/usual", processMemory+used1MiB, map[string][]float64{subject: {after}}))
		if got := verdict(t, all, "root", "idle 1000: its growth after use, KiB", "≤ 0.10")[1]; got != want {
			t.Errorf("0.1 KiB fresh and %v after use: met = %q, want %q", after, got, want)
		}
	}
}

func TestGrowthIsComparedWithThatOfHAProxy(t *testing.T) {
	r := slices.Concat(
		runOf("root", "echo/64B/100/usual", processor, map[string][]float64{subject: {10}, "haproxy-2": {20}, "haproxy-1": {20}}),
		runOf("root", "echo/64B/9000/usual", processor, map[string][]float64{subject: {15}, "haproxy-2": {40}, "haproxy-1": {25}}),
	)
	got := verdict(t, r, "root", "processor time for each message, 9,000 ÷ 100 connections", "≤ 1.00")
	want := []string{"0.75 (1.50 ÷ 2.00 of haproxy-2), 1.20 (1.50 ÷ 1.25 of haproxy-1)", "**no**", ""}
	if !slices.Equal(got, want) {
		t.Errorf("growth is rated %q, want %q", got, want)
	}
}

func TestUnprivilegedIsComparedWithRoot(t *testing.T) {
	r := slices.Concat(
		runOf("root", "bulk/200/usual", rate, map[string][]float64{subject: {4}}),
		runOf("nobody", "bulk/200/usual", rate, map[string][]float64{subject: {3}}),
	)
	const what = "unprivileged, 200 busy connections: rate"
	if got := verdict(t, r, "nobody", what, "≥ 0.90"); got[0] != "0.75 ÷ root" || got[1] != "**no**" {
		t.Errorf("three quarters of root's rate is rated %q", got)
	}
	if got := verdict(t, r, "root", what, "≥ 0.90"); got[1] != "not measured" {
		t.Errorf("root against root is rated %q", got)
	}
}

func TestVerdictsCountWhatIsNotMet(t *testing.T) {
	r := runOf("root", "bulk/8/usual", rate, map[string][]float64{subject: {1}, direct: {100}, "haproxy-2": {100}})
	table, unmet := verdicts(r, "root")
	said := 0
	for _, row := range table.rows {
		if strings.Contains(row[4], "no**") {
			said++
		}
	}
	if unmet != 2 || said != 2 {
		t.Errorf("verdicts count %d unmet and show %d, want 2", unmet, said)
	}
}

func TestTimeForAMessageIsTheRateTurnedRound(t *testing.T) {
	r := runOf("root", "echo-unix-host/64B/64/lean", rate, map[string][]float64{subject: {75, 75, 80}, direct: {100, 100, 100}})
	got := verdict(t, r, "root", "echo 64B 64, host by a unix socket, lean: time for a message ÷ direct", "≤ 1.40")
	if want := []string{"1.33 ÷ direct", "yes", "**no**"}; !slices.Equal(got, want) {
		t.Errorf("three quarters of the rate is judged %q, want %q", got, want)
	}
}

func TestThreadsAreComparedWithThoseOfOneRelay(t *testing.T) {
	one := runOf("root", "relays/1/lean", threads, map[string][]float64{subject: {9}})
	for n, want := range map[float64][]string{
		9:  {"0.00 (9.00, 9.00)", "yes", ""},
		12: {"3.00 (12.0, 9.00)", "**no**", ""},
	} {
		r := slices.Concat(one, runOf("root", "relays/400/lean", threads, map[string][]float64{subject: {n}}))
		if got := verdict(t, r, "root", "400 relays: more threads than with 1", "≤ 0.00"); !slices.Equal(got, want) {
			t.Errorf("%v threads are judged %q, want %q", n, got, want)
		}
	}
}
