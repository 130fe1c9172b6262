package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/control"
	"understudy/failover"
	"understudy/internal/screen"
)

// topView is what top shows, and what its keys change. It does nothing itself: orders and
// requests that it wants are taken from it.
type topView struct {
	options relayOptions // that select what is shown
	control string       // the socket that was named on the command line

	width, height int

	all     []process // the last answers
	rates   map[topKey]topRate
	since   time.Time // since when there is no answer; zero while there is one
	problem string    // why there is none, or not from all

	cursor  topKey          // the row that is chosen
	first   int             // the row at the top of the list
	visible int             // rows that the list has room for
	folds   map[string]bool // by the name of the relay, since processes come and go
	filter  string
	sorted  int // index in topSorts
	reverse bool

	mode  topMode
	order *topOrder // to be confirmed
	typed string    // while a text is typed
	given *topOrder // confirmed, and not yet taken
	quit  bool

	message string // the result of the last key
	style   screen.Style
	until   time.Time // when the message goes

	elections map[topKey]topElection
	fetching  bool   // one of them
	requested topKey // the relay whose elections were requested since the last update
}

// topKey identifies a row. Without a host it is a relay; a relay without a process is a
// probe.
type topKey struct {
	pid         int
	relay, host string
	probe       string
}

// topRate is what has changed in a second.
type topRate struct{ connections, sent, received float64 }

// topElection is the last election of a relay.
type topElection struct {
	failover.Incident
	epoch uint64 // of the relay when it was requested
	state string
}

// topMode is what keys do at present.
type topMode int

const (
	topList    topMode = iota // choose rows and actions
	topFilter                 // type a filter
	topConfirm                // confirm an order
	topReason                 // type its reason
	topHelp                   // any key leaves the help
)

// messageTime is the time for which a message is shown.
const messageTime = 20 * time.Second

// topRow is one row of the list.
type topRow struct {
	key   topKey
	of    target
	host  *control.Host  // nil in the row of a relay
	probe *control.Probe // nil in all others
	n     int            // number of the host, from 1
	open  bool           // the hosts of this relay are shown
}

// update takes the answers of all processes, or the error why there are none.
func (v *topView) update(all []process, err error, now time.Time) {
	if err != nil {
		v.lost(err.Error(), now)
		v.rates = nil
		return
	}
	problem := ""
	for i, p := range all {
		if p.err == nil {
			continue
		}
		problem = p.String()
		before := slices.IndexFunc(v.all, func(old process) bool { return old.PID == p.PID })
		if before >= 0 {
			all[i].Status = v.all[before].Status
		}
	}
	v.rates = ratesOf(v.all, all)
	for _, old := range v.all {
		if !slices.ContainsFunc(all, func(p process) bool { return p.PID == old.PID }) {
			v.say(screen.Yellow, fmt.Sprintf("pid %d has ended", old.PID), now)
		}
	}
	v.all, v.requested = all, topKey{}
	if problem != "" {
		v.lost(problem, now)
		return
	}
	if !v.since.IsZero() {
		v.say(screen.Green, "answers again, after "+span(now.Sub(v.since)), now)
	}
	v.since, v.problem = time.Time{}, ""
}

// updateBetween is an update outside the usual interval, which is too short for rates.
func (v *topView) updateBetween(all []process, err error, now time.Time) {
	rates := v.rates
	v.update(all, err, now)
	v.rates = rates
}

// lost notes that there is no answer.
func (v *topView) lost(problem string, now time.Time) {
	if v.since.IsZero() {
		v.since = now
	}
	v.problem = problem
}

// say shows a message for a while.
func (v *topView) say(style screen.Style, text string, now time.Time) {
	v.message, v.style, v.until = text, style, now.Add(messageTime)
}

// ratesOf returns what has changed in a second between two answers of the same process.
func ratesOf(before, after []process) map[topKey]topRate {
	all := map[topKey]topRate{}
	for _, p := range after {
		i := slices.IndexFunc(before, func(old process) bool { return old.PID == p.PID && old.Started.Equal(p.Started) })
		if i < 0 {
			continue
		}
		took := p.Now.Sub(before[i].Now).Seconds()
		if took <= 0 {
			continue
		}
		rate := func(before, after uint64) float64 { return float64(after-min(before, after)) / took }
		for _, r := range p.Relays {
			n := slices.IndexFunc(before[i].Relays, func(old control.RelayStatus) bool { return old.Name == r.Name })
			if n < 0 {
				continue
			}
			old := before[i].Relays[n]
			key := topKey{pid: p.PID, relay: r.Name}
			all[key] = topRate{rate(old.Clients.Accepted, r.Clients.Accepted), rate(old.Clients.Sent, r.Clients.Sent), rate(old.Clients.Received, r.Clients.Received)}
			for _, h := range r.Hosts {
				n := slices.IndexFunc(old.Hosts, func(o control.Host) bool { return o.Name == h.Name })
				if n < 0 {
					continue
				}
				key.host = h.Name
				all[key] = topRate{rate(old.Hosts[n].Sessions, h.Sessions), rate(old.Hosts[n].Sent, h.Sent), rate(old.Hosts[n].Received, h.Received)}
			}
		}
	}
	return all
}

