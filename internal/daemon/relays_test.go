package daemon

import (
	"testing"

	"understudy/config"
	"understudy/failover"
	"understudy/relay"
)

// A zero in the settings is a zero in the parts, and the defaults of the
// settings are complete: the parts have no defaults and accept them.
func TestSettingsReachThePartsAsTheyAre(t *testing.T) {
	zeros := map[string][]string{}
	for _, flag := range []string{"hold", "stay", "dns-hold", "idle-timeout", "user-timeout", "drain-timeout"} {
		zeros[flag] = []string{"0"}
	}
	for name, flags := range map[string]map[string][]string{"defaults": {}, "zeros": zeros} {
		flags["bind"], flags["hosts"] = []string{"127.0.0.1:1", "unix:/run/understudy.test"}, []string{"192.0.2.1:5432"}
		settings, _, err := config.Load(config.Given{Flags: flags})
		if err != nil {
			t.Fatal(err)
		}
		engine := new(service).relayConfig(nil, settings.Relays[0], settings)
		conductorConfig, err := FailoverConfig(settings.Relays[0], nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := relay.New(engine)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer r.Close()
		conductorConfig.Gate = r
		if _, err := failover.New(conductorConfig); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		zero := conductorConfig.Hold == 0 && conductorConfig.Stay == 0 && conductorConfig.DNSHold == 0 &&
			engine.Hold == 0 && engine.IdleTimeout == 0 && engine.UserTimeout == 0 && engine.DrainTimeout == 0
		if zero != (name == "zeros") {
			t.Errorf("%s: the relay has %+v, its conductor %+v", name, engine, conductorConfig)
		}
	}
}
