package daemon

import (
	"context"
	"errors"
	"slices"
	"time"

	"understudy/cluster/peer"
	"understudy/internal/pemfile"
)

const (
	// watchEvery is how often another instance is asked while all is well, and watchShare how
	// much longer that is for each instance: 1,000 of them ask each other 500 times a second.
	watchEvery = time.Minute
	watchShare = 2 * time.Second

	// watchTries is how many questions in a row fail before that is told: an instance may just
	// be starting anew.
	watchTries = 2
)

// peerTrouble is how an instance does not answer the questions of this one.
type peerTrouble struct {
	tries int
	err   string // of the last one
	told  bool   // it is in the log
}

// note takes note of the outcome of a question to another instance.
func (m *membership) note(member string, err error) {
	if errors.Is(err, context.Canceled) { // the answer is not needed any more
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.troubles[member]
	if err == nil {
		if t != nil && t.told {
			m.log.Info("another instance answers again", "member", member)
		}
		delete(m.troubles, member)
		return
	}
	if t == nil {
		t = &peerTrouble{}
		m.troubles[member] = t
	}
	t.tries++
	t.err = err.Error()
	if t.tries >= watchTries && !t.told {
		t.told = true
		m.log.Warn("another instance does not answer this one: while the store is away, neither goes on without the other", "member", member, "error", err)
	}
}

// unanswered returns why a member does not answer the questions of this instance; empty
// where it does, or was not asked. Of this instance itself it returns what is wrong with its
// certificate.
func (m *membership) unanswered(member string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if member == m.cfg.Member {
		return m.ownTrouble
	}
	if t := m.troubles[member]; t != nil && t.tries >= watchTries {
		return t.err
	}
	return ""
}

// failed reports whether the last question to a member was not answered.
func (m *membership) failed(member string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.troubles[member] != nil
}

// watched is another instance that is alive.
type watched struct{ name, address, relay string }

// others returns the other instances that are heard of, and forgets the troubles of those
// that are no members any more or have ended.
func (m *membership) others() []watched {
	var all []watched
	members := map[string]bool{}
	for _, c := range m.conducted() {
		status := c.conductor.Status().Cluster
		if status == nil || !status.Known {
			return nil
		}
		for _, o := range status.Members {
			members[o.Name] = members[o.Name] || !o.Member.Leaving
			heard := o.Known && !o.Member.Leaving && o.Silent < max(m.cfg.Lease, 2*status.Beat)
			if heard && !slices.ContainsFunc(all, func(w watched) bool { return w.name == o.Name }) {
				all = append(all, watched{o.Name, o.Member.Address, c.name})
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.troubles {
		if !members[name] {
			delete(m.troubles, name)
		}
	}
	return all
}

// watch asks each other instance that is heard of from time to time, until ctx ends. Otherwise
// nobody would notice that they do not know each other before the store is away.
func (m *membership) watch(ctx context.Context) {
	asked := map[string]time.Time{}
	tick := time.NewTicker(m.cfg.Lease)
	defer tick.Stop()
	said, looked := "", time.Time{}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if m.identity != nil && time.Since(looked) >= watchEvery {
			said, looked = m.watchOwn(said), time.Now()
		}
		others := m.others()
		every := max(watchEvery, watchShare*time.Duration(len(others)))
		for _, o := range others {
			if m.failed(o.name) || time.Since(asked[o.name]) >= every {
				asked[o.name] = time.Now()
				m.note(o.name, m.question(ctx, o))
			}
		}
	}
}

// question asks a member for a lease for a record that does not exist, which it does not
// grant.
func (m *membership) question(ctx context.Context, o watched) error {
	c, err := m.client(o.name, o.address)
	if err == nil {
		_, err = c.Grants(ctx, peer.Question{Relay: o.relay})
	}
	return err
}

// watchOwn logs what is wrong with the certificate of this instance, unless it was said
// before, and returns that.
func (m *membership) watchOwn(before string) string {
	own, authorities := m.identity.Get()
	_, _, err := judge(m.cfg, own, authorities, time.Now())
	text, now := "", ""
	if err != nil {
		text, now = err.Error(), err.Error()
		if pemfile.Expired(err) { // its text has the present time
			now = "expired"
		}
	}
	m.mu.Lock()
	m.ownTrouble = text
	m.mu.Unlock()
	if now != "" && now != before {
		m.log.Error("the other instances refuse the certificate of this one, or will soon", "file", m.cfg.Peer.Cert, "error", err)
	}
	return now
}
