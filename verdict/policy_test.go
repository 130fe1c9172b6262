package verdict

import (
	"errors"
	"fmt"
	"testing"
)

func TestPolicy(t *testing.T) {
	replies := map[rune]reply{
		'+': {status: 200, body: []byte("pong\n")},
		'-': {status: 200, body: []byte("ponk"), mismatch: errors.New("not pong")},
		'5': {status: 500, body: []byte("pong"), mismatch: errors.New("status")},
		'!': {status: 500, body: []byte("error"), err: errors.New("never asked")},
		'4': {status: 404, body: []byte("gone")}, // as expected
	}
	members := map[rune]memberState{
		'r': {Member{Name: "relay"}, nil},
		'R': {Member{Name: "relay"}, ErrNoPrimary},
		'W': {Member{Name: "relay"}, fmt.Errorf("orders: %w", ErrNoPrimary)},
		'p': {Member{Name: "probe"}, nil},
		'P': {Member{Name: "probe"}, errors.New("secret reason")},
		'm': {Member{Name: "must", Must: true}, nil},
		'M': {Member{Name: "must", Must: true}, ErrNoPrimary},
		'I': {Member{Name: "ignored", Ignore: true}, errors.New("who cares")},
	}
	for _, tt := range []struct {
		script    string // members and replies in order
		tolerated int
		want      string
	}{
		{"+", 0, "200 pong\n"},
		{"+++", 0, "200 pong\n"},
		{"-", 0, "502 ponk (status 502)"},
		{"++-", 0, "502 ponk (status 502)"},
		{"+5-", 0, "500 pong (status 500)"},
		{"!5-", 0, "500 error (status 500)"},
		{"+!+", 0, "500 error (status 500)"},
		{"4", 0, "200 gone"},

		{"rpmI", 0, "200 pong"},
		{"rR", 0, "503 no primary (no primary)"},
		{"W", 0, "503 no primary (no primary)"},
		{"PR", 0, "503 down (down)"},
		{"M", 0, "503 no primary (no primary)"},
		{"I+", 0, "200 pong\n"},
		{"I5", 0, "500 pong (status 500)"},
		{"r5", 0, "500 pong (status 500)"},
		{"R5", 0, "503 no primary (no primary)"},

		{"-+", 1, "200 pong\n"},
		{"-5+", 1, "502 ponk (status 502)"},
		{"-5", 2, "200 pong"},
		{"R+", 1, "200 pong\n"},
		{"R-+", 1, "503 no primary (no primary)"},
		{"P+-", 1, "503 down (down)"},
		{"rP", 1, "200 pong"},
		{"PM+", 5, "503 no primary (no primary)"},
		{"IIR", 1, "200 pong"},
	} {
		var ms []memberState
		var rs []reply
		for _, c := range tt.script {
			if r, ok := replies[c]; ok {
				rs = append(rs, r)
			} else {
				ms = append(ms, members[c])
			}
		}
		v := policy{tolerated: tt.tolerated}.evaluate(ms, rs)
		got := fmt.Sprintf("%d %s", v.status, v.body)
		if !v.ok {
			got += " (" + v.reason + ")"
		}
		if got != tt.want || v.ok != (v.status == 200) {
			t.Errorf("%s with %d tolerated = %v %q, want %q", tt.script, tt.tolerated, v.ok, got, tt.want)
		}
	}
}

func TestFailStatus(t *testing.T) {
	for _, tt := range []struct {
		setting   string
		own, want int
	}{
		{"auto", 200, 502},
		{"auto", 204, 502},
		{"auto", 302, 502}, // HAProxy takes it for healthy
		{"auto", 404, 404},
		{"auto", 599, 599},
		{"keep", 200, 200},
		{"keep", 302, 302},
		{"keep", 500, 500},
		{"503", 200, 503},
		{"400", 500, 400},
	} {
		f, err := parseFailStatus(tt.setting)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.of(tt.own); got != tt.want {
			t.Errorf("fail status %q of %d = %d, want %d", tt.setting, tt.own, got, tt.want)
		}
	}
}
