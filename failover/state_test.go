package failover

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A relay without a name continues with the state that earlier versions stored
// for it as "main", once, and never with that of another relay.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	const state = `{"version": 1, "relay": "main", "primary": "b:1", "epoch": 7}`
	for _, tt := range []struct {
		name  string
		own   string // its state already; empty for none
		hosts []string
		held  bool // another process uses the old one
		want  bool
	}{
		{"none of its own", "", []string{"a:1", "b:1"}, false, true},
		{"state of its own", `{"version": 1, "epoch": 9}`, []string{"a:1", "b:1"}, false, false},
		{"other hosts", "", []string{"x:1"}, false, false},
		{"another process keeps it", "", []string{"b:1"}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			old, own := filepath.Join(dir, "main.json"), filepath.Join(dir, "5432.json")
			err := os.WriteFile(old, []byte(state), 0o600)
			if tt.own != "" {
				err = errors.Join(err, os.WriteFile(own, []byte(tt.own), 0o600))
			}
			if err != nil {
				t.Fatal(err)
			}
			if tt.held {
				k, err := OpenStateFile(dir, "main", nil)
				if err != nil {
					t.Fatal(err)
				}
				defer k.Close()
			}
			took, err := TakeOver(dir, "main", "5432", tt.hosts)
			if took != tt.want || err != nil {
				t.Errorf("TakeOver = %v, %v, want %v", took, err, tt.want)
			}
			_, err = os.Stat(old)
			if left := err == nil; left == tt.want {
				t.Errorf("the old file is there: %v, want %v", left, !tt.want)
			}
			k, err := OpenStateFile(dir, "5432", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			if got := k.loaded.Epoch == 7; got != tt.want {
				t.Errorf("epoch %d is loaded", k.loaded.Epoch)
			}
		})
	}
	dir := t.TempDir()
	if took, err := TakeOver(dir, "main", "5432", nil); took || err != nil {
		t.Errorf("with nothing to take: %v, %v", took, err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "main.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := TakeOver(dir, "main", "5432", nil); err == nil {
		t.Error("a pipe is taken over")
	}
}
