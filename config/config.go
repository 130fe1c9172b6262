// Package config turns what the operator wrote (flags, environment variables
// and a YAML file) into one checked [Settings].
//
// [Table] is the single list of settings: names, defaults, descriptions and
// the way from text to a typed value all come from it, so that the command
// line, the environment, the file, the help and the printed configuration
// cannot disagree. What only a file can say (several relays, checks, probes,
// routes) is described by tables of the same kind beside the code that reads
// it. The package knows no part of the program that uses the settings.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ErrNothing is returned by [Load] when the operator asked for nothing: no
// relay, no HTTP listener and no mistake either.
var ErrNothing = errors.New("nothing to do: neither hosts to relay to nor an HTTP address is set")

// Kind is the kind of place that a value came from, the weakest first.
type Kind int

// The places, the weakest first: a flag wins over the environment, the
// environment over the file, the file over the default.
const (
	Default Kind = iota
	File
	Environment
	Flag
)

// Origin says where a value came from.
type Origin struct {
	Kind Kind
	Name string // as the operator wrote it: "--rise", "RISE", "understudy.yaml:12"; empty for a default

	line int    // in the file; zero elsewhere
	key  string // way to it in the file: "relays[0].rise"
}

// String says it in words, like "flag --rise", or "default".
func (o Origin) String() string {
	switch o.Kind {
	case Flag:
		return "flag " + o.Name
	case Environment:
		return "environment " + o.Name
	case File:
		return "file " + o.Name
	case Default:
	}
	return "default"
}

// place is how a problem names it.
func (o Origin) place() string {
	if o.key != "" {
		return o.Name + ": " + o.key
	}
	return o.Name
}

// Value is one setting's value in the operator's words, and its origin.
type Value struct {
	// Name is "hosts" for a setting of the [Table], and the way to it for what
	// only a file can say: "relays[orders].hosts", "routes[/ping].ports".
	Name string

	Flag   string // long name of a setting of the [Table], empty for the others
	Text   string // lists joined with commas; secrets masked
	Origin Origin
}

// masked stands for a secret.
const masked = "********"

// Given is what the operator wrote, before anything was made of it.
type Given struct {
	// Flags holds the values of each flag that was given, by long name, in
	// order. A switch without a value holds "true".
	Flags map[string][]string

	// Environ holds "NAME=value" pairs, as [os.Environ] returns them. An empty
	// variable is as good as none.
	Environ []string

	// Sockets holds the names of the listening sockets that were passed in;
	// they stand in for addresses to listen on. One that bears the name of a
	// relay is that relay's, one without a name (see [named]) the only relay's.
	Sockets []string

	// Anywhere says that it makes no difference where relays listen: none has
	// to say.
	Anywhere bool

	// ReadFile returns the content of the configuration file. Nil reads it
	// from the file system, if it is a regular file of 1 MiB at most.
	ReadFile func(name string) ([]byte, error)
}

// Load merges g, and the file that it names, with the defaults and checks
// everything. The error joins one error for each problem, each naming the
// setting as the operator wrote it (of a file with its line) and the value; it
// is [ErrNothing] when nothing at all was asked for. Values are complete
// whether there is an error or not: first those of the [Table] in its order (a
// relay's settings as they are for relays that say nothing else), then those
// that only a file has.
func Load(g Given) (Settings, []Value, error) {
	d := &draft{flags: g.Flags, env: environment(g.Environ), sockets: g.Sockets, anywhere: g.Anywhere, raw: map[string]raw{}, claimed: map[string]Origin{}}
	file := d.readFile(g.ReadFile)
	for i := range table {
		s := &table[i]
		d.raw[s.Flag] = d.choose(s, file.top)
	}
	if !file.listed {
		d.oneAddress(d.raw)
		d.lookIntoScriptsDir(d.raw)
	}
	// Without a relay the settings of one are checked all the same.
	d.parse(d.raw, (*Setting).OfRelay)
	d.parse(d.raw, func(s *Setting) bool { return !s.OfRelay() })
	var values []Value
	for i := range table {
		s := &table[i]
		values = append(values, valueOf(s, d.raw[s.Flag], s.Flag, s.Flag))
	}
	if file.listed {
		values = append(values, d.listedRelays(file)...)
	} else {
		d.mainRelay(file)
	}
	d.checkSockets()
	d.settings.Probes = file.probes
	d.makeRoutes(file)
	d.checkTogether(file)
	return d.settings, append(values, file.values...), d.err()
}

