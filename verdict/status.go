package verdict

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/flagfile"
	"understudy/internal/netstate"
	"understudy/internal/safetext"
)

// defaultFlag is the flag that is read when no service is named.
const defaultFlag = "status.html"

// StatusConfig configures a status route.
type StatusConfig struct {
	// Flags is the directory of flag files. Required.
	Flags flagfile.Dir

	// Logger gets the reason of every answer that is neither 200 nor 404. Nil
	// discards it.
	Logger hclog.Logger

	loopback func() ([]netip.Addr, error) // replaces [netstate.Loopback] in tests
}

// NewStatus returns a handler for requests like
// "/status?SERVICE=squid&PORT=80&VIP=192.0.2.1,192.0.2.2": is this service
// enabled on this machine, and are its addresses configured here?
//
// The flag is SERVICE, or "status.html" without one, followed by ".PORT" if a port
// is given. The answer is 200 when the flag exists and every address is one of a
// loopback interface; 404 when not, which HAProxy reads as "no new sessions" with
// http-check disable-on-404; 400 for an invalid request; and 503 when the flags or
// the addresses cannot be read: never 200 by accident. Methods other than GET and
// HEAD get 405. A repeated SERVICE or PORT is 400: a proxy in front may read
// another of them than this program. Every VIP of a repeated one counts; other
// parameters are ignored.
func NewStatus(cfg StatusConfig) http.Handler {
	if cfg.loopback == nil {
		cfg.loopback = netstate.Loopback
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Server", "Status")
		h.Set("Cache-Control", "private, no-store")
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("X-Content-Type-Options", "nosniff")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			w.WriteHeader(http.StatusMethodNotAllowed)
			_, _ = io.WriteString(w, "Method Not Allowed\n")
			return
		}
		code, text, err := cfg.answer(r.URL.RawQuery)
		if err != nil {
			cfg.Logger.Warn("flags request not answered", "status", code, "query", safetext.Escape(clipText(r.URL.RawQuery)), "error", err)
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, text+"\n") //nolint:gosec // plain text without input of the client
	})
}

// answer returns the status and the line of the answer, and, for the log, why it
// is neither 200 nor 404.
func (cfg StatusConfig) answer(query string) (code int, text string, err error) {
	name, vips, err := parseStatusQuery(query)
	if err != nil {
		return http.StatusBadRequest, "Bad Request - " + err.Error(), err
	}
	present, err := cfg.Flags.Present(name)
	switch {
	case errors.Is(err, flagfile.ErrName):
		return http.StatusBadRequest, "Bad Request - no service can have this name", err
	case errors.Is(err, flagfile.ErrLink):
		return http.StatusNotFound, "Not Found - service not available", err
	case err != nil:
		return http.StatusServiceUnavailable, "Service Unavailable - the flags cannot be read", err
	case !present:
		return http.StatusNotFound, "Not Found - service not available", nil
	case vips == nil:
		return http.StatusOK, "OK - service fine!", nil
	}
	here, err := cfg.loopback()
	if err != nil {
		return http.StatusServiceUnavailable, "Service Unavailable - the addresses cannot be read", err
	}
	local := map[netip.Addr]bool{}
	for _, a := range here {
		local[a.Unmap().WithZone("")] = true
	}
	for _, vip := range vips {
		if !local[vip] {
			return http.StatusNotFound, "Not Found - VIP alias not available", nil
		}
	}
	return http.StatusOK, "OK - service and VIP all fine!", nil
}

// parseStatusQuery parses a query into the name of a flag, which may still be
// invalid, and the addresses, nil without any. A query that cannot be decoded is
// an error, so that no other query is answered in its place.
func parseStatusQuery(query string) (flag string, vips []netip.Addr, err error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return "", nil, errors.New("the query cannot be decoded")
	}
	flag = defaultFlag
	for _, name := range []string{"SERVICE", "PORT"} {
		if len(values[name]) > 1 {
			return "", nil, fmt.Errorf("%s is listed %d times", name, len(values[name]))
		}
	}
	if services := values["SERVICE"]; len(services) > 0 {
		flag = services[0]
		if flag == "" {
			return "", nil, errors.New("SERVICE is empty")
		}
	}
	if ports := values["PORT"]; len(ports) > 0 {
		n, err := strconv.ParseUint(ports[0], 10, 16)
		if err != nil || strconv.FormatUint(n, 10) != ports[0] {
			return "", nil, errors.New("PORT is not a number from 0 to 65535")
		}
		flag += "." + ports[0]
	}
	for _, list := range values["VIP"] {
		for text := range strings.SplitSeq(list, ",") {
			addr, err := netip.ParseAddr(strings.TrimSpace(text))
			if err != nil || addr.Zone() != "" {
				return "", nil, errors.New("VIP is not a list of IP addresses")
			}
			if len(vips) == netstate.MaxVIPs {
				return "", nil, fmt.Errorf("VIP names more than %d addresses", netstate.MaxVIPs)
			}
			vips = append(vips, addr.Unmap())
		}
	}
	return flag, vips, nil
}
