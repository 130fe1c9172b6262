package main

import (
	"io"

	"understudy/config"
	"understudy/logs"
)

// newLogger opens the program's log. Its trouble is told on stderr, and so is
// an error at start, wherever the log goes.
func newLogger(cfg config.Log, stdout, stderr io.Writer) (*logs.Log, error) {
	return logs.Open(logs.Config{
		Name:   "understudy",
		Level:  cfg.Level,
		JSON:   cfg.JSON,
		Output: cfg.Output,
		Stdout: stdout,
		Stderr: stderr,
	})
}