// valueOf is how v, a value of s, is printed.
func valueOf(s *Setting, v raw, name, flag string) Value {
	text := strings.Join(v.texts, ",")
	if !s.List && len(v.texts) > 0 {
		text = v.texts[len(v.texts)-1]
	}
	if s.Secret && text != "" {
		text = masked
	}
	if s.Flag == "endpoints" {
		text = withoutPasswords(text)
	}
	return Value{Name: name, Flag: flag, Text: text, Origin: v.origin}
}

// raw is a setting's value as text. Texts is empty when nobody set it and it
// has no default, or when it is an empty list in the file.
type raw struct {
	texts  []string
	origin Origin
}

// given says whether anybody but the default set it, to something.
func (v raw) given() bool { return v.origin.Kind != Default && len(v.texts) > 0 }

// draft is a Settings in the making.
type draft struct {
	flags    map[string][]string
	env      map[string]string
	sockets  []string
	anywhere bool

	raw      map[string]raw // by flag: the program's settings, and those that hold for every relay
	relay    Relay          // the one in the making
	settings Settings

	// What the flat settings say about routes.
	ping      Verdict
	pingPaths []string
	statusDir string
	endpoints Endpoints

	claimed map[string]Origin // by address to listen on

	problems []problem
}

// problem is an error and the line of the file that it is about, if any.
type problem struct {
	line int
	text string
}

// problem remembers what is wrong at a place. What is wrong with a setting of
// every relay is said once.
func (d *draft) problem(at Origin, err error) {
	d.problems = append(d.problems, problem{at.line, escape(fmt.Sprintf("%s: %v", at.place(), err))})
}

// err joins the problems: those of flags and variables first, then those of
// the file from its beginning to its end.
func (d *draft) err() error {
	slices.SortStableFunc(d.problems, func(a, b problem) int { return cmp.Compare(a.line, b.line) })
	seen := map[string]bool{}
	var errs []error
	for _, p := range d.problems {
		if !seen[p.text] {
			seen[p.text] = true
			errs = append(errs, errors.New(p.text))
		}
	}
	if len(errs) == 0 && len(d.settings.Relays) == 0 && d.settings.HTTP.Listen == "" {
		return ErrNothing
	}
	return errors.Join(errs...)
}

// at is where the operator wrote the setting of flag, or the flag and the
// variable if nobody wrote it.
func (d *draft) at(flag string) Origin {
	if o := d.raw[flag].origin; o.Kind != Default {
		return o
	}
	return Origin{Name: "--" + flag + " or " + lookup(flag).Env}
}

// given says whether anybody but the default set flag.
func (d *draft) given(flag string) bool { return d.raw[flag].given() }

// choose returns the strongest value of s: a list is replaced, never merged.
// Sections are what the file says, the strongest first.
func (d *draft) choose(s *Setting, sections ...map[string]raw) raw {
	if v, ok := d.outside(s); ok {
		return v
	}
	for _, section := range sections {
		if v, ok := section[s.Flag]; ok {
			return v
		}
	}
	if s.Default != "" {
		return raw{texts: []string{s.Default}}
	}
	return raw{}
}

// outside returns the value of s that a flag or a variable gives.
func (d *draft) outside(s *Setting) (raw, bool) {
	if texts, ok := d.flags[s.Flag]; ok {
		return raw{texts: texts, origin: Origin{Kind: Flag, Name: "--" + s.Flag}}, true
	}
	if text := d.env[s.Env]; text != "" {
		return raw{texts: []string{text}, origin: Origin{Kind: Environment, Name: s.Env}}, true
	}
	return raw{}, false
}

// environment maps names to values. The last of equal names wins, as it does
// in a shell.
func environment(pairs []string) map[string]string {
	env := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		if name, value, ok := strings.Cut(pair, "="); ok {
			env[name] = value
		}
	}
	return env
}

