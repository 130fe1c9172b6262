package config

import (
	"reflect"
	"strings"
	"testing"

	"understudy/internal/criteria"
)

func TestPresets(t *testing.T) {
	const relay = "listen: [\":1\"]\nhosts: [a:1, b:1]\n"
	for word := range presets {
		settings, _, err := loadFile(t, relay+"checks: ["+word+"]\n", nil, nil)
		if err != nil || len(settings.Relays[0].Checks) != 1 || settings.Relays[0].Checks[0].HTTP == nil {
			t.Errorf("%s: %+v, %v, want an HTTP check", word, settings.Relays, err)
		}
	}
	settings, values, err := loadFile(t, relay+"checks:\n  - patroni\n  - patroni: {port: 8009, https: true}\n    interval: 5s\n  - vault:\n", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []HTTPCheck
	for _, c := range settings.Relays[0].Checks {
		got = append(got, *c.HTTP)
	}
	ok := criteria.Expect{Status: []string{"200"}}
	want := []HTTPCheck{
		{Port: 8008, Path: "/primary", Method: "GET", Expect: ok},
		{Port: 8009, Path: "/primary", Method: "GET", HTTPS: true, Expect: ok},
		{Path: "/v1/sys/health", Method: "GET", Expect: ok},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if settings.Relays[0].Checks[1].Interval.Seconds() != 5 {
		t.Errorf("the interval beside a preset is %v, want 5s", settings.Relays[0].Checks[1].Interval)
	}
	for _, v := range values {
		if v.Name == "checks[1].http.port" && (v.Text != "8009" || v.Origin.line != 5) {
			t.Errorf("%s = %s of line %d, want 8009 of line 5", v.Name, v.Text, v.Origin.line)
		}
	}
	for _, tt := range []struct{ text, want string }{
		{"checks: [patrony]", "did you mean patroni?"},
		{"checks: [patrony: {}]", "did you mean patroni?"},
		{"checks: [patroni: 8009]", "is the single value \"8009\": want a map"},
		{"checks: [patroni: {prot: 8009}]", "did you mean port?"},
		{"checks: [{patroni: {}, tcp: {}}]", "has several kinds"},
	} {
		_, _, err := loadFile(t, relay+tt.text+"\n", nil, nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.text, err, tt.want)
		}
	}
}
