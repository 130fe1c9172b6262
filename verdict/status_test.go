package verdict

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"

	"understudy/internal/flagfile"
)

// flagsIn makes a directory of flags, beside a file that is none of them.
func flagsIn(tb testing.TB, names ...string) flagfile.Dir {
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
	return flagfile.Dir(dir)
}

func TestStatus(t *testing.T) {
	f := flagsIn(t, "squid", "squid.80", "status.html", "status.html.80", "a b", "ünï", "..x", strings.Repeat("n", 255))
	for name, to := range map[string]string{"link": "squid", "out": "/etc/passwd", "up": "../secret", "nothing": "nowhere", "circle": "circle"} {
		if err := os.Symlink(to, filepath.Join(string(f), name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(string(f), "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	handler := NewStatus(StatusConfig{Flags: f, loopback: func() ([]netip.Addr, error) {
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
		"SERVICE=squid&SERVICE=nope":          400,
		"SERVICE=nope&SERVICE=squid":          400,
		"SERVICE=squid&SERVICE=squid":         400,
		"SERVICE=squid&PORT=80&PORT=80":       400,
		"SERVICE=squid&PORT=80&PORT=":         400,
		"SERVICE=a+b":                         200,
		"SERVICE=%C3%BCn%C3%AF":               200,
		"SERVICE=..x":                         200,
		"SERVICE=link":                        200, // to a flag
		"SERVICE=out":                         404,
		"SERVICE=up":                          404,
		"SERVICE=nothing":                     404,
		"SERVICE=circle":                      404,
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

// A stranger's request takes a line of bounded length in the log.
func TestStatusLogsQueriesBounded(t *testing.T) {
	var log lockedBuffer
	handler := NewStatus(StatusConfig{Flags: flagsIn(t, "squid"), Logger: hclog.New(&hclog.LoggerOptions{Output: &log})})
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/status?SERVICE=a&SERVICE="+strings.Repeat("n", 15<<10), nil))
	if text := log.String(); w.Code != 400 || !strings.Contains(text, "SERVICE=a&SERVICE=nnn") || len(text) > 2<<10 || strings.Count(text, "\n") != 1 {
		t.Errorf("answered %d, logged %d bytes: %.200s, want 400 and a line of 2 KiB at most", w.Code, len(text), text)
	}
}

// What cannot be read is never a yes, and no "switched off" either.
func TestStatusUnknown(t *testing.T) {
	f := flagsIn(t, "squid")
	broken := errors.New("broken")
	for name, cfg := range map[string]StatusConfig{
		"no directory":     {Flags: f + "x"},
		"not a directory":  {Flags: flagfile.Dir(filepath.Join(string(f), "squid"))},
		"no interfaces":    {Flags: f, loopback: func() ([]netip.Addr, error) { return nil, broken }},
		"a loop of links":  {Flags: flagfile.Dir(loopOfLinks(t))},
		"dangling as well": {Flags: flagfile.Dir(dangling(t))},
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

func FuzzStatusQuery(f *testing.F) {
	f.Add("SERVICE=squid&PORT=80&VIP=192.0.2.1,::1")
	f.Add("SERVICE=..%2f..%2fsecret")
	f.Add("SERVICE=a&SERVICE=b;PORT=1")
	flags := flagsIn(f, "squid")
	cfg := StatusConfig{Flags: flags, loopback: func() ([]netip.Addr, error) { return nil, nil }}
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

// HS 12 to 15, 18 and 19: the answers letter by letter, as they leave the
// listener.
func TestStatusAnswers(t *testing.T) {
	f := flagsIn(t, "squid")
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/status": NewStatus(StatusConfig{
		Flags: f, loopback: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil },
	})}})
	for _, tt := range []struct {
		query  string
		status int
		body   string
	}{
		{"SERVICE=squid", 200, "OK - service fine!\n"},
		{"SERVICE=squid&VIP=192.0.2.1", 200, "OK - service and VIP all fine!\n"},
		{"SERVICE=squid&VIP=192.0.2.2", 404, "Not Found - VIP alias not available\n"},
		{"SERVICE=nope", 404, "Not Found - service not available\n"},
		{"SERVICE=nope&VIP=192.0.2.2", 404, "Not Found - service not available\n"}, // the flag comes first
		{"", 404, "Not Found - service not available\n"},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			got := parseAnswer(t, say(t, addr, method+" /status?"+tt.query+" HTTP/1.0\r\n\r\n"), method)
			body := tt.body
			if method == "HEAD" {
				body = ""
			}
			if got.StatusCode != tt.status || got.body != body || got.rest != "" {
				t.Errorf("%s %s = %d %q, want %d %q", method, tt.query, got.StatusCode, got.body, tt.status, body)
			}
			got.Header.Del("Date")
			got.Header.Del("Connection")
			want := http.Header{
				"Server": {"Status"}, "Cache-Control": {"private, no-store"}, "Content-Type": {"text/plain; charset=utf-8"},
				"X-Content-Type-Options": {"nosniff"}, "Content-Length": {strconv.Itoa(len(tt.body))},
			}
			if diff := cmp.Diff(want, got.Header); diff != "" {
				t.Errorf("%s %s: headers (-want +got):\n%s", method, tt.query, diff)
			}
		}
	}
}

// HS 24: nothing of an answer is kept.
func TestStatusIsNeverOld(t *testing.T) {
	f := flagsIn(t)
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/status": NewStatus(StatusConfig{Flags: f})}})
	for range 20 {
		for status, change := range map[int]func(string) error{200: f.Set, 404: f.Clear} {
			if err := change("web"); err != nil {
				t.Fatal(err)
			}
			if got := parseAnswer(t, say(t, addr, "GET /status?SERVICE=web HTTP/1.0\r\n\r\n"), "GET"); got.StatusCode != status {
				t.Fatalf("right after the change answered %d, want %d", got.StatusCode, status)
			}
		}
	}
}

// F65: what is asked of /status makes neither a line of the log nor one of the
// answer. HS 20: and what it can answer makes no record at all.
func TestStatusInjection(t *testing.T) {
	var log lockedBuffer
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/status": NewStatus(StatusConfig{
		Flags: flagsIn(t, "squid"), Logger: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Trace}),
	})}})
	for _, query := range []string{"SERVICE=squid", "SERVICE=nope", "SERVICE=squid&VIP=192.0.2.1"} {
		say(t, addr, "GET /status?"+query+" HTTP/1.0\r\n\r\n")
	}
	if log.String() != "" {
		t.Errorf("log %s, want no record of what could be answered", log.String())
	}
	evil := []string{
		"SERVICE=a%0d%0aSet-Cookie:%20x=y", "SERVICE=%0a[ERROR]%20forged", "VIP=%0d%0a%0d%0a200", "PORT=1%0a",
		"SERVICE=%1b[2J", "SERVICE=%zz%0aforged", "SERVICE=a;b=%0a", "SERVICE=%00", "SERVICE=/%0d%0aX-Evil:%201",
	}
	for _, query := range evil {
		raw := say(t, addr, "GET /status?"+query+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		got := parseAnswer(t, raw, "GET")
		if strings.Contains(strings.ToLower(raw), "cookie") || got.Header.Get("X-Evil") != "" || strings.Count(got.body, "\n") != 1 {
			t.Errorf("%s: answered %q, want nothing of the request", query, raw)
		}
	}
	text := log.String()
	if lines := strings.Count(text, "\n"); lines > len(evil) || strings.Contains(text, "\n[ERROR]") || strings.ContainsAny(text, "\x1b\r\x00") {
		t.Errorf("%d lines for %d requests, want no more, and no control characters:\n%q", lines, len(evil), text)
	}
}
