package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"understudy/control"
	"understudy/internal/screen"
)

const (
	// A terminal that is smaller shows one line.
	topLeastWidth, topLeastHeight = 20, 4

	// leastNote is the width that columns which can be left out leave to the note.
	leastNote = 14

	// leastDetails is the height of the space below the list, and leastForDetails that
	// of both together, with less there is only the list.
	leastDetails, leastForDetails = 6, 12

	// noticeLines limits the lines of a message.
	noticeLines = 4
)

// lines returns the page, which is as large as the terminal at most.
func (v *topView) lines(now time.Time) []screen.Line {
	switch {
	case v.width < topLeastWidth || v.height < topLeastHeight:
		return []screen.Line{{{Text: "too small for top"}}}
	case v.mode == topHelp:
		return v.help()
	}
	foot := v.foot()
	page := v.head(now)
	rows := v.rows()
	room := max(v.height-len(page)-1-len(foot), 1)
	v.visible = max(min(v.room(), room), 1)
	page = append(page, v.table(rows, v.visible)...)
	if below := v.height - len(page) - len(foot); below >= 3 && len(rows) > 0 {
		page = append(page, v.details(rows[v.chosen(rows)], below, now)...)
	}
	for len(page)+len(foot) < v.height {
		page = append(page, nil)
	}
	page = page[:max(v.height-len(foot), 0)]
	return append(page, foot...)
}

// room returns how many rows the list may have.
func (v *topView) room() int {
	room := v.height - 4 // two lines above, the titles, the keys
	if room < leastForDetails {
		return room
	}
	return room - max(room/3, leastDetails)
}

// head returns what is above the list: the sums, and what is to be said.
func (v *topView) head(now time.Time) []screen.Line {
	relays, without := 0, 0
	var live uint64
	var sum topRate
	for _, p := range v.all {
		for _, r := range p.Relays {
			relays++
			if r.Primary == "" {
				without++
			}
			live += r.Clients.Live
			rate := v.rates[topKey{pid: p.PID, relay: r.Name}]
			sum = topRate{sum.connections + rate.connections, sum.sent + rate.sent, sum.received + rate.received}
		}
	}
	line := screen.Line{{Style: screen.Bold, Text: "understudy top"}, {Text: "  " + number(relays, "relay")}}
	if without > 0 {
		line = append(line, screen.Text{Style: screen.Bold | screen.Red, Text: fmt.Sprintf("  %d without a primary", without)})
	}
	clock := "  " + now.Local().Format("15:04:05Z0700")
	sums := []string{"  " + number(int(min(live, 1<<30)), "client")}
	if len(v.rates) > 0 {
		sums = append(sums, ", "+scaled(sum.connections)+"/s", "  sent "+scaled(sum.sent)+"B/s", "  received "+scaled(sum.received)+"B/s")
	}
	for _, text := range sums {
		if screen.Width(line.String()+text+clock) <= v.width {
			line = append(line, screen.Text{Text: text})
		}
	}
	if space := v.width - screen.Width(line.String()+clock); space >= 0 {
		line = append(line, screen.Text{Text: strings.Repeat(" ", space) + clock})
	}
	all := []screen.Line{line}
	what := v.notice(now)
	for n, text := range broken(what.Text, v.width) {
		if n > 0 && v.height < topLeastHeight+leastForDetails || n == noticeLines {
			break
		}
		all = append(all, screen.Line{{Style: what.Style, Text: text}})
	}
	return all
}

// notice returns what follows: the most important of what is to be said.
func (v *topView) notice(now time.Time) screen.Text {
	switch {
	case !v.since.IsZero():
		return screen.Text{Style: screen.Bold | screen.Red, Text: fmt.Sprintf("no answer for %s: %s", now.Sub(v.since).Truncate(time.Second), v.problem)}
	case v.message != "" && now.Before(v.until):
		return screen.Text{Style: v.style, Text: v.message}
	}
	for _, p := range v.all {
		if p.Outage != nil {
			return screen.Text{Style: screen.Red, Text: p.Outage.Text}
		}
	}
	var all []string
	if v.filter != "" {
		all = append(all, fmt.Sprintf("only what contains %q (Esc: everything)", v.filter))
	}
	if v.sorted != 0 || v.reverse {
		text := "sorted by " + topSorts[v.sorted].name
		if v.reverse {
			text += ", reversed"
		}
		all = append(all, text)
	}
	return screen.Text{Style: screen.Yellow, Text: strings.Join(all, "; ")}
}

