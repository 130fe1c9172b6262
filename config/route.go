package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy/internal/criteria"
	"understudy/internal/safetext"
)

// routeSection is one entry of the map of routes.
type routeSection struct {
	at    Origin
	route Route

	// members sets the members of the route, once all relays are known; nil for
	// a route without members.
	members func(relays []Relay)
}

// routeParts holds the values of the keys of a route of any kind.
type routeParts struct {
	flags     string
	metrics   Metrics
	verdict   Verdict
	heartbeat Heartbeat
	endpoints Endpoints

	policy  string
	members memberList
}

// memberList lists the members of a route. A list that is not given is nil.
type memberList struct {
	relays, probes, must, ignore *nameList
}

// nameList is a list of names, or one of the words all and none.
type nameList struct {
	at    spot
	names []string
	word  string
}

type routeKey = key[routeParts]

var metricsKeys = slices.Concat([]routeKey{
	{name: "metrics", value: "true or false", help: "true serves the metrics of --admin here, too (required)",
		parse: one(onOff, func(p *routeParts, v bool) { p.metrics.Serve = v })},
}, tokenKeys(func(p *routeParts) *Secret { return &p.metrics.Token }, "every request needs this token"))

var flagsKeys = []routeKey{
	{name: "flags", value: "directory", help: "directory of flag files, answered as for /status (required)",
		parse: one(text, func(p *routeParts, v string) { p.flags = v })},
}

// verdictTime accepts the time of a whole verdict, which must leave time to send
// the answer: the listener ends an answer after 10s.
var verdictTime = durationWithin(time.Millisecond, 9*time.Second)

var verdictKeys = slices.Concat([]routeKey{
	{name: "policy", value: "word", fallback: "all", help: "all, or quorum",
		parse: one(verdictPolicy, func(p *routeParts, v string) { p.policy = v })},
	{name: "quorum", value: "number", help: "how many of the ports, relays and probes must pass, in addition to those of must",
		parse: one(number(1, maxList), func(p *routeParts, v int) { p.verdict.Quorum = v })},
	{name: "ports", value: "list of numbers", list: true, help: "local ports that the request is replayed to",
		parse: each(port, func(p *routeParts, v int) { p.verdict.Ports = append(p.verdict.Ports, v) })},
}, lift(criteriaKeys, func(p *routeParts) *criteria.Expect { return &p.verdict.Expect }), memberKeys("all", "none"), []routeKey{
	{name: "must", value: "list of names", help: "relays and probes that must pass, independent of quorum",
		read: func(r *reader, s spot, p *routeParts) { p.members.must = r.nameList(s) }},
	{name: "ignore", value: "list of names", help: "relays and probes that are only reported",
		read: func(r *reader, s spot, p *routeParts) { p.members.ignore = r.nameList(s) }},
	{name: "timeout", value: "duration", fallback: defaultOf("ping-timeout"), help: "timeout of the whole answer; at most 9s",
		parse: one(verdictTime, func(p *routeParts, v time.Duration) { p.verdict.Timeout = v })},
	{name: "fail_status", value: "status", fallback: defaultOf("fail-status"), help: "status of a failing verdict: auto (never a 2xx), keep, or a number from 400 to 599",
		parse: one(failStatus, func(p *routeParts, v string) { p.verdict.FailStatus = v })},
	{name: "standby", value: "word", fallback: "optional", help: "optional, or required: a relay of several hosts is healthy only while another host could take over from the primary",
		parse: one(word("optional", "required"), func(p *routeParts, v string) { p.verdict.Standby = v == "required" })},
	{name: "agent", value: "address:port", help: "address:port for HAProxy's agent-check",
		parse: one(httpAddress, func(p *routeParts, v string) { p.verdict.Agent = v })},
	{name: "agent_drain", value: "true or false", fallback: "false", help: "let the agent send drain while the program ends, and ready for a minute after its start; this cancels a MAINT or DRAIN that an operator set in HAProxy",
		parse: one(onOff, func(p *routeParts, v bool) { p.verdict.AgentDrain = v })},
	{name: "tcp", value: "address:port", help: "listen here only while the verdict is good",
		parse: one(httpAddress, func(p *routeParts, v string) { p.verdict.TCP = v })},
}, tokenKeys(func(p *routeParts) *Secret { return &p.verdict.Token }, "a request with this token gets the reasons, in JSON"))

