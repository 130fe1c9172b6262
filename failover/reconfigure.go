package failover

import (
	"context"
	"fmt"

	"understudy/selector"
)

// settings are the replaceable settings of a Conductor and their prediction.
type settings struct {
	Config
	keys       []string // of the checks, for the Checker
	prediction Prediction
	taken      chan struct{} // closed when they are applied, or replaced before
}

// newSettings returns cfg as settings.
func newSettings(cfg Config) *settings {
	r := &settings{Config: cfg, prediction: Predict(cfg)}
	for _, k := range cfg.Checks {
		r.keys = append(r.keys, k.Name+"\x00"+k.Spec+"\x00"+k.Timeout.String())
	}
	return r
}

// cfg returns the current settings. Callers must not change them.
func (c *Conductor) cfg() *Config { return &c.settings.Load().Config }

// Reconfigure replaces the conductor's settings, and returns when the new ones
// are applied. The primary stays if it is among the hosts, without an election
// or a trigger; otherwise it is lost, and the next one is elected. The results
// of a host are kept for every check that stays the same, and so are locks and
// incidents. Reconfigure waits for a switch in progress; when ctx ends before,
// the settings are applied all the same. Name, Gate, Scripts, Checker, Base, Names,
// StateFile, Changed, Stats, Usual, Silence, Hang, DialCanary, TryCanary and Logger are
// not replaced, whatever cfg says, and of Cluster only the settings that all instances
// must have alike are.
//
// An error that is neither [ErrOver] nor that of ctx names every invalid field
// of cfg, and nothing has changed.
func (c *Conductor) Reconfigure(ctx context.Context, cfg Config) error {
	next, err := c.successor(cfg)
	if err != nil {
		return err
	}
	err = c.request(ctx, func() selector.Event {
		if c.next != nil {
			close(c.next.taken) // was never applied
		}
		c.next = next
		return selector.Tick{}
	})
	if err != nil {
		return err
	}
	select {
	case <-next.taken:
		return nil
	case <-c.over:
		return ErrOver
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Accepts returns the error that [Conductor.Reconfigure] would return for cfg.
func (c *Conductor) Accepts(cfg Config) error {
	_, err := c.successor(cfg)
	return err
}

// successor returns cfg as settings that replace those of c.
func (c *Conductor) successor(cfg Config) (*settings, error) {
	was := c.cfg()
	cfg.Name, cfg.Gate, cfg.Scripts, cfg.StateFile = was.Name, was.Gate, was.Scripts, was.StateFile
	cfg.Checker, cfg.Base, cfg.DialCanary, cfg.TryCanary = was.Checker, was.Base, was.DialCanary, was.TryCanary
	cfg.Cluster = was.Cluster.successor(cfg.Cluster)
	cfg.NoticeScripts, cfg.Deliver = was.NoticeScripts, was.Deliver
	cfg.Names, cfg.Changed, cfg.Stats, cfg.Usual, cfg.Silence, cfg.Hang, cfg.Logger = was.Names, was.Changed, was.Stats, was.Usual, was.Silence, was.Hang, was.Logger
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("failover config: %w", err)
	}
	if _, err := selector.New(cfg.election()); err != nil {
		return nil, err
	}
	next := newSettings(cfg)
	next.taken = make(chan struct{})
	return next, nil
}

// takeSettings applies the settings of the last Reconfigure. An election must be
// carried out with one set of settings, so a switch is completed first.
func (c *Conductor) takeSettings(ctx context.Context) {
	next := c.next
	if next == nil || c.machine.Snapshot().Phase == selector.Switching {
		return
	}
	c.next = nil
	c.settings.Store(next)
	c.measure.keep(&next.Config)
	c.applyCanary(ctx)
	c.giveUpDrill(errSettings)
	c.step(ctx, selector.Reconfigure(next.election()))
	c.relocked = true // a new host may be locked
	c.agree.reconfigured(next.Cluster)
	c.answers = append(c.answers, func() { close(next.taken) })
	c.log.Info("settings changed", "hosts", next.Hosts)
	c.logPrediction()
}
