package health

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// defaultFlag is the flag that counts when no service is named.
const defaultFlag = "status.html"

// maxVIPs is how many addresses one question may name.
const maxVIPs = 64

// StatusConfig says what a status route answers for. Zero fields mean their
// defaults.
type StatusConfig struct {
	// Flags is the directory of flag files. Required.
	Flags Flags

	// Loopback returns the addresses of the loopback interfaces. Defaults to
	// asking the system, each time.
	Loopback func() ([]netip.Addr, error)

	// Logger is told why an answer is neither 200 nor 404. Defaults to none.
	Logger hclog.Logger
}

// NewStatus returns a handler for questions like
// "/status?SERVICE=squid&PORT=80&VIP=192.0.2.1,192.0.2.2": is this service
// switched on here, and do its addresses live here?
//
// The flag is SERVICE, "status.html" if that is not given, with ".PORT" behind
// it if a port is. It is answered 200 when the flag is there and every address
// is one of a loopback interface; 404 when not, which HAProxy takes, by
// http-check disable-on-404, for "no new sessions"; 400 to a question that
// cannot be meant; and 503 when nobody can tell: never 200 by accident. Only
// GET and HEAD are answered, others 405. Of a parameter that is repeated the
// first counts, but for VIP, of which all do; other parameters are ignored.
func NewStatus(cfg StatusConfig) http.Handler {
	if cfg.Loopback == nil {
		cfg.Loopback = loopback
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
			cfg.Logger.Warn("status not told", "status", code, "query", r.URL.RawQuery, "error", err)
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, text+"\n") //nolint:gosec // plain text, and none of it the client's
	})
}

// answer is the status and the line of the answer, and, for the log, why it is
// neither yes nor no.
func (cfg StatusConfig) answer(query string) (code int, text string, err error) {
	name, vips, err := parseStatusQuery(query)
	if err != nil {
		return http.StatusBadRequest, "Bad Request - " + err.Error(), err
	}
	present, err := cfg.Flags.Present(name)
	switch {
	case errors.Is(err, ErrFlagName):
		return http.StatusBadRequest, "Bad Request - no service can have this name", err
	case err != nil:
		return http.StatusServiceUnavailable, "Service Unavailable - the flags cannot be read", err
	case !present:
		return http.StatusNotFound, "Not Found - service not available", nil
	case vips == nil:
		return http.StatusOK, "OK - service fine!", nil
	}
	here, err := cfg.Loopback()
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

// parseStatusQuery takes a question apart: the name of a flag, which may still
// be a bad one, and the addresses, nil when none were asked for. A question that
// cannot be decoded is an error, lest another one be answered.
func parseStatusQuery(query string) (flag string, vips []netip.Addr, err error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return "", nil, errors.New("the query cannot be decoded")
	}
	flag = defaultFlag
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
			if len(vips) == maxVIPs {
				return "", nil, fmt.Errorf("VIP names more than %d addresses", maxVIPs)
			}
			vips = append(vips, addr.Unmap())
		}
	}
	return flag, vips, nil
}

// loopback returns the addresses of all loopback interfaces.
func loopback() ([]netip.Addr, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				all = append(all, prefix.Addr())
			}
		}
	}
	return all, nil
}
