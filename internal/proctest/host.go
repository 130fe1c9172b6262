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
	"os/signal"
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

	// Delay is the time that it takes to greet a client it has accepted.
	Delay time.Duration

	// Listens makes it wait for the client's first bytes before it greets; then
	// it echoes these, too.
	Listens bool

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
	cmd := exec.Command(self(h.tb), h.Name, h.IP, strconv.Itoa(h.Port), strconv.Itoa(h.PingPort), h.Delay.String(), strconv.FormatBool(h.Listens)) //nolint:gosec,noctx // this very binary, ended in Cleanup
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

// Kill ends the host with SIGKILL and waits until it has ended.
func (h *Host) Kill() {
	if h.child == nil {
		return
	}
	_ = h.child.Process.Kill() // fails when it has ended already
	_ = h.child.Wait()         // "signal: killed"
	h.stdin.Close()
	h.child = nil
}

// Stop stops the host's process with SIGSTOP and waits until it is stopped: its
// kernel still accepts.
func (h *Host) Stop() {
	h.tb.Helper()
	h.signal(syscall.SIGSTOP)
	stat := fmt.Sprintf("/proc/%d/stat", h.child.Process.Pid)
	Until(h.tb, "host "+h.Name+" stands still", func() bool {
		text, err := os.ReadFile(stat)                 //nolint:gosec // of the host's own process
		_, state, _ := strings.Cut(string(text), ") ") // see proc_pid_stat(5)
		return err != nil || strings.HasPrefix(state, "T")
	})
}

// Continue lets a stopped host go on.
func (h *Host) Continue() { h.signal(syscall.SIGCONT) }

// StopListening closes the host's port and waits until connects are refused. Its
// connections go on.
func (h *Host) StopListening() {
	h.tb.Helper()
	h.signal(syscall.SIGUSR1)
	Until(h.tb, "host "+h.Name+" refuses connects", func() bool { return errors.Is(h.tryConnect(), syscall.ECONNREFUSED) })
}

// Listen opens the port again and waits until connects are accepted.
func (h *Host) Listen() {
	h.tb.Helper()
	h.signal(syscall.SIGUSR2)
	Until(h.tb, "host "+h.Name+" accepts connects", func() bool { return h.tryConnect() == nil })
}

func (h *Host) tryConnect() error {
	conn, err := new(net.Dialer).DialContext(h.tb.Context(), "tcp", h.Addr())
	if err == nil {
		_ = conn.Close()
	}
	return err
}

func (h *Host) signal(s syscall.Signal) {
	h.tb.Helper()
	if err := h.child.Process.Signal(s); err != nil {
		h.tb.Fatalf("signal %v to host %s: %v", s, h.Name, err)
	}
}

// host is the role: args are name, address, port, the port for pings, the delay
// of the greeting and whether the client speaks first.
func host(args []string) int {
	name, ip := args[0], args[1]
	port, err1 := strconv.Atoi(args[2])
	pingPort, err2 := strconv.Atoi(args[3])
	delay, err3 := time.ParseDuration(args[4])
	listens, err4 := strconv.ParseBool(args[5])
	l, err5 := listen(ip, port)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
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
	serve := func(c net.Conn) {
		defer c.Close()
		time.Sleep(delay) //nolint:forbidigo // a host for tests, and nothing ends it but a signal
		first := make([]byte, 4<<10)
		n := 0
		if listens {
			var err error
			if n, err = c.Read(first); err != nil {
				return
			}
		}
		_, _ = c.Write(append([]byte(name+"\n"), first[:n]...)) // all at once
		_, _ = io.Copy(c, c)
	}
	orders := make(chan os.Signal, 1)
	signal.Notify(orders, syscall.SIGUSR1, syscall.SIGUSR2)
	go acceptAll(l, serve)
	fmt.Println("listening")
	for order := range orders {
		_ = l.Close()
		if order == syscall.SIGUSR1 {
			continue
		}
		var err error
		if l, err = listen(ip, port); err != nil {
			fmt.Fprintln(os.Stderr, "host:", err)
			return 1
		}
		go acceptAll(l, serve)
	}
	return 0
}

// acceptAll serves the connections of l until it is closed.
func acceptAll(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			go serve(c)
		}
	}
}
