//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy/control"
	"understudy/internal/proctest"
	"understudy/metrics"
)

// store is an etcd of one member.
type store struct {
	t    *testing.T
	addr string
	args []string
	data string
	cmd  *exec.Cmd
}

// startEtcd starts an etcd, or skips the test where none is installed.
func startEtcd(t *testing.T) *store {
	t.Helper()
	return startEtcdWith(t, "http")
}

// startEtcdWith starts an etcd with more flags, and that scheme for its clients.
func startEtcdWith(t *testing.T, scheme string, more ...string) *store {
	t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		t.Skip("SKIPPED: etcd is not installed (make test-deps)")
	}
	s := &store{t: t, addr: freeAddr(t), data: filepath.Join(t.TempDir(), "data")}
	peers := "http://" + freeAddr(t)
	s.args = append([]string{
		path, "--name", "one", "--data-dir", s.data, "--log-level", "error",
		"--listen-client-urls", scheme + "://" + s.addr, "--advertise-client-urls", scheme + "://" + s.addr,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "one=" + peers,
	}, more...)
	s.start()
	t.Cleanup(s.kill)
	return s
}

func (s *store) start() {
	s.t.Helper()
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *store) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// witnessed is a host that answers each byte with its name and remembers in which order
// bytes have come to it and to others.
type witnessed struct {
	t     *testing.T
	name  byte
	addr  string
	order *atomic.Int64 // of all hosts

	mu       sync.Mutex // guards the following
	listener net.Listener
	first    int64 // of the bytes since forget; 0 for none
	last     int64 // of all bytes
}

func startWitnessed(t *testing.T, name byte, order *atomic.Int64) *witnessed {
	t.Helper()
	h := &witnessed{t: t, name: name, addr: freeAddr(t), order: order}
	h.listen()
	t.Cleanup(h.refuse)
	return h
}

// listen accepts connects.
func (h *witnessed) listen() {
	h.t.Helper()
	l, err := net.Listen("tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	h.listener = l
	h.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go h.serve(c)
		}
	}()
}

// refuse lets connects fail. Connections go on: a byte that still comes is seen.
func (h *witnessed) refuse() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.listener.Close()
}

func (h *witnessed) serve(c net.Conn) {
	defer c.Close()
	b := make([]byte, 1)
	for {
		if _, err := c.Read(b); err != nil {
			return
		}
		h.mu.Lock()
		h.last = h.order.Add(1)
		if h.first == 0 {
			h.first = h.last
		}
		h.mu.Unlock()
		if _, err := c.Write([]byte{h.name}); err != nil {
			return
		}
	}
}

// seen returns the places of the first byte since forget, and of the last one.
func (h *witnessed) seen() (first, last int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.first, h.last
}

func (h *witnessed) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.first = 0
}

// instance is one program of several that agree.
type instance struct {
	*proctest.Understudy
	name, addr, socket string
	blind              string // while this file is there, its check of the host named in it fails
}

// several are instances in front of two hosts.
type several struct {
	t     *testing.T
	store *store
	hosts [2]*witnessed
	all   []*instance
	args  [][]string
	lease time.Duration
}

func startSeveral(t *testing.T, lease time.Duration, more ...string) *several {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("this is not so secret here"), 0o600); err != nil {
		t.Fatal(err)
	}
	return startSeveralBy(t, lease, func(string) []string { return []string{"--cluster-secret", secret} }, more...)
}

