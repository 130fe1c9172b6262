package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"understudy/config"
	"understudy/control"
	"understudy/internal/safetext"
)

// The functions of the verbs that send requests to running processes, over
// their control sockets.

// answerTime is the longest time that a process may take to return its status. A stopped
// process never does.
const answerTime = 5 * time.Second

// soon sends a request that must be answered within answerTime.
func soon[T any](ctx context.Context, ask func(ctx context.Context) (T, error)) (T, error) {
	limited, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	answer, err := ask(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("the running understudy gave no answer within %v: is it stopped, or has the machine no time for it?", answerTime)
	}
	return answer, err
}

// relayOptions are the flags that select a relay, and with it a process.
type relayOptions struct {
	Relay relayName `long:"relay" value-name:"NAME|ADDR" description:"choose the relay by its name or by an address or port that it listens on"`
	PID   int       `long:"pid" value-name:"N" description:"choose the process"`
}

// relayName is the name or an address of a relay.
type relayName string

type showOptions struct {
	relayOptions
	JSON bool `long:"json" description:"print JSON"`
}

// process is a running process, and its status when the verb began.
type process struct {
	*control.Client
	control.Status
	user string // that it runs as; empty when the control socket was given by its path
	err  error  // why it did not answer
}

// target is a relay of a running process.
type target struct {
	process
	relay control.RelayStatus
}

// String returns its name in answers and lists.
func (t target) String() string {
	text := fmt.Sprintf("relay %s (%s, pid %d", t.relay.Name, strings.Join(t.relay.Listen, " "), t.PID)
	if t.user != "" {
		text += ", " + t.user
	}
	return text + ")"
}

// sockets returns the control sockets to use: the one in the settings, or all
// in the known places. The other settings are not validated here.
func (l line) sockets() (path string, found []control.Socket, err error) {
	_, values, err := l.settings(nil)
	for _, v := range values {
		if v.Flag != "control" {
			continue
		}
		if problem := about(v.Origin.Name, err); problem != nil {
			return "", nil, problem
		}
		switch v.Text {
		case config.ControlOff:
			return "", nil, fmt.Errorf("%s: is off, so there is no process to connect to", v.Origin.Name)
		case config.ControlAuto:
			return "", control.Find(), nil
		}
		return v.Text, nil, nil
	}
	return "", nil, errors.New("--control: no such setting") // a mistake in the table
}

// about returns the problem among those of err that is about one setting.
func about(name string, err error) error {
	if err == nil || name == "" {
		return nil
	}
	for problem := range strings.SplitSeq(err.Error(), "\n") {
		if strings.HasPrefix(problem, name+": ") {
			return errors.New(problem)
		}
	}
	return nil
}

// processes requests the status of every process that can be reached. The error
// says that there is none; a process that does not answer is in the list, with
// its error.
func processes(ctx context.Context, path string, found []control.Socket) ([]process, error) {
	if path != "" {
		p := process{Client: control.NewClient(path)}
		p.Status, p.err = soon(ctx, p.Client.Status)
		return []process{p}, p.err
	}
	all := make([]process, len(found))
	var wg sync.WaitGroup
	for i, s := range found {
		if s.Denied {
			continue
		}
		wg.Go(func() {
			p := process{Client: control.NewClient(s.Path), user: userName(s.UID)}
			p.Status, p.err = soon(ctx, p.Client.Status)
			if p.err != nil {
				p.PID = s.PID
			}
			all[i] = p
		})
	}
	wg.Wait()
	all = slices.DeleteFunc(all, func(p process) bool { return p.Client == nil || errors.Is(p.err, control.ErrNone) })
	if len(all) == 0 {
		return nil, noneOf(found)
	}
	return all, nil
}

// noneOf says that no process can be reached, and which users' processes run.
func noneOf(found []control.Socket) error {
	text := control.ErrNone.Error()
	seen := serversOf("/proc")
	for _, s := range found {
		if s.Denied && !slices.ContainsFunc(seen, func(o server) bool { return o.uid == s.UID && (o.pid == s.PID || s.PID == 0) }) {
			seen = append(seen, server{s.PID, s.UID})
		}
	}
	if len(seen) == 0 {
		return fmt.Errorf("%s: no control socket in %s is served (--control or CONTROL chooses another)", text, control.DefaultDir())
	}
	text = "no understudy that this user may access is running here"
	for _, o := range seen {
		text += "; one runs as " + userName(o.uid)
		if o.pid != 0 {
			text += ", pid " + strconv.Itoa(o.pid)
		}
		switch self := os.Getuid(); {
		case self == 0 || o.uid == self:
			text += ": its control socket is in no known place, so choose it with --control, or it has none"
		default:
			text += ": ask as " + userName(o.uid)
		}
	}
	return errors.New(text)
}

