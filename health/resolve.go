package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"understudy/internal/fault"
)

const (
	// resolveTimeout is the time for which a caller waits for the name servers when there
	// is an earlier good answer.
	resolveTimeout = 250 * time.Millisecond

	// queryShare is the age up to which a query is shared with new callers. A
	// query whose packet was lost is sent again after 5s (resolv.conf(5), timeout);
	// callers during that time send their own query.
	queryShare = time.Second

	// queryLimit ends a query. It is longer than twice resolv.conf's timeout,
	// so that the third of three name servers still gets the query.
	queryLimit = 12 * time.Second

	// queriesPerName limits the concurrent queries for one name, and so the
	// descriptors that are used while name servers do not answer.
	queriesPerName = 4
)

// Resolver resolves the names of hosts, with the last good answer while name servers
// fail. It caches nothing else: every call starts a query, so a changed record is used
// from the next check on. It is safe for concurrent use.
//
// A query outlives the caller that started it by 12s at most; [Resolver.Close] cancels
// the queries in progress and waits for them.
type Resolver struct {
	lookup func(ctx context.Context, name string) (addrs []netip.Addr, source string, err error)

	// queries is the context of all queries: a query is shared, so the end of
	// one caller's context must not cancel it.
	queries context.Context
	stop    context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex // guards everything below
	closed bool
	names  map[string]*resolvedName
}

// resolvedName is the state of one name in a Resolver.
type resolvedName struct {
	known   Lookup
	began   time.Time  // when the newest query that may be shared began
	newest  *nameQuery // nil when none may be shared
	running int        // queries in progress
	silent  time.Time  // since when no query was answered; zero when the last one was
}

// nameQuery is one query in progress.
type nameQuery struct{ done chan struct{} }

// NewResolver returns a Resolver that uses resolv.conf(5) and hosts(5) of this machine,
// without the C library.
func NewResolver() *Resolver { return NewResolverOf(lookupSystem) }

// NewResolverOf returns a Resolver that calls lookup. A [net.DNSError] with a timeout
// means that no name server has answered. Source is as in [Lookup].
func NewResolverOf(lookup func(ctx context.Context, name string) (addrs []netip.Addr, source string, err error)) *Resolver {
	r := &Resolver{lookup: lookup, names: make(map[string]*resolvedName)}
	r.queries, r.stop = context.WithCancel(context.Background())
	return r
}

// Close cancels the queries in progress and returns when they have ended. Later calls
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
// A name that had addresses keeps the last ones while the name servers fail,
// and for 30s after they began to say that it does not exist or has no
// address; see [Resolver.Lookup]. The error of [net.ErrClosed] or of ctx apart,
// an error is the name servers'. [fault.Local] reports whether it is this
// machine's own fault.
func (r *Resolver) Resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{addr.Unmap()}, nil
	}
	return r.Lookup(ctx, name).Usable(nameHold)
}

// Lookup queries the name servers for name and returns the result. When they fail, or
// have not answered within 250ms (or half of the time until the end of ctx, if that is
// less), and the name had addresses before, it returns the earlier answer; the query
// continues for later callers. While the servers do not answer, later callers get the
// earlier answer at once. Without any answer, Err of the result is the reason.
func (r *Resolver) Lookup(ctx context.Context, name string) Lookup {
	if err := ctx.Err(); err != nil {
		return Lookup{Err: fmt.Errorf("lookup %s: %w", name, err)}
	}
	q, since, err := r.join(name) //nolint:contextcheck // the query is shared by its callers, see queries
	if err != nil {
		return Lookup{Err: err}
	}
	limit := resolveTimeout - time.Since(since)
	if end, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(end)/2)
	}
	late := time.NewTimer(limit)
	defer late.Stop()
	for {
		select {
		case <-q.done:
			return r.Known(name)
		case <-late.C:
			// An older query may have answered in the meantime.
			if l := r.Known(name); l.Addrs != nil {
				return l
			}
			late.Reset(resolveTimeout)
		case <-ctx.Done():
			return Lookup{Err: fmt.Errorf("lookup %s: no answer from the name servers: %w", name, ctx.Err())}
		}
	}
}

