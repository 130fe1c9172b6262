package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"
	"time"

	"understudy/internal/bind"
)

// Change is a prepared change of settings: new addresses are bound, and nothing
// else has happened. Either Commit or Undo must follow; until then other
// changes of the relay wait.
type Change struct {
	relay *Relay
	cfg   Config
	listeners
}

// Reconfigure gives the relay other settings, at any time before the end of Run.
// What did not change is not touched: connections, counters, the gate and its
// epoch, and each listening socket whose address is in both settings, with the
// clients in its queue. A port 0 in both is the same address.
//
// An address that is new is bound, and listens if the gate is open or holds. One
// that is no longer listed is given up, with the file if it is a unix socket's;
// connections that came over it live on, and the clients in its queue are
// admitted first, as many as there is room for, or, when the gate is shut,
// reset.
//
// An error names what is wrong with cfg, or an address that cannot be bound;
// nothing has changed then. On Linux an address that overlaps one that is given
// up, such as "192.0.2.1:80" in the place of ":80", cannot be bound.
//
// Every other field of cfg takes effect as documented at [Config], except Name,
// Sockets, Suspect, FirstByte, Paced, Lease, Engine and Logger, which are ignored.
func (r *Relay) Reconfigure(cfg Config) error {
	c, err := r.Prepare(cfg)
	if err != nil {
		return err
	}
	return c.Commit()
}

// Prepare is the first half of [Relay.Reconfigure], for a caller that must
// prepare other changes before it commits to all of them: it binds the
// addresses that are new, and clients notice nothing. The error is that of
// Reconfigure.
func (r *Relay) Prepare(cfg Config) (*Change, error) {
	// Binding can be slow, so gating is not held: a failover must not wait for it.
	r.changing.Lock()
	c := &Change{relay: r}
	var err error
	if c.cfg, err = r.cfg.Load().successor(cfg); err != nil {
		err = fmt.Errorf("relay %s: %w", r.fixed.Name, err)
	} else if r.bound {
		c.listeners, err = r.bindChange(c.cfg)
	}
	if err != nil {
		r.changing.Unlock()
		return nil, err
	}
	return c, nil
}

// Undo gives up what was bound.
func (c *Change) Undo() {
	defer c.relay.changing.Unlock()
	c.undo()
}

// Commit puts the settings into effect. An error means that the relay has
// ended, or that the system does not let a bound address listen; nothing has
// changed then.
func (c *Change) Commit() error {
	r := c.relay
	defer r.changing.Unlock()
	if !r.bound {
		r.cfg.Store(newSettings(c.cfg)) // for bind
		return nil
	}
	r.gating.Lock()
	defer r.gating.Unlock()
	if r.closed {
		c.undo()
		return errClosed
	}
	if r.listens {
		for _, ln := range c.fresh {
			if err := r.listen(ln); err != nil {
				c.undo()
				return err
			}
		}
	}
	r.cfg.Store(newSettings(c.cfg))
	r.canaries.do(func(t *Relay) { t.cfg.Store(newSettings(twinConfig(c.cfg, t.fixed.Together))) })
	r.missing = c.missing
	select {
	case r.lacks <- struct{}{}:
	default: // it is known already
	}
	r.replaceLocked(c.listeners)
	return nil
}

// replaceLocked replaces the listeners and has the data plane apply the
// settings. The clients in the queue of a removed listener are admitted first,
// if there is a primary.
func (r *Relay) replaceLocked(c listeners) {
	if !slices.Equal(c.all, r.listeners) {
		r.plane.leave(c.removed)
		r.listeners = c.all
		for _, ln := range c.removed {
			ln.Close()
		}
	}
	for _, ln := range r.listeners {
		if ln.Listening() {
			r.plane.tune(ln)
		}
	}
	r.plane.apply()
	r.canaries.do(func(t *Relay) { t.plane.apply() })
}

// bindEvery is the time between two tries to bind an address that is missing.
const bindEvery = time.Second

