package role

import "testing"

func TestRoleText(t *testing.T) {
	for role, want := range map[Role]string{Unknown: "unknown", Primary: "primary", Replica: "replica", Starting: "starting", 9: "role(9)"} {
		if got, err := role.MarshalText(); string(got) != want || err != nil {
			t.Errorf("MarshalText of %d = %q, %v, want %q", int(role), got, err, want)
		}
	}
	f := Fact{Role: Replica, Term: 3, Detail: "the link is down"}
	if got, want := f.String(), "replica, term 3, the link is down"; got != want {
		t.Errorf("String = %q, want %q", got, want)
	}
	if (Fact{}).Role != Unknown || (Fact{}).Lag.BytesKnown || (Fact{}).Lag.TimeKnown {
		t.Error("the zero Fact says something")
	}
}
