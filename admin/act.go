package admin

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"understudy/control"
	"understudy/failover"
	"understudy/internal/safetext"
)

const (
	// formLimit limits the bytes of a form.
	formLimit = 16 << 10

	// wordsMost limits the bytes of a text that an operator types.
	wordsMost = 300

	// orderTimeout is the time for which an answer to an order may take: a switch can
	// wait for connections that finish and for triggers.
	orderTimeout = 10 * time.Minute
)

// verbs are the orders that the page gives: what they do, and whether to a host.
var verbs = map[string]struct {
	label, does string
	host        bool
}{
	"switch":   {"Switch", "Makes this host primary. New clients wait until it is; earlier connections end as the fence policy says.", true},
	"drain":    {"Drain", "Excludes this host from elections until it is made ready. If it is primary, another host is elected first.", true},
	"ready":    {"Ready", "Ends the drain: this host takes part in elections again.", true},
	"freeze":   {"Freeze", "Forbids automatic failovers until unfreeze: if the primary fails, clients have none.", false},
	"unfreeze": {"Unfreeze", "Allows automatic failovers again.", false},
	"drill":    {"Drill", "Rehearses a failover: checks now who would take over. Nothing is changed.", false},
}

func actionOf(verb, label, relay, host string) action {
	q := url.Values{"verb": {verb}, "relay": {relay}}
	name := relay
	if host != "" {
		q.Set("host", host)
		name = host
	}
	return action{Label: label, URL: "act?" + q.Encode(), Title: label + " " + name}
}

// order is an order as it comes from a form, before it is confirmed.
type order struct {
	verb        string
	relay, host string
	typed       string // the name that the operator typed
	by, reason  string
}

// readOrder reads an order from a query or a form.
func readOrder(q url.Values) (order, error) {
	o := order{
		verb: q.Get("verb"), relay: q.Get("relay"), host: q.Get("host"),
		typed: strings.TrimSpace(q.Get("typed")), by: words(q.Get("by")), reason: words(q.Get("reason")),
	}
	v, found := verbs[o.verb]
	switch {
	case !found:
		return o, fmt.Errorf("there is no order %q", safetext.Escape(o.verb))
	case v.host && o.host == "":
		return o, errors.New("the host is missing")
	case !v.host && o.host != "":
		return o, fmt.Errorf("%s takes no host", o.verb)
	}
	return o, nil
}

// words returns a text that an operator typed, as one line of bounded length.
func words(text string) string {
	text = strings.ToValidUTF8(safetext.Line(text), "\uFFFD")
	return string(safetext.Append(nil, text, wordsMost))
}

// object returns the name that a person types to confirm an order.
func (o order) object() string { return cmp.Or(o.host, o.relay) }

// command returns the command line that does the same. Reason is left out while the
// operator has given none.
func (o order) command(several bool) string {
	args := []string{"understudy", o.verb}
	if o.host != "" {
		args = append(args, shellWord(o.host))
	}
	if several {
		args = append(args, "--relay", shellWord(o.relay))
	}
	if o.reason != "" {
		args = append(args, "--reason", shellWord(o.reason))
	}
	return strings.Join(args, " ")
}

// shellWord quotes a word for sh(1) where it has to be.
func shellWord(word string) string {
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_.:/@%+=,", r)
	}
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool { return !plain(r) }) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// actView is the page that asks for confirmation, or shows the result.
type actView struct {
	Level                       level
	Title, Command, Does, Why   string
	Verb, Relay, Host           string
	What                        string // "host" or "relay": whose name is typed
	Object, By, Reason          string
	Problem                     string
	Result                      string
	Steps                       []failover.Step
	Others                      []failover.Candidate
	Done, WithReason, SaysRelay bool
}

// viewOf returns the page for an order, or why the order makes no sense now.
func (p *Page) viewOf(o order) (actView, error) {
	s := p.cfg.Status()
	i := slices.IndexFunc(s.Relays, func(r control.RelayStatus) bool { return r.Name == o.relay })
	if i < 0 {
		return actView{}, fmt.Errorf("there is no relay %q", safetext.Escape(o.relay))
	}
	r := s.Relays[i]
	v := actView{
		Level: warn, Title: verbs[o.verb].label + " " + o.object() + "?", Command: o.command(len(s.Relays) > 1),
		Does: verbs[o.verb].does, Why: r.Why, Verb: o.verb, Relay: o.relay, Host: o.host, What: "relay",
		Object: o.object(), By: o.by, Reason: o.reason, SaysRelay: len(s.Relays) > 1 && o.host != "",
		WithReason: o.verb == "switch" || o.verb == "drain" || o.verb == "freeze",
	}
	if o.host != "" {
		v.What = "host"
		h := slices.IndexFunc(r.Hosts, func(h control.Host) bool { return h.Name == o.host })
		if h < 0 {
			return actView{}, fmt.Errorf("relay %s has no host %q", o.relay, safetext.Escape(o.host))
		}
		if !r.Hosts[h].Primary {
			v.Why += ". " + r.Hosts[h].Why
		}
	}
	return v, nil
}

