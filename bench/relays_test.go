//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestPeersAreSetUpForRelaysAndUnixSockets(t *testing.T) {
	list, err := peers(tools{understudy: "understudy", self: "bench", limit: 20000}, []string{"loops1=--loops 1"})
	if err != nil {
		t.Fatal(err)
	}
	unixHost := []relay{{loopback(0, 0, 1, 11001), []address{{path: "/run/backend"}}}}
	unixClient := []relay{{address{path: "/run/s/1"}, []address{loopback(0, 0, 1, 11001)}}}
	two := relaysOn(2, 11003, 11002)
	for _, tt := range []struct {
		peer   string
		relays []relay
		file   string // "" looks at the command line
		want   []string
	}{
		{"understudy", unixHost, "", []string{"-b 127.0.0.1:11001 -H unix:/run/backend"}},
		{"understudy", unixClient, "", []string{"-b unix:/run/s/1 -H 127.0.0.1:11001"}},
		{"iocopy", unixClient, "", []string{"iocopy unix:/run/s/1 127.0.0.1:11001"}},
		{"haproxy-2", unixHost, "haproxy.cfg", []string{"bind 127.0.0.1:11001\n", "server h1 unix@/run/backend\n", "maxconn 9050\n"}},
		{"haproxy-1", unixClient, "haproxy.cfg", []string{"bind unix@/run/s/1\n", "server h1 127.0.0.1:11001\n"}},
		{"nginx-2", unixHost, "nginx.conf", []string{"listen 127.0.0.1:11001 backlog=4096; proxy_pass unix:/run/backend;"}},
		{"nginx-2", unixClient, "nginx.conf", []string{"listen unix:/run/s/1 backlog=4096; proxy_pass 127.0.0.1:11001;"}},
		{"loops1", two, "", []string{"--loops 1 --config "}},
		{"understudy", two, "understudy.yaml", []string{
			`{name: r1, listen: ["127.2.0.1:11003"], hosts: ["127.1.0.1:11002", "127.1.0.2:11002"]}`,
			`{name: r2, listen: ["127.2.0.2:11003"], hosts: ["127.1.0.3:11002", "127.1.0.4:11002"]}`,
		}},
		{"haproxy-2", two, "haproxy.cfg", []string{
			"bind 127.2.0.2:11003\n    server h1 127.1.0.3:11002 check inter 1s\n    server h2 127.1.0.4:11002 check inter 1s backup\n",
			"maxconn 1000\n",
		}},
		{"nginx-2", two, "nginx.conf", []string{
			"upstream r2 { server 127.1.0.3:11002; server 127.1.0.4:11002 backup; }", "listen 127.2.0.2:11003 backlog=4096; proxy_pass r2;",
		}},
	} {
		for _, p := range list {
			if p.name != tt.peer {
				continue
			}
			dir := t.TempDir()
			argv, err := p.argv(dir, tt.relays)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(argv, " ")
			if tt.file != "" {
				content, err := os.ReadFile(filepath.Join(dir, tt.file))
				if err != nil {
					t.Fatal(err)
				}
				got = string(content)
			}
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("%s has no %q in\n%s", tt.peer, want, got)
				}
			}
		}
	}
}

func TestHostsOfRelaysAreTheirOwn(t *testing.T) {
	seen := map[address]bool{}
	for _, r := range relaysOn(maxRelays, 11003, 11003) {
		for _, a := range append(r.hosts, r.listen) {
			if seen[a] || !a.tcp.Addr().IsLoopback() {
				t.Errorf("%s is used twice or not a loopback address", a)
			}
			seen[a] = true
		}
	}
}

func TestAddressesSurviveTheCommandLine(t *testing.T) {
	for _, want := range []address{loopback(2, 1, 250, 11001), {path: "/run/s/1"}} {
		if got, err := parseAddress(want.String()); err != nil || got != want {
			t.Errorf("%q is read as %v (%v)", want, got, err)
		}
	}
	if _, err := parseAddress("localhost"); err == nil {
		t.Error("an address without a port is taken")
	}
}

// The rows with unix sockets, and those with many relays with what is installed.
func TestUnixSocketsAndRelaysAreMeasured(t *testing.T) {
	leftovers(t)
	dir := t.TempDir()
	s := short(dir, "^(.*-unix-.*|relays/40/lean)$", "^(direct|iocopy|haproxy-2|nginx-2)$")
	s.rounds = 1
	s.users = regexp.MustCompile(accounts()[len(accounts())-1].name)
	var report, progress bytes.Buffer
	if err := drive(t.Context(), s, &report, &progress); err != nil {
		t.Fatalf("drive: %v\n%s\n%s", err, progress.String(), report.String())
	}
	if strings.Contains(progress.String(), "SKIP") {
		t.Log(progress.String())
	}
	raw, err := os.ReadFile(s.json)
	if err != nil {
		t.Fatal(err)
	}
	var saved record
	if err := json.Unmarshal(raw, &saved); err != nil {
		t.Fatal(err)
	}
	for _, s := range saved.Samples {
		if s.Values[rate] <= 0 {
			t.Errorf("%s, %s: the rate is %v", s.Figure, s.Peer, s.Values[rate])
		}
		if s.Figure != "relays/40/lean" {
			continue
		}
		if s.Peer == "iocopy" {
			t.Error("iocopy has many relays")
		}
		for _, key := range []string{threads, resident, eachRelay, resting} {
			if v, ok := s.Values[key]; ok == (s.Peer == direct) {
				t.Errorf("%s of %s with 40 relays is %v", key, s.Peer, v)
			}
		}
	}
}
