//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/control"
	"understudy/failover"
	"understudy/internal/proctest"
)

// site is three etcd, three instances of the program and two hosts, each in a
// network namespace of its own, and a client of each instance. It exists once,
// in the namespace of its test; see isolate.
type site struct {
	t       *testing.T
	dir     string
	secret  string   // of the instances, a file
	with    []string // settings of the instances
	stores  map[string]*etcd
	members map[string]*member
	hosts   map[string]*logger
	clients map[string]*caller
	orders  sync.WaitGroup // verbs that run

	forwarders map[string]*forwarder // of stores and members, to which members talk through them
	patience   time.Duration         // of clients for an answer
}

// oneSite keeps the sites of several tests from running at the same time: on a
// busy machine leases would end for lack of processor time.
var oneSite sync.Mutex

// isolateSite is isolate for a test that makes a site.
func isolateSite(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVariable) != t.Name() {
		oneSite.Lock()
		defer oneSite.Unlock()
	}
	return isolate(t, "nft", "etcd")
}

// nodes are the names of all, and their addresses.
var nodes = map[string]string{
	"e1": "10.99.0.1", "e2": "10.99.0.2", "e3": "10.99.0.3",
	"a": "10.99.0.11", "b": "10.99.0.12", "c": "10.99.0.13",
	"alone": "10.99.0.14", // without a cluster; see newAlone
	"h1":    "10.99.0.21", "h2": "10.99.0.22",
}

var (
	storeNames  = []string{"e1", "e2", "e3"}
	memberNames = []string{"a", "b", "c"}
	hostNames   = []string{"h1", "h2"}
)

const (
	relayPort  = "5000"
	hostPort   = "6000"
	memberPort = "7000" // of the forwarder
	askedPort  = "7001"
	httpPort   = "9001"

	// siteLease is shorter than the default, for the sake of the test's time.
	siteLease = 3 * time.Second
)

// newSite starts all of it, and waits until each client is served.
func newSite(t *testing.T) *site {
	t.Helper()
	s := newSiteOf(t, "--hold", "2s", "--drain-timeout", "1s", "--trigger-timeout", "2s", "--lease", siteLease.String())
	s.call()
	return s
}

// call starts the clients, and waits until each is served.
func (s *site) call() {
	s.t.Helper()
	for _, name := range memberNames {
		s.clients[name] = s.newCaller(name)
	}
	s.awaitServed("at the start")
}

// newSiteOf starts all of it but the clients, with these settings of the instances.
func newSiteOf(t *testing.T, settings ...string) *site {
	t.Helper()
	s := &site{
		t: t, dir: t.TempDir(), with: settings,
		stores: map[string]*etcd{}, members: map[string]*member{}, hosts: map[string]*logger{}, clients: map[string]*caller{},
		forwarders: map[string]*forwarder{}, patience: 4 * time.Second,
	}
	cable(t, "10.99.0.254/24", nodes)
	for name := range nodes {
		run(t, "ip netns exec", name, "nft add table inet fault")
		run(t, "ip netns exec", name, "nft add chain inet fault input { type filter hook input priority 0; }")
	}
	for _, name := range storeNames {
		s.stores[name] = s.newStore(name)
	}
	for _, name := range hostNames {
		s.hosts[name] = s.newHost(name)
	}
	s.secret = filepath.Join(s.dir, "secret")
	if err := os.WriteFile(s.secret, []byte("the secret of the test site\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range memberNames {
		s.members[name] = s.newMember(name)
	}
	return s
}

// cable makes a namespace for each machine, and one bridge between them, where the
// test itself is too, at an address of its own. The names of namespaces are in a directory,
// which belongs to the test's own view of the mounts.
func cable(t *testing.T, own string, machines map[string]string) {
	t.Helper()
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", "/run/netns", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	run(t, "ip link add hub type bridge")
	run(t, "ip addr add", own, "dev hub")
	run(t, "ip link set hub up")
	for name, addr := range machines {
		run(t, "ip netns add", name)
		at := func(words ...string) { t.Helper(); run(t, append([]string{"ip netns exec", name}, words...)...) }
		run(t, "ip link add to-"+name, "type veth peer name eth0 netns", name)
		run(t, "ip link set to-"+name, "master hub up")
		at("ip addr add", addr+"/24 dev eth0")
		at("ip link set lo up")
		at("ip link set eth0 up")
	}
}

// within calls do on a thread that is in the network of a node. Sockets that are
// made there stay in that network.
func within(node string, do func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	there, err := os.Open("/run/netns/" + node)
	if err != nil {
		return err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return os.NewSyscallError("setns", err)
	}
	err = do()
	// A thread that ends would kill the processes that it has started.
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		panic(back)
	}
	runtime.UnlockOSThread()
	return err
}

