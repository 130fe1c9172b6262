//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"
)

// now is the time on a clock that all processes of this machine share, so that
// the answers of two hosts can be put in order.
func now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // every Linux has this clock
	}
	return time.Duration(ts.Nano())
}

// serveHost is the role of a host: args are its name, its address, the address
// that answers pings, and clientFirst if it waits for the client's first bytes. It
// greets each connection with its name, and answers each line with the moment at
// which it has read it and the line. It returns when that fails: it ends by a
// signal.
func serveHost(args []string) error {
	waits := len(args) == 4 && args[3] == clientFirst
	if len(args) != 3 && !waits {
		return fmt.Errorf("usage: failover %s NAME ADDRESS PING-ADDRESS [%s]", roleHost, clientFirst)
	}
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	service, err := config.Listen(context.Background(), "tcp4", args[1])
	if err != nil {
		return err
	}
	pings, err := config.Listen(context.Background(), "tcp4", args[2])
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() {
		server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "pong")
		})}
		ended <- server.Serve(pings)
	}()
	go func() {
		for {
			conn, err := service.Accept()
			if err != nil {
				ended <- err
				return
			}
			go converse(conn, args[0], waits)
		}
	}()
	return <-ended
}

// converse serves one connection. A host that waits for the client's opening
// answers it together with the greeting.
func converse(conn net.Conn, name string, waits bool) {
	defer conn.Close()
	greeting := name + "\n"
	if waits {
		if _, err := conn.Read(make([]byte, 4<<10)); err != nil {
			return
		}
		greeting += fmt.Sprintf("%d %s\n", int64(now()), openingAnswer)
	}
	if _, err := io.WriteString(conn, greeting); err != nil {
		return
	}
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if _, err := fmt.Fprintf(conn, "%d %s\n", int64(now()), lines.Bytes()); err != nil {
			return
		}
	}
}
