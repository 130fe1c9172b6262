package main

import (
	"errors"
	"fmt"
	"os"

	"understudy/config"
	"understudy/hooks"
)

// inspectScripts reports every script that could not be run when it is needed.
// Of a directory of triggers only its absence is an error: files in it come
// and go, and those that cannot be run are warned about at each election.
func inspectScripts(settings config.Settings) error {
	var errs []error
	for _, p := range settings.Probes {
		if p.Exec != nil {
			errs = append(errs, inAs("probe "+p.Name, hooks.Inspect(p.Exec.Command[0])))
		}
	}
	for _, r := range settings.Relays {
		for _, k := range r.Checks {
			if k.Exec != nil {
				errs = append(errs, inAs("check of relay "+r.Name, hooks.Inspect(k.Exec.Command[0])))
			}
		}
		if r.CheckHost != "" {
			errs = append(errs, inAs("check-host", hooks.Inspect(r.CheckHost)))
		}
		if r.OnFailover == "" {
			continue
		}
		if info, err := os.Stat(r.OnFailover); err == nil && info.IsDir() {
			_, _, err = hooks.List(r.OnFailover)
			errs = append(errs, inAs("on-failover", err))
		} else {
			errs = append(errs, inAs("on-failover", hooks.Inspect(r.OnFailover)))
		}
	}
	return errors.Join(errs...)
}

// inAs adds the name of the setting that a script came from.
func inAs(setting string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", setting, err)
}