// parse stores the values of the settings that are wanted.
func (d *draft) parse(values map[string]raw, wanted func(*Setting) bool) {
	for i := range table {
		s := &table[i]
		if !wanted(s) {
			continue
		}
		v := values[s.Flag]
		items, errs := s.split(v.texts)
		if len(errs) == 0 && len(items) > 0 {
			errs = s.parse(d, items)
		}
		for _, err := range errs {
			d.problem(v.origin, err)
		}
	}
}

// oneAddress lets --port or --bind replace the other one in the file, as they
// say the same: where to listen.
func (d *draft) oneAddress(values map[string]raw) {
	bind, port := values["bind"].origin.Kind, values["port"].origin.Kind
	if bind == File && port > File {
		values["bind"] = raw{}
	}
	if port == File && bind > File {
		values["port"] = raw{}
	}
}

// mainRelay takes the one relay that flags, variables and the top of the file
// describe, if they do.
func (d *draft) mainRelay(file *file) {
	d.checkRelay(d.raw, d.at)
	listens := d.given("bind") || d.given("port") || len(d.sockets) > 0 || d.anywhere
	switch {
	case d.given("hosts"):
		if !listens {
			d.problem(Origin{Name: fmt.Sprintf("%s (or %s)", d.at("port").place(), d.at("bind").place())}, errors.New("needed to say where to listen"))
		}
		d.relay.Name, d.relay.Sockets = MainRelay, d.socketsOf(MainRelay, true)
		d.relay.Checks = inherit(file.checks, d.relay)
		d.settings.Relays = []Relay{d.relay}
	case listens:
		d.problem(d.at("hosts"), errors.New("needed to say where to relay to"))
	}
}

// whereAndWhat are the settings that no two relays can share.
var whereAndWhat = []string{"bind", "port", "hosts"}

// listedRelays makes the relays that the file lists, and the values to print.
func (d *draft) listedRelays(file *file) (values []Value) {
	several := len(file.relays) > 1
	if several {
		for _, flag := range whereAndWhat {
			if v, ok := d.outside(lookup(flag)); ok {
				d.problem(v.origin, fmt.Errorf("is for one relay, and %s has %d: say it there", d.settings.File, len(file.relays)))
			}
		}
	}
	for _, section := range file.relays {
		own := map[string]raw{}
		for i := range table {
			switch s := &table[i]; {
			case !s.OfRelay():
			case several && slices.Contains(whereAndWhat, s.Flag):
				own[s.Flag] = section.settings[s.Flag]
			default:
				own[s.Flag] = d.choose(s, section.settings, file.top)
			}
		}
		d.oneAddress(own)
		d.lookIntoScriptsDir(own)
		d.relay = Relay{Name: section.name, Sockets: d.socketsOf(section.name, !several)}
		d.parse(own, (*Setting).OfRelay)
		d.checkRelay(own, func(flag string) Origin {
			if o := own[flag].origin; o.Kind != Default {
				return o
			}
			return section.at
		})
		if !own["bind"].given() && !own["port"].given() && len(d.relay.Sockets) == 0 && !d.anywhere {
			d.problem(section.at, errors.New("needs listen (or port), to say where to listen"))
		}
		if !own["hosts"].given() {
			d.problem(section.at, errors.New("needs hosts to relay to"))
		}
		checks := file.checks
		if section.checks != nil {
			checks = section.checks
		}
		d.relay.Checks = inherit(checks, d.relay)
		d.settings.Relays = append(d.settings.Relays, d.relay)
		for i := range table {
			if s := &table[i]; s.OfRelay() {
				values = append(values, valueOf(s, own[s.Flag], "relays["+section.name+"]."+s.key(), ""))
			}
		}
	}
	return values
}

// named says whether somebody gave a socket its name. Otherwise it has that of its
// socket unit, which ends in ".socket", or none; see FileDescriptorName= in
// systemd.socket(5) and sd_listen_fds_with_names(3).
func named(socket string) bool {
	return socket != "" && socket != "unknown" && !strings.HasSuffix(socket, ".socket")
}

// socketsOf are the passed sockets of the relay of that name, by index; only says
// that there is no other relay.
func (d *draft) socketsOf(relay string, only bool) (list []int) {
	for i, name := range d.sockets {
		if name == relay || only && !named(name) {
			list = append(list, i)
		}
	}
	return list
}

