package logs

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
)

const (
	// maxDatagram limits the bytes of a datagram, so that none is fragmented;
	// longer messages are sent in chunks.
	maxDatagram = 1420

	chunkHeader = 12  // magic bytes, message id, number, count
	maxChunks   = 128 // of one message, by the GELF specification
)

// gelf writes GELF 1.1 to a collector.
type gelf struct {
	link *link
	host string // this machine's name
	udp  bool

	zip    *gzip.Writer
	zipped bytes.Buffer
}

// newGELF returns the output for a collector at address; network is "tcp" or
// "udp".
func newGELF(network, address string, trouble *failures) *gelf {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost" // GELF requires a host
	}
	dial := func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, network, address) }
	return &gelf{link: newLink(dial, trouble), host: host, udp: network == "udp", zip: gzip.NewWriter(nil)}
}

func (g *gelf) write(ctx context.Context, r record) error {
	message, err := gelfMessage(g.host, r)
	if err != nil {
		return err
	}
	if !g.udp {
		return g.link.send(ctx, append(message, 0))
	}
	g.zipped.Reset()
	g.zip.Reset(&g.zipped)
	if _, err := g.zip.Write(message); err != nil {
		return err
	}
	if err := g.zip.Close(); err != nil {
		return err
	}
	datagrams, err := chunks(g.zipped.Bytes())
	if err != nil {
		return err
	}
	for _, d := range datagrams {
		if err := g.link.send(ctx, d); err != nil {
			return err
		}
	}
	return g.link.wasRefused()
}

func (g *gelf) close() { g.link.close() }

// gelfMessage converts a line that hclog wrote as JSON, without the time, into a GELF
// message.
//
// A sink of hclog (SinkAdapter) would get the fields as Go values, and the rules
// by which hclog writes them (errors, formats, text marshalers, a key without a
// value, values that cannot be encoded) would have to be written here again.
func gelfMessage(host string, r record) ([]byte, error) {
	decoder := json.NewDecoder(bytes.NewReader(r.line))
	decoder.UseNumber() // a count must not become 1e+06
	var from map[string]any
	if err := decoder.Decode(&from); err != nil {
		return nil, fmt.Errorf("log line as JSON: %w", err)
	}
	text, _ := from["@message"].(string)
	short, _, _ := strings.Cut(text, "\n")
	if strings.TrimSpace(short) == "" {
		short = "-" // collectors refuse messages without a short_message
	}
	message := map[string]any{
		"version":       "1.1",
		"host":          host,
		"short_message": short,
		"timestamp":     json.Number(strconv.FormatFloat(float64(r.at.UnixMicro())/1e6, 'f', 6, 64)),
		"level":         severity(r.level),
	}
	if strings.Contains(text, "\n") {
		message["full_message"] = text
	}
	if module, ok := from["@module"]; ok {
		message["_module"] = module
	}
	for _, key := range slices.Sorted(maps.Keys(from)) {
		if key == "@message" || key == "@level" || key == "@module" {
			continue
		}
		value, ok := gelfValue(from[key])
		if !ok {
			continue
		}
		name := gelfName(key)
		for _, taken := message[name]; taken; _, taken = message[name] {
			name += "_"
		}
		message[name] = value
	}
	return json.Marshal(message)
}

// gelfName returns key as the name of an additional field. Collectors accept only a
// few characters, and reserve _id.
func gelfName(key string) string {
	name := "_" + strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '_', r == '-', r == '.':
			return r
		default:
			return '_'
		}
	}, strings.TrimLeft(key, "@"))
	if name == "_" || name == "_id" {
		name += "_"
	}
	return name
}

// gelfValue returns a value in a type of GELF, a string or a number; ok is false for
// null.
func gelfValue(value any) (_ any, ok bool) {
	switch v := value.(type) {
	case nil:
		return nil, false
	case string, json.Number:
		return v, true
	default: // a list, an object, true or false
		text, err := json.Marshal(v)
		return string(text), err == nil
	}
}

// chunks splits a message into datagrams.
func chunks(message []byte) ([][]byte, error) {
	if len(message) <= maxDatagram {
		return [][]byte{message}, nil
	}
	const room = maxDatagram - chunkHeader
	count := (len(message) + room - 1) / room
	if count > maxChunks {
		return nil, fmt.Errorf("%d bytes do not fit into %d chunks", len(message), maxChunks)
	}
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	all := make([][]byte, 0, count)
	for part := range slices.Chunk(message, room) {
		d := append([]byte{0x1e, 0x0f}, id...)
		d = append(d, byte(len(all)), byte(count)) //nolint:gosec // maxChunks at most
		all = append(all, append(d, part...))
	}
	return all, nil
}
