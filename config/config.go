// Package config turns what the operator wrote (flags, environment variables
// and, one day, a file) into one checked [Settings].
//
// [Table] is the single list of settings: names, defaults, descriptions and
// the way from text to a typed value all come from it, so that the command
// line, the environment, the help and the printed configuration cannot
// disagree. The package knows no part of the program that uses the settings.
package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// ErrNothing is returned by [Load] when the operator asked for nothing: no
// relay, no HTTP listener and no mistake either.
var ErrNothing = errors.New("nothing to do: neither hosts to relay to nor an HTTP address is set")

// Settings is everything an operator can set, checked and typed.
type Settings struct {
	// Relays holds the relays to run; it is empty when the process only
	// answers over HTTP.
	Relays []Relay

	HTTP HTTP
	Log  Log

	Control  string // path of the control socket, ControlAuto or ControlOff
	StateDir string // empty: nothing is remembered across restarts
}

// What [Settings.Control] says instead of a path.
const (
	ControlAuto = "auto" // the program chooses the place
	ControlOff  = "off"  // there is no control socket
)

// Relay is one listening service, its hosts and its rules. Every duration is
// positive unless its comment says otherwise.
type Relay struct {
	Listen []string // "192.0.2.1:5432", "[::]:5432", ":5432" or "unix:/path"; empty when systemd passed sockets
	Hosts  []string // in order of preference, as the operator wrote them, without surrounding space

	PongPorts []int  // ask each host's HTTP port; empty asks none
	PongPath  string // begins with a slash

	Interval     time.Duration // between checks of a host
	FastInterval time.Duration // between checks of a suspected primary
	Timeout      time.Duration // of one check
	Rise, Fall   int           // at least 1

	CheckHost      string // path of the check script, or empty
	CheckInterval  time.Duration
	CheckTimeout   time.Duration
	OnFailover     string // path of a trigger or of a directory of them, or empty
	TriggerTimeout time.Duration
	TriggerAbort   bool // a failed trigger puts the host aside

	MaxBackoff time.Duration // at least 1s
	Hold       time.Duration // zero refuses at once
	Fence      Fence
	Failback   time.Duration // how long a preferred host must have been up to take over again; zero: never

	ConnectTimeout time.Duration
	IdleTimeout    time.Duration // zero never ends an idle connection
	UserTimeout    time.Duration // zero leaves it to the system
	DrainTimeout   time.Duration // zero resets at once
	MaxConnections int           // zero: what the descriptor limit allows
	SendProxy      int           // PROXY protocol version, zero for none
	AcceptProxy    bool
	Allow          []netip.Prefix // empty allows all
	Source         netip.Addr     // the zero Addr leaves it to the system
	Loops          int            // zero: chosen by the relay
	Spin           bool
}

// Fence says what becomes of the connections of earlier epochs.
type Fence struct {
	Keep  bool          // they live on
	Drain time.Duration // they may finish for that long before they are reset; zero resets at once
}

// StatusPath is where flags are told.
const StatusPath = "/status"

// HTTP is the verdict listener.
type HTTP struct {
	Listen      string        // address:port, or empty for none
	LPorts      []int         // local ports to replay a ping to, in order
	PingPaths   []string      // each begins with a slash; one that ends in a slash matches all below
	PingTimeout time.Duration // at most 9s
	FailStatus  string        // status of a failing verdict: "auto", "keep", or a number from 400 to 599
	StatusDir   string        // flag files for /status, or empty for none
}

// Log says what is logged, how and where.
type Log struct {
	Level  string // trace, debug, info, warn, error or off
	JSON   bool
	Stdout bool // standard output instead of standard error
}

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

// Value is one setting's value in the operator's words, and its origin.
type Value struct {
	*Setting

	Text   string // lists joined with commas; secrets masked
	Origin Origin
}

// Given is what the operator wrote, before anything was made of it.
type Given struct {
	// Flags holds the values of each flag that was given, by long name, in
	// order. A switch without a value holds "true".
	Flags map[string][]string

	// Environ holds "NAME=value" pairs, as [os.Environ] returns them. An empty
	// variable is as good as none.
	Environ []string

	// Sockets is the number of listening sockets that were passed in; they
	// stand in for an address to listen on.
	Sockets int
}

// Load merges g with the defaults and checks everything. The error joins one
// error for each problem, each naming the setting as the operator wrote it and
// the value; it is [ErrNothing] when nothing at all was asked for. Values are
// complete, and in the order of [Table], whether there is an error or not.
func Load(g Given) (Settings, []Value, error) {
	d := &draft{raw: map[string]raw{}, sockets: g.Sockets}
	env := environment(g.Environ)
	for i := range table {
		s := &table[i]
		d.raw[s.Flag] = choose(s, g.Flags, env)
	}
	d.lookIntoScriptsDir()
	for i := range table {
		s := &table[i]
		v := d.raw[s.Flag]
		items, errs := s.split(v.texts)
		if len(errs) == 0 && len(items) > 0 {
			errs = s.parse(d, items)
		}
		for _, err := range errs {
			d.problem(v.origin.Name, err)
		}
	}
	d.checkTogether()

	values := make([]Value, len(table))
	for i := range table {
		s := &table[i]
		v := d.raw[s.Flag]
		text := strings.Join(v.texts, ",")
		if !s.List && len(v.texts) > 0 {
			text = v.texts[len(v.texts)-1]
		}
		if s.Secret && text != "" {
			text = "********"
		}
		values[i] = Value{Setting: s, Text: text, Origin: v.origin}
	}
	return d.settings, values, errors.Join(d.problems...)
}

