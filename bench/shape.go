package main

import "runtime"

// shape is the number of threads that make a load and serve it, and the way in which
// they call the kernel. Client, proxy and backend share the machine's processors, so
// the shape is part of every figure.
type shape string

const (
	// usual is one thread for the client, two while bulk and messages mix, and
	// three for the backend: one accepts and answers short connections, one
	// echoes, one sends bulk.
	usual shape = "usual"
	// lean is one thread for the client and one for the backend, as cheap for
	// each message as can be: the proxy gets as much of the machine as possible.
	lean shape = "lean"
	// wide is lean with as many threads as processors on both sides.
	wide shape = "wide"
)

var shapes = []shape{usual, lean, wide}

// clients returns the number of threads that make the load.
func (s shape) clients() int {
	if s == wide {
		return runtime.NumCPU()
	}
	return 1
}

// bare reports whether loops call the kernel past Go's scheduler.
func (s shape) bare() bool { return s != usual }
