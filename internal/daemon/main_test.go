package daemon

import (
	"os"
	"testing"

	"understudy/internal/proctest"
)

func TestMain(m *testing.M) {
	if os.Getenv("DAEMON_TEST_PASSED") != "" {
		passed()
		return
	}
	os.Exit(proctest.Main(m, nil))
}
