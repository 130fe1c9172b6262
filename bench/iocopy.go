//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
)

// serveCopy is the simplest proxy in Go: two goroutines for each connection,
// each an io.Copy, which between TCP connections splices. It shows what the
// standard library does for free. It returns when accepting fails.
func serveCopy(ctx context.Context, addr, backend address) error {
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // like every other peer
	listener, err := plain.Listen(ctx, addr.network(), addr.name())
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

func copyBoth(ctx context.Context, client net.Conn, backend address) {
	defer client.Close()
	server, err := (&net.Dialer{}).DialContext(ctx, backend.network(), backend.name())
	if err != nil {
		return
	}
	defer server.Close()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			_ = way[0].(interface{ CloseWrite() error }).CloseWrite()
		})
	}
	both.Wait()
}
