package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// resolvePatience is how long a caller waits for the name servers when a
	// last good answer is at hand.
	resolvePatience = 250 * time.Millisecond

	// queryShare is how old a query may be for a new caller to share it. A
	// query whose packet was lost waits 5s before it asks again (resolv.conf(5),
	// timeout); callers who come in that time ask for themselves instead.
	queryShare = time.Second

	// queryLimit ends a query. It is longer than twice resolv.conf's timeout,
	// so that the third of three name servers is still asked.
	queryLimit = 12 * time.Second

	// queriesPerName bounds the queries of one name that are under way at one
	// time, and with them the descriptors that silent name servers cost.
	queriesPerName = 4
)

// Resolver turns the names of hosts into addresses and rides out name servers
// that fail. It caches nothing else: every call asks, so a changed record
// counts from the next check on. Its methods may be called from many
// goroutines.
//
// A query outlives the caller who began it, by 12s at most; [Resolver.Close]
// ends and awaits the queries that are under way.
type Resolver struct {
	lookup func(ctx context.Context, name string) ([]netip.Addr, error)

	// queries is the lifetime of the queries: they belong to no single caller,
	// since one who leaves must not end them for the others.
	queries context.Context
	stop    context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex // guards everything below
	closed bool
	names  map[string]*resolvedName
}

// resolvedName is what a Resolver knows about one name.
type resolvedName struct {
	good    []netip.Addr // the last good answer; nil when there is none
	began   time.Time    // when the newest query that may be shared began
	newest  *nameQuery   // nil when none may be shared
	running int          // queries under way
	silent  time.Time    // since when no query was answered; zero when the last one was
}

// nameQuery is one question to the name servers. The other fields are set
// before done is closed.
type nameQuery struct {
	done  chan struct{}
	addrs []netip.Addr
	err   error
}

// NewResolver returns a Resolver that asks as resolv.conf(5) and hosts(5) of
// this machine say, without the C library.
func NewResolver() *Resolver {
	r := &Resolver{lookup: lookupAddrs, names: make(map[string]*resolvedName)}
	r.queries, r.stop = context.WithCancel(context.Background())
	return r
}

// Close ends the queries under way and returns when they are gone. Later calls
// of Resolve for anything but an IP address fail with [net.ErrClosed].
func (r *Resolver) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.stop()
	r.running.Wait()
}

// Resolve returns the addresses of name, at least one, in the order to try
// them. An IP address is its own answer, at once.
//
// A name that does not exist or has no address is an error. When the name
// servers fail, or have not answered within 250ms (or half of what is left
// until the end of ctx, if that is less), and the name had addresses before,
// the last ones are the answer; the query goes on for whoever asks next. While
// the servers stay silent, later callers get them at once.
// [Local] tells whether an error is this machine's own fault.
func (r *Resolver) Resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{addr.Unmap()}, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("lookup %s: %w", name, err)
	}
	q, since, err := r.join(name) //nolint:contextcheck // the query belongs to everybody who asks, see queries
	if err != nil {
		return nil, err
	}

	patience := resolvePatience - time.Since(since)
	if end, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(end)/2)
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case <-q.done:
			return slices.Clone(q.addrs), q.err
		case <-late.C:
			// An older query may have answered in the meantime.
			if good := r.lastGood(name); good != nil {
				return good, nil
			}
			late.Reset(resolvePatience)
		case <-ctx.Done():
			return nil, fmt.Errorf("lookup %s: no answer from the name servers: %w", name, ctx.Err())
		}
	}
}

// join returns a query for name that is under way, or begins one, and since
// when the name servers owe an answer.
func (r *Resolver) join(name string) (q *nameQuery, since time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, time.Time{}, fmt.Errorf("lookup %s: %w", name, net.ErrClosed)
	}
	n := r.names[name]
	if n == nil {
		n = &resolvedName{}
		r.names[name] = n
	}
	if n.newest != nil && (time.Since(n.began) < queryShare || n.running >= queriesPerName) {
		if n.silent.IsZero() {
			return n.newest, n.began, nil // an older query was answered meanwhile
		}
		return n.newest, n.silent, nil
	}
	q = &nameQuery{done: make(chan struct{})}
	n.newest, n.began = q, time.Now()
	if n.silent.IsZero() {
		n.silent = n.began
	}
	n.running++
	r.running.Go(func() { r.ask(name, n, q) })
	return q, n.silent, nil
}

// ask puts q to the name servers and publishes the outcome.
func (r *Resolver) ask(name string, n *resolvedName, q *nameQuery) {
	ctx, cancel := context.WithTimeout(r.queries, queryLimit)
	defer cancel()
	addrs, err := r.lookup(ctx, name)
	if err == nil && len(addrs) == 0 {
		err = &net.DNSError{Err: "no address", Name: name, IsNotFound: true}
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	n.running--
	if n.newest == q {
		n.newest = nil // who comes now asks anew
	}
	if dns, ok := errors.AsType[*net.DNSError](err); !ok || !dns.IsTimeout {
		n.silent = time.Time{}
	}
	switch {
	case err == nil:
		n.good = addrs
	case isNotFound(err):
		// An answer too: the name is gone, and its last address with it.
		n.good = nil
	case n.good != nil:
		addrs, err = n.good, nil
	}
	q.addrs, q.err = addrs, err
	close(q.done)
}

// lastGood returns the last good answer for name, nil when there is none.
func (r *Resolver) lastGood(name string) []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.names[name].good)
}

// lookupAddrs asks the system's name servers once.
func lookupAddrs(ctx context.Context, name string) ([]netip.Addr, error) {
	var d net.Dialer
	return lookupOver(ctx, name, d.DialContext)
}

// lookupOver asks the name servers that dial connects to. Both families are
// asked in one lookup: two would walk the search list apart and could bring
// together the addresses of two different machines.
func lookupOver(ctx context.Context, name string, dial func(ctx context.Context, network, server string) (net.Conn, error)) ([]netip.Addr, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var local atomic.Pointer[error]
	watched := func(dialCtx context.Context, network, server string) (net.Conn, error) {
		conn, err := dial(dialCtx, network, server)
		switch {
		case err == nil:
			// A read that net has begun is not ended by a context, and would
			// keep goroutine and descriptor for another 5s.
			context.AfterFunc(ctx, func() { _ = conn.Close() }) // often closed by net before
		case Local(err) && dialCtx.Err() == nil:
			// net reduces this error to its text; here it still has its number.
			local.Store(&err)
		}
		return conn, err
	}
	// A net.Resolver of its own for each query: a shared one would make the
	// second query wait for the first.
	r := &net.Resolver{PreferGo: true, Dial: watched}
	addrs, err := r.LookupNetIP(ctx, "ip", name)
	if isNotFound(err) {
		// When one family has no address and the question for the other
		// failed, net may report either. So the end of a name is believed when
		// it is confirmed without a failure; for an address one family is
		// enough, since some name servers fail on AAAA for ever.
		r = &net.Resolver{PreferGo: true, Dial: watched, StrictErrors: true}
		addrs, err = r.LookupNetIP(ctx, "ip", name)
	}
	if err != nil {
		if own := local.Load(); own != nil {
			return nil, fmt.Errorf("lookup %s: %w", name, *own)
		}
		return nil, err // already "lookup db1 on 192.0.2.53:53: no such host"
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, nil
}

// isNotFound reports whether err is an answer of the name servers: the name
// does not exist, or has no address.
func isNotFound(err error) bool {
	dns, ok := errors.AsType[*net.DNSError](err)
	return ok && dns.IsNotFound
}
