package health

import (
	"crypto/sha256"
	"net/http"
	"sync"
	"time"
)

const (
	// reuseFor is how long the replies of one replay stand for later requests.
	reuseFor = time.Second
	// maxShared limits the different questions whose replies are shared. A
	// flood of different ones must not grow without end.
	maxShared = 64
)

// shareable reports whether the replies to r may be handed to others. Not when
// the request carries a body or any of the headers by which people prove who
// they are; an Authorization that was for us says nothing to the services. A
// secret in a header that is not known here is safe too: it is part of the
// question's key.
func shareable(r *http.Request, authorized bool) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || r.Body != http.NoBody {
		return false
	}
	for _, name := range []string{"Authorization", "Cookie", "Proxy-Authorization"} {
		if _, sent := r.Header[name]; sent && (name != "Authorization" || !authorized) {
			return false
		}
	}
	return true
}

// coalescer lets identical questions that come together, or within
// reuseFor, share one replay.
type coalescer struct {
	mu     sync.Mutex // guards everything below
	shared map[[sha256.Size]byte]*sharedReplay
}

// sharedReplay is one replay, under way or still good for reuse.
type sharedReplay struct {
	done    chan struct{} // closed when replies are there
	replies []reply       // nil when the replay came to nothing
	until   time.Time     // end of reuse; zero while under way
}

// do returns the replies of a replay of key: of one that is under way or still
// fresh, else of replay, which then runs to its end in this goroutine for
// whoever else comes. Shared tells them apart.
func (c *coalescer) do(key [sha256.Size]byte, replay func() []reply) (replies []reply, shared bool) {
	c.mu.Lock()
	now := time.Now()
	if s := c.shared[key]; s != nil && (s.until.IsZero() || now.Before(s.until)) {
		c.mu.Unlock()
		<-s.done
		return s.replies, true
	}
	for k, s := range c.shared {
		if !s.until.IsZero() && !now.Before(s.until) {
			delete(c.shared, k)
		}
	}
	if len(c.shared) >= maxShared {
		c.mu.Unlock()
		return replay(), false
	}
	if c.shared == nil {
		c.shared = make(map[[sha256.Size]byte]*sharedReplay)
	}
	s := &sharedReplay{done: make(chan struct{})}
	c.shared[key] = s
	c.mu.Unlock()

	// Deferred: those who wait go on even if replay panics.
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		s.replies, s.until = replies, time.Now()
		if len(replies) > 0 { // that there was no turn says nothing about the services
			s.until = s.until.Add(reuseFor)
		}
		close(s.done)
	}()
	return replay(), false
}
