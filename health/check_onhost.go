package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// FlagCheck returns a check that passes when the file of that name is in the
// directory dir, or, with absent, when it is not; or an error when no file can
// have that name. A directory that cannot be looked into passes in neither
// case. The check is about this machine: it takes no notice of the host.
func FlagCheck(dir, name string, absent bool) (Check, error) {
	var errs []error
	if dir == "" {
		errs = append(errs, errors.New("dir: it is empty"))
	}
	if why := badFlagName(name); why != "" {
		errs = append(errs, fmt.Errorf("name: %q is %w: it %s", name, ErrFlagName, why))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("flag check: %w", err)
	}
	flags := Flags{Dir: dir}
	return func(ctx context.Context, _ string) Result {
		began := time.Now()
		present, err := flags.Present(name)
		switch {
		case err != nil:
			err = fmt.Errorf("flag %s: %w", name, err)
		case present && absent:
			err = fmt.Errorf("flag %s is there, want none", name)
		case !present && !absent:
			err = fmt.Errorf("flag %s is not there", name)
		}
		return Outcome(ctx, began, Criteria, err)
	}, nil
}

// VIPCheck returns a check that passes when every address is one of a loopback
// interface of this machine, or, with anyInterface, of any interface; or an
// error that names every bad address. It takes no notice of the host.
func VIPCheck(addrs []netip.Addr, anyInterface bool) (Check, error) {
	here := loopback
	if anyInterface {
		here = interfaceAddrs
	}
	return vipCheck(addrs, here)
}

// vipCheck is VIPCheck with the addresses that are here.
func vipCheck(addrs []netip.Addr, here func() ([]netip.Addr, error)) (Check, error) {
	var errs []error
	if len(addrs) == 0 || len(addrs) > maxVIPs {
		errs = append(errs, fmt.Errorf("%d addresses, want 1 to %d", len(addrs), maxVIPs))
	}
	wanted := make([]netip.Addr, 0, len(addrs))
	for i, a := range addrs {
		if !a.IsValid() || a.Zone() != "" {
			errs = append(errs, fmt.Errorf("addresses[%d]: %s is not an IP address without a zone", i, a))
		}
		wanted = append(wanted, a.Unmap())
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("vip check: %w", err)
	}
	return func(ctx context.Context, _ string) Result {
		began := time.Now()
		own, err := here()
		if err != nil {
			return Outcome(ctx, began, Criteria, fmt.Errorf("addresses of this machine: %w", err))
		}
		for i, a := range own {
			own[i] = a.Unmap().WithZone("")
		}
		for _, a := range wanted {
			if !slices.Contains(own, a) {
				return Outcome(ctx, began, Criteria, fmt.Errorf("address %s is not here", a))
			}
		}
		return Outcome(ctx, began, Criteria, nil)
	}, nil
}

// interfaceAddrs returns the addresses of all interfaces.
func interfaceAddrs() ([]netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			all = append(all, prefix.Addr())
		}
	}
	return all, nil
}
