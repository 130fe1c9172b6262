package roles

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// gtids holds which transactions a server has, by their origin: a domain of MariaDB, or
// a server of MySQL with its tag. The intervals of an origin are in order, and do not
// touch.
type gtids map[string][]interval

// interval is a range of sequence numbers, both ends included.
type interval struct{ from, to uint64 }

// parseGTIDs reads a position of MariaDB, "0-1-100,1-1-7", or a set of MySQL,
// "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:11:tag:1-3".
func parseGTIDs(text string) (gtids, error) {
	all := gtids{}
	for item := range strings.SplitSeq(text, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		origin, rest, isSet := strings.Cut(item, ":")
		if !isSet {
			// Domain, server, sequence: all up to the last one.
			parts := strings.Split(item, "-")
			n, err := strconv.ParseUint(parts[len(parts)-1], 10, 64)
			if err != nil || len(parts) != 3 {
				return nil, fmt.Errorf("%q is no GTID", item)
			}
			if n > 0 {
				all.add(gtids{parts[0]: {{1, n}}})
			}
			continue
		}
		tagged := origin
		for part := range strings.SplitSeq(rest, ":") {
			first, last, ranged := strings.Cut(strings.TrimSpace(part), "-")
			from, err := strconv.ParseUint(first, 10, 64)
			if err != nil {
				if first == "" || ranged {
					return nil, fmt.Errorf("%q is no set of GTIDs", item)
				}
				tagged = origin + ":" + first
				continue
			}
			to := from
			if ranged {
				to, err = strconv.ParseUint(last, 10, 64)
			}
			if err != nil || from == 0 || to < from {
				return nil, fmt.Errorf("%q is no set of GTIDs", item)
			}
			all.add(gtids{tagged: {{from, to}}})
		}
	}
	return all, nil
}

// add adds the transactions of others.
func (g gtids) add(others gtids) {
	for origin, more := range others {
		sorted := append(slices.Clone(g[origin]), more...)
		slices.SortFunc(sorted, func(a, b interval) int {
			if a.from < b.from {
				return -1
			}
			return 1
		})
		merged := sorted[:0]
		for _, i := range sorted {
			if n := len(merged); n > 0 && i.from-1 <= merged[n-1].to {
				merged[n-1].to = max(merged[n-1].to, i.to)
				continue
			}
			merged = append(merged, i)
		}
		g[origin] = merged
	}
}

// count returns how many transactions there are.
func (g gtids) count() (n uint64) {
	for _, intervals := range g {
		for _, i := range intervals {
			n += i.to - i.from + 1
		}
	}
	return n
}
