package proctest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Host is a process that greets each connection with its name and a newline
// and then echoes what it reads. Fill in the fields and call Start.
type Host struct {
	Name string
	IP   string // defaults to 127.0.0.1; all of 127.0.0.0/8 works on Linux
	Port int    // defaults to a free one

	// PingPort, if set, answers "pong" to HTTP requests there.
	PingPort int

	// Delay is how long it takes to greet a client it has accepted.
	Delay time.Duration

	tb    testing.TB
	child *exec.Cmd
	stdin io.Closer
}

// Start starts the host and waits until it listens. It ends with the test.
func (h *Host) Start(tb testing.TB) *Host {
	tb.Helper()
	h.tb = tb
	if h.IP == "" {
		h.IP = "127.0.0.1"
	}
	if h.Port == 0 {
		h.Port = FreePort(tb, h.IP)
	}
	tb.Cleanup(h.Kill)
	h.Restart()
	return h
}

// Addr is the host's connection string.
func (h *Host) Addr() string { return net.JoinHostPort(h.IP, strconv.Itoa(h.Port)) }

// Restart starts the host again on the same port and waits until it listens.
func (h *Host) Restart() {
	h.tb.Helper()
	if h.child != nil {
		h.tb.Fatalf("host %s runs already", h.Name)
	}
	cmd := exec.Command(self(h.tb), h.Name, h.IP, strconv.Itoa(h.Port), strconv.Itoa(h.PingPort), h.Delay.String()) //nolint:gosec,noctx // this very binary, ended in Cleanup
	cmd.Env = append(os.Environ(), roleVariable+"="+roleHost)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		h.tb.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		h.tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.tb.Fatal(err)
	}
	h.child, h.stdin = cmd, stdin
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "listening\n" {
		h.tb.Fatalf("host %s said %q, %v", h.Name, line, err)
	}
}

// Kill ends the host with SIGKILL and waits until it is gone.
func (h *Host) Kill() {
	if h.child == nil {
		return
	}
	_ = h.child.Process.Kill() // fails when it is gone already
	_ = h.child.Wait()         // "signal: killed"
	h.stdin.Close()
	h.child = nil
}

// Stop stops the host's process with SIGSTOP and waits until it stands still:
// its kernel still accepts.
func (h *Host) Stop() {
	h.tb.Helper()
	h.signal(syscall.SIGSTOP)
	stat := fmt.Sprintf("/proc/%d/stat", h.child.Process.Pid)
	Until(h.tb, "host "+h.Name+" stands still", func() bool {
		text, err := os.ReadFile(stat)                 //nolint:gosec // of our own child
		_, state, _ := strings.Cut(string(text), ") ") // see proc_pid_stat(5)
		return err != nil || strings.HasPrefix(state, "T")
	})
}

// Continue lets a stopped host go on.
func (h *Host) Continue() { h.signal(syscall.SIGCONT) }

func (h *Host) signal(s syscall.Signal) {
	h.tb.Helper()
	if err := h.child.Process.Signal(s); err != nil {
		h.tb.Fatalf("signal %v to host %s: %v", s, h.Name, err)
	}
}

// host is the role: args are name, address, port, the port for pings and the
// delay of the greeting.
func host(args []string) int {
	name, ip := args[0], args[1]
	port, err1 := strconv.Atoi(args[2])
	pingPort, err2 := strconv.Atoi(args[3])
	delay, err3 := time.ParseDuration(args[4])
	l, err4 := listen(ip, port)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		fmt.Fprintln(os.Stderr, "host:", err)
		return 1
	}
	if pingPort != 0 {
		pings, err := listen(ip, pingPort)
		if err != nil {
			fmt.Fprintln(os.Stderr, "host:", err)
			return 1
		}
		server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "pong")
		})}
		go func() { _ = server.Serve(pings) }()
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			continue
		}
		go func() {
			defer c.Close()
			time.Sleep(delay) //nolint:forbidigo // a host for tests, and nothing ends it but a signal
			_, _ = io.WriteString(c, name+"\n")
			_, _ = io.Copy(c, c)
		}()
	}
}
