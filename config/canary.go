package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"understudy/internal/address"
	"understudy/internal/greeting"
)

// checkCanary reports settings of the canary of d.relay that contradict each other, and
// completes them.
func (d *draft) checkCanary(values map[string]raw, at func(flag string) Origin) {
	k := &d.relay.Canary
	for i := range table {
		if s := &table[i]; s.Group == watching && s.Flag != "canary" && values[s.Flag].given() && !values["canary"].given() {
			d.problem(at(s.Flag), errors.New("needs canary, the time from one attempt to the next"))
		}
	}
	if k.Handshake != "" && k.Send+k.Expect != "" {
		d.problem(at("canary-handshake"), errors.New("excludes canary-send and canary-expect"))
	}
	if k.Every == 0 {
		return
	}
	if k.Handshake+k.Send+k.Expect == "" {
		for _, protocol := range []string{d.relay.CheckTCP, d.relay.Role.Protocol} {
			if k.Handshake == "" && greeting.Known(protocol) {
				k.Handshake = protocol
			}
		}
	}
	// The canary connects to the first address, and a socket that was passed comes first.
	if len(d.sockets) > 0 || len(d.relay.Listen) == 0 || len(d.relay.Allow) == 0 {
		return
	}
	to, err := address.ParseListen(d.relay.Listen[0])
	if err != nil || to.Path != "" {
		return // the first is reported elsewhere, and clients of a file have no address
	}
	from := to.IP.Unmap().WithZone("")
	if !from.IsValid() || from.IsUnspecified() {
		from = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if !slices.ContainsFunc(d.relay.Allow, func(p netip.Prefix) bool { return p.Contains(from) }) {
		d.problem(at("canary"), fmt.Errorf("connects from %s, which is not in allow (%s): add it there", from, at("allow").place()))
	}
}
