package admin

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"understudy/control"
	"understudy/failover"
)

// What the page shows, in words: the templates decide nothing.

// level grades a state: good, warn, bad or none. The stylesheet has a colour and a sign for
// each grade.
type level string

const (
	ok   level = "ok"
	warn level = "warn"
	bad  level = "bad"
	none level = "none" // says nothing
)

// worse returns the worse of two levels.
func worse(a, b level) level {
	order := []level{none, ok, warn, bad}
	if slices.Index(order, a) < slices.Index(order, b) {
		return b
	}
	return a
}

const (
	// electionsShown limits the elections of all relays on the page, and the orders.
	electionsShown = 40

	// problemsShown limits the problems in the headline; their relays show the rest.
	problemsShown = 6

	// relaysOpen is the number of relays up to which all of them are shown with
	// their hosts.
	relaysOpen = 3

	// brokenOpen is the number of relays without a primary up to which they are shown
	// with their hosts: more would push each other off the screen.
	brokenOpen = 3
)

// view is the page.
type view struct {
	Level    level
	Word     string // the verdict
	Headline string // and the reason
	Say      string // both, for screen readers, without what changes every second
	Problems []problem
	More     int // problems that are not listed

	Relays    []relayView
	Elections []electionView
	Verdicts  []verdictView
	Probes    []probeView

	Version, Now string
	At           int64 // the server's clock; see millis
	PID          int
	Up           string // time since the start
	Many         bool   // more relays than are shown with their hosts
	Acts         bool   // there are buttons

	Mark  string // where the events of this page begin
	Shape string // changes with everything that events do not carry
}

// problem is one reason why the verdict is not good.
type problem struct {
	Level      level
	Word, Text string
	Relay, ID  string // where; empty when it concerns all
	Where      string // the name of the place, if it is no relay
}

type relayView struct {
	ID, Name, Listen string
	Level            level
	Word             string
	Primary, For     string
	Since            int64 // from when For counts; see millis
	Why              string
	Standbys         string
	StandbyLevel     level
	Live             string
	Waiting          string
	WaitingLevel     level
	Notes            []problem
	Facts            []fact
	Hosts            []hostView
	Actions          []action
	Open             bool
	Many             bool
	Acts             bool
}

// fact is a number with its name.
type fact struct{ Name, Value, Note string }

type hostView struct {
	Number                      int
	Name, Address               string
	Level                       level
	State, Role, For            string
	Since                       int64
	Live, Total, Sent, Received string
	Checks                      []checkView
	Note                        string
	Actions                     []action
}

type checkView struct {
	Level                     level
	Name, Word, Took, Age, At string
	Since                     int64
	Error                     string
}

// action is a link to the page that asks for confirmation.
type action struct{ Label, URL, Title string }

type electionView struct {
	ID, Relay       string
	Number          uint64
	At, AtFull      string
	Event           string
	Old, New        string
	Outcome         string
	Level           level
	Total, Bound    string
	Over            bool
	Bars            []bar
	BoundAt         int // where the prediction ends in the picture; 0 for none
	Label           string
	Reason, Failure string
	By              string
	Order           string // of an order: who gave it, and why
	Steps           []fact
	ShowRelay       bool
}

// bar is one phase of an election in a picture that is barWidth wide.
type bar struct {
	Phase string
	X, W  int
}

// verdictView is a route of the HTTP listener whose status says whether all is well.
type verdictView struct {
	Route, State, For string
	Since             int64
	Level             level
	Last, At          string // the status of the last answer; when that was
	Age               string
	Asked             int64 // from when Age counts; see millis
	Requests, Bad     string
	Note              string
}

type probeView struct {
	Name, State, For string
	Since            int64
	Level            level
	Check            checkView
	Note             string
}

// newView turns a status and elections, the newest first, into what the page shows.
func newView(s control.Status, elections []control.Event, acts bool) view {
	var relays []relayView
	for n, r := range s.Relays {
		relays = append(relays, newRelayView(r, n, s, len(s.Relays) > relaysOpen, acts))
	}
	v := viewOf(s, relays, elections, acts)
	v.Shape = shapeOf(s, acts)
	return v
}

