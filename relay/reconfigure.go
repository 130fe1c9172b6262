package relay

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"
)

// settings is a Config with its defaults, and what follows from it. It never
// changes; another takes its place ([Change.Commit]).
type settings struct {
	Config
	limit int64 // on the connections that are open at one time
	most  int64 // on those of all relays together
}

func newSettings(cfg Config) *settings {
	s := &settings{Config: cfg, most: connectionLimit(cfg.Reserve)}
	s.limit = s.most
	if asked := int64(cfg.MaxConnections); asked > 0 {
		s.limit = min(s.limit, asked)
	}
	return s
}

// successor is cfg as the settings that follow c: what cannot change is that of
// c.
func (c Config) successor(cfg Config) (Config, error) {
	cfg.Name, cfg.Sockets, cfg.Loops, cfg.Spin = c.Name, c.Sockets, c.Loops, c.Spin
	cfg.Resolve, cfg.Suspect, cfg.FirstByte, cfg.Together = c.Resolve, c.Suspect, c.FirstByte, c.Together
	if err := cfg.validate(); err != nil {
		return Config{}, err
	}
	cfg = cfg.withDefaults()
	cfg.Logger = c.Logger // which bears our name already
	return cfg, nil
}

// Change is a change of settings that is prepared: new addresses are claimed,
// and nothing else has happened. One of Commit and Undo must follow; until then
// other changes of the relay wait.
type Change struct {
	engine *engine
	cfg    Config
	listeners
}

// plan does what may fail of putting cfg in the place of the settings.
//
// It is also the slow part, which may ask a name server, so gating is not held:
// a failover must not wait for it.
func (e *engine) plan(cfg Config) (*Change, error) {
	e.changing.Lock()
	c := &Change{engine: e}
	var err error
	if c.cfg, err = e.cfg.Load().successor(cfg); err != nil {
		err = fmt.Errorf("relay %s: %w", e.fixed.Name, err)
	} else if e.bound {
		c.listeners, err = e.claimChange(c.cfg.Listen)
	}
	if err != nil {
		e.changing.Unlock()
		return nil, err
	}
	return c, nil
}

// Undo gives up what was claimed.
func (c *Change) Undo() {
	defer c.engine.changing.Unlock()
	c.undo()
}

// Commit has the settings hold. An error says that the relay has ended, or that
// the system does not let a claimed address listen; nothing has changed then.
func (c *Change) Commit() error {
	e := c.engine
	defer e.changing.Unlock()
	if !e.bound {
		e.cfg.Store(newSettings(c.cfg)) // for bind
		return nil
	}
	e.gating.Lock()
	defer e.gating.Unlock()
	if e.closed {
		c.undo()
		return errClosed
	}
	if e.listens {
		for _, ln := range c.fresh {
			if err := ln.listen(); err != nil {
				c.undo()
				return err
			}
		}
	}
	e.cfg.Store(newSettings(c.cfg))
	e.apply(c.listeners)
	return nil
}

// has says whether the relay has an address with that port.
func (e *engine) has(port uint16) bool {
	return slices.ContainsFunc(e.listeners, func(ln *listener) bool {
		a, tcp := ln.addr.(*net.TCPAddr)
		return tcp && a.Port == int(port)
	})
}

// listeners is what becomes of them with other settings.
type listeners struct {
	all   []*listener // from then on, in the order of the settings
	fresh []*listener // of all, those that are new
	gone  []*listener // to be given up
}

// undo gives up what is new.
func (c listeners) undo() {
	for _, ln := range c.fresh {
		ln.close()
	}
}

// claimChange claims the addresses of listen that are not claimed yet, all of
// them or none. A listener whose address is in listen stays, and so do those
// over sockets that somebody else made.
func (e *engine) claimChange(listen []string) (listeners, error) {
	c := listeners{gone: slices.Clone(e.listeners)}
	stays := func(setting string) bool {
		k := slices.IndexFunc(c.gone, func(ln *listener) bool { return ln.setting == setting })
		if k < 0 {
			return false
		}
		c.all = append(c.all, c.gone[k])
		c.gone = slices.Delete(c.gone, k, k+1)
		return true
	}
	for stays(given) {
	}
	for _, text := range listen {
		a, err := parseListen(text)
		if err == nil && stays(a.setting()) {
			continue
		}
		var cl claim
		if err == nil {
			cl, err = claimListed(text)
		}
		if errors.Is(err, syscall.EADDRINUSE) && e.has(a.port) {
			err = fmt.Errorf("%w, perhaps by this relay itself: an address that overlaps an old one needs a restart", err)
		}
		if err != nil {
			c.undo()
			return listeners{}, err
		}
		ln := newListener(e, cl)
		c.fresh = append(c.fresh, ln)
		c.all = append(c.all, ln)
	}
	return c, nil
}
