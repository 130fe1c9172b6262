package redact

import (
	"net/url"
	"strings"
	"testing"
)

func TestURL(t *testing.T) {
	for in, want := range map[string]string{
		"":                                  "",
		"db1:5432":                          "db1:5432",
		"PING?x=y":                          "PING?x=y",
		"http://h":                          "http://h",
		"http://h/p":                        "http://h/p",
		"http://h/p?":                       "http://h/p?",
		"http://h?token=s3cret":             "http://h?token=********",
		"http://h/p?token=s3cret&x=&s3cret": "http://h/p?token=********&x=&********",
		"http://h/p?a=b?c=s3cret":           "http://h/p?a=********",
		"http://h/p#s3cret":                 "http://h/p#********",
		"http://ann:s3cret@h":               "http://********@h",
		"http://ann:s3cret@h/p@q?x=s3cret":  "http://********@h/p@q?x=********",
		"http://s3cret@h:80/":               "http://********@h:80/",
		"http://ann:s3/cret@h/":             "http://********",
		"http://ann:s3?cret@h/":             "http://********",
		"http://ann:s3#cret@h/":             "http://********",
		"gelf+tcp://ann:s3cret@h:12201":     "gelf+tcp://********@h:12201",
		"/ping":                             "/ping",
		"/ping?token=s3cret":                "/ping?token=********",
		"//h/ping?s3cret":                   "//h/ping?********",
		"--url=http://h/?token=s3cret":      "--url=http://h/?token=********",
	} {
		if got := URL(in); got != want {
			t.Errorf("URL(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestList(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "",
		"a:1,b:2":                          "a:1,b:2",
		"http://a?x=s3cret,http://b/p?y=s": "http://a?x=********,http://b/p?y=********",
		"http://a?x=s3,cret,http://b":      "http://a?x=********,********,http://b",
		"/a,/b?s3cret":                     "/a,/b?********",
	} {
		if got := List(in); got != want {
			t.Errorf("List(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzURL(f *testing.F) {
	for _, s := range []string{"http://h/?a=b&c", "http://ann:pw@h/@?x", "/p?q#f", "x://@", "://#@"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out := URL(in)
		if again := URL(out); again != out {
			t.Errorf("URL(%q) = %q, and of that %q", in, out, again)
		}
		u, err := url.Parse(in)
		if err != nil || u.Scheme == "" || !strings.HasPrefix(in[len(u.Scheme):], "://") {
			return
		}
		shown, err := url.Parse(out)
		if err != nil || shown.Host != u.Host || shown.EscapedPath() != u.EscapedPath() {
			t.Errorf("URL(%q) = %q, whose host or path is another: %v", in, out, err)
			return
		}
		for _, secret := range []string{shown.User.String(), shown.Fragment} {
			if strings.Trim(secret, "*") != "" && strings.Trim(secret, "%2A*") != "" {
				t.Errorf("URL(%q) = %q, which shows %q", in, out, secret)
			}
		}
		for pair := range strings.SplitSeq(shown.RawQuery, "&") {
			if _, value, named := strings.Cut(pair, "="); strings.Trim(value, "*") != "" || !named && strings.Trim(pair, "*") != "" {
				t.Errorf("URL(%q) = %q, which shows %q", in, out, pair)
			}
		}
	})
}
