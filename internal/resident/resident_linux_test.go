package resident

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

const program = "/usr/bin/a program"

// mapping is one entry of smaps, shortened.
func mapping(head, anonymous, swap string) string {
	return head + "\nSize:               4 kB\nRss:                4 kB\nAnonymous:          " + anonymous + " kB\nSwap:               " + swap + " kB\nVmFlags: rd ex mr mw me sd\n"
}

func TestUnwritten(t *testing.T) {
	const head = "00400000-00401000 r-xp 00000000 fe:00 1234       "
	for _, tt := range []struct {
		name, smaps string
		want        []span
	}{
		{"text and constants", mapping(head+program, "0", "0") + mapping("00401000-00403000 r--p 00001000 fe:00 1234 "+program, "0", "0"),
			[]span{{0x400000, 0x401000}, {0x401000, 0x403000}}},
		{"an updated program", mapping(head+program+" (deleted)", "0", "0"), nil},
		{"another file", mapping(head+"/usr/lib/libc.so.6", "0", "0"), nil},
		{"no file", mapping(head, "0", "0"), nil},
		{"writable", mapping("00400000-00401000 rw-p 00000000 fe:00 1234 "+program, "0", "0"), nil},
		{"shared", mapping("00400000-00401000 r--s 00000000 fe:00 1234 "+program, "0", "0"), nil},
		{"not readable", mapping("00400000-00401000 ---p 00000000 fe:00 1234 "+program, "0", "0"), nil},
		{"relocated", mapping("00400000-00401000 r--p 00000000 fe:00 1234 "+program, "4", "0"), nil},
		{"relocated and swapped", mapping("00400000-00401000 r--p 00000000 fe:00 1234 "+program, "0", "4"), nil},
		{"a kernel that does not say", head + program + "\nSize: 4 kB\nSwap: 0 kB\n", nil},
		{"between others", mapping("00300000-00301000 r--p 00000000 fe:00 1234 "+program, "4", "0") + mapping(head+program, "0", "0") + mapping("00500000-00501000 r--p 00000000 00:00 0 ", "0", "0"),
			[]span{{0x400000, 0x401000}}},
		{"no addresses", mapping("x-y r-xp 00000000 fe:00 1234 "+program, "0", "0"), nil},
		{"nothing", "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := unwritten(strings.NewReader(tt.smaps), program)
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("unwritten = %x, %v, want %x", got, err, tt.want)
			}
		})
	}
}

func FuzzUnwritten(f *testing.F) {
	f.Add(mapping("00400000-00401000 r-xp 00000000 fe:00 1234 "+program, "0", "0"))
	f.Add(mapping("ffff-1 r--p", "0", "-"))
	f.Fuzz(func(t *testing.T, smaps string) {
		all, _ := unwritten(strings.NewReader(smaps), program)
		for _, s := range all {
			if s.start >= s.end {
				t.Errorf("unwritten(%q) has %x", smaps, s)
			}
		}
	})
}

// TestTrim trims this very process, which goes on.
func TestTrim(t *testing.T) {
	smaps, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer smaps.Close()
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if all, err := unwritten(smaps, path); len(all) == 0 || err != nil {
		t.Fatalf("unwritten = %x, %v: want the text of this program at least", all, err)
	}
	before := fileRSS(t)
	if err := Trim(); err != nil {
		t.Fatal("Trim:", err)
	}
	if after := fileRSS(t); after >= before {
		t.Errorf("%d KiB of files are mapped after Trim, %d before", after, before)
	}
}

// fileRSS is the memory of this process that is mapped from files, in KiB.
func fileRSS(t *testing.T) (n int) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "RssFile:")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatal(err)
	}
	return n
}
