package config

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the tables of keys into docs/configuration.md")

// keySection is one map of the file, for the documentation.
type keySection struct {
	title, intro string
	rows         []keyRow
}

type keyRow struct{ name, value, fallback, help string }

func rowsOf[T any](keys []key[T]) (rows []keyRow) {
	for _, k := range keys {
		rows = append(rows, keyRow{k.name, k.value, k.fallback, k.help})
	}
	return rows
}

func settingRows(wanted func(*Setting) bool) (rows []keyRow) {
	for i := range table {
		s := &table[i]
		if s.Flag == "config" || !wanted(s) {
			continue
		}
		name := s.key()
		for spelling, flag := range aliases {
			if flag == s.Flag && spelling != name {
				name += " (or " + spelling + ")"
			}
		}
		value := s.Value
		if word, ok := map[string]string{"D": "duration", "N": "number", "LIST": "text"}[value]; ok {
			value = word
		}
		if s.Switch() {
			value = "true or false"
		}
		if s.List {
			value = "list of " + value
		}
		rows = append(rows, keyRow{name, value, s.Default, s.Help})
	}
	return rows
}

// keySections is every map of the file.
func keySections() []keySection {
	return []keySection{
		{"At the top", "Settings of the program. A name with a dot is a key in a map: `log: {level: info}`.",
			append(settingRows(func(s *Setting) bool { return !s.OfRelay() }),
				keyRow{"relays", "list of maps", "", "relays; see below"},
				keyRow{"probes", "map of maps", "", "probes by name; see below"},
				keyRow{"routes", "map of maps", "", "routes by path; see below"})},
		{"relays", "An entry of the list. But for `name`, all of these may stand at the top too: as defaults for every relay, or, if they say where to listen and what the hosts are, as the only relay. It has no name of its own and is called after the port of its first address (`5432`), the file of a unix socket (`orders.sock`), or `main` where there is neither, as with a passed socket; routes may also call it `main`. A relay that is reloaded with another port keeps its name until the next start. Its state belongs to the name: give a relay whose port will change a name first.",
			append(append([]keyRow{{"name", "name", "", "1 to 64 letters, digits, dots, dashes and underscores (required)"}},
				settingRows((*Setting).OfRelay)...),
				keyRow{"checks", "list of maps", "", "further checks of each host; see below"})},
		{"checks", "An entry of the list: one kind, and when.", rowsOf(checkKeys)},
		{"probes", "One kind, and when.", rowsOf(probeKeys)},
		{"http of a check", "", rowsOf(httpKeysOf(false))},
		{"http of a probe", "", rowsOf(httpKeysOf(true))},
		{"tls of a check, a probe or of endpoints", "", rowsOf(clientTLSKeys)},
		{"tcp of a check", "", rowsOf(slices.Concat(checkTCPKeys, tcpKeys))},
		{"tcp of a probe", "", rowsOf(slices.Concat(probeTCPKeys, tcpKeys))},
		{"exec", "", rowsOf(execKeys)},
		{"flag", "", rowsOf(flagKeys)},
		{"vip", "", rowsOf(vipKeys)},
		{"sql of a probe", "", rowsOf(sqlKeys)},
		{"routes: a verdict", "What a route is that has no key of another kind.", rowsOf(verdictKeys)},
		{"routes: flags", "", rowsOf(flagsKeys)},
		{"routes: metrics", "A route with `metrics`.", rowsOf(metricsKeys)},
		{"routes: a heartbeat", "A route with `name` or `dead_dir`.", rowsOf(heartbeatKeys)},
		{"routes: endpoints", "A route with `endpoints`.", rowsOf(endpointsKeys)},
	}
}

// The documentation's tables are made from the tables in this package, so
// neither can say what the other does not.
func TestDocumentationHasEveryKey(t *testing.T) {
	const file, begin, end = "../docs/configuration.md", "<!-- keys: made by go test ./config -update -->\n", "<!-- end of keys -->"
	var b strings.Builder
	b.WriteString(begin)
	for _, s := range keySections() {
		fmt.Fprintf(&b, "\n### %s\n\n", s.title)
		if s.intro != "" {
			fmt.Fprintf(&b, "%s\n\n", s.intro)
		}
		b.WriteString("| key | value | default | |\n|---|---|---|---|\n")
		for _, row := range s.rows {
			fallback := ""
			if row.fallback != "" {
				fallback = "`" + row.fallback + "`"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", row.name, row.value, fallback, strings.ReplaceAll(row.help, "|", `\|`))
		}
	}
	b.WriteString("\n" + end)

	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	_, after, found2 := strings.Cut(rest, end)
	if !found || !found2 {
		t.Fatalf("%s: the marks around the keys are missing", file)
	}
	want := before + b.String() + after
	if string(text) == want {
		return
	}
	if !*update {
		t.Fatalf("%s: the tables are out of date: go test ./config -update", file)
	}
	if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
