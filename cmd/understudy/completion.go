package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"understudy/config"
)

// printCompletion prints the completion for a shell, made of the verbs and the
// flags that the help shows.
func printCompletion(_ context.Context, l line, stdout, stderr io.Writer) int {
	shells := map[string]func() string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}
	script, ok := shells[l.args[0]]
	if !ok {
		return l.usage(stderr, fmt.Errorf("completion: %q is none of bash, zsh and fish", l.args[0]))
	}
	if _, err := io.WriteString(stdout, script()); err != nil {
		fmt.Fprintf(stderr, "understudy: completion: %v\n", err)
		return exitFailed
	}
	return exitDone
}

// flagWords are the words that a flag takes beside what cannot be guessed. The
// others are files where the name of their value says so.
var flagWords = map[string][]string{
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

// argWords are the words that may stand where a verb has an argument.
func argWords(v verb) []string {
	switch v.name {
	case "completion":
		return []string{"bash", "fish", "zsh"}
	case "help":
		return visibleVerbs()
	}
	return nil
}

// takesFile says whether the value of the flag is a file, and whether only a
// directory can be meant.
func (f flagText) takesFile() (file, onlyDir bool) {
	switch {
	case f.long == "pong-path" || f.long == "ping-path": // of a URL
		return false, false
	case f.value == "DIR":
		return true, true
	}
	return f.value == "FILE" || f.value == "PATH" || f.long == "log-output", false
}

// completed are the flags that are offered behind the verb.
func (v verb) completed() []flagText {
	all := v.ownFlags()
	for _, s := range config.Table() {
		if v.shows(s) {
			all = append(all, settingText(s))
		}
	}
	for _, f := range flagTexts(new(general)) {
		if f.long == "help" || v.name == "run" {
			all = append(all, f)
		}
	}
	return all
}

func visibleVerbs() []string {
	var names []string
	for _, v := range verbs() {
		if !v.hidden {
			names = append(names, v.name)
		}
	}
	return names
}

// valueFlags are all flags that take a value, in both spellings.
func valueFlags() []flagText {
	var all []flagText
	for _, v := range verbs() {
		for _, f := range v.completed() {
			if f.value != "" && !slices.ContainsFunc(all, func(g flagText) bool { return g.long == f.long }) {
				all = append(all, f)
			}
		}
	}
	return all
}

// spellings are the words that mean the flag.
func (f flagText) spellings() []string {
	if f.short == 0 {
		return []string{"--" + f.long}
	}
	return []string{"-" + string(f.short), "--" + f.long}
}

// valueWords are the words behind which a value stands.
func valueWords() []string {
	var words []string
	for _, f := range valueFlags() {
		words = append(words, f.spellings()...)
	}
	return words
}

// bashCompletion needs nothing but bash itself. The shell may have cut words at
// '=' and ':', which are in COMP_WORDBREAKS.
func bashCompletion() string {
	var b strings.Builder
	values := valueWords()
	fmt.Fprintf(&b, `# Completion of understudy for bash: understudy completion bash

_understudy() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb= word i
	COMPREPLY=()
	if [[ $cur == = ]]; then
		cur=
	elif [[ $prev == = ]]; then
		prev=${COMP_WORDS[COMP_CWORD-2]}
	fi
	for ((i = 1; i < COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		case $word in
		%s) # its value is no command
			((i++))
			if [[ ${COMP_WORDS[i]} == = ]]; then ((i++)); fi
			;;
		%s)
			verb=$word
			break
			;;
		esac
	done
	case $prev in
`, strings.Join(values, "|"), strings.Join(visibleVerbs(), "|"))
	for _, f := range valueFlags() {
		var from []string
		if words := flagWords[f.long]; words != nil {
			from = append(from, fmt.Sprintf(`-W '%s'`, strings.Join(words, " ")))
		}
		switch file, onlyDir := f.takesFile(); {
		case onlyDir:
			from = append(from, "-d")
		case file:
			from = append(from, "-f")
		}
		if from == nil {
			continue
		}
		names := ""
		if file, _ := f.takesFile(); file {
			names = "compopt -o filenames 2>/dev/null\n\t\t"
		}
		fmt.Fprintf(&b, "\t%s)\n\t\t%smapfile -t COMPREPLY < <(compgen %s -- \"$cur\")\n\t\treturn\n\t\t;;\n",
			strings.Join(f.spellings(), "|"), names, strings.Join(from, " "))
	}
	fmt.Fprintf(&b, "\t%s)\n\t\treturn\n\t\t;;\n\tesac\n\tlocal words=\n\tcase $verb in\n", strings.Join(values, "|"))
	for _, v := range verbs() {
		if v.hidden {
			continue
		}
		pattern, words := v.name, argWords(v)
		if v.name == "run" { // what happens without a command
			pattern = "''"
			words = visibleVerbs()
		}
		var long []string
		for _, f := range v.completed() {
			long = append(long, "--"+f.long)
		}
		line := fmt.Sprintf("\t\tif [[ $cur == -* ]]; then words='%s'; else words='%s'; fi\n\t\t;;\n",
			strings.Join(long, " "), strings.Join(words, " "))
		fmt.Fprintf(&b, "\t%s)\n%s", pattern, line)
		if v.name == "run" {
			fmt.Fprintf(&b, "\trun)\n\t\twords='%s'\n\t\t;;\n", strings.Join(long, " "))
		}
	}
	b.WriteString(`	esac
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -F _understudy understudy
`)
	return b.String()
}

// zshCompletion is a file for a directory of fpath, or to be sourced behind
// compinit.
func zshCompletion() string {
	var b strings.Builder
	b.WriteString(`#compdef understudy
# Completion of understudy for zsh: understudy completion zsh

_understudy() {
	local curcontext="$curcontext" state line
	typeset -A opt_args
	local -a commands
	commands=(
`)
	for _, v := range verbs() {
		if !v.hidden {
			fmt.Fprintf(&b, "\t\t%s\n", quoteShell(v.name+":"+strings.ReplaceAll(v.summary, ":", `\:`)))
		}
	}
	b.WriteString("\t)\n\t_arguments -C -s -S \\\n")
	writeZshFlags(&b, verbs()[0], "\t\t")
	b.WriteString(`		'1:command:->command' \
		'*::argument:->argument' && return
	case $state in
	command)
		_describe -t commands 'command' commands
		;;
	argument)
		curcontext="${curcontext%:*}-$words[1]:"
		case $words[1] in
`)
	for _, v := range verbs() {
		if v.hidden {
			continue
		}
		fmt.Fprintf(&b, "\t\t%s)\n\t\t\t_arguments -s -S \\\n", v.name)
		writeZshFlags(&b, v, "\t\t\t\t")
		switch words := argWords(v); {
		case words != nil:
			fmt.Fprintf(&b, "\t\t\t\t%s\n", quoteShell("1:"+zshText(v.args)+":("+strings.Join(words, " ")+")"))
		case v.maxArgs > 0:
			fmt.Fprintf(&b, "\t\t\t\t%s\n", quoteShell("1:"+zshText(v.args)+":"))
		default:
			b.WriteString("\t\t\t\t'*: :'\n")
		}
		b.WriteString("\t\t\t;;\n")
	}
	b.WriteString(`		esac
		;;
	esac
}

if [[ $funcstack[1] == _understudy ]]; then
	_understudy "$@"
else
	compdef _understudy understudy
fi
`)
	return b.String()
}

func writeZshFlags(b *strings.Builder, v verb, indent string) {
	for _, f := range v.completed() {
		value := ""
		if f.value != "" {
			value = ":" + zshText(f.value) + ":"
			words := strings.Join(flagWords[f.long], " ")
			switch file, onlyDir := f.takesFile(); {
			case onlyDir:
				value += "_files -/"
			case file && words == "":
				value += "_files"
			case file:
				value += `{compadd -- ` + words + `; _files}`
			case words != "":
				value += "(" + words + ")"
			}
		}
		for _, name := range f.spellings() {
			if strings.HasPrefix(name, "--") && f.value != "" {
				name += "="
			}
			fmt.Fprintf(b, "%s%s \\\n", indent, quoteShell("*"+name+"["+zshText(f.help)+"]"+value))
		}
	}
}

// zshText is text inside a specification of _arguments.
func zshText(text string) string {
	return strings.NewReplacer(`\`, `\\`, `[`, `\[`, `]`, `\]`, `:`, `\:`).Replace(text)
}

// fishCompletion offers the flags of the command that was typed.
func fishCompletion() string {
	var b strings.Builder
	values := valueWords()
	fmt.Fprintf(&b, `# Completion of understudy for fish: understudy completion fish

function __understudy_command --description 'the command that was typed, or none'
	set -l value no
	for word in (commandline -opc)[2..-1]
		if test $value = yes # of the flag in front of it
			set value no
		else if contains -- $word %s
			set value yes
		else if contains -- $word %s
			echo $word
			return
		end
	end
	echo none
end

function __understudy_in
	contains -- (__understudy_command) $argv
end

complete -c understudy -f
`, strings.Join(values, " "), strings.Join(visibleVerbs(), " "))
	// Each flag once, with the commands that have it. Flags of one name that mean
	// something else behind another verb have a line of their own.
	type entry struct {
		flag  flagText
		verbs []string
	}
	var entries []entry
	for _, v := range verbs() {
		if v.hidden {
			continue
		}
		fmt.Fprintf(&b, "complete -c understudy -n '__understudy_in none' -a %s -d %s\n", v.name, quoteFish(v.summary))
		if words := argWords(v); words != nil {
			fmt.Fprintf(&b, "complete -c understudy -n '__understudy_in %s' -a %s\n", v.name, quoteFish(strings.Join(words, " ")))
		}
		names := []string{v.name}
		if v.name == "run" {
			names = []string{"none", "run"}
		}
		for _, f := range v.completed() {
			i := slices.IndexFunc(entries, func(e entry) bool { return e.flag == f })
			if i < 0 {
				i = len(entries)
				entries = append(entries, entry{flag: f})
			}
			entries[i].verbs = append(entries[i].verbs, names...)
		}
	}
	for _, e := range entries {
		fmt.Fprintf(&b, "complete -c understudy -n '__understudy_in %s'", strings.Join(e.verbs, " "))
		if e.flag.short != 0 {
			fmt.Fprintf(&b, " -s %c", e.flag.short)
		}
		fmt.Fprintf(&b, " -l %s", e.flag.long)
		words := strings.Join(flagWords[e.flag.long], " ")
		switch file, onlyDir := e.flag.takesFile(); {
		case onlyDir:
			b.WriteString(" -x -a '(__fish_complete_directories)'")
		case file && words != "":
			fmt.Fprintf(&b, " -rF -a %s", quoteFish(words))
		case file:
			b.WriteString(" -rF")
		case words != "":
			fmt.Fprintf(&b, " -x -a %s", quoteFish(words))
		case e.flag.value != "":
			b.WriteString(" -x")
		}
		fmt.Fprintf(&b, " -d %s\n", quoteFish(e.flag.help))
	}
	return b.String()
}

// quoteShell is text as one word of bash and zsh.
func quoteShell(text string) string {
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// quoteFish is text as one word of fish.
func quoteFish(text string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(text) + "'"
}
