package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/jessevdk/go-flags"

	"understudy/config"
	"understudy/internal/safetext"
)

// verb is one command of the program. Its file holds its run function.
type verb struct {
	name     string
	args     string // arguments in the help
	minArgs  int
	maxArgs  int
	summary  string
	settings bool // accepts the settings as flags
	operates bool // accepts the settings that locate the control socket
	flags    bool // accepts the settings that locate the flag files
	creates  bool // accepts the settings of a new configuration file
	hidden   bool
	group    string // heading in the help

	// options makes the verb's own flags: a struct with tags of go-flags. Nil
	// for none.
	options func() any

	run func(ctx context.Context, line line, stdout, stderr io.Writer) int
}

// The groups of verbs in the help.
const (
	running   = "Run"
	looking   = "Inspect a running understudy"
	changing  = "Change what it does"
	preparing = "Prepare and rehearse"
	other     = "Other"
)

// verbs lists them in the order of the help. The first runs when none is given.
func verbs() []verb {
	return []verb{
		{name: "run", group: running, summary: "run in the foreground (the default without a command)", settings: true, run: serve},
		{name: "demo", group: running, summary: "start two small hosts, a relay and /ping on loopback, to try everything", settings: true, run: demo},

		{name: "status", group: looking, summary: "what every relay and host does now", operates: true,
			options: func() any { return new(statusOptions) }, run: showStatus},
		{name: "top", group: looking, summary: "the same on a page that is kept up to date, with keys to sort, filter, switch, drain and freeze", operates: true,
			options: func() any { return new(topOptions) }, run: showTop},
		{name: "why", group: looking, args: "[HOST]", maxArgs: 1, summary: "why this host is primary and that one is not", operates: true,
			options: func() any { return new(showOptions) }, run: showWhy},
		{name: "events", group: looking, summary: "every election with its timeline, and every order", operates: true,
			options: func() any { return new(eventsOptions) }, run: showEvents},

		{name: "switch", group: changing, args: "[HOST]", maxArgs: 1, summary: "make another host primary, now or --at a time: clients wait, connections may finish for --drain and are reset then", operates: true,
			options: func() any { return new(switchOptions) }, run: switchTo},
		{name: "drain", group: changing, args: "HOST", maxArgs: 1, minArgs: 1, summary: "exclude a host from elections", operates: true,
			options: func() any { return new(lockOptions) }, run: lockHost},
		{name: "ready", group: changing, args: "HOST", maxArgs: 1, minArgs: 1, summary: "end the exclusion of a host", operates: true,
			options: func() any { return new(relayOptions) }, run: unlockHost},
		{name: "freeze", group: changing, summary: "no failover until unfreeze; switch still works", operates: true,
			options: func() any { return new(lockOptions) }, run: lockHost},
		{name: "unfreeze", group: changing, summary: "end a freeze", operates: true,
			options: func() any { return new(relayOptions) }, run: unlockHost},

		{name: "cluster", group: looking, args: "[add|forget MEMBER]", maxArgs: 2, summary: "the instances of the cluster, what each of them sees, and whom an election waits for; add or forget one, or force: take those that an election waits for as dead", operates: true,
			options: func() any { return new(clusterOptions) }, run: showCluster},

		{name: "reload", group: changing, summary: "read the configuration file again", operates: true,
			options: func() any { return new(relayOptions) }, run: reloadRunning},

		{name: "drill", group: preparing, args: "[HOST]", maxArgs: 1, summary: "rehearse: would HOST, or the host that is elected, take over from the primary", operates: true,
			options: func() any { return new(drillOptions) }, run: drill},
		{name: "predict", group: preparing, summary: "the longest time that a failover can take, from the settings", settings: true,
			options: func() any { return new(showOptions) }, run: predict},
		{name: "check", group: preparing, summary: "validate the settings and try every check once", settings: true, run: checkAll},

		{name: "init", group: preparing, args: "KIND", maxArgs: 1, minArgs: 1,
			summary: "write a configuration for postgres, mysql, redis, tcp or cloudflare", creates: true, run: initialize},

		{name: "config", group: other, summary: "print every setting and where it came from", settings: true, run: printConfig},
		{name: "activate", group: other, args: "SERVICE[.PORT]", maxArgs: 1, minArgs: 1, summary: "switch a service on for /status",
			flags: true, run: setFlag},
		{name: "deactivate", group: other, args: "SERVICE[.PORT]", maxArgs: 1, minArgs: 1, summary: "switch a service off for /status",
			flags: true, run: setFlag},
		{name: "inactivate", args: "SERVICE[.PORT]", maxArgs: 1, minArgs: 1, summary: "another name for deactivate", hidden: true,
			flags: true, run: setFlag},
		{name: "health", group: other, args: "[URL|PATH]", maxArgs: 1, summary: "request one verdict; exit 0 when it is good", settings: true, run: checkHealth},
		{name: "completion", group: other, args: "SHELL", maxArgs: 1, minArgs: 1, summary: "print the completion for bash, zsh or fish", run: printCompletion},
		{name: "man", group: other, summary: "print the manual page (understudy man | man -l -)", run: printManual},
		{name: "version", group: other, summary: "print version, commit and Go version", run: printVersion},
		{name: "help", group: other, args: "[COMMAND]", maxArgs: 1, summary: "show what a command does", run: showHelp},

		{name: "demo-host", args: "NAME ADDR", maxArgs: 2, summary: "a host of the demo", hidden: true, run: demoHost},
	}
}