// viewOf is newView with the views of the relays, and without the shape.
func viewOf(s control.Status, relays []relayView, elections []control.Event, acts bool) view {
	v := view{
		Version: s.Version, PID: s.PID, Now: s.Now.Local().Format("15:04:05 MST"), At: millis(s.Now), Up: age(s.Now.Sub(s.Started)),
		Many: len(s.Relays) > relaysOpen, Acts: acts, Relays: relays,
	}
	var problems []problem
	if s.Outage != nil {
		problems = append(problems, problem{Level: bad, Word: "outage", Text: s.Outage.Text})
	}
	for _, d := range s.Disagreements {
		problems = append(problems, problem{Level: bad, Word: "two primaries", Text: d.Text})
	}
	for n := range relays {
		one := &relays[n]
		if one.Level != ok {
			problems = append(problems, problem{Level: one.Level, Word: one.Word, Text: one.Why, Relay: one.Name, ID: one.ID})
		}
	}
	for _, d := range s.Verdicts {
		one := newVerdictView(d, s.Now)
		v.Verdicts = append(v.Verdicts, one)
		if one.Level == bad {
			problems = append(problems, problem{Level: minor(s), Word: "bad verdict", Text: d.Route + " answers " + one.Last + suffix(": ", d.Why), ID: "verdicts", Where: "verdicts"})
		}
	}
	for _, p := range s.Probes {
		one := newProbeView(p, s.Now)
		v.Probes = append(v.Probes, one)
		if one.Level != ok {
			at := one.Level
			if at == bad {
				at = minor(s)
			}
			// The reason names the state, too.
			text := "probe " + p.Name + " is " + one.State + suffix(": ", strings.TrimPrefix(p.Why, p.State+": "))
			problems = append(problems, problem{Level: at, Word: "probe " + one.State, Text: text, ID: "probes", Where: "probes"})
		}
	}
	if r := s.Reload; r != nil && !r.OK {
		problems = append(problems, problem{Level: warn, Word: "invalid configuration",
			Text: "the configuration was read again " + age(s.Now.Sub(r.At)) + " ago and is invalid; the previous one stays in effect: " + r.Error})
	}
	for _, e := range elections {
		v.Elections = append(v.Elections, newElectionView(e, len(s.Relays) > 1))
	}
	v.judge(s, problems)
	return v
}

// minor returns how bad a verdict or a probe is that is not good: less than a relay without a
// primary, unless the process is there for nothing else.
func minor(s control.Status) level {
	if len(s.Relays) == 0 {
		return bad
	}
	return warn
}

// judge sets the verdict.
func (v *view) judge(s control.Status, problems []problem) {
	slices.SortStableFunc(problems, func(a, b problem) int {
		switch {
		case a.Level == b.Level:
			return 0
		case worse(a.Level, b.Level) == a.Level:
			return -1
		}
		return 1
	})
	v.Level, v.Word = ok, "serving"
	if len(s.Relays) == 0 {
		v.Word = "up"
	}
	if len(problems) > 0 {
		v.Level, v.Word = problems[0].Level, problems[0].Word
	}
	if len(s.Relays) == 1 {
		v.Headline = s.Relays[0].Why
		problems = slices.DeleteFunc(problems, func(p problem) bool { return p.Relay != "" })
	} else {
		v.Headline = summary(s)
	}
	v.Say = v.Word + ": "
	if len(s.Relays) == 1 {
		v.Say += cmp.Or(s.Relays[0].Primary, "no host") + " is primary"
	} else {
		v.Say += v.Headline
	}
	v.Problems = problems[:min(len(problems), problemsShown)]
	v.More = len(problems) - len(v.Problems)
}

// summary is the headline over several relays, or over none.
func summary(s control.Status) string {
	all := len(s.Relays)
	if all == 0 {
		return "No relay: this process only answers over HTTP."
	}
	without, alone, frozen := 0, 0, 0
	for _, r := range s.Relays {
		switch {
		case r.Primary == "":
			without++
		case !r.NoStandby.IsZero():
			alone++
		}
		if r.Frozen != nil {
			frozen++
		}
	}
	var parts []string
	for _, p := range []struct {
		n    int
		text string
	}{{without, "without a primary"}, {alone, "without a standby"}, {frozen, "frozen"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.text))
		}
	}
	if len(parts) == 0 {
		return fmt.Sprintf("All %d relays have a primary.", all)
	}
	return fmt.Sprintf("Of %d relays: %s.", all, strings.Join(parts, ", "))
}

