package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"understudy/config"
)

// The flags of the programs that understudy replaces are accepted where they
// have only one possible meaning, so that old command lines continue to work.
// They are not in the help but in docs/migrate.md, and each causes a warning
// that names the flag to use instead.

// oldFlags maps an old flag, without dashes, to its present name.
var oldFlags = map[string]string{
	// balancing-reverse-proxy
	"e":                  "endpoints",
	"endpoints":          "endpoints",
	"a":                  "http",
	"address":            "http",
	"t":                  "terminal-responses",
	"terminal-responses": "terminal-responses",
	"fanout":             "fanout",
	"log-file":           "log-output",

	// http_status; see line.oldListener
	"i":  oldIP,
	"ip": oldIP,
}

// oldIP is the key of the old flag --ip among the flags that were given. No
// setting has this name.
const oldIP = "ip"

// lostFlags are old flags without a counterpart, and what to do instead.
var lostFlags = map[string]string{
	"stop-after": "use timeout(1): timeout --preserve-status 5s understudy …",
	"log-prefix": "the log has a fixed form: see --log-format",
	"log-date":   "the log has a fixed form: see --log-format",
	"log-time":   "the log has a fixed form: see --log-format",
	"log-msec":   "the log has a fixed form: see --log-format",
	"log-utc":    "the log has a fixed form: see --log-format",
	"d":          "it stays in the foreground: run it by systemd, or with setsid",
	"daemon":     "it stays in the foreground: run it by systemd, or with setsid",
	"pidfile":    "it stays in the foreground: run it by systemd, or with setsid",
}

const (
	// oldPort and oldStatusDir are the defaults of http_status.
	oldPort      = "8001"
	oldStatusDir = "/var/run/http_status"
)

// spelling is a command line whose old flags and single dashes are replaced.
type spelling struct {
	args     []string
	ip       string   // value of oldIP
	warnings []string // what was replaced
	problems []error
}

// respell replaces the old flags in args, if takesOld is set, and long names
// with a single dash. Known are the long names of flags, and shorts the short
// ones, of the verb.
func respell(args []string, takesOld bool, known []string, shorts string) (s spelling) {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		name, single := strings.CutPrefix(arg, "-")
		double := strings.HasPrefix(name, "-")
		name = strings.TrimPrefix(name, "-")
		if !single || name == "" {
			if arg == "--" {
				s.args = append(s.args, args[i:]...)
				break
			}
			s.args = append(s.args, arg)
			continue
		}
		name, value, hasValue := strings.Cut(name, "=")
		written := arg[:len(arg)-len(value)]
		written = strings.TrimSuffix(written, "=")
		flag, old := oldFlags[name]
		why, lost := lostFlags[name]
		old, lost = old && takesOld, lost && takesOld
		switch {
		case double && slices.Contains(known, name):
			s.args = append(s.args, arg)
		case !double && !lost && strings.Contains(shorts, name[:1]) && (len(name) == 1 || !old && !slices.Contains(known, name)):
			s.args = append(s.args, arg) // a short flag, perhaps with its value
		case lost:
			s.problems = append(s.problems, fmt.Errorf("%s: %s", written, why))
			if !hasValue && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
				i++ // its value
			}
		case old && flag == oldIP:
			if !hasValue && i+1 < len(args) {
				i++
				value = args[i]
			}
			s.ip = value
		case old:
			if flag == name {
				s.warnings = append(s.warnings, fmt.Sprintf("%s: use two dashes: --%s", written, flag))
			} else {
				s.warnings = append(s.warnings, fmt.Sprintf("%s: an old name of --%s", written, flag))
			}
			if flag == "log-output" {
				if !hasValue && i+1 < len(args) {
					i++
					value, hasValue = args[i], true
				}
				value = oldLogFile(value)
			}
			if hasValue {
				flag += "=" + value
			}
			s.args = append(s.args, "--"+flag)
		case slices.Contains(known, name):
			s.problems = append(s.problems, fmt.Errorf("%s: use two dashes: --%s", written, name))
			s.args = append(s.args, "-"+arg)
		case !double && len(name) > 1 && (name[0] < '0' || name[0] > '9') && !strings.Contains(shorts, name[:1]):
			s.args = append(s.args, "-"+arg) // it cannot be a row of short flags
		default:
			s.args = append(s.args, arg)
		}
	}
	return s
}

// oldLogFile returns the destination of --log-file: its paths may be relative.
func oldLogFile(path string) string {
	if path == "" || path == "stdout" || path == "stderr" {
		return path
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return path // the error is reported later
	}
	return abs
}

// oldListener converts the --ip and --port of http_status to the listener and
// its directory of flags.
func (l *line) oldListener(ip string) error {
	for _, flag := range []string{"hosts", "bind", "http"} {
		if _, given := l.flags[flag]; given {
			return fmt.Errorf("--ip: is the address of http_status, and --%s is given too: use --http %s", flag, net.JoinHostPort(ip, "PORT"))
		}
	}
	if ip == "" {
		return errors.New("--ip: needs an address: use --http IP:PORT")
	}
	port := oldPort
	if given := l.flags["port"]; len(given) > 0 {
		port = given[len(given)-1]
		delete(l.flags, "port")
	}
	addr := net.JoinHostPort(ip, port)
	l.flags["http"] = []string{addr}
	instead := "--http " + addr
	_, given := l.flags["status-dir"]
	if !given && os.Getenv(config.Variable("status-dir")) == "" {
		l.flags["status-dir"] = []string{oldStatusDir}
		instead += " --status-dir " + oldStatusDir
	}
	l.warnings = append(l.warnings, "--ip: an old name: use "+instead)
	return nil
}

// respellFor is [respell] for the verb in args. Verbs without settings accept
// no flags of other programs.
func respellFor(args []string, known []verb) spelling {
	v := known[0]
	for _, a := range args {
		if i := slices.IndexFunc(known, func(v verb) bool { return v.name == a }); i >= 0 {
			v = known[i]
			break
		}
	}
	names, shorts := []string{"help", "version"}, "h"
	for _, s := range config.Table() {
		if v.settings || v.takes(s) {
			names = append(names, s.Flag)
			if s.Short != 0 {
				shorts += string(s.Short)
			}
		}
	}
	if v.options != nil {
		names = append(names, longNames(reflect.TypeOf(v.options()).Elem())...)
	}
	return respell(args, v.settings, names, shorts)
}

// longNames returns the names of the flags in a struct with tags of go-flags.
func longNames(options reflect.Type) (names []string) {
	for field := range options.Fields() {
		if field.Anonymous {
			names = append(names, longNames(field.Type)...)
		} else if name := field.Tag.Get("long"); name != "" {
			names = append(names, name)
		}
	}
	return names
}