// topColumn is one column of the list. Its width is without the space before it.
type topColumn struct {
	title string
	width int
	left  bool
	cell  func(v *topView, r topRow) screen.Text
}

// table returns the titles and the rows that fit into a height, with that at the cursor
// among them.
func (v *topView) table(rows []topRow, height int) []screen.Line {
	columns := v.columns(rows)
	var titles []string
	for _, c := range columns {
		titles = append(titles, pad(c.title, c))
	}
	lines := []screen.Line{{{Style: screen.Reverse, Text: padRight(strings.Join(titles, " "), v.width)}}}
	if len(rows) == 0 {
		text := "no relay: this process only answers over HTTP"
		if v.filter != "" {
			text = "nothing contains " + strconv.Quote(v.filter)
		}
		return append(lines, screen.Line{{Text: text}})
	}
	chosen := v.chosen(rows)
	v.first = min(max(v.first, chosen-height+1), chosen)
	v.first = max(min(v.first, len(rows)-height), 0)
	for n, r := range rows[v.first:min(v.first+height, len(rows))] {
		var line screen.Line
		for i, c := range columns {
			t := c.cell(v, r)
			if t.Text = pad(t.Text, c); i < len(columns)-1 {
				t.Text += " "
			}
			if v.first+n == chosen {
				t.Style |= screen.Reverse
			}
			line = append(line, t)
		}
		lines = append(lines, line)
	}
	return lines
}

// columns returns those that there is room for. The name and the note share what the
// others leave.
func (v *topView) columns(rows []topRow) []topColumn {
	name := 0
	for _, r := range rows {
		name = max(name, screen.Width(nameOf(v, r).Text))
	}
	all := []topColumn{
		{"RELAY / HOST", min(max(name, 12), max(v.width/3, min(12, v.width-11))), true, nameOf},
		{"STATE", 9, true, stateCell},
		{"FOR", 6, false, func(_ *topView, r topRow) screen.Text { return screen.Text{Text: forCell(r)} }},
		{"LIVE", 6, false, func(_ *topView, r topRow) screen.Text {
			return countCell(r, func(c control.Clients) uint64 { return c.Live }, func(h control.Host) uint64 { return h.Live })
		}},
		{"WAIT", 5, false, func(_ *topView, r topRow) screen.Text {
			if r.host != nil || r.probe != nil {
				return screen.Text{}
			}
			c := r.of.relay.Clients
			t := screen.Text{Text: scaled(float64(c.Queued + c.Held))}
			if c.Queued+c.Held > 0 {
				t.Style = screen.Yellow
			}
			return t
		}},
		{"CONN/S", 6, false, rateCell(func(r topRate) float64 { return r.connections })},
		{"SENT/S", 6, false, rateCell(func(r topRate) float64 { return r.sent })},
		{"RECV/S", 6, false, rateCell(func(r topRate) float64 { return r.received })},
		{"NOTE", 0, true, noteCell},
	}
	room := func() int {
		room := v.width
		for _, c := range all {
			room -= c.width + 1
		}
		return room
	}
	for _, title := range []string{"FOR", "WAIT", "RECV/S", "SENT/S", "CONN/S", "LIVE"} {
		if room() >= leastNote {
			break
		}
		all = slices.DeleteFunc(all, func(c topColumn) bool { return c.title == title })
	}
	all[len(all)-1].width = max(room()+1, 0) // no space follows it
	return all
}

func nameOf(_ *topView, r topRow) screen.Text {
	switch {
	case r.probe != nil:
		return screen.Text{Text: "  " + r.probe.Name + " (probe)"}
	case r.host != nil && r.host.Primary:
		return screen.Text{Text: fmt.Sprintf("  * %d %s", r.n, r.host.Name)}
	case r.host != nil:
		return screen.Text{Text: fmt.Sprintf("    %d %s", r.n, r.host.Name)}
	case r.open:
		return screen.Text{Style: screen.Bold, Text: "- " + r.of.relay.Name}
	}
	return screen.Text{Style: screen.Bold, Text: "+ " + r.of.relay.Name}
}

