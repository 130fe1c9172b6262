package verdict

import (
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"understudy/internal/proctest"
	"understudy/internal/token"
)

// serveHeartbeat serves a heartbeat at "/" and returns a function that asks
// for it with these lines of a head, the request line first.
func serveHeartbeat(tb testing.TB, cfg HeartbeatConfig) func(head ...string) answer {
	tb.Helper()
	cfg.Token, cfg.Name = "s3cret", "DC 1"
	h, err := NewHeartbeat(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	addr := serveRoutes(tb, ServerConfig{Routes: map[string]http.Handler{"/": h}})
	return func(head ...string) answer {
		tb.Helper()
		method, _, _ := strings.Cut(head[0], " ")
		head = append(head, "Host: x", "Connection: close", "", "")
		return parseAnswer(tb, say(tb, addr, strings.Join(head, "\r\n")), method)
	}
}

const shownToken = "Authorization: Bearer s3cret"

func TestHeartbeat(t *testing.T) {
	for _, tt := range []struct {
		name    string
		members []Member
		status  int
		body    string
	}{
		{"no probe is dead", []Member{memberOf("elastic", nil), memberOf("mongo", nil)}, 200, "Server: DC 1 reports:\nOK"},
		{"one is dead", []Member{memberOf("elastic", errDead), memberOf("mongo", nil)}, 503, "Server: DC 1 reports:\nThe elastic is DEAD!\n"},
		{"all are, in order", []Member{memberOf("mongo", errDead), memberOf("elastic", errDead)}, 503, "Server: DC 1 reports:\nThe mongo is DEAD!\nThe elastic is DEAD!\n"},
		{"not known is dead", []Member{memberOf("elastic", errUnknown)}, 503, "Server: DC 1 reports:\nThe elastic is DEAD!\n"},
		{"an ignored one is not reported", []Member{memberOf("elastic", nil), {Name: "search", State: func() error { return errDead }, Ignore: true}}, 200, "Server: DC 1 reports:\nOK"},
		{"a required one is as any other", []Member{memberOf("elastic", nil), {Name: "search", State: func() error { return errDead }, Must: true}}, 503, "Server: DC 1 reports:\nThe search is DEAD!\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			request := serveHeartbeat(t, HeartbeatConfig{Members: tt.members})
			got := request("GET / HTTP/1.1", shownToken)
			if got.StatusCode != tt.status || got.body != tt.body || got.rest != "" {
				t.Errorf("GET = %d %q, want %d %q", got.StatusCode, got.body, tt.status, tt.body)
			}
			for name, want := range map[string]string{
				"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store",
				"Content-Length": fmt.Sprint(len(tt.body)), "X-Content-Type-Options": "nosniff",
			} {
				if got.Header.Get(name) != want {
					t.Errorf("GET: %s is %q, want %q", name, got.Header.Get(name), want)
				}
			}
			got = request("HEAD / HTTP/1.1", shownToken)
			if got.StatusCode != tt.status || got.body != "" || got.rest != "" || got.ContentLength != int64(len(tt.body)) {
				t.Errorf("HEAD = %d %q, length %d, want %d, no body and length %d", got.StatusCode, got.body, got.ContentLength, tt.status, len(tt.body))
			}
			if got := request("GET / HTTP/1.0", shownToken); got.StatusCode != tt.status || got.body != tt.body {
				t.Errorf("GET over HTTP/1.0 = %d %q, want %d %q", got.StatusCode, got.body, tt.status, tt.body)
			}
		})
	}
}

