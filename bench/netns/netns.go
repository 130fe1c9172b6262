//go:build linux

// Package netns runs a benchmark in a network namespace of its own: its ports,
// its sockets in TIME_WAIT, its packet filter and its congestion control are
// separate from the machine's, and end with its last process.
package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// variable is set for the copy of the program that runs in the namespace.
const variable = "BENCH_INSIDE_NAMESPACE"

// Inside reports whether this process was started by [Rerun].
func Inside() bool { return os.Getenv(variable) != "" }

// Rerun runs this program again, with args, in a new network namespace, and
// returns its exit code, or an error when there cannot be such a namespace.
// SIGINT and SIGTERM are passed on, and Rerun waits for its end.
func Rerun(ctx context.Context, args []string, stdout, stderr io.Writer) (int, error) {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/proc/self/exe", args...) //nolint:gosec // G204: ourselves
	cmd.Env = append(os.Environ(), variable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	// The copy gets Ctrl-C twice, since the terminal signals the whole group.
	ending := make(chan os.Signal, 1)
	signal.Notify(ending, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(ending)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("network namespace: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-ending:
			_ = cmd.Process.Signal(s)
		case err := <-ended:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 0, err
			}
			if code := cmd.ProcessState.ExitCode(); code >= 0 {
				return code, nil
			}
			return 0, err // a signal
		}
	}
}

// Prepare brings the loopback interface of the new namespace up and makes room
// for the sockets that short connections leave in TIME_WAIT: past the default
// limit they are dropped at once, and later peers of a round would have an
// advantage.
func Prepare() error {
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
