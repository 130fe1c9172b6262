package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jessevdk/go-flags"

	"understudy/config"
)

// completionVariable makes go-flags print completions instead of a run. With
// the value verbose each has a tab and its description.
const completionVariable = "GO_FLAGS_COMPLETION"

// completionScripts make each shell request completions from the program.
var completionScripts = map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}

// printCompletion prints the completion script of a shell.
func printCompletion(_ context.Context, l line, stdout, stderr io.Writer) int {
	script, ok := completionScripts[l.args[0]]
	if !ok {
		return l.usage(stderr, fmt.Errorf("completion: %q is none of bash, zsh and fish", l.args[0]))
	}
	if _, err := io.WriteString(stdout, script); err != nil {
		fmt.Fprintf(stderr, "understudy: completion: %v\n", err)
		return exitFailed
	}
	return exitDone
}

// complete prints the completions of the last of args, one a line, and returns
// the exit status.
func complete(args []string, stdout io.Writer) int {
	mode := os.Getenv(completionVariable)
	_ = os.Unsetenv(completionVariable) // fails for malformed names only
	if len(args) == 0 {
		args = []string{""}
	}
	before, _ := parseLine(args[:len(args)-1]) // errors are reported by a real run
	running := sync.OnceValue(func() []target { return targetsSoon(args[:len(args)-1]) })
	known := verbs()
	options := map[string]any{}
	for _, v := range known {
		options[v.name] = &struct {
			Arguments struct{ First argument } `positional-args:"yes"`
		}{struct{ First argument }{argument{v, running}}}
	}
	p, _, err := newParser(new(general), known, options)
	for _, v := range known {
		if v.options != nil && err == nil {
			_, err = p.Find(v.name).AddGroup("Flags", "", v.options())
		}
	}
	if err != nil {
		return exitFailed // a mistake in the tables; every test would find it
	}
	for _, s := range config.Table() {
		p.FindOptionByLongName(s.Flag).Hidden = !before.verb.shows(s)
	}
	p.FindOptionByLongName("version").Hidden = before.verb.name != "run"
	p.CompletionHandler = func(items []flags.Completion) {
		for _, c := range items {
			if mode == "verbose" && c.Description != "" {
				c.Item += "\t" + c.Description
			}
			fmt.Fprintln(stdout, c.Item)
		}
	}
	_ = os.Setenv(completionVariable, mode) // fails for malformed names only
	defer os.Unsetenv(completionVariable)
	_, _ = p.ParseArgs(args) // it calls the handler and parses nothing
	return exitDone
}

// settingWords are the words that a setting accepts in addition to values that
// cannot be listed. Other settings are files if the name of their value says
// so.
var settingWords = map[string][]string{
	"pong-path":      {"/ping"},
	"trigger-policy": {"continue", "abort"},
	"fence":          {"now", "drain=30s", "keep"},
	"failback":       {"never"},
	"send-proxy":     {"off", "v1", "v2"},
	"loops":          {"auto"},
	"spin":           {"auto", "off"},
	"ping-path":      {"/ping"},
	"fail-status":    {"auto", "keep"},
	"control":        {"auto", "off"},
	"log-level":      {"trace", "debug", "info", "warn", "error", "off"},
	"log-format":     {"text", "json"},
	"log-output":     {"stderr", "stdout", "syslog", "gelf+tcp://", "gelf+udp://"},
}

// Complete implements [flags.Completer].
func (v *settingValue) Complete(match string) []flags.Completion {
	all := startingWith(match, settingWords[v.setting])
	table := config.Table()
	value := table[slices.IndexFunc(table, func(s config.Setting) bool { return s.Flag == v.setting })].Value
	switch {
	case v.setting == "pong-path" || v.setting == "ping-path": // paths of a URL
	case value == "DIR":
		all = append(all, files(match, true)...)
	case value == "FILE" || value == "PATH" || v.setting == "log-output":
		all = append(all, files(match, false)...)
	}
	return all
}

// argument is the argument of a verb.
type argument struct {
	of      verb
	running func() []target
}

// UnmarshalFlag implements [flags.Unmarshaler].
func (*argument) UnmarshalFlag(string) error { return nil }

// Complete implements [flags.Completer].
func (a *argument) Complete(match string) []flags.Completion {
	switch a.of.name {
	case "completion":
		return startingWith(match, []string{"bash", "fish", "zsh"})
	case "help":
		return startingWith(match, visibleVerbs())
	case "why", "switch", "drain", "ready", "drill":
		var hosts []string
		for _, t := range a.running() {
			for _, h := range t.relay.Hosts {
				hosts = append(hosts, h.Name)
			}
		}
		slices.Sort(hosts)
		return startingWith(match, slices.Compact(hosts))
	}
	return nil
}

