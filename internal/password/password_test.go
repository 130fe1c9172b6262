package password

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	for _, tt := range []struct{ text, want, err string }{
		{text: "word", want: "word"},
		{text: " a word \r\n", want: " a word "},
		{text: "", want: ""},
		{text: strings.Repeat("x", most) + "\n", err: file + " is longer than 4096 bytes"},
	} {
		if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Read(file)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%.20q: %q, %v, want %q, %q", tt.text, got, err, tt.want, tt.err)
		}
	}
	if got, err := Read(""); got != "" || err != nil {
		t.Errorf("without a file: %q, %v, want none", got, err)
	}
	if _, err := Read(file + "x"); err == nil || !strings.Contains(err.Error(), file+"x") {
		t.Errorf("a file that is not there: %v", err)
	}
}