// Refresh starts a query for name, unless one is in progress, and returns the present
// knowledge at once.
func (r *Resolver) Refresh(name string) Lookup {
	if _, _, err := r.join(name); err != nil {
		return Lookup{Err: err}
	}
	return r.Known(name)
}

// Known returns the present knowledge about name, without a query.
func (r *Resolver) Known(name string) Lookup {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.names[name]
	if n == nil {
		return Lookup{}
	}
	l := n.known.clone()
	if l.Err == nil && !n.silent.IsZero() && time.Since(n.silent) >= resolveTimeout {
		l.Err = fmt.Errorf("lookup %s: no answer from the name servers", name)
	}
	return l
}

// join returns a query for name that is in progress, or starts one, and since when the
// name servers have not answered.
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
	r.running.Go(func() { r.query(name, n, q) })
	return q, n.silent, nil
}

// query sends q to the name servers and stores the result.
func (r *Resolver) query(name string, n *resolvedName, q *nameQuery) {
	ctx, cancel := context.WithTimeout(r.queries, queryLimit)
	defer cancel()
	addrs, source, err := r.lookup(ctx, name)
	if err == nil && len(addrs) == 0 {
		err = &net.DNSError{Err: "no address", Name: name, IsNotFound: true}
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	n.running--
	if n.newest == q {
		n.newest = nil // a later caller starts a new query
	}
	if dns, ok := errors.AsType[*net.DNSError](err); !ok || !dns.IsTimeout {
		n.silent = time.Time{}
	}
	n.known.update(time.Now(), addrs, source, err)
	close(q.done)
}

// lookupAddrs queries the system's name servers once.
func lookupAddrs(ctx context.Context, name string) ([]netip.Addr, error) {
	addrs, _, err := lookupSystem(ctx, name)
	return addrs, err
}

// lookupSystem is lookupAddrs that also returns the source of the answer.
func lookupSystem(ctx context.Context, name string) (addrs []netip.Addr, source string, err error) {
	var d net.Dialer
	return lookupOver(ctx, name, d.DialContext)
}

// lookupOver queries the name servers that dial connects to. Source is the name server
// that was queried last, or hosts(5) when none was. Both families are queried in one
// lookup: two lookups would each walk the search list and could combine the addresses
// of two different machines.
func lookupOver(ctx context.Context, name string, dial func(ctx context.Context, network, server string) (net.Conn, error)) (addrs []netip.Addr, source string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var local atomic.Pointer[error]
	var queried atomic.Pointer[string]
	watched := func(dialCtx context.Context, network, server string) (net.Conn, error) {
		queried.Store(&server)
		conn, err := dial(dialCtx, network, server)
		switch {
		case err == nil:
			// A read that net has begun is not ended by a context, and would
			// keep goroutine and descriptor for another 5s.
			context.AfterFunc(ctx, func() { _ = conn.Close() }) // often closed by net before
		case fault.Local(err) && dialCtx.Err() == nil:
			// net reduces this error to its text; here it still has its number.
			local.Store(&err)
		}
		return conn, err
	}
	// A net.Resolver of its own for each query: a shared one would make the
	// second query wait for the first.
	r := &net.Resolver{PreferGo: true, Dial: watched}
	addrs, err = r.LookupNetIP(ctx, "ip", name)
	if isNotFound(err) {
		// When one family has no address and the query for the other failed,
		// net may report either. So "not found" counts only when it is
		// confirmed without a failure; an address of one family is enough,
		// since some name servers always fail on AAAA.
		r = &net.Resolver{PreferGo: true, Dial: watched, StrictErrors: true}
		addrs, err = r.LookupNetIP(ctx, "ip", name)
	}
	if err != nil {
		if own := local.Load(); own != nil {
			return nil, "", fmt.Errorf("lookup %s: %w", name, *own)
		}
		return nil, "", err // already "lookup db1 on 192.0.2.53:53: no such host"
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	source = "hosts file"
	if server := queried.Load(); server != nil {
		source = "name server " + *server
	}
	return addrs, source, nil
}

// isNotFound reports whether err is an answer of the name servers: the name
// does not exist, or has no address.
func isNotFound(err error) bool {
	dns, ok := errors.AsType[*net.DNSError](err)
	return ok && dns.IsNotFound
}
