package bind

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// refused reports whether a connect to the address of s is refused.
func refused(t *testing.T, s *Socket) bool {
	t.Helper()
	c, err := net.DialTimeout(s.Addr.Network(), s.Addr.String(), 20*time.Second)
	if err == nil {
		c.Close()
		return false
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("connect to %s: %v, want success or a refusal", s.Addr, err)
	}
	return true
}

// A socket refuses clients until it listens, and again after Refuse; its
// address stays bound, and the clients in the queue are reset.
func TestListenAndRefuse(t *testing.T) {
	tcp := func() (*Socket, error) { return TCP(netip.MustParseAddrPort("127.0.0.1:0"), false) }
	every := func() (*Socket, error) { return TCP(netip.AddrPort{}, false) }
	path := filepath.Join(t.TempDir(), "s")
	file := func() (*Socket, error) { return Unix(path, File{Mode: 0o600}) }
	for _, tt := range []struct {
		name string
		make func() (*Socket, error)
	}{{"address", tcp}, {"every address", every}, {"file", file}} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := tt.make()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			addr := s.Addr.String()
			for range 3 {
				if !refused(t, s) {
					t.Fatal("a connect succeeds before Listen")
				}
				if err := s.Listen(); err != nil {
					t.Fatal(err)
				}
				waits, err := net.Dial(s.Addr.Network(), addr)
				if err != nil {
					t.Fatalf("connect after Listen: %v", err)
				}
				defer waits.Close()
				if n := s.Queued(); n != 1 && tt.name != "file" && runtime.GOOS == "linux" {
					t.Errorf("%d clients are in the queue, want 1", n)
				}
				if err := s.Refuse(); err != nil {
					t.Fatal(err)
				}
				waits.SetDeadline(time.Now().Add(20 * time.Second))
				if _, err := waits.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
					t.Errorf("a client in the queue read %v, want a reset", err)
				}
				if s.Path == "" {
					_, err = TCP(s.Addr.(*net.TCPAddr).AddrPort(), false)
				} else {
					_, err = os.Stat(s.Path)
					if err == nil {
						err = unix.EADDRINUSE
					}
				}
				if !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("the address is free after Refuse: %v", err)
				}
			}
			s.Close()
			if s.Path != "" {
				if _, err := os.Stat(s.Path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the file is there after Close: %v", err)
				}
			}
		})
	}
}

// A listener accepts through a copy: closing it keeps the clients in the queue.
func TestListenerIsACopy(t *testing.T) {
	s, err := TCP(netip.MustParseAddrPort("127.0.0.1:0"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	first, err := s.Listener()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", s.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	first.Close()
	second, err := s.Listener()
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	second.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second))
	got, err := second.Accept()
	if err != nil {
		t.Fatalf("Accept() = %v through another listener, want the client in the queue", err)
	}
	got.Close()
}
