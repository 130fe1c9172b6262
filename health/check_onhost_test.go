package health

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestFlagCheck(t *testing.T) {
	f := flagsIn(t, "squid")
	if err := os.Symlink("/nowhere", filepath.Join(f.Dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name      string
		dir, flag string
		absent    bool
		want      string // part of the error; empty for a pass
	}{
		{"there", f.Dir, "squid", false, ""},
		{"a link to nothing is there", f.Dir, "link", false, ""},
		{"not there", f.Dir, "nginx", false, "flag nginx is not there"},
		{"there, want none", f.Dir, "squid", true, "flag squid is there, want none"},
		{"not there, want none", f.Dir, "nginx", true, ""},
		{"no directory", f.Dir + "x", "squid", false, "no such file"},
		{"no directory is not the absence of a flag", f.Dir + "x", "squid", true, "no such file"},
		{"the directory is a file", filepath.Join(f.Dir, "squid"), "squid", true, "not a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			check, err := FlagCheck(tt.dir, tt.flag, tt.absent)
			if err != nil {
				t.Fatal(err)
			}
			got := check(checkContext(t, checkLimit), "nobody:1")
			if got.OK != (tt.want == "") || got.Err != nil && !strings.Contains(got.Err.Error(), tt.want) || got.Local {
				t.Errorf("FlagCheck = %+v, want %q", got, tt.want)
			}
		})
	}
	for _, name := range []string{"", ".", "..", "../secret", "a/b", "a\x00b", strings.Repeat("n", 256)} {
		if _, err := FlagCheck(f.Dir, name, true); !errors.Is(err, ErrFlagName) {
			t.Errorf("FlagCheck of %q = %v, want %v", name, err, ErrFlagName)
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
	if got := check(checkContext(t, checkLimit), ""); got.OK || !got.Local {
		t.Errorf("VIPCheck without descriptors = %+v, want it failed and Local", got)
	}
	for _, addrs := range [][]netip.Addr{nil, {{}}, addrsOf("fe80::1%lo"), make([]netip.Addr, maxVIPs+1)} {
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
