//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/control"
	"understudy/failover"
	"understudy/internal/browsertest"
	"understudy/internal/proctest"
)

const pageToken = "a-token-for-tests"

// pageTokenFile is a file with the token of the page.
func pageTokenFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(pageToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The page shows the primary, says who follows when it is killed, without being loaded
// again, and makes a host primary at the press of a button.
func TestPage(t *testing.T) {
	t.Parallel()
	admin := freeAddr(t)
	base := "http://" + admin
	browser := browsertest.Open(t, base)
	o := operate(t, "--admin", admin, "--admin-token-file", pageTokenFile(t))
	a, b := o.a.Addr(), o.b.Addr()

	// Nobody gets in without the token.
	for _, path := range []string{"/", "/stream", "/v1/status", "/v1/stream", "/status.txt", "/act", "/page.js"} {
		if status, _ := askPage(t, base+path, ""); status != http.StatusUnauthorized {
			t.Errorf("%s without a token: status %d, want 401", path, status)
		}
	}

	browser.Go("http://anna:" + pageToken + "@" + admin + "/") // as if it was typed
	browser.Go(base + "/")
	browser.Problems() // the first answer asks for the password
	if got := browser.Text("#top h1"); !strings.HasPrefix(got, a+" has been primary for ") {
		t.Errorf("the headline is %q", got)
	}
	if got := browser.Text("#relay-0 tbody tr:nth-child(2) .role"); got != "standby" {
		t.Errorf("b is %q", got)
	}
	if status, text := askPage(t, base+"/status.txt", pageToken); status != http.StatusOK || !strings.Contains(text, "● "+o.relay()+": serving\n") || !strings.Contains(text, "* 1 "+a) {
		t.Errorf("status.txt: %d\n%s", status, text)
	}

	// The page itself notes when it names the new primary: to ask it takes time.
	o.Until("the page is live", func() bool { return browser.Is("mark !== document.body.dataset.mark") })
	browser.Is(`window.marked = true, new MutationObserver(() => {
		if (!window.seen && document.querySelector("#relay-0 .primary").innerText === "` + b + `") window.seen = Date.now();
	}).observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true}), true`)
	killed := time.Now()
	o.a.Kill()
	o.Until("the page names b", func() bool { return browser.Is("!!window.seen") })
	seen := time.UnixMilli(int64(browser.Number("window.seen")))
	last := lastElection(o)
	if last.Event != "failover" || last.New != b {
		t.Fatalf("the last election is %+v", last)
	}
	t.Logf("b was primary %v after the kill of a; the page showed it %v later", last.Opened.Sub(killed), seen.Sub(last.Opened))
	wantWithin(t, "to show the new primary", seen.Sub(last.Opened), 10*time.Second)
	if !browser.Is("window.marked") {
		t.Error("the page was loaded again")
	}
	o.Until("the headline says why", func() bool { return strings.Contains(browser.Text("#top h1"), "failover: "+a) })
	o.Until("the election is shown", func() bool {
		return strings.Contains(browser.Text("#elections li:first-child"), a+" → "+b) && browser.Is("document.querySelectorAll('#elections li:first-child rect').length > 1")
	})

	// Back, by the button.
	o.a.Restart()
	o.awaitUp(o.a)
	o.Until("the page shows that a is up", func() bool { return browser.Text("#relay-0 tbody tr:nth-child(1) .role") == "standby" })
	browser.Click(`a[aria-label="Switch ` + a + `"]`)
	o.Until("the page asks", func() bool { return browser.Text("code") == "understudy switch "+a })
	if got := browser.String("document.getElementById('by').value"); got != "anna" {
		t.Errorf("the operator is %q, want the user of the password", got)
	}
	browser.Type("#typed", b) // the wrong one
	browser.Type("#reason", "repaired")
	browser.Click("button")
	o.Until("it is refused", func() bool { return strings.Contains(browser.Text("[role=alert]"), "is not the name of the host") })
	o.wantPrimary(o.b, 2)
	for _, p := range browser.Problems() {
		if !strings.Contains(p, "422") { // that is what was answered
			t.Error(p)
		}
	}
	browser.Type("#typed", a)
	browser.Click("button")
	o.Until("it is done", func() bool { return strings.Contains(browser.Text("[role=status]"), a+" is primary") })
	o.wantPrimary(o.a, 3)
	if last := lastElection(o); last.Event != "switchover" || last.By != "anna (page, from 127.0.0.1)" || !strings.Contains(last.Reason, "repaired") {
		t.Errorf("the record is %+v", last)
	}
	browser.Click("a.button")
	o.Until("the page shows it", func() bool { return browser.Text("#relay-0 .primary") == a })
	for _, p := range browser.Problems() {
		t.Error(p)
	}
}

// lastElection returns the record of the relay's last election.
func lastElection(o *operated) failover.Incident {
	o.t.Helper()
	list, err := o.client.Events(o.t.Context(), "")
	if err != nil || len(list) == 0 {
		o.t.Fatalf("events: %v, %v", list, err)
	}
	return list[len(list)-1].Incident
}

// askPage returns the status and body of a page, with a token if there is one.
func askPage(t *testing.T, address, token string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// The page shows sixty relays, and which of them have lost their primary. The end of the
// program does not wait for who watches, and a reload with another token ends them.
func TestPageOfManyRelays(t *testing.T) {
	t.Parallel()
	a := (&proctest.Host{Name: "a"}).Start(t)
	b := (&proctest.Host{Name: "b"}).Start(t)
	admin := freeAddr(t)
	base := "http://" + admin
	browser := browsertest.Open(t, base)
	var file strings.Builder
	fmt.Fprintf(&file, "admin: %q\nrelays:\n", admin)
	for n := range 60 {
		host := a.Addr()
		if n%20 == 7 {
			host = b.Addr()
		}
		fmt.Fprintf(&file, "  - {name: relay%d, listen: [%q], hosts: [%q]}\n", n, freeAddr(t), host)
	}
	path := filepath.Join(t.TempDir(), "understudy.yaml")
	if err := os.WriteFile(path, []byte(file.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := socketPath(t)
	u := start(t, "--config", path, "--control", socket)
	u.Until("all relays serve", func() bool {
		s, err := control.NewClient(socket).Status(t.Context())
		for _, r := range s.Relays {
			if r.Primary == "" {
				return false
			}
		}
		return err == nil && len(s.Relays) == 60
	})
	browser.Go(base + "/")
	u.Until("all are shown", func() bool {
		return browser.Text("#top h1") == "All 60 relays have a primary." && browser.Is("document.querySelectorAll('#relays > details').length === 60")
	})
	b.Kill()
	u.Until("three have no primary", func() bool {
		return strings.HasPrefix(browser.Text("#top h1"), "Of 60 relays: 3 without a primary") && browser.Text("#top .word span") == "No primary" &&
			browser.Text("#relay-27 .primary") == "none"
	})
	if browser.Is("!!document.querySelector('.button')") {
		t.Error("there are buttons without a token")
	}
	for _, p := range browser.Problems() {
		t.Error(p)
	}

	// A token that is set later is asked for at once.
	if err := os.WriteFile(path, []byte("admin_token_file: "+pageTokenFile(t)+"\n"+file.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	u.Signal(syscall.SIGHUP)
	u.Until("the page gets nothing more", func() bool { return strings.HasPrefix(browser.Text("#lost"), "No contact for ") })
	if status, _ := askPage(t, base+"/", ""); status != http.StatusUnauthorized {
		t.Errorf("status %d without the token", status)
	}
	if status, _ := askPage(t, base+"/", pageToken); status != http.StatusOK {
		t.Errorf("status %d with the token", status)
	}
	u.Terminate()
}
