package health

import "sync"

// Doubts holds the hosts that have reset connections of clients before they sent a
// byte. A check that only performs a handshake cannot detect that; see [TCPConfig].
// The zero value is ready to use, and safe for concurrent use.
type Doubts struct {
	mu    sync.Mutex // guards hosts
	hosts map[string]struct{}
}

// Add adds host, a connection string, which has reset a client's connection.
func (d *Doubts) Add(host string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hosts == nil {
		d.hosts = make(map[string]struct{})
	}
	d.hosts[host] = struct{}{}
}

// has reports whether host was added. It is false for a nil d.
func (d *Doubts) has(host string) bool {
	if d == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, in := d.hosts[host]
	return in
}

// clear removes host.
func (d *Doubts) clear(host string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.hosts, host)
}
