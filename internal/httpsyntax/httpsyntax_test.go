package httpsyntax

import (
	"errors"
	"net/http"
	"strings"
	"testing"
)

func TestCheckMethodAndHeaderName(t *testing.T) {
	for text, ok := range map[string]bool{
		"GET": true, "PURGE": true, "x-app-id": true, "!#$%&'*+-.^_`|~09azAZ": true, strings.Repeat("a", 256): true,
		"": false, "GET /": false, "a:": false, "a\r": false, "ä": false, "a\x7f": false, `a"`: false, strings.Repeat("a", 257): false,
	} {
		if err := CheckMethod(text); (err == nil) != ok {
			t.Errorf("CheckMethod(%q) = %v, want it to pass: %t", text, err, ok)
		}
		if err := CheckHeaderName(text); (err == nil) != ok {
			t.Errorf("CheckHeaderName(%q) = %v, want it to pass: %t", text, err, ok)
		}
	}
	if CheckMethod(http.MethodConnect) == nil {
		t.Error("CONNECT is a method to ask with")
	}
	for _, name := range []string{"Connection", "content-length", "Expect", "Keep-Alive", "TE", "Trailer", "Transfer-Encoding", "upgrade"} {
		if CheckHeaderName(name) == nil {
			t.Errorf("the header %s may be set", name)
		}
	}
}

func TestCheckHeaderValue(t *testing.T) {
	for value, ok := range map[string]bool{"": true, "a\tb ü": true, "a\r\nB: c": false, "a\n": false, "\x00": false, "\x7f": false} {
		if err := CheckHeaderValue(value); (err == nil) != ok {
			t.Errorf("CheckHeaderValue(%q) = %v, want it to pass: %t", value, err, ok)
		}
	}
}

func TestParseURL(t *testing.T) {
	for text, want := range map[string]string{
		"http://a": "", "HTTPS://a:1/b%2Fc?d=e": "", "http://[::1]": "", "http://[fe80::1%25eth0]:80/": "", "http://a?b": "",

		"":                    "is not a URL with http",
		"localhost:9200/x":    "is not a URL with http",
		"ftp://a/":            "is not a URL with http",
		"http:a/b":            "has no host",
		"http:///x":           "has no host",
		"http://:80/":         "has no host",
		"http://a:0/":         `port "0"`,
		"http://a:70000/":     `port "70000"`,
		"http://a:/":          "no port behind its colon",
		"http://a b/":         "is not a URL:",
		"http://a/b c":        "has a space",
		"http://bücher.de/":   "bücher.de",
		"http://10.0.0.256/":  "no IPv4 address",
		"http://a/#b":         "has a fragment",
		"http://a/#":          "has a fragment",
		"http://me:s3cret@a/": ErrUser.Error(),
		"http://s3cret@a:x/":  "is not a URL:",
	} {
		u, err := ParseURL(text)
		switch {
		case want == "" && (err != nil || u.Host == ""):
			t.Errorf("ParseURL(%q) = %v, %v, want success", text, u, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret")):
			t.Errorf("ParseURL(%q) = %v, want %q and no secret", text, err, want)
		}
	}
	if _, err := ParseURL("http://me@a"); !errors.Is(err, ErrUser) {
		t.Errorf("ParseURL of a URL with a user = %v, want ErrUser", err)
	}
}
