package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"understudy/control"
	"understudy/failover"
)

// terminal writes tables and sentences for people. Lines fit into its width and
// have colour where there is one; in a pipe there is neither. Whatever comes
// from elsewhere is made printable on its way.
type terminal struct {
	w             io.Writer
	width, height int // zero for a pipe
	colour        bool
}

const (
	// usualWidth is that of a terminal that does not know its own.
	usualWidth = 80

	// leastWidth is what tables are made for at least.
	leastWidth = 40

	// leastDetail is the least room that the last column of a table gets beside
	// the others; with less it goes below them.
	leastDetail = 20

	// deepIndent is where it begins then.
	deepIndent = "      "
)

func newTerminal(w io.Writer) *terminal {
	t := &terminal{w: w}
	f, ok := w.(*os.File)
	if !ok {
		return t
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return t // no terminal
	}
	t.width, t.height = max(int(size.Col), leastWidth), int(size.Row)
	if size.Col == 0 {
		t.width = usualWidth
	}
	t.colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" // see no-color.org
	return t
}

// page makes text take the place of what is on the screen, cut to its height;
// for a pipe it changes nothing.
func (t *terminal) page(text []byte) []byte {
	if t.width == 0 {
		return text
	}
	lines := strings.SplitAfter(string(text), "\n")
	if t.height > 1 && len(lines) > t.height {
		lines = append(lines[:t.height-2], "…\n") // the cursor stands in the last line
	}
	// Each line ends with the removal of what was behind it, so nothing
	// flickers; see console_codes(4).
	all := strings.ReplaceAll(strings.Join(lines, ""), "\n", "\x1b[K\n")
	return []byte("\x1b[H" + all + "\x1b[J")
}

// paint gives a word that says how somebody is its colour.
func (t *terminal) paint(word string) string { return t.paintAs(word, word) }

// paintAs gives text the colour of a word.
func (t *terminal) paintAs(word, text string) string {
	if !t.colour {
		return text
	}
	code := ""
	switch word {
	case "up", "ok", "open", "serving", "good":
		code = "32"
	case "down", "stale", "failed", "selecting", "bad", "aborted", "gone":
		code = "31"
	case "unknown", "suspected", "switching", "warning", "frozen", "under way", "interrupted":
		code = "33"
	default:
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// runes is how many columns a text takes, as good as.
func runes(text string) int { return utf8.RuneCountInString(text) }

// table writes rows, all of the same length, whose cells stand below each
// other. In the last column there are sentences: they are broken where wrap is
// true and cut where it is not.
func (t *terminal) table(rows [][]string, wrap bool) error {
	last := len(rows[0]) - 1
	widths := make([]int, last)
	longest := 0
	for _, row := range rows {
		for i := range row {
			row[i] = printable(row[i])
		}
		for i := range widths {
			widths[i] = max(widths[i], runes(row[i]))
		}
		longest = max(longest, runes(row[last]))
	}
	begin := 2 * last // the column where the last one begins
	for _, w := range widths {
		begin += w
	}
	below := t.width > 0 && begin+longest > t.width && begin+leastDetail > t.width
	for t.width > 0 && below && begin-2 > t.width {
		i := slices.Index(widths, slices.Max(widths))
		widths[i]--
		begin--
	}
	room := t.width - begin
	indent := strings.Repeat(" ", begin)
	if below {
		room, indent = t.width-len(deepIndent), deepIndent
	}
	var out strings.Builder
	for n, row := range rows {
		for i, w := range widths {
			cell := cut(row[i], w)
			out.WriteString(t.paint(cell) + strings.Repeat(" ", w-runes(cell)+2))
		}
		detail := []string{row[last]}
		switch {
		case below && (n == 0 || row[last] == ""):
			detail = []string{""}
		case t.width > 0 && wrap:
			detail = broken(row[last], room)
		case t.width > 0:
			detail[0] = cut(row[last], room)
		}
		for i, text := range detail {
			if i > 0 || below && text != "" {
				out.WriteString("\n" + indent)
			}
			out.WriteString(t.paint(text))
		}
		out.WriteString("\n")
	}
	for line := range strings.Lines(out.String()) {
		if _, err := fmt.Fprintln(t.w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// cut makes a text fit into a number of columns.
func cut(text string, room int) string {
	if runes(text) <= room {
		return text
	}
	return string([]rune(text)[:max(room-1, 0)]) + "…"
}

// broken breaks a text into lines, between words where it can.
func broken(text string, room int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && runes(line)+1+runes(word) <= room {
			line += " " + word
			continue
		}
		if line != "" {
			lines = append(lines, line)
		}
		r := []rune(word)
		for ; len(r) > room; r = r[room:] {
			lines = append(lines, string(r[:room]))
		}
		line = string(r)
	}
	return append(lines, line)
}

// say writes a sentence below an indent.
func (t *terminal) say(indent, text string) { t.put(indent, indent, text) }

// put writes a text that begins behind first and goes on behind indent. First
// may hold colours, and is as wide as indent or wider.
func (t *terminal) put(first, indent, text string) {
	lines := []string{printable(text)}
	if t.width > 0 {
		more := strings.Repeat("x", max(runes(colours.ReplaceAllString(first, ""))-runes(indent), 0))
		lines = broken(more+lines[0], t.width-runes(indent))
		lines[0] = strings.TrimPrefix(lines[0], more)
	}
	for n, line := range lines {
		begin := indent
		if n == 0 {
			begin = first
		}
		fmt.Fprintln(t.w, strings.TrimRight(begin+line, " "))
	}
}

// colours are the sequences that paint writes.
var colours = regexp.MustCompile("\x1b\\[[0-9]+m")

// headline writes a line with a word in it that says how somebody is.
func (t *terminal) headline(text, word, rest string) {
	text, word, rest = printable(text), printable(word), printable(rest)
	if whole := text + word + rest; t.width > 0 && runes(whole) > t.width {
		t.say("", whole)
		return
	}
	fmt.Fprintln(t.w, text+t.paint(word)+rest)
}

// field writes one line of a list of names and what they stand for.
func (t *terminal) field(name, text string) {
	first := fmt.Sprintf("%10s  ", name)
	t.put(t.paintAs(name, first), strings.Repeat(" ", len(first)), text)
}

// printable makes one line of a text and takes out what could move a cursor,
// change a colour or turn the direction of writing.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case !unicode.IsPrint(r):
			return '·'
		}
		return r
	}, text)
}

