package config

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// The YAML parser's errors speak of tokens and indicators. This file replaces the
// most frequent ones by a description of the mistake and names its line.

// whenUsed returns a regular expression that is compiled when it is first used: most
// files have no mistake.
func whenUsed(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

var (
	syntaxLine = whenUsed(`^line (\d+): `)

	// parserError matches errors of the parser, which counts lines from zero; the
	// scanner counts from one.
	parserError = whenUsed(`^(did not find expected (node content|<document start>|'-' indicator|key|',' or .*)|found (duplicate|incompatible|undefined) .*)$`)

	tabIndent    = whenUsed(`^ *\t\s*[^\s#]`)
	noSpace      = whenUsed(`^\s*(?:- )?([A-Za-z_]+):([^\s:/].*)$`)
	bareColon    = whenUsed(`[\[{,]\s*(:[0-9]+)`)
	bareBrackets = whenUsed(`\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]:[0-9]+`)
	secondColon  = whenUsed(`^\s*(?:- )?[A-Za-z_]+:\s+[^"'\s].*:\s`)
	emptyItem    = whenUsed(`[\[{,]\s*,`)
	quoteNeeded  = whenUsed("[:\\[,-]\\s+([@`%*&])")
)

// syntax records err, an error of the YAML parser about data. The parser names no
// line in an error about the first one.
func (r *reader) syntax(data []byte, err error) {
	text, line := strings.TrimPrefix(err.Error(), "yaml: "), 1
	if m := syntaxLine().FindStringSubmatch(text); m != nil {
		text = text[len(m[0]):]
		line, _ = strconv.Atoi(m[1])
		if parserError().MatchString(text) {
			line++
		}
	}
	lines := strings.Split(string(data), "\n")
	line = min(max(line, 1), len(lines))
	if plain, at := explain(text, lines, line); plain != "" {
		text, line = plain, at
	}
	r.d.problem(r.at(spot{line: line}), errors.New(text))
}

// explain returns a description of the parser's error text and the line of the
// mistake, which may not be the line that the parser names: that is where it gave
// up, or where the block began. The description is empty for an unknown text.
func explain(text string, lines []string, line int) (plain string, at int) {
	// find returns the first line that matches, not before the given one.
	find := func(from int, pattern func() *regexp.Regexp) (found []string, at int) {
		for i := max(from, 1); i <= len(lines); i++ {
			if m := pattern().FindStringSubmatch(lines[i-1]); m != nil {
				return m, i
			}
		}
		return nil, 0
	}
	switch {
	case strings.Contains(text, "tab character"):
		if _, at := find(line, tabIndent); at > 0 {
			return "is indented with a tab: use spaces", at
		}
		return "has a tab where only spaces may be", line
	case strings.Contains(text, "unknown escape character"):
		return `has a backslash in double quotes, where it is an escape: use single quotes`, line
	case strings.Contains(text, "cannot start any token"), strings.Contains(text, "alphabetic or numeric character"):
		if tabIndent().MatchString(lines[line-1]) {
			return "is indented with a tab: use spaces", line
		}
		if m, at := find(line, quoteNeeded); at > 0 {
			return fmt.Sprintf("has a value that begins with %s: put it in quotes", m[1]), at
		}
		return "has a value that begins with a special character: put it in quotes", line
	case strings.Contains(text, "unexpected end of stream"):
		return "ends inside quotes: a quote before it is not closed", line
	case strings.Contains(text, "expected node content"), strings.Contains(text, "expected ',' or"):
		if m, at := find(line, bareColon); at == line {
			return fmt.Sprintf(`has an address that begins with a colon: put it in quotes, like "%s"`, m[1]), at
		}
		if m, at := find(line, bareBrackets); at > 0 {
			return fmt.Sprintf(`has an address in brackets: put it in quotes, like "%s"`, m[0]), at
		}
		if m, at := find(line, bareColon); at > 0 {
			return fmt.Sprintf(`has an address that begins with a colon: put it in quotes, like "%s"`, m[1]), at
		}
		if _, at := find(line, emptyItem); at > 0 {
			return "has an empty item in a list: two commas, or one at its begin", at
		}
		return "has a list or map in brackets that is not closed, or misses a comma in it", line
	case strings.Contains(text, "mapping values are not allowed"), strings.Contains(text, "expected ':'"):
		if m, at := find(line-1, noSpace); at > 0 && at <= line {
			return fmt.Sprintf("has no space behind the colon: write %s: %s", m[1], m[2]), at
		}
		if secondColon().MatchString(lines[line-1]) {
			return "has a second colon in the value: put the value in quotes", line
		}
		if strings.Contains(text, "expected ':'") {
			return "has no key: want key: value, or an item of a list that begins with a dash and a space", line
		}
		return "is indented further than the line above it: keys of one map begin in one column", line
	case strings.Contains(text, "expected '-' indicator"), strings.Contains(text, "expected key"):
		if at := misaligned(lines, line); at > 0 {
			return "is indented differently from the lines above it: keys of one map, and dashes of one list, begin in one column", at
		}
		return "has something behind the end of its value, or its indentation does not fit the lines above it", line
	case strings.Contains(text, "block sequence entries are not allowed"):
		return "has an item of a list behind its key: put each item, with its dash, into a line of its own", line
	}
	return "", 0
}

// misaligned returns the first line, not before from, that begins in a column in
// which no enclosing map or list begins, or zero.
func misaligned(lines []string, from int) int {
	var columns []int       // of the open maps and lists, the outermost first
	lists := map[int]bool{} // columns of dashes
	for i, line := range lines {
		content := strings.TrimLeft(line, " ")
		if content == "" || content[0] == '#' {
			continue
		}
		column := len(line) - len(content)
		deeper := len(columns) == 0 || column > columns[len(columns)-1]
		for len(columns) > 0 && columns[len(columns)-1] > column {
			columns = columns[:len(columns)-1]
		}
		dash := strings.HasPrefix(content, "- ")
		if deeper {
			columns, lists[column] = append(columns, column), dash
		} else if i+1 >= from && (len(columns) == 0 || columns[len(columns)-1] != column || lists[column] && !dash) {
			return i + 1
		}
		for strings.HasPrefix(content, "- ") { // the text behind a dash opens a column, too
			rest := strings.TrimLeft(content[1:], " ")
			column += len(content) - len(rest)
			content = rest
			columns, lists[column] = append(columns, column), strings.HasPrefix(rest, "- ")
		}
	}
	return 0
}
