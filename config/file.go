package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"understudy/internal/noblock"
	"understudy/internal/redact"
)

const (
	// maxFile limits the bytes of the file, far above any real one, so that a
	// wrong file does not use much memory.
	maxFile = 1 << 20

	// maxRelays, maxProbes, maxRoutes and maxList limit what a mistake in the
	// file can make the program do.
	maxRelays = 1000
	maxProbes = 1000
	maxRoutes = 1000
	maxList   = 1000
)

// file is the content of the configuration file. The zero file is empty.
type file struct {
	top    map[string]raw // settings outside the list of relays, by flag; a relay inherits what it does not set
	checks []Check        // inherited in the same way

	listed bool // the file has a list of relays
	relays []relaySection

	probes    []Probe
	routes    []routeSection
	routesAt  Origin
	addresses []listener // listening addresses of routes, beside the HTTP listener
	values    []Value    // of keys that only a file has
}

// relaySection is one entry of the list of relays.
type relaySection struct {
	name     string
	at       Origin
	settings map[string]raw // by flag
	checks   []Check        // nil if the relay has no key checks
}

// listener is an address to listen on.
type listener struct {
	at   Origin
	addr string
}

// reader converts the nodes of a YAML document to a file.
type reader struct {
	d    *draft
	name string // path of the configuration file
	file *file
}

// spot is a value in the file and its position.
type spot struct {
	node *yaml.Node
	line int    // of its key; in a list, of the value
	key  string // the last part of path; empty in a list
	path string // like "relays[0].hosts"
}

// readFile reads the configuration file, if there is one.
func (d *draft) readFile(read func(string) ([]byte, error)) *file {
	f := &file{top: map[string]raw{}}
	v := d.choose(lookup("config"))
	if len(v.texts) == 0 {
		return f
	}
	name := strings.TrimSpace(v.texts[len(v.texts)-1])
	if name == "" {
		return f // reported as empty
	}
	if read == nil {
		read = readRegular
	}
	data, err := read(name)
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s is longer than %d bytes", quote(name), maxFile)
	}
	if err != nil {
		d.problem(v.origin, err)
		return f
	}
	r := &reader{d: d, name: name, file: f}
	root, err := parseYAML(data)
	if err != nil {
		r.syntax(data, err)
		return f
	}
	if root != nil {
		r.top(spot{node: root, line: root.Line})
	}
	return f
}

// readRegular reads a regular file, up to one byte more than maxFile. A pipe is
// an error: it could block for ever, and a reload could not read it again.
func readRegular(name string) ([]byte, error) { return noblock.Read(name, maxFile+1) }

