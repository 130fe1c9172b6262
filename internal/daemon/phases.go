package daemon

// phases has the number of each host for [selector.Config.Phases]. All hosts of a relay
// get the same one, so that its conductor has one turn for them, unless a host has one
// already from another relay: a host has one number in all relays, so that its checks
// can be shared. Hosts that are no longer configured keep theirs. The zero phases has
// none.
type phases struct {
	numbers map[string]uint64
	next    uint64
}

// of returns the numbers of the hosts of a relay.
func (p *phases) of(hosts []string) []uint64 {
	if p.numbers == nil {
		p.numbers = map[string]uint64{}
	}
	own, known := uint64(0), false
	for _, h := range hosts {
		if own, known = p.numbers[h]; known {
			break
		}
	}
	if !known {
		own = p.next
		p.next++
	}
	all := make([]uint64, len(hosts))
	for i, h := range hosts {
		n, known := p.numbers[h]
		if !known {
			n = own
			p.numbers[h] = n
		}
		all[i] = n
	}
	return all
}