func newRelayView(r control.RelayStatus, n int, s control.Status, many, acts bool) relayView {
	c := r.Clients
	v := relayView{
		ID: "relay-" + strconv.Itoa(n), Name: r.Name, Listen: strings.Join(r.Listen, " "), Primary: r.Primary, Why: r.Why,
		For: age(s.Now.Sub(r.Elected)), Since: millis(r.Elected), Live: count(c.Live), Waiting: strconv.Itoa(c.Queued + c.Held), WaitingLevel: none,
		Many: many, Acts: acts, StandbyLevel: none,
	}
	if r.Primary == "" {
		v.For, v.Since = age(s.Now.Sub(r.Since)), millis(r.Since)
	}
	if c.Queued+c.Held > 0 {
		v.WaitingLevel = warn
	}
	usable := 0
	for i, h := range r.Hosts {
		one := newHostView(h, i, r, s, acts)
		v.Hosts = append(v.Hosts, one)
		if one.Role == "standby" {
			usable++
		}
	}
	v.Standbys = fmt.Sprintf("%d of %d", usable, max(len(r.Hosts)-1, 0))
	v.Level, v.Word = judgeRelay(r)
	if !r.NoStandby.IsZero() {
		v.StandbyLevel = warn
	}
	v.Notes = notesOf(r, s.Now)
	v.Open = !many || v.Level == bad && broken(s) <= brokenOpen
	v.Facts = []fact{
		{"live", count(c.Live), "connections now"},
		{"waiting", strconv.Itoa(c.Queued + c.Held), fmt.Sprintf("%d in the kernel's queue, %d held after a failed connect", c.Queued, c.Held)},
		{"accepted", count(c.Accepted), "since the start of the process"},
		{"finished", count(c.Finished), "both directions ended cleanly"},
		{"reset", count(c.Reset), "either side failed"},
		{"fenced", count(c.Fenced), "cut because their epoch was over"},
		{"expired", count(c.Expired), "waited longer than the hold time"},
		{"aborted", count(c.Aborted), "left while they waited"},
		{"denied", count(c.Denied), "not let in"},
		{"unanswered", count(c.Unanswered), "reset before a host had answered"},
		{"replayed", count(c.Replayed), "first bytes sent again to another host"},
		{"to hosts", size(c.Sent), ""},
		{"from hosts", size(c.Received), ""},
		{"epoch", strconv.FormatUint(r.Epoch, 10), "number of the last election"},
	}
	if k := r.Canary; k != nil {
		v.Facts = append(v.Facts, canaryFacts(*k, s.Now)...)
	}
	if r.Loss != nil {
		v.Facts = append(v.Facts, fact{"a failover now", r.Loss.String(), "what the best candidate lacks of the data of the primary"})
	}
	if !r.GoodDrill.IsZero() {
		v.Facts = append(v.Facts, fact{"last good drill", age(s.Now.Sub(r.GoodDrill)) + " ago", ""})
	}
	if c := r.Cluster; c != nil {
		v.Facts = append(v.Facts, fact{"cluster " + c.Name, c.Text, "as " + c.Member + " sees it, which is this instance"})
	}
	if acts {
		v.Actions = []action{actionOf("drill", "Drill", r.Name, "")}
		if r.Frozen == nil {
			v.Actions = append(v.Actions, actionOf("freeze", "Freeze", r.Name, ""))
		} else {
			v.Actions = append(v.Actions, actionOf("unfreeze", "Unfreeze", r.Name, ""))
		}
	}
	return v
}

// canaryFacts returns the rows of the page about the canary of a relay.
func canaryFacts(k control.Canary, now time.Time) []fact {
	value := cmp.Or(k.Result, "no attempt yet")
	switch {
	case !k.OutageAt.IsZero():
		value = "not served for " + age(now.Sub(k.OutageAt))
	case k.Result == "good":
		value = "served in " + took(k.Seconds)
	}
	all := []fact{{"canary", value, cmp.Or(k.Error, "a client of the program's own, in no count")}}
	if k.Last > 0 {
		all = append(all, fact{"its last outage", took(k.Last), "until " + stamp(k.Over)})
	}
	return all
}

