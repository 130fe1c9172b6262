package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/jessevdk/go-flags"

	"understudy/config"
)

// verb is one thing that the program does. Its file holds its run function.
type verb struct {
	name     string
	args     string // arguments in the help
	minArgs  int
	maxArgs  int
	summary  string
	settings bool // takes the settings as flags
	operates bool // takes those of them that say where the control socket is
	flags    bool // takes those of them that say where flag files are
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
	looking   = "Look into a running understudy"
	changing  = "Change what it does"
	preparing = "Before it matters"
	other     = "Beside that"
)

// verbs lists them in the order of the help. The first runs when none is given.
func verbs() []verb {
	return []verb{
		{name: "run", group: running, summary: "run (what happens without a command)", settings: true, run: serveVerb},
		{name: "demo", group: running, summary: "two small hosts, a relay and /ping, to try it all", settings: true, run: demo},

		{name: "status", group: looking, summary: "what every relay and host does now", operates: true,
			options: func() any { return new(statusOptions) }, run: showStatus},
		{name: "why", group: looking, args: "[HOST]", maxArgs: 1, summary: "why this host is primary and that one is not", operates: true,
			options: func() any { return new(showOptions) }, run: showWhy},
		{name: "events", group: looking, summary: "the record of every election", operates: true,
			options: func() any { return new(eventsOptions) }, run: showEvents},

		{name: "switch", group: changing, args: "HOST", maxArgs: 1, minArgs: 1, summary: "make another host primary, without losing a client", operates: true,
			options: func() any { return new(switchOptions) }, run: switchTo},
		{name: "drain", group: changing, args: "HOST", maxArgs: 1, minArgs: 1, summary: "take a host out of the election", operates: true,
			options: func() any { return new(lockOptions) }, run: lockHost},
		{name: "ready", group: changing, args: "HOST", maxArgs: 1, minArgs: 1, summary: "put a host back into the election", operates: true,
			options: func() any { return new(relayOptions) }, run: unlockHost},
		{name: "freeze", group: changing, summary: "no change of primary until told otherwise", operates: true,
			options: func() any { return new(lockOptions) }, run: lockHost},
		{name: "unfreeze", group: changing, summary: "end a freeze", operates: true,
			options: func() any { return new(relayOptions) }, run: unlockHost},

		{name: "reload", group: changing, summary: "read the configuration file again", operates: true, run: reloadRunning},

		{name: "drill", group: preparing, args: "[HOST]", maxArgs: 1, summary: "rehearse: who would take over, and would it work", operates: true,
			options: func() any { return new(drillOptions) }, run: drill},
		{name: "predict", group: preparing, summary: "how long a failover takes at worst, from the settings", settings: true,
			options: func() any { return new(showOptions) }, run: predict},
		{name: "check", group: preparing, summary: "validate the settings and try every check once", settings: true, run: checkAll},

		{name: "config", group: other, summary: "print every setting and where it came from", settings: true, run: printConfig},
		{name: "activate", group: other, args: "SERVICE[.PORT]", maxArgs: 1, minArgs: 1, summary: "switch a service on for those who ask /status",
			flags: true, run: setFlag},
		{name: "deactivate", group: other, args: "SERVICE[.PORT]", maxArgs: 1, minArgs: 1, summary: "switch a service off for those who ask /status",
			flags: true, run: setFlag},
		{name: "inactivate", args: "SERVICE[.PORT]", maxArgs: 1, minArgs: 1, summary: "another name for deactivate", hidden: true,
			flags: true, run: setFlag},
		{name: "health", group: other, args: "[URL|PATH]", maxArgs: 1, summary: "ask for one verdict; exit 0 when it is good", settings: true, run: askHealth},
		{name: "completion", group: other, args: "SHELL", maxArgs: 1, minArgs: 1, summary: "print the completion for bash, zsh or fish", run: printCompletion},
		{name: "man", group: other, summary: "print the manual page (understudy man | man -l -)", run: printManual},
		{name: "version", group: other, summary: "print version, commit and Go version", run: printVersion},
		{name: "help", group: other, args: "[COMMAND]", maxArgs: 1, summary: "show what a command does", run: showHelp},

		{name: "demo-host", args: "NAME ADDR", maxArgs: 2, summary: "a host of the demo", hidden: true, run: demoHost},
	}
}

// takes says whether a verb that takes no settings takes this one.
func (v verb) takes(s config.Setting) bool {
	switch s.Flag {
	case "config": // where the other may be written
		return v.operates || v.flags
	case "control":
		return v.operates
	case "status-dir":
		return v.flags
	}
	return false
}

// shows says whether the help of the verb has this setting. A health check asks
// about an address that it is given, or the one setting.
func (v verb) shows(s config.Setting) bool {
	return v.takes(s) || v.settings && v.maxArgs == 0
}

// line is a command line, taken apart.
type line struct {
	verb    verb
	flags   map[string][]string // settings given as flags, by long name
	args    []string            // arguments of the verb
	options any                 // of the verb; what verb.options made
	help    bool
	version bool

	parser *flags.Parser
}

// general holds the flags that are no settings.
type general struct {
	Help    bool `short:"h" long:"help" description:"show this help"`
	Version bool `long:"version" description:"print version, commit and Go version"`
}