// listenAt listens in the network of a node.
func (s *site) listenAt(node, port string) net.Listener {
	s.t.Helper()
	var ln net.Listener
	err := within(node, func() (err error) {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var failed error
			err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) })
			return errors.Join(err, failed)
		}}
		lc.SetMultipathTCP(false)
		ln, err = lc.Listen(context.Background(), "tcp", nodes[node]+":"+port)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return ln
}

// oneWay is a way from one node to another on which all packets vanish.
type oneWay struct{ from, to string }

// cuts makes the packets of these ways vanish, and of no others.
func (s *site) cuts(all ...oneWay) {
	s.t.Helper()
	for name := range nodes {
		rules := "flush chain inet fault input\n"
		for _, c := range all {
			if c.to == name {
				rules += "add rule inet fault input ip saddr " + nodes[c.from] + " drop\n"
			}
		}
		cmd := exec.Command("ip", "netns", "exec", name, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Fatalf("nft: %v\n%s", err, out)
		}
	}
}

// between is both ways between each of some nodes and each of others.
func between(some, others []string) (all []oneWay) {
	for _, a := range some {
		for _, b := range others {
			if a != b {
				all = append(all, oneWay{a, b}, oneWay{b, a})
			}
		}
	}
	return all
}

// etcd is a store. Members reach it through a forwarder; etcd reach each other directly.
type etcd struct {
	s    *site
	name string
	cmd  *exec.Cmd
}

const (
	etcdPort   = "2379"
	storePort  = "2378" // of the forwarder
	etcdToEtcd = "2380"
)

func (s *site) newStore(name string) *etcd {
	s.t.Helper()
	e := &etcd{s: s, name: name}
	e.start()
	s.t.Cleanup(e.kill)
	s.forward(name, storePort, etcdPort)
	return e
}

func (e *etcd) data() string { return filepath.Join(e.s.dir, "etcd-"+e.name) }

func (e *etcd) start() {
	e.s.t.Helper()
	at := func(name, port string) string { return "http://" + nodes[name] + ":" + port }
	var all []string
	for _, name := range storeNames {
		all = append(all, name+"="+at(name, etcdToEtcd))
	}
	e.cmd = exec.Command("ip", "netns", "exec", e.name, "etcd", "--name", e.name, "--data-dir", e.data(),
		"--log-level", "error", "--heartbeat-interval", "100", "--election-timeout", "1000",
		"--listen-client-urls", at(e.name, etcdPort), "--advertise-client-urls", at(e.name, etcdPort),
		"--listen-peer-urls", at(e.name, etcdToEtcd), "--initial-advertise-peer-urls", at(e.name, etcdToEtcd),
		"--initial-cluster", strings.Join(all, ","))
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := e.cmd.Start(); err != nil {
		e.s.t.Fatal(err)
	}
}

func (e *etcd) signal(sig syscall.Signal) { _ = e.cmd.Process.Signal(sig) }

func (e *etcd) kill() {
	e.signal(syscall.SIGKILL)
	_ = e.cmd.Wait()
}

// leads reports whether it says that it is the leader.
func (e *etcd) leads() bool {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Post("http://"+nodes[e.name]+":"+etcdPort+"/v3/maintenance/status", "application/json", strings.NewReader("{}"))
	if err != nil {
		return false
	}
	defer res.Body.Close()
	var status struct {
		Header struct {
			MemberID string `json:"member_id"`
		}
		Leader string
	}
	return json.NewDecoder(res.Body).Decode(&status) == nil && status.Leader != "" && status.Leader == status.Header.MemberID
}

