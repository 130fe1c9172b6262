package metrics

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"understudy/internal/histogram"
)

// rows returns what s has of a metric: the values of the labels, and the value.
func rows(s *sheet, m *metric) (all []string) {
	s.end()
	for _, f := range s.protocol() {
		for _, row := range f.Metric {
			if f.GetName() == m.Name {
				line := ""
				for _, l := range row.Label {
					line += l.GetName() + "=" + l.GetValue() + " "
				}
				all = append(all, line+strconv.FormatFloat(row.GetGauge().GetValue(), 'g', -1, 64))
			}
		}
	}
	return all
}

// A sheet that is used again has the values and the labels of the last scrape, and nothing
// of those before.
func TestSheetIsUsedAgain(t *testing.T) {
	s := newSheet()
	for _, step := range []struct {
		hosts []string
		want  []string
	}{
		{[]string{"a", "b"}, []string{"host=a relay=orders 1", "host=b relay=orders 2"}},
		{[]string{"a", "b"}, []string{"host=a relay=orders 1", "host=b relay=orders 2"}},
		{[]string{"b"}, []string{"host=b relay=orders 1"}},
		{[]string{"b", "c\xff", "a"}, []string{"host=b relay=orders 1", "host=c? relay=orders 2", "host=a relay=orders 3"}},
		{nil, nil},
	} {
		s.begin()
		for k, host := range step.hosts {
			hostUp.set(s, float64(k+1), "orders", host)
		}
		if got := rows(s, hostUp); !slices.Equal(got, step.want) {
			t.Errorf("hosts %q: %q, want %q", step.hosts, got, step.want)
		}
	}
}

// A histogram that is used again has no bucket of the durations before.
func TestHistogramIsUsedAgain(t *testing.T) {
	s := newSheet()
	for _, durations := range [][]time.Duration{{time.Millisecond, time.Second, time.Minute}, {}, {3 * time.Second}} {
		var h histogram.Histogram
		for _, d := range durations {
			h.Observe(d)
		}
		var counted histogram.Snapshot
		counted.Add(&h)
		s.begin()
		holdDuration.observe(s, &counted, "orders", "served")
		fresh := newSheet()
		holdDuration.observe(fresh, &counted, "orders", "served")
		s.end()
		fresh.end()
		got, want := s.protocol()[0].Metric[0], fresh.protocol()[0].Metric[0]
		if got.String() != want.String() || got.Histogram.GetSampleCount() != uint64(len(durations)) {
			t.Errorf("%v: %v, want %v", durations, got, want)
		}
	}
}

// With the same labels as before a sheet is filled without an allocation.
func TestSheetAllocatesNothing(t *testing.T) {
	var h histogram.Histogram
	for k := range 1000 {
		h.Observe(time.Duration(k*k) * time.Microsecond)
	}
	var counted histogram.Snapshot
	counted.Add(&h)
	relays := make([]string, 40)
	for k := range relays {
		relays[k] = "relay-" + strconv.Itoa(k)
	}
	s := newSheet()
	fill := func() {
		s.begin()
		for k, relay := range relays {
			relayEpoch.set(s, float64(k), relay)
			hostUp.is(s, true, relay, "db1:5432")
			connectionsClosed.count(s, uint64(k), relay, "finished")
			holdDuration.observe(s, &counted, relay, "served")
		}
		s.end()
		s.protocol()
	}
	fill()
	if n := testing.AllocsPerRun(10, fill); n > 0 {
		t.Errorf("%v allocations to fill %d rows again", n, 4*len(relays))
	}
}
