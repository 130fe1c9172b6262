package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jessevdk/go-flags"

	"understudy/config"
)

// showHelp is the verb help, which does the same as --help.
func showHelp(_ context.Context, l line, stdout, stderr io.Writer) int {
	parsed, err := parseLine(slices.Concat(l.args, []string{"--help"}))
	if err != nil {
		return parsed.usage(stderr, err)
	}
	parsed.writeHelp(stdout)
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

// writeHelp writes the help for one verb: its own flags first, then the
// settings that it uses.
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

// showVariables adds the variables to the help. Only the help may have them:
// otherwise go-flags would read them, even the empty ones.
func showVariables(p *flags.Parser) {
	for _, s := range config.Table() {
		p.FindOptionByLongName(s.Flag).EnvDefaultKey = s.Env
	}
}
