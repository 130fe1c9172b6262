package relay

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"understudy/internal/bind"
)

// listener is one bound address. It listens only while the relay is open or
// holds; otherwise connects to it are refused.
type listener struct {
	*bind.Socket
	setting string // see [listenAddr.setting], or given
}

// given is the setting of a socket that another program created: no address has
// this form.
const given = ""

// bindAll binds every address of the settings, or none, except those that this
// machine does not have, which it returns as missing. The sockets that another
// program made come first.
func bindAll(cfg Config) (all []*listener, missing []error, err error) {
	fail := func(err error) ([]*listener, []error, error) {
		for _, ln := range all {
			ln.Close()
		}
		return nil, nil, err
	}
	for _, fd := range cfg.Sockets {
		s, err := bind.Adopt(fd)
		if err != nil {
			return fail(err)
		}
		all = append(all, &listener{Socket: s, setting: given})
	}
	for _, text := range cfg.Listen {
		ln, err := bindListed(text, cfg)
		if isMissing(err) {
			missing = append(missing, err)
			continue
		}
		if err != nil {
			return fail(err)
		}
		all = append(all, ln)
	}
	return all, missing, nil
}

// isMissing reports whether an address could not be bound because this machine
// does not have it, or not yet.
func isMissing(err error) bool { return errors.Is(err, unix.EADDRNOTAVAIL) }

// bindListed binds one address of the settings.
func bindListed(text string, cfg Config) (*listener, error) {
	a, err := parseListen(text)
	if err != nil {
		return nil, err
	}
	var s *bind.Socket
	if a.Path != "" {
		s, err = bind.Unix(a.Path, cfg.SocketFile)
	} else {
		s, err = bind.TCP(netip.AddrPortFrom(a.IP.Unmap(), a.Port), cfg.Freebind && a.IP.IsValid())
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", text, err)
	}
	return &listener{Socket: s, setting: a.setting()}, nil
}
