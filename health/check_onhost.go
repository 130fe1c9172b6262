package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"understudy/internal/flagfile"
	"understudy/internal/netstate"
)

// FlagCheck returns a check that passes when the file of that name exists in the
// directory dir, or, with absent, when it does not; or an error when no file can have
// that name. With a directory that cannot be read it fails in both cases. The check is
// about this machine and ignores the host.
func FlagCheck(dir, name string, absent bool) (Check, error) {
	var errs []error
	if dir == "" {
		errs = append(errs, errors.New("dir: it is empty"))
	}
	if why := flagfile.CheckName(name); why != nil {
		errs = append(errs, fmt.Errorf("name: %q is %w: it %w", name, flagfile.ErrName, why))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("flag check: %w", err)
	}
	flags := flagfile.Dir(dir)
	return func(ctx context.Context, _ string) Result {
		began := time.Now()
		present, err := flags.Present(name)
		switch {
		case err != nil:
			err = fmt.Errorf("flag %s: %w", name, err)
		case present && absent:
			err = fmt.Errorf("flag %s exists, want none", name)
		case !present && !absent:
			err = fmt.Errorf("flag %s is not there", name)
		}
		return NewResult(ctx, began, Criteria, err)
	}, nil
}

// VIPCheck returns a check that passes when every address is one of a loopback
// interface of this machine, or, with anyInterface, of any interface; or an
// error that names every bad address. It ignores the host.
func VIPCheck(addrs []netip.Addr, anyInterface bool) (Check, error) {
	here := netstate.Loopback
	if anyInterface {
		here = interfaceAddrs
	}
	return vipCheck(addrs, here)
}

// vipCheck is VIPCheck with a function that returns the local addresses.
func vipCheck(addrs []netip.Addr, here func() ([]netip.Addr, error)) (Check, error) {
	var errs []error
	if len(addrs) == 0 || len(addrs) > netstate.MaxVIPs {
		errs = append(errs, fmt.Errorf("%d addresses, want 1 to %d", len(addrs), netstate.MaxVIPs))
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
			return NewResult(ctx, began, Criteria, fmt.Errorf("addresses of this machine: %w", err))
		}
		for i, a := range own {
			own[i] = a.Unmap().WithZone("")
		}
		for _, a := range wanted {
			if !slices.Contains(own, a) {
				return NewResult(ctx, began, Criteria, fmt.Errorf("address %s is not here", a))
			}
		}
		return NewResult(ctx, began, Criteria, nil)
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