var heartbeatKeys = slices.Concat([]routeKey{
	{name: "name", value: "text", help: "what the server calls itself (required)",
		parse: one(lineOfText, func(p *routeParts, v string) { p.heartbeat.Name = v })},
}, memberKeys("none", "all"), []routeKey{
	{name: "ignore", value: "list of names", help: "relays and probes that do not count",
		read: func(r *reader, s spot, p *routeParts) { p.members.ignore = r.nameList(s) }},
	{name: "dead_dir", value: "directory", help: "NAME.dead files are kept here, for other programs and as a manual override",
		parse: one(text, func(p *routeParts, v string) { p.heartbeat.Dead = v })},
}, tokenKeys(func(p *routeParts) *Secret { return &p.heartbeat.Token }, "what has to be sent (one of these is required)"))

var endpointsKeys = []routeKey{
	{name: "endpoints", value: "list of URLs", list: true, help: "whom to replay to; a path is a prefix (required)",
		parse: each(endpointURL, func(p *routeParts, v string) { p.endpoints.URLs = append(p.endpoints.URLs, v) })},
	{name: "policy", value: "word", fallback: "first", help: "first: one after the other until one has a usable answer; race: all at once",
		parse: one(endpointsPolicy, func(p *routeParts, v string) { p.endpoints.Race = v == "race" })},
	{name: "status", value: "list", list: true, fallback: "1xx,2xx,3xx,4xx", help: "statuses and classes of a usable answer",
		parse: each(status, func(p *routeParts, v string) { p.endpoints.Status = append(p.endpoints.Status, v) })},
	{name: "timeout", value: "duration", fallback: defaultOf("endpoint-timeout"), help: "time until the answer of one has to begin",
		parse: one(duration(time.Millisecond), func(p *routeParts, v time.Duration) { p.endpoints.Timeout = v })},
	{name: "total_timeout", value: "duration", help: "timeout of all of them together; default: enough for each",
		parse: one(duration(time.Millisecond), func(p *routeParts, v time.Duration) { p.endpoints.Total = v })},
	{name: "preserve_host", value: "true or false", fallback: "false", help: "send the Host of the request instead of the endpoint's",
		parse: one(onOff, func(p *routeParts, v bool) { p.endpoints.PreserveHost = v })},
	{name: "tls", value: "map", help: "TLS connections to https endpoints; see above",
		read: func(r *reader, s spot, p *routeParts) { clientTLS(r, s, &p.endpoints.TLS) }},
}

// memberKeys returns the keys for the members of a route, with the defaults of
// relays and probes.
func memberKeys(relays, probes string) []routeKey {
	return []routeKey{
		{name: "relays", value: "all, none or list of names", fallback: relays, help: "relays that count: one with a primary is healthy",
			read: func(r *reader, s spot, p *routeParts) { p.members.relays = r.nameList(s) }},
		{name: "probes", value: "all, none or list of names", fallback: probes, help: "probes that count: one that is up is healthy",
			read: func(r *reader, s spot, p *routeParts) { p.members.probes = r.nameList(s) }},
	}
}

// routeKind is one of the kinds of routes.
type routeKind struct {
	name   string   // with an article: "a verdict"
	marks  []string // keys that only this kind has
	keys   []routeKey
	finish func(r *reader, s spot, given map[string]spot, p *routeParts, to *routeSection)
}

// routeKinds returns the kinds. A route is of the first kind that has one of its
// keys among its marks; otherwise it is a verdict.
func routeKinds() []routeKind {
	return []routeKind{
		{"a flags route", []string{"flags"}, flagsKeys, finishFlags},
		{"a metrics route", []string{"metrics"}, metricsKeys, finishMetrics},
		{"an endpoints route", []string{"endpoints", "total_timeout", "preserve_host", "tls"}, endpointsKeys, finishEndpoints},
		{"a heartbeat", []string{"name", "dead_dir"}, heartbeatKeys, finishHeartbeat},
		{"a verdict", nil, verdictKeys, finishVerdict},
	}
}

