package resident

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// unmapFile unmaps the pages of the program's file that were never written.
func unmapFile() error {
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	smaps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer smaps.Close()
	all, err := unwritten(smaps, path)
	for _, s := range all {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, s.start, s.end-s.start, unix.MADV_DONTNEED); errno != 0 {
			err = errors.Join(err, fmt.Errorf("madvise: %w", errno)) // EINVAL if it is locked
		}
	}
	return err
}

// span is a range of addresses.
type span struct{ start, end uintptr }

// unwritten returns those mappings of the file at path in which every page is the
// file's: they are not writable, and the process has no page of its own in them. It
// does in the read-only data of a position-independent program, whose addresses are
// written at the start, and where a debugger has set a breakpoint. Smaps is in the
// format of proc_pid_smaps(5).
func unwritten(smaps io.Reader, path string) ([]span, error) {
	var all []span
	var now span
	zero := 0 // of its kinds of own pages, those with none; -1 if it is to stay mapped
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) < 2:
		case !strings.HasSuffix(fields[0], ":"):
			zero = -1
			rights := fields[1]
			if _, err := fmt.Sscanf(fields[0], "%x-%x", &now.start, &now.end); err == nil && now.start < now.end &&
				strings.HasPrefix(rights, "r-") && strings.HasSuffix(rights, "p") && strings.HasSuffix(lines.Text(), " "+path) {
				zero = 0
			}
		case (fields[0] == "Anonymous:" || fields[0] == "Swap:") && zero >= 0:
			if zero++; fields[1] != "0" {
				zero = -1
			}
			if zero == 2 {
				all = append(all, now)
			}
		}
	}
	return all, lines.Err()
}
