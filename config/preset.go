package config

import (
	"maps"
	"slices"

	"go.yaml.in/yaml/v3"
)

// presets are HTTP checks that one word stands for, as an operator would write them.
// Ports are those of the host where the service has its API on the port of its clients.
var presets = map[string]string{
	// 200 only from the member that holds the leader lock.
	"patroni": `{port: 8008, path: /primary, status: [200]}`,
	// Each member takes writes as long as it is part of the majority.
	"etcd": `{path: /health, status: [200], body_regex: '"health": *"true"'}`,
	// 429, 472 and 473 are standbys, 501 and 503 not initialized and sealed.
	"vault": `{path: /v1/sys/health, status: [200]}`,
	// Each server takes writes as long as it knows a leader, whose address it says.
	"consul": `{path: /v1/status/leader, status: [200], body_regex: '^"[^"]+"'}`,
	// Each node takes writes while no primary shard is missing.
	"elasticsearch": `{path: /_cluster/health, status: [200], body_regex: '"status": *"(green|yellow)"'}`,
}

// preset returns a check with the HTTP check that its word stands for: "patroni", or
// "patroni: {port: 8009}" with keys that replace those of the preset. It returns any other
// check as it is.
func (r *reader) preset(s spot) spot {
	var word, own *yaml.Node
	var others []*yaml.Node
	switch s.node.Kind {
	case yaml.ScalarNode:
		word = s.node
	case yaml.MappingNode:
		for i := 0; i+1 < len(s.node.Content); i += 2 {
			if key := s.node.Content[i]; presets[key.Value] != "" && word == nil {
				word, own = key, s.node.Content[i+1]
			} else {
				others = append(others, key, s.node.Content[i+1])
			}
		}
	case yaml.DocumentNode, yaml.SequenceNode, yaml.AliasNode:
	}
	if word == nil || isNull(word) {
		return s
	}
	text, known := presets[word.Value]
	if !known {
		r.unknown(spot{node: word, line: s.line, key: word.Value, path: s.path}, append(shortChecks(), kindsOf(false)...))
		return spot{node: &yaml.Node{Kind: yaml.MappingNode, Line: s.line}, line: s.line, path: s.path}
	}
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(text), &document); err != nil {
		panic(err) // a preset of this program
	}
	http := document.Content[0]
	moveTo(http, s.line)
	switch {
	case own == nil || isNull(own):
	case own.Kind != yaml.MappingNode:
		http = own // reported where it is read
	default:
		replaced := own.Content
		for i := 0; i+1 < len(http.Content); i += 2 {
			given := false
			for k := 0; k+1 < len(own.Content); k += 2 {
				given = given || own.Content[k].Value == http.Content[i].Value
			}
			if !given {
				replaced = append(replaced, http.Content[i], http.Content[i+1])
			}
		}
		http = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: own.Line, Content: replaced}
	}
	key := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: "http", Line: word.Line}
	s.node = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: s.line, Content: append([]*yaml.Node{key, http}, others...)}
	return s
}

// shortChecks returns the words that stand for a check, or for the role of the relay.
func shortChecks() []string {
	return append(slices.Sorted(maps.Keys(presets)), roleProtocols...)
}

// moveTo gives a node and what is in it a line of the file.
func moveTo(n *yaml.Node, line int) {
	n.Line = line
	for _, child := range n.Content {
		moveTo(child, line)
	}
}
