package health

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// flagsIn makes a directory of flags, beside a file that is none of them.
func flagsIn(tb testing.TB, names ...string) Flags {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "flags")
	if err := os.Mkdir(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	for _, name := range append(names, "../secret") {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return Flags{Dir: dir}
}

func TestStatus(t *testing.T) {
	f := flagsIn(t, "squid", "squid.80", "status.html", "status.html.80", "a b", "ünï", "..x", strings.Repeat("n", 255))
	if err := os.Symlink("/etc/passwd", filepath.Join(f.Dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(f.Dir, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	handler := NewStatus(StatusConfig{Flags: f, Loopback: func() ([]netip.Addr, error) {
		return []netip.Addr{
			netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"),
			netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("::1"),
		}, nil
	}})
	for query, want := range map[string]int{
		"":                                    200, // status.html
		"PORT=80":                             200,
		"PORT=81":                             404,
		"SERVICE=squid":                       200,
		"SERVICE=squid&PORT=80":               200,
		"SERVICE=squid&PORT=81":               404,
		"SERVICE=nope":                        404,
		"service=nope":                        200, // case counts: it is ignored
		"SERVICE=squid&SERVICE=nope":          200, // the first counts
		"SERVICE=nope&SERVICE=squid":          404,
		"SERVICE=a+b":                         200,
		"SERVICE=%C3%BCn%C3%AF":               200,
		"SERVICE=..x":                         200,
		"SERVICE=link":                        200, // it is there; what it points to is nobody's business
		"SERVICE=dir":                         200,
		"SERVICE=" + strings.Repeat("n", 255): 200,

		"SERVICE=squid&VIP=192.0.2.1":                      200,
		"SERVICE=squid&VIP=127.0.0.1":                      200, // whatever its prefix
		"SERVICE=squid&VIP=192.0.2.1,192.0.2.2":            200,
		"SERVICE=squid&VIP=192.0.2.1,192.0.2.3":            404,
		"SERVICE=squid&VIP=192.0.2.1&VIP=192.0.2.3":        404, // all count
		"SERVICE=squid&VIP=2001:db8::1,::1":                200,
		"SERVICE=squid&VIP=2001:DB8:0::1":                  200,
		"SERVICE=squid&VIP=::ffff:192.0.2.1":               200,
		"SERVICE=nope&VIP=192.0.2.9":                       404,
		"SERVICE=squid&VIP=":                               400,
		"SERVICE=squid&VIP=x":                              400,
		"SERVICE=squid&VIP=fe80::1%25lo":                   400,
		"SERVICE=squid&VIP=192.0.2.1,":                     400,
		"SERVICE=squid&VIP=1" + strings.Repeat(",::1", 70): 400,

		// What the older program took for 200.
		"SERVICE=":                            400,
		"SERVICE=../secret":                   400,
		"SERVICE=..%2Fsecret":                 400,
		"SERVICE=%2E%2E%2Fsecret":             400,
		"SERVICE=/etc/passwd":                 400,
		"SERVICE=squid/x":                     400,
		"SERVICE=.":                           400,
		"SERVICE=..":                          400,
		"SERVICE=squid%00":                    400,
		"SERVICE=squid%0A":                    400,
		"SERVICE=" + strings.Repeat("n", 256): 400,
		"SERVICE=" + strings.Repeat("n", 255) + "&PORT=80": 400,
		"SERVICE=%zz":                400,
		"SERVICE=squid;PORT=80":      400,
		"SERVICE=squid&PORT=":        400,
		"SERVICE=squid&PORT=080":     400,
		"SERVICE=squid&PORT=../../x": 400,
		"SERVICE=squid&PORT=65536":   400,
	} {
		r := httptest.NewRequest(http.MethodGet, "/status?"+query, nil)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		body, _ := io.ReadAll(w.Body)
		word := map[int]string{200: "OK - ", 404: "Not Found - ", 400: "Bad Request - "}[want]
		if w.Code != want || !strings.HasPrefix(string(body), word) || strings.Count(string(body), "\n") != 1 {
			t.Errorf("%q is answered %d %q, want %d %s…", query, w.Code, body, want, word)
		}
		if w.Header().Get("Server") != "Status" || w.Header().Get("Cache-Control") != "private, no-store" {
			t.Errorf("%q: headers %v", query, w.Header())
		}
	}
	for method, want := range map[string]int{"HEAD": 200, "POST": 405, "PUT": 405, "DELETE": 405, "OPTIONS": 405} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(method, "/status?SERVICE=squid", nil))
		if w.Code != want || want == 405 && w.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s is answered %d, want %d", method, w.Code, want)
		}
	}
}

// What nobody can tell is never a yes, and no "switched off" either.
func TestStatusThatNobodyCanTell(t *testing.T) {
	f := flagsIn(t, "squid")
	broken := errors.New("broken")
	for name, cfg := range map[string]StatusConfig{
		"no directory":     {Flags: Flags{Dir: f.Dir + "x"}},
		"not a directory":  {Flags: Flags{Dir: filepath.Join(f.Dir, "squid")}},
		"no interfaces":    {Flags: f, Loopback: func() ([]netip.Addr, error) { return nil, broken }},
		"a loop of links":  {Flags: Flags{Dir: loopOfLinks(t)}},
		"dangling as well": {Flags: Flags{Dir: dangling(t)}},
	} {
		w := httptest.NewRecorder()
		NewStatus(cfg).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/status?SERVICE=squid&VIP=127.0.0.1", nil))
		if w.Code != 503 {
			t.Errorf("%s: answered %d %s, want 503", name, w.Code, w.Body)
		}
	}
}

func loopOfLinks(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "loop")
	if err := os.Symlink(path, path); err != nil {
		tb.Fatal(err)
	}
	return path
}