// startSeveralBy starts instances that know each other by the flags that known returns for
// the name of each.
func startSeveralBy(t *testing.T, lease time.Duration, known func(name string) []string, more ...string) *several {
	t.Helper()
	order := new(atomic.Int64)
	s := &several{t: t, store: startEtcd(t), lease: lease}
	for i := range s.hosts {
		s.hosts[i] = startWitnessed(t, "AB"[i], order)
	}
	dir := t.TempDir()
	names := []string{"a", "b", "c"}
	var listen, members []string
	for _, name := range names {
		listen = append(listen, freeAddr(t))
		members = append(members, name+"="+listen[len(listen)-1])
	}
	for i, name := range names {
		in := &instance{name: name, addr: freeAddr(t), socket: socketPath(t), blind: filepath.Join(dir, "blind-"+name)}
		check := filepath.Join(dir, "check-"+name)
		writeScript(t, check, fmt.Sprintf("! grep -qx \"$1\" %s 2>/dev/null\n", in.blind))
		file := filepath.Join(dir, name+".yaml")
		text := fmt.Sprintf("relays:\n- {name: orders, listen: [%q], hosts: [%q, %q]}\n", in.addr, s.hosts[0].addr, s.hosts[1].addr)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		state := filepath.Join(dir, "state-"+name)
		s.args = append(s.args, slices.Concat([]string{
			"--config", file, "--control", in.socket, "--state-dir", state, "--check-host", check, "--check-interval", "200ms",
			"--interval", "200ms", "--fast-interval", "100ms", "--hold", "60s", "--drain-timeout", "500ms",
			"--cluster", "etcd://" + s.store.addr, "--cluster-name", "test", "--member", name, "--members", strings.Join(members, ","),
			"--cluster-listen", listen[i],
		}, known(name), []string{"--lease", lease.String()}, more))
		s.all = append(s.all, in)
		s.startOne(i)
	}
	return s
}

func (s *several) startOne(i int) {
	s.t.Helper()
	s.all[i].Understudy = start(s.t, s.args[i]...)
}

// status returns the state of the relay of an instance.
func (in *instance) status(t *testing.T) (r control.RelayStatus, ok bool) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	s, err := control.NewClient(in.socket).Status(ctx)
	if err != nil || len(s.Relays) != 1 || s.Relays[0].Cluster == nil {
		return r, false
	}
	return s.Relays[0], true
}

// metrics returns the metrics of an instance.
func (in *instance) metrics(t *testing.T) string {
	t.Helper()
	over := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", in.socket)
	}}}
	res, err := over.Get("http://understudy/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// until waits for a condition of every one of some instances; of all without any.
func (s *several) until(what string, condition func(r control.RelayStatus) bool, which ...int) {
	s.t.Helper()
	for i, in := range s.all {
		if len(which) > 0 && !slices.Contains(which, i) {
			continue
		}
		in.Until("instance "+in.name+": "+what, func() bool {
			r, ok := in.status(s.t)
			return ok && condition(r)
		})
	}
}

// serves waits until instances serve with a host as the primary.
func (s *several) serves(host int, which ...int) {
	s.t.Helper()
	s.until("serves "+string(s.hosts[host].name), func(r control.RelayStatus) bool { return r.Primary == s.hosts[host].addr }, which...)
}

// order runs a verb at an instance.
func (s *several) order(in *instance, words ...string) string {
	s.t.Helper()
	code, text := s.try(in, words...)
	if code != 0 {
		s.t.Fatalf("%v at %s: exit status %d: %s", words, in.name, code, text)
	}
	return text
}

// try runs a verb at an instance, which may fail, and returns all that it says.
func (s *several) try(in *instance, words ...string) (code int, text string) {
	s.t.Helper()
	u := proctest.StartCommand(s.t, proctest.BinaryCommand(program(s.t), []string{"CONTROL=" + in.socket}, words...))
	code = u.Exit()
	return code, u.Stdout() + u.Log()
}

// talker sends a byte after the other through an instance, each when the one before was
// answered, over the same connection for as long as it lives, then over another one.
type talker struct {
	said   atomic.Int64
	resets atomic.Int64
	last   atomic.Int32 // the name of the host that answered last
}

func (s *several) talk(in *instance) *talker {
	s.t.Helper()
	k := new(talker)
	ctx, stop := context.WithCancel(s.t.Context())
	var wg sync.WaitGroup
	s.t.Cleanup(func() { stop(); wg.Wait() })
	wg.Go(func() {
		for ctx.Err() == nil {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", in.addr)
			if err != nil {
				time.Sleep(5 * time.Millisecond)
				continue
			}
			end := context.AfterFunc(ctx, func() { c.Close() })
			b := []byte{'x'}
			for {
				if _, err = c.Write([]byte{'x'}); err != nil {
					break
				}
				if _, err = io.ReadFull(c, b); err != nil {
					break
				}
				k.last.Store(int32(b[0]))
				k.said.Add(1)
				time.Sleep(time.Millisecond)
			}
			end()
			c.Close()
			if ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				k.resets.Add(1)
			}
		}
	})
	s.t.Logf("talker through %s", in.name)
	return k
}