// routes reads the map of routes.
func (r *reader) routes(s spot) {
	entries, ok := r.entries(s, maxRoutes)
	if !ok {
		return
	}
	r.file.routesAt = r.at(s)
	for _, e := range entries {
		if _, err := urlPath(e.key); err != nil {
			r.problem(e, "%s %v", quote(e.key), err)
			continue
		}
		keys, ok := r.entries(e, maxList)
		if !ok {
			continue
		}
		kinds := routeKinds()
		kind := kinds[slices.IndexFunc(kinds, func(k routeKind) bool {
			return k.marks == nil || slices.ContainsFunc(keys, func(key spot) bool { return slices.Contains(k.marks, key.key) })
		})]
		var p routeParts
		// The entries are read a second time here. Their errors are recorded twice,
		// but err reports each once.
		given, _ := decode(r, e, kind.keys, &p, func(key string) string {
			var takers []string
			for _, other := range kinds {
				if slices.ContainsFunc(other.keys, func(k routeKey) bool { return k.name == key }) {
					takers = append(takers, other.name)
				}
			}
			if len(takers) == 0 {
				return ""
			}
			return fmt.Sprintf("is not valid here: this is %s, and it belongs to %s", kind.name, strings.Join(takers, " or "))
		})
		section := routeSection{at: r.at(e), route: Route{Path: e.key}}
		kind.finish(r, e, given, &p, &section)
		r.file.routes = append(r.file.routes, section)
	}
}

func finishFlags(_ *reader, _ spot, _ map[string]spot, p *routeParts, to *routeSection) {
	to.route.Flags = p.flags
}

func finishMetrics(r *reader, s spot, given map[string]spot, p *routeParts, to *routeSection) {
	r.oneToken(given)
	if !p.metrics.Serve {
		r.problem(s, "serves nothing: set metrics to true, or remove the route")
	}
	to.route.Metrics = &p.metrics
}

func finishEndpoints(r *reader, s spot, given map[string]spot, p *routeParts, to *routeSection) {
	e := &p.endpoints
	at, ok := given["endpoints"]
	switch {
	case !ok:
		r.problem(s, "needs endpoints")
	case isEmpty(at):
		r.problem(at, "is empty")
	}
	if at, ok := given["status"]; ok && isEmpty(at) {
		r.problem(at, "names no status")
	}
	if at, ok := given["tls"]; ok && !slices.ContainsFunc(e.URLs, func(u string) bool { return strings.HasPrefix(strings.ToLower(u), "https:") }) {
		r.problem(at, "is for https, and no endpoint is")
	}
	e.fillTotal()
	to.route.Endpoints = e
}

// fillTotal sets a missing Total to the sum of the timeouts of all endpoints.
func (e *Endpoints) fillTotal() {
	if e.Total == 0 {
		e.Total = e.Timeout
		if !e.Race {
			e.Total = min(e.Timeout*time.Duration(min(max(len(e.URLs), 1), maxList)), maxDuration)
		}
	}
}

func finishHeartbeat(r *reader, s spot, given map[string]spot, p *routeParts, to *routeSection) {
	if _, ok := given["name"]; !ok {
		r.problem(s, "needs a name: what the server calls itself")
	}
	if !r.oneToken(given) {
		r.problem(s, "needs a token: set token_file or token_env")
	}
	to.route.Heartbeat = &p.heartbeat
	to.members = func(relays []Relay) {
		known := len(r.d.problems)
		p.heartbeat.Members = r.findMembers(p.members, relays, "none", "all")
		if len(p.heartbeat.Members) == 0 && len(r.d.problems) == known {
			r.problem(s, "has nothing to report: there are no probes")
		}
	}
}

