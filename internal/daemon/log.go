package daemon

import (
	"io"

	"understudy/config"
	"understudy/logs"
	"understudy/verdict"
)

// newLogger opens the program's log. Errors of the log are reported on stderr,
// and so is an error at the start, whatever the log's destination is.
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

// recordedVerdicts returns which verdicts are recorded.
func recordedVerdicts(cfg config.Log) verdict.Which {
	switch {
	case cfg.Level == "off":
		return verdict.None
	case cfg.Verdicts == "all":
		return verdict.All
	case cfg.Verdicts == "bad":
		return verdict.Bad
	}
	return verdict.Changes
}
