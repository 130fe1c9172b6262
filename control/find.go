package control

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Socket is a control socket in one of the known places.
type Socket struct {
	Path string
	UID  int // of its owner

	// PID is the process that created it, taken from its name; zero if the name
	// has none.
	PID int

	// Denied is true when this user may not open it.
	Denied bool
}

// Find lists the control sockets in the places where processes have them when no
// path was chosen, of every user, as far as this user may list them, and in
// those of the systemd units. It connects to none, so a socket that was left
// behind is among them: [ErrNone] is the answer of a client for it.
func Find() []Socket {
	var all []Socket
	var dirs []string
	for _, pattern := range places() {
		found, _ := filepath.Glob(pattern) // the pattern is well-formed
		dirs = append(dirs, found...)
	}
	slices.Sort(dirs)
	for _, dir := range slices.Compact(dirs) {
		all = append(all, socketsIn(dir)...)
	}
	return all
}

// places returns patterns of the directories.
func places() []string {
	quoted := globQuoted.Replace
	all := []string{"/run/understudy", "/run/understudy-*", "/run/user/*/understudy", quoted(DefaultDir()), quoted(os.TempDir()) + "/understudy-*"}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		all = append(all, filepath.Join(quoted(dir), "understudy"))
	}
	return all
}

// socketsIn lists the sockets in dir, if only its owner can create files there.
func socketsIn(dir string) (all []Socket) {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() || info.Mode().Perm()&0o022 != 0 {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".sock")
		info, err := e.Info()
		if !ok || err != nil || info.Mode().Type() != fs.ModeSocket {
			continue
		}
		s := Socket{Path: filepath.Join(dir, e.Name())}
		if owner, ok := info.Sys().(*syscall.Stat_t); ok {
			s.UID = int(owner.Uid)
		}
		name, _, _ = strings.Cut(name, "-")
		s.PID, _ = strconv.Atoi(name) // zero for another name
		// Root may open all of them, others those of root and their own.
		self := os.Getuid()
		s.Denied = self != 0 && s.UID != self && (s.UID != 0 || info.Mode().Perm()&0o006 != 0o006)
		if s.Denied && s.PID != 0 && errors.Is(syscall.Kill(s.PID, 0), syscall.ESRCH) {
			continue // its process has ended
		}
		all = append(all, s)
	}
	return all
}
