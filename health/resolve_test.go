package health

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/fault"
)

// nameServers is a stand-in for the name servers: it answers the n-th lookup,
// counted from zero, with the n-th of its answers, and the rest with the last.
type nameServers struct {
	answers   []nameAnswer
	requested atomic.Int32
	busy      atomic.Int32 // lookups under way
}

// nameAnswer comes after a while; an answer without addresses or error never
// comes.
type nameAnswer struct {
	after time.Duration
	addrs []netip.Addr
	err   error
}

func (s *nameServers) lookup(ctx context.Context, _ string) ([]netip.Addr, string, error) {
	s.busy.Add(1)
	defer s.busy.Add(-1)
	a := s.answers[min(int(s.requested.Add(1)), len(s.answers))-1]
	wait := time.NewTimer(a.after)
	defer wait.Stop()
	var answered <-chan time.Time
	if a.addrs != nil || a.err != nil {
		answered = wait.C
	}
	select {
	case <-answered:
		return a.addrs, "test", a.err
	case <-ctx.Done():
		return nil, "", &net.DNSError{Err: "timeout", IsTimeout: true, UnwrapErr: ctx.Err()}
	}
}

// withServers returns a Resolver that asks s.
func withServers(s *nameServers) *Resolver {
	r := NewResolver()
	r.lookup = s.lookup
	return r
}

func TestResolve(t *testing.T) {
	a := nameAnswer{addrs: []netip.Addr{addrA}}
	b := nameAnswer{addrs: []netip.Addr{addrB}}
	slowB := nameAnswer{after: 300 * time.Millisecond, addrs: []netip.Addr{addrB}}
	gone := nameAnswer{err: nxdomain}
	sick := nameAnswer{err: servfail}
	empty := nameAnswer{addrs: []netip.Addr{}}
	silent := nameAnswer{}
	for _, tt := range []struct {
		name    string
		answers []nameAnswer // one for each call, a minute apart
		want    netip.Addr   // of the last call; invalid for an error
		within  time.Duration
	}{
		{"an address", []nameAnswer{a}, addrA, 0},
		{"a changed record counts at once", []nameAnswer{a, b}, addrB, 0},
		{"no such name", []nameAnswer{gone}, netip.Addr{}, 0},
		{"no address", []nameAnswer{empty}, netip.Addr{}, 0},
		{"a name that is gone keeps its last address for a while", []nameAnswer{a, gone}, addrA, 0},
		{"and not for ever", []nameAnswer{a, gone, gone}, netip.Addr{}, 0},
		{"nor a name without an address", []nameAnswer{a, empty, empty}, netip.Addr{}, 0},
		{"nor does it come back when the servers fail", []nameAnswer{a, gone, sick}, netip.Addr{}, 0},
		{"servers fail at once", []nameAnswer{sick}, netip.Addr{}, 0},
		{"servers fail, the last address counts", []nameAnswer{a, sick}, addrA, 0},
		{"and goes on counting", []nameAnswer{a, sick, sick, sick}, addrA, 0},
		{"no descriptor to ask with, the last address counts", []nameAnswer{a, {err: syscall.EMFILE}}, addrA, 0},
		{"servers are silent", []nameAnswer{silent}, netip.Addr{}, time.Second},
		{"servers are silent, the last address counts", []nameAnswer{a, silent}, addrA, 250 * time.Millisecond},
		{"a slow answer is waited for when there is no other", []nameAnswer{slowB}, addrB, 300 * time.Millisecond},
		{"a slow answer is not waited for when there is one", []nameAnswer{a, slowB}, addrA, 250 * time.Millisecond},
		{"but counts for the next", []nameAnswer{a, slowB, sick}, addrB, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := withServers(&nameServers{answers: tt.answers})
				defer r.Close()
				var got []netip.Addr
				var err error
				var took time.Duration
				for range tt.answers {
					time.Sleep(time.Minute) // virtual
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					began := time.Now()
					got, err = r.Resolve(ctx, "db1")
					took = time.Since(began)
					cancel()
				}
				if tt.want.IsValid() {
					if !slices.Equal(got, []netip.Addr{tt.want}) || err != nil {
						t.Errorf("Resolve = %v, %v, want %v", got, err, tt.want)
					}
				} else if err == nil {
					t.Errorf("Resolve = %v, want an error", got)
				}
				if took != tt.within {
					t.Errorf("Resolve took %v, want %v", took, tt.within)
				}
			})
		})
	}
}

