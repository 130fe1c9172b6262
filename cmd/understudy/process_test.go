package main

import (
	"math"
	"testing"
	"testing/fstest"
)

func TestMemoryLimitOfTheControlGroup(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	for _, tt := range []struct {
		name string
		root fstest.MapFS
		want int64
	}{
		{"no control groups", fstest.MapFS{}, math.MaxInt64},
		{"no limit", fstest.MapFS{
			"proc/self/cgroup":         file("0::/app\n"),
			"sys/fs/cgroup/memory.max": file("max\n"),
		}, math.MaxInt64},
		{"a container sees itself as the root", fstest.MapFS{
			"proc/self/cgroup":         file("0::/\n"),
			"sys/fs/cgroup/memory.max": file("67108864\n"),
		}, 64 << 20},
		{"the group above is tighter", fstest.MapFS{
			"proc/self/cgroup":                                  file("0::/system.slice/app.service\n"),
			"sys/fs/cgroup/system.slice/memory.max":             file("1000\n"),
			"sys/fs/cgroup/system.slice/app.service/memory.max": file("2000\n"),
		}, 1000},
		{"both versions mounted", fstest.MapFS{
			"proc/self/cgroup":               file("12:memory:/v1\n0::/a\n"),
			"sys/fs/cgroup/a/memory.max":     file("3000\n"),
			"sys/fs/cgroup/v1/memory.max":    file("1\n"),
			"sys/fs/cgroup/memory.something": file("1\n"),
		}, 3000},
		{"outside of the name space's root", fstest.MapFS{
			"proc/self/cgroup":         file("0::/../../other\n"),
			"sys/fs/cgroup/memory.max": file("5000\n"),
		}, 5000},
	} {
		if got := cgroupMemory(tt.root); got != tt.want {
			t.Errorf("%s: limit %d, want %d", tt.name, got, tt.want)
		}
	}
}
