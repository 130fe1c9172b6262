package bind

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
)

// File is the mode and owner of a unix socket's file.
type File struct {
	// Mode is the file's permission, whatever the umask is: clients need the
	// permission to write. With zero only root can connect.
	Mode fs.FileMode

	// Owner and Group are names or numbers. Empty keeps those of the process.
	// Giving a file to another owner needs a privilege; giving it to a group of
	// the process does not.
	Owner, Group string
}

// IDs returns the numbers of owner and group; -1 where nothing changes.
func (f File) IDs() (uid, gid int, err error) {
	uid, gid = -1, -1
	if f.Owner != "" {
		if uid, err = strconv.Atoi(f.Owner); err != nil {
			u, err := user.Lookup(f.Owner)
			if err != nil {
				return -1, -1, fmt.Errorf("socket-owner: %w", err)
			}
			uid, _ = strconv.Atoi(u.Uid) // a number on every system with chown(2)
		}
	}
	if f.Group != "" {
		if gid, err = strconv.Atoi(f.Group); err != nil {
			g, err := user.LookupGroup(f.Group)
			if err != nil {
				return -1, -1, fmt.Errorf("socket-group: %w", err)
			}
			gid, _ = strconv.Atoi(g.Gid)
		}
	}
	return uid, gid, nil
}

// apply gives the file at path its owner and mode.
func (f File) apply(path string) error {
	uid, gid, err := f.IDs()
	if err != nil {
		return err
	}
	if uid >= 0 || gid >= 0 {
		if err := os.Lchown(path, uid, gid); err != nil {
			return err
		}
	}
	return os.Chmod(path, f.Mode)
}
