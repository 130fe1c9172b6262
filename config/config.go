// Package config turns what the operator wrote (flags, environment variables
// and a YAML file) into one checked [Settings].
//
// [Table] is the single list of settings: names, defaults, descriptions and
// the way from text to a typed value all come from it, so that the command
// line, the environment, the file, the help and the printed configuration
// cannot disagree. Settings that only a file can have (several relays, checks,
// probes, routes) are described by similar tables beside the code that reads them.
// The package imports no part of the program that uses the settings.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"understudy/internal/address"
	"understudy/internal/redact"
	"understudy/internal/safetext"
)

// ErrNothing is returned by [Load] when nothing is configured: no relay and no HTTP
// listener, and no error either.
var ErrNothing = errors.New("nothing to do")

// Kind is the kind of source of a value, in ascending order of precedence.
type Kind int

// A flag takes precedence over the environment, the environment over the file,
// the file over the default.
const (
	Default Kind = iota
	File
	Environment
	Flag
)

// Origin is the source of a value.
type Origin struct {
	Kind Kind
	Name string // as the operator wrote it: "--rise", "RISE", "understudy.yaml:12"; empty for a default

	line int    // in the file; zero elsewhere
	key  string // path in the file: "relays[0].rise"
}

// String returns a text like "flag --rise", or "default".
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

// place returns the name of o in errors.
func (o Origin) place() string {
	if o.key != "" {
		return o.Name + ": " + o.key
	}
	return o.Name
}

// Value is one setting's value in the operator's words, and its origin.
type Value struct {
	// Name is "hosts" for a setting of the [Table], and the path for a key that
	// only a file has: "relays[orders].hosts", "routes[/ping].ports".
	Name string

	Flag   string // long name of a setting of the [Table], empty for the others
	Text   string // lists joined with commas; secrets masked
	Origin Origin
}

// Given holds the sources of the settings, unparsed.
type Given struct {
	// Flags holds the values of each flag that was given, by long name, in
	// order. A switch without a value holds "true".
	Flags map[string][]string

	// Environ holds "NAME=value" pairs, as [os.Environ] returns them. An empty
	// variable counts as unset.
	Environ []string

	// Sockets holds the names of the listening sockets that were passed to the
	// program and replace listening addresses. A socket with the name of a relay
	// belongs to that relay, one without a name (see [named]) to the only relay.
	Sockets []string

	// Anywhere means that relays need no address to listen on.
	Anywhere bool

	// ReadFile returns the content of the configuration file. Nil reads it
	// from the file system, if it is a regular file of 1 MiB at most.
	ReadFile func(name string) ([]byte, error)
}

// Load merges g, and the file that it names, with the defaults and checks
// everything. The error joins one error for each problem, each naming the
// setting as the operator wrote it (of a file with its line) and the value; it
// is [ErrNothing] when nothing is configured. Values are complete even if there
// is an error: first those of the [Table] in its order (for a setting of relays,
// the value that relays inherit), then those that only a file has.
func Load(g Given) (Settings, []Value, error) {
	d := &draft{flags: g.Flags, env: environment(g.Environ), sockets: g.Sockets, anywhere: g.Anywhere, raw: map[string]raw{}, taken: map[string]Origin{}}
	file := d.readFile(g.ReadFile)
	for i := range table {
		s := &table[i]
		d.raw[s.Flag] = d.choose(s, file.top)
	}
	if !file.listed {
		d.oneAddress(d.raw)
		d.portOfListener(d.raw)
		d.applyScriptsDir(d.raw)
	}
	// The settings of relays are checked even if there is no relay.
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
	d.checkProgram(file)
	return d.settings, append(values, file.values...), d.err()
}

// valueOf returns v, a value of s, for printing.
func valueOf(s *Setting, v raw, name, flag string) Value {
	text := redact.List(strings.Join(v.texts, ","))
	if !s.List && len(v.texts) > 0 {
		text = redact.URL(v.texts[len(v.texts)-1])
	}
	if s.Secret && text != "" {
		text = redact.Mask
	}
	return Value{Name: name, Flag: flag, Text: text, Origin: v.origin}
}

// raw is a setting's value as text. Texts is empty when the setting is not given and
// has no default, or when it is an empty list in the file.
type raw struct {
	texts  []string
	origin Origin
}

// given reports whether the value was set by the operator and is not empty.
func (v raw) given() bool { return v.origin.Kind != Default && len(v.texts) > 0 }