// attend binds the addresses that this machine does not have yet, as soon as it has
// them, and measures how many clients usually come, until ctx ends.
func (r *Relay) attend(ctx context.Context) {
	measure := time.NewTimer(r.usual.after())
	defer measure.Stop()
	said := map[string]bool{}
	for {
		r.changing.Lock()
		missing := r.missing
		r.changing.Unlock()
		for _, err := range missing {
			if !said[err.Error()] {
				r.log.Warn("address is not on this machine, retrying", "relay", r.fixed.Name, "error", err)
				said[err.Error()] = true
			}
		}
		var again <-chan time.Time // never, when nothing is missing
		if len(missing) > 0 {
			again = time.After(bindEvery)
		} else {
			clear(said)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.lacks:
			continue
		case now := <-measure.C:
			r.usual.note(now, r.plane.stats().Accepted, r.gate.Load())
			measure.Reset(r.usual.after())
			continue
		case <-again:
		}
		fresh, err := r.bindMissing()
		for _, addr := range fresh {
			r.log.Info("address bound", "relay", r.fixed.Name, "address", addr)
		}
		if err != nil && !said[err.Error()] {
			r.log.Warn("address cannot be bound, retrying", "relay", r.fixed.Name, "error", err)
			said[err.Error()] = true
		}
	}
}

// bindMissing tries to bind what is missing and returns what it has bound.
func (r *Relay) bindMissing() (bound []net.Addr, err error) {
	r.changing.Lock()
	c := &Change{relay: r, cfg: r.cfg.Load().Config}
	c.listeners, err = r.bindChange(c.cfg)
	if err != nil || len(c.fresh) == 0 {
		r.changing.Unlock()
		return nil, err
	}
	for _, ln := range c.fresh {
		bound = append(bound, ln.Addr)
	}
	if err := c.Commit(); err != nil { // unlocks
		return nil, err
	}
	return bound, nil
}

// has reports whether the relay has an address with that port.
func (r *Relay) has(port uint16) bool {
	return slices.ContainsFunc(r.listeners, func(ln *listener) bool {
		a, tcp := ln.Addr.(*net.TCPAddr)
		return tcp && a.Port == int(port)
	})
}

// listeners is the effect of other settings on the listeners.
type listeners struct {
	all     []*listener // from then on, in the order of the settings
	fresh   []*listener // of all, those that are new
	removed []*listener // to be given up

	missing []error // addresses that this machine does not have yet
	restore func()  // restores mode and owner of the files of unix sockets; may be nil
}

// undo gives up what is new.
func (c listeners) undo() {
	for _, ln := range c.fresh {
		ln.Close()
	}
	if c.restore != nil {
		c.restore()
	}
}

// bindChange binds the addresses of cfg that are not bound yet, all of them
// or none, except those that are missing. A listener whose address is in cfg
// stays, with the mode and owner of cfg, and so do those over sockets that
// another program created.
func (r *Relay) bindChange(cfg Config) (listeners, error) {
	c := listeners{removed: slices.Clone(r.listeners)}
	stays := func(setting string) bool {
		k := slices.IndexFunc(c.removed, func(ln *listener) bool { return ln.setting == setting })
		if k < 0 {
			return false
		}
		c.all = append(c.all, c.removed[k])
		c.removed = slices.Delete(c.removed, k, k+1)
		return true
	}
	for stays(given) {
	}
	for _, text := range cfg.Listen {
		a, err := parseListen(text)
		if err == nil && stays(a.setting()) {
			continue
		}
		var ln *listener
		if err == nil {
			ln, err = bindListed(text, cfg)
		}
		if isMissing(err) {
			c.missing = append(c.missing, err)
			continue
		}
		if errors.Is(err, syscall.EADDRINUSE) && r.has(a.Port) {
			err = fmt.Errorf("%w, perhaps by this relay itself: an address that overlaps an old one needs a restart", err)
		}
		if err != nil {
			c.undo()
			return listeners{}, err
		}
		c.fresh = append(c.fresh, ln)
		c.all = append(c.all, ln)
	}
	if err := r.changeFiles(&c, cfg.SocketFile); err != nil {
		c.undo()
		return listeners{}, err
	}
	return c, nil
}

// changeFiles sets the mode and owner of the files of the unix sockets that
// stay.
func (r *Relay) changeFiles(c *listeners, file bind.File) error {
	was := r.cfg.Load().SocketFile
	if file == was {
		return nil
	}
	var changed []*listener
	c.restore = func() {
		for _, ln := range changed {
			_ = ln.SetFile(was) // the old owner and mode were allowed before
		}
	}
	for _, ln := range c.all {
		if !slices.Contains(c.fresh, ln) {
			changed = append(changed, ln)
			if err := ln.SetFile(file); err != nil {
				return fmt.Errorf("listen on %s: %w", ln.Addr, err)
			}
		}
	}
	return nil
}
