package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// table is a markdown table that is also readable as it is.
type table struct {
	rows [][]string // the first is the head
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// print writes t with its columns aligned.
func (t *table) print(w io.Writer) error {
	var widths []int
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 3)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for i, row := range t.rows {
		var line strings.Builder
		for j, width := range widths {
			cell := ""
			if j < len(row) {
				cell = row[j]
			}
			line.WriteString("| " + cell + strings.Repeat(" ", width-utf8.RuneCountInString(cell)+1))
		}
		line.WriteString("|\n")
		if i == 0 {
			for _, width := range widths {
				line.WriteString("|" + strings.Repeat("-", width+2))
			}
			line.WriteString("|\n")
		}
		if _, err := io.WriteString(w, line.String()); err != nil {
			return err
		}
	}
	return nil
}

// heading is the text for a figure in a table's row.
type heading struct {
	id, title string
	metrics   []metric
}

// reference is the peer that the second ratio of every cell is to.
const reference = "haproxy-2"

// matrix is the table of one user's run: a row for each metric of each
// figure, a column for each peer.
func matrix(r results, user string, headings []heading, peers []string) table {
	var t table
	t.add(append([]string{"figure", "metric"}, peers...)...)
	for _, h := range headings {
		title := h.title
		for _, m := range h.metrics {
			row := []string{title, label(m)}
			for _, peer := range peers {
				row = append(row, cell(r, user, h.id, peer, m.key))
			}
			// A metric that no peer has would only take up space.
			if slices.ContainsFunc(row[2:], func(c string) bool { return c != "–" }) {
				t.add(row...)
				title = ""
			}
		}
	}
	return t
}

// label names a metric with its unit.
func label(m metric) string {
	switch {
	case m.key == rate:
		return m.unit
	case m.unit == "":
		return m.key
	}
	return m.key + ", " + m.unit
}

// spoken is a value with its name and unit.
func spoken(m metric, v float64) string {
	if m.key == rate {
		return number(v) + " " + m.unit
	}
	return strings.TrimSpace(m.key + " " + number(v) + " " + m.unit)
}

// cell is the median, half the spread in percent of it, and the ratios to
// direct (d) and to HAProxy with two threads (h).
func cell(r results, user, figure, peer, key string) string {
	s := r.summary(user, figure, peer, key)
	if s.N == 0 {
		return cmp.Or(r.state(user, figure, peer), "–")
	}
	parts := []string{number(s.Median)}
	if s.N > 1 {
		parts = append(parts, fmt.Sprintf("±%.0f%%", 100*s.spread()))
	}
	for _, base := range []struct{ peer, mark string }{{direct, "d"}, {reference, "h"}} {
		if peer == base.peer {
			continue
		}
		if x, ok := r.ratio(of{user, figure, peer, key}, of{user, figure, base.peer, key}); ok {
			parts = append(parts, number(x)+base.mark)
		}
	}
	if state := r.state(user, figure, peer); state != "" {
		parts = append(parts, state) // in some rounds
	}
	return strings.Join(parts, " ")
}

// number writes x with about three digits.
func number(x float64) string {
	a := math.Abs(x)
	switch {
	case a >= 99950:
		return fmt.Sprintf("%.0fk", x/1000)
	case a >= 9995:
		return fmt.Sprintf("%.1fk", x/1000)
	case a >= 99.95:
		return fmt.Sprintf("%.0f", x)
	case a >= 9.995:
		return fmt.Sprintf("%.1f", x)
	case a >= 0.0995 || a == 0:
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.3f", x)
}

// noise returns the spread of the rates of direct over the rounds: of the median
// figure and of the worst. The figure is "" when there is no such rate.
func noise(r results, user string, figures []string) (median, worst float64, figure string) {
	var spreads []float64
	for _, id := range figures {
		s := r.summary(user, id, direct, rate)
		if s.N < 2 {
			continue
		}
		spreads = append(spreads, s.spread())
		if figure == "" || s.spread() > worst {
			worst, figure = s.spread(), id
		}
	}
	return summarize(spreads).Median, worst, figure
}
