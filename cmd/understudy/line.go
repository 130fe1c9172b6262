package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	maxArgs  int
	summary  string
	settings bool // takes the settings as flags
	hidden   bool

	run func(ctx context.Context, line line, stdout, stderr io.Writer) int
}

// verbs lists them in the order of the help. The first runs when none is given.
func verbs() []verb {
	return []verb{
		{name: "run", summary: "run (what happens without a command)", settings: true, run: serveVerb},
		{name: "demo", summary: "two small hosts, a relay and /ping, to try it all", settings: true, run: demo},
		{name: "health", args: "[URL|PATH]", maxArgs: 1, summary: "ask for one verdict; exit 0 when it is good", settings: true, run: askHealth},
		{name: "config", summary: "print every setting and where it came from", settings: true, run: printConfig},
		{name: "version", summary: "print version, commit and Go version", run: printVersion},
		{name: "demo-host", args: "NAME ADDR", maxArgs: 2, summary: "a host of the demo", hidden: true, run: demoHost},
	}
}

// line is a command line, taken apart.
type line struct {
	verb    verb
	flags   map[string][]string // settings given as flags, by long name
	args    []string            // arguments of the verb
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
	for _, v := range known {
		c, err2 := p.AddCommand(v.name, v.summary, v.summary+".", &struct{}{})
		err = errors.Join(err, err2)
		if err2 == nil {
			c.Hidden = v.hidden
		}
	}
	if err != nil {
		return line{}, err // a mistake in the tables; every test would see it
	}

	var problems []error
	p.UnknownOptionHandler = func(name string, _ flags.SplitArgument, rest []string) ([]string, error) {
		takesValue, problem := unknownFlag(name)
		problems = append(problems, problem)
		if takesValue && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
			rest = rest[1:] // the value of the flag that was meant
		}
		return rest, nil
	}
	l := line{parser: p, verb: known[0], help: false}
	l.args, err = parseAll(p, args)
	if err != nil {
		problems = append(problems, err)
	}
	l.help, l.version, l.flags = g.Help, g.Version, given()
	if p.Active != nil {
		l.verb = known[slices.IndexFunc(known, func(v verb) bool { return v.name == p.Active.Name })]
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
	if !l.verb.settings {
		for _, s := range config.Table() {
			if _, ok := l.flags[s.Flag]; ok {
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

// unknownFlag says which flag was probably meant, and whether that one takes a
// value.
func unknownFlag(name string) (takesValue bool, problem error) {
	if len(name) == 1 {
		return false, fmt.Errorf("unknown flag -%s", name)
	}
	table := config.Table()
	words := []string{"help", "version"}
	for _, s := range table {
		words = append(words, s.Flag)
	}
	near := config.Nearest(name, words)
	if near == "" {
		return false, fmt.Errorf("unknown flag --%s", name)
	}
	i := slices.IndexFunc(table, func(s config.Setting) bool { return s.Flag == near })
	return i >= 0 && !table[i].Switch(), fmt.Errorf("unknown flag --%s: did you mean --%s?", name, near)
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

// writeHelp writes the help for the verb of the line, or for the program.
func (l line) writeHelp(w io.Writer) {
	p := l.parser
	table := config.Table()
	for _, s := range table {
		// Only the help may know the variables: go-flags would read them, the
		// empty ones too.
		p.FindOptionByLongName(s.Flag).EnvDefaultKey = s.Env
	}
	if p.Active != nil && (!l.verb.settings || l.verb.maxArgs > 0) {
		for _, s := range table {
			p.Group.Find(s.Group).Hidden = true
		}
	}
	if p.Active != nil && l.verb.args != "" {
		p.Active.Name += " " + l.verb.args
	}
	p.WriteHelp(w)
}
