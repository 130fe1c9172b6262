//go:build linux

package e2e

import (
	"net/http"
	"strings"
	"testing"

	"understudy/internal/proctest"
)

// The verdict follows the relay: no pong without a primary.
func TestPingFollowsThePrimary(t *testing.T) {
	t.Parallel()
	s := newShow(t)
	s.a.Kill()
	s.b.Kill()
	verdict := freeAddr(t)
	s.Understudy = start(t, "--bind", s.addr, "--hosts", s.a.Addr()+","+s.b.Addr(), "--http", verdict, "--hold", "1s")
	unwell := func() bool {
		code, body := get(t, "http://"+verdict+"/ping")
		return code == http.StatusServiceUnavailable && !strings.Contains(body, "pong")
	}
	well := func() bool {
		code, body := get(t, "http://"+verdict+"/ping")
		return code == http.StatusOK && body == "pong"
	}
	s.WaitLog("http listener ready")
	s.Until("503 without a primary", unwell)
	if _, err := proctest.Greeting(s.addr, patience); err == nil {
		t.Error("a client is served without a host")
	}
	s.a.Restart()
	s.Until("200 with a primary", well)
	s.awaitGreeting("a")
	s.first = s.look()
	s.a.Kill()
	s.Until("503 when it is lost", unwell)
	s.b.Restart()
	s.Until("200 with the next one", well)
	s.lookAgain("b")
	s.end()
}
