package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy/config"
	"understudy/internal/address"
	"understudy/internal/safetext"
	"understudy/packaging/examples"
)

// initTimeout is the time for which init tries to connect to each host.
const initTimeout = 2 * time.Second

// kindOfService is a kind of service for which init can write a configuration.
type kindOfService struct {
	name    string
	port    string   // the usual port; empty for none
	files   []string // from packaging/examples/scripts, written next to the file
	check   string   // the file that checks a host
	trigger string   // the file that makes a host the primary
	first   string   // what to do before the start; may be empty
	extra   string   // further lines of the configuration; %s is the directory
}

var kindsOfService = []kindOfService{
	{name: "postgres", port: "5432", files: []string{"postgres-check.sh", "postgres-promote.sh", "postgres-role.sql"},
		check: "postgres-check.sh", trigger: "postgres-promote.sh",
		first: "create the role of postgres-role.sql and write its password into /etc/understudy/pgpass"},
	{name: "mysql", port: "3306", files: []string{"mysql-check.sh", "mysql-promote.sh", "mariadb-role.sql"},
		check: "mysql-check.sh", trigger: "mysql-promote.sh",
		first: "create the user of mariadb-role.sql and write its password into /etc/understudy/mysql.cnf"},
	{name: "redis", port: "6379", files: []string{"redis-check.sh", "redis-promote.sh"},
		check: "redis-check.sh", trigger: "redis-promote.sh",
		first: "write the password of the servers into /etc/understudy/redis.password"},
	{name: "tcp"},
	{name: "cloudflare", files: []string{"cloudflare-dns.sh", "cloudflare-pools.sh"},
		extra: `
# Cloudflare's monitor requests http://THIS_MACHINE:9001/ping and expects 200 "pong".
http: ":9001"

# After a stop /ping answers 503 for this long while clients are still accepted. It
# covers the longest time until Cloudflare uses another machine.
lame_duck: 90s

# To change a DNS record or a load balancer after each failover, write the files that
# the script names at its top, and remove the "#":
# on_failover: %s/cloudflare-dns.sh
`},
}

// initialize writes a configuration file and the scripts of a kind of service,
// and replaces no file.
func initialize(ctx context.Context, l line, stdout, stderr io.Writer) int {
	i := slices.IndexFunc(kindsOfService, func(k kindOfService) bool { return k.name == l.args[0] })
	if i < 0 {
		return l.usage(stderr, fmt.Errorf("init: %q is unknown: want postgres, mysql, redis, tcp or cloudflare", l.args[0]))
	}
	kind := kindsOfService[i]
	file := "understudy.yaml"
	if given := l.flags["config"]; len(given) > 0 {
		file = given[len(given)-1]
	}
	file, err := filepath.Abs(file)
	if err == nil {
		err = kind.absent(filepath.Dir(file), filepath.Base(file))
	}
	if err != nil {
		fmt.Fprintf(stderr, "understudy: init: %v\n", err)
		return exitFailed
	}
	if err := l.promptForMissing(kind, os.Stdin, stdout); err != nil {
		return l.usage(stderr, err)
	}
	settings, _, err := config.Load(config.Given{Flags: map[string][]string{"hosts": l.flags["hosts"], "port": l.flags["port"]}})
	if err != nil {
		return l.usage(stderr, err)
	}
	r := settings.Relays[0]
	if err := kind.write(file, r.Hosts, strings.TrimPrefix(r.Listen[0], ":")); err != nil {
		fmt.Fprintf(stderr, "understudy: init: %v\n", err)
		return exitFailed
	}
	fmt.Fprintf(stdout, "written: %s\n", file)
	for _, name := range kind.files {
		fmt.Fprintf(stdout, "written: %s\n", filepath.Join(filepath.Dir(file), name))
	}
	kind.try(ctx, r, stdout)
	if kind.first != "" {
		fmt.Fprintf(stdout, "\nfirst %s (docs/scripts.md)\n", kind.first)
	}
	fmt.Fprintf(stdout, "\nnext:\n  understudy check --config %[1]s\n  understudy --config %[1]s\n", file)
	return exitDone
}

// promptForMissing asks for hosts and port if they are not given, or names the flags
// if in is not a terminal.
func (l line) promptForMissing(kind kindOfService, in *os.File, out io.Writer) error {
	_, err := unix.IoctlGetWinsize(int(in.Fd()), unix.TIOCGWINSZ)
	interactive := err == nil
	answers := bufio.NewScanner(in)
	var problems []error
	for _, q := range []question{
		{"hosts", "hosts in order of preference, like db1:5432,db2:5432", ""},
		{"port", "port that clients connect to", kind.port},
	} {
		if len(l.flags[q.flag]) > 0 {
			continue
		}
		answer := q.fallback
		if interactive {
			answer = q.prompt(answers, out)
		}
		if answer == "" {
			problems = append(problems, fmt.Errorf("init: needs --%s (%s)", q.flag, q.text))
			continue
		}
		l.flags[q.flag] = []string{answer}
	}
	return errors.Join(problems...)
}

