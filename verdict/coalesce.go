package verdict

import (
	"crypto/sha256"
	"net/http"
	"sync"
	"time"
)

const (
	// reuseFor is the time for which the replies of one replay are used for later
	// requests.
	reuseFor = time.Second
	// maxShared limits the different requests whose replies are shared, so that
	// a flood of different ones does not use memory without limit.
	maxShared = 64
)

// shareable reports whether the replies to r may be used for other requests: not
// when r has a body or a header with credentials. An Authorization that was for
// us is removed before the replay and does not count. A secret in another header
// is safe too: it is part of the request's key.
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

// coalescer lets identical requests that arrive during a replay, or within
// reuseFor after it, share that replay.
type coalescer struct {
	mu     sync.Mutex // guards everything below
	shared map[[sha256.Size]byte]*sharedReplay
}

// sharedReplay is one replay, in progress or still to be reused.
type sharedReplay struct {
	done    chan struct{} // closed when replies is set
	replies []reply       // nil when the replay did not run
	until   time.Time     // end of reuse; zero while in progress
}

// do returns the replies to the request with this key: with shared, of a replay
// in progress or finished within reuseFor; otherwise of replay, which runs to its
// end in this goroutine and is shared with requests that arrive meanwhile.
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

	// Deferred, so that waiting requests continue even if replay panics.
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		s.replies, s.until = replies, time.Now()
		if len(replies) > 0 { // a replay that did not run has no result to reuse
			s.until = s.until.Add(reuseFor)
		}
		close(s.done)
	}()
	return replay(), false
}
