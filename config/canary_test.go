package config

import (
	"maps"
	"strings"
	"testing"
	"time"
)

func TestCanary(t *testing.T) {
	t.Parallel()
	load := func(file string, flags map[string][]string) (Relay, error) {
		all := map[string][]string{"bind": {"127.0.0.1:5000"}, "hosts": {"a:1"}, "config": {"u.yaml"}}
		maps.Copy(all, flags)
		s, _, err := Load(Given{Flags: all, ReadFile: func(string) ([]byte, error) { return []byte(file), nil }})
		if err != nil {
			return Relay{}, err
		}
		return s.Relays[0], nil
	}
	for _, tt := range []struct {
		name, file string
		flags      map[string][]string
		want       Canary
		err        string
	}{
		{"none", "", nil, Canary{Slow: 200 * time.Millisecond}, ""},
		{"a flag", "", map[string][]string{"canary": {"1s"}}, Canary{Every: time.Second, Slow: 200 * time.Millisecond}, ""},
		{"the file", "canary: 2s\ncanary_slow: 1s\ncanary_send: \"PING\\r\\n\"\ncanary_expect: +PONG\n", nil,
			Canary{Every: 2 * time.Second, Slow: time.Second, Send: "PING\r\n", Expect: "+PONG"}, ""},
		{"escapes", "canary: 1s\n", map[string][]string{"canary-send": {`a\r\n\x00\\é `}}, Canary{Every: time.Second, Slow: 200 * time.Millisecond, Send: "a\r\n\x00\\é "}, ""},
		{"the greeting of the check", "canary: 1s\ncheck_tcp: ssh\n", nil, Canary{Every: time.Second, Slow: 200 * time.Millisecond, Handshake: "ssh"}, ""},
		{"not that greeting", "canary: 1s\ncheck_tcp: ssh\ncanary_expect: x\n", nil, Canary{Every: time.Second, Slow: 200 * time.Millisecond, Expect: "x"}, ""},
		{"too often", "canary: 1ms\n", nil, Canary{}, "100ms"},
		{"an unknown escape", "canary: 1s\ncanary_send: 'a\\q'\n", nil, Canary{}, "canary_send"},
		{"without its time", "canary_send: x\n", nil, Canary{}, "canary_send: needs canary"},
		{"two ways to speak", "canary: 1s\ncanary_send: x\ncanary_handshake: ssh\n", nil, Canary{}, "excludes canary-send"},
		{"not allowed", "canary: 1s\nallow: 192.0.2.0/24\n", nil, Canary{}, "canary: connects from 127.0.0.1, which is not in allow"},
		{"allowed", "canary: 1s\nallow: [192.0.2.0/24, 127.0.0.1/32]\n", nil, Canary{Every: time.Second, Slow: 200 * time.Millisecond}, ""},
		{"not allowed over every address", "canary: 1s\nallow: 192.0.2.0/24\n", map[string][]string{"bind": {":5000"}}, Canary{}, "connects from 127.0.0.1"},
		{"not allowed over its own address", "canary: 1s\nallow: 127.0.0.1/32\n", map[string][]string{"bind": {"192.0.2.1:5000"}}, Canary{}, "connects from 192.0.2.1"},
		{"a file has no address", "canary: 1s\nallow: 192.0.2.0/24\n", map[string][]string{"bind": {"unix:/run/x"}}, Canary{Every: time.Second, Slow: 200 * time.Millisecond}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := load(tt.file, tt.flags)
			switch {
			case tt.err == "" && err != nil:
				t.Error(err)
			case tt.err == "" && got.Canary != tt.want:
				t.Errorf("%+v, want %+v", got.Canary, tt.want)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("%v, want an error with %q", err, tt.err)
			}
		})
	}
}
