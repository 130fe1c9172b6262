//go:build linux

package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"understudy/bench/netns"
	"understudy/bench/program"
)

// prepareNamespace brings the new namespace up, with an empty packet filter.
func prepareNamespace(ctx context.Context) error {
	if err := netns.Prepare(); err != nil {
		return err
	}
	return filter(ctx, "add table inet fault\nadd chain inet fault input { type filter hook input priority 0; }\n")
}

// silence drops every packet to and from an address. It drops incoming packets:
// dropping outgoing ones would return an error to the sender.
func silence(ctx context.Context, ip string) error {
	return filter(ctx, fmt.Sprintf("add rule inet fault input ip daddr %s drop\nadd rule inet fault input ip saddr %[1]s drop\n", ip))
}

// endSilence lets all packets pass again.
func endSilence(ctx context.Context) error { return filter(ctx, "flush chain inet fault input\n") }

// filter changes the packet filter, all of it at once or nothing.
func filter(ctx context.Context, rules string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, program.LastBytes(out, 200))
	}
	return nil
}
