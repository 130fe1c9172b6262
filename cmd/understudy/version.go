package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

// version is set by the linker (-X main.version=…) in release builds.
var version string

// printVersion prints what this binary was built from.
func printVersion(_ context.Context, _ line, stdout, _ io.Writer) int {
	fmt.Fprintln(stdout, "understudy", versionText())
	return exitDone
}

// versionText is "v1.2.3 (commit 0123456789ab, go1.26.0 linux/amd64)". What
// the build did not record is left out.
func versionText() string {
	v, commit := version, ""
	if info, ok := debug.ReadBuildInfo(); ok {
		if v == "" && info.Main.Version != "(devel)" {
			v = info.Main.Version
		}
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
	if v == "" {
		v = "devel"
	}
	return fmt.Sprintf("%s (%s%s %s/%s)", v, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
