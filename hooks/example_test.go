package hooks_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"understudy/hooks"
)

func ExampleRunner_Run() {
	dir, err := os.MkdirTemp("", "hooks")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	check := filepath.Join(dir, "check-host.sh")
	os.WriteFile(check, []byte("#!/bin/sh\necho \"$1 lags behind\"\nexit 3\n"), 0o755)

	runner := hooks.New(hooks.Config{Without: []string{"STATUS_TOKEN"}})
	defer runner.Close()
	res := runner.Run(context.Background(), hooks.Script{
		Kind:    hooks.Check,
		Path:    check,
		Args:    []string{"db1:5432"},
		Env:     hooks.ScriptEnv{Relay: "orders", New: "db1:5432"}.Env(),
		Timeout: 5 * time.Second,
	})
	fmt.Println(res.OK(), res.End, res.Code, res.Output)
	// Output: false exit status 3 db1:5432 lags behind
}

func ExampleList() {
	dir, err := os.MkdirTemp("", "triggers.d")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"20-notify", "10-promote", "10-promote~", ".swp"} {
		os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755)
	}
	scripts, _, _ := hooks.List(dir)
	for _, path := range scripts {
		fmt.Println(filepath.Base(path))
	}
	// Output:
	// 10-promote
	// 20-notify
}

func ExampleScriptEnv_Env() {
	for _, entry := range (hooks.ScriptEnv{
		Event: hooks.EventFailover, Relay: "orders", Epoch: 7,
		Old: "db1:5432", New: "db2:5432", Reason: "db1:5432 refused 3 checks",
	}).Env() {
		fmt.Println(entry)
	}
	// Output:
	// UNDERSTUDY_EVENT=failover
	// UNDERSTUDY_RELAY=orders
	// UNDERSTUDY_EPOCH=7
	// UNDERSTUDY_OLD=db1:5432
	// UNDERSTUDY_NEW=db2:5432
	// UNDERSTUDY_REASON=db1:5432 refused 3 checks
}
