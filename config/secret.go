package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"understudy/internal/redact"
	"understudy/internal/safetext"
)

// maxSecret limits the bytes of a secret, far above any real one.
const maxSecret = 4 << 10

// Value returns the word itself; it is empty for the zero Secret.
func (s Secret) Value() string { return s.value }

// IsSet reports whether the secret is not empty.
func (s Secret) IsSet() bool { return s.value != "" }

// String masks the word, so that no log shows it by accident.
func (s Secret) String() string {
	if s.value == "" {
		return ""
	}
	return redact.Mask
}

// GoString masks the word.
func (s Secret) GoString() string { return "config.Secret{" + s.String() + "}" }

// MarshalText masks the word.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// SecretVariables returns the names of the environment variables that hold
// secrets, each once. Scripts need not see them.
func (s Settings) SecretVariables() []string { return slices.Clone(s.secretVariables) }

// warn records a warning about a setting that is valid but unwise.
func (r *reader) warn(s spot, format string, args ...any) {
	r.d.warn(r.at(s), format, args...)
}

// warn does so for a setting.
func (d *draft) warn(at Origin, format string, args ...any) {
	d.settings.Warnings = append(d.settings.Warnings, safetext.Escape(at.place()+": "+fmt.Sprintf(format, args...)))
}

// tokenKeys are the three ways to a token, for whatever has one.
func tokenKeys[T any](token func(*T) *Secret, what string) []key[T] {
	return []key[T]{
		{name: "token_file", value: "file", help: what + ": the content of this file, without surrounding white space",
			read: func(r *reader, s spot, to *T) { *token(to) = r.secretFile(s) }},
		{name: "token_env", value: "variable", help: what + ": the value of this environment variable, which scripts do not see",
			read: func(r *reader, s spot, to *T) { *token(to) = r.secretVariable(s) }},
		{name: "token", value: "text", help: what + ", in the file itself: allowed, with a warning",
			read: func(r *reader, s spot, to *T) { *token(to) = r.secretHere(s) }},
	}
}

// oneToken reports whether a token is given. It records an error for one that is given
// in several ways.
func (r *reader) oneToken(given map[string]spot) bool {
	var ways []string
	for _, way := range []string{"token_file", "token_env", "token"} {
		if s, ok := given[way]; ok {
			ways = append(ways, way)
			if len(ways) == 2 {
				r.problem(s, "is set together with %s: set one of them", ways[0])
			}
		}
	}
	return len(ways) > 0
}

// secretOf reads a secret from {file: …} or {env: …}.
func (r *reader) secretOf(s spot) (secret Secret) {
	entries, ok := r.entries(s, maxList)
	if !ok {
		return secret
	}
	if len(entries) != 1 {
		r.problem(s, "needs one of file and env")
		return secret
	}
	switch e := entries[0]; e.key {
	case "file":
		return r.secretFile(e)
	case "env":
		return r.secretVariable(e)
	default:
		r.unknown(e, []string{"file", "env"})
	}
	return secret
}

// secretFile reads a secret from a file.
func (r *reader) secretFile(s spot) (secret Secret) {
	file, ok := r.text(s)
	if !ok {
		return secret
	}
	r.record(s.path, file, r.at(s))
	secret, err := r.d.readSecret(r.at(s), file)
	if err != nil {
		r.problem(s, "%v", err)
	}
	return secret
}

// readSecret returns the content of a file without surrounding white space.
func (d *draft) readSecret(at Origin, file string) (Secret, error) {
	content, err := readRegular(file)
	if err != nil {
		return Secret{}, err
	}
	if info, err := os.Stat(file); err == nil && info.Mode().Perm()&0o004 != 0 {
		d.warn(at, "%s can be read by everybody: chmod o-r", file)
	}
	word := strings.TrimSpace(string(content))
	if err := checkSecret(word); err != nil {
		return Secret{}, fmt.Errorf("%s %w", file, err)
	}
	return Secret{word}, nil
}

// adminToken reads the token of the admin listener from a file.
func adminToken(d *draft, items []string) []error {
	var err error
	d.settings.Admin.Token, err = d.readSecret(d.raw["admin-token-file"].origin, items[len(items)-1])
	if err != nil {
		return []error{err}
	}
	return nil
}

// secretVariable reads a secret from the environment.
func (r *reader) secretVariable(s spot) (secret Secret) {
	variable, ok := r.text(s)
	if !ok {
		return secret
	}
	r.record(s.path, variable, r.at(s))
	word := strings.TrimSpace(r.d.env[variable])
	if variable == "" || strings.ContainsAny(variable, "=\x00") {
		r.problem(s, "%s is not the name of a variable", quote(variable))
		return secret
	}
	if word == "" {
		r.problem(s, "the variable %s is not set, or empty", variable)
		return secret
	}
	if err := checkSecret(word); err != nil {
		r.problem(s, "the variable %s %v", variable, err)
		return secret
	}
	if !slices.Contains(r.d.settings.secretVariables, variable) {
		r.d.settings.secretVariables = append(r.d.settings.secretVariables, variable)
	}
	return Secret{word}
}

// secretHere reads a secret that is part of the file itself.
func (r *reader) secretHere(s spot) (secret Secret) {
	word, ok := r.text(s)
	if !ok {
		return secret
	}
	r.record(s.path, redact.Mask, r.at(s))
	if err := checkSecret(word); err != nil {
		r.problem(s, "%v", err)
		return secret
	}
	r.warn(s, "is a secret in the file itself: use %s_file or %s_env", s.key, s.key)
	return Secret{word}
}

// checkSecret returns an error for an invalid secret, without the secret itself.
func checkSecret(word string) error {
	switch {
	case word == "":
		return errors.New("is empty")
	case len(word) > maxSecret:
		return fmt.Errorf("has %d bytes, more than %d", len(word), maxSecret)
	case safetext.HasControl(word):
		return errors.New("has a control character or several lines in it")
	}
	return nil
}
