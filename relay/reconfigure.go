package relay

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"
)

// settings is a Config with its defaults, and what follows from it. It never
// changes; another takes its place ([engine.reconfigure]).
type settings struct {
	Config
	limit int64 // on the connections that are open at one time
	debug bool  // the end of each connection is logged
}

func newSettings(cfg Config) *settings {
	return &settings{Config: cfg, limit: connectionLimit(cfg.MaxConnections, cfg.Reserve), debug: cfg.Logger.IsDebug()}
}

// successor is cfg as the settings that follow c: what cannot change is that of
// c.
func (c Config) successor(cfg Config) (Config, error) {
	cfg.Name, cfg.Sockets, cfg.Loops, cfg.Spin = c.Name, c.Sockets, c.Loops, c.Spin
	cfg.Resolve, cfg.Suspect, cfg.FirstByte = c.Resolve, c.Suspect, c.FirstByte
	if err := cfg.validate(); err != nil {
		return Config{}, err
	}
	cfg = cfg.withDefaults()
	cfg.Logger = c.Logger // which bears our name already
	return cfg, nil
}

// reconfigure puts cfg in the place of the settings, or changes nothing.
//
// The slow part, which may ask a name server, is done before gating is taken: a
// failover must not wait for it.
func (e *engine) reconfigure(cfg Config) error {
	e.changing.Lock()
	defer e.changing.Unlock()
	cfg, err := e.cfg.Load().successor(cfg)
	if err != nil {
		return fmt.Errorf("relay %s: %w", e.fixed.Name, err)
	}
	if !e.bound {
		e.cfg.Store(newSettings(cfg)) // for bind
		return nil
	}
	c, err := e.claimChange(cfg.Listen)
	if err != nil {
		return err
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
	e.cfg.Store(newSettings(cfg))
	e.apply(c)
	return nil
}

// has says whether the relay has an address with that port.
func (e *engine) has(port uint16) bool {
	return slices.ContainsFunc(e.listeners, func(ln *listener) bool {
		a, tcp := ln.addr.(*net.TCPAddr)
		return tcp && a.Port == int(port)
	})
}

// change is what becomes of the listeners with other settings.
type change struct {
	all   []*listener // from then on, in the order of the settings
	fresh []*listener // of all, those that are new
	gone  []*listener // to be given up
}

// undo gives up what is new.
func (c change) undo() {
	for _, ln := range c.fresh {
		ln.close()
	}
}

// claimChange claims the addresses of listen that are not claimed yet, all of
// them or none. A listener whose address is in listen stays, and so do those
// over sockets that somebody else made.
func (e *engine) claimChange(listen []string) (change, error) {
	c := change{gone: slices.Clone(e.listeners)}
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
			return change{}, err
		}
		ln := newListener(e, cl)
		c.fresh = append(c.fresh, ln)
		c.all = append(c.all, ln)
	}
	return c, nil
}