func finishVerdict(r *reader, s spot, given map[string]spot, p *routeParts, to *routeSection) {
	v := &p.verdict
	checkExpect(r, given, v.Expect)
	r.oneToken(given)
	for i, n := range v.Ports {
		if slices.Contains(v.Ports[:i], n) {
			r.problem(given["ports"], "%d is listed twice", n)
		}
	}
	ports, ok := given["ports"]
	noPorts := !ok || isEmpty(ports)
	for _, k := range criteriaKeys {
		if at, ok := given[k.name]; ok && noPorts {
			r.problem(at, "is about the answers of ports, and there are none")
		}
	}
	if len(v.Ports) > 0 {
		v.Expect = v.OrPong()
	}
	policy, hasPolicy := given["policy"]
	quorum, hasQuorum := given["quorum"]
	switch {
	case hasPolicy && p.policy == "all" && hasQuorum:
		r.problem(quorum, "is set together with policy: all: set one of them")
	case p.policy == "quorum" && !hasQuorum:
		r.problem(policy, "needs quorum, the number that must pass")
	}
	for way, addr := range map[string]string{"agent": v.Agent, "tcp": v.TCP} {
		if addr != "" {
			r.file.addresses = append(r.file.addresses, listener{r.at(given[way]), addr})
		}
	}
	to.route.Verdict = v
	to.members = func(relays []Relay) {
		known := len(r.d.problems)
		v.Members = r.findMembers(p.members, relays, "all", "none")
		if len(r.d.problems) > known {
			return // further errors would only follow from these
		}
		if len(v.Members)+len(v.Ports) == 0 {
			r.problem(s, "has no members: set ports, relays or probes")
			return
		}
		counting := len(v.Ports)
		for _, m := range v.Members {
			if !m.Must && !m.Ignore {
				counting++
			}
		}
		if v.Quorum > counting {
			r.problem(quorum, "%d is more than the %d ports, relays and probes that count", v.Quorum, counting)
		}
	}
}

// findMembers returns the members of a route in the order of the file: relays,
// probes, and then those that only must or ignore name. RelaysBy and probesBy
// are the defaults.
func (r *reader) findMembers(list memberList, relays []Relay, relaysBy, probesBy string) (members []Member) {
	var relayNames, probeNames []string
	if len(relays) == 1 && relays[0].Unnamed && relays[0].Name != MainRelay {
		own := relays[0].Name
		list.relays, list.must, list.ignore = list.relays.without(own), list.must.without(own), list.ignore.without(own)
		relays = []Relay{{Name: MainRelay}}
		defer func() {
			for i := range members {
				if members[i].Name == MainRelay {
					members[i].Name = own
				}
			}
		}()
	}
	for _, relay := range relays {
		relayNames = append(relayNames, relay.Name)
	}
	for _, probe := range r.file.probes {
		probeNames = append(probeNames, probe.Name)
	}
	add := func(name string) *Member {
		for i := range members {
			if members[i].Name == name {
				return &members[i]
			}
		}
		members = append(members, Member{Name: name, Probe: slices.Contains(probeNames, name)})
		return &members[len(members)-1]
	}
	for _, name := range r.names(list.relays, relaysBy, "relay", relayNames) {
		add(name)
	}
	for _, name := range r.names(list.probes, probesBy, "probe", probeNames) {
		add(name)
	}
	either := slices.Concat(relayNames, probeNames)
	for _, name := range r.names(list.must, "none", "relay or probe", either) {
		add(name).Must = true
	}
	for _, name := range r.names(list.ignore, "none", "relay or probe", either) {
		m := add(name)
		if m.Must {
			r.problem(list.ignore.at, "%s is listed in must too", quote(name))
		}
		m.Ignore = true
	}
	return members
}

// without returns the list with [MainRelay] in place of own, which is the name that
// a relay without one got.
func (l *nameList) without(own string) *nameList {
	if l == nil || !slices.Contains(l.names, own) {
		return l
	}
	renamed := *l
	renamed.names = slices.Clone(l.names)
	for i, name := range renamed.names {
		if name == own {
			renamed.names[i] = MainRelay
		}
	}
	return &renamed
}

