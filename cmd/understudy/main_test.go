package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"understudy/control"
	"understudy/internal/proctest"
)

func TestMain(m *testing.M) {
	if in := os.Getenv("CRASH_TOP"); in != "" {
		fmt.Println(crashTop(in))
		os.Exit(1)
	}
	if proctest.HasRole() { // before testscript makes a directory, which a process that is killed would leave
		os.Exit(scripted{m}.Run())
	}
	testscript.Main(scripted{m}, map[string]func(){"understudy": main})
}

// scripted runs the roles of proctest, or the tests.
type scripted struct{ m *testing.M }

func (s scripted) Run() int {
	return proctest.Main(s.m, func(args []string) int {
		return run(context.Background(), args, os.Stdout, os.Stderr)
	})
}

// TestCommandLine runs testdata/script: the command line as its users see it.
func TestCommandLine(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ping" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("pong\n"))
	}))
	t.Cleanup(server.Close) // the scripts run in parallel, after this function
	a := (&proctest.Host{Name: "a"}).Start(t)
	b := (&proctest.Host{Name: "b"}).Start(t)
	testscript.Run(t, testscript.Params{
		Dir:      "testdata/script",
		Deadline: time.Now().Add(2 * time.Minute), // a program that serves instead of ending is killed
		Setup: func(env *testscript.Env) error {
			env.Setenv("FREE_PORT", strconv.Itoa(proctest.FreePort(t, "127.0.0.1")))
			env.Setenv("SERVER", server.URL)
			env.Setenv("SERVER_ADDR", strings.TrimPrefix(server.URL, "http://"))
			env.Setenv("A", a.Addr())
			env.Setenv("B", b.Addr())
			env.Setenv("DEAD", proctest.FreeAddr(t))
			env.Setenv("CONTROL", filepath.Join(env.WorkDir, "control.sock"))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits, "json": isJSON, "await": await,
		},
	})
}

// exits is the command of scripts that runs a program and expects an exit
// status: exits 2 understudy nonsense.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var failed *exec.ExitError
	switch err := ts.Exec(args[1], args[2:]...); {
	case errors.As(err, &failed):
		got = failed.ExitCode()
	default:
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// isJSON is the command of scripts that expects the last standard output to be
// one value in JSON.
func isJSON(ts *testscript.TestScript, _ bool, _ []string) {
	if text := ts.ReadFile("stdout"); !json.Valid([]byte(text)) {
		ts.Fatalf("this is not JSON: %s", text)
	}
}

// await is the command of scripts that waits until a host is in a state:
// await db1:5432 up. Primary is a state here.
func await(ts *testscript.TestScript, _ bool, args []string) {
	c := control.NewClient(ts.Getenv("CONTROL"))
	proctest.Until(ts, args[0]+" is "+args[1], func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s, err := c.Status(ctx)
		return err == nil && slices.ContainsFunc(s.Relays[0].Hosts, func(h control.Host) bool {
			return h.Name == args[0] && (h.State == args[1] || h.Primary && args[1] == "primary")
		})
	})
}