// parseYAML returns the root of the only document in data, or nil if it is
// empty.
func parseYAML(data []byte) (root *yaml.Node, err error) {
	// A panic of the YAML parser during a reload must not end the process.
	defer func() {
		if p := recover(); p != nil {
			root, err = nil, fmt.Errorf("cannot be read as YAML: %v", p)
		}
	}()
	if err := checkText(data); err != nil {
		return nil, err
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	if err := decoder.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil //nolint:nilnil // an empty file is no mistake, and has no root
		}
		return nil, err
	}
	if err := decoder.Decode(&second); err == nil {
		return nil, fmt.Errorf("line %d: a second document begins: only one is allowed", second.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(document.Content) == 0 || isNull(document.Content[0]) {
		return nil, nil //nolint:nilnil // as above
	}
	return document.Content[0], nil
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" && n.Style == 0 }

// checkText reports invalid UTF-8 and control characters with their line, which
// the YAML parser does not name.
func checkText(data []byte) error {
	line := 1
	for i := 0; i < len(data); {
		c, size := utf8.DecodeRune(data[i:])
		switch {
		case c == '\n':
			line++
		case c == utf8.RuneError && size == 1:
			return fmt.Errorf("line %d: is not text in UTF-8", line)
		case c < ' ' && c != '\t' && c != '\r':
			return fmt.Errorf("line %d: has the control character %q", line, c)
		}
		i += size
	}
	return nil
}

// at returns the origin of s.
func (r *reader) at(s spot) Origin {
	return Origin{Kind: File, Name: fmt.Sprintf("%s:%d", r.name, s.line), line: s.line, key: s.path}
}

// problem records an error about s.
func (r *reader) problem(s spot, format string, args ...any) {
	r.d.problem(r.at(s), fmt.Errorf(format, args...))
}

// allowed reports whether s is a plain value; if not, it records an error. YAML's
// aliases and tags are not allowed: one part of the file must not change another
// part, and aliases of aliases let a few lines expand to gigabytes.
func (r *reader) allowed(s spot) bool {
	switch n := s.node; {
	case n.Kind == yaml.AliasNode:
		r.problem(s, "is an alias (*%s), which is not allowed here: write the value out", n.Value)
	case n.Style&yaml.TaggedStyle != 0:
		r.problem(s, "has the tag %s, which is not allowed here", n.Tag)
	case isNull(n):
		r.problem(s, "has no value: set one, or remove the key")
	default:
		return true
	}
	return false
}

// entries returns the entries of a map in order. It records an error for a value
// that is not a map, and for each key that is listed twice.
func (r *reader) entries(s spot, limit int) (entries []spot, ok bool) {
	if !r.allowed(s) {
		return nil, false
	}
	if s.node.Kind != yaml.MappingNode {
		r.problem(s, "is %s: want a map of keys and values", kindOf(s.node))
		return nil, false
	}
	if len(s.node.Content)/2 > limit {
		r.problem(s, "has %d entries, more than %d", len(s.node.Content)/2, limit)
		return nil, false
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(s.node.Content); i += 2 {
		key := s.node.Content[i]
		e := spot{node: s.node.Content[i+1], line: key.Line, key: key.Value, path: join(s.path, key.Value)}
		switch {
		case key.Kind != yaml.ScalarNode || key.Style&yaml.TaggedStyle != 0:
			r.problem(spot{line: key.Line, path: s.path}, "has a key that is not a word")
			continue
		case key.Tag == "!!merge":
			r.problem(e, "merges another map, which is not allowed here: write the values out")
			continue
		case lines[key.Value] != 0:
			r.problem(e, "is listed twice: first in line %d", lines[key.Value])
			continue
		}
		lines[key.Value] = key.Line
		entries = append(entries, e)
	}
	return entries, true
}

// join returns the path of a key in the map at path.
func join(path, key string) string {
	if len(key) > 80 {
		key = quote(key)
	}
	switch path {
	case "":
		return key
	case "probes", "routes":
		return path + "[" + key + "]" // their keys are names
	}
	return path + "." + key
}

// items returns the items of a list.
func (r *reader) items(s spot, limit int) (items []spot, ok bool) {
	if !r.allowed(s) {
		return nil, false
	}
	if s.node.Kind != yaml.SequenceNode {
		r.problem(s, "is %s: want a list", kindOf(s.node))
		return nil, false
	}
	if len(s.node.Content) > limit {
		r.problem(s, "has %d items, more than %d", len(s.node.Content), limit)
		return nil, false
	}
	for i, n := range s.node.Content {
		items = append(items, spot{node: n, line: n.Line, path: fmt.Sprintf("%s[%d]", s.path, i)})
	}
	return items, true
}

// text returns a single value, as it was written.
func (r *reader) text(s spot) (string, bool) {
	if !r.allowed(s) {
		return "", false
	}
	if s.node.Kind != yaml.ScalarNode {
		r.problem(s, "is %s: want a single value", kindOf(s.node))
		return "", false
	}
	return s.node.Value, true
}

// texts returns the values of a list. A single value is a list of one.
func (r *reader) texts(s spot) (texts []string, ok bool) {
	if s.node.Kind != yaml.SequenceNode {
		if s.node.Kind == yaml.MappingNode {
			r.problem(s, "is a map: want a list")
			return nil, false
		}
		text, ok := r.text(s)
		return []string{text}, ok
	}
	items, ok := r.items(s, maxList)
	texts = []string{} // an empty list is one
	for _, item := range items {
		text, good := r.text(item)
		ok = ok && good
		texts = append(texts, text)
	}
	return texts, ok
}

// isSingle reports whether a value is neither a map nor a list.
func isSingle(s spot) bool { return s.node.Kind == yaml.ScalarNode }

// isEmpty reports whether a value is an empty list.
func isEmpty(s spot) bool { return s.node.Kind == yaml.SequenceNode && len(s.node.Content) == 0 }

// isMap reports whether a value is a map.
func isMap(s spot) bool { return s.node.Kind == yaml.MappingNode }

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a map"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode, yaml.AliasNode, yaml.DocumentNode:
	}
	return "the single value " + quote(n.Value)
}

// nearest is [Nearest] for the first hundred problems: a file with more of them
// is probably the wrong file, and suggestions take time.
func (r *reader) nearest(typed string, words []string) string {
	if len(r.d.problems) > 100 {
		return ""
	}
	return Nearest(typed, words)
}

// unknown records an error about the key of s, which is none of words.
func (r *reader) unknown(s spot, words []string) {
	if near := r.nearest(s.key, words); near != "" {
		r.problem(s, "unknown key: did you mean %s?", near)
		return
	}
	if len(words) > 12 {
		r.problem(s, "unknown key")
		return
	}
	r.problem(s, "unknown key: want %s", alternatives(words))
}

// record adds a value to those that are printed.
func (r *reader) record(path, text string, at Origin) {
	r.file.values = append(r.file.values, Value{Name: path, Text: text, Origin: at})
}

// aliases maps other paths of settings in the file to their flags.
var aliases = map[string]string{
	"bind":          "bind",
	"http.listen":   "http",
	"http.tls.cert": "http-cert",
	"http.tls.key":  "http-key",
	"log.level":     "log-level",
	"log.format":    "log-format",
	"log.output":    "log-output",
	"log.verdicts":  "verdict-log",

	"role.protocol":      "role",
	"role.user":          "role-user",
	"role.password_file": "role-password-file",
	"role.database":      "role-database",
	"role.port":          "role-port",
	"role.tls":           "role-tls",
	"role.server_name":   "role-server-name",
	"role.ca_file":       "role-ca-file",
	"role.cert_file":     "role-cert-file",
	"role.key_file":      "role-key-file",
	"role.identity":      "role-identity",
	"role.promote":       "promote",
	"role.max_lag":       "max-lag",
	"role.elect":         "elect",

	"triggers.path":    "on-failover",
	"triggers.timeout": "trigger-timeout",
	"triggers.policy":  "trigger-policy",
}

// settingOf returns the setting with that path in the file, or nil.
func settingOf(path string) *Setting {
	for i := range table {
		if s := &table[i]; s.key() == path || aliases[path] == s.Flag {
			return s
		}
	}
	return nil
}

// aliasKeys returns the keys of the map at path that are aliases of settings.
func aliasKeys(path string) (keys []string) {
	for alias := range aliases {
		if rest, ok := strings.CutPrefix(alias, path+"."); ok {
			key, _, _ := strings.Cut(rest, ".")
			if !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
	}
	slices.Sort(keys)
	return keys
}

// settingKeys returns the keys of all settings that are valid in a relay, or at
// the top of the file.
func settingKeys(ofRelay bool) (keys []string) {
	for i := range table {
		if s := &table[i]; s.Flag != "config" && (s.OfRelay() || !ofRelay) {
			keys = append(keys, s.key())
		}
	}
	keys = append(keys, "triggers")
	if !ofRelay {
		keys = append(keys, "log")
	}
	return keys
}

// setting stores s in values if it is a setting, or a map of settings, and
// reports whether it is one. Path is relative to the relay or to the top of the
// file.
func (r *reader) setting(s spot, path string, values map[string]raw) bool {
	if strings.Contains(s.key, ".") {
		return false // "log.level" is a path of two keys, not a key
	}
	children := aliasKeys(path)
	if setting := settingOf(path); setting != nil && (len(children) == 0 || s.node.Kind != yaml.MappingNode) {
		r.store(s, setting, values)
		return true
	}
	if len(children) == 0 {
		return false
	}
	entries, _ := r.entries(s, maxList)
	for _, e := range entries {
		if !r.setting(e, path+"."+e.key, values) {
			r.unknown(e, children)
		}
	}
	return true
}

// store adds the value of a setting to values, as text: it is parsed when the
// flags and the environment have been merged.
func (r *reader) store(s spot, setting *Setting, values map[string]raw) {
	if setting.Flag == "config" {
		r.problem(s, "cannot be set in the file itself")
		return
	}
	if before, twice := values[setting.Flag]; twice {
		r.problem(s, "is the same as %s, which is set in line %d", before.origin.key, before.origin.line)
		return
	}
	var texts []string
	var ok bool
	if setting.List {
		texts, ok = r.texts(s)
	} else {
		var text string
		text, ok = r.text(s)
		texts = []string{text}
	}
	if ok {
		values[setting.Flag] = raw{texts: texts, origin: r.at(s)}
	}
}

// top reads the whole file.
func (r *reader) top(root spot) {
	entries, _ := r.entries(root, maxList)
	var relays, probes, routes *spot
	for i := range entries {
		switch e := entries[i]; e.key {
		case "relays":
			relays = &e
		case "probes":
			probes = &e
		case "routes":
			routes = &e
		case "checks":
			r.file.checks = r.checks(e, r.file.top)
		default:
			if !r.setting(e, e.key, r.file.top) {
				r.unknown(e, append(settingKeys(false), "relays", "probes", "routes", "checks"))
			}
		}
	}
	if relays != nil {
		r.relays(*relays)
	}
	if probes != nil {
		r.probes(*probes)
	}
	if routes != nil {
		r.routes(*routes)
	}
}

// relays reads the list of relays.
func (r *reader) relays(s spot) {
	items, ok := r.items(s, maxRelays)
	r.file.listed = ok && len(items) > 0
	if ok && len(items) == 0 {
		return
	}
	for _, flag := range unshared {
		if v, given := r.file.top[flag]; given {
			r.d.problem(v.origin, errors.New("is set beside relays: move it into one of them"))
		}
	}
	lines := map[string]int{}
	for _, item := range items {
		section := relaySection{at: r.at(item), settings: map[string]raw{}}
		printed := len(r.file.values)
		entries, _ := r.entries(item, maxList)
		named := false
		for _, e := range entries {
			switch e.key {
			case "name":
				named = true
				var ok bool
				if section.name, ok = r.relayName(e); ok && lines[section.name] != 0 {
					r.problem(e, "%s is the name of the relay in line %d already", quote(section.name), lines[section.name])
				} else if ok {
					lines[section.name] = e.line
				}
			case "checks":
				section.checks = r.checks(e, section.settings)
			default:
				if setting := settingOf(e.key); setting != nil && !setting.OfRelay() || e.key == "log" {
					r.problem(e, "is a setting of the whole program: move it to the top of the file")
				} else if !r.setting(e, e.key, section.settings) {
					r.unknown(e, append(settingKeys(true), "name", "checks"))
				}
			}
		}
		if !named && item.node.Kind == yaml.MappingNode {
			r.problem(item, "needs a name")
		}
		if section.name == "" {
			section.name = strings.TrimPrefix(item.path, "relays") // printed beside the problem
		}
		for i := range r.file.values[printed:] {
			v := &r.file.values[printed+i]
			v.Name = "relays[" + section.name + "]" + strings.TrimPrefix(v.Name, item.path)
		}
		r.file.relays = append(r.file.relays, section)
	}
}

// relayName reads the name of a relay.
func (r *reader) relayName(s spot) (string, bool) {
	text, ok := r.text(s)
	if !ok {
		return "", false
	}
	if _, err := name(text); err != nil {
		r.problem(s, "%s %v", quote(text), err)
		return "", false
	}
	return text, true
}

var nameWanted = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]*$`)

// name accepts names of relays and probes, which become parts of file names, of
// URLs and of printed columns.
func name(text string) (string, error) {
	if len(text) > 64 || !nameWanted.MatchString(text) {
		return "", errors.New("is not a name: want 1 to 64 letters, digits, dots, dashes and underscores, and no dot in front")
	}
	return text, nil
}

// key describes one key of a map in the file whose value is stored in a T. Lists
// of keys describe what is not in the [Table]; docs/configuration.md is generated
// from them.
type key[T any] struct {
	name     string
	value    string // kind of its value, for the documentation
	fallback string // default, as an operator would write it; empty for none
	help     string // one line
	list     bool

	// Exactly one is set: parse for a text or a list of texts, read for the rest.
	parse parser[*T]
	read  func(r *reader, s spot, to *T)
}

// decode stores the entries of the map at s in to, and returns them by key. If
// elsewhere is not nil, it returns the error for a key that is not one of keys but
// is valid in another place, or "".
func decode[T any](r *reader, s spot, keys []key[T], to *T, elsewhere func(key string) string) (given map[string]spot, ok bool) {
	entries, ok := r.entries(s, maxList)
	given = map[string]spot{}
	var words []string
	for _, k := range keys {
		words = append(words, k.name)
	}
	for _, e := range entries {
		if slices.Contains(words, e.key) {
			given[e.key] = e
			continue
		}
		if elsewhere != nil {
			if text := elsewhere(e.key); text != "" {
				r.problem(e, "%s", text)
				continue
			}
		}
		r.unknown(e, words)
	}
	for _, k := range keys {
		e, found := given[k.name]
		switch {
		case !found && k.fallback == "":
		case !found && k.read != nil:
			r.record(join(s.path, k.name), k.fallback, Origin{}) // the default is applied where the value is used
		case !found:
			k.store(r, spot{line: s.line, path: join(s.path, k.name)}, Origin{}, k.split(k.fallback), to)
		case k.read != nil:
			k.read(r, e, to)
		case k.list:
			texts, good := r.texts(e)
			if good && isSingle(e) {
				texts = k.split(texts[0])
			}
			if good {
				k.store(r, e, r.at(e), texts, to)
			}
		default:
			if text, good := r.text(e); good {
				k.store(r, e, r.at(e), []string{text}, to)
			}
		}
	}
	return given, ok
}

// split splits a single value into the items of a list, if k is a list.
func (k key[T]) split(text string) []string {
	if !k.list {
		return []string{text}
	}
	var items []string
	for item := range strings.SplitSeq(text, ",") {
		items = append(items, strings.TrimSpace(item))
	}
	return items
}

// store parses a value into to and records it for printing.
func (k key[T]) store(r *reader, s spot, at Origin, texts []string, to *T) {
	if len(texts) > 0 {
		for _, err := range k.parse(to, texts) {
			r.problem(s, "%v", err)
		}
	}
	shown := redact.List(strings.Join(texts, ","))
	if strings.HasSuffix(s.path, "_regex") {
		shown = strings.Join(texts, ",") // redact would take a question mark for a query
	}
	r.record(s.path, shown, at)
}

// lift converts keys of a part of T to keys of T.
func lift[Part, T any](keys []key[Part], part func(*T) *Part) []key[T] {
	var lifted []key[T]
	for _, k := range keys {
		l := key[T]{name: k.name, value: k.value, fallback: k.fallback, help: k.help, list: k.list}
		if k.parse != nil {
			l.parse = func(to *T, items []string) []error { return k.parse(part(to), items) }
		}
		if k.read != nil {
			l.read = func(r *reader, s spot, to *T) { k.read(r, s, part(to)) }
		}
		lifted = append(lifted, l)
	}
	return lifted
}