// parseLine takes args apart. The error joins every problem; the values of
// settings are looked at later, by config.
func parseLine(args []string) (line, error) {
	var g general
	// The environment and the defaults are config's: go-flags sees neither.
	p := flags.NewNamedParser("understudy", flags.PassDoubleDash|flags.AllowBoolValues)
	p.LongDescription = "Relays TCP connections to the primary among several hosts and fails over without losing a client. " +
		"Each setting is a flag or an environment variable; the flag wins."
	p.Usage = "[flags]"
	p.SubcommandsOptional = true
	given := addSettings(p.Group)
	_, err := p.AddGroup("General", "", &g)
	known := verbs()
	options := map[string]any{}
	for _, v := range known {
		options[v.name] = &struct{}{}
		if v.options != nil {
			options[v.name] = v.options()
		}
		c, err2 := p.AddCommand(v.name, v.summary, v.summary+".", options[v.name])
		err = errors.Join(err, err2)
		if err2 == nil {
			c.Hidden = v.hidden
		}
	}
	if err != nil {
		return line{}, err // a mistake in the tables; every test would see it
	}

	var problems []error
	p.UnknownOptionHandler = func(name string, given flags.SplitArgument, rest []string) ([]string, error) {
		takesValue, problem := unknownFlag(name, flagsFor(p, known))
		problems = append(problems, problem)
		_, hasValue := given.Value()
		if takesValue && !hasValue && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
			rest = rest[1:] // the value of the flag that was meant
		}
		return rest, nil
	}
	l := line{parser: p, verb: known[0], help: false}
	l.args, err = parseAll(p, withNegatives(args))
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
				problems = append(problems, fmt.Errorf("--%s: has no meaning for %s", s.Flag, l.verb.name))
			}
		}
	}
	return l, errors.Join(problems...)
}

// addSettings adds a group of options to g for each group of settings. The
// function it returns gives the values, by long name, of those that were used.
//
// go-flags learns of options from the tags of a struct, so the table of
// settings is turned into structs here.
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
			kind := reflect.TypeFor[[]string]()
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
			all = append(all, field{table[start+i], group.Elem().Field(i)})
		}
		start = end
	}
	return func() map[string][]string {
		values := map[string][]string{}
		for _, f := range all {
			switch v := f.value.Interface().(type) {
			case []string:
				if len(v) > 0 {
					values[f.setting.Flag] = v
				}
			case *bool:
				if v != nil {
					values[f.setting.Flag] = []string{fmt.Sprint(*v)}
				}
			}
		}
		return values
	}
}

// orDash is a default as go-flags shows it; it shows none for a dash.
func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// parseAll parses args to the end. go-flags stops at its first problem, so it
// is started again behind it, for the operator to see all of them at once.
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

// withNegatives joins a negative number to the flag in front of it, which
// go-flags would take for another flag: none of ours begins with a digit.
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

// flagsFor maps the flags that have a meaning for the verb that was parsed last
// to whether they take a value.
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

// unknownFlag says which flag was probably meant, and whether that one takes a
// value. All are those there are.
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

// usage reports every problem in err and where there is help for the verb.
func (l line) usage(stderr io.Writer, err error) int {
	if errors.Is(err, config.ErrNothing) {
		return usage(stderr, err)
	}
	for problem := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(stderr, "understudy: %s\n", printable(problem))
	}
	command := "understudy"
	if l.parser != nil && l.parser.Active != nil {
		command += " " + l.verb.name
	}
	fmt.Fprintf(stderr, "Try '%s --help'.\n", command)
	return exitUsage
}

// showHelp is the verb that does what --help does.
func showHelp(_ context.Context, l line, stdout, stderr io.Writer) int {
	asked, err := parseLine(slices.Concat(l.args, []string{"--help"}))
	if err != nil {
		return asked.usage(stderr, err)
	}
	asked.writeHelp(stdout)
	return exitDone
}

// writeHelp writes the help for the verb of the line, or for the program.
func (l line) writeHelp(w io.Writer) {
	if l.parser.Active != nil {
		l.verb.writeHelp(w)
		return
	}
	p := l.parser
	known := verbs()
	for _, v := range known {
		p.Find(v.name).Hidden = true // go-flags would sort them
	}
	p.Usage = "[flags] [command]"
	showVariables(p)
	var text strings.Builder
	p.WriteHelp(&text)
	// go-flags shows a list of the commands that are not hidden: an empty one.
	fmt.Fprint(w, strings.Replace(text.String(), " []", "", 1))
	group := ""
	for _, v := range known {
		if v.hidden {
			continue
		}
		if v.group != group {
			group = v.group
			fmt.Fprintf(w, "\n%s:\n", group)
		}
		fmt.Fprintf(w, "  %-25s %s\n", strings.TrimSpace(v.name+" "+v.args), v.summary)
	}
	fmt.Fprintln(w, "\n'understudy help COMMAND' shows the flags of a command.")
}

// writeHelp writes the help for one verb: its own flags first, and of the
// settings those that it looks at.
func (v verb) writeHelp(w io.Writer) {
	p := flags.NewNamedParser("understudy "+v.name, flags.None)
	p.Usage = strings.TrimSpace(v.args + " [flags]")
	p.LongDescription = strings.ToUpper(v.summary[:1]) + v.summary[1:] + "."
	var err error
	if v.options != nil {
		_, err = p.AddGroup("Flags", "", v.options())
	}
	addSettings(p.Group)
	_, err2 := p.AddGroup("General", "", new(general))
	if err = errors.Join(err, err2); err != nil {
		panic(err) // the tables are wrong, whatever the command line
	}
	for _, s := range config.Table() {
		p.FindOptionByLongName(s.Flag).Hidden = !v.shows(s)
	}
	p.FindOptionByLongName("version").Hidden = v.name != "version"
	showVariables(p)
	p.WriteHelp(w)
}

// showVariables adds the variables to the help. Only the help may know them:
// go-flags would read them, the empty ones too.
func showVariables(p *flags.Parser) {
	for _, s := range config.Table() {
		p.FindOptionByLongName(s.Flag).EnvDefaultKey = s.Env
	}
}
