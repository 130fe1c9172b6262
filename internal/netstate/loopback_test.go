package netstate

import (
	"net/netip"
	"testing"
)

func TestLoopback(t *testing.T) {
	all, err := Loopback()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if a == netip.MustParseAddr("127.0.0.1") {
			return
		}
	}
	t.Errorf("the loopback addresses are %v, without 127.0.0.1", all)
}
