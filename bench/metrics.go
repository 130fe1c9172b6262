package main

// metric is one number of a figure.
type metric struct {
	key, unit string
}

// The keys of metrics. Less is better for all but the rates.
const (
	rate          = "rate"
	bulkRate      = "bulk"
	p50           = "p50"
	p99           = "p99"
	p999          = "p99.9"
	processor     = "processor"
	resident      = "resident"
	processMemory = "process memory"
	kernelMemory  = "kernel memory"
	systemMemory  = "system memory"
	tcpMemory     = "tcp memory" // in the raw results only
	descriptors   = "descriptors"
	resting       = "processor, resting"
	threads       = "threads"
	eachRelay     = "memory of each relay" // but the first

	// Behind a key:
	used1MiB   = " after 1 MiB"       // once each connection was used
	besideIdle = ", a new connection" // while the others are idle
)

var (
	echoMetrics = []metric{
		{rate, "messages/s"}, {p50, "µs"}, {p99, "µs"}, {p999, "µs"}, {processor, "µs/message"},
	}
	bulkMetrics  = []metric{{rate, "GB/s"}, {processor, "s/GB"}}
	mixedMetrics = []metric{
		{p50, "µs"}, {p99, "µs"}, {p999, "µs"}, {rate, "messages/s"}, {bulkRate, "GB/s"},
	}
	connectMetrics = []metric{
		{rate, "connections/s"}, {p50, "µs to first byte"}, {p99, "µs to first byte"}, {p999, "µs to first byte"},
		{processor, "µs/connection"},
	}
	startMetrics  = []metric{{resident, "MiB"}, {descriptors, ""}}
	relaysMetrics = []metric{
		{threads, ""}, {resident, "MiB"}, {eachRelay, "KiB"}, {resting, "ms/s"},
		{rate, "messages/s"}, {p50, "µs"}, {p99, "µs"}, {processor, "µs/message"},
	}
	idleMetrics = []metric{
		{processMemory, "KiB/connection"}, {processMemory + used1MiB, "KiB/connection"},
		{kernelMemory, "KiB/connection"}, {kernelMemory + used1MiB, "KiB/connection"},
		{systemMemory, "KiB/connection"}, {systemMemory + used1MiB, "KiB/connection"},
		{descriptors, "each connection"}, {descriptors + used1MiB, "each connection"},
		{resting, "ms/s"},
		{p50 + besideIdle, "µs to first byte"}, {p99 + besideIdle, "µs to first byte"},
	}
)