func stateCell(v *topView, r topRow) screen.Text {
	state := r.of.relay.State
	style := styleOf(state)
	switch {
	case r.probe != nil && r.probe.Stale:
		state = "stale"
		style = styleOf(state)
	case r.probe != nil:
		state = r.probe.State
		style = styleOf(state)
	case r.host != nil && r.host.Drained != nil && r.host.State == "up":
		state, style = "drained", screen.Yellow
	case r.host != nil:
		state = r.host.State
		style = styleOf(state)
	case badness(r.of.relay) > 0 && style == screen.Green:
		style = screen.Yellow
	}
	if !v.since.IsZero() && (v.rates == nil || r.of.err != nil) {
		style = screen.Plain // it was so when there was an answer
	}
	return screen.Text{Style: style, Text: state}
}

// forCell returns how long the state has lasted, by the clock of the process.
func forCell(r topRow) string {
	since := r.of.relay.Since
	switch {
	case r.probe != nil:
		since = r.probe.Since
	case r.host != nil:
		since = r.host.Since
	}
	if since.IsZero() {
		return "-"
	}
	return span(r.of.Now.Sub(since))
}

func countCell(r topRow, ofRelay func(control.Clients) uint64, ofHost func(control.Host) uint64) screen.Text {
	switch {
	case r.probe != nil:
		return screen.Text{}
	case r.host != nil:
		return screen.Text{Text: scaled(float64(ofHost(*r.host)))}
	}
	return screen.Text{Text: scaled(float64(ofRelay(r.of.relay.Clients)))}
}

func rateCell(of func(topRate) float64) func(v *topView, r topRow) screen.Text {
	return func(v *topView, r topRow) screen.Text {
		rate, ok := v.rates[r.key]
		switch {
		case r.probe != nil:
			return screen.Text{}
		case !ok:
			return screen.Text{Text: "-"}
		}
		return screen.Text{Text: scaled(of(rate))}
	}
}

func noteCell(_ *topView, r topRow) screen.Text {
	switch {
	case r.probe != nil:
		return screen.Text{Text: r.probe.Why}
	case r.host != nil:
		// The star shows the primary.
		return screen.Text{Text: strings.TrimPrefix(joined(strings.TrimPrefix(note(*r.host), "primary"), latencies(*r.host)), ", ")}
	}
	of := r.of.relay
	text := of.Primary
	switch {
	case of.Primary == "" && of.State == "switching":
		text = "to " + of.Elect
	case of.Primary == "":
		text = "no primary"
	case primaryDown(of):
		text += ", down"
	case !of.NoStandby.IsZero():
		text += ", no standby"
	}
	if of.Canary != nil && !of.Canary.OutageAt.IsZero() {
		text += ", canary not served"
	}
	if of.Frozen != nil {
		text += ", frozen"
	}
	if of.Scheduled != nil {
		text += ", switch scheduled"
	}
	if of.SaveError != "" {
		text += ", state not saved"
	}
	if len(of.Warnings) > 0 {
		text += ", warning"
	}
	return screen.Text{Text: text}
}

// latencies returns how long the last run of each check took.
func latencies(h control.Host) string {
	var all []string
	for _, k := range h.Checks {
		if k.Last != nil {
			all = append(all, k.Name+" "+millis(k.Last.Seconds))
		}
	}
	return strings.Join(all, ", ")
}

// joined returns two texts with a comma where both are there.
func joined(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + ", " + b
}

// details returns what there is to know about a row, below a line with its name.
func (v *topView) details(r topRow, height int, now time.Time) []screen.Line {
	d := topDetails{width: v.width}
	switch {
	case r.probe != nil:
		d.title = "probe " + r.probe.Name
		d.add("why", r.probe.Why)
		if r.probe.Last != nil {
			d.add("last", millis(r.probe.Last.Seconds)+" "+resultText(*r.probe.Last))
		}
	case r.host != nil:
		d.title = r.host.Name + "  of " + r.of.relay.Name
		d.host(*r.host)
	default:
		d.title = fmt.Sprintf("%s  %s  pid %d", r.of.relay.Name, strings.Join(r.of.relay.Listen, " "), r.of.PID)
		if r.of.user != "" {
			d.title += " of " + r.of.user
		}
		d.relay(r.of.relay, v.elections[electionKey(r.of)], r.of.Now, now)
	}
	lines := append([]screen.Line{{{Style: screen.Reverse, Text: padRight(d.title, v.width)}}}, d.lines...)
	if len(lines) > height {
		lines = append(lines[:height-1], screen.Line{{Text: "…"}})
	}
	return lines
}