// leader is the store that leads.
func (s *site) leader() *etcd {
	s.t.Helper()
	var leader *etcd
	proctest.Until(s.t, "an etcd leads", func() bool {
		for _, name := range storeNames {
			if leader = s.stores[name]; leader.leads() {
				return true
			}
		}
		return false
	})
	return leader
}

// forwarder passes connections to a port of a node on to another port, with delay. This
// kernel may have no netem.
type forwarder struct {
	node  string
	to    string       // a port
	delay atomic.Int64 // of each direction
}

// forward starts the forwarder of a node.
func (s *site) forward(node, from, to string) {
	s.t.Helper()
	f := &forwarder{node: node, to: to}
	s.forwarders[node] = f
	ln := s.listenAt(node, from)
	s.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				var server net.Conn
				err := within(node, func() (err error) {
					server, err = net.DialTimeout("tcp", nodes[node]+":"+f.to, time.Second)
					return err
				})
				if err != nil {
					return
				}
				defer server.Close()
				done := make(chan struct{}, 2)
				go func() { f.pass(server, client); done <- struct{}{} }()
				go func() { f.pass(client, server); done <- struct{}{} }()
				<-done // either end closes both
			}()
		}
	}()
}

// pass copies what arrives, each part when it is old enough.
func (f *forwarder) pass(to, from net.Conn) {
	type part struct {
		at   time.Time
		text []byte
	}
	parts := make(chan part, 10_000)
	go func() {
		defer close(parts)
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			parts <- part{time.Now(), bytes.Clone(buf[:n])}
		}
	}()
	failed := false
	for p := range parts {
		// In small steps, so that the end of the delay is noticed.
		for time.Since(p.at) < time.Duration(f.delay.Load()) {
			time.Sleep(10 * time.Millisecond)
		}
		if !failed {
			_, err := to.Write(p.text)
			failed = err != nil
		}
		if failed {
			from.Close() // and the rest is read to its end
		}
	}
}

// member is an instance of the program.
type member struct {
	*proctest.Understudy
	s    *site
	name string
	args []string
}

func (s *site) newMember(name string) *member {
	s.t.Helper()
	s.forward(name, memberPort, askedPort)
	trigger := filepath.Join(s.dir, "trigger-"+name)
	writeScript(s.t, trigger, fmt.Sprintf("echo ${EPOCHREALTIME/[.,]/} $UNDERSTUDY_EPOCH ${UNDERSTUDY_NEW%%%%:*} >>%s\n", s.triggers()))
	return s.newInstance(name, trigger,
		"--cluster", "etcd://"+strings.Join(addresses(storeNames, "", storePort), ","), "--cluster-name", "test",
		"--member", name, "--members", strings.Join(addresses(memberNames, "=", memberPort), ","),
		"--cluster-listen", nodes[name]+":"+askedPort, "--cluster-secret", s.secret)
}

// newAlone starts an instance in front of the same hosts that decides alone, with the same
// settings otherwise.
func (s *site) newAlone() *member {
	s.t.Helper()
	trigger := filepath.Join(s.dir, "trigger-alone")
	writeScript(s.t, trigger, "true\n")
	with := s.with
	if i := slices.Index(with, "--lease"); i >= 0 {
		s.with = slices.Delete(slices.Clone(with), i, i+2)
	}
	defer func() { s.with = with }()
	return s.newInstance("alone", trigger)
}

func (s *site) newInstance(name, trigger string, more ...string) *member {
	s.t.Helper()
	m := &member{s: s, name: name, args: slices.Concat([]string{
		"netns", "exec", name, program(s.t),
		"--bind", nodes[name] + ":" + relayPort, "--hosts", strings.Join(addresses(hostNames, "", hostPort), ","),
		"--on-failover", trigger, "--state-dir", filepath.Join(s.dir, "state-"+name), "--http", nodes[name] + ":" + httpPort,
		"--control", filepath.Join(s.dir, name+".sock"),
	}, s.with, more)}
	m.start()
	return m
}