// Silent name servers cost the first client 250ms, not every one.
func TestResolveInSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := []netip.Addr{addrA}, []netip.Addr{addrB}
		s := &nameServers{answers: []nameAnswer{{addrs: a}, {}}}
		r := withServers(s)
		defer r.Close()
		resolve := func(want []netip.Addr, within time.Duration) {
			t.Helper()
			began := time.Now()
			got, err := r.Resolve(t.Context(), "db1")
			if took := time.Since(began); err != nil || !slices.Equal(got, want) || took != within {
				t.Errorf("Resolve = %v, %v after %v, want %v after %v", got, err, took, want, within)
			}
		}
		resolve(a, 0)
		resolve(a, 250*time.Millisecond)
		for range 60 {
			resolve(a, 0)
			time.Sleep(time.Second) // virtual
		}
		// They speak again: the first query that is answered ends the silence.
		synctest.Wait()
		s.answers = []nameAnswer{{after: time.Millisecond, addrs: b}}
		time.Sleep(queryLimit) // virtual
		resolve(a, 0)
		time.Sleep(2 * time.Millisecond) // virtual
		resolve(b, time.Millisecond)
	})
}

// An answer at the deadline would come too late to connect.
func TestResolveLeavesTimeToConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := withServers(&nameServers{answers: []nameAnswer{{addrs: []netip.Addr{addrA}}, {}}})
		defer r.Close()
		if _, err := r.Resolve(t.Context(), "db1"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		began := time.Now()
		if got, err := r.Resolve(ctx, "db1"); err != nil || time.Since(began) != 100*time.Millisecond {
			t.Errorf("Resolve = %v, %v after %v, want the last address after 100ms", got, err, time.Since(began))
		}
	})
}

func TestResolveAddressSendsNoQuery(t *testing.T) {
	s := &nameServers{answers: []nameAnswer{{err: servfail}}}
	r := withServers(s)
	defer r.Close()
	for in, want := range map[string]string{"192.0.2.1": "192.0.2.1", "::1": "::1", "::ffff:192.0.2.1": "192.0.2.1"} {
		got, err := r.Resolve(t.Context(), in)
		if err != nil || len(got) != 1 || got[0].String() != want {
			t.Errorf("Resolve(%q) = %v, %v, want %s", in, got, err, want)
		}
	}
	if n := s.requested.Load(); n != 0 {
		t.Errorf("the name servers were asked %d times, want 0", n)
	}
}

func TestResolveSharesOneQuery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &nameServers{answers: []nameAnswer{{after: 100 * time.Millisecond, addrs: []netip.Addr{addrA}}}}
		r := withServers(s)
		defer r.Close()

		// The first caller begins the query and leaves it to the others.
		leaves, leave := context.WithCancel(t.Context())
		errs := make(chan error, 50)
		left := make(chan error, 1)
		go func() {
			_, err := r.Resolve(leaves, "db1")
			left <- err
		}()
		synctest.Wait()
		for range cap(errs) {
			go func() {
				got, err := r.Resolve(t.Context(), "db1")
				if err == nil && !slices.Equal(got, []netip.Addr{addrA}) {
					err = errors.New("another address")
				}
				errs <- err
			}()
		}
		synctest.Wait()
		leave()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("Resolve of the caller who left = %v, want %v", err, context.Canceled)
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if n := s.requested.Load(); n != 1 {
			t.Errorf("the name servers were asked %d times, want 1", n)
		}
	})
}

