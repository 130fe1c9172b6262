//go:build linux

package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"understudy/bench/netns"
)

// Without a namespace of its own a run leaves the machine's congestion control
// unchanged, reports that, and names it.
func TestCongestionOfTheMachineIsLeft(t *testing.T) {
	if netns.Inside() {
		t.Skip("SKIP: this is the namespace of TestCongestionIsChosen")
	}
	leftovers(t)
	s := short(t.TempDir(), "^echo/64B/1/usual$", "^direct$")
	s.rounds = 1
	s.congestion = "no-such"
	var report, progress bytes.Buffer
	if err := drive(t.Context(), s, &report, &progress); err != nil {
		t.Fatal(err)
	}
	if want := "congestion control " + congestionControl() + " ("; !strings.Contains(report.String(), want) {
		t.Errorf("the report does not say %q:\n%s", want, report.String())
	}
	if want := "the machine's congestion control is used: no-such needs a network namespace"; !strings.Contains(progress.String(), want) {
		t.Errorf("the run does not say %q:\n%s", want, progress.String())
	}
}

// In its own namespace every connection has the requested one, also after a row
// that has another.
func TestCongestionIsChosen(t *testing.T) {
	if !netns.Inside() {
		if os.Getuid() != 0 {
			t.Skip("SKIP: needs root, for a namespace")
		}
		if _, err := exec.LookPath("ip"); err != nil {
			t.Skip("SKIP: needs ip (apt-get install iproute2)")
		}
		var said bytes.Buffer
		code, err := netns.Rerun(t.Context(), []string{"-test.run=^TestCongestionIsChosen$", "-test.v"}, &said, &said)
		if err != nil {
			t.Skip("SKIP: no network namespace: ", err)
		}
		if code != 0 {
			t.Errorf("in the namespace:\n%s", said.String())
		}
		return
	}
	if err := netns.Prepare(); err != nil {
		t.Fatal(err)
	}
	s := short(t.TempDir(), "^(echo/64B/1|bulk-cubic/8)/usual$", "^direct$")
	s.rounds = 1
	s.congestion = "reno" // which every kernel has, and none as its default
	var report bytes.Buffer
	if err := drive(t.Context(), s, &report, io.Discard); err != nil {
		t.Fatal(err)
	}
	if want := "congestion control reno ("; !strings.Contains(report.String(), want) {
		t.Errorf("the report does not say %q:\n%s", want, report.String())
	}
	ln, err := net.Listen("tcp", "127.0.0.1:11999")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var name string
	if controlErr := raw.Control(func(fd uintptr) {
		name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	}); controlErr != nil || err != nil || name != "reno" {
		t.Errorf("a connection has %q (%v, %v), want reno", name, controlErr, err)
	}
}