// addresses are those of some nodes, each behind its name if there is something between
// the two.
func addresses(names []string, between, port string) (all []string) {
	for _, name := range names {
		at := nodes[name] + ":" + port
		if between != "" {
			at = name + between + at
		}
		all = append(all, at)
	}
	return all
}

// state is the directory of its state.
func (m *member) state() string { return filepath.Join(m.s.dir, "state-"+m.name) }

// start starts it, for the first time or again.
func (m *member) start() {
	m.s.t.Helper()
	if err := os.MkdirAll(m.state(), 0o700); err != nil {
		m.s.t.Fatal(err)
	}
	m.Understudy = proctest.StartCommand(m.s.t, proctest.BinaryCommand("ip", nil, m.args...))
}

// kill kills it, and waits for its end.
func (m *member) kill() {
	m.s.t.Helper()
	m.Signal(syscall.SIGKILL)
	m.Exit()
}

// relay is the state of its relay; false when it does not answer.
func (m *member) relay() (r control.RelayStatus, ok bool) {
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	s, err := control.NewClient(filepath.Join(m.s.dir, m.name+".sock")).Status(ctx)
	if err != nil || len(s.Relays) != 1 {
		return r, false
	}
	return s.Relays[0], true
}

// predicted is what it predicts of a failure of the primary without clients, which is
// noticed later than with some, and of a cluster.
func (m *member) predicted(kind failover.Failure) (failover.Case, failover.ClusterWaits) {
	m.s.t.Helper()
	text, err := m.ask("predict", "--json")
	if err != nil {
		m.s.t.Fatalf("predict: %v\n%s", err, text)
	}
	var p control.PredictAnswer
	if err := json.Unmarshal([]byte(text), &p); err != nil || p.Cluster == nil {
		m.s.t.Fatalf("predict says %s: %v", text, err)
	}
	for _, k := range p.Cases {
		if k.Failure == kind && !k.Traffic && !k.Never {
			return k, *p.Cluster
		}
	}
	m.s.t.Fatalf("predict has no case %s: %s", kind, text)
	return failover.Case{}, failover.ClusterWaits{}
}

// seconds is a number of them.
func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

// verdict is the status of its answer to /ping.
func (m *member) verdict() int {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + nodes[m.name] + ":" + httpPort + "/ping")
	if err != nil {
		return 0
	}
	res.Body.Close()
	return res.StatusCode
}

// ask runs a verb of the program against it, and returns what it prints.
func (m *member) ask(verb string, args ...string) (string, error) {
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	cmd := exec.CommandContext(ctx, program(m.s.t), append([]string{verb, "--control", filepath.Join(m.s.dir, m.name+".sock")}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// logger is a host that logs each read: when it arrived, by the kernel's clock,
// the instance, the connection and the number of bytes. It answers each read
// with its name.
type logger struct {
	s    *site
	name string

	mu     sync.Mutex // guards everything below
	greets bool       // a new connection gets the name at once
	ln     net.Listener
	conns  map[net.Conn]bool
	count  int
	log    *os.File
}

func (s *site) newHost(name string) *logger {
	s.t.Helper()
	log, err := os.Create(filepath.Join(s.dir, name+".log"))
	if err != nil {
		s.t.Fatal(err)
	}
	h := &logger{s: s, name: name, log: log, conns: map[net.Conn]bool{}}
	h.start()
	s.t.Cleanup(h.kill)
	return h
}

// start makes it listen.
func (h *logger) start() {
	h.s.t.Helper()
	ln := h.s.listenAt(h.name, hostPort)
	h.mu.Lock()
	h.ln = ln
	h.mu.Unlock()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			h.mu.Lock()
			if h.ln != ln {
				conn.Close()
			} else {
				h.count++
				h.conns[conn] = true
				if h.greets {
					_, _ = io.WriteString(conn, h.name+"\n") // or it ends when it is read
				}
				go h.serve(conn.(*net.TCPConn), h.count)
			}
			h.mu.Unlock()
		}
	}()
}

// kill closes its listener and resets its connections, as the end of a process
// does.
func (h *logger) kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ln != nil {
		h.ln.Close()
		h.ln = nil
	}
	for conn := range h.conns {
		_ = conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
}

func (h *logger) serve(conn *net.TCPConn, number int) {
	defer func() {
		conn.Close()
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.conns, conn)
	}()
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	instance, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	buf, control := make([]byte, 4096), make([]byte, 128)
	for {
		var n, size int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, size, _, _, failed = unix.Recvmsg(int(fd), buf, control, 0)
			return failed != unix.EAGAIN
		})
		if err != nil || failed != nil || n == 0 {
			return
		}
		h.mu.Lock()
		fmt.Fprintln(h.log, arrived(control[:size]), instance, number, n)
		h.mu.Unlock()
		if _, err := io.WriteString(conn, h.name+"\n"); err != nil {
			return
		}
	}
}

