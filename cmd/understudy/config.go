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

// printConfig prints every setting with its value and its origin, and then
// reports what is wrong with them.
func printConfig(_ context.Context, line line, stdout, stderr io.Writer) int {
	_, values, err := line.settings(len(passedSockets()))
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SETTING\tVALUE\tORIGIN")
	for _, v := range values {
		fmt.Fprintf(w, "%s\t%s\t%s\n", v.Flag, cell(v.Text), v.Origin)
	}
	_ = w.Flush() // standard output; there is nowhere else to complain
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