// topSort is an order of relays.
type topSort struct {
	name    string
	compare func(v *topView, a, b topRow) int
}

// topSorts are the orders that < and > choose from. The first keeps that of the settings.
var topSorts = []topSort{
	{"order", func(*topView, topRow, topRow) int { return 0 }},
	{"name", func(_ *topView, a, b topRow) int { return cmp.Compare(a.of.relay.Name, b.of.relay.Name) }},
	{"state", func(_ *topView, a, b topRow) int { return cmp.Compare(badness(b.of.relay), badness(a.of.relay)) }},
	{"live", func(_ *topView, a, b topRow) int {
		return cmp.Compare(b.of.relay.Clients.Live, a.of.relay.Clients.Live)
	}},
	{"conn/s", func(v *topView, a, b topRow) int {
		return cmp.Compare(v.rates[b.key].connections, v.rates[a.key].connections)
	}},
	{"bytes/s", func(v *topView, a, b topRow) int {
		return cmp.Compare(v.rates[b.key].sent+v.rates[b.key].received, v.rates[a.key].sent+v.rates[a.key].received)
	}},
}

// badness returns how much a relay needs an operator.
func badness(r control.RelayStatus) int {
	switch {
	case r.Primary == "" && r.State != "switching":
		return 5
	case r.Primary == "" || primaryDown(r):
		return 4
	case r.Canary != nil && !r.Canary.OutageAt.IsZero():
		return 3
	case !r.NoStandby.IsZero():
		return 2
	case r.Frozen != nil || len(r.Warnings) > 0 || r.SaveError != "":
		return 1
	}
	return 0
}

// primaryDown reports whether the primary is down and stays primary, as in a frozen relay.
func primaryDown(r control.RelayStatus) bool {
	return slices.ContainsFunc(r.Hosts, func(h control.Host) bool { return h.Primary && h.State == "down" })
}

// rows returns the rows of the list.
func (v *topView) rows() []topRow {
	var relays, probes []topRow
	total := 0
	for _, p := range v.all {
		for _, r := range p.Relays {
			if !v.matches(r) {
				continue
			}
			relays = append(relays, topRow{key: topKey{pid: p.PID, relay: r.Name}, of: target{p, r}})
			total += 1 + len(r.Hosts)
		}
		for _, k := range p.Probes {
			if contains(k.Name+" "+k.State, v.filter) {
				probes = append(probes, topRow{key: topKey{pid: p.PID, probe: k.Name}, of: target{process: p}, probe: &k})
			}
		}
	}
	slices.SortStableFunc(relays, func(a, b topRow) int {
		n := topSorts[v.sorted].compare(v, a, b)
		if v.reverse {
			return -n
		}
		return n
	})
	if v.sorted == 0 && v.reverse {
		slices.Reverse(relays)
	}
	all := make([]topRow, 0, total+len(probes))
	unfolded := total+len(probes) <= v.room()
	for _, r := range relays {
		open, chosen := v.folds[r.key.relay]
		if r.open = open; !chosen {
			r.open = unfolded
		}
		all = append(all, r)
		if !r.open {
			continue
		}
		for n, h := range r.of.relay.Hosts {
			key := r.key
			key.host = h.Name
			all = append(all, topRow{key: key, of: r.of, host: &h, n: n + 1})
		}
	}
	return append(all, probes...)
}

// matches reports whether the filter lets a relay through: by its name, an address of it,
// its state, or a host.
func (v *topView) matches(r control.RelayStatus) bool {
	words := append([]string{r.Name, r.State}, r.Listen...)
	for _, h := range r.Hosts {
		words = append(words, h.Name)
	}
	return contains(strings.Join(words, "\n"), v.filter)
}

// contains reports whether a text contains another one, in any case.
func contains(text, part string) bool {
	return strings.Contains(strings.ToLower(text), strings.ToLower(part))
}