// takes reports whether a verb that does not accept all settings accepts this
// one.
func (v verb) takes(s config.Setting) bool {
	switch s.Flag {
	case "config": // the file may contain the other one
		return v.operates || v.flags || v.creates
	case "hosts", "port":
		return v.creates
	case "control":
		return v.operates
	case "status-dir":
		return v.flags
	}
	return false
}

// shows reports whether the help of the verb has this setting. A health check
// uses an address from its argument, or the one setting.
func (v verb) shows(s config.Setting) bool {
	return v.takes(s) || v.settings && v.maxArgs == 0
}

// line is a parsed command line.
type line struct {
	verb    verb
	flags   map[string][]string // settings given as flags, by long name
	args    []string            // arguments of the verb
	options any                 // of the verb; what verb.options made
	help    bool
	version bool

	warnings []string // about flags of other programs

	parser *flags.Parser
}

// general holds the flags that are no settings.
type general struct {
	Help    bool `short:"h" long:"help" description:"show this help"`
	Version bool `long:"version" description:"print version, commit and Go version"`
}

// newParser returns a parser of the flags in g, of every setting and of the
// verbs, whose own flags are in options, by the verb's name. Given returns the
// settings that were parsed.
func newParser(g *general, known []verb, options map[string]any) (p *flags.Parser, given func() map[string][]string, err error) {
	// The environment and the defaults are config's: go-flags sees neither.
	p = flags.NewNamedParser("understudy", flags.PassDoubleDash|flags.AllowBoolValues)
	p.LongDescription = "Relays TCP connections to the primary among several hosts and fails over without losing a client. " +
		"Each setting is a flag or an environment variable; the flag wins."
	p.Usage = "[flags]"
	p.SubcommandsOptional = true
	given = addSettings(p.Group)
	_, err = p.AddGroup("General", "", g)
	for _, v := range known {
		c, err2 := p.AddCommand(v.name, v.summary, v.summary+".", options[v.name])
		err = errors.Join(err, err2)
		if err2 == nil {
			c.Hidden = v.hidden
		}
	}
	return p, given, err
}

