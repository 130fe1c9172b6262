package main

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/jessevdk/go-flags"

	"understudy/config"
)

// A flagText is one flag in the manual page and the completions.
type flagText struct {
	long  string
	short rune   // or zero
	value string // name of its value; empty for a switch
	help  string

	// Of settings only.
	env      string
	fallback string
}

// ownFlags returns the flags of the verb that are no settings.
func (v verb) ownFlags() []flagText {
	if v.options == nil {
		return nil
	}
	return flagTexts(v.options())
}

// flagTexts returns the flags of a struct with tags of go-flags.
func flagTexts(options any) []flagText {
	g, err := flags.NewNamedParser("", flags.None).AddGroup("", "", options)
	if err != nil {
		panic(err) // the tables are wrong, whatever the command line
	}
	var all []flagText
	for _, o := range g.Options() {
		all = append(all, flagText{long: o.LongName, short: o.ShortName, value: o.ValueName, help: o.Description})
	}
	return all
}

func settingText(s config.Setting) flagText {
	return flagText{long: s.Flag, short: s.Short, value: s.Value, help: s.Help, env: s.Env, fallback: s.Default}
}

// printManual prints the manual page, which is made from the texts of the help.
func printManual(_ context.Context, _ line, stdout, stderr io.Writer) int {
	date := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" {
				date, _, _ = strings.Cut(s.Value, "T")
			}
		}
	}
	if _, err := io.WriteString(stdout, manual(date)); err != nil {
		fmt.Fprintf(stderr, "understudy: man: %v\n", err)
		return exitFailed
	}
	return exitDone
}

// manual returns the manual page in the macros of man(7). Date is the date of
// the program, or empty when it is not known.
//
// WriteManPage of go-flags has no sections for files, signals, exit status and
// examples, sorts the commands by name, shows neither defaults nor variables in
// our form, and prints minus signs as hyphens, which a shell does not accept
// when they are copied from the page.
func manual(date string) string {
	var b strings.Builder
	release, _, _ := strings.Cut(versionText(), " ")
	fmt.Fprintf(&b, ".TH UNDERSTUDY 1 \"%s\" \"understudy %s\" \"understudy\"\n", date, roff(release))
	b.WriteString(manualHead)

	b.WriteString(".SH COMMANDS\nWithout a command the program runs.\n")
	group := ""
	for _, v := range verbs() {
		if v.hidden {
			continue
		}
		if v.group != group {
			group = v.group
			fmt.Fprintf(&b, ".SS %s\n", roffArgument(group))
		}
		fmt.Fprintf(&b, ".TP\n.B %s\n%s.\n", roffArgument(strings.TrimSpace(v.name+" "+v.args)), roff(sentence(v.summary)))
		if own := v.ownFlags(); len(own) > 0 {
			b.WriteString(".RS\n")
			for _, f := range own {
				f.writeManual(&b)
			}
			b.WriteString(".RE\n")
		}
	}

	b.WriteString(".SH SETTINGS\n" + manualSettings)
	group = ""
	for _, s := range config.Table() {
		if s.Group != group {
			group = s.Group
			fmt.Fprintf(&b, ".SS %s\n", roffArgument(group))
		}
		settingText(s).writeManual(&b)
	}
	b.WriteString(".SS General\n")
	for _, f := range flagTexts(new(general)) {
		f.writeManual(&b)
	}
	b.WriteString(manualTail)
	return b.String()
}

// writeManual writes the flag as an item of a list.
func (f flagText) writeManual(b *strings.Builder) {
	b.WriteString(".TP\n")
	if f.short != 0 {
		fmt.Fprintf(b, `\fB\-%c\fR, `, f.short)
	}
	fmt.Fprintf(b, `\fB\-\-%s\fR`, roff(f.long))
	if f.value != "" {
		fmt.Fprintf(b, ` \fI%s\fR`, roff(f.value))
	}
	if f.env != "" {
		fmt.Fprintf(b, ` (variable \fB%s\fR)`, roff(f.env))
	}
	help := f.help
	// Words to be entered literally have no capital.
	if first, _, _ := strings.Cut(help, " "); !slices.Contains(settingWords[f.long], strings.Trim(first, ",")) {
		help = sentence(help)
	}
	fmt.Fprintf(b, "\n%s.\n", roff(help))
	if f.fallback != "" {
		fmt.Fprintf(b, "Default:\n.BR %s .\n", roffArgument(f.fallback))
	}
}