// A packet of the first query was lost: a caller a second later sends a query of
// its own, and all callers get its answer.
func TestResolveDoesNotWaitForLostQuery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &nameServers{answers: []nameAnswer{{}, {addrs: []netip.Addr{addrA}}}}
		r := withServers(s)
		defer r.Close()
		first := make(chan time.Duration, 1)
		began := time.Now()
		go func() {
			if _, err := r.Resolve(t.Context(), "db1"); err != nil {
				t.Error(err)
			}
			first <- time.Since(began)
		}()
		time.Sleep(time.Second) // virtual
		if got, err := r.Resolve(t.Context(), "db1"); err != nil || time.Since(began) != time.Second {
			t.Errorf("Resolve = %v, %v after %v, want an address at once", got, err, time.Since(began))
		}
		if took := <-first; took > 1250*time.Millisecond {
			t.Errorf("the first caller got its answer after %v, want 250ms after the second", took)
		}
	})
}

func TestResolveBoundsQueries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &nameServers{answers: []nameAnswer{{}}}
		r := withServers(s)
		most := int32(0)
		for range 60 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := r.Resolve(ctx, "db1"); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("Resolve = %v, want %v", err, context.DeadlineExceeded)
			}
			cancel()
			most = max(most, s.busy.Load())
		}
		if most != queriesPerName {
			t.Errorf("%d lookups at one time, want %d", most, queriesPerName)
		}
		// A query ends by itself, and Close ends those that have not.
		if s.requested.Load() < 2*queriesPerName {
			t.Errorf("the name servers were asked %d times in a minute, want more", s.requested.Load())
		}
		began := time.Now()
		r.Close()
		if left := s.busy.Load(); left != 0 || time.Since(began) != 0 {
			t.Errorf("%d lookups are left after Close, which took %v", left, time.Since(began))
		}
		if _, err := r.Resolve(t.Context(), "db1"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Resolve after Close = %v, want %v", err, net.ErrClosed)
		}
	})
}

// A silent name delays no query for another name.
func TestResolveNamesApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewResolver()
		defer r.Close()
		silent := &nameServers{answers: []nameAnswer{{}}}
		r.lookup = func(ctx context.Context, name string) ([]netip.Addr, string, error) {
			if name == "silent" {
				return silent.lookup(ctx, name)
			}
			return []netip.Addr{addrA}, "test", nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		go r.Resolve(ctx, "silent")
		synctest.Wait()
		began := time.Now()
		if _, err := r.Resolve(ctx, "db1"); err != nil || time.Since(began) != 0 {
			t.Errorf("Resolve(db1) = %v after %v, want an address at once", err, time.Since(began))
		}
	})
}

func TestResolveCallersOwnTheirAnswer(t *testing.T) {
	r := withServers(&nameServers{answers: []nameAnswer{{addrs: []netip.Addr{addrA, addrB}}, {err: servfail}}})
	defer r.Close()
	first, err := r.Resolve(t.Context(), "db1")
	if err != nil {
		t.Fatal(err)
	}
	first[0] = netip.Addr{}
	if got, err := r.Resolve(t.Context(), "db1"); err != nil || !slices.Equal(got, []netip.Addr{addrA, addrB}) {
		t.Errorf("Resolve after another caller changed his answer = %v, %v", got, err)
	}
}

// nameServer runs a name server on loopback that answers each query as answer
// says, and returns a dial function that leads to it.
func nameServer(t *testing.T, answer func(qtype byte, query []byte) []byte) func(context.Context, string, string) (net.Conn, error) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			// The query ends with type and class behind the name's zero.
			end := 12 + slices.Index(buf[12:n], 0) + 5
			if reply := answer(buf[end-3], slices.Clone(buf[:end])); reply != nil {
				pc.WriteTo(reply, from)
			}
		}
	}()
	t.Cleanup(func() { pc.Close(); <-done })
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, pc.LocalAddr().String())
	}
}

// dnsReply turns a query into a reply with code (RFC 1035, section 4.1.1) and
// resource records.
func dnsReply(query []byte, code byte, records ...[]byte) []byte {
	copy(query[2:], []byte{0x81, 0x80 | code, 0, 1, 0, byte(len(records)), 0, 0, 0, 0})
	return append(query, slices.Concat(records...)...)
}

