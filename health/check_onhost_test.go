package health

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"understudy/internal/flagfile"
	"understudy/internal/netstate"
)

func TestFlagCheck(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "squid"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name      string
		dir, flag string
		absent    bool
		want      string // part of the error; empty for a pass
	}{
		{"there", dir, "squid", false, ""},
		{"a link out of the directory", dir, "link", false, "link to nothing in the directory"},
		{"a link out of the directory is not the absence of a flag", dir, "link", true, "link to nothing in the directory"},
		{"not there", dir, "nginx", false, "flag nginx is not there"},
		{"there, want none", dir, "squid", true, "flag squid exists, want none"},
		{"not there, want none", dir, "nginx", true, ""},
		{"no directory", dir + "x", "squid", false, "no such file"},
		{"no directory is not the absence of a flag", dir + "x", "squid", true, "no such file"},
		{"the directory is a file", filepath.Join(dir, "squid"), "squid", true, "not a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			check, err := FlagCheck(tt.dir, tt.flag, tt.absent)
			if err != nil {
				t.Fatal(err)
			}
			got := check(checkContext(t, checkLimit), "nobody:1")
			if got.OK != (tt.want == "") || got.Err != nil && !strings.Contains(got.Err.Error(), tt.want) || got.Unknown {
				t.Errorf("FlagCheck = %+v, want %q", got, tt.want)
			}
		})
	}
	for _, name := range []string{"", ".", "..", "../secret", "a/b", "a\x00b", strings.Repeat("n", 256)} {
		if _, err := FlagCheck(dir, name, true); !errors.Is(err, flagfile.ErrName) {
			t.Errorf("FlagCheck of %q = %v, want %v", name, err, flagfile.ErrName)
		}
	}
	if _, err := FlagCheck("", "squid", false); err == nil || !strings.Contains(err.Error(), "dir: ") {
		t.Errorf("FlagCheck without a directory = %v, want an error", err)
	}
}

func addrsOf(list ...string) (all []netip.Addr) {
	for _, a := range list {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

func TestVIPCheck(t *testing.T) {
	var unreadable error
	here := func() ([]netip.Addr, error) {
		return addrsOf("127.0.0.1", "::ffff:192.0.2.1", "2001:db8::1", "fe80::1%lo"), unreadable
	}
	for _, tt := range []struct {
		addrs []netip.Addr
		want  string
	}{
		{addrsOf("192.0.2.1"), ""},
		{addrsOf("192.0.2.1", "2001:db8::1", "fe80::1"), ""},
		{addrsOf("::ffff:127.0.0.1"), ""},
		{addrsOf("192.0.2.1", "192.0.2.2"), "address 192.0.2.2 is not here"},
		{addrsOf("192.0.2.2", "192.0.2.1"), "address 192.0.2.2 is not here"},
	} {
		check, err := vipCheck(tt.addrs, here)
		if err != nil {
			t.Fatal(err)
		}
		got := check(checkContext(t, checkLimit), "nobody:1")
		if got.OK != (tt.want == "") || got.Err != nil && got.Err.Error() != tt.want {
			t.Errorf("VIPCheck of %v = %+v, want %q", tt.addrs, got, tt.want)
		}
	}
	check, err := vipCheck(addrsOf("192.0.2.1"), here)
	if err != nil {
		t.Fatal(err)
	}
	unreadable = syscall.EMFILE
	if got := check(checkContext(t, checkLimit), ""); got.OK || !got.Unknown {
		t.Errorf("VIPCheck without descriptors = %+v, want it failed and Unknown", got)
	}
	for _, addrs := range [][]netip.Addr{nil, {{}}, addrsOf("fe80::1%lo"), make([]netip.Addr, netstate.MaxVIPs+1)} {
		if _, err := VIPCheck(addrs, false); err == nil {
			t.Errorf("VIPCheck of %v = nil, want an error", addrs)
		}
	}
}

// On this machine.
func TestVIPCheckReal(t *testing.T) {
	for _, anyInterface := range []bool{false, true} {
		for addr, want := range map[string]bool{"127.0.0.1": true, "192.0.2.77": false} {
			check, err := VIPCheck(addrsOf(addr), anyInterface)
			if err != nil {
				t.Fatal(err)
			}
			if got := check(checkContext(t, checkLimit), ""); got.OK != want {
				t.Errorf("VIPCheck(%s, %v) = %+v, want OK %v", addr, anyInterface, got, want)
			}
		}
	}
}
