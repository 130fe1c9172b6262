package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"understudy/config"
	"understudy/internal/flagfile"
)

// setFlag is activate, deactivate and inactivate: it switches a service on or
// off in the answers of /status. No process has to run.
func setFlag(_ context.Context, l line, stdout, stderr io.Writer) int {
	dir, err := l.statusDir()
	if err != nil {
		return usage(stderr, err)
	}
	name, flags := l.args[0], flagfile.Dir(dir)
	did, set := "activated", flags.Set
	if l.verb.name != "activate" {
		did, set = "deactivated", flags.Clear
	}
	switch err := set(name); {
	case errors.Is(err, flagfile.ErrName):
		return usage(stderr, fmt.Errorf("%s: %w", l.verb.name, err))
	case errors.Is(err, fs.ErrNotExist):
		fmt.Fprintf(stderr, "understudy: %s: %v: make the directory, or choose another with --status-dir or STATUS_DIR\n", l.verb.name, err)
		return exitFailed
	case err != nil:
		fmt.Fprintf(stderr, "understudy: %s: %v\n", l.verb.name, err)
		return exitFailed
	}
	fmt.Fprintf(stdout, "%s %s\n", name, did)
	return exitDone
}

// statusDir returns the directory of flags in the settings: --status-dir, or
// the file's only route with flags, or of several the one at /status. The other
// settings are not validated here.
func (l line) statusDir() (string, error) {
	settings, values, _ := l.settings(nil)
	for _, v := range values {
		if v.Flag == "status-dir" && v.Text != "" {
			return v.Text, nil
		}
	}
	var dirs []string
	for _, r := range settings.HTTP.Routes {
		switch {
		case r.Flags == "":
		case r.Path == config.StatusPath:
			return r.Flags, nil
		case !slices.Contains(dirs, r.Flags):
			dirs = append(dirs, r.Flags)
		}
	}
	if len(dirs) > 1 {
		return "", fmt.Errorf("%s: needs --status-dir or STATUS_DIR, because there are several: %s", l.verb.name, strings.Join(dirs, ", "))
	}
	if len(dirs) == 0 {
		return "", fmt.Errorf("%s: needs --status-dir or STATUS_DIR, the directory of the flags", l.verb.name)
	}
	return dirs[0], nil
}
