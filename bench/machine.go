//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy/bench/netns"
)

// machine describes the machine of the measurement, as far as it matters.
type machine struct {
	Date        string            `json:"date"`
	Processor   string            `json:"processor"`
	Processors  int               `json:"processors"`
	Kernel      string            `json:"kernel"`
	Go          string            `json:"go"`
	Clock       string            `json:"clocksource"`
	Congestion  string            `json:"congestionControl"`
	Namespace   bool              `json:"ownNetworkNamespace"`
	Descriptors uint64            `json:"descriptorLimit"`
	Load        string            `json:"loadAverageBefore"`
	Stolen      float64           `json:"stolenPercent"` // by the hypervisor, during the run
	Versions    map[string]string `json:"versions"`
}

// describe reads the properties of the machine. Stolen is filled in at the end.
func describe(ctx context.Context, list []peer, descriptors uint64) machine {
	m := machine{
		Date:        time.Now().UTC().Format("2006-01-02 15:04 MST"),
		Processor:   firstField("/proc/cpuinfo", "model name"),
		Processors:  runtime.NumCPU(),
		Go:          runtime.Version(),
		Clock:       line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
		Congestion:  congestionControl(),
		Namespace:   netns.Inside(),
		Descriptors: descriptors,
		Load:        line("/proc/loadavg"),
		Versions:    map[string]string{},
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.Kernel = unix.ByteSliceToString(name.Release[:]) + " " + unix.ByteSliceToString(name.Machine[:])
	}
	if firstField("/proc/cpuinfo", "flags") != "" && strings.Contains(" "+firstField("/proc/cpuinfo", "flags")+" ", " hypervisor ") {
		m.Processor += ", a virtual machine"
	}
	for _, p := range list {
		if v := p.version(ctx); v != "" {
			m.Versions[p.program] = v
		}
	}
	return m
}

// line is the first line of a file, or "unknown".
func line(path string) string {
	content, err := os.ReadFile(path) //nolint:gosec // G304: files below /proc and /sys
	if err != nil {
		return "unknown"
	}
	first, _, _ := bytes.Cut(content, []byte("\n"))
	return string(first)
}

// firstField is the value of the first "key : value" line, or "".
func firstField(path, key string) string {
	content, err := os.ReadFile(path) //nolint:gosec // G304: files below /proc
	if err != nil {
		return ""
	}
	for l := range strings.Lines(string(content)) {
		if k, value, found := strings.Cut(l, ":"); found && strings.TrimSpace(k) == key {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// processorTicks is the time of all processors since boot, and the part of it
// that a hypervisor gave to other guests while this one needed it.
func processorTicks() (all, stolen float64) {
	fields := strings.Fields(line("/proc/stat"))
	for i, f := range fields[min(1, len(fields)):] {
		ticks, err := strconv.ParseFloat(f, 64)
		if err != nil || i > 7 { // guest time is in user time already
			break
		}
		all += ticks
		if i == 7 {
			stolen = ticks
		}
	}
	return all, stolen
}

// markdown is m as a list.
func (m machine) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "- %s, %d × %s, Linux %s, clock %s\n", m.Date, m.Processors, m.Processor, m.Kernel, m.Clock)
	namespace := "in a network namespace of its own"
	if !m.Namespace {
		namespace = "in the machine's network namespace"
	}
	fmt.Fprintf(&b, "- loopback, %s; congestion control %s (where a row does not say otherwise); descriptor limit %d\n", namespace, m.Congestion, m.Descriptors)
	versions := []string{"benchmark and io.Copy proxy: " + m.Go}
	for _, program := range slices.Sorted(maps.Keys(m.Versions)) {
		versions = append(versions, m.Versions[program])
	}
	fmt.Fprintf(&b, "- %s\n", strings.Join(versions, "; "))
	fmt.Fprintf(&b, "- load average before the run: %s; stolen by the hypervisor during it: %.2f %%\n", m.Load, m.Stolen)
	return b.String()
}