func TestHeartbeatToken(t *testing.T) {
	request := serveHeartbeat(t, HeartbeatConfig{Members: []Member{memberOf("elastic", errDead)}})
	for _, head := range [][]string{
		{"GET / HTTP/1.1"},
		{"HEAD / HTTP/1.1"},
		{"GET /?token=s3cret&access_token=s3cret HTTP/1.1"},
		{"GET / HTTP/1.1", "Authorization: Bearer "},
		{"GET / HTTP/1.1", "Authorization: Bearer s3cre"},
		{"GET / HTTP/1.1", "Authorization: Bearer s3crets"},
		{"GET / HTTP/1.1", "Authorization: Bearer S3cret"},
		{"GET / HTTP/1.1", "Authorization: Bearer  s3cret"},
		{"GET / HTTP/1.1", "Authorization: bearer s3cret"},
		{"GET / HTTP/1.1", "Authorization: s3cret"},
		{"GET / HTTP/1.1", "Authorization: Basic czNjcmV0"},
		{"GET / HTTP/1.1", "X-Authorization: Bearer s3cret"},
		{"GET / HTTP/1.1", "Authorization: Bearer s3cret", "Authorization: Bearer x"},
		{"GET / HTTP/1.1", "Authorization: Bearer " + strings.Repeat("s", 8000)},
	} {
		got := request(head...)
		want := "Auth ERR"
		if strings.HasPrefix(head[0], "HEAD") {
			want = ""
		}
		if got.StatusCode != http.StatusNetworkAuthenticationRequired || got.body != want || got.ContentLength != 8 {
			t.Errorf("%.80q = %d %q, want 511 %q", head, got.StatusCode, got.body, want)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
		if got := request(method+" / HTTP/1.1", shownToken); got.StatusCode != http.StatusMethodNotAllowed || strings.Contains(got.body, "DEAD") {
			t.Errorf("%s = %d %q, want 405", method, got.StatusCode, got.body)
		}
	}
}

// F69: a wrong token takes the same path as the right one, and so the same
// time. Times on a busy machine prove little, so only a difference that is
// both certain (Welch's t) and large is a failure.
func TestHeartbeatTokenTime(t *testing.T) {
	secret := strings.Repeat("s3cret", 10)
	tok := token.New(secret)
	r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
	value := make([]string, 1)
	r.Header["Authorization"] = value
	right := "Bearer " + secret
	wrongs := []string{"Bearer X" + secret[1:], "Bearer " + secret[:len(secret)-1] + "X", strings.Repeat("x", len(right))}

	for _, sent := range append(wrongs, right) {
		value[0] = sent
		if got := tok.Shown(r); got != (sent == right) {
			t.Errorf("shown(%q) = %v", sent, got)
		}
		if n := testing.AllocsPerRun(100, func() { tok.Shown(r) }); n > 1 {
			t.Errorf("shown(%q) allocates %v times", sent, n)
		}
	}

	const tries, batch = 2000, 10
	measure := func(sent string) float64 {
		value[0] = sent
		began := time.Now()
		for range batch {
			tok.Shown(r)
		}
		return float64(time.Since(began))
	}
	for _, wrong := range wrongs {
		differs := true
		var welch, ratio float64
		for round := 0; round < 10 && differs; round++ {
			var good, bad []float64
			for range tries {
				good = append(good, measure(right))
				bad = append(bad, measure(wrong))
			}
			mg, vg := cropped(good)
			mb, vb := cropped(bad)
			welch = math.Abs(mg-mb) / math.Sqrt((vg+vb)/tries)
			ratio = mb / mg
			differs = welch > 4.5 && (ratio < 0.8 || ratio > 1.25)
		}
		if differs {
			t.Errorf("wrong token %q takes %.2f of the time of the right one, Welch's t is %.1f", wrong, ratio, welch)
		}
	}
}

// cropped returns the mean and the variance of the faster nine tenths, which
// other programs have disturbed least.
func cropped(times []float64) (mean, variance float64) {
	slices.Sort(times)
	times = times[:len(times)*9/10]
	for _, x := range times {
		mean += x
	}
	mean /= float64(len(times))
	for _, x := range times {
		variance += (x - mean) * (x - mean)
	}
	return mean, max(variance/float64(len(times)-1), 1)
}

func TestHeartbeatOverride(t *testing.T) {
	dir := t.TempDir()
	request := serveHeartbeat(t, HeartbeatConfig{Dead: dir, Members: []Member{memberOf("elastic", nil), memberOf("mongo", nil)}})
	want := func(what string, status int, body string) {
		t.Helper()
		if got := request("GET / HTTP/1.1", shownToken); got.StatusCode != status || got.body != "Server: DC 1 reports:\n"+body {
			t.Errorf("%s: %d %q, want %d %q", what, got.StatusCode, got.body, status, body)
		}
	}
	const dead = "The elastic is DEAD!\n"
	path := filepath.Join(dir, "elastic.dead")
	want("no file", 200, "OK")
	for name, content := range map[string]string{
		"an empty file":           "",
		"one of an older tool":    "HTTPConnectionPool(host='127.0.0.1', port=3006): Read timed out.",
		"less than our mark":      deadMark[:8],
		"our mark, but not first": " " + deadMark,
	} {
		put(t, path, content)
		want(name, 503, dead)
	}
	put(t, path, deadMark+"probe elastic is down\n")
	want("a file of our own, from before", 200, "OK")
	os.Remove(path)

	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	want("a directory", 503, dead)
	os.Remove(path)
	if err := os.Symlink("/nowhere", path); err != nil {
		t.Fatal(err)
	}
	want("a link to nothing", 503, dead)
	os.Remove(path)

	put(t, filepath.Join(dir, "unheard.of.dead"), "")
	put(t, filepath.Join(dir, "elastic"), "")
	want("files of no probe", 200, "OK")

	// What cannot be read changes nothing; a directory that is gone has no files.
	put(t, path, "")
	want("an empty file", 503, dead)
	away := dir + ".away"
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "a file instead of the directory")
	want("unreadable", 503, dead)
	os.Remove(dir)
	want("no directory", 200, "OK")
}

