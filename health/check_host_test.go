package health

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseHost(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Host
	}{
		{"db1:5432", Host{Name: "db1", Port: 5432}},
		{"db_1.internal.example.:80", Host{Name: "db_1.internal.example.", Port: 80}},
		{"192.0.2.1:65535", Host{Name: "192.0.2.1", Port: 65535}},
		{"[::1]:80", Host{Name: "::1", Port: 80}},
		{"[fe80::1%eth0]:80", Host{Name: "fe80::1%eth0", Port: 80}},
		{"[::ffff:192.0.2.1]:80", Host{Name: "192.0.2.1", Port: 80}},
		{"unix:/run/x.sock", Host{Path: "/run/x.sock"}},
		{"unix:@x", Host{Path: "@x"}},
	} {
		if got, err := ParseHost(tt.in); got != tt.want || err != nil {
			t.Errorf("ParseHost(%q) = %+v, %v, want %+v", tt.in, got, err, tt.want)
		}
	}
}

func TestParseHostRefuses(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "missing port"},
		{"db1", "missing port"},
		{":80", "name is empty"},
		{"db1:", "not a number from 1 to 65535"},
		{"db1:0", "not a number from 1 to 65535"},
		{"db1:65536", "not a number from 1 to 65535"},
		{"db1:-1", "not a number from 1 to 65535"},
		{"db1:+80", "not a number from 1 to 65535"},
		{"db1:http", "not a number from 1 to 65535"},
		{"::1:80", "too many colons"},
		{"[db1]:80", "not an IPv6 address"},
		{"[192.0.2.1]:80", "not an IPv6 address"},
		{"10.0.0.256:80", "neither an IP address nor a host name"},
		{"db1/x:80", `contains '/'`},
		{"db1\r\nX:80", "too many colons|contains"},
		{"a..b:80", "label has 0 bytes"},
		{strings.Repeat("a", 64) + ":80", "label has 64 bytes"},
		{strings.Repeat("abc.", 70) + "a:80", "more than 254"},
		{"unix:", "path does not begin"},
		{"unix:run/x.sock", "path does not begin"},
		{"unix:/a\x00b", "zero byte"},
		{"unix:/" + strings.Repeat("a", 200), "201 bytes"},
	} {
		got, err := ParseHost(tt.in)
		if err == nil {
			t.Errorf("ParseHost(%q) = %+v, want an error", tt.in, got)
			continue
		}
		matched := false
		for want := range strings.SplitSeq(tt.want, "|") {
			matched = matched || strings.Contains(err.Error(), want)
		}
		if !matched || !strings.HasPrefix(err.Error(), fmt.Sprintf("host %q: ", tt.in)) {
			t.Errorf("ParseHost(%q) = %q, want host %q: … %s", tt.in, err, tt.in, tt.want)
		}
	}
}

func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"db1:5432", "[::1]:80", "[fe80::1%eth0]:1", "unix:/run/x.sock", "unix:@x", "1.2.3.4:0", "a.:080"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		h, err := ParseHost(in)
		if err != nil {
			t.Skip()
		}
		if again, err := ParseHost(h.String()); err != nil || again != h {
			t.Errorf("%q parsed to %+v, which re-parses to %+v, %v", in, h, again, err)
		}
		if (h.Path == "") == (h.Name == "") || (h.Path == "") == (h.Port == 0) {
			t.Errorf("%q parsed to %+v, which is neither TCP nor unix", in, h)
		}
		if strings.ContainsAny(h.Name, "\r\n /@") {
			t.Errorf("%q parsed to the name %q", in, h.Name)
		}
	})
}

func ExampleParseHost() {
	for _, s := range []string{"db1:5432", "[::1]:80", "unix:/run/orders.sock", "db1:0"} {
		h, err := ParseHost(s)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Printf("%+v\n", h)
	}
	// Output:
	// db1:5432
	// [::1]:80
	// unix:/run/orders.sock
	// host "db1:0": port "0" is not a number from 1 to 65535
}
