package admin

import (
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// post sends a form as a browser does, and returns the status and the page. Headers
// replace those of a browser.
func post(t *testing.T, base string, form url.Values, headers map[string]string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, base+"/act", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if headers == nil {
		headers = map[string]string{"Origin": base}
	}
	for name, value := range headers {
		req.Header.Set(name, value)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var page strings.Builder
	if err := res.Write(&page); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, page.String()
}

func switchForm() url.Values {
	return url.Values{"verb": {"switch"}, "relay": {"orders"}, "host": {"db2.orders:5432"}, "typed": {"db2.orders:5432"}, "by": {"anna"}, "reason": {"new disk"}}
}

// An order needs the name of the host or relay, typed again, and the name of the operator.
func TestOrder(t *testing.T) {
	s := newStage(2, true)
	base := s.serve(t)
	status, _, page := get(t, base+"/act?verb=switch&relay=orders&host=db2.orders:5432")
	for _, want := range []string{"<code>understudy switch db2.orders:5432 --relay orders</code>", "Type the name of the host", "db1.orders:5432 has been primary"} {
		if status != http.StatusOK || !strings.Contains(page, want) {
			t.Errorf("status %d, and the page lacks %q", status, want)
		}
	}

	for _, tt := range []struct {
		name   string
		change func(url.Values)
		status int
		want   string
	}{
		{"nothing typed", func(f url.Values) { f.Del("typed") }, 422, "is not the name of the host"},
		{"another name typed", func(f url.Values) { f.Set("typed", "db3.orders:5432") }, 422, "is not the name of the host"},
		{"nobody", func(f url.Values) { f.Set("by", "  ") }, 422, "say who you are"},
		{"no such relay", func(f url.Values) { f.Set("relay", "nothing") }, 400, "there is no relay"},
		{"no such host", func(f url.Values) { f.Set("host", "nowhere") }, 400, "has no host"},
		{"no such order", func(f url.Values) { f.Set("verb", "reload") }, 400, "there is no order"},
		{"a host where none belongs", func(f url.Values) { f.Set("verb", "freeze") }, 400, "takes no host"},
		{"no host", func(f url.Values) { f.Del("host") }, 400, "the host is missing"},
		{"a refused order", func(f url.Values) { f.Set("verb", "drain") }, 409, "every other host is down or drained"},
	} {
		f := switchForm()
		tt.change(f)
		if status, page := post(t, base, f, nil); status != tt.status || !strings.Contains(page, tt.want) {
			t.Errorf("%s: status %d, want %d and %q:\n%s", tt.name, status, tt.status, tt.want, page)
		}
	}

	status, page = post(t, base, switchForm(), nil)
	if status != http.StatusOK || !strings.Contains(page, "db2.orders:5432 is primary") {
		t.Errorf("status %d:\n%s", status, page)
	}
	f := url.Values{"verb": {"freeze"}, "relay": {"orders"}, "typed": {" orders "}, "by": {"anna"}}
	if status, page := post(t, base, f, nil); status != http.StatusOK || !strings.Contains(page, "no automatic failover") {
		t.Errorf("status %d:\n%s", status, page)
	}
	want := []string{
		"drain relay=orders host=db2.orders:5432 reason=new disk by=anna (page, from 127.0.0.1)",
		"switch relay=orders host=db2.orders:5432 reason=new disk by=anna (page, from 127.0.0.1)",
		"freeze relay=orders host= reason= by=anna (page, from 127.0.0.1)",
	}
	if diff := cmp.Diff(want, s.orders); diff != "" {
		t.Errorf("orders (-want +got):\n%s", diff)
	}
}

// An order that comes from another site is refused, with and without a token in the browser.
func TestOrderOfAnotherSite(t *testing.T) {
	s := newStage(2, true)
	base := s.serve(t)
	host := strings.TrimPrefix(base, "http://")
	for _, tt := range []struct {
		name    string
		headers map[string]string
		status  int
	}{
		{"another origin", map[string]string{"Origin": "http://evil.example"}, 403},
		{"another port", map[string]string{"Origin": "http://127.0.0.1:1"}, 403},
		{"an opaque origin", map[string]string{"Origin": "null"}, 403},
		{"another site", map[string]string{"Origin": base, "Sec-Fetch-Site": "cross-site"}, 403},
		{"a subdomain", map[string]string{"Origin": base, "Sec-Fetch-Site": "same-site"}, 403},
		{"nothing said", map[string]string{}, 403},
		{"a password alone", map[string]string{"Authorization": "Basic YTpi"}, 403},
		{"a program with a token", map[string]string{"Authorization": "Bearer x"}, 200},
		{"the page", map[string]string{"Origin": "http://" + host, "Sec-Fetch-Site": "same-origin"}, 200},
	} {
		before := len(s.orders)
		status, _ := post(t, base, switchForm(), tt.headers)
		if given := len(s.orders) > before; status != tt.status || given != (tt.status == 200) {
			t.Errorf("%s: status %d, want %d; the order was given: %v", tt.name, status, tt.status, given)
		}
	}
}

// The command line that the page shows is read by a shell as it is meant.
func TestCommand(t *testing.T) {
	for _, o := range []order{
		{verb: "switch", relay: "orders", host: "db2:5432"},
		{verb: "drain", relay: "two words", host: "unix:/run/it's.sock", reason: `a "b" $HOME; rm -rf /`},
		{verb: "freeze", relay: "-r", reason: "ä\\"},
	} {
		line := o.command(true)
		out, err := exec.Command("sh", "-c", "understudy() { printf '%s\\n' \"$@\"; }\n"+line).Output()
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		want := []string{o.verb}
		if o.host != "" {
			want = append(want, o.host)
		}
		want = append(want, "--relay", o.relay)
		if o.reason != "" {
			want = append(want, "--reason", o.reason)
		}
		if got := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"); !slices.Equal(got, want) {
			t.Errorf("%s: a shell reads %q, want %q", line, got, want)
		}
	}
}

func FuzzOrder(f *testing.F) {
	f.Add("verb=switch&relay=orders&host=db2&typed=db2&by=anna&reason=why")
	f.Add("verb=freeze&relay=orders&typed=orders&by=%00%ff%0a")
	f.Add("verb=drain&host=%20&relay=")
	f.Fuzz(func(t *testing.T, query string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Skip("not a query: the server does not pass it on")
		}
		o, err := readOrder(q)
		if err != nil {
			return
		}
		if v := verbs[o.verb]; v.label == "" || v.host != (o.host != "") {
			t.Errorf("%q is accepted as %+v", query, o)
		}
		for _, text := range []string{o.by, o.reason} {
			if len(text) > wordsMost || !utf8.ValidString(text) || strings.ContainsAny(text, "\n\r\x00") {
				t.Errorf("%q is kept as %q", query, text)
			}
		}
	})
}
