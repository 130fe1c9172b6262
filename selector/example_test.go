package selector_test

import (
	"errors"
	"fmt"
	"time"

	"understudy/selector"
)

// A relay with two hosts, of which the preferred one refuses connections.
func ExampleMachine() {
	m, err := selector.New(selector.Config{
		Hosts:        []string{"db1:5432", "db2:5432"},
		Checks:       []selector.Check{{Name: "tcp", Interval: time.Second, Timeout: time.Second}},
		Rise:         2,
		Fall:         3,
		FastInterval: 100 * time.Millisecond,
		Hold:         10 * time.Second,
		MaxBackoff:   time.Minute,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	now := time.Now()
	step := func(ev selector.Event) {
		for _, a := range m.Step(now, ev) {
			switch a := a.(type) {
			case selector.StartCheck:
				fmt.Printf("check %d: connect to %s\n", a.ID, a.Host)
			case selector.Switch:
				fmt.Printf("%s: switch to %s in epoch %d\n", a.Kind, a.Host, a.Epoch)
			case selector.Open:
				fmt.Printf("open to %s\n", a.Host)
			}
		}
	}
	step(selector.Tick{})
	step(selector.Result{ID: 1, Err: errors.New("connection refused")})
	step(selector.Result{ID: 2, OK: true})
	step(selector.Switched{Epoch: 1})
	fmt.Println("primary:", m.Snapshot().Primary)
	// Output:
	// check 1: connect to db1:5432
	// check 2: connect to db2:5432
	// start: switch to db2:5432 in epoch 1
	// open to db2:5432
	// primary: db2:5432
}
