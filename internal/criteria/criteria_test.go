package criteria

import (
	"regexp"
	"strings"
	"testing"
)

func TestCriteria(t *testing.T) {
	for _, tt := range []struct {
		name   string
		expect Expect
		status int
		body   string
		want   string // part of the error; empty for a pass
	}{
		{"any 2xx without a word", Expect{}, 204, "", ""},
		{"no error page without a word", Expect{}, 404, "pong", "status 404, want 2xx"},
		{"no redirect without a word", Expect{}, 302, "", "status 302, want 2xx"},
		{"one number", Expect{Status: []string{"200"}}, 200, "", ""},
		{"another number", Expect{Status: []string{"200"}}, 204, "", "status 204, want 200"},
		{"one of two", Expect{Status: []string{"200", "3xx"}}, 307, "", ""},
		{"none of two", Expect{Status: []string{"200", "3XX"}}, 500, "", "status 500, want 200 or 3XX"},
		{"the ends of a class", Expect{Status: []string{"4xx"}}, 499, "", ""},
		{"beyond a class", Expect{Status: []string{"4xx"}}, 500, "", "status 500"},

		{"pong", Expect{Body: "pong"}, 200, "pong", ""},
		{"pong in white space", Expect{Body: "\tpong "}, 200, " pong\r\n", ""},
		{"PONG", Expect{Body: "pong"}, 200, "PONG", `body "PONG", want "pong"`},
		{"pong and more", Expect{Body: "pong"}, 200, "pong!", `body "pong!", want "pong"`},
		{"nothing", Expect{Body: "pong"}, 200, "", `body "", want "pong"`},
		{"bytes that are no text", Expect{Body: "p\xffng"}, 200, "p\xffng", ""},
		{"other bytes that are no text", Expect{Body: "p\xffng"}, 200, "p\xfeng", `body "p\xfeng", want "p\xffng"`},
		{"control characters are escaped", Expect{Body: "pong"}, 200, "a\x1b[31m\nb", `body "a\x1b[31m\nb", want`},
		{"a long body is cut in the error", Expect{Body: "pong"}, 200, strings.Repeat("a", 100), strings.Repeat("a", 64) + `"…, want`},
		{"white space beyond the limit", Expect{Body: "pong"}, 200, "pong" + strings.Repeat(" ", BodyLimit), "want \"pong\""},

		{"contains", Expect{BodyContains: "lead"}, 200, "the leader", ""},
		{"contains not", Expect{BodyContains: "lead"}, 200, "the LEADER", `body "the LEADER" does not contain "lead"`},
		{"contains beyond the limit", Expect{BodyContains: "x"}, 200, strings.Repeat("a", BodyLimit) + "x", "does not contain"},

		{"matches", Expect{BodyRegex: "elasticsearch +green"}, 200, "1 2 elasticsearch   green 3", ""},
		{"matches not", Expect{BodyRegex: "elasticsearch +green"}, 200, "elasticsearch red", `does not match "elasticsearch +green"`},

		{"all hold", Expect{Status: []string{"200"}, BodyContains: "a", BodyRegex: "^a+$"}, 200, "aaa", ""},
		{"one of all does not hold", Expect{Status: []string{"200"}, BodyContains: "a", BodyRegex: "^a+$"}, 200, "aab", "does not match"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := tt.expect.Compile()
			if err != nil {
				t.Fatal(err)
			}
			err = c.MatchStatus(tt.status)
			if err == nil {
				err = c.MatchBody([]byte(tt.body))
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestCriteriaNamesEveryMistake(t *testing.T) {
	_, err := Expect{
		Status:       []string{"200", "2x", "6xx", "099", "+20", "２００", ""},
		Body:         " \n",
		BodyContains: strings.Repeat("a", BodyLimit+1),
		BodyRegex:    "(",
	}.Compile()
	if err == nil {
		t.Fatal("compile = nil, want an error")
	}
	for _, want := range []string{
		`status[1]: "2x"`, `status[2]: "6xx"`, `status[3]: "099"`, `status[4]: "+20"`, `status[5]: "２００"`, `status[6]: ""`,
		"body: ", "body_contains: ", "body_regex: error parsing regexp: missing closing )",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("compile = %v\nwant it to name %s", err, want)
		}
	}
	if strings.Contains(err.Error(), "status[0]") {
		t.Errorf("compile = %v\nwant it not to name status[0]", err)
	}
}

func FuzzCriteria(f *testing.F) {
	f.Add("2xx", "pong", "", "", 200, "pong\n")
	f.Add("200", "", "a", "^a+$", 404, "aab")
	f.Add("", "\xff", "", "(", 0, "")
	f.Fuzz(func(t *testing.T, status, equal, contains, regex string, code int, body string) {
		e := Expect{Body: equal, BodyContains: contains, BodyRegex: regex}
		if status != "" {
			e.Status = strings.Split(status, ",")
		}
		c, err := e.Compile()
		if err != nil {
			t.Skip()
		}
		if c.MatchStatus(code) == nil && (code < 100 || code > 599) {
			t.Errorf("status %d passes %q", code, status)
		}
		err = c.MatchBody([]byte(body))
		if len(body) > BodyLimit {
			return
		}
		want := (equal == "" || strings.TrimSpace(equal) == strings.TrimSpace(body)) &&
			strings.Contains(body, contains) &&
			(regex == "" || regexp.MustCompile(regex).MatchString(body))
		if (err == nil) != want {
			t.Errorf("MatchBody(%q) of %+v = %v, want a pass: %v", body, e, err, want)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\r\n\x1b") {
			t.Errorf("error %q has a control character", err)
		}
	})
}