// question is a question for the value of a flag.
type question struct{ flag, text, fallback string }

// prompt repeats the question until the answer is valid. It returns the fallback
// for an empty answer, and an empty string at the end of the input.
func (q question) prompt(answers *bufio.Scanner, out io.Writer) string {
	text := q.text
	if q.fallback != "" {
		text += " [" + q.fallback + "]"
	}
	for {
		fmt.Fprintf(out, "%s: ", text)
		if !answers.Scan() {
			fmt.Fprintln(out)
			return ""
		}
		answer := strings.TrimSpace(answers.Text())
		if answer == "" {
			answer = q.fallback
		}
		_, _, err := config.Load(config.Given{Flags: map[string][]string{q.flag: {answer}}})
		wrong := about("--"+q.flag, err)
		switch {
		case answer == "":
		case wrong == nil:
			return answer
		default:
			fmt.Fprintln(out, safetext.Terminal(wrong.Error()))
		}
	}
}

// absent returns an error that wraps [fs.ErrExist] and names each file to be
// written to dir that exists.
func (k kindOfService) absent(dir, file string) error {
	var exist []error
	for _, name := range append([]string{file}, k.files...) {
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			exist = append(exist, fmt.Errorf("%s: %w: remove it, or choose another directory with --config", path, fs.ErrExist))
		}
	}
	return errors.Join(exist...)
}

// write creates the configuration file and the scripts next to it. It replaces
// no file.
func (k kindOfService) write(file string, hosts []string, port string) error {
	dir := filepath.Dir(file)
	for _, name := range k.files {
		text, err := examples.Scripts.ReadFile("scripts/" + name)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o755)
		if !strings.HasSuffix(name, ".sh") {
			mode = 0o644
		}
		if err := create(filepath.Join(dir, name), text, mode); err != nil {
			return err
		}
	}
	return create(file, []byte(k.configuration(dir, hosts, port)), 0o644) // last: it names the scripts
}

// create writes a file that does not exist yet.
func create(path string, text []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode) //nolint:gosec // the operator names it
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// configuration returns the text of the file.
func (k kindOfService) configuration(dir string, hosts []string, port string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# understudy for %s, written by `understudy init`. Every key: docs/configuration.md.\n%s\n", k.name, strings.ReplaceAll(k.extra, "%s", dir))
	if k.trigger != "" {
		b.WriteString("# The scripts note here which host was promoted, and understudy keeps its own state.\n" +
			"state_dir: /var/lib/understudy\n\n")
	}
	b.WriteString("relays:\n")
	fmt.Fprintf(&b, "  - name: %s\n", k.name)
	fmt.Fprintf(&b, "    # Where clients connect.\n    listen: [\":%s\"]\n", port)
	b.WriteString("    # In order of preference. A primary stays the primary while it is up.\n    hosts: [")
	for i, host := range hosts {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", host)
	}
	b.WriteString("]\n")
	if k.check != "" {
		fmt.Fprintf(&b, "    # A host is usable only if this script exits with 0.\n    check_host: %q\n", filepath.Join(dir, k.check))
	}
	if k.trigger != "" {
		fmt.Fprintf(&b, "    # Makes the elected host the primary, before clients are connected. If it fails,\n"+
			"    # the next host is tried.\n    on_failover: %q\n    trigger_policy: abort\n", filepath.Join(dir, k.trigger))
		b.WriteString("    # How long clients wait for a primary before they are refused.\n    hold: 30s\n")
	} else {
		b.WriteString("    # A TCP check does not detect a host that hangs. If the service has an HTTP health\n" +
			"    # check, remove the \"#\":\n    # checks: [{http: {port: 8080, path: /health}}]\n")
	}
	return b.String()
}

// try connects to each host once and prints the results. A host that is down
// now is no error.
func (k kindOfService) try(ctx context.Context, r config.Relay, stdout io.Writer) {
	for _, host := range r.Hosts {
		network, addr := "tcp", host
		if h, err := address.ParseHost(host); err == nil && h.Path != "" {
			network, addr = "unix", h.Path
		}
		conn, err := (&net.Dialer{Timeout: initTimeout}).DialContext(ctx, network, addr)
		if err != nil {
			fmt.Fprintf(stdout, "tried:   %s: %v\n", host, err)
			continue
		}
		_ = conn.Close()
		fmt.Fprintf(stdout, "tried:   %s accepts connections\n", host)
	}
	if err := tryBind(ctx, r.Listen[0]); err != nil {
		fmt.Fprintf(stdout, "tried:   port %s: %v\n", strings.TrimPrefix(r.Listen[0], ":"), err)
		return
	}
	fmt.Fprintf(stdout, "tried:   port %s is free\n", strings.TrimPrefix(r.Listen[0], ":"))
}
