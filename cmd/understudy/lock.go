package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/hashicorp/go-hclog"

	"understudy/config"
	"understudy/control"
	"understudy/failover"
)

type lockOptions struct {
	relayOptions
	For    string `long:"for" value-name:"D" description:"end by itself after this time"`
	Reason string `long:"reason" value-name:"TEXT" description:"shown by status and why"`
}

// lockHost is drain and freeze.
func lockHost(ctx context.Context, l line, stdout, stderr io.Writer) int {
	o := l.options.(*lockOptions)
	order := control.Order{Reason: o.Reason, By: onBehalf()}
	if o.For != "" {
		d, err := config.ParseDuration(o.For)
		if err != nil || d <= 0 {
			return l.usage(stderr, fmt.Errorf("--for: %q is not a duration like 2h", o.For))
		}
		order.ForSeconds = d.Seconds()
	}
	return l.requestOne(ctx, stderr, o.relayOptions, func(ctx context.Context, t target) error {
		var k failover.Lock
		if err := t.orderSwitch(ctx, stdout, false, l.verb.name, strings.Join(l.args, ""), order, &k); err != nil {
			return err
		}
		what, until := "frozen: no failover", "until `unfreeze`; `switch` still works"
		if k.Kind == failover.Drain {
			what, until = k.Host+" is drained", "until `ready`"
		}
		if !k.Until.IsZero() {
			until = "until " + k.Until.Local().Format(hclog.TimeFormat)
		}
		fmt.Fprintf(stdout, "%s %s; %s\n", what, until, t)
		return nil
	})
}

// unlockHost is ready and unfreeze.
func unlockHost(ctx context.Context, l line, stdout, stderr io.Writer) int {
	order := control.Order{By: onBehalf()}
	return l.requestOne(ctx, stderr, *l.options.(*relayOptions), func(ctx context.Context, t target) error {
		var k failover.Lock
		if err := t.order(ctx, l.verb.name, strings.Join(l.args, ""), order, &k); err != nil {
			return err
		}
		if k.Kind == failover.Drain {
			fmt.Fprintf(stdout, "%s takes part in elections; %s\n", k.Host, t)
		} else {
			fmt.Fprintf(stdout, "not frozen; %s\n", t)
		}
		return nil
	})
}