// nameList reads a list of names.
func (r *reader) nameList(s spot) *nameList {
	texts, ok := r.texts(s)
	if !ok {
		return &nameList{at: s, word: "none"}
	}
	list := &nameList{at: s, names: texts}
	if isSingle(s) {
		list.names = routeKey{list: true}.split(texts[0])
		if len(list.names) == 1 && (list.names[0] == "all" || list.names[0] == "none") {
			list.word = list.names[0]
		}
	}
	r.record(s.path, strings.Join(list.names, ","), r.at(s))
	return list
}

// names returns the names in list, which must be known. A nil list is the word
// otherwise.
func (r *reader) names(list *nameList, otherwise, what string, known []string) (names []string) {
	if list == nil {
		list = &nameList{word: otherwise}
	}
	switch list.word {
	case "all":
		return known
	case "none":
		return nil
	}
	for _, text := range list.names {
		if slices.Contains(names, text) {
			r.problem(list.at, "%s is listed twice", quote(text))
		} else if slices.Contains(known, text) {
			names = append(names, text)
		} else if near := r.nearest(text, known); near != "" {
			r.problem(list.at, "there is no %s called %s: did you mean %s?", what, quote(text), near)
		} else {
			r.problem(list.at, "there is no %s called %s", what, quote(text))
		}
	}
	return names
}

// makeRoutes joins the routes of flags and variables with those of the file.
func (d *draft) makeRoutes(file *file) {
	byPath := map[string]Origin{}
	take := func(at Origin, route Route) {
		if by, taken := byPath[route.Path]; taken {
			d.problem(at, fmt.Errorf("%s is answered by %s already", route.Path, by.place()))
			return
		}
		byPath[route.Path] = at
		d.settings.HTTP.Routes = append(d.settings.HTTP.Routes, route)
	}
	relays := d.settings.Relays
	answers := d.given("http")
	if d.given("status-dir") && slices.Contains(d.pingPaths, StatusPath) {
		d.problem(d.at("ping-path"), fmt.Errorf("%s is answered from the flags in %s", StatusPath, d.at("status-dir").place()))
	}
	ping := d.given("lport") || len(relays) > 0 && (d.given("ping-path") || len(file.routes) == 0)
	if answers && ping {
		at := d.at("ping-path")
		if !d.given("ping-path") {
			at = d.at("lport")
			if !d.given("lport") {
				at = d.at("http")
			}
		}
		d.warnDuplicatePorts(d.at("lport"), d.ping.Ports)
		if len(d.ping.Ports) > 0 {
			d.ping.Expect = d.ping.OrPong()
		}
		for _, relay := range relays {
			d.ping.Members = append(d.ping.Members, Member{Name: relay.Name})
		}
		for _, path := range d.pingPaths {
			if path == StatusPath && d.given("status-dir") {
				continue // reported above
			}
			verdict := d.ping
			take(at, Route{Path: path, Verdict: &verdict})
		}
	}
	if answers && d.statusDir != "" {
		take(d.at("status-dir"), Route{Path: StatusPath, Flags: d.statusDir})
	}
	if answers && d.given("endpoints") {
		d.endpoints.fillTotal()
		take(d.at("endpoints"), Route{Path: "/", Endpoints: &d.endpoints})
	}
	for _, section := range file.routes {
		if section.members != nil {
			section.members(relays)
		}
		take(section.at, section.route)
	}
}

func verdictPolicy(text string) (string, error) {
	if text == "first" || text == "race" {
		return "", errors.New("is a policy of endpoints, and there are none")
	}
	return word("all", "quorum")(text)
}

func endpointsPolicy(text string) (string, error) {
	if text == "all" || text == "quorum" {
		return "", errors.New("is a policy of verdicts: want first or race for endpoints")
	}
	return word("first", "race")(text)
}

// lineOfText accepts what can stand in a line.
func lineOfText(text string) (string, error) {
	if strings.TrimSpace(text) == "" {
		return "", errors.New("is empty")
	}
	if len(text) > 256 || safetext.HasControl(text) {
		return "", errors.New("is longer than 256 bytes, or not one line")
	}
	return text, nil
}