// confirm shows an order and asks for the name of its object.
func (p *Page) confirm(w http.ResponseWriter, r *http.Request) {
	o, err := readOrder(r.URL.Query())
	var v actView
	if err == nil {
		v, err = p.viewOf(o)
	}
	if err != nil {
		p.refuse(w, http.StatusBadRequest, err)
		return
	}
	v.By, _, _ = r.BasicAuth()
	p.render(w, http.StatusOK, "act", v)
}

// refuse answers a request for an order that makes no sense.
func (p *Page) refuse(w http.ResponseWriter, status int, err error) {
	p.render(w, status, "act", actView{Level: bad, Title: "Not done", Problem: err.Error(), Done: true})
}

// act carries out an order that is confirmed.
func (p *Page) act(w http.ResponseWriter, r *http.Request) {
	if err := sameOrigin(r); err != nil {
		p.refuse(w, http.StatusForbidden, err)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, formLimit)
	if err := r.ParseForm(); err != nil {
		p.refuse(w, http.StatusBadRequest, errors.New("the form cannot be read"))
		return
	}
	o, err := readOrder(r.PostForm)
	var v actView
	if err == nil {
		v, err = p.viewOf(o)
	}
	if err != nil {
		p.refuse(w, http.StatusBadRequest, err)
		return
	}
	switch {
	case o.typed != o.object():
		v.Level, v.Problem = bad, fmt.Sprintf("Not done: %q is not the name of the %s, %q.", o.typed, v.What, o.object())
	case o.by == "":
		v.Level, v.Problem = bad, "Not done: say who you are."
	}
	if v.Problem != "" {
		p.render(w, http.StatusUnprocessableEntity, "act", v)
		return
	}
	// The listener's limits are for answers that take no time.
	out := http.NewResponseController(w)
	_ = out.SetReadDeadline(time.Time{})
	_ = out.SetWriteDeadline(time.Now().Add(orderTimeout))
	client, _, _ := net.SplitHostPort(r.RemoteAddr)
	done, err := p.cfg.Order(r.Context(), o.verb, control.Order{
		Relay: o.relay, Host: o.host, Reason: o.reason, By: o.by + " (page, from " + client + ")",
	})
	if err != nil {
		v.Level, v.Problem = bad, "Not done: "+err.Error()
		p.render(w, http.StatusConflict, "act", v)
		return
	}
	v.Done, v.Level, v.Title = true, ok, verbs[o.verb].label+" "+o.object()
	v.tell(done)
	p.render(w, http.StatusOK, "act", v)
}

// tell sets the result of an order.
func (v *actView) tell(done any) {
	switch d := done.(type) {
	case control.SwitchAnswer:
		v.Result = fmt.Sprintf("%s is primary, after %s. Its election is number %d.", d.Host, took(d.Seconds), d.Epoch)
	case control.LockAnswer:
		v.Result = map[string]string{
			"drain":    v.Object + " is drained until it is made ready.",
			"ready":    v.Object + " takes part in elections.",
			"freeze":   "Frozen: no automatic failover until unfreeze.",
			"unfreeze": "Not frozen: automatic failovers are allowed.",
		}[v.Verb]
	case control.DrillAnswer:
		v.Result, v.Steps, v.Others = d.Text, d.Steps, d.Candidates
		if !d.OK {
			v.Level = bad
		}
	default:
		v.Result = "Done."
	}
}

// sameOrigin returns an error for an order that another site makes a browser send. The
// token is no proof, because a browser sends it by itself once an operator has typed it.
func sameOrigin(r *http.Request) error {
	if r.Header.Get("Sec-Fetch-Site") == "" && r.Header.Get("Origin") == "" && !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
		return errors.New("the browser does not say which site the order comes from")
	}
	var guard http.CrossOriginProtection
	if guard.Check(r) != nil {
		return errors.New("the order comes from another site")
	}
	return nil
}