// topDetails is the space below the list.
type topDetails struct {
	width int
	title string
	lines []screen.Line
}

// add adds a name and its value, which may take several lines.
func (d *topDetails) add(name, text string) {
	const begin = 11
	if text == "" {
		return
	}
	style := styleOf(name)
	for _, line := range broken(text, max(d.width-begin, 1)) {
		d.lines = append(d.lines, screen.Line{{Style: style, Text: fmt.Sprintf("%9s  ", name)}, {Text: line}})
		name = ""
	}
}

func (d *topDetails) relay(r control.RelayStatus, last topElection, then, now time.Time) {
	d.add("why", r.Why)
	for _, w := range r.Warnings {
		d.add("warning", w)
	}
	if r.Progress != nil {
		d.add("under way", progressText(*r.Progress, then))
	}
	if r.Frozen != nil {
		d.add("frozen", lockText(r.Frozen))
	}
	if s := r.Scheduled; s != nil {
		d.add("switch", joined("to "+s.Host+" at "+s.At.Format(scheduleFormat), s.Reason))
	}
	if k := r.Canary; k != nil {
		d.add("canary", canaryText(*k, then))
	}
	if last.ID != 0 {
		what, took := electionText(last.Incident)
		d.add("election", what)
		d.add("took", took)
		d.add("because", last.Reason)
		if f := last.Fence; f != nil {
			d.add("fence", fmt.Sprintf("%d finished, %d reset, %d moved, %d kept, in %s", f.Finished, f.Reset, f.Moved, f.Kept, millis(f.Seconds)))
		}
		for _, t := range last.Triggers {
			d.add("trigger", fmt.Sprintf("%s (%s): %s", t.Script, millis(t.Seconds), joined(lastLine(t.Output), t.Status)))
		}
	}
	c := r.Clients
	d.add("clients", fmt.Sprintf("%d live, %d waiting; %d accepted: %d finished, %d reset, %d fenced, %d expired, %d aborted",
		c.Live, c.Queued+c.Held, c.Accepted, c.Finished, c.Reset, c.Fenced, c.Expired, c.Aborted))
	if r.SaveError != "" {
		d.add("state", fmt.Sprintf("not saved for %s: %s", span(then.Sub(r.SaveFails)), r.SaveError))
	}
	if !r.GoodDrill.IsZero() {
		d.add("drill", fmt.Sprintf("the last good one was %s ago", span(now.Sub(r.GoodDrill))))
	}
}

func (d *topDetails) host(h control.Host) {
	d.add("why", h.Why)
	if h.Drained != nil {
		d.add("drained", lockText(h.Drained))
	}
	for _, k := range h.Checks {
		text := k.State
		if k.Last != nil {
			text += " " + millis(k.Last.Seconds)
		}
		switch {
		case k.Streak > 0:
			text += fmt.Sprintf(", passed %s in a row", number(k.Streak, "time"))
		case k.Streak < 0:
			text += fmt.Sprintf(", failed %s in a row", number(-k.Streak, "time"))
		}
		if k.Suspected {
			text += ", suspected"
		}
		if k.Last != nil && !k.Last.OK {
			text += ": " + resultText(*k.Last)
		}
		d.add(cut(k.Name, 9), text)
	}
	if h.Address != nil {
		d.add("address", joined(h.Address.Address, h.Address.Error))
	}
	if h.Failures > 0 {
		d.add("failures", fmt.Sprintf("%d in ten minutes", h.Failures))
	}
	d.add("clients", fmt.Sprintf("%d live of %d; sent %sB, received %sB", h.Live, h.Sessions, scaled(float64(h.Sent)), scaled(float64(h.Received))))
}

