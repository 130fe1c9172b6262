package daemon

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/config"
)

func TestLogGoesWhereTheSettingsSay(t *testing.T) {
	for _, tt := range []struct {
		output      string
		out, errors int // lines
	}{
		{"stderr", 0, 1},
		{"stdout", 1, 0},
	} {
		var stdout, stderr bytes.Buffer
		log, err := newLogger(config.Log{Level: "info", Output: tt.output}, &stdout, &stderr)
		if err != nil {
			t.Fatal(err)
		}
		log.Logger().Debug("not this")
		log.Logger().Named("relay").Info("something happened", "relay", "orders")
		log.Close(10 * time.Second)
		if strings.Count(stdout.String(), "\n") != tt.out || strings.Count(stderr.String(), "\n") != tt.errors ||
			!strings.Contains(stdout.String()+stderr.String(), "[INFO]  understudy.relay: something happened: relay=orders\n") {
			t.Errorf("output %q: stdout %q, stderr %q", tt.output, stdout.String(), stderr.String())
		}
	}
}

func TestLogFileThatCannotBeOpenedIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "log")
	if _, err := newLogger(config.Log{Level: "info", Output: path}, nil, nil); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want one that names %s", err, path)
	}
}
