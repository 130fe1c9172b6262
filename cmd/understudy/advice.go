package main

import (
	"fmt"
	"slices"
	"strings"

	"understudy/control"
	"understudy/internal/role"
)

// adviceFor returns what an operator can do about the problems that why shows
// of a relay and of the hosts that are left in it, the most important first;
// empty when there is no problem.
func adviceFor(r control.RelayStatus) (all []string) {
	add := func(text string) {
		if !slices.Contains(all, text) {
			all = append(all, text)
		}
	}
	relay := " --relay " + r.Name
	for _, text := range adviceForCluster(r) {
		add(text)
	}
	switch {
	case r.State == "switching" && len(all) > 0:
	case r.State == "switching":
		add("wait until the triggers have run; understudy status" + relay + " shows the step, and the log names a trigger that hangs")
	case r.Frozen != nil:
		add("understudy unfreeze" + relay + ", when the primary may change again")
	}
	for _, h := range r.Hosts {
		for _, text := range adviceForHost(r, h) {
			add(text)
		}
	}
	if r.SaveError != "" {
		add("give the state directory space and write permission: a restart will not know the primary")
	}
	return all
}

// adviceForCluster returns the advice for what keeps the instances from agreeing, or this
// one from taking part.
func adviceForCluster(r control.RelayStatus) (all []string) {
	c := r.Cluster
	if c == nil {
		return nil
	}
	of := " --relay " + r.Name
	switch {
	case c.Trouble == "":
	case strings.Contains(c.Trouble, "settings differ"):
		all = append(all, "give all instances the same settings (understudy cluster"+of+" shows the difference), then reload or restart those that were changed")
	case strings.Contains(c.Trouble, "roster"):
		all = append(all, "understudy cluster add "+c.Member+of+" at one of the members, or stop this instance")
	case strings.Contains(c.Trouble, "member name"):
		all = append(all, "stop the other process that has the name "+c.Member+", or give this instance another one (member)")
	default:
		all = append(all, "find out whether etcd was restored from a backup, and then follow docs/cluster.md")
	}
	switch {
	case c.StoreFails.IsZero():
	case strings.Contains(c.StoreError, "space exceeded"):
		all = append(all, "compact and defragment etcd, and disarm its alarm (docs/cluster.md): it is full and refuses writes")
	default:
		all = append(all, "start etcd, or let this machine through to it (address, port, certificate, password): no other host can be elected until it answers")
	}
	for _, w := range c.Waiting {
		if w.MostSeconds > 0 {
			all = append(all, fmt.Sprintf("wait: the lease of %s is over after %s at most, and then the triggers run", w.Member, span(seconds(w.MostSeconds))))
		} else {
			all = append(all, "start instance "+w.Member+", or let it through to etcd; if it is dead for certain: understudy cluster force"+of)
		}
	}
	for n, m := range c.Members {
		switch {
		case n == 0:
		case m.Error != "" && r.Primary == "" && !c.StoreFails.IsZero():
			all = append(all, "or start instance "+m.Name+", or let this machine through to it: without etcd all instances have to confirm each other")
		case !m.Known && c.StoreFails.IsZero():
			all = append(all, "start instance "+m.Name+", or understudy cluster forget "+m.Name+of+": each change of the primary waits for it, and without etcd all need it")
		}
	}
	return all
}

func adviceForHost(r control.RelayStatus, h control.Host) (all []string) {
	of := h.Name + " --relay " + r.Name
	if h.Drained != nil {
		all = append(all, "understudy ready "+of+", when the work on it is done")
	}
	if h.Rejected {
		all = append(all, "repair the trigger that failed for "+h.Name+" (understudy events shows its output), then understudy switch "+of)
	}
	if h.Guarded && h.State == "up" {
		all = append(all, "find out why "+h.Name+" fails again and again; understudy switch "+of+" elects it all the same")
	}
	for _, k := range h.Checks {
		if k.Last == nil || k.Last.OK {
			continue
		}
		text := adviceForCheck(h.Name, k)
		if k.Last.Phase == "role" && h.Role != nil {
			text = adviceForRole(r, h, k)
		}
		if text != "" {
			all = append(all, text)
		}
		return all
	}
	return all
}

// adviceForRole returns the advice for a host that is not usable because of its role;
// empty for a replica of a primary, which needs nothing.
func adviceForRole(r control.RelayStatus, h control.Host, k control.Check) string {
	primary := r.Primary
	if primary == "" {
		primary = "the primary"
	}
	switch {
	case k.Last.Unknown:
		return adviceForCheck(h.Name, k)
	case strings.Contains(k.Last.Error, "is not that of the cluster"):
		return "correct the address of " + h.Name + ", which is of another cluster; if it is the right one (after an upgrade or a restore), set role-identity to " + h.Role.Identity
	case h.Role.Role == role.Starting.String():
		return "wait until " + h.Name + " has started"
	case h.Role.Role == role.Primary.String() && h.Name != r.Primary,
		strings.Contains(k.Last.Error, "follows no primary"):
		return "make " + h.Name + " a replica of " + primary + ", after a look at what only " + h.Name + " has"
	case h.Role.Role == role.Replica.String() && r.Primary == "":
		return "start the last primary, or promote the replica that has its data: " + h.Name + " is not promoted by itself"
	case h.Role.Role == role.Replica.String():
		return ""
	}
	return adviceForCheck(h.Name, k)
}

// adviceForCheck returns the advice for a check that did not pass.
func adviceForCheck(host string, k control.Check) string {
	if k.Last.Unknown && k.Last.Phase == "login" {
		return "let check " + k.Name + " log in to " + host + " (user, password file, certificate, free connections; docs/databases.md): its role is unknown, and is ignored until then"
	}
	if k.Last.Unknown && k.Last.Phase != "script" {
		return "find out what this machine lacks (descriptors, ports, memory; docs/operations.md, limits): check " + k.Name + " of " + host + " could not be run and is ignored"
	}
	switch k.Last.Phase {
	case "resolve":
		return "make the name of " + host + " resolve on this machine, or write its address in hosts"
	case "connect":
		return "start the service of " + host + " if it is stopped, or let this machine through to it (address, port, route, firewall)"
	case "tls":
		return "renew or correct the certificate of " + host + ", or the authority that check " + k.Name + " trusts"
	case "script":
		if k.Last.Unknown {
			return "run the script of check " + k.Name + " by hand for " + host + ": its result is unknown, and is ignored until that is repaired"
		}
		return "follow the message of check " + k.Name + " about " + host + "; if it is to stay a standby, nothing is needed"
	case "criteria":
		return "repair the service of " + host + ": its answer to check " + k.Name + " does not meet the criteria"
	}
	return "repair the service of " + host + ": it accepts connections, but does not answer check " + k.Name + " in time"
}