func (t *terminal) status(s control.Status) error {
	for n, r := range s.Relays {
		if n > 0 {
			fmt.Fprintln(t.w)
		}
		t.put(t.paintAs(r.State, "●")+" ", "  ", r.Name+": "+r.State)
		t.field("listen", strings.Join(r.Listen, " "))
		t.field("primary", primaryText(r, s.Now))
		if r.Event != "" {
			t.field("epoch", fmt.Sprintf("%d (%s: %s)", r.Epoch, r.Event, r.Reason))
		}
		c := r.Clients
		t.field("clients", fmt.Sprintf("%d live, %d waiting; %d accepted: %d finished, %d reset, %d fenced, %d expired, %d gone",
			c.Live, c.Queued+c.Held, c.Accepted, c.Finished, c.Reset, c.Fenced, c.Expired, c.Gone))
		if r.Frozen != nil {
			t.field("frozen", lockText(r.Frozen))
		}
		if !r.GoodDrill.IsZero() {
			t.field("drill", fmt.Sprintf("the last good one was %s ago", span(s.Now.Sub(r.GoodDrill))))
		}
		fmt.Fprintln(t.w)
		if err := t.hosts(r, s.Now); err != nil {
			return err
		}
	}
	if len(s.Relays) == 0 {
		t.say("", "no relay: this process only answers over HTTP")
	}
	if err := t.probes(s); err != nil {
		return err
	}
	if r := s.Reload; r != nil && !r.OK {
		fmt.Fprintln(t.w)
		t.say("", "the configuration was read again "+span(s.Now.Sub(r.At))+" ago and is wrong; what held before goes on:")
		for problem := range strings.SplitSeq(r.Error, "\n") {
			t.say("  ", problem)
		}
	}
	return nil
}