// answered waits until a host has answered each talker some more.
func (s *several) answered(what string, host int, all ...*talker) {
	s.t.Helper()
	for i, k := range all {
		before := k.said.Load()
		proctest.Until(s.t, fmt.Sprintf("%s: talker %d is answered by %c", what, i, s.hosts[host].name), func() bool {
			return k.said.Load() > before+5 && byte(k.last.Load()) == s.hosts[host].name
		})
	}
}

// wantOneAfterTheOther fails if a byte has come to the old host after one had come to the
// new one, since forget.
func (s *several) wantOneAfterTheOther(what string, from, to int) {
	s.t.Helper()
	first, _ := s.hosts[to].seen()
	_, last := s.hosts[from].seen()
	if first == 0 || last > first {
		s.t.Errorf("%s: byte %d came to the old primary, the first one to the new primary was %d", what, last, first)
	}
	s.t.Logf("%s: the last byte to the old primary was %d, the first one to the new primary %d", what, last, first)
}

// Three instances with one etcd have the same primary, whatever is ordered at one of them,
// or fails for one of them.
func TestClusterAgrees(t *testing.T) {
	t.Parallel()
	s := startSeveral(t, 2*time.Second)
	a, b, c := s.all[0], s.all[1], s.all[2]
	primary := 0
	s.until("serves", func(r control.RelayStatus) bool { return r.Primary != "" })
	if r, _ := a.status(t); r.Primary == s.hosts[1].addr {
		primary = 1
	}
	s.serves(primary)
	talkers := []*talker{s.talk(a), s.talk(b), s.talk(c)}
	s.answered("start", primary, talkers...)
	epoch := func() uint64 {
		r, _ := a.status(t)
		return r.Epoch
	}
	if code, text := s.try(a, "cluster", "force"); code == 0 || !strings.Contains(text, "only with --on-store-loss keep") {
		t.Errorf("force where leases end by themselves: exit status %d: %s", code, text)
	}

	// A lock that is set at one holds for all.
	s.order(a, "freeze", "--reason", "work on the network")
	s.until("is frozen", func(r control.RelayStatus) bool { return r.Frozen != nil && r.Frozen.Reason == "work on the network" })
	began := epoch()
	s.hosts[primary].refuse()
	s.until("sees the primary down", func(r control.RelayStatus) bool { return r.Cluster.Down > 0 && r.Hosts[primary].State == "down" })
	if n := epoch(); n != began {
		t.Errorf("a frozen cluster went from epoch %d to %d", began, n)
	}
	s.hosts[primary].listen()
	s.until("sees the primary up", func(r control.RelayStatus) bool { return r.Hosts[primary].State == "up" })
	s.order(c, "unfreeze")
	s.until("is not frozen", func(r control.RelayStatus) bool { return r.Frozen == nil })

	// A switch at one moves all.
	var alive []int // nil: all
	change := func(what string, how func()) {
		t.Helper()
		other := 1 - primary
		s.hosts[other].forget()
		how()
		s.answered(what, other, talkers...)
		s.serves(other, alive...)
		s.wantOneAfterTheOther(what, primary, other)
		primary = other
	}
	change("switch", func() { s.order(b, "switch", s.hosts[1-primary].addr) })

	// An instance that alone sees the primary down moves nothing, and does not serve.
	began = epoch()
	if err := os.WriteFile(c.blind, []byte(s.hosts[primary].addr+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.until("is isolated", func(r control.RelayStatus) bool { return r.Cluster.Isolated && r.Primary == "" }, 2)
	if text := s.order(c, "why"); !strings.Contains(text, "isolated: 1 of 3 instances see "+s.hosts[primary].addr+" down") {
		t.Errorf("why says: %s", text)
	}
	s.serves(primary, 0, 1)
	s.answered("isolation", primary, talkers[:2]...)
	if n := epoch(); n != began {
		t.Errorf("one isolated instance took the cluster from epoch %d to %d", began, n)
	}
	if err := os.Remove(c.blind); err != nil {
		t.Fatal(err)
	}
	s.serves(primary)

	// A primary that fails for all is replaced by all.
	failed := primary
	change("failover", s.hosts[primary].refuse)
	s.hosts[failed].listen()
	s.until("sees the other host up", func(r control.RelayStatus) bool { return r.Hosts[failed].State == "up" })

	// While the store is away nobody loses a connection.
	s.answered("before the store is away", primary, talkers...)
	resets := func() (n int64) {
		for _, k := range talkers {
			n += k.resets.Load()
		}
		return n
	}
	before := resets()
	s.store.kill()
	time.Sleep(3 * s.lease)
	s.answered("the store is away", primary, talkers...)
	s.serves(primary)
	s.store.start()
	s.until("has the store again", func(r control.RelayStatus) bool { return r.Cluster.StoreFails.IsZero() && r.Cluster.LeaseSeconds > 0 })
	s.answered("the store is back", primary, talkers...)
	if n := resets(); n != before {
		t.Errorf("%d connections were reset while the store was away", n-before)
	}

	// An instance that was stopped past its lease moves no byte when it goes on.
	change("stopped instance", func() {
		b.Signal(syscall.SIGSTOP)
		s.order(a, "switch", s.hosts[1-primary].addr)
		s.answered("while an instance is stopped", 1-primary, talkers[0], talkers[2])
		b.Signal(syscall.SIGCONT)
	})

	// The verb names everybody; one that ends in order is not waited for.
	s.until("knows of three", func(r control.RelayStatus) bool {
		return strings.HasPrefix(r.Cluster.Text, "3 instances agree on "+s.hosts[primary].addr)
	}, 0)
	if text := s.order(a, "cluster"); !strings.Contains(text, "3 instances agree on "+s.hosts[primary].addr) || !strings.Contains(text, "a (this)") {
		t.Errorf("cluster says: %s", text)
	}
	values := a.metrics(t)
	for _, m := range metrics.Table() {
		if strings.HasPrefix(m.Name, "understudy_cluster_") && !strings.Contains(values, "\n"+m.Name+`{relay="orders"} `) {
			t.Errorf("no value of %s", m.Name)
		}
	}
	c.Signal(syscall.SIGTERM)
	s.until("knows that c has ended", func(r control.RelayStatus) bool {
		return slices.ContainsFunc(r.Cluster.Members, func(m control.Instance) bool { return m.Name == "c" && m.Leaving })
	}, 0, 1)
	c.Exit()
	talkers, alive = talkers[:2], []int{0, 1}
	start := time.Now()
	change("switch without the one that has ended", func() { s.order(a, "switch", s.hosts[1-primary].addr) })
	t.Logf("it took %v", time.Since(start).Round(time.Millisecond))

	// A store that has lost what it knew is not believed.
	s.store.kill()
	if err := os.RemoveAll(s.store.data); err != nil {
		t.Fatal(err)
	}
	s.store.start()
	s.until("does not believe the store", func(r control.RelayStatus) bool {
		return strings.Contains(r.Cluster.Trouble, "gone back in time") && r.Primary == ""
	}, 0, 1)
}
