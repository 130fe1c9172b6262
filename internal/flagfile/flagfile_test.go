package flagfile

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestFlags(t *testing.T) {
	f := Dir(filepath.Join(t.TempDir(), "flags"))
	if err := os.Mkdir(string(f), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(string(f), "../secret"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	is := func(name string, want bool) {
		t.Helper()
		if got, err := f.Present(name); got != want || err != nil {
			t.Errorf("flag %q present %v, %v, want %v", name, got, err, want)
		}
	}
	for range 2 {
		if err := f.Set("squid.80"); err != nil {
			t.Error(err)
		}
		is("squid.80", true)
	}
	for range 2 {
		if err := f.Clear("squid.80"); err != nil {
			t.Error(err)
		}
		is("squid.80", false)
	}
	for _, name := range []string{"../secret", "..", "", "a/b", "a\x00b"} {
		if err := f.Set(name); !errors.Is(err, ErrName) {
			t.Errorf("Set(%q) = %v, want ErrName", name, err)
		}
		if err := f.Clear(name); !errors.Is(err, ErrName) {
			t.Errorf("Clear(%q) = %v, want ErrName", name, err)
		}
	}

	// A link that leads out is not followed, neither way.
	outside := filepath.Join(string(f), "../secret")
	if err := os.Symlink("../secret", filepath.Join(string(f), "link")); err != nil {
		t.Fatal(err)
	}
	if err := f.Set("link"); !errors.Is(err, ErrLink) {
		t.Errorf("Set of a flag that is a link out of the directory: %v, want ErrLink", err)
	}
	if _, err := f.Present("link"); !errors.Is(err, ErrLink) {
		t.Errorf("Present of a flag that is a link out of the directory: %v, want ErrLink", err)
	}
	if err := f.Clear("link"); err != nil {
		t.Error(err)
	}
	is("link", false)
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("what the link led to: %v", err)
	}
	if err := os.Mkdir(filepath.Join(string(f), "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.Clear("dir"); err == nil {
		t.Error("Clear of a directory is no error")
	}
	is("dir", true)
}