// broken counts the relays without a primary.
func broken(s control.Status) (n int) {
	for _, r := range s.Relays {
		if level, _ := judgeRelay(r); level == bad {
			n++
		}
	}
	return n
}

// judgeRelay returns how good the state of a relay is, in a word.
func judgeRelay(r control.RelayStatus) (level, string) {
	primary := slices.IndexFunc(r.Hosts, func(h control.Host) bool { return h.Primary })
	switch {
	case r.Primary == "" && r.State == "switching":
		return warn, "switching"
	case r.Primary == "":
		return bad, "no primary"
	case primary >= 0 && r.Hosts[primary].State == "down":
		return bad, "primary down"
	case r.Canary != nil && !r.Canary.OutageAt.IsZero() && r.Canary.Result == "failed":
		return bad, "canary not served"
	case r.Canary != nil && !r.Canary.OutageAt.IsZero():
		return warn, "canary waits"
	case !r.NoStandby.IsZero():
		return warn, "no standby"
	case r.Frozen != nil:
		return warn, "frozen"
	case clusterTrouble(r.Cluster) != "":
		return warn, "cluster"
	case len(r.Warnings) > 0 || r.SaveError != "":
		return warn, "warning"
	case primary >= 0 && slices.ContainsFunc(r.Hosts[primary].Checks, func(k control.Check) bool { return k.Suspected }):
		return warn, "suspected"
	}
	return ok, "serving"
}

// notesOf returns what an operator has to know about a relay beside its primary.
func notesOf(r control.RelayStatus, now time.Time) (all []problem) {
	if p := r.Progress; p != nil {
		all = append(all, problem{Level: warn, Word: "changing", Text: progressText(*p, now)})
	}
	for _, w := range r.Warnings {
		all = append(all, problem{Level: warn, Word: "warning", Text: w})
	}
	if text := clusterTrouble(r.Cluster); text != "" {
		all = append(all, problem{Level: warn, Word: "cluster", Text: text})
	}
	if p := r.Pacing; p != nil {
		all = append(all, problem{Level: warn, Word: "connecting", Text: fmt.Sprintf("%d of %d clients that waited, %.0f a second", p.Turns, p.Waited, p.Rate)})
	}
	if k := r.Frozen; k != nil {
		all = append(all, problem{Level: warn, Word: "frozen", Text: lockText(k)})
	}
	if s := r.Scheduled; s != nil {
		text := "to " + s.Host + " at " + s.At.Format("2006-01-02 15:04 MST")
		all = append(all, problem{Level: none, Word: "switch", Text: text + suffix(" by ", s.By) + suffix(": ", s.Reason)})
	}
	if r.SaveError != "" {
		all = append(all, problem{Level: warn, Word: "state", Text: "not saved for " + age(now.Sub(r.SaveFails)) + ", a restart will lose it: " + r.SaveError})
	}
	return all
}

// clusterTrouble returns what is wrong with the agreement with other instances; empty for
// nothing.
func clusterTrouble(c *control.Cluster) string {
	switch {
	case c == nil:
		return ""
	case c.Trouble != "":
		return "this instance does not take part: " + c.Trouble
	case c.Isolated:
		return fmt.Sprintf("isolated: %d of %d instances see the primary down", c.Down, c.Heard)
	case c.StoreError != "":
		return "the store does not answer: " + c.StoreError
	}
	return c.Clocks
}

func progressText(p failover.Progress, now time.Time) string {
	switch p.Step {
	case failover.StageChecking:
		return "checking " + cmp.Or(p.Host, "the other hosts")
	case failover.StageDraining:
		return fmt.Sprintf("%s connections may still finish, for %s at most", count(p.Connections), age(p.Until.Sub(now)))
	case failover.StageTrigger:
		return fmt.Sprintf("trigger %s has run for %s", p.Script, age(now.Sub(p.Since)))
	case failover.StageVerifying:
		return p.Host + " is asked whether it is the primary"
	case failover.StageOpening:
	}
	return "opening to " + p.Host
}

func lockText(k *failover.Lock) string {
	text := "since " + stamp(k.Since)
	if !k.Until.IsZero() {
		text += " until " + stamp(k.Until)
	}
	return text + suffix(" by ", k.By) + suffix(": ", k.Reason)
}

