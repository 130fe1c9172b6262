package health

import (
	"bufio"
	"errors"
	"strings"
	"testing"
)

func readerOf(s string) *bufio.Reader { return bufio.NewReader(strings.NewReader(s)) }

func TestJudgeAll(t *testing.T) {
	replies := map[rune]reply{
		'+': {status: 200, body: []byte("pong\n")},
		'-': {status: 200, body: []byte("ponk")},
		'5': {status: 500, body: []byte("pong")},
		'!': {status: 200, body: []byte("pong"), err: errors.New("never asked")},
	}
	for _, tt := range []struct {
		script string // the replies in order
		answer int
		ok     bool
	}{
		{"+", 0, true},
		{"+++", 0, true},
		{"-", 0, false},
		{"++-", 2, false},
		{"+5-", 1, false},
		{"!5-", 0, false},
		{"+!+", 1, false},
	} {
		var rs []reply
		for _, c := range tt.script {
			rs = append(rs, replies[c])
		}
		if answer, ok := judgeAll(rs); answer != tt.answer || ok != tt.ok {
			t.Errorf("judgeAll(%s) = %d, %v, want %d, %v", tt.script, answer, ok, tt.answer, tt.ok)
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
		{"", 404, 404},
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