// probes writes a table of the probes, if there are any.
func (t *terminal) probes(s control.Status) error {
	if len(s.Probes) == 0 {
		return nil
	}
	rows := [][]string{{"PROBE", "STATE", "FOR", "NOTE"}}
	for _, p := range s.Probes {
		state, since := p.State, ""
		if p.Stale {
			state = "stale"
		}
		if !p.Since.IsZero() {
			since = span(s.Now.Sub(p.Since))
		}
		rows = append(rows, []string{p.Name, state, since, p.Why})
	}
	fmt.Fprintln(t.w)
	return t.table(rows, false)
}

// primaryText says who is primary, and if nobody is, what is done about it.
func primaryText(r control.RelayStatus, now time.Time) string {
	if r.Primary != "" {
		return r.Primary + " for " + span(now.Sub(r.Elected))
	}
	text := "none for " + span(now.Sub(r.Since))
	switch {
	case r.State == "switching":
		text += "; clients wait until the switch to " + r.Elect + " is done"
	case r.RetryAt.After(now):
		text += "; all hosts are asked again in " + span(r.RetryAt.Sub(now))
	}
	return text
}

func (t *terminal) hosts(r control.RelayStatus, now time.Time) error {
	rows := [][]string{{"  HOST", "STATE", "FOR", "LAST CHECK", "NOTE"}}
	for _, h := range r.Hosts {
		mark := "  "
		if h.Primary {
			mark = "* "
		}
		since := "-"
		if !h.Since.IsZero() {
			since = span(now.Sub(h.Since))
		}
		rows = append(rows, []string{mark + h.Name, h.State, since, lastCheck(h), note(h)})
	}
	return t.table(rows, false) // why has the rest
}

// lastCheck is the check of a host that says most: the first that failed, or
// the last one.
func lastCheck(h control.Host) string {
	text := "-"
	for _, k := range h.Checks {
		if k.Last == nil {
			continue
		}
		text = fmt.Sprintf("%s %s", k.Name, millis(k.Last.Seconds))
		if !k.Last.OK {
			return text + " failed"
		}
	}
	return text
}

// note is what is special about a host.
func note(h control.Host) string {
	var all []string
	if h.Primary {
		all = append(all, "primary")
	}
	if h.Drained != nil {
		all = append(all, "drained "+lockText(h.Drained))
	}
	for _, k := range h.Checks {
		if k.Last == nil || k.Last.OK {
			continue
		}
		text := cause(k.Last.Error)
		if k.Last.Local {
			text += " (not its fault)"
		}
		all = append(all, text)
		break
	}
	if slices.ContainsFunc(h.Checks, func(k control.Check) bool { return k.Suspected }) {
		all = append(all, "suspected")
	}
	if h.Aside {
		all = append(all, "put aside")
	}
	if h.Guarded {
		all = append(all, fmt.Sprintf("failed %d times lately", h.Failures))
	}
	return strings.Join(all, ", ")
}

// cause is the end of an error, without what was tried and where.
func cause(text string) string {
	if i := strings.LastIndex(text, ": "); i >= 0 {
		return text[i+2:]
	}
	return text
}

// resultText says how a check ended.
func resultText(r control.Result) string {
	switch {
	case r.Local:
		return inPhase(r.Phase, r.Error) + " (not its fault)"
	case !r.OK:
		return inPhase(r.Phase, r.Error)
	}
	return "ok"
}

// inPhase says what went wrong and in which phase of a check, once.
func inPhase(phase, text string) string {
	if phase == "" || strings.HasPrefix(text, phase) {
		return text
	}
	return phase + ": " + text
}

func lockText(k *failover.Lock) string {
	text := "since " + k.Since.Local().Format(time.DateTime)
	if !k.Until.IsZero() {
		text += " until " + k.Until.Local().Format(time.DateTime)
	}
	if k.By != "" {
		text += " by " + k.By
	}
	if k.Reason != "" {
		text += ": " + k.Reason
	}
	return text
}

