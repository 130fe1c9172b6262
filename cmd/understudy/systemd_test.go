package main

import (
	"os"
	"reflect"
	"strconv"
	"testing"

	"understudy/config"
)

func TestPassedSocketsOfEnvironment(t *testing.T) {
	me := strconv.Itoa(os.Getpid())
	for _, tt := range []struct {
		name, pid, n, names string
		want                []passedSocket
	}{
		{"none", "", "", "", nil},
		{"another process's", "1", "1", "orders", nil},
		{"no number", me, "many", "", nil},
		{"none at all", me, "0", "", nil},
		{"too many", me, "1001", "", nil},
		{"without names", me, "2", "", []passedSocket{{3, ""}, {4, ""}}},
		{"with names", me, "2", "orders:understudy.socket", []passedSocket{{3, "orders"}, {4, "understudy.socket"}}},
		{"an empty name", me, "2", ":mail", []passedSocket{{3, ""}, {4, "mail"}}},
		{"names of others", me, "2", "orders", []passedSocket{{3, ""}, {4, ""}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("LISTEN_PID", tt.pid)
			t.Setenv("LISTEN_FDS", tt.n)
			t.Setenv("LISTEN_FDNAMES", tt.names)
			got := passedSockets()
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%v, want %v", got, tt.want)
			}
			if _, there := os.LookupEnv("LISTEN_FDS"); there != (tt.want == nil) {
				t.Errorf("LISTEN_FDS is there: %v", there)
			}
		})
	}
}

func TestDescriptorsOfRelay(t *testing.T) {
	sockets := []passedSocket{{3, "mail"}, {4, "orders"}, {5, "mail"}}
	if got, want := namesOf(sockets), []string{"mail", "orders", "mail"}; !reflect.DeepEqual(got, want) {
		t.Errorf("names %v, want %v", got, want)
	}
	if got, want := descriptorsOf(sockets, config.Relay{Sockets: []int{0, 2}}), []int{3, 5}; !reflect.DeepEqual(got, want) {
		t.Errorf("descriptors %v, want %v", got, want)
	}
	if got := descriptorsOf(sockets, config.Relay{}); got != nil {
		t.Errorf("descriptors %v of a relay without sockets", got)
	}
}
