package daemon

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"understudy/config"
	"understudy/hooks"
)

// InspectScripts reports every script that could not be run when it is needed.
// A directory of triggers only has to exist: the files in it change, and those
// that cannot be run are warned about at each election.
func InspectScripts(settings config.Settings) error {
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
		errs = append(errs, inAs("on-failover", inspectAny(r.OnFailover)), inAs("on-event", inspectAny(r.OnEvent)), inAs("on-standby", inspectAny(r.OnStandby)))
	}
	return errors.Join(errs...)
}

// ScriptEnviron returns the environment of scripts: that of the program, with
// STATE_DIR as it is in the settings.
func ScriptEnviron(settings config.Settings) []string {
	env := os.Environ()
	if settings.StateDir == "" {
		return env
	}
	env = slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, "STATE_DIR=") })
	return append(env, "STATE_DIR="+settings.StateDir)
}

// inspectAny inspects a script or a directory of scripts; empty is neither.
func inspectAny(path string) error {
	if path == "" {
		return nil
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		_, _, err = hooks.List(path)
		return err
	}
	return hooks.Inspect(path)
}

// inAs adds the name of the setting of a script.
func inAs(setting string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", setting, err)
}