// draft is an unfinished Settings.
type draft struct {
	flags    map[string][]string
	env      map[string]string
	sockets  []string
	anywhere bool

	raw      map[string]raw // by flag: the settings of the program, and those that every relay inherits
	relay    Relay          // the one that is being parsed
	settings Settings

	// The routes of flags and variables.
	ping      Verdict
	pingPaths []string
	statusDir string
	endpoints Endpoints

	taken map[string]Origin // by address to listen on

	problems []problem
}

// problem is an error and the line of the file that it is about, if any.
type problem struct {
	line int
	text string
}

// problem records an error about the value with the origin at.
func (d *draft) problem(at Origin, err error) {
	d.problems = append(d.problems, problem{at.line, safetext.Escape(fmt.Sprintf("%s: %v", at.place(), err))})
}

// err joins the problems, each once: first those of flags and variables, then
// those of the file in the order of its lines.
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
		if d.settings.File != "" {
			return fmt.Errorf("%s: sets neither hosts nor http, and so there is %w: set listen and hosts, or http, at its top, or list relays (a line that begins with # is a comment)",
				safetext.Escape(d.settings.File), ErrNothing)
		}
		return ErrNothing
	}
	return errors.Join(errs...)
}

// at returns the origin of the setting of flag, or the names of its flag and
// variable if the operator did not set it.
func (d *draft) at(flag string) Origin {
	if o := d.raw[flag].origin; o.Kind != Default {
		return o
	}
	return Origin{Name: "--" + flag + " or " + lookup(flag).Env}
}

// given reports whether the operator set flag.
func (d *draft) given(flag string) bool { return d.raw[flag].given() }

// choose returns the value of s with the highest precedence; lists are not merged.
// Sections are parts of the file in descending order of precedence.
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

// outside returns the value of s from its flag or its variable.
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

// parse parses the values of the settings that wanted selects.
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

// oneAddress lets a flag or variable port replace bind of the file, and the
// reverse: both are the address to listen on.
func (d *draft) oneAddress(values map[string]raw) {
	bind, port := values["bind"].origin.Kind, values["port"].origin.Kind
	if bind == File && port > File {
		values["bind"] = raw{}
	}
	if port == File && bind > File {
		values["port"] = raw{}
	}
}

// portOfListener makes --port the port of the HTTP listener if --lport is given
// and no host, so there is no relay: that is how cf_proxy_ping_aggregator is
// configured.
func (d *draft) portOfListener(values map[string]raw) {
	port, http := values["port"], values["http"]
	if !port.given() || !values["lport"].given() || values["hosts"].given() || values["bind"].given() || len(d.sockets) > 0 || http.origin.Kind >= port.origin.Kind {
		return
	}
	addr := ":" + strings.TrimSpace(port.texts[len(port.texts)-1])
	d.warn(port.origin, "taken as --http %s: there is --lport, and there are no hosts", addr)
	values["http"], values["port"] = raw{texts: []string{addr}, origin: port.origin}, raw{}
}

// mainRelay adds the relay of flags, variables and the top of the file, if they
// configure one.
func (d *draft) mainRelay(file *file) {
	d.checkRelay(d.raw, d.at)
	listens := d.given("bind") || d.given("port") || len(d.sockets) > 0 || d.anywhere
	switch {
	case d.given("hosts"):
		if !listens {
			d.problem(Origin{Name: fmt.Sprintf("%s (or %s)", d.at("port").place(), d.at("bind").place())}, errors.New("missing: where to listen"))
		}
		d.relay.Name, d.relay.Unnamed, d.relay.Sockets = nameFor(d.relay.Listen), true, d.socketsOf(MainRelay, true)
		if slices.ContainsFunc(file.probes, func(p Probe) bool { return p.Name == d.relay.Name }) {
			d.relay.Name = MainRelay // no probe may have this name
		}
		d.relay.Checks = inherit(file.checks, d.relay)
		d.checkFirst(d.at("check-tcp"))
		d.settings.Relays = []Relay{d.relay}
	case listens:
		d.problem(d.at("hosts"), errors.New("missing: where to relay to (an HTTP server alone, also one for flag files, is --http IP:PORT)"))
	}
}

// nameFor returns a name for a relay without one, made of its address: it must
// differ between the processes of a machine.
func nameFor(listen []string) string {
	text := MainRelay
	if len(listen) > 0 {
		at, err := address.ParseListen(listen[0])
		switch {
		case err != nil: // reported elsewhere
		case at.Path != "":
			text = strings.TrimLeft(notInNames.ReplaceAllString(filepath.Base(at.Path), "_"), ".")
			text = text[:min(len(text), 64)]
		case at.Port != 0:
			text = strconv.Itoa(int(at.Port))
		}
	}
	if _, err := name(text); err != nil {
		return MainRelay
	}
	return text
}

