package cluster

import (
	"context"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

// What a machine writes is what another one reads.
func TestStoreCodec(t *testing.T) {
	k := keysOf("prod", "db")
	record := Record{
		Version: 7, Boot: 1 << 63, Epoch: 3, Open: true, Host: "db2:5432", Old: "db1:5432", Event: "failover", Reason: "down",
		Driver: "a", DriverBoot: 5, Drain: time.Second, Roster: []string{"a", "b"}, Change: Change{Name: "b", Forget: true},
		Locks: `{"frozen":true}`, Settings: "s",
	}
	own := Member{Boot: 5, Fenced: 3, Leaving: true, Down: []string{"db1:5432"}, Settings: "s", Address: "a:1", Version: "1"}

	s := Swap{Sent: 5, Expect: 4, Record: record}
	st, err := k.swap(s)
	if err != nil || st.Key != "/understudy/prod/db/record" || st.Expect != 4 {
		t.Fatalf("swap: %+v, %v", st, err)
	}
	swapped, err := k.swapped(s, Result{OK: true, Key: KeyValue{Key: st.Key, Value: st.Value, Revision: 9}})
	if want := (Swapped{Sent: 5, Record: record, Revision: 9}); err != nil || !reflect.DeepEqual(swapped, want) {
		t.Errorf("swapped: %+v, %v, want %+v", swapped, err, want)
	}

	w := Write{Sent: 6, Expect: 8, Own: own}
	wt, err := k.write("a", w)
	if err != nil || wt.Key != "/understudy/prod/db/member/a" || wt.Expect != 8 || wt.Prefix != "/understudy/prod/db/record" {
		t.Fatalf("write: %+v, %v", wt, err)
	}
	w.Members = true
	if all, err := k.write("a", w); err != nil || all.Prefix != "/understudy/prod/db/" {
		t.Errorf("write that reads all: %+v, %v", all, err)
	}
	mine := KeyValue{Key: wt.Key, Value: wt.Value, Revision: 10}
	wrote, err := k.wrote("a", w, Result{OK: true, Key: mine, Found: []KeyValue{mine, {Key: st.Key, Value: st.Value, Revision: 9}}})
	entry := Entry{Name: "a", Member: own, Revision: 10}
	if want := (Wrote{Sent: 6, OK: true, Own: entry, Record: record, Revision: 9, Members: []Entry{entry}}); err != nil || !reflect.DeepEqual(wrote, want) {
		t.Errorf("wrote: %+v, %v, want %+v", wrote, err, want)
	}

	wrote, err = k.wrote("a", w, Result{})
	if err != nil || wrote.OK || wrote.Own.Revision != 0 || wrote.Record.Version != 0 {
		t.Errorf("an empty store: %+v, %v", wrote, err)
	}
}

// Keys that somebody else has written are errors, not records.
func TestForeignKeys(t *testing.T) {
	k := keysOf("prod", "db")
	for _, tt := range []struct{ key, value, want string }{
		{"record", `{`, "record of the cluster"},
		{"record", `{}`, "not one of understudy"},
		{"record", `{"version":1,"boot":1,"epoch":1,"roster":["a"],"drain":-1}`, "not one of understudy"},
		{"member/a", `[]`, `key of the member "a"`},
		{"member/a", `{}`, "no boot"},
		{"member/", `{}`, "not the key of a member"},
		{"other", `{}`, "not the key of a member"},
	} {
		found := KeyValue{Key: Prefix("prod", "db") + tt.key, Value: []byte(tt.value), Revision: 1}
		if _, err := k.wrote("a", Write{}, Result{Found: []KeyValue{found}}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %s: %v, want an error with %q", tt.key, tt.value, err, tt.want)
		}
	}
}

// No value of a key makes the parser fail in another way than by an error, and
// what it takes has the same meaning when it is written again.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"boot":2,"epoch":3,"open":true,"host":"a","driver":"m","driver_boot":4,"roster":["m"],"settings":"s"}`))
	f.Add([]byte(`{"boot":1,"fenced":2,"down":["a"],"settings":"s"}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		if r, err := decodeRecord(value); err == nil {
			again, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if r2, err := decodeRecord(again); err != nil || !reflect.DeepEqual(r, r2) {
				t.Errorf("%+v becomes %+v, %v", r, r2, err)
			}
		}
		k := keysOf("c", "r")
		_, _ = k.decodeMember(KeyValue{Key: k.members + "m", Value: value, Revision: 1})
	})
}

// single is a store of one key.
type single struct {
	Store
	kv KeyValue
}

func (s *single) Transact(_ context.Context, t Transaction) (Result, error) {
	ok := s.kv.Revision == t.Expect
	if ok {
		s.kv = KeyValue{Key: t.Key, Value: t.Value, Revision: s.kv.Revision + 1}
	}
	return Result{OK: ok, Key: s.kv}, nil
}

// Each member can tell what it suspects, although others have written that key meanwhile.
func TestDoubt(t *testing.T) {
	s := &single{}
	for _, member := range []string{"m", "n", "m"} {
		r := NewRegister(s, "prod", "db", member)
		for _, host := range []string{"a", "b"} {
			if err := r.Doubt(t.Context(), host); err != nil {
				t.Fatal(err)
			}
			want := `{"member":"` + member + `","host":"` + host + `"}`
			if s.kv.Key != "/understudy/prod/db/doubt" || string(s.kv.Value) != want {
				t.Errorf("%s is %s, want %s", s.kv.Key, s.kv.Value, want)
			}
		}
	}
	k := keysOf("prod", "db")
	if wrote, err := k.wrote("a", Write{}, Result{Found: []KeyValue{s.kv}}); err != nil || len(wrote.Members) > 0 {
		t.Errorf("it is read as %+v, %v", wrote, err)
	}
}

func TestDifferences(t *testing.T) {
	for _, tt := range [][4]string{
		{"hosts=a,b lease=5s agree=any", "hosts=a,b lease=6s agree=any", "lease=5s", "lease=6s"},
		{"lease=5s", "lease=5s role=redis elect=order", "none", "role=redis elect=order"},
	} {
		if a, b := Differences(tt[0], tt[1]); a != tt[2] || b != tt[3] {
			t.Errorf("%q and %q differ by %q and %q", tt[0], tt[1], a, b)
		}
	}
}
