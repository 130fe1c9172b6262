//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: needs Linux: it counts descriptors, memory and processor time in /proc")
	os.Exit(1) //nolint:forbidigo // main of a command
}
