package failover

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

// Only the last element of a state directory is created, and that is logged once.
func TestStateDirectoryIsCreated(t *testing.T) {
	var log strings.Builder
	logger := hclog.New(&hclog.LoggerOptions{Output: &log})
	dir := filepath.Join(t.TempDir(), "state")
	for range 2 {
		k, err := OpenStateFile(dir, "orders", logger)
		if err != nil {
			t.Fatal(err)
		}
		k.Close()
	}
	if n := strings.Count(log.String(), "state directory created"); n != 1 {
		t.Errorf("it was logged %d times, want once:\n%s", n, &log)
	}
	mistyped := filepath.Join(dir, "var", "lib", "understudy")
	if _, err := OpenStateFile(mistyped, "orders", logger); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), filepath.Dir(mistyped)) {
		t.Errorf("error %v, want one that names what is missing", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "var")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the parents of a mistyped path were created: %v", err)
	}
}