// suffix returns text after what leads to it; nothing for an empty text.
func suffix(before, text string) string {
	if text == "" {
		return ""
	}
	return before + text
}

func newHostView(h control.Host, n int, r control.RelayStatus, s control.Status, acts bool) hostView {
	v := hostView{
		Number: n + 1, Name: h.Name, State: h.State, For: "–",
		Live: count(h.Live), Total: count(h.Sessions), Sent: size(h.Sent), Received: size(h.Received),
	}
	if h.Address != nil {
		v.Address = h.Address.Address
	}
	if !h.Since.IsZero() {
		v.For, v.Since = age(s.Now.Sub(h.Since)), millis(h.Since)
	}
	v.Level = levelOf(h.State)
	if v.Level == ok && slices.ContainsFunc(h.Checks, func(k control.Check) bool { return k.Suspected }) {
		v.Level, v.State = warn, "up, suspected"
	}
	switch {
	case h.Drained != nil:
		v.Level, v.State, v.Note = worse(v.Level, warn), h.State+", drained", "drained "+lockText(h.Drained)
	case h.Rejected:
		v.Level, v.State, v.Note = worse(v.Level, warn), h.State+", rejected", strings.TrimPrefix(h.Why, h.Name+" ")
	case !h.Primary && (v.Level != ok || h.Guarded):
		v.Note = strings.TrimPrefix(h.Why, h.Name+" ")
	}
	// One that failed often is elected only if no other host can be, but then it is.
	if !h.Primary && h.State == "up" && h.Drained == nil && !h.Rejected {
		v.Role = "standby"
	}
	if h.Primary {
		v.Role = "primary"
	}
	if h.Role != nil && (h.Role.Role != "primary" || !h.Primary) {
		v.Note += suffix(strings.Repeat("; ", min(len(v.Note), 1)), roleText(*h.Role))
	}
	for _, k := range h.Checks {
		v.Checks = append(v.Checks, newCheckView(k, s.Now))
	}
	if acts {
		if !h.Primary && h.Drained == nil {
			v.Actions = append(v.Actions, actionOf("switch", "Switch", r.Name, h.Name))
		}
		if h.Drained == nil {
			v.Actions = append(v.Actions, actionOf("drain", "Drain", r.Name, h.Name))
		} else {
			v.Actions = append(v.Actions, actionOf("ready", "Ready", r.Name, h.Name))
		}
	}
	return v
}

// roleText returns what a host says of itself.
func roleText(r control.Role) string {
	text := "says " + r.Role
	if r.Bytes != nil && *r.Bytes > 0 {
		text += fmt.Sprintf(", %d bytes behind", *r.Bytes)
	}
	if r.Seconds != nil && *r.Seconds > 0 {
		text += ", for " + took(*r.Seconds)
	}
	return text
}

// levelOf returns the level of a host, check or probe in this state.
func levelOf(state string) level {
	switch state {
	case "up":
		return ok
	case "down":
		return bad
	}
	return warn
}

func newCheckView(k control.Check, now time.Time) checkView {
	v := resultView(k.Last, now)
	v.Name = k.Name
	if k.Last == nil {
		v.Word = "not run yet"
	}
	return v
}

// oldResult is the age from which the age of a result is shown: those of checks that
// run as they should are younger.
const oldResult = 10 * time.Second

// resultView describes the last result of a check.
func resultView(r *control.Result, now time.Time) checkView {
	if r == nil {
		return checkView{Level: none}
	}
	v := checkView{Level: ok, Word: "passed", Took: took(r.Seconds), At: stamp(r.At)}
	switch {
	case r.Unknown:
		v.Level, v.Word = warn, "unknown"
	case !r.OK:
		v.Level, v.Word = bad, "failed"
	}
	if !r.OK {
		if r.Phase != "" {
			v.Word += " in " + r.Phase
		}
		v.Error = r.Error
	}
	if d := now.Sub(r.At); d >= oldResult {
		v.Age, v.Since = age(d), millis(r.At)
	}
	return v
}

// unasked is the time without a request after which the last verdict says nothing about
// now.
const unasked = 5 * time.Minute

