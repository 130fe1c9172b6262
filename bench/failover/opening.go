//go:build linux

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// opening is the first message of a client. The client sends it before the host has sent
// a byte.
type opening struct {
	name  string // empty when the host speaks first
	bytes []byte
}

// openingAnswer is the answer of a host to any opening.
const openingAnswer = "opening"

// openings returns the first messages that clients send in turns.
var openings = sync.OnceValue(func() []opening {
	login := []byte("\x00\x03\x00\x00user\x00app\x00database\x00app\x00\x00")
	login = append(binary.BigEndian.AppendUint32(nil, uint32(len(login)+4)), login...)
	return []opening{
		{"TLS", clientHello()},
		{"PostgreSQL", login},
		{"HTTP GET", []byte("GET / HTTP/1.1\r\nHost: db.example\r\nUser-Agent: failover\r\n\r\n")},
		{"unknown", []byte("good morning\n")},
	}
})

// clientHello is the first message of Go's TLS client.
func clientHello() []byte {
	near, far := net.Pipe()
	defer far.Close() // ends the handshake
	go func() {
		_ = tls.Client(near, &tls.Config{ServerName: "db.example", MinVersion: tls.VersionTLS12}).HandshakeContext(context.Background()) // ends with the pipe
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(far, head); err != nil {
		panic(err) // only without random numbers
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(far, body); err != nil {
		panic(err)
	}
	return append(head, body...)
}

// startOpenings makes the load of clients that speak first. Their openings take
// turns; sessions begin with the first of them.
func startOpenings(ctx context.Context, target string) *generator {
	return startClients(ctx, target, openings())
}

// opening returns the first message of the client with this number; empty when the host
// speaks first.
func (g *generator) opening(number int) opening {
	if len(g.says) == 0 {
		return opening{}
	}
	return g.says[number%len(g.says)]
}

// rowsOfOpenings is the table of clients that speak first; empty if none was
// tried.
func (d *driver) rowsOfOpenings() string {
	var b strings.Builder
	for _, f := range faults() {
		for _, p := range d.proxies {
			var trials []result
			for _, r := range d.results {
				if f.load == clientFirst && r.fault == f.name && r.proxy == p.name {
					trials = append(trials, r)
				}
			}
			if len(trials) == 0 {
				continue
			}
			fmt.Fprintf(&b, "| %s | %s | %s |", f.name, p.name, gaps(trials))
			for _, o := range openings() {
				fmt.Fprintf(&b, " %s |", counts(trials, func(r result) int { return r.lostBy[o.name] }))
			}
			fmt.Fprintf(&b, " %s | %s | %s |\n", durations(trials, func(r result) time.Duration { return r.slowest }),
				counts(trials, func(r result) int { return r.wrong }), counts(trials, func(r result) int { return r.left }))
		}
	}
	if b.Len() == 0 {
		return ""
	}
	var head strings.Builder
	head.WriteString("| primary is | proxy | longest gap |")
	for _, o := range openings() {
		head.WriteString(" lost: " + o.name + " |")
	}
	return head.String() + " slowest | wrong | sessions left |\n" + strings.Repeat("|---", len(openings())+6) + "|\n" + b.String()
}

// resultsOfOpenings is the part on clients that speak first; empty without
// results.
func (d *driver) resultsOfOpenings(m machine) string {
	table := d.rowsOfOpenings()
	if table == "" {
		return ""
	}
	var b strings.Builder
	b.WriteString(firstHeading)
	fmt.Fprintf(&b, "\nThe hosts say nothing until the client has. The %d clients of each second take turns\n"+
		"with %d openings, %d a second each: a ClientHello, PostgreSQL's login, the head of a GET,\n"+
		"and a line that no protocol begins with (*unknown*). Each reads the answer to it and\n"+
		"closes. understudy has its defaults and no pong port: what is recognized is said again\n"+
		"to the next host ([replay.md](replay.md)), the rest is reset. The faults are those above.\n"+
		"%d %s. Medians; the worst round in parentheses where it differs.\n\n%s",
		perSecond, len(openings()), perSecond/len(openings()), d.settings.rounds, cmp.Or(map[int]string{1: "round"}[d.settings.rounds], "rounds"), table)
	if text := d.losses(clientFirst); text != "" {
		b.WriteString("\nWhy clients were lost, over all rounds:\n\n" + text)
	}
	b.WriteString("\n" + d.run(m, clientFirst) + "\n")
	return b.String()
}
