// Command build makes the files of a release, for amd64 and arm64: Debian
// packages ("deb"), or those and tarballs, bills of materials and checksums
// ("release").
//
//	go run ./packaging/build -out dist deb
//
// It runs at the root of the source. Equal sources make equal files, byte for
// byte: every time in them is SOURCE_DATE_EPOCH, by default that of the commit.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var architectures = []string{"amd64", "arm64"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1) //nolint:forbidigo // main of a command
	}
}

// run does what args request and prints the name of each file it has made.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	set := flag.NewFlagSet("build", flag.ContinueOnError)
	out := set.String("out", "dist", "directory for the files, made if missing")
	version := set.String("version", "", "version of the program; default is what git describe says")
	only := set.String("arch", strings.Join(architectures, ","), "architectures")
	if err := set.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	what := set.Arg(0)
	if set.NArg() != 1 || what != "deb" && what != "release" {
		return errors.New("give deb or release")
	}
	b, err := newBuild(ctx, *version, *out)
	if err != nil {
		return err
	}
	defer os.RemoveAll(b.stage)
	for arch := range strings.SplitSeq(*only, ",") {
		if err := b.make(ctx, what, arch); err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
	}
	if what == "release" {
		if err := b.writeSums(); err != nil {
			return err
		}
	}
	for _, name := range b.made {
		fmt.Fprintln(stdout, filepath.Join(*out, name))
	}
	return nil
}

// build is one run of the command.
type build struct {
	out     string // directory of the results
	stage   string // directory of what goes into them, removed at the end
	version string
	time    time.Time // of everything
	made    []string  // files in out, in their order

	described bool
}

// newBuild makes the directories. The caller removes the stage.
func newBuild(ctx context.Context, version, out string) (*build, error) {
	b := &build{version: version}
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	for _, ask := range []struct {
		to   *string
		args []string
	}{
		{&b.version, []string{"describe", "--tags", "--always", "--dirty"}},
		{&epoch, []string{"log", "-1", "--format=%ct"}},
	} {
		if *ask.to != "" {
			continue
		}
		said, err := output(ctx, nil, "git", ask.args...)
		if err != nil {
			return nil, fmt.Errorf("no git here? Give -version and SOURCE_DATE_EPOCH: %w", err)
		}
		*ask.to = strings.TrimSpace(said)
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || seconds < 0 {
		return nil, fmt.Errorf("SOURCE_DATE_EPOCH: %q is not a number of seconds", epoch)
	}
	b.time = time.Unix(seconds, 0).UTC()
	if b.out, err = filepath.Abs(out); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.out, 0o755); err != nil { //nolint:gosec // for everybody to read
		return nil, err
	}
	b.stage, err = os.MkdirTemp("", "understudy-build")
	return b, err
}

// make makes the files of one architecture.
func (b *build) make(ctx context.Context, what, arch string) error {
	if !slices.Contains(architectures, arch) {
		return fmt.Errorf("is none of %s", strings.Join(architectures, ", "))
	}
	binary, err := b.compile(ctx, "linux", arch)
	if err != nil {
		return err
	}
	contents, err := b.contents(ctx, binary)
	if err != nil {
		return err
	}
	if err := b.writeDeb(ctx, arch, contents); err != nil {
		return err
	}
	if what != "release" {
		return nil
	}
	if err := b.writeTarball(arch, contents); err != nil {
		return err
	}
	return b.writeBOM(arch, binary)
}

// compile builds the program and returns the path of the binary.
func (b *build) compile(ctx context.Context, system, arch string) (string, error) {
	path := filepath.Join(b.stage, system+"-"+arch, "understudy")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	// Only the source determines the result: no flags or levels of the machine.
	env := []string{"CGO_ENABLED=0", "GOOS=" + system, "GOARCH=" + arch, "GOFLAGS=-mod=readonly", "GOEXPERIMENT=", "GOAMD64=v1", "GOARM64=v8.0"}
	_, err := output(ctx, env, "go", "build", "-trimpath", "-buildvcs=auto", "-ldflags", "-s -w -X main.version="+b.version, "-o", path, "./cmd/understudy")
	return path, err
}

// describe makes the program write its manual page and completions, once, and
// returns their directory.
func (b *build) describe(ctx context.Context) (string, error) {
	dir := filepath.Join(b.stage, "made")
	if b.described {
		return dir, nil
	}
	program, err := b.compile(ctx, runtime.GOOS, runtime.GOARCH)
	if err != nil {
		return "", err
	}
	for name, args := range map[string][]string{
		"understudy.1":    {"man"},
		"understudy.bash": {"completion", "bash"},
		"_understudy":     {"completion", "zsh"},
		"understudy.fish": {"completion", "fish"},
	} {
		text, err := output(ctx, nil, program, args...)
		if err != nil {
			return "", err
		}
		if err := write(filepath.Join(dir, name), []byte(text)); err != nil {
			return "", err
		}
	}
	b.described = true
	return dir, nil
}

// output runs a program and returns its standard output. The error has its
// standard error.
func output(ctx context.Context, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // the programs are named here
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// write writes a file and the directories around it.
func write(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // for everybody to read
		return err
	}
	return os.WriteFile(path, data, 0o644) //nolint:gosec // for everybody to read
}