// sentence returns text with a capital at the beginning.
func sentence(text string) string {
	return strings.ToUpper(text[:1]) + text[1:]
}

// roff returns text that troff prints unchanged, even at the beginning of a
// line.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}

// roffArgument returns text as one argument of a macro.
func roffArgument(text string) string {
	return `"` + strings.ReplaceAll(roff(text), `"`, `\(dq`) + `"`
}

const manualHead = `.SH NAME
understudy \- TCP relay that fails over, with health verdicts over HTTP
.SH SYNOPSIS
.B understudy
.RI [ flags ]
.RI [ command ]
.PP
.B understudy \-\-port
.I N
.B \-\-hosts
.IR HOST:PORT , HOST:PORT ...
.SH DESCRIPTION
.B understudy
is a TCP relay for a service that runs on several hosts, of which one at a time
is the primary.
It forwards every client connection to the primary without reading the data.
When the primary fails, it detects that, elects the next host, resets the
connections to the old primary, runs scripts and connects the waiting clients:
they see a slower connect, not an error.
It also answers health checks over HTTP with one verdict over all services of
this machine.
`

const manualSettings = `Each is a flag, an environment variable, or a key of the configuration file, where
\- is written as _.
A flag overrides a variable, a variable overrides the file, and the file overrides
the default; an empty variable counts as not set.
Lists are separated by commas, or the flag is repeated.
Durations are like 500ms, 10s or 1m30s; a bare number is seconds.
.B understudy config
prints every value and its origin.
`

const manualTail = `.SH ENVIRONMENT
Check scripts and triggers get the connection string of a host as their only
argument, and these variables beside those of the program:
.TP
.B UNDERSTUDY_EVENT
.BR start ", " failover ", " switchover ", " failback ", " reselect
(the same host again) or
.B moved
(the same host at another address).
.TP
.B UNDERSTUDY_RELAY
The name of the relay.
.TP
.B UNDERSTUDY_EPOCH
The number of this election.
.TP
.BR UNDERSTUDY_OLD ", " UNDERSTUDY_NEW
Connection strings; the old one is empty at start.
.TP
.BR UNDERSTUDY_ADDRESS ", " UNDERSTUDY_OLD_ADDRESS
The addresses of the new and the old host where those are names: connections and
checks go there.
.TP
.B UNDERSTUDY_REASON
One line.
.TP
.B UNDERSTUDY_DRY_RUN
1 in
.BR "understudy drill \-\-triggers" :
do everything but the change.
.SH FILES
.TP
.I /etc/understudy/understudy.yaml
Configuration file of the Debian package.
It does nothing until it is edited.
.TP
.I /usr/share/doc/understudy/examples/understudy.yaml
Every key of a configuration file, with an explanation.
.TP
.I /usr/share/understudy/understudy.functions
Functions for init scripts that switch a service on and off.
.TP
.I /run/understudy/PID.sock
Control socket of a process of root.
.SH SIGNALS
.TP
.BR TERM ", " INT
Turn verdicts bad; after
.B \-\-lame\-duck
stop accepting, let connections finish for
.BR \-\-drain\-timeout ,
reset the rest, exit 0.
A second one ends at once.
.TP
.B HUP
Read the configuration file again; open a log file anew.
.SH "EXIT STATUS"
.TP
.B 0
Ended as asked.
.TP
.B 1
Failed at run time, such as a busy port; or a command was refused, and says why.
.TP
.B 2
Wrong usage or settings; standard error names every problem.
.SH EXAMPLES
Relay port 5432 to whichever of two hosts is usable, the first one preferred:
.PP
.RS
.B understudy \-p 5432 \-H db1:5432,db2:5432
.RE
.PP
Answer for two local services with one verdict:
.PP
.RS
.B understudy \-\-http :5000 \-\-lport 3000 \-\-lport 3001
.RE
.PP
Make another host primary, with 5 s for open connections to finish:
.PP
.RS
.B understudy switch db2 \-\-drain 5s
.RE
.SH "SEE ALSO"
.BR systemd.service (5),
.BR haproxy (1)
.PP
The pages in
.I /usr/share/doc/understudy
say more about the configuration file, verdicts, logs and the control socket.
`
