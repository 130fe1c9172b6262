package roles

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/role"
)

// server is a host of a protocol that the tests speak, without a network.
type server struct {
	mu       sync.Mutex
	password string // that it accepts
	fact     role.Fact
	err      error // instead of an answer
	login    error // instead of a login

	logins, open, most, goodbyes int
}

func (s *server) do(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// endSessions ends all sessions, as a server that starts again does.
func (s *server) endSessions() {
	s.do(func() { s.open = 0 })
}

func (s *server) open1(to target) (client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logins++
	if s.login != nil {
		return nil, s.login
	}
	if to.password != s.password {
		return nil, refused(errors.New("wrong password"))
	}
	s.open++
	s.most = max(s.most, s.open)
	return &sessionOf{server: s, alive: true}, nil
}

// protocolOf makes a server a protocol.
type protocolOf struct{ *server }

func (p protocolOf) open(_ context.Context, to target) (client, error) { return p.open1(to) }

type sessionOf struct {
	*server
	alive bool
}

func (c *sessionOf) ask(context.Context) (role.Fact, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == 0 {
		c.alive = false
		return role.Fact{}, errors.New("the session is gone")
	}
	return c.fact, c.err
}

func (c *sessionOf) close(context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.goodbyes++
	if c.alive {
		c.open--
	}
}

// newAsker returns an Asker of s, and the file with its password.
func newAsker(t *testing.T, s *server) (*Asker, *Pool, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "password")
	write(t, file, s.password+"\n")
	pool := NewPool(hclog.NewNullLogger())
	a, err := pool.NewAsker("settings", Config{
		Protocol: Redis, PasswordFile: file, TLS: TLSConfig{Mode: TLSOff}, Interval: time.Second,
		Dial: func(context.Context, string, uint16) (net.Conn, error) {
			conn, other := net.Pipe()
			_ = other.Close() // nothing is sent
			return conn, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	a.protocol = protocolOf{s}
	return a, pool, file
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func ask(a *Asker) (role.Fact, error) { return a.Ask(context.Background(), "db1:1", netip.Addr{}) }

func TestOneSessionStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{password: "word", fact: role.Fact{Role: role.Primary, Term: 3}}
		a, pool, _ := newAsker(t, s)
		b, err := pool.NewAsker("settings", a.cfg) // of another relay
		if err != nil {
			t.Fatal(err)
		}
		b.protocol = a.protocol
		for range 500 {
			for _, asker := range []*Asker{a, b} {
				if fact, err := ask(asker); err != nil || fact != s.fact {
					t.Fatalf("ask: %+v, %v, want %+v", fact, err, s.fact)
				}
			}
		}
		if s.logins != 1 || s.open != 1 {
			t.Errorf("%d logins, %d sessions after 1000 questions, want 1, 1", s.logins, s.open)
		}
		pool.Close()
		if s.open != 0 || s.goodbyes != 1 {
			t.Errorf("%d sessions, %d goodbyes at the end, want 0, 1", s.open, s.goodbyes)
		}
		if _, err := ask(a); !errors.Is(err, context.Canceled) {
			t.Errorf("ask after the end: %v, want %v", err, context.Canceled)
		}
	})
}

func TestSessionsAreOpenedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{password: "word", fact: role.Fact{Role: role.Primary}}
		a, pool, _ := newAsker(t, s)
		defer pool.Close()
		for range 3600 { // an hour
			if _, err := ask(a); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if s.logins < 6 || s.logins > 7 || s.open != 1 || s.most > 2 || s.goodbyes != s.logins-1 {
			t.Errorf("in an hour %d logins, %d goodbyes, %d sessions, %d at most; want 6 or 7, one less, 1, 2", s.logins, s.goodbyes, s.open, s.most)
		}
	})
}

// The password of the server changes: the session goes on, the next login is refused
// and says so in the facts, and works as soon as the file has the new password.
func TestNewPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{password: "word", fact: role.Fact{Role: role.Primary}}
		a, pool, file := newAsker(t, s)
		defer pool.Close()
		if _, err := ask(a); err != nil {
			t.Fatal(err)
		}
		s.do(func() { s.password = "other" })
		time.Sleep(12 * time.Minute)
		// Nobody asked for so long that the session ended, so this is the new one.
		if fact, err := ask(a); !errors.Is(err, ErrRefused) || fact.Role != role.Unknown || fact.Detail == "" {
			t.Errorf("ask with an old password: %+v, %v, want unknown and the reason", fact, err)
		}
		write(t, file, "other\n")
		if fact, err := ask(a); err != nil || fact.Role != role.Primary {
			t.Errorf("ask with the new password: %+v, %v, want primary", fact, err)
		}

		s.do(func() { s.password = "third" })
		var fact role.Fact
		var err error
		for range 12 * 60 {
			if fact, err = ask(a); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if fact.Role != role.Primary || fact.Detail == "" {
			t.Errorf("after logins are refused: %+v, want primary, and that new sessions are refused", fact)
		}
		if s.open != 1 {
			t.Errorf("%d sessions, want 1", s.open)
		}
	})
}

func TestRefusedLoginsAreRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{password: "word", fact: role.Fact{Role: role.Primary}, login: refused(errors.New("no place"))}
		a, pool, _ := newAsker(t, s)
		defer pool.Close()
		for range 600 {
			if _, err := ask(a); !errors.Is(err, ErrRefused) {
				t.Fatalf("ask: %v, want %v", err, ErrRefused)
			}
			time.Sleep(time.Second)
		}
		// After 0, 1, 3, 7, 15, 31, 63 s, then each minute.
		if s.logins < 12 || s.logins > 16 {
			t.Errorf("%d logins in ten minutes of refusals, want about 15", s.logins)
		}
		s.do(func() { s.login = nil })
		time.Sleep(time.Minute)
		if fact, err := ask(a); err != nil || fact.Role != role.Primary {
			t.Errorf("ask a minute after there is place: %+v, %v, want primary", fact, err)
		}
	})
}

// A session that the host ended is no failure of the host, if it takes a new one.
func TestLostSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{password: "word", fact: role.Fact{Role: role.Replica}}
		a, pool, _ := newAsker(t, s)
		defer pool.Close()
		if _, err := ask(a); err != nil {
			t.Fatal(err)
		}
		s.endSessions()
		if fact, err := ask(a); err != nil || fact.Role != role.Replica || s.logins != 2 {
			t.Errorf("ask after the session was lost: %+v, %v with %d logins, want replica with 2", fact, err, s.logins)
		}
		s.endSessions()
		s.do(func() { s.login = errors.New("connection refused") })
		if _, err := ask(a); err == nil || errors.Is(err, ErrRefused) {
			t.Errorf("ask of a host that is down: %v, want a failure", err)
		}
		s.do(func() { s.login = &startingError{errors.New("in recovery")} })
		if fact, err := ask(a); err != nil || fact.Role != role.Starting || fact.Detail != "in recovery" {
			t.Errorf("ask of a host that starts: %+v, %v, want starting", fact, err)
		}
	})
}

// A host that does not answer fails all the checks that wait for it.
func TestHungSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{password: "word", fact: role.Fact{Role: role.Primary}}
		a, pool, _ := newAsker(t, s)
		defer pool.Close()
		if _, err := ask(a); err != nil {
			t.Fatal(err)
		}
		held := a.pool.sessions[sessionKey{"settings", "db1:1", netip.Addr{}}]
		held.turn <- struct{}{} // a question in progress
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Ask(ctx, "db1:1", netip.Addr{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ask beside a question in progress: %v, want %v", err, context.DeadlineExceeded)
		}
		<-held.turn
	})
}

// A relay that is removed asks no more; its session ends.
func TestUnusedSessionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{password: "word", fact: role.Fact{Role: role.Primary}}
		a, pool, _ := newAsker(t, s)
		if _, err := ask(a); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Second)
		if _, err := ask(a); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Second)
		synctest.Wait()
		s.do(func() {
			if s.open != 1 {
				t.Errorf("%d sessions 50s after a question, want 1", s.open)
			}
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		s.do(func() {
			if s.open != 0 || s.goodbyes != 1 {
				t.Errorf("%d sessions, %d goodbyes after 110s without a question, want 0, 1", s.open, s.goodbyes)
			}
		})
		if _, err := ask(a); err != nil || s.open != 1 {
			t.Errorf("ask after that: %v with %d sessions, want a new one", err, s.open)
		}
		pool.Close()
	})
}

func TestNewAskerNamesEveryBadField(t *testing.T) {
	pool := NewPool(hclog.NewNullLogger())
	defer pool.Close()
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "role: user: it is empty\ninterval: 0s is not positive\ndial: it is nil\ntls: \"\" is none of auto, off, prefer, require, verify\nprotocol: \"\" is none of postgres, mysql, redis"},
		{Config{Protocol: Redis, TLS: TLSConfig{Mode: TLSPrefer}, Interval: 1, Dial: func(context.Context, string, uint16) (net.Conn, error) { return nil, nil }}, "role: tls: redis cannot fall back from TLS: want require or off"},
	} {
		if _, err := pool.NewAsker("", tt.cfg); err == nil || err.Error() != tt.want {
			t.Errorf("NewAsker(%+v):\n%v\nwant\n%s", tt.cfg, err, tt.want)
		}
	}
}