// chosen returns the index of the row at the cursor, and moves the cursor to the nearest
// row if its own has gone. There must be a row.
func (v *topView) chosen(rows []topRow) int {
	i := slices.IndexFunc(rows, func(r topRow) bool { return r.key == v.cursor })
	if i < 0 { // its process may have been restarted, or its hosts folded
		i = slices.IndexFunc(rows, func(r topRow) bool {
			return r.key.relay == v.cursor.relay && r.key.host == v.cursor.host && r.key.probe == v.cursor.probe
		})
	}
	if i < 0 {
		i = max(slices.IndexFunc(rows, func(r topRow) bool { return r.key.relay != "" && r.key.relay == v.cursor.relay }), 0)
	}
	v.cursor = rows[i].key
	return i
}

// key does what a key asks for.
func (v *topView) key(k screen.Key) {
	now := time.Now()
	switch v.mode {
	case topHelp:
		v.mode = topList
	case topFilter, topReason:
		v.typeKey(k)
	case topConfirm:
		v.confirmKey(k, now)
	case topList:
		v.message = ""
		v.listKey(k, now)
	}
}

// typeKey takes a key of a text that is typed.
func (v *topView) typeKey(k screen.Key) {
	switch {
	case k == screen.Enter && v.mode == topReason:
		v.order.reason, v.mode = strings.TrimSpace(v.typed), topConfirm
	case k == screen.Enter:
		v.mode = topList
	case k == screen.Escape && v.mode == topReason:
		v.mode = topConfirm
	case k == screen.Escape:
		v.filter, v.mode = "", topList
	case k == screen.Backspace:
		if text := []rune(v.typed); len(text) > 0 {
			v.typed = string(text[:len(text)-1])
		}
	case k == 'U'-'@': // Ctrl-U
		v.typed = ""
	case k >= ' ' && len(v.typed) < 200:
		v.typed += string(rune(k))
	}
	if v.mode == topFilter {
		v.filter = v.typed
	}
}

// confirmKey takes the answer to the question whether an order is to be given.
func (v *topView) confirmKey(k screen.Key, now time.Time) {
	switch {
	case k == 'y' || k == 'Y':
		v.given = v.order
		v.say(screen.Yellow, "under way: "+v.order.command(), now)
	case k == 'r' && v.order.takesReason():
		v.mode, v.typed = topReason, v.order.reason
		return
	default:
		v.say(screen.Plain, "not done: "+v.order.command(), now)
	}
	v.order, v.mode = nil, topList
}

// listKey takes a key that chooses a row or an action.
func (v *topView) listKey(k screen.Key, now time.Time) {
	rows := v.rows()
	if n, ok := v.step(k, rows); ok {
		if len(rows) > 0 {
			v.cursor = rows[min(max(n, 0), len(rows)-1)].key
		}
		return
	}
	switch k {
	case 'q', 'Q', 'D' - '@': // Ctrl-D
		v.quit = true
	case '?', 'h', screen.F1:
		v.mode = topHelp
	case '/', '\\':
		v.mode, v.typed = topFilter, v.filter
	case screen.Escape:
		v.filter = ""
	case '<', ',':
		v.sort((v.sorted+len(topSorts)-1)%len(topSorts), v.reverse)
	case '>', '.':
		v.sort((v.sorted+1)%len(topSorts), v.reverse)
	case 'R':
		v.sort(v.sorted, !v.reverse)
	case screen.Enter, ' ', '+', '-', screen.Left, screen.Right:
		v.fold(k, rows)
	case 's':
		v.ask("switch", rows, now)
	case 'd', screen.F10:
		v.ask("drain", rows, now)
	case 'r', screen.F9:
		v.ask("ready", rows, now)
	case 'f':
		v.ask("freeze", rows, now)
	default: // it means nothing here
	}
}

// step returns the row to which a key moves the cursor. It may be outside the list.
func (v *topView) step(k screen.Key, rows []topRow) (n int, ok bool) {
	if len(rows) > 0 {
		n = v.chosen(rows)
	}
	switch k {
	case screen.Up, 'k':
		return n - 1, true
	case screen.Down, 'j':
		return n + 1, true
	case screen.PageUp:
		return n - max(v.visible-1, 1), true
	case screen.PageDown:
		return n + max(v.visible-1, 1), true
	case screen.Home, 'g':
		return 0, true
	case screen.End, 'G':
		return len(rows) - 1, true
	case screen.Tab: // the next relay
		for i := range rows {
			if next := (n + 1 + i) % len(rows); rows[next].host == nil {
				return next, true
			}
		}
		return n, true
	default:
		return 0, false
	}
}

// sort changes the order, and goes to what is first in it: that is what it is for.
func (v *topView) sort(by int, reverse bool) {
	v.sorted, v.reverse = by, reverse
	if rows := v.rows(); len(rows) > 0 {
		v.cursor = rows[0].key
	}
}