func dangling(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "link")
	if err := os.Symlink("/nowhere/at/all", path); err != nil {
		tb.Fatal(err)
	}
	return path
}

func TestLoopback(t *testing.T) {
	all, err := loopback()
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

func TestFlags(t *testing.T) {
	f := flagsIn(t)
	is := func(name string, want bool) {
		t.Helper()
		if got, err := f.Present(name); got != want || err != nil {
			t.Errorf("flag %q present %v, %v, want %v", name, got, err, want)
		}
	}
	for range 2 {
		if err := f.Set("squid.80"); err != nil {
			t.Error(err)
		}
		is("squid.80", true)
	}
	for range 2 {
		if err := f.Clear("squid.80"); err != nil {
			t.Error(err)
		}
		is("squid.80", false)
	}
	for _, name := range []string{"../secret", "..", "", "a/b", "a\x00b"} {
		if err := f.Set(name); !errors.Is(err, ErrFlagName) {
			t.Errorf("Set(%q) = %v, want ErrFlagName", name, err)
		}
		if err := f.Clear(name); !errors.Is(err, ErrFlagName) {
			t.Errorf("Clear(%q) = %v, want ErrFlagName", name, err)
		}
	}

	// A link that leads out is not followed, neither way.
	outside := filepath.Join(f.Dir, "../secret")
	if err := os.Symlink("../secret", filepath.Join(f.Dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := f.Set("link"); err != nil {
		t.Errorf("Set of a flag that is a link: %v, want it to stay", err)
	}
	if err := f.Clear("link"); err != nil {
		t.Error(err)
	}
	is("link", false)
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("what the link led to: %v", err)
	}
	if err := os.Mkdir(filepath.Join(f.Dir, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.Clear("dir"); err == nil {
		t.Error("Clear of a directory is no error")
	}
	is("dir", true)
}

func FuzzStatusQuery(f *testing.F) {
	f.Add("SERVICE=squid&PORT=80&VIP=192.0.2.1,::1")
	f.Add("SERVICE=..%2f..%2fsecret")
	f.Add("SERVICE=a&SERVICE=b;PORT=1")
	flags := flagsIn(f, "squid")
	cfg := StatusConfig{Flags: flags, Loopback: func() ([]netip.Addr, error) { return nil, nil }}
	f.Fuzz(func(t *testing.T, query string) {
		code, text, _ := cfg.answer(query)
		if strings.ContainsAny(text, "\r\n") {
			t.Errorf("%q is answered with more than one line: %q", query, text)
		}
		name, vips, err := parseStatusQuery(query)
		if code == 200 && (err != nil || name != "squid" || vips != nil) {
			t.Errorf("%q is answered 200, and it means %q, %v, %v", query, name, vips, err)
		}
	})
}
