package verdict

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/safetext"
	"understudy/internal/token"
)

// HeartbeatConfig configures a heartbeat.
type HeartbeatConfig struct {
	// Name is the name of the server in the answer. May be empty.
	Name string

	// Members are the probes, in the order of the answer. Ignored ones are left
	// out, since the answer lists only dead probes. Must has no effect, since
	// every probe has to be up. At least one is not ignored.
	Members []Member

	// Token is the secret that a client must send as "Authorization: Bearer
	// TOKEN". Required.
	Token string

	// Dead is a directory in which an operator may declare a probe dead, see
	// [DeadFiles]. Empty means none. While it cannot be read, the last state of
	// its files is used.
	Dead string

	// Logger gets a debug record for each client without the token. Nil discards
	// them.
	Logger hclog.Logger
}

// NewHeartbeat returns a handler that lists the dead probes as text, or an error
// naming every invalid field of cfg.
//
// A client with the token gets 200, "Server: NAME reports:" and "OK" when no probe
// is dead, and otherwise 503 and, instead of "OK", a line like "The elastic is
// DEAD!" for each. A probe is dead while its State returns an error, also when it
// is not known yet, or while an operator's file declares it dead. Every other
// client gets 511 "Auth ERR", after the same time for every token. Methods other
// than GET and HEAD get 405.
func NewHeartbeat(cfg HeartbeatConfig) (http.Handler, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	var errs []error
	if cfg.Token == "" {
		errs = append(errs, errors.New("token: it is empty, and would admit every client"))
	} else if safetext.HasControl(cfg.Token) || strings.TrimSpace(cfg.Token) != cfg.Token {
		errs = append(errs, errors.New("token: it has white space around it or a control character, which no client can send"))
	}
	if safetext.HasControl(cfg.Name) {
		errs = append(errs, fmt.Errorf("name: %q contains a control character", cfg.Name))
	}
	for i, m := range cfg.Members {
		switch {
		case m.State == nil:
			errs = append(errs, fmt.Errorf("members[%d]: %q has no state", i, m.Name))
		case m.Must && m.Ignore:
			errs = append(errs, fmt.Errorf("members[%d]: %q cannot be both required and ignored", i, m.Name))
		case safetext.HasControl(m.Name):
			errs = append(errs, fmt.Errorf("members[%d]: %q contains a control character", i, m.Name))
		}
	}
	h := &heartbeat{
		head:  "Server: " + cfg.Name + " reports:\n",
		token: token.New(cfg.Token),
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

// heartbeat is a HeartbeatConfig, validated.
type heartbeat struct {
	head    string // the first line of an answer
	members []Member
	token   token.Token
	dead    *deadDir // nil means none
	files   []string // the names of the members' files; empty without dead
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
	if !h.token.Shown(r) {
		h.log.Debug("heartbeat requested without its token", "client", r.RemoteAddr)
		w.WriteHeader(http.StatusNetworkAuthenticationRequired)
		_, _ = w.Write([]byte("Auth ERR"))
		return
	}
	status, body := h.report()
	w.WriteHeader(status)
	_, _ = w.Write([]byte(h.head + body))
}

// report returns the status, and the body of the answer after its first line.
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
