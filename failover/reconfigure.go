package failover

import (
	"context"
	"fmt"

	"understudy/selector"
)

// rules are the settings, which may be replaced, and what they promise.
type rules struct {
	Config
	prediction Prediction
	taken      chan struct{} // closed when they hold, or others hold instead
}

// cfg returns the settings that hold now. Nobody may change them.
func (c *Conductor) cfg() *Config { return &c.rules.Load().Config }

// Reconfigure gives the conductor other settings in place of those it has, and
// returns when they hold. The primary stays if it is among the hosts, without
// an election or a trigger; otherwise it is lost, and the next one is elected.
// What is known of a host stays as far as it is asked the same questions, and
// so do locks and incidents. A switch that is under way is waited for; when ctx
// ends before, the settings are taken all the same. Name, Gate, Scripts,
// Keeper, Stats and Logger stay as they are, whatever cfg says.
//
// An error that is not [ErrOver] or that of ctx names every invalid field of
// cfg, and nothing has changed.
func (c *Conductor) Reconfigure(ctx context.Context, cfg Config) error {
	next, err := c.successor(cfg)
	if err != nil {
		return err
	}
	err = c.request(ctx, func() selector.Event {
		if c.next != nil {
			close(c.next.taken) // never held
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

// Accepts returns the error that [Conductor.Reconfigure] would have about cfg.
func (c *Conductor) Accepts(cfg Config) error {
	_, err := c.successor(cfg)
	return err
}

// successor is cfg as the settings that follow those of c.
func (c *Conductor) successor(cfg Config) (*rules, error) {
	was := c.cfg()
	cfg.Name, cfg.Gate, cfg.Scripts, cfg.Keeper = was.Name, was.Gate, was.Scripts, was.Keeper
	cfg.Stats, cfg.Logger = was.Stats, was.Logger
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("failover config: %w", err)
	}
	cfg = cfg.withDefaults()
	if _, err := selector.New(cfg.election()); err != nil {
		return nil, err
	}
	return &rules{cfg, Predict(cfg), make(chan struct{})}, nil
}

// takeRules has the settings hold that somebody gave. What is done for an
// election is done by one set of them, so a switch comes to its end first.
func (c *Conductor) takeRules(ctx context.Context) {
	next := c.next
	if next == nil || c.machine.Snapshot().Phase == selector.Switching {
		return
	}
	c.next = nil
	c.rules.Store(next)
	c.giveUpDrill(errSettings)
	c.step(ctx, selector.Rules(next.election()))
	c.relocked = true // a host that is new may be locked
	c.answers = append(c.answers, func() { close(next.taken) })
	c.log.Info("settings changed", "hosts", next.Hosts)
	c.logPrediction()
}
