// Package redact removes from texts for people the parts of a URL that are
// often secrets: the user and the values of the query.
package redact

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// Mask stands for a secret.
const Mask = "********"

// URL returns text with the user, every value of the query and the fragment of
// the URL in it masked; the names of the query's parameters stay. A text that
// begins with a slash is the path of a URL. If a URL cannot be parsed and
// contains an "@", only the part before it is kept. Every other text is
// returned unchanged.
func URL(text string) string {
	begin := strings.Index(text, "://")
	switch {
	case begin >= 0:
		begin += len("://")
	case strings.HasPrefix(text, "/"):
		begin = 0
	default:
		return text
	}
	if begin > 0 && strings.Contains(text, "@") {
		if _, err := url.Parse(text); err != nil {
			return text[:begin] + Mask
		}
	}
	rest, fragment, marked := strings.Cut(text[begin:], "#")
	rest, query, hasQuery := strings.Cut(rest, "?")
	if begin > 0 {
		authority, path, _ := strings.Cut(rest, "/")
		if at := strings.LastIndexByte(authority, '@'); at >= 0 {
			rest = Mask + authority[at:] + rest[len(rest)-len(path)-min(1, len(rest)-len(authority)):]
		}
	}
	out := text[:begin] + rest
	if hasQuery {
		pairs := strings.Split(query, "&")
		for i, pair := range pairs {
			pairs[i] = parameter(pair)
		}
		out += "?" + strings.Join(pairs, "&")
	}
	if marked {
		out += "#" + mask(fragment)
	}
	return out
}

// Quote returns text as a Go string, shortened if it is long, with the secrets
// of a URL masked.
func Quote(text string) string {
	text = URL(text)
	if len(text) > 80 {
		return strconv.Quote(text[:60]) + fmt.Sprintf("… (%d bytes)", len(text))
	}
	return strconv.Quote(text)
}

// List does the same as [URL] for a list of URLs separated by commas. The text
// after a comma in a query belongs to the query.
func List(text string) string {
	items := strings.Split(text, ",")
	inQuery := false
	for i, item := range items {
		switch {
		case strings.Contains(item, "://"):
			inQuery = strings.Contains(item, "?")
			items[i] = URL(item)
		case inQuery:
			items[i] = mask(item)
		default:
			items[i] = URL(item)
		}
	}
	return strings.Join(items, ",")
}

// parameter masks the value of "name=value", or all of a parameter without a
// name.
func parameter(pair string) string {
	name, value, named := strings.Cut(pair, "=")
	if !named {
		return mask(pair)
	}
	return name + "=" + mask(value)
}

// mask masks a text that is not empty.
func mask(text string) string {
	if text == "" {
		return ""
	}
	return Mask
}