// notInNames matches characters that are not valid in a name.
var notInNames = regexp.MustCompile(`[^A-Za-z0-9._-]`)

// RenameRelay gives a relay another name, in the routes too.
func (s *Settings) RenameRelay(from, to string) {
	for i := range s.Relays {
		if s.Relays[i].Name == from {
			s.Relays[i].Name = to
		}
	}
	for _, r := range s.HTTP.Routes {
		var members []Member
		switch {
		case r.Verdict != nil:
			members = r.Verdict.Members
		case r.Heartbeat != nil:
			members = r.Heartbeat.Members
		}
		for i := range members {
			if members[i].Name == from && !members[i].Probe {
				members[i].Name = to
			}
		}
	}
}

// unshared are the settings that no two relays can share.
var unshared = []string{"bind", "port", "hosts"}

// listedRelays adds the relays that the file lists, and returns the values to
// print.
func (d *draft) listedRelays(file *file) (values []Value) {
	several := len(file.relays) > 1
	if several {
		for _, flag := range unshared {
			if v, ok := d.outside(lookup(flag)); ok {
				d.problem(v.origin, fmt.Errorf("is for one relay, and %s has %d: set it there", d.settings.File, len(file.relays)))
			}
		}
	}
	for _, section := range file.relays {
		own := map[string]raw{}
		for i := range table {
			switch s := &table[i]; {
			case !s.OfRelay():
			case several && slices.Contains(unshared, s.Flag):
				own[s.Flag] = section.settings[s.Flag]
			default:
				own[s.Flag] = d.choose(s, section.settings, file.top)
			}
		}
		d.oneAddress(own)
		d.applyScriptsDir(own)
		d.relay = Relay{Name: section.name, Sockets: d.socketsOf(section.name, !several)}
		d.parse(own, (*Setting).OfRelay)
		d.checkRelay(own, func(flag string) Origin {
			if o := own[flag].origin; o.Kind != Default {
				return o
			}
			return section.at
		})
		if !own["bind"].given() && !own["port"].given() && len(d.relay.Sockets) == 0 && !d.anywhere {
			d.problem(section.at, errors.New("needs listen (or port)"))
		}
		if !own["hosts"].given() {
			d.problem(section.at, errors.New("needs hosts to relay to"))
		}
		checks := file.checks
		if section.checks != nil {
			checks = section.checks
		}
		d.relay.Checks = inherit(checks, d.relay)
		d.checkFirst(own["check-tcp"].origin)
		d.settings.Relays = append(d.settings.Relays, d.relay)
		for i := range table {
			if s := &table[i]; s.OfRelay() {
				values = append(values, valueOf(s, own[s.Flag], "relays["+section.name+"]."+s.key(), ""))
			}
		}
	}
	return values
}

// named reports whether the operator named a socket. Otherwise its name is that of
// its socket unit, which ends in ".socket", or "unknown"; see FileDescriptorName=
// in systemd.socket(5) and sd_listen_fds_with_names(3).
func named(socket string) bool {
	return socket != "" && socket != "unknown" && !strings.HasSuffix(socket, ".socket")
}

// socketsOf returns the indexes of the passed sockets of a relay. Only means that
// there is no other relay.
func (d *draft) socketsOf(relay string, only bool) (list []int) {
	for i, name := range d.sockets {
		if name == relay || only && !named(name) {
			list = append(list, i)
		}
	}
	return list
}

// checkSockets reports passed sockets that belong to no relay: clients of such a
// socket would wait for ever.
func (d *draft) checkSockets() {
	if len(d.settings.Relays) == 0 {
		return // reported elsewhere
	}
	for i, name := range d.sockets {
		switch {
		case slices.ContainsFunc(d.settings.Relays, func(r Relay) bool { return slices.Contains(r.Sockets, i) }):
		case named(name):
			d.problem(Origin{Name: fmt.Sprintf("passed socket %q", name)}, errors.New("there is no relay of that name (FileDescriptorName= of the socket unit)"))
		default:
			d.problem(Origin{Name: fmt.Sprintf("passed socket %q", name)}, errors.New("which relay is it for? Set FileDescriptorName= in the socket unit"))
		}
	}
}

