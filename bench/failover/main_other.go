//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "failover: needs Linux: it silences a host in a network namespace of its own")
	os.Exit(1) //nolint:forbidigo // main of a command
}
