//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// insideEnv is set for the copy of the benchmark that runs in the namespace.
const insideEnv = "BENCH_INSIDE_NAMESPACE"

// inNamespace runs this command again in a network namespace that holds
// nothing but it, so that ports, sockets in TIME_WAIT and the congestion
// control are its own and the machine's stay as they are; the namespace goes
// away with the last process in it. It returns the exit code, or an error when
// there cannot be such a namespace.
func inNamespace(ctx context.Context) (int, error) {
	// What asks us to end is passed on, and the end waited for. Ctrl-C the copy
	// hears twice, since the terminal tells the whole process group.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/proc/self/exe", os.Args[1:]...) //nolint:gosec // G204: ourselves
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(terminated)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("network namespace: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-terminated:
			_ = cmd.Process.Signal(s)
		case err := <-ended:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 0, err
			}
			return cmd.ProcessState.ExitCode(), nil
		}
	}
}

// inside reports whether this process is in a namespace made by inNamespace.
func inside() bool { return os.Getenv(insideEnv) != "" }

// prepareNamespace brings the loopback interface of the new namespace up and
// makes room for the sockets that short connections leave in TIME_WAIT: past
// the default limit they are dropped at once, and peers that come later in a
// round would have an easier life.
func prepareNamespace() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	loopback, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	loopback.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, loopback); err != nil {
		return os.NewSyscallError("ioctl SIOCSIFFLAGS", err)
	}
	return os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", []byte("2000000"), 0)
}

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
// choose its default. A skipError says why it cannot be done.
func setCongestion(ctx context.Context, name string) error {
	if !inside() {
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
		if out, err := exec.CommandContext(ctx, "ip", argv...).CombinedOutput(); err != nil { //nolint:gosec // G204: our own words
			return fmt.Errorf("ip %s: %w: %s", strings.Join(argv, " "), err, lastBytes(out, 200))
		}
	}
	return nil
}
