package roles

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/role"
)

const (
	// renewEvery is the time after which a session is opened anew, to find out whether
	// logins still work. Each time is longer or shorter by up to a tenth, so that the
	// sessions of many relays are not opened together.
	renewEvery = 10 * time.Minute

	// firstRetry and lastRetry are the times between logins that are refused.
	firstRetry = time.Second
	lastRetry  = time.Minute

	// goodbyeTimeout limits the goodbye to a host.
	goodbyeTimeout = time.Second
)

// session is the session with one host.
type session struct {
	asker *Asker
	host  string
	log   hclog.Logger
	renew time.Duration // see renewEvery

	// Guarded by Pool.mu:
	used time.Time
	idle *time.Timer

	// turn is held by the question in progress, since a session has one at a time. It
	// guards everything below.
	turn   chan struct{}
	ended  bool
	client client    // nil: none is open
	until  time.Time // when to open a new one

	refusal error         // the last login was refused
	with    string        // password of that login
	retry   time.Time     // not before the next login
	pause   time.Duration // before it
}

func newSession(a *Asker, host string, log hclog.Logger) *session {
	return &session{asker: a, host: host, log: log.With("host", host), renew: renewEvery, turn: make(chan struct{}, 1)}
}

// ask asks the host for its role, in a new session if there is none or it is lost.
func (s *session) ask(ctx context.Context) (role.Fact, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return role.Fact{}, fmt.Errorf("an earlier check of the role is not answered: %w", ctx.Err())
	}
	if s.ended {
		return role.Fact{}, context.Canceled
	}
	opened, err := s.login(ctx)
	if s.client == nil {
		return role.Fact{}, err
	}
	fact, asked := s.client.ask(ctx)
	if s.lost(asked) && !opened && ctx.Err() == nil { //nolint:contextcheck // a goodbye has a limit of its own
		// The host or a firewall ended the session since the last question.
		if _, err = s.login(ctx); s.client == nil {
			return role.Fact{}, err
		}
		fact, asked = s.client.ask(ctx)
		s.lost(asked) //nolint:contextcheck // likewise
	}
	if err != nil && asked == nil {
		fact.Detail = oneLine(fmt.Sprintf("%s; a new session is not possible: %v", fact.Detail, err))
	}
	return fact, asked
}

// lost closes the session if err means that it cannot be used any more.
func (s *session) lost(err error) bool {
	_, starting := errors.AsType[*startingError](err)
	if err == nil || starting || errors.Is(err, ErrRefused) {
		return false
	}
	s.hangUp()
	return true
}

// login opens a session if there is none, or if the one there is is old. The old one
// ends when the new one is open: where new ones are refused, the host goes on saying
// its role in the old one.
func (s *session) login(ctx context.Context) (opened bool, err error) {
	now := time.Now()
	if s.client != nil && now.Before(s.until) {
		return false, nil
	}
	password, err := s.asker.cfg.password()
	if s.refusal != nil && now.Before(s.retry) && (err != nil || password == s.with) {
		return false, s.refusal
	}
	var c client
	if err == nil {
		c, err = s.asker.open(ctx, s.host, password)
	}
	switch {
	case err == nil:
		s.hangUp() //nolint:contextcheck // a goodbye has a limit of its own
		s.client = c
		s.until = now.Add(s.renew + time.Duration((rand.Float64()-0.5)*0.2*float64(s.renew))) //nolint:gosec // G404: no secret
		if s.refusal != nil {
			s.log.Info("login is accepted again")
		}
		s.refusal, s.pause = nil, 0
		return true, nil
	case errors.Is(err, ErrRefused):
		s.pause = min(max(2*s.pause, firstRetry), lastRetry)
		s.retry, s.with = now.Add(s.pause), password
		if s.client != nil && s.refusal == nil {
			s.log.Warn("a new session is refused; the role comes from the old one", "error", err)
		}
		s.refusal = err
	}
	return false, err
}

// hangUp says goodbye, if a session is open.
func (s *session) hangUp() {
	if s.client == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), goodbyeTimeout)
	defer cancel()
	s.client.close(ctx)
	s.client = nil
}

// end ends the session after the question in progress.
func (s *session) end() {
	s.turn <- struct{}{}
	s.ended = true
	s.hangUp()
	<-s.turn
}
