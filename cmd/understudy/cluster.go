package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"understudy/control"
)

type clusterOptions struct {
	showOptions
	Reason string `long:"reason" value-name:"TEXT" description:"of add, forget and force; kept in events"`
}

// showCluster shows the agreement of several instances, or changes who they are.
func showCluster(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*clusterOptions)
	if len(l.args) > 0 {
		return changeCluster(ctx, l, *o, stdout, stderr)
	}
	return l.request(ctx, stderr, func(_ context.Context, all []process) error {
		list, err := o.targets(all)
		if err != nil {
			return err
		}
		shown := 0
		for _, t := range list {
			c := t.relay.Cluster
			if c == nil {
				continue
			}
			if shown++; shown > 1 && !o.JSON {
				fmt.Fprintln(stdout)
			}
			if o.JSON {
				err = writeJSON(stdout, c)
			} else {
				err = newTerminal(stdout).cluster(t.relay.Name, *c)
			}
			if err != nil {
				return err
			}
		}
		if shown == 0 {
			return errors.New("this process decides alone: it has no --cluster")
		}
		return nil
	})
}

// changeCluster adds a member, or forgets one.
func changeCluster(ctx context.Context, l line, o clusterOptions, stdout, stderr io.Writer) int {
	what := l.args[0]
	force := what == "force" && len(l.args) == 1
	if !force && (what != "add" && what != "forget" || len(l.args) != 2) {
		return l.usage(stderr, fmt.Errorf("cluster: %q: want add MEMBER, forget MEMBER or force", strings.Join(l.args, " ")))
	}
	return l.requestOne(ctx, stderr, o.relayOptions, func(ctx context.Context, t target) error {
		var did control.ClusterAnswer
		if force {
			if err := t.order(ctx, "cluster-force", "", control.Order{Reason: o.Reason, By: onBehalf()}, &did); err != nil {
				return err
			}
			fmt.Fprintf(stdout, "the election waits for nobody any more; %s\n", t)
			return nil
		}
		if err := t.order(ctx, "cluster-"+what, "", control.Order{Member: l.args[1], Reason: o.Reason, By: onBehalf()}, &did); err != nil {
			return err
		}
		done := "is a member"
		if what == "forget" {
			done = "is no member any more"
		}
		fmt.Fprintf(stdout, "%s %s; %s\n", did.Member, done, t)
		return nil
	})
}

// cluster writes the agreement of a relay.
func (t *terminal) cluster(relay string, c control.Cluster) error {
	t.put(relay+": ", "  ", "cluster "+c.Name+", this is "+c.Member)
	t.field("state", c.Text)
	agreed := "nothing yet"
	if c.Host != "" {
		agreed = fmt.Sprintf("%s, epoch %d, by %s", c.Host, c.Epoch, c.Driver)
		if !c.Open {
			agreed += ", not open yet"
		}
	}
	t.field("agreed", agreed)
	lease := span(seconds(c.LeaseSeconds)) + " left"
	if seconds(c.LeaseSeconds) > 365*24*time.Hour {
		lease = "without end: it goes on without the store (on-store-loss keep)"
	}
	t.field("lease", lease)
	if c.StoreFails.IsZero() {
		t.field("store", fmt.Sprintf("answered in %s", millis(c.StoreSeconds)))
	} else {
		t.field("store", "does not answer")
	}
	if c.AgreedSettings != "" && c.AgreedSettings != c.Settings {
		t.field("settings", c.Settings)
		t.field("others", c.AgreedSettings)
	}
	if c.Change != "" {
		t.field("change", c.Change+", not effective yet")
	}
	fmt.Fprintln(t.w)
	rows := [][]string{{"MEMBER", "LIFE", "HEARD", "FENCED", "SEES DOWN", "ADDRESS", "VERSION"}}
	for n, m := range c.Members {
		name, heard := m.Name, span(seconds(m.SilentSeconds))+" ago"
		switch {
		case n == 0:
			name += " (this)"
		case !m.Known:
			heard = "never"
		case m.Leaving:
			heard = "ended"
		}
		rows = append(rows, []string{name, m.Life, heard, strconv.FormatUint(m.Fenced, 10), dash(strings.Join(m.Down, " ")), dash(m.Address), dash(m.Version)})
	}
	return t.table(rows, false)
}

// dash returns text, or a dash for none.
func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
