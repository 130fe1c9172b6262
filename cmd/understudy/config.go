package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"understudy/config"
	"understudy/internal/daemon"
)

// printConfig prints every setting with its value and its origin, including
// relays, checks, probes and routes of the file, and then reports what is
// unwise or wrong.
func printConfig(_ context.Context, line line, stdout, stderr io.Writer) int {
	sockets, passErr := daemon.PassedSockets()
	settings, values, err := line.settings(sockets)
	err = errors.Join(passErr, err)
	out := bufio.NewWriter(stdout) // a tabwriter writes in pieces of a few bytes
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SETTING\tVALUE\tORIGIN")
	for _, v := range values {
		fmt.Fprintf(w, "%s\t%s\t%s\n", v.Name, cell(v.Text), v.Origin)
	}
	_ = w.Flush() // standard output; the error can be reported nowhere else
	_ = out.Flush()
	for _, warning := range settings.Warnings {
		fmt.Fprintf(stderr, "understudy: warning: %s\n", warning)
	}
	// Printing the defaults is no mistake.
	if err != nil && !errors.Is(err, config.ErrNothing) {
		return usage(stderr, err)
	}
	return exitDone
}

// cell returns a value that cannot break the table.
func cell(text string) string {
	if text == "" {
		return "-"
	}
	if quoted := strconv.Quote(text); quoted != `"`+text+`"` || strings.Contains(text, " ") {
		return quoted
	}
	return text
}
