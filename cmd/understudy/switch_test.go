package main

import (
	"testing"
	"time"
)

func TestParseAt(t *testing.T) {
	t.Parallel()
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip("no time zones here: ", err)
	}
	for _, tt := range []struct{ name, now, text, want string }{
		{"later today", "2026-11-26T20:00:00+01:00", "23:30", "2026-11-26T23:30:00+01:00"},
		{"tomorrow", "2026-11-26T20:00:00+01:00", "03:30", "2026-11-27T03:30:00+01:00"},
		{"this very minute", "2026-11-26T03:30:00+01:00", "03:30", "2026-11-27T03:30:00+01:00"},
		{"at the end of a year", "2026-12-31T23:59:59+01:00", "00:00", "2027-01-01T00:00:00+01:00"},
		{"a day", "2026-11-26T20:00:00+01:00", "2026-12-24 18:00", "2026-12-24T18:00:00+01:00"},
		{"a day in summer", "2026-11-26T20:00:00+01:00", "2027-07-01 18:00", "2027-07-01T18:00:00+02:00"},
		{"a day that is over", "2026-11-26T20:00:00+01:00", "2026-11-26 19:59", ""},

		// On 2026-03-29 clocks go from 02:00 to 03:00.
		{"before the gap", "2026-03-28T20:00:00+01:00", "01:59", "2026-03-29T01:59:00+01:00"},
		{"in the gap", "2026-03-28T20:00:00+01:00", "02:30", "2026-03-29T03:30:00+02:00"},
		{"at its beginning", "2026-03-28T20:00:00+01:00", "02:00", "2026-03-29T03:00:00+02:00"},
		{"after it", "2026-03-28T20:00:00+01:00", "03:30", "2026-03-29T03:30:00+02:00"},
		{"the day after", "2026-03-29T03:31:00+02:00", "02:30", "2026-03-30T02:30:00+02:00"},

		// On 2026-10-25 clocks go from 03:00 to 02:00.
		{"it comes twice", "2026-10-24T20:00:00+02:00", "02:30", "2026-10-25T02:30:00+02:00"},
		{"the first is over", "2026-10-25T02:40:00+02:00", "02:30", "2026-10-25T02:30:00+01:00"},
		{"both are over", "2026-10-25T02:40:00+01:00", "02:30", "2026-10-26T02:30:00+01:00"},
		{"a day with two", "2026-10-01T00:00:00+02:00", "2026-10-25 02:30", "2026-10-25T02:30:00+02:00"},

		{"no time", "2026-11-26T20:00:00+01:00", "soon", ""},
		{"no such time", "2026-11-26T20:00:00+01:00", "24:00", ""},
		{"no such day", "2026-11-26T20:00:00+01:00", "2026-02-30 03:30", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now, err := time.Parse(time.RFC3339, tt.now)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if at, err := parseAt(tt.text, berlin, now); err == nil {
				got = at.Format(time.RFC3339)
			}
			if got != tt.want {
				t.Errorf("parseAt(%q) at %s = %q, want %q", tt.text, tt.now, got, tt.want)
			}
		})
	}
}