// parseLine parses args. The error joins every problem; the values of settings
// are validated later, by config.
func parseLine(args []string) (line, error) {
	var g general
	known := verbs()
	options := map[string]any{}
	for _, v := range known {
		options[v.name] = &struct{}{}
		if v.options != nil {
			options[v.name] = v.options()
		}
	}
	p, given, err := newParser(&g, known, options)
	if err != nil {
		return line{}, err // a mistake in the tables; every test would find it
	}

	var problems []error
	p.UnknownOptionHandler = func(name string, given flags.SplitArgument, rest []string) ([]string, error) {
		takesValue, problem := unknownFlag(name, flagsFor(p, known))
		problems = append(problems, problem)
		_, hasValue := given.Value()
		if takesValue && !hasValue && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
			rest = rest[1:] // the value of the flag that was probably intended
		}
		return rest, nil
	}
	l := line{parser: p, verb: known[0], help: false}
	old := respellFor(args, known)
	problems = append(problems, old.problems...)
	l.warnings = old.warnings
	l.args, err = parseAll(p, withNegatives(old.args))
	if err != nil {
		problems = append(problems, err)
	}
	l.help, l.version, l.flags = g.Help, g.Version, given()
	l.options = options[l.verb.name]
	if p.Active != nil {
		l.verb = known[slices.IndexFunc(known, func(v verb) bool { return v.name == p.Active.Name })]
		l.options = options[l.verb.name]
	} else if len(l.args) > 0 {
		problems = append(problems, unknownVerb(l.args[0], known))
		l.args = nil
	}
	if l.help || l.version {
		return l, errors.Join(problems...)
	}
	if old.ip != "" {
		if err := l.oldListener(old.ip); err != nil {
			problems = append(problems, err)
		}
	}
	if len(l.args) > l.verb.maxArgs {
		problems = append(problems, fmt.Errorf("%s: unexpected argument %q", l.verb.name, l.args[l.verb.maxArgs]))
	}
	if len(l.args) < l.verb.minArgs {
		needs := fmt.Sprintf("%s: needs %s", l.verb.name, l.verb.args)
		if l.verb.operates {
			needs += "; understudy status lists them"
		}
		problems = append(problems, errors.New(needs))
	}
	if !l.verb.settings {
		for _, s := range config.Table() {
			if _, ok := l.flags[s.Flag]; ok && !l.verb.takes(s) {
				problems = append(problems, fmt.Errorf("--%s: is not valid for %s", s.Flag, l.verb.name))
			}
		}
	}
	return l, errors.Join(problems...)
}

// addSettings adds a group of options to g for each group of settings. The
// function that it returns gives the values, by long name, of the flags that
// were used.
//
// go-flags reads options from the tags of a struct, so the table of settings is
// converted to structs here.
func addSettings(g *flags.Group) (given func() map[string][]string) {
	table := config.Table()
	type field struct {
		setting config.Setting
		value   reflect.Value
	}
	var all []field
	for start := 0; start < len(table); {
		end := start
		var fields []reflect.StructField
		for ; end < len(table) && table[end].Group == table[start].Group; end++ {
			s := &table[end]
			kind := reflect.TypeFor[settingValue]()
			if s.Switch() {
				kind = reflect.TypeFor[*bool]()
			}
			tag := fmt.Sprintf(`long:%q description:%q value-name:%q default-mask:%q unquote:"false"`,
				s.Flag, s.Help, s.Value, orDash(s.Default))
			if s.Short != 0 {
				tag += fmt.Sprintf(` short:%q`, string(s.Short))
			}
			fields = append(fields, reflect.StructField{
				Name: fmt.Sprintf("Setting%d", end), Type: kind, Tag: reflect.StructTag(tag),
			})
		}
		group := reflect.New(reflect.StructOf(fields))
		if _, err := g.AddGroup(table[start].Group, "", group.Interface()); err != nil {
			panic(err) // the table is wrong, whatever the command line
		}
		for i := range fields {
			f := field{table[start+i], group.Elem().Field(i)}
			if v, ok := reflect.TypeAssert[*settingValue](f.value.Addr()); ok {
				v.setting = f.setting.Flag
			}
			all = append(all, f)
		}
		start = end
	}
	return func() map[string][]string {
		values := map[string][]string{}
		for _, f := range all {
			switch v := f.value.Addr().Interface().(type) {
			case *settingValue:
				if len(v.given) > 0 {
					values[f.setting.Flag] = v.given
				}
			case **bool:
				if *v != nil {
					values[f.setting.Flag] = []string{fmt.Sprint(**v)}
				}
			}
		}
		return values
	}
}

// settingValue collects the values of one setting, as they were given.
type settingValue struct {
	setting string // the long name of its flag
	given   []string
}

