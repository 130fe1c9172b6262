package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

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
	testscript.Run(t, testscript.Params{
		Dir:      "testdata/script",
		Deadline: time.Now().Add(2 * time.Minute), // what should have ended and serves instead is killed
		Setup: func(env *testscript.Env) error {
			env.Setenv("FREE_PORT", strconv.Itoa(proctest.FreePort(t, "127.0.0.1")))
			env.Setenv("SERVER", server.URL)
			env.Setenv("SERVER_ADDR", strings.TrimPrefix(server.URL, "http://"))
			return nil
		},
	})
}
