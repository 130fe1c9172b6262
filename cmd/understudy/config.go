package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"understudy/config"
)

// printConfig prints every setting with its value and its origin, relays, checks,
// probes and routes of the file too, and then reports what is unwise or wrong.
func printConfig(_ context.Context, line line, stdout, stderr io.Writer) int {
	settings, values, err := line.settings(passedSockets())
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SETTING\tVALUE\tORIGIN")
	for _, v := range values {
		fmt.Fprintf(w, "%s\t%s\t%s\n", v.Name, cell(v.Text), v.Origin)
	}
	_ = w.Flush() // standard output; there is nowhere else to complain
	for _, warning := range settings.Warnings {
		fmt.Fprintf(stderr, "understudy: warning: %s\n", warning)
	}
	// To look at the defaults is no mistake.
	if err != nil && !errors.Is(err, config.ErrNothing) {
		return usage(stderr, err)
	}
	return exitDone
}

// cell is a value that cannot break the table it stands in.
func cell(text string) string {
	if text == "" {
		return "-"
	}
	if quoted := strconv.Quote(text); quoted != `"`+text+`"` || strings.Contains(text, " ") {
		return quoted
	}
	return text
}