// why answers for a relay, or for the one host that is left in it.
func (t *terminal) why(r control.RelayStatus, now time.Time, one bool) error {
	if one {
		t.say("", r.Hosts[0].Why)
	} else {
		t.say("", r.Why)
	}
	for _, h := range r.Hosts {
		fmt.Fprintln(t.w)
		since := ""
		if !h.Since.IsZero() {
			since = " for " + span(now.Sub(h.Since))
		}
		t.headline(h.Name+"  ", h.State, since)
		if !one && !h.Primary { // whose sentence is the first
			t.say("  ", h.Why)
		}
		if h.PenaltySeconds > 0 {
			t.say("  ", fmt.Sprintf("penalty: failed %d times in ten minutes, so it has to be up for %s", h.Failures, span(seconds(h.PenaltySeconds))))
		}
		rows := [][]string{{"  CHECK", "STATE", "COUNT", "TOOK", "AGO", "LAST"}}
		for _, k := range h.Checks {
			rows = append(rows, checkRow(k, r.Rise, r.Fall, now))
		}
		if err := t.table(rows, true); err != nil {
			return err
		}
	}
	return nil
}

func checkRow(k control.Check, rise, fall int, now time.Time) []string {
	took, ago, last := "-", "-", "no answer yet"
	if r := k.Last; r != nil {
		took, ago, last = millis(r.Seconds), span(now.Sub(r.At)), resultText(*r)
	}
	state := k.State
	if k.Suspected {
		state = "suspected"
	}
	return []string{"  " + k.Name, state, countText(k, rise, fall), took, ago, last}
}

// countText is how far a check is on its way to the other state.
func countText(k control.Check, rise, fall int) string {
	switch n := k.Streak; {
	case n == 0:
		return "-"
	case n > 0 && k.State == "up":
		return fmt.Sprintf("%d passed", n)
	case n > 0:
		return fmt.Sprintf("%d of %d passed", n, rise)
	case k.State == "down":
		return fmt.Sprintf("%d failed", -n)
	default:
		return fmt.Sprintf("%d of %d failed", -n, fall)
	}
}

func (t *terminal) drill(r failover.DrillReport) error {
	verdict := "bad"
	if r.OK {
		verdict = "good"
	}
	t.put(t.paintAs(verdict, verdict+": "), "  ", r.Text)
	if len(r.Steps) > 0 {
		fmt.Fprintln(t.w)
		rows := [][]string{{"  STEP", "RESULT", "TOOK", "DETAIL"}}
		for _, s := range r.Steps {
			result, detail := "ok", lastLine(s.Detail)
			if !s.OK {
				result, detail = "failed", s.Detail
			}
			rows = append(rows, []string{"  " + s.Name, result, millis(s.Seconds), detail})
		}
		if err := t.table(rows, true); err != nil {
			return err
		}
	}
	if len(r.Heirs) > 0 {
		fmt.Fprintln(t.w)
	}
	for _, h := range r.Heirs {
		t.say("  ", "not "+h.Host+": "+h.Reason)
	}
	if r.Heir != "" {
		fmt.Fprintln(t.w)
		text := "the checks and triggers took " + millis(r.Seconds)
		if r.BoundSeconds > 0 {
			text += fmt.Sprintf("; such a failover takes %s at worst", millis(r.BoundSeconds))
		}
		t.say("  ", text)
	}
	return nil
}

func (t *terminal) prediction(p failover.Prediction) error {
	rows := [][]string{{"PRIMARY IS", "TRAFFIC", "DETECT", "ELECT", "FENCE", "TRIGGERS", "WORST CASE"}}
	for _, k := range p.Cases {
		row := []string{string(k.Failure), "no", "never", "-", "-", "-", "never"}
		if k.Traffic {
			row[1] = "yes"
		}
		if !k.Never {
			row = row[:2]
			for _, s := range []float64{k.DetectSeconds, k.ElectSeconds, k.FenceSeconds, k.TriggersSeconds, k.TotalSeconds} {
				row = append(row, seconds(s).String())
			}
		}
		rows = append(rows, row)
	}
	if err := t.table(rows, true); err != nil {
		return err
	}
	fmt.Fprintln(t.w)
	said := map[string]bool{}
	for _, k := range p.Cases {
		name := printable(string(k.Failure))
		same := func(o failover.Case) bool { return o.Failure == k.Failure && o.Formula != k.Formula }
		switch differs := slices.ContainsFunc(p.Cases, same); {
		case differs && k.Traffic:
			name += ", with traffic"
		case differs:
			name += ", without traffic"
		}
		if !said[name] {
			t.put(name+": ", "  ", k.Formula)
		}
		said[name] = true
	}
	if len(p.Warnings) > 0 {
		fmt.Fprintln(t.w)
	}
	for _, w := range p.Warnings {
		t.put(t.paintAs("warning", "warning: "), "  ", w)
	}
	return nil
}

