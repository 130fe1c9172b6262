package address

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
		{"unix:/run/my app; old.sock", Host{Path: "/run/my app; old.sock"}},
	} {
		if got, err := ParseHost(tt.in); got != tt.want || err != nil {
			t.Errorf("ParseHost(%q) = %+v, %v, want %+v", tt.in, got, err, tt.want)
		}
	}
}

func TestParseHostRefuses(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "no port"},
		{"db1", "no port"},
		{":80", "no host"},
		{"db1:", "not a number from 1 to 65535"},
		{"db1:0", "not a number from 1 to 65535"},
		{"db1:65536", "not a number from 1 to 65535"},
		{"db1:-1", "not a number from 1 to 65535"},
		{"db1:+80", "not a number from 1 to 65535"},
		{"db1:http", "not a number from 1 to 65535"},
		{"::1:80", "ambiguous"},
		{"[db1]:80", "no IPv6 address"},
		{"[192.0.2.1]:80", "no IPv6 address"},
		{"[fe80::1%8A 00000]:1", "in no interface name"},
		{"[fe80::1%eth0\r\nX]:1", "in no interface name"},
		{"[fe80::1%interface-name-16]:1", "more than the 15"},
		{"10.0.0.256:80", "no IPv4 address"},
		{"db1/x:80", "is not allowed"},
		{"db1\r\nX:80", "white space in it: separate addresses with commas"},
		{"http://a:1", `is a URL: want host:port alone, without "http://"`},
		{"http://u:secret@a:1/x?y", `is a URL: want host:port alone, without "http://"`},
		{"a:1;b:2", "a semicolon in it: separate addresses with commas"},
		{"a:1 b:2", "a space in it: separate addresses with commas"},
		{"a:1\tb:2", "white space in it"},
		{"a:1|b:2", "a bar in it"},
		{"unix:/a.sock;unix:/b.sock", "a semicolon in it"},
		{"a..b:80", "labels of 1 to 63"},
		{strings.Repeat("a", 64) + ":80", "labels of 1 to 63"},
		{strings.Repeat("abc.", 70) + "a:80", "longer than 253"},
		{"unix:", "absolute path"},
		{"unix:@x", "absolute path"},
		{"unix:run/x.sock", "absolute path"},
		{"unix:/a\x00b", "zero byte"},
		{"unix:/" + strings.Repeat("a", 200), "longer than"},
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
		if !matched {
			t.Errorf("ParseHost(%q) = %q, want … %s", tt.in, err, tt.want)
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
	// has port "0", which is not a number from 1 to 65535
}
