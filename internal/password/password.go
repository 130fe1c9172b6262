// Package password reads passwords from their files, at each login: a new one
// needs no reload.
package password

import (
	"fmt"
	"strings"

	"understudy/internal/noblock"
)

// most limits the bytes of a file, far above any real password.
const most = 4 << 10

// Read returns the password in a file as it is now, without the line break at its
// end. Without a file there is none. Its errors name the file.
func Read(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	text, err := noblock.Read(file, most+1)
	switch {
	case err != nil:
		return "", fmt.Errorf("password file: %w", err)
	case len(text) > most:
		return "", fmt.Errorf("password file: %s is longer than %d bytes", file, most)
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}
