package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"understudy/control"
	"understudy/internal/proctest"
)

func TestMain(m *testing.M) {
	testscript.Main(scripted{m}, map[string]func(){"understudy": main})
}

// scripted lets testscript's commands in first, then the roles of proctest.
type scripted struct{ m *testing.M }

func (s scripted) Run() int {
	return proctest.Main(s.m, func(args []string) int {
		return run(context.Background(), args, os.Stdout, os.Stderr)
	})
}

// TestCommandLine plays testdata/script: the command line as its users see it.
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
		Deadline: time.Now().Add(2 * time.Minute), // what should have ended and serves instead is killed
		Setup: func(env *testscript.Env) error {
			env.Setenv("FREE_PORT", strconv.Itoa(proctest.FreePort(t, "127.0.0.1")))
			env.Setenv("SERVER", server.URL)
			env.Setenv("SERVER_ADDR", strings.TrimPrefix(server.URL, "http://"))
			env.Setenv("A", a.Addr())
			env.Setenv("B", b.Addr())
			env.Setenv("DEAD", freeAddr(t))
			env.Setenv("CONTROL", filepath.Join(env.WorkDir, "control.sock"))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits, "json": isJSON, "await": await,
		},
	})
}

// exits is the command of scripts that runs a program and wants an exit status:
// exits 2 understudy nonsense.
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

// isJSON is the command of scripts that wants the last standard output to be
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
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if s, err := c.Status(ctx); err == nil {
			for _, h := range s.Relays[0].Hosts {
				if h.Name == args[0] && (h.State == args[1] || h.Primary && args[1] == "primary") {
					return
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
	ts.Fatalf("%s is not %s within 30s", args[0], args[1])
}