// checkSockets finds the passed sockets that no relay takes: their clients would
// wait for ever.
func (d *draft) checkSockets() {
	if len(d.settings.Relays) == 0 {
		return // which is a problem already
	}
	for i, name := range d.sockets {
		switch {
		case slices.ContainsFunc(d.settings.Relays, func(r Relay) bool { return slices.Contains(r.Sockets, i) }):
		case named(name):
			d.problem(Origin{Name: fmt.Sprintf("passed socket %q", name)}, errors.New("there is no relay of that name (FileDescriptorName= of the socket unit)"))
		default:
			d.problem(Origin{Name: fmt.Sprintf("passed socket %q", name)}, errors.New("which relay is it for? FileDescriptorName= of the socket unit has to say"))
		}
	}
}

// checkRelay finds the problems that lie between the settings of one relay.
// At is where each of them is said.
func (d *draft) checkRelay(values map[string]raw, at func(flag string) Origin) {
	listen := at("bind")
	if values["port"].given() {
		if values["bind"].given() {
			d.problem(at("port"), fmt.Errorf("excludes %s: give one of them", listen.place()))
		}
		listen = at("port")
	}
	if src := d.relay.Source; src.IsValid() {
		for _, host := range d.relay.Hosts {
			if addr, err := netip.ParseAddrPort(host); err == nil && addr.Addr().Is4() != src.Is4() {
				d.problem(at("source"), fmt.Errorf("%q cannot reach host %q: one is IPv4, the other IPv6", src, host))
			}
		}
	}
	for i, addr := range d.relay.Listen {
		if slices.Contains(d.relay.Listen[:i], addr) {
			d.problem(listen, fmt.Errorf("%q stands there twice", addr))
			continue
		}
		d.claim(listen, addr)
		for _, host := range d.relay.Hosts {
			// Each connection would make the next, until none are left.
			if reaches(host, addr) {
				d.problem(at("hosts"), fmt.Errorf("%q is this relay itself (%s)", host, listen.place()))
			}
		}
	}
}

// claim takes an address to listen on, which nothing else may have.
func (d *draft) claim(at Origin, addr string) {
	if strings.HasSuffix(addr, ":0") {
		return // the system finds one
	}
	if by, taken := d.claimed[addr]; taken {
		d.problem(at, fmt.Errorf("%q is the address of %s already", addr, by.place()))
		return
	}
	d.claimed[addr] = at
}

// reaches says whether a connect to host ends, for certain, at the listening
// address addr of the same machine.
func reaches(host, addr string) bool {
	if host == addr {
		return true
	}
	name, hostPort, err1 := splitHostPort(host)
	bound, boundPort, err2 := splitHostPort(addr)
	if err1 != nil || err2 != nil || hostPort != boundPort {
		return false
	}
	ip, err := netip.ParseAddr(name)
	loopback := name == "localhost" || err == nil && ip.IsLoopback()
	everywhere := bound == "" || bound == "::" || bound == "0.0.0.0"
	return loopback && everywhere
}

// checkTogether finds the problems that lie between the settings of the
// program.
func (d *draft) checkTogether(file *file) {
	answers := d.given("http")
	if answers && len(d.settings.HTTP.Routes) == 0 && len(d.settings.Relays) == 0 && file.routesAt.Kind == Default &&
		!d.given("bind") && !d.given("port") && len(d.sockets) == 0 && !d.anywhere {
		d.problem(d.at("http"), errors.New("has nothing to answer for: give --lport, --status-dir, --endpoints, routes in the file or hosts to relay to"))
	}
	for _, flag := range []string{"lport", "status-dir", "endpoints", "http-cert"} {
		if d.given(flag) && !answers {
			d.problem(d.at(flag), errors.New("needs --http, the address to answer on"))
		}
	}
	if file.routesAt.Kind == File && !answers {
		d.problem(file.routesAt, errors.New("needs http, the address to answer on"))
	}
	if d.given("http-cert") || d.given("http-key") {
		d.checkPair(d.at("http-cert"), d.settings.HTTP.Cert, d.at("http-key"), d.settings.HTTP.Key)
	}
	if addr := d.settings.HTTP.Listen; addr != "" {
		d.claim(d.at("http"), addr)
	}
	for _, a := range file.addresses {
		d.claim(a.at, a.addr)
	}
}