// checkRelay reports settings of d.relay that contradict each other. At returns
// the origin of a setting.
func (d *draft) checkRelay(values map[string]raw, at func(flag string) Origin) {
	listen := at("bind")
	if values["port"].given() {
		if values["bind"].given() {
			d.problem(at("port"), fmt.Errorf("excludes %s: set one of them", listen.place()))
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
	for i, host := range d.relay.Hosts {
		for _, before := range d.relay.Hosts[:i] {
			if sameHost(host, before) {
				d.warn(at("hosts"), "%s and %s are one address: a failover between them changes nothing", quote(before), quote(host))
			}
		}
	}
	d.warnDuplicatePorts(at("pong-port"), d.relay.PongPorts)
	d.checkRole(values, at)
	d.checkCanary(values, at)
	for i, addr := range d.relay.Listen {
		if slices.Contains(d.relay.Listen[:i], addr) {
			d.problem(listen, fmt.Errorf("%q is listed twice", addr))
			continue
		}
		d.reserve(listen, addr)
		for _, host := range d.relay.Hosts {
			// Each connection would open another one without end.
			if reaches(host, addr) {
				d.problem(at("hosts"), fmt.Errorf("%q is this relay itself (%s)", host, listen.place()))
			}
		}
	}
}

// checkFirst reports a relay without a check that connects to its hosts: that check
// decides which address of a name is used.
func (d *draft) checkFirst(at Origin) {
	connects := func(c Check) bool { return c.HTTP != nil || c.TCP != nil }
	if d.relay.CheckTCP == "off" && d.relay.Role.Protocol == "" && len(d.relay.PongPorts) == 0 && !slices.ContainsFunc(d.relay.Checks, connects) {
		d.problem(at, errors.New("off leaves no check that connects to the hosts: set a role, a pong port, or a check of the kind http or tcp in the file"))
	}
}

// sameHost reports whether two connection strings mean the same address.
func sameHost(a, b string) bool {
	x, err1 := address.ParseHost(a)
	y, err2 := address.ParseHost(b)
	return err1 == nil && err2 == nil && x.Canonical() == y.Canonical()
}

// warnDuplicatePorts warns about ports that are listed twice.
func (d *draft) warnDuplicatePorts(at Origin, ports []int) {
	for i, n := range ports {
		if slices.Contains(ports[:i], n) {
			d.warn(at, "port %d is listed twice, and requested twice", n)
		}
	}
}

// reserve reports an address to listen on that is configured twice.
func (d *draft) reserve(at Origin, addr string) {
	if strings.HasSuffix(addr, ":0") {
		return // the system chooses a free port
	}
	if by, taken := d.taken[addr]; taken {
		d.problem(at, fmt.Errorf("%q is the address of %s already", addr, by.place()))
		return
	}
	d.taken[addr] = at
}

// reaches reports whether a connect to host certainly reaches addr, a listening
// address of this machine.
func reaches(host, addr string) bool {
	if host == addr {
		return true
	}
	to, err1 := address.ParseHost(host)
	at, err2 := address.ParseListen(addr)
	if err1 != nil || err2 != nil || to.Path != "" || to.Port != at.Port {
		return false
	}
	loopback := to.Name == "localhost" || to.IP().IsLoopback()
	return loopback && (!at.IP.IsValid() || at.IP.IsUnspecified())
}

// checkProgram reports settings of the program that contradict each other.
func (d *draft) checkProgram(file *file) {
	answers := d.given("http")
	if answers && len(d.settings.HTTP.Routes) == 0 && len(d.settings.Relays) == 0 && file.routesAt.Kind == Default &&
		!d.given("bind") && !d.given("port") && len(d.sockets) == 0 && !d.anywhere {
		d.problem(d.at("http"), errors.New("has nothing to answer: add PORT and HOSTS (--port and --hosts) for a relay, LPORTS (--lport) for services of this machine, STATUS_DIR (--status-dir), ENDPOINTS (--endpoints) or routes in the file"))
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
		d.reserve(d.at("http"), addr)
	}
	if addr := d.settings.Admin.Listen; addr != "" {
		d.reserve(d.at("admin"), addr)
		if !d.settings.Admin.Token.IsSet() && !d.settings.Admin.OnLoopback() {
			d.warn(d.at("admin"), "%s can be reached from other machines, and there is no --admin-token-file: everybody who reaches it can read the names and states of hosts", addr)
		}
	}
	if d.given("admin-token-file") && !d.given("admin") {
		d.problem(d.at("admin-token-file"), errors.New("needs --admin, the address to serve on"))
	}
	for _, a := range file.addresses {
		d.reserve(a.at, a.addr)
	}
	d.checkCluster()
}

// OnLoopback reports whether only this machine can reach the address.
func (a Admin) OnLoopback() bool {
	at, err := address.ParseListen(a.Listen)
	return err == nil && at.IP.IsLoopback()
}