func newVerdictView(d control.Verdict, now time.Time) verdictView {
	v := verdictView{Route: d.Route, State: "not asked yet", For: "–", Level: none, Requests: count(d.Requests), Bad: count(d.Bad)}
	if d.Status == 0 {
		return v
	}
	v.For, v.Since = age(now.Sub(d.Since)), millis(d.Since)
	v.Last, v.At, v.Note = strconv.Itoa(d.Status), stamp(d.At), d.Why
	v.State, v.Level = "good", ok
	if !d.Good() {
		v.State, v.Level = "bad", bad
	}
	if d := now.Sub(d.At); d >= oldResult {
		v.Age = age(d)
	}
	v.Asked = millis(d.At)
	if now.Sub(d.At) >= unasked {
		v.State, v.Level = v.State+", not asked since", none
	}
	return v
}

func newProbeView(p control.Probe, now time.Time) probeView {
	v := probeView{Name: p.Name, State: p.State, Level: levelOf(p.State), For: "–", Note: p.Why, Check: resultView(p.Last, now)}
	if p.Stale {
		v.State = "stale"
	}
	if !p.Since.IsZero() {
		v.For, v.Since = age(now.Sub(p.Since)), millis(p.Since)
	}
	return v
}

const (
	// barWidth is the width of the picture of an election.
	barWidth = 400

	// barBound is where the predicted time ends in it; what took longer reaches
	// further.
	barBound = 300
)

func newElectionView(e control.Event, showRelay bool) electionView {
	v := electionView{
		ID: "election-" + url.PathEscape(e.Relay) + "-" + strconv.FormatUint(e.ID, 10), Number: e.ID, Relay: e.Relay,
		At: e.At().Local().Format("Jan 2 15:04:05"), AtFull: stamp(e.At()), Event: string(e.Event), Old: e.Old, New: e.New,
		Outcome: string(e.Outcome), Level: warn, Over: e.OverBound, Reason: e.Reason, Failure: e.Failure, By: e.By, ShowRelay: showRelay,
	}
	switch e.Outcome {
	case failover.Open, failover.CarriedOut:
		v.Level = ok
	case failover.Aborted, failover.HostLost, failover.DrillFailed:
		v.Level = bad
	case failover.UnderWay, failover.Interrupted, failover.SwitchRefused: // a warning
	}
	if e.OverBound {
		v.Level = worse(v.Level, warn)
	}
	if e.TotalSeconds > 0 {
		v.Total = took(e.TotalSeconds)
	}
	if e.BoundSeconds > 0 {
		v.Bound, v.BoundAt = took(e.BoundSeconds), barBound
	}
	fence, triggers := 0.0, 0.0
	if e.Fence != nil {
		fence = e.Fence.Seconds
	}
	for _, t := range e.Triggers {
		triggers += t.Seconds
	}
	phases := []struct {
		name    string
		seconds float64
	}{
		{"detect", e.DetectSeconds}, {"elect", e.ElectSeconds}, {"fence", fence}, {"trigger", triggers},
		{"open", max(e.SwitchSeconds-fence-triggers, 0)},
	}
	scale := max(e.BoundSeconds, 0)
	if scale == 0 {
		scale = e.TotalSeconds
	}
	at, sum := 0, 0.0
	var said []string
	for _, p := range phases {
		if p.seconds <= 0 || scale <= 0 {
			continue
		}
		sum += p.seconds
		if end := min(max(int(sum/scale*barBound), at+1), barWidth); end > at {
			v.Bars = append(v.Bars, bar{p.name, at, end - at})
			at = end
		}
		said = append(said, p.name+" "+took(p.seconds))
		v.Steps = append(v.Steps, fact{Name: p.name, Value: took(p.seconds)})
	}
	v.Label = strings.Join(said, ", ")
	v.explain(e)
	return v
}

// explainOrder adds what belongs to an order.
func (v *electionView) explainOrder(e control.Event) {
	o := e.Order
	v.New = o.Host
	v.Order = strings.TrimPrefix(e.Reason, string(e.Event)+" ")
	if o.Member != "" {
		v.Steps = append(v.Steps, fact{Name: "member", Note: o.Member})
	}
	if o.Remote {
		v.Steps = append(v.Steps, fact{Name: "where", Note: "at another instance of the cluster"})
	}
	if !o.Until.IsZero() {
		name := "until"
		if e.Event == failover.OrderSchedule || e.Event == failover.OrderCancel {
			name = "at"
		}
		v.Steps = append(v.Steps, fact{Name: name, Note: stamp(o.Until)})
	}
	if o.Result != e.Failure {
		v.Steps = append(v.Steps, fact{Name: "result", Note: o.Result})
	}
}