// raw is a setting's value as text. Texts is nil when nobody set it and it has
// no default.
type raw struct {
	texts  []string
	origin Origin
}

// draft is a Settings in the making.
type draft struct {
	raw      map[string]raw // by flag
	sockets  int
	relay    Relay
	settings Settings
	problems []error
}

func (d *draft) problem(name string, err error) {
	d.problems = append(d.problems, fmt.Errorf("%s: %w", name, err))
}

// name is how the operator wrote the setting of flag, or the flag and the
// variable if nobody wrote it.
func (d *draft) name(flag string) string {
	if o := d.raw[flag].origin; o.Kind != Default {
		return o.Name
	}
	return "--" + flag + " or " + lookup(flag).Env
}

// given says whether anybody but the default set flag.
func (d *draft) given(flag string) bool {
	return d.raw[flag].origin.Kind != Default
}

// choose returns the strongest value of s: a list is replaced, never merged.
func choose(s *Setting, flags map[string][]string, env map[string]string) raw {
	if texts, ok := flags[s.Flag]; ok {
		return raw{texts: texts, origin: Origin{Flag, "--" + s.Flag}}
	}
	if text := env[s.Env]; text != "" {
		return raw{texts: []string{text}, origin: Origin{Environment, s.Env}}
	}
	if s.Default != "" {
		return raw{texts: []string{s.Default}}
	}
	return raw{}
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

// checkTogether finds the problems that lie between settings, and decides
// which parts run.
func (d *draft) checkTogether() {
	listens := d.given("bind") || d.given("port") || d.sockets > 0
	relays := d.given("hosts")
	answers := d.given("http")

	if d.given("bind") && d.given("port") {
		d.problem(d.name("port"), fmt.Errorf("excludes %s: give one of them", d.name("bind")))
	}
	switch {
	case relays && !listens:
		d.problems = append(d.problems, fmt.Errorf("%s (or %s): needed to say where to listen", d.name("port"), d.name("bind")))
	case listens && !relays:
		d.problems = append(d.problems, fmt.Errorf("%s: needed to say where to relay to", d.name("hosts")))
	case !listens && !relays && !answers && !d.given("lport") && !d.given("status-dir") && len(d.problems) == 0:
		d.problems = append(d.problems, ErrNothing)
	}
	if answers && !relays && !listens && !d.given("lport") && !d.given("status-dir") {
		d.problem(d.name("http"), errors.New("has nothing to answer for: give --lport, --status-dir or hosts to relay to"))
	}
	for _, flag := range []string{"lport", "status-dir"} {
		if d.given(flag) && !answers {
			d.problem(d.name(flag), errors.New("needs --http, the address to answer on"))
		}
	}
	if d.given("status-dir") && slices.Contains(d.settings.HTTP.PingPaths, StatusPath) {
		d.problem(d.name("ping-path"), fmt.Errorf("%s is answered from the flags in %s", StatusPath, d.name("status-dir")))
	}
	if src := d.relay.Source; src.IsValid() {
		for _, host := range d.relay.Hosts {
			if addr, err := netip.ParseAddrPort(host); err == nil && addr.Addr().Is4() != src.Is4() {
				d.problem(d.name("source"), fmt.Errorf("%q cannot reach host %q: one is IPv4, the other IPv6", src, host))
			}
		}
	}
	d.checkAddresses()
	if relays {
		d.settings.Relays = []Relay{d.relay}
	}
}

// checkAddresses finds addresses that are used twice, and hosts that are the
// relay itself: each connection would make the next, until none are left.
func (d *draft) checkAddresses() {
	listen := d.name("bind")
	if d.given("port") {
		listen = d.name("port")
	}
	for i, addr := range d.relay.Listen {
		if slices.Contains(d.relay.Listen[:i], addr) {
			d.problem(listen, fmt.Errorf("%q stands there twice", addr))
		}
		for _, host := range d.relay.Hosts {
			if reaches(host, addr) {
				d.problem(d.name("hosts"), fmt.Errorf("%q is this relay itself (%s)", host, listen))
			}
		}
	}
	if addr := d.settings.HTTP.Listen; addr != "" && slices.Contains(d.relay.Listen, addr) && !strings.HasSuffix(addr, ":0") {
		d.problem(d.name("http"), fmt.Errorf("%q is the relay's address already", addr))
	}
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
