package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

// release is the version of builds that git describe finds no tag for. The
// Makefile reads it here.
const release = "v1.0.0-rc.1"

// version is set by the linker (-X main.version=…) in release builds.
var version string

// printVersion prints the source of this binary.
func printVersion(_ context.Context, _ line, stdout, _ io.Writer) int {
	fmt.Fprintln(stdout, "understudy", versionText())
	return exitDone
}

// versionText returns "v1.2.3 (commit 0123456789ab, go1.26.0 linux/amd64)".
// Parts that the build did not record are left out.
func versionText() string {
	v, commit := version, ""
	if v == "" {
		v = release
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		modified := ""
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				commit = "commit " + s.Value[:min(len(s.Value), 12)]
			case s.Key == "vcs.modified" && s.Value == "true":
				modified = " with changes"
			}
		}
		if commit != "" {
			commit += modified + ", "
		}
	}
	return fmt.Sprintf("%s (%s%s %s/%s)", v, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
