package daemon

import "understudy/selector"

// phases has the number of each host for [selector.Config.Phases]. All hosts of a relay
// get the same one, so that its conductor has one turn for them, unless a host has one
// already from another relay: a host has one number in all relays, so that its checks
// can be shared. Hosts that are no longer configured keep theirs. The zero phases has
// none.
type phases map[string]uint64

// of returns the numbers of the hosts of a relay.
func (p *phases) of(hosts []string) []uint64 {
	if *p == nil {
		*p = phases{}
	}
	own := selector.NumberOf(hosts[0])
	for _, h := range hosts {
		if n, ok := (*p)[h]; ok {
			own = n
			break
		}
	}
	numbers := make([]uint64, len(hosts))
	for i, h := range hosts {
		n, ok := (*p)[h]
		if !ok {
			n = own
			(*p)[h] = n
		}
		numbers[i] = n
	}
	return numbers
}
