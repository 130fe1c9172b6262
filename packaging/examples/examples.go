// Package examples holds the check scripts, triggers and configurations that
// docs/scripts.md shows, for `understudy init` to write.
package examples

import "embed"

// Scripts has the files of the directory scripts, under that name.
//
//go:embed scripts
var Scripts embed.FS