// An answer comes while the probe is dead, its file is made again and again,
// and the file is removed: it is dead each time.
func TestHeartbeatNeverFlickers(t *testing.T) {
	proctest.NoLeaks(t)
	dir := t.TempDir()
	members := []Member{memberOf("elastic", errDead)}
	files, err := NewDeadFiles(DeadFilesConfig{Dir: dir, Members: members})
	if err != nil {
		t.Fatal(err)
	}
	h, err := NewHeartbeat(HeartbeatConfig{Token: "s3cret", Dead: dir, Members: members})
	if err != nil {
		t.Fatal(err)
	}
	var over atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !over.Load() {
			if err := files.sync(); err != nil {
				t.Error(err)
				return
			}
			os.Remove(filepath.Join(dir, "elastic.dead"))
		}
	}()
	r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
	r.Header.Set("Authorization", "Bearer s3cret")
	for range 3000 {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != 503 {
			t.Errorf("a dead probe is answered %d", w.Code)
			break
		}
	}
	over.Store(true)
	<-done
}

func TestNewHeartbeatNamesEveryMistake(t *testing.T) {
	for _, tt := range []struct {
		cfg  HeartbeatConfig
		want []string
	}{
		{HeartbeatConfig{}, []string{"token: it is empty", "members: "}},
		{HeartbeatConfig{Token: "a\n", Name: "a\nb", Dead: "/x", Members: []Member{{Name: "../a", Must: true, Ignore: true, State: func() error { return nil }}, {Name: "b/c"}, memberOf("a\nOK", nil)}},
			[]string{"token: ", "name: ", "members[0]: \"../a\" cannot be both", "members[1]: \"b/c\" has no state", `members[2]: "a\nOK" contains a control character`, "\"b/c.dead\" cannot be the name of a file"}},
	} {
		_, err := NewHeartbeat(tt.cfg)
		if err == nil {
			t.Fatalf("NewHeartbeat(%+v) = nil, want an error", tt.cfg)
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("NewHeartbeat = %v\nwant it to name %s", err, want)
			}
		}
	}
}

// DP 14, D-DP5: methods and paths that are not the heartbeat's say nothing,
// with and without the token.
func TestHeartbeatAnswersNothingElse(t *testing.T) {
	h, err := NewHeartbeat(HeartbeatConfig{Name: "DC 1", Token: "s3cret", Members: []Member{memberOf("elastic", errDead)}})
	if err != nil {
		t.Fatal(err)
	}
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": http.NotFoundHandler(), "/beat": h}})
	for _, auth := range []string{"", shownToken + "\r\n"} {
		for request, want := range map[string]int{
			"GET /console": 404, "GET /console?__debugger__=yes&cmd=resource&f=debugger.js": 404, "GET /": 404, "GET /beat/": 404,
			"POST /beat": 405, "PUT /beat": 405, "DELETE /beat": 405, "OPTIONS /beat": 405,
		} {
			got := parseAnswer(t, say(t, addr, request+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+auth+"\r\n"), "GET")
			if got.StatusCode != want || strings.Contains(got.body, "elastic") || strings.Contains(got.body, "DC 1") {
				t.Errorf("%s with %q: answered %d %q, want %d and no word of the probes", request, auth, got.StatusCode, got.body, want)
			}
		}
	}
	if got := parseAnswer(t, say(t, addr, "GET /beat HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), "GET"); got.StatusCode != http.StatusNetworkAuthenticationRequired || got.body != "Auth ERR" {
		t.Errorf("without the token answered %d %q, want 511 Auth ERR", got.StatusCode, got.body)
	}
}

// DP 20, D-DP2: a folder that is not there, or cannot be written to, makes
// none well.
func TestHeartbeatWithoutItsDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	put(t, file, "")
	for _, dir := range []string{"/nowhere/at/all", file, "/proc/self", "/dev/full"} {
		request := serveHeartbeat(t, HeartbeatConfig{Dead: dir, Members: []Member{memberOf("elastic", errDead), memberOf("mongo", nil)}})
		if got := request("GET / HTTP/1.1", shownToken); got.StatusCode != http.StatusServiceUnavailable || got.body != "Server: DC 1 reports:\nThe elastic is DEAD!\n" {
			t.Errorf("%s: answered %d %q, want 503 and elastic", dir, got.StatusCode, got.body)
		}
	}
}