// arrived is when the last of what was read arrived, or now where the kernel has
// not noted it.
func arrived(control []byte) int64 {
	messages, _ := unix.ParseSocketControlMessage(control)
	for i := range messages {
		if m := &messages[i]; m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})) {
			at := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			return at.Nano()
		}
	}
	return time.Now().UnixNano()
}

// caller is the client of one instance: it asks and waits for the answer, over
// one connection for as long as that lives.
type caller struct {
	mu       sync.Mutex // guards everything below
	served   time.Time  // when it last got an answer
	by       string     // from whom
	lost     int        // connections that ended
	answered int
}

func (s *site) newCaller(member string) *caller {
	c := &caller{}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			c.call(ctx, nodes[member]+":"+relayPort, s.patience)
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	s.t.Cleanup(func() { stop(); <-done })
	return c
}

// call uses one connection until it ends.
func (c *caller) call(ctx context.Context, addr string, patience time.Duration) {
	conn, err := (&net.Dialer{Timeout: patience / 2}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	buf := make([]byte, 100)
	for counted := false; ; {
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, err := io.WriteString(conn, "ask\n")
		n := 0
		if err == nil {
			n, err = conn.Read(buf)
		}
		c.mu.Lock()
		if err != nil {
			if counted {
				c.lost++
			}
			c.mu.Unlock()
			return
		}
		counted = true
		c.served, c.by = time.Now(), strings.TrimSpace(string(buf[:n]))
		c.answered++
		c.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
	}
}

// see returns what the caller of an instance saw last.
func (s *site) see(member string) (served time.Time, by string, lost int) {
	c := s.clients[member]
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.served, c.by, c.lost
}

// lost is the number of connections that clients lost.
func (s *site) lost() (n int) {
	for _, name := range memberNames {
		_, _, lost := s.see(name)
		n += lost
	}
	return n
}

// awaitServed waits until the clients of all instances are served, from now on,
// by one host, and returns how long that took.
func (s *site) awaitServed(what string) time.Duration {
	s.t.Helper()
	begin := time.Now()
	proctest.Until(s.t, what+": the clients of all instances are served by one host", func() bool {
		by := map[string]bool{}
		for _, name := range memberNames {
			served, host, _ := s.see(name)
			if served.Before(begin) {
				return false
			}
			by[host] = true
		}
		return len(by) == 1
	})
	return time.Since(begin)
}

func (s *site) triggers() string { return filepath.Join(s.dir, "triggers.log") }

// inOrder checks the logs of the hosts and of the triggers so far, and returns
// how many reads and epochs they have.
func (s *site) inOrder() (reads, epochs int) {
	s.t.Helper()
	var all []arrival
	for _, name := range slices.Sorted(maps.Keys(s.hosts)) {
		h := s.hosts[name]
		h.mu.Lock()
		log := lines(h.log.Name())
		h.mu.Unlock()
		some, err := readArrivals(nodes[name], log)
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, some...)
	}
	barriers, err := readBarriers(lines(s.triggers()))
	if err != nil {
		s.t.Fatal(err)
	}
	wrong := disorder(all, barriers)
	for _, text := range wrong[:min(len(wrong), 20)] {
		s.t.Error(text)
	}
	if len(wrong) > 0 {
		s.t.Errorf("%d faults in the order of %d reads and %d epochs: %v", len(wrong), len(all), len(barriers), barriers)
	}
	return len(all), len(barriers)
}