// incident writes one record as a timeline.
func (t *terminal) incident(i failover.Incident) error {
	at := i.Elected
	if at.IsZero() {
		at = i.Lost
	}
	head := fmt.Sprintf("#%d  %s  %s: %s, epoch %d, ", i.ID, at.Local().Format(time.DateTime), i.Relay, i.Event, i.Epoch)
	hosts := i.Old + i.New
	if i.Old != "" && i.New != "" {
		hosts = i.Old + " → " + i.New
	}
	t.headline(head, string(i.Outcome), "")
	t.field("host", hosts)
	t.field("why", i.Reason)
	if i.By != "" && !strings.Contains(i.Reason, "by "+i.By) {
		t.field("by", i.By)
	}
	if i.Failure != "" {
		t.field("failed", i.Failure)
	}
	if !i.Opened.IsZero() {
		t.field("took", tookText(i))
	}
	return t.table(timeline(i), true)
}

// tookText says how long a change took and how that compares with the promise.
func tookText(i failover.Incident) string {
	text := millis(i.TotalSeconds)
	if !i.Lost.IsZero() {
		text += fmt.Sprintf(": %s to notice, %s to elect, %s to switch", millis(i.DetectSeconds), millis(i.ElectSeconds), millis(i.SwitchSeconds))
	}
	switch {
	case i.OverBound:
		text += fmt.Sprintf("; that is MORE than the %s predicted", millis(i.BoundSeconds))
	case i.BoundSeconds > 0:
		text += fmt.Sprintf("; predicted %s at most", millis(i.BoundSeconds))
	}
	return text
}

// timeline is what happened, one row for each step.
func timeline(i failover.Incident) [][]string {
	rows := [][]string{{"    TIME", "AFTER", "STEP"}}
	start := time.Time{}
	add := func(when time.Time, what string) {
		if when.IsZero() {
			return
		}
		if start.IsZero() {
			start = when
		}
		rows = append(rows, []string{"    " + when.Local().Format("15:04:05.000"), fmt.Sprintf("%.3fs", when.Sub(start).Seconds()), what})
	}
	if b := i.FirstBad; b != nil {
		add(b.At, "first bad check: "+b.Check+": "+b.Error)
	}
	add(i.Suspected, "suspected")
	add(i.Lost, "declared down")
	add(i.Elected, "elected "+i.New)
	if f := i.Fence; f != nil {
		text := "no earlier connection to fence"
		if f.Finished+f.Reset+f.Moved > 0 {
			text = fmt.Sprintf("earlier connections fenced: %d finished, %d reset, %d moved", f.Finished, f.Reset, f.Moved)
		}
		add(i.Elected.Add(seconds(f.Seconds)), text)
	}
	for _, g := range i.Triggers {
		text := fmt.Sprintf("trigger %s (%s): %s", g.Script, millis(g.Seconds), g.Status)
		if out := lastLine(g.Output); out != "" {
			text += ": " + out
		}
		rows = append(rows, []string{"", "", text})
	}
	add(i.Opened, fmt.Sprintf("open; %d clients had waited, %d in vain", i.ClientsHeld, i.ClientsLost))
	add(i.FirstByte, "first byte")
	return rows
}

// lastLine is the last line of a script's output, in which the line ends are
// escaped. --json has more of it.
func lastLine(output string) string {
	const end = `\n`
	output = strings.TrimSuffix(strings.TrimSpace(output), end)
	if i := strings.LastIndex(output, end); i >= 0 {
		output = output[i+len(end):]
	}
	return output
}

func seconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(time.Microsecond)
}

// millis is a short time for people.
func millis(s float64) string { return short(seconds(s)) }

func short(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// span is a long time for people.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0s" // the clock was set back
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	text := strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	if d >= 48*time.Hour {
		hours := int64(d.Round(time.Hour) / time.Hour)
		text = fmt.Sprintf("%dd%dh", hours/24, hours%24)
	}
	return text
}