// fold shows or hides the hosts of the relay at the cursor.
func (v *topView) fold(k screen.Key, rows []topRow) {
	if len(rows) == 0 {
		return
	}
	r := rows[v.chosen(rows)]
	if r.probe != nil {
		return
	}
	key := topKey{pid: r.key.pid, relay: r.key.relay}
	open := !r.open && r.host == nil
	switch k {
	case '+', screen.Right:
		open = true
	case '-', screen.Left:
		open = false
	default: // the other way round
	}
	if v.folds == nil {
		v.folds = map[string]bool{}
	}
	v.folds[key.relay] = open
	if !open {
		v.cursor = key
		return
	}
	// Its hosts come into view, as far as it stays there itself.
	i := v.chosen(rows)
	v.first = max(v.first, min(i, i+1+len(r.of.relay.Hosts)-v.visible))
}

// ask asks whether to give an order about the row at the cursor.
func (v *topView) ask(verb string, rows []topRow, now time.Time) {
	if len(rows) == 0 {
		return
	}
	r := rows[v.chosen(rows)]
	o := topOrder{target: r.of, verb: verb, flags: v.selection(r.of)}
	switch {
	case r.probe != nil:
		v.say(screen.Yellow, r.probe.Name+" is a probe: there is nothing to change", now)
		return
	case verb == "freeze":
		if r.of.relay.Frozen != nil {
			o.verb = "unfreeze"
		}
	case r.host == nil:
		v.say(screen.Yellow, fmt.Sprintf("%s needs a host: choose one of %s (Enter shows them)", verb, r.of.relay.Name), now)
		return
	default:
		o.host = r.host.Name
	}
	v.order, v.mode = &o, topConfirm
}

// selection returns the flags that select a relay, as far as they are needed.
func (v *topView) selection(t target) (flags []string) {
	if v.control != "" {
		flags = append(flags, "--control", v.control)
	}
	if v.options.PID != 0 || len(v.all) > 1 {
		flags = append(flags, "--pid", strconv.Itoa(t.PID))
	}
	if v.options.Relay != "" || len(t.Relays) > 1 {
		flags = append(flags, "--relay", t.relay.Name)
	}
	return flags
}

// takeOrder returns an order that was confirmed, once.
func (v *topView) takeOrder() *topOrder {
	o := v.given
	v.given = nil
	return o
}

// answered takes the result of an order.
func (v *topView) answered(o topOrder, text string, err error) {
	if err != nil {
		v.say(screen.Red, o.verb+" "+o.host+": "+err.Error(), time.Now())
		return
	}
	v.say(screen.Green, text, time.Now())
}

// takeElection returns the relay at the cursor if its last election has to be requested.
func (v *topView) takeElection() *target {
	if v.fetching || !v.since.IsZero() {
		return nil
	}
	rows := v.rows()
	if len(rows) == 0 {
		return nil
	}
	r := rows[v.chosen(rows)]
	if r.probe != nil || r.of.err != nil {
		return nil
	}
	key := electionKey(r.of)
	have, ok := v.elections[key]
	if key == v.requested || ok && have.Done && have.epoch == r.of.relay.Epoch && have.state == r.of.relay.State {
		return nil
	}
	if !ok && r.of.relay.Epoch == 0 {
		return nil // there was none
	}
	v.fetching, v.requested = true, key
	return &r.of
}

// elected takes the elections of a relay.
func (v *topView) elected(t target, list []control.Event, err error) {
	v.fetching = false
	if err != nil {
		return // the next status has the same problem
	}
	if v.elections == nil {
		v.elections = map[topKey]topElection{}
	}
	e := topElection{epoch: t.relay.Epoch, state: t.relay.State}
	e.Done = true
	for _, i := range list {
		if i.Order == nil {
			e.Incident = i.Incident
		}
	}
	v.elections[electionKey(t)] = e
}

func electionKey(t target) topKey { return topKey{pid: t.PID, relay: t.relay.Name} }

// electionText describes an election in two sentences.
func electionText(i failover.Incident) (what, took string) {
	hosts := i.Old + i.New
	if i.Old != "" && i.New != "" {
		hosts = i.Old + " → " + i.New
	}
	what = fmt.Sprintf("#%d %s %s: %s, %s", i.ID, i.At().Local().Format(hclog.TimeFormat), i.Event, hosts, i.Outcome)
	if i.Failure != "" {
		what += ": " + i.Failure
	}
	if i.Opened.IsZero() {
		return what, ""
	}
	return what, tookText(i)
}
