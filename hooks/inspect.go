package hooks

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"understudy/internal/noblock"
)

// Inspect returns why the script at path must not or cannot run: it is missing,
// not a regular file, world-writable, not executable for this user, or its #!
// line or its interpreter is missing. Symbolic links are followed. The error names
// path and what to do.
func Inspect(path string) error {
	if err := inspect(path); err != nil {
		return fmt.Errorf("script %s: %w", path, err)
	}
	return nil
}

// inspect is Inspect without the path in the error.
func inspect(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("is missing: %w", cause(err))
	case err != nil:
		return cause(err)
	case info.IsDir():
		return fmt.Errorf("is a directory, name a file: %w", syscall.EISDIR)
	case !info.Mode().IsRegular():
		return fmt.Errorf("is not a regular file but %v", info.Mode().Type())
	case info.Mode().Perm()&0o002 != 0:
		return errors.New("is writable by all users, so any user could run any program; remove that with chmod o-w")
	}
	if err := executable(path); err != nil {
		return fmt.Errorf("is not executable for this user, allow it with chmod +x (or its file system forbids it): %w", err)
	}
	return inspectHead(path)
}

// executable returns nil if the effective user may execute path; see access(2).
func executable(path string) error {
	return unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS)
}

// inspectHead checks the beginning of an executable file.
func inspectHead(path string) error {
	file, err := noblock.Open(path, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrPermission) {
		return nil // a program may be executable and not readable
	}
	if err != nil {
		return cause(err)
	}
	defer file.Close()
	head := make([]byte, 256) // what execve(2) reads of a #! line
	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return cause(err)
	}
	head = head[:n]
	line, script := bytes.CutPrefix(head, []byte("#!"))
	switch {
	case script:
		return inspectInterpreter(line)
	case len(head) == 0:
		return fmt.Errorf("is empty: %w", syscall.ENOEXEC)
	case bytes.IndexByte(head, 0) < 0:
		return fmt.Errorf("has no #! line, begin it with one such as #!/bin/sh: %w", syscall.ENOEXEC)
	}
	return nil // a binary program; only execve can tell whether this machine can run it
}

// inspectInterpreter checks the interpreter that line, a #! line without the #!,
// names.
func inspectInterpreter(line []byte) error {
	line, _, _ = bytes.Cut(line, []byte{'\n'})
	name := strings.Trim(string(line), " \t")
	if i := strings.IndexAny(name, " \t"); i >= 0 {
		name = name[:i]
	}
	if name == "" {
		return fmt.Errorf("has a #! line that names no interpreter: %w", syscall.ENOEXEC)
	}
	if strings.HasSuffix(name, "\r") {
		return fmt.Errorf("has Windows line ends, so its interpreter is %q; remove the carriage returns: %w", name, syscall.ENOENT)
	}
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("needs the interpreter %s, which is missing: %w", name, cause(err))
	case err != nil:
		return fmt.Errorf("needs the interpreter %s: %w", name, cause(err))
	case !info.Mode().IsRegular():
		return fmt.Errorf("needs the interpreter %s, which is not a regular file: %w", name, syscall.EACCES)
	}
	if err := executable(name); err != nil {
		return fmt.Errorf("needs the interpreter %s, which is not executable for this user: %w", name, err)
	}
	return nil
}

// Doubt returns why a script that Inspect accepts may fail: this user cannot read it, so
// that its interpreter could not either; or env(1), in its #! line, does not find the
// program in the PATH of this process. Nil is no doubt.
func Doubt(path string) error {
	file, err := noblock.Open(path, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("script %s: is not readable for this user: if it is not a binary program, its interpreter cannot read it either", path)
	}
	if err != nil {
		return err
	}
	defer file.Close()
	head := make([]byte, 256)
	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	line, script := strings.CutPrefix(string(head[:n]), "#!")
	line, _, _ = strings.Cut(line, "\n")
	interpreter, program, _ := strings.Cut(strings.TrimSpace(line), " ")
	program = strings.TrimSpace(program) // the kernel passes it as one word
	if !script || filepath.Base(interpreter) != "env" || program == "" || strings.HasPrefix(program, "-") || strings.Contains(program, "=") {
		return nil // nothing, or too much, to look for
	}
	if _, err := exec.LookPath(program); err != nil {
		return fmt.Errorf("script %s: needs %q, which is not in PATH: %w", path, program, cause(err))
	}
	return nil
}

// cause removes the path from an error whose context already names it.
func cause(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err
	}
	if execErr, ok := errors.AsType[*exec.Error](err); ok {
		return execErr.Err
	}
	return err
}

// List returns the scripts at path: path itself if it is a file, or, if it is
// a directory, its regular files and symbolic links to such in byte order of
// their names. Sub-directories, hidden files and editor backups (*~, .*, #*#)
// of a directory are skipped; one that Inspect refuses is a warning. An error means
// that path is missing, unreadable, or neither a file nor a directory. List is called for each election, since files may
// change.
func List(path string) (scripts []string, warnings []error, err error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("list scripts: %w", err)
	case info.Mode().IsRegular():
		return []string{path}, nil, nil
	case !info.IsDir():
		return nil, nil, fmt.Errorf("list scripts: %s is neither a file nor a directory", path)
	}
	entries, err := os.ReadDir(path) // in byte order
	if err != nil {
		return nil, nil, fmt.Errorf("list scripts: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~") ||
			(strings.HasPrefix(name, "#") && strings.HasSuffix(name, "#")) {
			continue
		}
		file := filepath.Join(path, name)
		// Inspect reports an error of Stat, such as a dangling link.
		if info, err := os.Stat(file); err == nil && !info.Mode().IsRegular() {
			continue
		}
		if err := Inspect(file); err != nil {
			warnings = append(warnings, err)
			continue
		}
		scripts = append(scripts, file)
	}
	return scripts, warnings, nil
}
