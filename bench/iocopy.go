//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
)

// serveCopy is the proxy that everybody writes first: two goroutines a
// connection, each an io.Copy, which between TCP connections splices. It is
// what the standard library does for free. It returns when accepting fails.
func serveCopy(ctx context.Context, addr, backend netip.AddrPort) error {
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // like every other peer
	listener, err := plain.Listen(ctx, "tcp4", addr.String())
	if err != nil {
		return err // already names the address
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			return fmt.Errorf("accept on %s: %w", addr, err)
		}
		go copyBoth(ctx, client, backend)
	}
}

func copyBoth(ctx context.Context, client net.Conn, backend netip.AddrPort) {
	defer client.Close()
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp4", backend.String())
	if err != nil {
		return
	}
	defer server.Close()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			_ = way[0].(*net.TCPConn).CloseWrite()
		})
	}
	both.Wait()
}
