package health

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// HeartbeatConfig says what a heartbeat answers for. Zero fields mean their
// defaults.
type HeartbeatConfig struct {
	// Name is what the server calls itself in its answer. May be empty.
	Name string

	// Members are the probes, in the order of the answer. Ignored ones are not
	// in it, since the answer knows only the dead; Must changes nothing, since
	// all must live. At least one is not ignored.
	Members []Member

	// Token is what a client must show as "Authorization: Bearer TOKEN".
	// Required.
	Token string

	// Dead is a directory in which an operator may keep a probe dead, see
	// [DeadFiles]. Empty is none. One that cannot be read changes nothing.
	Dead string

	// Logger is told of clients without the token, at level debug. Defaults to
	// none.
	Logger hclog.Logger
}

// NewHeartbeat returns a handler that says in lines of text which probes are
// dead, or an error naming every invalid field of cfg.
//
// To a client that shows the token it answers 200, "Server: NAME reports:" and
// "OK" when no probe is dead, and otherwise 503 and, instead of "OK", a line
// like "The elastic is DEAD!" for each. A probe is dead while its State is not
// nil, which includes one that is not known yet, or while an operator says so
// by a file. Everybody else is answered 511 "Auth ERR", after the same time
// whatever the token. Only GET and HEAD are answered, others 405.
func NewHeartbeat(cfg HeartbeatConfig) (http.Handler, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	var errs []error
	if cfg.Token == "" {
		errs = append(errs, errors.New("token: it is empty, and would let everybody in"))
	} else if hasControl(cfg.Token) || strings.TrimSpace(cfg.Token) != cfg.Token {
		errs = append(errs, errors.New("token: it has white space around it or a control character, which no client can send"))
	}
	if hasControl(cfg.Name) {
		errs = append(errs, fmt.Errorf("name: %q contains a control character", cfg.Name))
	}
	for i, m := range cfg.Members {
		switch {
		case m.State == nil:
			errs = append(errs, fmt.Errorf("members[%d]: %q has no state", i, m.Name))
		case m.Must && m.Ignore:
			errs = append(errs, fmt.Errorf("members[%d]: %q cannot be both required and ignored", i, m.Name))
		case hasControl(m.Name):
			errs = append(errs, fmt.Errorf("members[%d]: %q contains a control character", i, m.Name))
		}
	}
	h := &heartbeat{
		head:  "Server: " + cfg.Name + " reports:\n",
		token: newToken(cfg.Token),
		log:   cfg.Logger.Named("heartbeat"),
	}
	h.members = slices.DeleteFunc(slices.Clone(cfg.Members), func(m Member) bool { return m.Ignore })
	if len(h.members) == 0 {
		errs = append(errs, errors.New("members: there is none that counts"))
	}
	if cfg.Dead != "" {
		errs = append(errs, checkDeadNames(h.members))
		h.dead = newDeadDir(cfg.Dead)
		for _, m := range h.members {
			h.files = append(h.files, deadName(m.Name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("heartbeat: %w", err)
	}
	return h, nil
}

// hasControl reports whether s contains a character that could end a line.
func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// heartbeat is a HeartbeatConfig, validated.
type heartbeat struct {
	head    string // the first line of an answer
	members []Member
	token   token
	dead    *deadDir // nil: none
	files   []string // the names of the members' files, when there is a directory
	log     hclog.Logger
}

func (h *heartbeat) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("Content-Type", "text/plain; charset=utf-8")
	header.Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		w.WriteHeader(http.StatusMethodNotAllowed)
		_, _ = w.Write([]byte("Method Not Allowed\n"))
		return
	}
	if !h.token.shown(r) {
		h.log.Debug("heartbeat asked for without its token", "client", r.RemoteAddr)
		w.WriteHeader(http.StatusNetworkAuthenticationRequired)
		_, _ = w.Write([]byte("Auth ERR"))
		return
	}
	status, body := h.report()
	w.WriteHeader(status)
	_, _ = w.Write([]byte(h.head + body))
}

// report returns the status and all but the first line of the answer.
func (h *heartbeat) report() (status int, body string) {
	var overridden []bool
	if h.dead != nil {
		overridden = h.dead.overridden(h.files)
	}
	var lines strings.Builder
	for i, m := range h.members {
		if m.State() != nil || overridden != nil && overridden[i] {
			lines.WriteString("The " + m.Name + " is DEAD!\n")
		}
	}
	if lines.Len() == 0 {
		return http.StatusOK, "OK"
	}
	return http.StatusServiceUnavailable, lines.String()
}