// server is a process that serves.
type server struct{ pid, uid int }

// serversOf finds the serving processes of this program in a proc(5), by their
// command lines. Elsewhere there are none.
func serversOf(proc string) (all []server) {
	lines, _ := filepath.Glob(proc + "/[0-9]*/cmdline") // the pattern is well-formed
	for _, path := range lines {
		text, err := os.ReadFile(path) //nolint:gosec // of the kernel
		words := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
		if err != nil || !strings.HasPrefix(filepath.Base(words[0]), "understudy") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		info, err2 := os.Stat(filepath.Dir(path))
		if err != nil || err2 != nil || pid == os.Getpid() {
			continue
		}
		l, err := parseLine(words[1:])
		if err != nil || l.help || l.version || l.verb.name != "run" && l.verb.name != "demo" {
			continue
		}
		if owner, ok := info.Sys().(*syscall.Stat_t); ok {
			all = append(all, server{pid, int(owner.Uid)})
		}
	}
	return all
}

// userName returns the name of a user, or the number where there is none.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return "uid " + strconv.Itoa(uid)
}

// targets returns the relays that o selects among processes: all of them when
// it selects none. The error says that there is no such process or relay, or
// that a process which did not answer may have it.
func (o relayOptions) targets(all []process) (list []target, err error) {
	var relays []string
	var silent error
	for _, p := range all {
		if o.PID != 0 && p.PID != o.PID {
			continue
		}
		if p.err != nil {
			silent = fmt.Errorf("pid %d: %w", p.PID, p.err)
			if len(all) == 1 {
				silent = p.err
			}
			continue
		}
		for _, r := range p.Relays {
			relays = append(relays, r.Name)
			if o.Relay == "" || o.Relay.means(r) {
				list = append(list, target{p, r})
			}
		}
	}
	switch {
	case len(list) > 0 && (silent == nil || o.Relay != ""):
		return list, nil
	case silent != nil:
		return nil, silent
	case o.PID != 0 && !slices.ContainsFunc(all, func(p process) bool { return p.PID == o.PID }):
		return nil, fmt.Errorf("no understudy has pid %d: there is %s", o.PID, pids(all))
	case len(relays) == 0:
		return nil, errors.New("the process has no relay")
	}
	return nil, fmt.Errorf("there is no relay %q: there is %s", string(o.Relay), strings.Join(relays, ", "))
}

func pids(all []process) string {
	var list []string
	for _, p := range all {
		list = append(list, strconv.Itoa(p.PID))
	}
	return strings.Join(list, ", ")
}

// means reports whether a relay has that name, or listens there.
func (n relayName) means(r control.RelayStatus) bool {
	text := string(n)
	return r.Name == text || slices.ContainsFunc(r.Listen, func(at string) bool {
		if _, port, err := net.SplitHostPort(at); err == nil && (port == text || ":"+port == text) {
			return true
		}
		return at == text || at == strings.TrimPrefix(text, "unix:")
	})
}

// one returns the relay that o selects. The error lists them when it could be
// several.
func (o relayOptions) one(all []process) (target, error) {
	list, err := o.targets(all)
	if err != nil || len(list) == 1 {
		return append(list, target{})[0], err
	}
	lines := []string{"--relay: needed, because there are several (or --pid, or --control):"}
	for _, t := range list {
		lines = append(lines, "  "+t.String())
	}
	return target{}, usageError{errors.New(strings.Join(lines, "\n"))}
}

// request carries out a request of a verb to running processes. An interrupt ends
// it.
func (l line) request(ctx context.Context, stderr io.Writer, do func(ctx context.Context, all []process) error) int {
	return l.connect(ctx, stderr, func(ctx context.Context, path string, found []control.Socket) error {
		all, err := processes(ctx, path, found)
		if err != nil {
			return err
		}
		return do(ctx, all)
	})
}

