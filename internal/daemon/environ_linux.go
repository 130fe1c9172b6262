package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
)

// clearEnviron overwrites the values of the variables called names in the
// environment block of this process, which a script of the same user could
// otherwise read in /proc/PID/environ. The program itself keeps them: the Go
// runtime has made copies. os.Unsetenv would remove these, and leave the block
// unchanged.
//
// The alternative, a process that is not dumpable (prctl(2), PR_SET_DUMPABLE),
// would make root the owner of all its files in /proc: no core dump, and no
// access to its own children and descriptors.
func clearEnviron(names []string) error {
	if len(names) == 0 {
		return nil
	}
	start, end, err := environBlock()
	if err != nil {
		return err
	}
	// The kernel checks the range, so wrong numbers are an error and no crash.
	memory, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	block := make([]byte, end-start)
	if _, err := memory.ReadAt(block, start); err != nil {
		return err
	}
	for at := 0; at < len(block); {
		entry, _, _ := bytes.Cut(block[at:], []byte{0})
		name, value, _ := bytes.Cut(entry, []byte("="))
		if slices.Contains(names, string(name)) && len(value) > 0 {
			from := start + int64(at+len(entry)-len(value))
			if _, err := memory.WriteAt(make([]byte, len(value)), from); err != nil {
				return err
			}
		}
		at += len(entry) + 1
	}
	return nil
}

// environBlock returns the begin and end of the environment block in the memory
// of this process: fields 50 and 51 of /proc/self/stat, see proc(5).
func environBlock() (start, end int64, err error) {
	text, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, 0, err
	}
	// The second field is a name that may contain anything.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const first = 50 - 3
	if len(fields) <= first+1 {
		return 0, 0, errors.New("/proc/self/stat does not have the place of the environment")
	}
	start, err1 := strconv.ParseInt(fields[first], 10, 64)
	end, err2 := strconv.ParseInt(fields[first+1], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, fmt.Errorf("/proc/self/stat: %w", err)
	}
	if start <= 0 || end <= start || end-start > 32<<20 { // ARG_MAX is 6 MiB at most
		return 0, 0, fmt.Errorf("/proc/self/stat: the environment is from %d to %d", start, end)
	}
	return start, end, nil
}

// environShows returns those variables called names that have a value in
// /proc/self/environ, which a script of the same user can read.
func environShows(names []string) []string {
	text, err := os.ReadFile("/proc/self/environ")
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return nil // scripts of the same user cannot read it either
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		for entry := range bytes.SplitSeq(text, []byte{0}) {
			if value, ok := bytes.CutPrefix(entry, []byte(name+"=")); ok && len(value) > 0 {
				return false
			}
		}
		return err == nil
	})
}
