//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"understudy/bench/netns"
	"understudy/bench/program"
)

// congestionControl is the system's default, as this namespace has it.
func congestionControl() string {
	name, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(name))
}

// setCongestion makes name the congestion control of every new connection in
// our namespace, those that the proxies make and accept included; "" is the
// default again. A route can do this where the kernel does not let a namespace
// choose its default. A skipError has the reason why it cannot be done.
func setCongestion(ctx context.Context, name string) error {
	if !netns.Inside() {
		return skipError{"needs a network namespace of its own (root)"}
	}
	available, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err != nil {
		return err
	}
	if name != "" && !slices.Contains(strings.Fields(string(available)), name) {
		return skipError{"this kernel has " + strings.TrimSpace(string(available)) + " (modprobe tcp_" + name + ")"}
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return skipError{"needs ip (apt-get install iproute2)"}
	}
	for _, destination := range []string{"127.0.0.0/8", "127.0.0.1"} {
		argv := []string{"route", "replace", "local", destination, "dev", "lo", "table", "local", "proto", "kernel", "scope", "host", "src", "127.0.0.1"}
		if name != "" {
			argv = append(argv, "congctl", name)
		}
		if out, err := exec.CommandContext(ctx, "ip", argv...).CombinedOutput(); err != nil { //nolint:gosec // G204: constant arguments
			return fmt.Errorf("ip %s: %w: %s", strings.Join(argv, " "), err, program.LastBytes(out, 200))
		}
	}
	return nil
}
