package daemon

import (
	"math"
	"os"
	"syscall"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"
)

// A program that signals a process and its group signals it twice at once.
func TestSecondSignalCountsAfterASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ends, done := make(chan os.Signal, 2), make(chan struct{})
		finished, hurried := 0, 0
		go new(Signals).handleEnds(ends, done, func() { finished++ }, func() { hurried++ })
		defer close(done)
		send := func(after time.Duration, s os.Signal, wantHurried int) {
			t.Helper()
			time.Sleep(after) // virtual
			ends <- s
			synctest.Wait()
			if finished != 1 || hurried != wantHurried {
				t.Errorf("after %v more and %v: finish called %d times, hurry %d times, want 1 and %d", after, s, finished, hurried, wantHurried)
			}
		}
		send(time.Hour, syscall.SIGTERM, 0)
		send(0, syscall.SIGTERM, 0)
		send(time.Millisecond, syscall.SIGINT, 0)
		send(secondSignal-2*time.Millisecond, syscall.SIGTERM, 0) // no further signal extends the time
		send(time.Millisecond, syscall.SIGTERM, 1)
	})
}

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

func TestCgroupTasks(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	for _, tt := range []struct {
		name string
		root fstest.MapFS
		want int64
	}{
		{"no cgroups", fstest.MapFS{}, math.MaxInt64},
		{"no limit", fstest.MapFS{
			"proc/self/cgroup":                  file("0::/a\n"),
			"sys/fs/cgroup/a/pids.max":          file("max\n"),
			"sys/fs/cgroup/a/pids.current":      file("7\n"),
			"sys/fs/cgroup/pids/a/pids.max":     file("1\n"),
			"sys/fs/cgroup/pids/a/pids.current": file("1\n"),
		}, math.MaxInt64},
		{"the tightest of the groups above", fstest.MapFS{
			"proc/self/cgroup":               file("0::/a/b\n"),
			"sys/fs/cgroup/a/pids.max":       file("100\n"),
			"sys/fs/cgroup/a/pids.current":   file("90\n"),
			"sys/fs/cgroup/a/b/pids.max":     file("50\n"),
			"sys/fs/cgroup/a/b/pids.current": file("7\n"),
		}, 10},
		{"version 1", fstest.MapFS{
			"proc/self/cgroup":                  file("8:pids:/a\n1:cpu:/\n0::/\n"),
			"sys/fs/cgroup/pids/a/pids.max":     file("20\n"),
			"sys/fs/cgroup/pids/a/pids.current": file("25\n"),
		}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := cgroupTasks(tt.root); got != tt.want {
				t.Errorf("cgroupTasks = %d, want %d", got, tt.want)
			}
		})
	}
}
