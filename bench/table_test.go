package main

import (
	"slices"
	"strings"
	"testing"
)

// run builds results in the words of the tables: each round of a peer in one
// metric of one figure.
func runOf(user, figure, metric string, rounds map[string][]float64) results {
	var r results
	for peer, values := range rounds {
		for i, v := range values {
			r = append(r, sample{Round: i + 1, User: user, Figure: figure, Peer: peer, Values: map[string]float64{metric: v}})
		}
	}
	return r
}

func TestMatrix(t *testing.T) {
	r := runOf("root", "echo", rate, map[string][]float64{
		direct:      {100000, 110000, 90000},
		"haproxy-2": {50000, 51000, 49000},
		subject:     {75000, 75000, 75000},
	})
	r = append(r,
		runOf("nobody", "echo", rate, map[string][]float64{direct: {1}})...)
	r = append(r,
		sample{Round: 1, User: "root", Figure: "echo", Peer: "iocopy", Skipped: "no"},
		sample{Round: 1, User: "root", Figure: "echo", Peer: "nginx-2", Failed: "a byte was lost"},
		sample{Round: 2, User: "root", Figure: "echo", Peer: "nginx-2", Values: map[string]float64{rate: 60000}},
	)
	headings := []heading{{"echo", "echo 64 B", []metric{{rate, "messages/s"}, {p50, "µs"}}}}
	got := matrix(r, "root", headings, []string{direct, "haproxy-2", "iocopy", "nginx-2", subject})
	var b strings.Builder
	if err := got.print(&b); err != nil {
		t.Fatal(err)
	}
	// The p50 of nginx would be "**FAILED**" as well: a failure is never
	// hidden because a metric has no other value.
	want := strings.Join([]string{
		"| figure    | metric     | direct          | haproxy-2       | iocopy  | nginx-2          | understudy            |",
		"|-----------|------------|-----------------|-----------------|---------|------------------|-----------------------|",
		"| echo 64 B | messages/s | 100k ±10% 2.00h | 50.0k ±2% 0.50d | skipped | 60.0k **FAILED** | 75.0k ±0% 0.75d 1.50h |",
		"|           | p50, µs    | –               | –               | skipped | **FAILED**       | –                     |",
		"",
	}, "\n")
	if b.String() != want {
		t.Errorf("matrix prints\n%s\nwant\n%s", b.String(), want)
	}
}

func TestRatiosAreOfTheSameRound(t *testing.T) {
	for _, tt := range []struct {
		name    string
		x, base []float64
		want    float64
		ok      bool
	}{
		{"the machine was twice as fast in the second round", []float64{30, 60, 30}, []float64{20, 40, 20}, 1.5, true},
		{"and for one of them it was not the same one", []float64{30, 60, 60}, []float64{20, 40, 20}, 1.5, true},
		{"one round only", []float64{3}, []float64{2}, 1.5, true},
		{"nothing to compare with", []float64{3}, nil, 0, false},
		{"nothing to compare", nil, []float64{3}, 0, false},
		{"mostly not above zero", []float64{3, 3, 3}, []float64{2, 0, -1}, 0, false},
		{"mostly negative", []float64{-3, 3, -3}, []float64{2, 2, 2}, 0, false},
	} {
		r := runOf("root", "f", rate, map[string][]float64{subject: tt.x, direct: tt.base})
		if got, ok := r.ratio(of{"root", "f", subject, rate}, of{"root", "f", direct, rate}); ok != tt.ok || ok && got != tt.want {
			t.Errorf("%s: ratio %v, %v, want %v, %v", tt.name, got, ok, tt.want, tt.ok)
		}
	}
}

func TestNumberHasThreeDigits(t *testing.T) {
	for x, want := range map[float64]string{
		0: "0.00", 0.0123: "0.012", 0.1: "0.10", 1.234: "1.23", 9.999: "10.0", 12.34: "12.3", 99.96: "100",
		123.4: "123", 9994: "9994", 9996: "10.0k", 12345: "12.3k", 123456: "123k", -2.5: "-2.50",
	} {
		if got := number(x); got != want {
			t.Errorf("number(%v) = %q, want %q", x, got, want)
		}
	}
}

func TestNoiseIsTheSpreadOfDirect(t *testing.T) {
	r := slices.Concat(
		runOf("root", "calm", rate, map[string][]float64{direct: {99, 100, 101}, subject: {1, 100, 1000}}),
		runOf("root", "rough", rate, map[string][]float64{direct: {80, 100, 120}}),
		runOf("root", "middling", rate, map[string][]float64{direct: {95, 100, 105}}),
	)
	median, worst, figure := noise(r, "root", []string{"calm", "rough", "middling", "absent"})
	if median != 0.05 || worst != 0.2 || figure != "rough" {
		t.Errorf("noise = %v, %v, %q, want 0.05, 0.2, \"rough\"", median, worst, figure)
	}
	if _, _, figure := noise(r, "nobody", []string{"calm"}); figure != "" {
		t.Errorf("noise of nothing is that of %q", figure)
	}
}

func TestRemarksSayEachThingOnce(t *testing.T) {
	lost := sample{User: "root", Figure: "echo", Peer: "nginx-2", Failed: "a byte was lost"}
	missing := sample{User: "root", Figure: "idle", Peer: "iocopy", Skipped: "too few descriptors"}
	skipped, failed := results{lost, missing, lost, missing}.remarks()
	if want := []string{"idle, iocopy, as root: too few descriptors"}; !slices.Equal(skipped, want) {
		t.Errorf("skipped = %q, want %q", skipped, want)
	}
	if want := []string{"echo, nginx-2, as root: a byte was lost"}; !slices.Equal(failed, want) {
		t.Errorf("failed = %q, want %q", failed, want)
	}
}