// explain adds what happened in each phase.
func (v *electionView) explain(e control.Event) {
	if e.Order != nil {
		v.explainOrder(e)
		return
	}
	note := func(phase, text string) {
		i := slices.IndexFunc(v.Steps, func(f fact) bool { return f.Name == phase })
		if i < 0 {
			v.Steps = append(v.Steps, fact{Name: phase})
			i = len(v.Steps) - 1
		}
		v.Steps[i].Note = text
	}
	if l := e.Loss; l != nil {
		v.Steps = append(v.Steps, fact{Name: "loss", Note: l.String()})
	}
	if b := e.FirstBad; b != nil {
		note("detect", "first bad check: "+b.Check+suffix(": ", b.Error))
	}
	if f := e.Fence; f != nil && f.Finished+f.Reset+f.Moved+f.Kept > 0 {
		note("fence", fmt.Sprintf("earlier connections: %d finished, %d reset, %d moved, %d kept", f.Finished, f.Reset, f.Moved, f.Kept))
	}
	var ran []string
	for _, t := range e.Triggers {
		ran = append(ran, filepath.Base(t.Script)+": "+t.Status+" after "+took(t.Seconds))
	}
	if len(ran) > 0 {
		note("trigger", strings.Join(ran, "; "))
	}
	if !e.Opened.IsZero() {
		text := fmt.Sprintf("clients that waited: %d; timed out: %d", e.ClientsHeld, e.ClientsLost)
		if !e.FirstByte.IsZero() {
			text += "; first byte " + took(e.FirstByte.Sub(e.Opened).Seconds()) + " later"
		}
		note("open", text)
	}
	if k := e.Canary; k != nil {
		text := "the canary was served all the time"
		if k.Attempts > 0 {
			text = fmt.Sprintf("attempts that failed or were slow: %d%s", k.Attempts, suffix("; ", k.Error))
		}
		v.Steps = append(v.Steps, fact{Name: "canary", Value: took(k.Seconds), Note: text})
	}
}

// shapeOf changes with everything that the script cannot change in a page: the relays
// and the program.
func shapeOf(s control.Status, acts bool) string {
	h := fnv.New64a()
	fmt.Fprintln(h, s.Version, s.PID, s.Started.UnixNano(), acts)
	for _, r := range s.Relays {
		fmt.Fprintf(h, "%q\n", r.Name)
	}
	return strconv.FormatUint(h.Sum64(), 36)
}

func stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05 MST") }

// millis returns a time for the script, which counts ages; 0 for none.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// age formats a time span for people, with few changes.
func age(d time.Duration) string {
	switch {
	case d < time.Second:
		return "0 s"
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%d d %d h", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// took formats a duration that was measured.
func took(seconds float64) string {
	switch ms := seconds * 1000; {
	case seconds >= 3600:
		return age(time.Duration(seconds * float64(time.Second)))
	case seconds >= 60:
		return fmt.Sprintf("%d min %d s", int(seconds)/60, int(seconds)%60)
	case ms < 10:
		return strconv.FormatFloat(ms, 'f', 2, 64) + " ms"
	case ms < 1000:
		return strconv.FormatFloat(ms, 'f', 0, 64) + " ms"
	}
	return strconv.FormatFloat(seconds, 'f', 2, 64) + " s"
}

// count formats a number with separators.
func count(n uint64) string {
	text := strconv.FormatUint(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// size formats a number of bytes.
func size(n uint64) string {
	if n < 1000 {
		return strconv.FormatUint(n, 10) + " B"
	}
	f, unit := float64(n), -1
	for f >= 999.5 && unit < 5 {
		f /= 1000
		unit++
	}
	digits := 0
	if f < 9.95 {
		digits = 1
	}
	return strconv.FormatFloat(f, 'f', digits, 64) + " " + string("kMGTPE"[unit]) + "B"
}
