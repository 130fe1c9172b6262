package proctest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Redis is a stand-in for a Redis server: it answers what a role check asks, and nothing
// else. It runs in this process until the test ends.
type Redis struct {
	addr string

	mu      sync.Mutex
	primary bool
	offset  uint64
}

// StartRedis starts one whose data goes as far as offset.
func StartRedis(tb testing.TB, primary bool, offset uint64) *Redis {
	tb.Helper()
	l, err := listen("127.0.0.1", FreePort(tb, "127.0.0.1"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	r := &Redis{addr: l.Addr().String(), primary: primary, offset: offset}
	go acceptAll(l, r.serve)
	return r
}

// Addr is its connection string.
func (r *Redis) Addr() string { return r.addr }

// Become makes it a primary or a replica.
func (r *Redis) Become(primary bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.primary = primary
}

// Write moves how far its data goes by n bytes.
func (r *Redis) Write(n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.offset += n
}

// serve answers the commands of a client: arrays of strings, after their number and each
// after its length.
func (r *Redis) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	number := func(kind string) int {
		line, err := in.ReadString('\n')
		n, err2 := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(line), kind))
		if err != nil || err2 != nil {
			return -1
		}
		return n
	}
	for {
		words := number("*")
		if words < 1 {
			return
		}
		command := ""
		for k := range words {
			word := make([]byte, max(number("$"), 0)+2)
			if _, err := io.ReadFull(in, word); err != nil {
				return
			}
			if k == 0 {
				command = strings.ToUpper(strings.TrimSpace(string(word)))
			}
		}
		if _, err := io.WriteString(c, r.answer(command)); err != nil || command == "QUIT" {
			return
		}
	}
}

func (r *Redis) answer(command string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case command == "PING":
		return "+PONG\r\n"
	case command == "QUIT":
		return "+OK\r\n"
	case command != "ROLE":
		return "-ERR unknown command\r\n"
	case r.primary:
		return fmt.Sprintf("*3\r\n$6\r\nmaster\r\n:%d\r\n*0\r\n", r.offset)
	}
	return fmt.Sprintf("*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:6379\r\n$9\r\nconnected\r\n:%d\r\n", r.offset)
}