// connect is request without requesting the status of the processes first.
func (l line) connect(ctx context.Context, stderr io.Writer, do func(ctx context.Context, path string, found []control.Socket) error) int {
	path, found, err := l.sockets()
	if err != nil {
		return l.usage(stderr, err)
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var wrong usageError
	switch err := do(ctx, path, found); {
	case err == nil:
		return exitDone
	case errors.Is(err, errBad):
	case ctx.Err() != nil:
		fmt.Fprintf(stderr, "understudy: %s: interrupted\n", l.verb.name)
	case errors.As(err, &wrong):
		return l.usage(stderr, wrong.error)
	default:
		fmt.Fprintf(stderr, "understudy: %s: %s\n", l.verb.name, safetext.Terminal(err.Error()))
	}
	return exitFailed
}

// requestOne carries out a request of a verb to one relay.
func (l line) requestOne(ctx context.Context, stderr io.Writer, o relayOptions, do func(ctx context.Context, t target) error) int {
	return l.request(ctx, stderr, func(ctx context.Context, all []process) error {
		t, err := o.one(all)
		if err != nil {
			return err
		}
		return do(ctx, t)
	})
}

// order sends a relay an order about the host that the operator named; empty
// for none. The answer is decoded into out.
func (t target) order(ctx context.Context, verb, host string, o control.Order, out any) error {
	o.Relay = t.relay.Name
	if host != "" {
		var err error
		if o.Host, err = findHost(t.relay, host); err != nil {
			return err
		}
	}
	return t.Order(ctx, verb, o, out)
}

// findHost finds a host of a relay by its name, by its number in the output of
// status, or by a beginning of its name that no other host has.
func findHost(r control.RelayStatus, text string) (string, error) {
	var names, begin, exact []string
	for i, h := range r.Hosts {
		if h.Name == text || text == strconv.Itoa(i+1) {
			return h.Name, nil
		}
		names = append(names, h.Name)
		if strings.HasPrefix(h.Name, text) {
			begin = append(begin, h.Name)
		}
		if strings.HasPrefix(h.Name, text+":") {
			exact = append(exact, h.Name)
		}
	}
	switch {
	case len(exact) == 1:
		return exact[0], nil
	case len(begin) == 1:
		return begin[0], nil
	case len(begin) > 1:
		return "", fmt.Errorf("relay %s has several hosts that begin with %q: %s", r.Name, text, strings.Join(begin, ", "))
	}
	return "", fmt.Errorf("relay %s has no host %q: its hosts are %s", r.Name, text, strings.Join(names, ", "))
}

// errBad is the error of a verb that has already reported what is wrong.
var errBad = errors.New("not good")

// usageError is a mistake on the command line that only the verb can detect.
type usageError struct{ error }

// writeJSON writes JSON that programs and people can read.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// process returns the process that o selects: the only one, or that of a relay.
func (o relayOptions) process(all []process) (process, error) {
	if o.Relay != "" {
		t, err := o.one(all)
		return t.process, err
	}
	list := slices.DeleteFunc(slices.Clone(all), func(p process) bool { return o.PID != 0 && p.PID != o.PID })
	switch {
	case len(list) == 0:
		return process{}, fmt.Errorf("no understudy has pid %d: there is %s", o.PID, pids(all))
	case len(list) == 1:
		return list[0], list[0].err
	}
	lines := []string{"--pid: needed, because there are several processes (or --relay, or --control):"}
	for _, p := range list {
		lines = append(lines, "  "+p.String())
	}
	return process{}, usageError{errors.New(strings.Join(lines, "\n"))}
}

// String returns its name in answers and lists.
func (p process) String() string {
	var relays []string
	for _, r := range p.Relays {
		relays = append(relays, r.Name+" ("+strings.Join(r.Listen, " ")+")")
	}
	text := fmt.Sprintf("pid %d", p.PID)
	if p.user != "" {
		text += ", " + p.user
	}
	if p.err != nil {
		return text + ": " + p.err.Error()
	}
	if len(relays) == 0 {
		return text + ", without relays"
	}
	return text + ", relays " + strings.Join(relays, ", ")
}