// dnsRecord returns the record of the name in the query for addr.
func dnsRecord(addr string) []byte {
	a := netip.MustParseAddr(addr).AsSlice()
	qtype := map[int]byte{4: 1, 16: 28}[len(a)]
	return append([]byte{0xc0, 12, 0, qtype, 0, 1, 0, 0, 0, 60, 0, byte(len(a))}, a...)
}

func TestLookupOnTheWire(t *testing.T) {
	const typeA, typeAAAA = 1, 28
	for _, tt := range []struct {
		name   string
		answer func(qtype byte, query []byte) []byte
		want   string // sorted; empty for an error
		gone   bool   // the error says that the name has no address
	}{
		{"three A records", func(qtype byte, q []byte) []byte {
			if qtype == typeAAAA {
				return dnsReply(q, 0)
			}
			return dnsReply(q, 0, dnsRecord("127.0.0.3"), dnsRecord("127.0.0.2"), dnsRecord("127.0.0.1"))
		}, "127.0.0.1 127.0.0.2 127.0.0.3", false},
		{"AAAA only", func(qtype byte, q []byte) []byte {
			if qtype == typeA {
				return dnsReply(q, 0)
			}
			return dnsReply(q, 0, dnsRecord("::1"))
		}, "::1", false},
		{"NXDOMAIN", func(_ byte, q []byte) []byte { return dnsReply(q, 3) }, "", true},
		{"empty answer", func(_ byte, q []byte) []byte { return dnsReply(q, 0) }, "", true},
		{"SERVFAIL", func(_ byte, q []byte) []byte { return dnsReply(q, 2) }, "", false},
		{"REFUSED", func(_ byte, q []byte) []byte { return dnsReply(q, 5) }, "", false},
		{"SERVFAIL for A, empty for AAAA", func(qtype byte, q []byte) []byte {
			if qtype == typeA {
				return dnsReply(q, 2)
			}
			return dnsReply(q, 0)
		}, "", false},
		{"SERVFAIL for AAAA, empty for A", func(qtype byte, q []byte) []byte {
			if qtype == typeAAAA {
				return dnsReply(q, 2)
			}
			return dnsReply(q, 0)
		}, "", false},
		{"SERVFAIL for AAAA", func(qtype byte, q []byte) []byte {
			if qtype == typeAAAA {
				return dnsReply(q, 2)
			}
			return dnsReply(q, 0, dnsRecord("127.0.0.1"))
		}, "127.0.0.1", false},
		{"silence", func(byte, []byte) []byte { return nil }, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			timeout := 3 * checkLimit
			if tt.name == "silence" {
				timeout = 200 * time.Millisecond
			}
			ctx := checkContext(t, timeout)
			addrs, source, err := lookupOver(ctx, "db1.example.", nameServer(t, tt.answer))
			var texts []string
			for _, a := range addrs {
				texts = append(texts, a.String())
			}
			slices.Sort(texts)
			if got := strings.Join(texts, " "); got != tt.want || (err == nil) != (tt.want != "") {
				t.Fatalf("lookup = %q, %v, want %q", got, err, tt.want)
			}
			if err == nil && !strings.HasPrefix(source, "name server ") {
				t.Errorf("the source is %q, want a name server", source)
			}
			var dns *net.DNSError
			if err != nil && (!errors.As(err, &dns) || dns.IsNotFound != tt.gone) {
				t.Errorf("lookup = %#v, want IsNotFound %v", err, tt.gone)
			}
		})
	}
}

func TestLookupWithoutSocketIsLocal(t *testing.T) {
	_, _, err := lookupOver(t.Context(), "db1.example.", func(_ context.Context, network, _ string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.EMFILE}
	})
	if !fault.Local(err) || !strings.HasPrefix(err.Error(), "lookup db1.example.: ") {
		t.Errorf("lookup without a descriptor = %v, want a local error", err)
	}
}
