package failover

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/health"
)

// Times are virtual, and so is each sleep: the tests run in a bubble of
// testing/synctest; see conduct.

// zone holds the answers of the name servers, and which addresses accept
// connections.
type zone struct {
	mu     sync.Mutex // guards everything below
	leads  map[string]string
	silent bool
	down   map[string]bool
}

func (z *zone) set(f func()) {
	z.mu.Lock()
	defer z.mu.Unlock()
	f()
}

func (z *zone) lookup(ctx context.Context, name string) ([]netip.Addr, string, error) {
	z.mu.Lock()
	silent, addr := z.silent, z.leads[name]
	z.mu.Unlock()
	switch {
	case silent:
		<-ctx.Done()
		return nil, "", &net.DNSError{Err: "timeout", Name: name, IsTimeout: true}
	case addr == "":
		return nil, "", &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return []netip.Addr{netip.MustParseAddr(addr)}, "test", nil
}

// connect is the check of a host name. It takes 1ms.
func (z *zone) connect(ctx context.Context, host string) health.Result {
	name, _, _ := strings.Cut(host, ":")
	addr, ok := health.AddrOf(ctx, name)
	time.Sleep(time.Millisecond)
	z.mu.Lock()
	defer z.mu.Unlock()
	if !ok || z.down[addr.String()] {
		return health.Result{Phase: health.Connect, Err: errRefused}
	}
	return health.Result{OK: true, Latency: time.Millisecond}
}

// An address that the name servers have not confirmed for ten minutes stays in
// use while its checks pass. Once it has failed it may belong to another
// machine, as when containers swap addresses while the name server is silent:
// it is not used again before it is confirmed. A shorter outage of the name
// servers removes no address.
func TestAddressThatIsNotConfirmed(t *testing.T) {
	for _, tt := range []struct {
		name    string
		silence time.Duration // before the containers restart
		fall    int
		opened  string // until the name servers answer again
	}{
		{"for 9 minutes", 9 * time.Minute, 3, "1 192.0.2.1:5432, 2 192.0.2.1:5432"},
		{"for 9 minutes, and fails for a moment", 9 * time.Minute, 1000, "1 192.0.2.1:5432"},
		{"for 11 minutes", 11 * time.Minute, 3, "1 192.0.2.1:5432"},
		{"for 11 minutes, and fails for a moment", 11 * time.Minute, 1000, "1 192.0.2.1:5432"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage()
				z := &zone{leads: map[string]string{"db1.test": "192.0.2.1", "db2.test": "192.0.2.2"}, down: map[string]bool{}}
				names := health.NewResolverOf(z.lookup)
				defer names.Close()
				conduct(t, s, Config{
					Hosts: []string{"db1.test:5432", "db2.test:5432"}, Names: names, Fall: tt.fall,
					Checks: []Check{{Name: "tcp", Run: z.connect}},
				}, func(c *Conductor) {
					time.Sleep(time.Minute)
					z.set(func() { z.silent = true })
					time.Sleep(tt.silence)
					if got := opened(s); got != "1 192.0.2.1:5432" {
						t.Errorf("opened %s in %v of silence, want the first address alone", got, tt.silence)
					}
					z.set(func() { z.down["192.0.2.1"], z.down["192.0.2.2"] = true, true })
					time.Sleep(5 * time.Second)
					z.set(func() { delete(z.down, "192.0.2.1") }) // and the host there is db2
					time.Sleep(20 * time.Second)
					if goesOn := tt.silence < 10*time.Minute; (c.Snapshot().Primary != "") != goesOn {
						t.Errorf("primary is %q after the outage, want one: %v", c.Snapshot().Primary, goesOn)
					}
					if got := opened(s); got != tt.opened {
						t.Errorf("opened %s, want %s", got, tt.opened)
					}
					z.set(func() { clear(z.down) })
					z.set(func() { z.silent, z.leads["db1.test"], z.leads["db2.test"] = false, "192.0.2.2", "192.0.2.1" })
					time.Sleep(time.Minute)
					now := c.Snapshot()
					name, _, _ := strings.Cut(now.Primary, ":")
					if got := opened(s); !strings.HasPrefix(got, tt.opened+", ") || now.Addr.String() != z.leads[name] {
						t.Errorf("opened %s; %q is primary at %v when the names lead to each other's addresses", got, now.Primary, now.Addr)
					}
				})
			})
		})
	}
}

// Two names of one machine are a warning, once, as soon as it is known.
func TestTwoNamesOfOneAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &zone{leads: map[string]string{"db1.test": "192.0.2.1", "db2.test": "192.0.2.1", "db3.test": "192.0.2.3"}, down: map[string]bool{}}
		names := health.NewResolverOf(z.lookup)
		defer names.Close()
		log := conduct(t, newStage(), Config{
			Hosts: []string{"db1.test:5432", "db2.test:5432", "db3.test:5432", "192.0.2.3:5433"}, Names: names, Checks: []Check{{Name: "tcp", Run: z.connect}},
		}, func(*Conductor) { time.Sleep(time.Minute) })
		if strings.Count(log, "two hosts are one address") != 1 || !strings.Contains(log, "db1.test:5432") {
			t.Errorf("log:\n%s\nwant one warning, of db1 and db2", log)
		}
	})
}

// A primary's check does not wait for the name servers.
func TestSilentNamesDelayNoCheckOfAPrimary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		z := &zone{leads: map[string]string{"db1.test": "192.0.2.1", "db2.test": "192.0.2.2"}, down: map[string]bool{}}
		names := health.NewResolverOf(z.lookup)
		defer names.Close()
		log := conduct(t, s, Config{
			Hosts: []string{"db1.test:5432"}, Names: names, Checks: []Check{{Name: "tcp", Run: z.connect}},
		}, func(c *Conductor) {
			time.Sleep(10 * time.Second)
			z.set(func() { z.silent = true })
			time.Sleep(time.Minute)
			if took := c.Snapshot().Hosts[0].Checks[0].Last.Latency; took != time.Millisecond {
				t.Errorf("a check takes %v while the name servers are silent, want 1ms", took)
			}
			a, ok := c.Address("db1.test:5432")
			if !ok || a.Addr.String() != "192.0.2.1" || time.Since(a.Confirmed) < time.Minute || a.Source != "test" || a.Err == nil {
				t.Errorf("Address = %+v, %v, want one that was confirmed a minute ago and an error", a, ok)
			}
		})
		if strings.Contains(log, "suspected") || strings.Count(log, "name does not resolve") != 1 {
			t.Errorf("log:\n%s\nwant one line about the name and no suspicion", log)
		}
	})
}