// UnmarshalFlag implements [flags.Unmarshaler]. It never fails.
func (v *settingValue) UnmarshalFlag(value string) error {
	v.given = append(v.given, value)
	return nil
}

// orDash returns a default as go-flags shows it; for a dash it shows none.
func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// parseAll parses args to the end. go-flags stops at its first problem, so it
// is started again after it, to report all of them at once.
func parseAll(p *flags.Parser, args []string) (rest []string, all error) {
	last := ""
	for {
		rest, err := p.ParseArgs(args)
		if err == nil {
			return rest, all
		}
		// "expected argument for flag `-p, --port', but got option `--hosts'"
		text := strings.NewReplacer("`", "", "'", "").Replace(err.Error())
		if text == last {
			return nil, all
		}
		last, all = text, errors.Join(all, errors.New(text))
		var kind *flags.Error
		if errors.As(err, &kind) && kind.Type != flags.ErrExpectedArgument && len(rest) > 0 {
			rest = rest[1:] // rest begins with the argument that was wrong
		}
		if len(rest) == 0 {
			return nil, all
		}
		args = rest
	}
}

// withNegatives joins a negative number to the flag before it, because go-flags
// would parse it as another flag: no flag begins with a digit.
func withNegatives(args []string) []string {
	var all []string
	for i, a := range args {
		if a == "--" {
			return append(all, args[i:]...)
		}
		last := len(all) - 1
		if len(a) > 1 && a[0] == '-' && a[1] >= '0' && a[1] <= '9' && last >= 0 &&
			strings.HasPrefix(all[last], "--") && !strings.Contains(all[last], "=") {
			all[last] += "=" + a
			continue
		}
		all = append(all, a)
	}
	return all
}

// flagsFor maps the flags of the verb that was parsed last to whether they take
// a value.
func flagsFor(p *flags.Parser, known []verb) map[string]bool {
	v := known[0]
	all := map[string]bool{"help": false, "version": false}
	if p.Active != nil {
		v = known[slices.IndexFunc(known, func(v verb) bool { return v.name == p.Active.Name })]
		for _, o := range p.Active.Options() {
			all[o.LongName] = o.Field().Type.Kind() != reflect.Bool
		}
	}
	for _, s := range config.Table() {
		if v.settings || v.takes(s) {
			all[s.Flag] = !s.Switch()
		}
	}
	return all
}

// unknownFlag returns which flag was probably intended, and whether that one
// takes a value. All are the existing flags.
func unknownFlag(name string, all map[string]bool) (takesValue bool, problem error) {
	if len(name) == 1 {
		return false, fmt.Errorf("unknown flag -%s", name)
	}
	near := config.Nearest(name, slices.Sorted(maps.Keys(all)))
	if near == "" {
		return false, fmt.Errorf("unknown flag --%s", name)
	}
	return all[near], fmt.Errorf("unknown flag --%s: did you mean --%s?", name, near)
}

func unknownVerb(name string, known []verb) error {
	var words []string
	for _, v := range known {
		if !v.hidden {
			words = append(words, v.name)
		}
	}
	if near := config.Nearest(name, words); near != "" {
		return fmt.Errorf("unknown command %q: did you mean %s?", name, near)
	}
	return fmt.Errorf("unknown command %q", name)
}

// usage reports every problem in err and how to get help for the verb.
func (l line) usage(stderr io.Writer, err error) int {
	if err.Error() == config.ErrNothing.Error() { // if wrapped, it names the file; joined alone it may be
		for _, path := range l.flags["check-host"] {
			if ext := filepath.Ext(path); ext != ".yaml" && ext != ".yml" {
				continue
			}
			fmt.Fprintf(stderr, "understudy: -c: is --check-host, a script: a configuration file is --config %s\n", safetext.Terminal(path))
		}
		return usage(stderr, err)
	}
	for problem := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(stderr, "understudy: %s\n", safetext.Terminal(problem))
	}
	command := "understudy"
	if l.parser != nil && l.parser.Active != nil {
		command += " " + l.verb.name
	}
	fmt.Fprintf(stderr, "Try '%s --help'.\n", command)
	return exitUsage
}