// Complete implements [flags.Completer].
func (n *relayName) Complete(match string) []flags.Completion {
	var relays []string
	for _, t := range targetsSoon([]string{"status"}) { // its control socket is given by a variable or in a known place
		relays = append(relays, t.relay.Name)
	}
	slices.Sort(relays)
	return startingWith(match, slices.Compact(relays))
}

// completionTime is the time for which completion waits for running processes.
const completionTime = 300 * time.Millisecond

// targetsSoon returns the relays that the command line selects among the
// processes that answer at once. The others are left out.
func targetsSoon(args []string) (list []target) {
	// go-flags would complete these lines, too.
	mode := os.Getenv(completionVariable)
	_ = os.Unsetenv(completionVariable) // fails for malformed names only
	defer os.Setenv(completionVariable, mode)
	l, _ := parseLine(args)
	ctx, cancel := context.WithTimeout(context.Background(), completionTime)
	defer cancel()
	path, found, err := l.sockets()
	if err != nil {
		return nil
	}
	all, _ := processes(ctx, path, found)
	var o relayOptions
	switch own := l.options.(type) {
	case *switchOptions:
		o = own.relayOptions
	case *lockOptions:
		o = own.relayOptions
	case *drillOptions:
		o = own.relayOptions
	case *showOptions:
		o = own.relayOptions
	case *topOptions:
		o = own.relayOptions
	case *relayOptions:
		o = *own
	}
	all = slices.DeleteFunc(all, func(p process) bool { return p.err != nil })
	list, _ = o.targets(all)
	return list
}

func startingWith(match string, words []string) []flags.Completion {
	var all []flags.Completion
	for _, w := range words {
		if strings.HasPrefix(w, match) {
			all = append(all, flags.Completion{Item: w})
		}
	}
	return all
}

// files lists the files, or only the directories, whose path begins with match.
// A directory ends in a slash, so that completion continues after it.
func files(match string, onlyDirs bool) []flags.Completion {
	paths, _ := filepath.Glob(globQuoted.Replace(match) + "*") // the pattern is well-formed
	var all []flags.Completion
	for _, path := range paths {
		switch info, err := os.Stat(path); {
		case err == nil && info.IsDir():
			all = append(all, flags.Completion{Item: path + "/"})
		case !onlyDirs:
			all = append(all, flags.Completion{Item: path})
		}
	}
	return all
}

// globQuoted quotes the characters that are special in a pattern of
// [filepath.Match].
var globQuoted = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

func visibleVerbs() []string {
	var names []string
	for _, v := range verbs() {
		if !v.hidden {
			names = append(names, v.name)
		}
	}
	return names
}

// bash cuts words at the characters of COMP_WORDBREAKS, including '=' and ':'.
// The script joins them for the program, and removes the text before the last
// one from the completions.
const bashCompletion = `# Completion of understudy for bash: understudy completion bash

_understudy() {
	local words=() word joined= prefix i
	for ((i = 1; i <= COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		if ((i > 1)) && [[ $word == [=:]* || $joined ]]; then
			words[-1]+=$word
		else
			words+=("$word")
		fi
		[[ $word == *[=:] ]] && joined=yes || joined=
	done
	mapfile -t COMPREPLY < <(GO_FLAGS_COMPLETION=1 "${COMP_WORDS[0]}" "${words[@]}" 2>/dev/null)
	word=${COMP_WORDS[COMP_CWORD]}
	[[ $word == [=:] ]] && word=
	prefix=${words[-1]%"$word"}
	COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
	if [[ ${#COMPREPLY[@]} == 1 && $COMPREPLY == */ ]]; then
		compopt -o nospace 2>/dev/null
	fi
}
complete -F _understudy understudy
`

// zshCompletion is a file for a directory of fpath, or to be sourced after
// compinit.
const zshCompletion = `#compdef understudy
# Completion of understudy for zsh: understudy completion zsh

_understudy() {
	local -a items
	local line item suffix=' '
	for line in "${(@f)$(GO_FLAGS_COMPLETION=verbose ${words[1]} "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
		[[ -n $line ]] || continue
		item=${line%%$'\t'*}
		[[ $item == */ ]] && suffix=
		item=${item//:/\\:}
		[[ $line == *$'\t'* ]] && item+=:${line#*$'\t'}
		items+=("$item")
	done
	_describe -t understudy understudy items -S "$suffix"
}

if [[ $funcstack[1] == _understudy ]]; then
	_understudy "$@"
else
	compdef _understudy understudy
fi
`

const fishCompletion = `# Completion of understudy for fish: understudy completion fish

function __understudy_complete
	set -l words (commandline -opc) (commandline -ct)
	GO_FLAGS_COMPLETION=verbose $words[1] $words[2..-1] 2>/dev/null
end

complete -c understudy -f -a '(__understudy_complete)'
`
