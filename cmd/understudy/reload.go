package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"understudy/control"
	"understudy/internal/safetext"
)

// reloadRunning requests a reload of the running process.
func reloadRunning(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*relayOptions)
	return l.request(ctx, stderr, func(ctx context.Context, all []process) error {
		p, err := o.process(all)
		if err != nil {
			return err
		}
		did, err := p.Client.Reload(ctx, control.Order{By: onBehalf()})
		if err != nil {
			for problem := range strings.SplitSeq(err.Error(), "\n") {
				fmt.Fprintf(stderr, "understudy: reload: %s\n", safetext.Terminal(problem))
			}
			return errBad
		}
		fmt.Fprint(stdout, describeChanges(did))
		fmt.Fprintln(stdout, p)
		return nil
	})
}

// describeChanges describes for people what a reload changed.
func describeChanges(did control.Changes) string {
	if len(did.Changed)+len(did.Restart) == 0 {
		return "nothing had changed\n"
	}
	var b strings.Builder
	for _, c := range did.Changed {
		fmt.Fprintf(&b, "%s\n", c)
	}
	for _, r := range did.Restart {
		fmt.Fprintf(&b, "%s: needs a restart, and is unchanged\n", r)
	}
	return b.String()
}
