package roles

import (
	"errors"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"understudy/internal/role"
)

func TestPostgresFact(t *testing.T) {
	row := func(values ...string) (row [][]byte) {
		for _, v := range values {
			row = append(row, []byte(v))
		}
		return row
	}
	for _, tt := range []struct {
		name string
		row  [][]byte
		want role.Fact
	}{
		{"primary", row("f", "", "3", "4096", "77", "f", "", "0"), role.Fact{Role: role.Primary, Term: 3, Identity: "77", Position: 4096, Bytes: true}},
		{"our user is read-only", row("f", "user", "3", "4096", "77", "f", "", "0"), role.Fact{Role: role.Primary, Term: 3, Identity: "77", Position: 4096, Bytes: true}},
		{"read-only", row("f", "configuration file", "3", "4096", "77", "f", "", "0"),
			role.Fact{Role: role.Replica, Term: 3, Identity: "77", Position: 4096, Bytes: true, Detached: true, Detail: "a primary that is read-only (default_transaction_read_only)"}},
		{"standby", row("t", "", "2", "100", "77", "t", "f", "1.5"),
			role.Fact{Role: role.Replica, Term: 2, Identity: "77", Position: 100, Bytes: true, Detail: "in recovery", Lag: role.Lag{Time: 1500 * time.Millisecond, TimeKnown: true}}},
		{"standby alone", row("t", "", "2", "100", "77", "f", "t", "1.5"),
			role.Fact{Role: role.Replica, Term: 2, Identity: "77", Position: 100, Bytes: true, Detail: "in recovery, no connection to a primary, replay is paused"}},
		{"standby that never replayed a transaction", row("t", "", "2", "100", "77", "t", "f", ""),
			role.Fact{Role: role.Replica, Term: 2, Identity: "77", Position: 100, Bytes: true, Detail: "in recovery"}},
		{"no position", row("t", "", "", "", "77", "t", "f", "0"), role.Fact{Role: role.Replica, Identity: "77", Detail: "in recovery", Lag: role.Lag{TimeKnown: true}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := postgresFact(tt.row); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestRedisFact(t *testing.T) {
	text := func(s string) []byte { return []byte(s) }
	master := []any{text("master"), int64(4096), []any{}}
	replica := func(state string) []any {
		return []any{text("slave"), text("192.0.2.1"), int64(6379), text(state), int64(100)}
	}
	for _, tt := range []struct {
		name    string
		answer  any
		err     error
		want    role.Fact
		wantErr string
	}{
		{"primary", master, nil, role.Fact{Role: role.Primary, Position: 4096, Bytes: true}, ""},
		{"replica", replica("connected"), nil, role.Fact{Role: role.Replica, Position: 100, Bytes: true}, ""},
		{"replica alone", replica("connect"), nil, role.Fact{Role: role.Replica, Position: 100, Bytes: true, Detail: "the link to the primary is down (connect)"}, ""},
		{"replica that serves no stale data", replica("connecting"), redis.Error("MASTERDOWN Link with MASTER is down"),
			role.Fact{Role: role.Replica, Position: 100, Bytes: true, Detail: "the link to the primary is down (connecting)"}, ""},
		{"replica without data", replica("sync"), nil, role.Fact{}, "it loads the data of its primary"},
		{"loading", master, redis.Error("LOADING Redis is loading the dataset in memory"), role.Fact{}, "LOADING Redis is loading the dataset in memory"},
		{"disk is full", master, redis.Error("MISCONF Redis is configured to save RDB snapshots"),
			role.Fact{Role: role.Replica, Position: 4096, Bytes: true, Detached: true, Detail: "MISCONF Redis is configured to save RDB snapshots"}, ""},
		{"no rights", nil, redis.Error("NOPERM this user has no permissions"), role.Fact{}, "refused: NOPERM this user has no permissions"},
		{"sentinel", []any{text("sentinel"), []any{}}, nil, role.Fact{}, "refused: it is a sentinel, which has no role"},
		{"busy", nil, redis.Error("BUSY Redis is busy running a script"), role.Fact{}, "it answers BUSY Redis is busy running a script"},
		{"something else", int64(3), nil, role.Fact{}, "the answer to ROLE has 0 parts, which is none of Redis"},
		{"connection lost", nil, errors.New("reset"), role.Fact{}, "reset"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := redisFact(tt.answer, tt.err)
			if got != tt.want || (err == nil) != (tt.wantErr == "") || err != nil && err.Error() != tt.wantErr {
				t.Errorf("got %+v, %v, want %+v, %s", got, err, tt.want, tt.wantErr)
			}
			if _, starting := errors.AsType[*startingError](err); starting != (tt.name == "loading" || tt.name == "replica without data") {
				t.Errorf("starting: %v", starting)
			}
		})
	}
}

func TestGTIDs(t *testing.T) {
	const a, b = "3e11fa47-71ca-11e1-9e33-c80aa9429562", "4e11fa47-71ca-11e1-9e33-c80aa9429562"
	for text, want := range map[string]uint64{
		"":                               0,
		"0-1-100":                        100,
		"0-1-100,1-7-3":                  103,
		"0-1-0":                          0,
		a + ":1-5":                       5,
		a + ":1-5:7":                     6,
		a + ":1-5:3-7,\n" + b + ":9":     8,
		a + ":1-5:tag:1-3:5:other:2":     10,
		a + ":1-5," + a + ":6-9":         9,
		a + ":1-18446744073709551614":    1<<64 - 2,
		"0-1-18446744073709551615,1-1-1": 0, // it wraps, and no server gets there
	} {
		set, err := parseGTIDs(text)
		if err != nil || set.count() != want {
			t.Errorf("%q: %d, %v, want %d", text, set.count(), err, want)
		}
	}
	for _, text := range []string{"x", "0-1", "0-1-x", a + ":0", a + ":5-3", a + ":1-x", a + ":", a + ":x-1"} {
		if set, err := parseGTIDs(text); err == nil {
			t.Errorf("%q: %v, want an error", text, set)
		}
	}
	set, _ := parseGTIDs(a + ":1-5")
	more, _ := parseGTIDs(a + ":4-8," + b + ":1")
	set.add(more)
	if set.count() != 9 {
		t.Errorf("the union has %d transactions, want 9", set.count())
	}
}

func FuzzGTIDs(f *testing.F) {
	for _, text := range []string{"", "0-1-100,1-7-3", "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7:tag:1-3"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		set, err := parseGTIDs(text)
		if err != nil {
			return
		}
		before := set.count()
		again, _ := parseGTIDs(text)
		set.add(again)
		if set.count() != before {
			t.Errorf("%q: %d transactions, and %d with the same ones again", text, before, set.count())
		}
	})
}