// foot returns the last lines: the keys, or what is typed or asked.
func (v *topView) foot() []screen.Line {
	typed := func(label string) []screen.Line {
		text := v.typed
		if over := screen.Width(label+text) + 1 - v.width; over > 0 {
			text = string([]rune(text)[min(over, len([]rune(text))):]) // its end is where it grows
		}
		return []screen.Line{{{Style: screen.Bold, Text: label}, {Text: text}, {Style: screen.Reverse, Text: " "}}}
	}
	switch v.mode {
	case topFilter:
		return typed("filter: ")
	case topReason:
		return typed("reason: ")
	case topConfirm:
		var lines []screen.Line
		for _, line := range broken(v.order.command(), v.width) {
			lines = append(lines, screen.Line{{Style: screen.Bold | screen.Yellow, Text: line}})
		}
		question := "Do it? y: yes, any other key: no"
		if v.order.takesReason() {
			question = "Do it? y: yes, r: give a reason, any other key: no"
		}
		for _, line := range broken(question, v.width) {
			lines = append(lines, screen.Line{{Style: screen.Bold, Text: line}})
		}
		return lines[max(len(lines)-v.height+1, 0):]
	case topList, topHelp:
	}
	line := screen.Line{}
	for _, k := range []struct{ key, does string }{
		{"?", "help"}, {"q", "quit"}, {"s", "switch"}, {"d", "drain"}, {"r", "ready"}, {"f", "freeze"}, {"/", "filter"}, {"< >", "sort"}, {"Enter", "hosts"},
	} {
		if screen.Width(line.String())+len(k.key)+len(k.does)+3 <= v.width {
			line = append(line, screen.Text{Style: screen.Bold, Text: k.key}, screen.Text{Text: " " + k.does + "   "})
		}
	}
	return []screen.Line{line}
}

// topKeys is the help.
var topKeys = [][2]string{
	{"↑ ↓  k j", "choose a relay or a host"},
	{"PgUp PgDn", "a page up or down"},
	{"Home End  g G", "the first, the last"},
	{"Tab", "the next relay"},
	{"Enter + -", "show or hide the hosts of a relay"},
	{"/", "show only what contains a text; Esc: everything"},
	{"< >", "sort by order, name, state, clients, connections or bytes"},
	{"R", "reverse the order"},
	{"s", "switch to this host"},
	{"d  F10", "drain this host: it is not elected"},
	{"r  F9", "ready: end the drain of this host"},
	{"f", "freeze the relay: no failover; again: unfreeze"},
	{"q  Ctrl-C", "quit"},
}

func (v *topView) help() []screen.Line {
	lines := []screen.Line{{{Style: screen.Bold, Text: "understudy top"}, {Text: "  keys"}}, nil}
	for _, k := range topKeys {
		lines = append(lines, screen.Line{{Style: screen.Bold, Text: padRight(k[0], 15)}, {Text: k[1]}})
	}
	lines = append(lines, nil)
	for _, text := range []string{
		"An order is given after its command was shown and confirmed with y.",
		"SENT is from clients to hosts, RECV from hosts to clients; a second.",
		"A star is at the primary. The line of a host has the time of its checks.",
	} {
		for _, line := range broken(text, v.width) {
			lines = append(lines, screen.Line{{Text: line}})
		}
	}
	if len(lines) > v.height-1 {
		lines = lines[:v.height-1]
	}
	return append(lines, screen.Line{{Style: screen.Bold, Text: "any key: back"}})
}

// pad returns a text that is as wide as a column.
func pad(text string, c topColumn) string {
	if c.width <= 0 {
		return ""
	}
	text = cut(text, c.width)
	space := strings.Repeat(" ", c.width-screen.Width(text))
	if c.left {
		return text + space
	}
	return space + text
}

// padRight returns a text with spaces behind it, or cut, to a width.
func padRight(text string, width int) string {
	return pad(text, topColumn{width: width, left: true})
}

// scaled returns a number in at most five characters, with the prefix of its unit.
func scaled(n float64) string {
	unit := 0
	const units = " kMGTPE"
	for n >= 999.5 && unit < len(units)-1 {
		n /= 1000
		unit++
	}
	text := strconv.FormatFloat(n, 'f', 0, 64)
	if n < 9.95 && n != float64(int(n)) {
		text = strings.TrimSuffix(strconv.FormatFloat(n, 'f', 1, 64), ".0")
	}
	return text + strings.TrimSpace(units[unit:unit+1])
}
