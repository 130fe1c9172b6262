//go:build linux

package etcd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	clientv3 "go.etcd.io/etcd/client/v3"

	"understudy/cluster"
	"understudy/internal/proctest"
)

// server is an etcd of one member, with its data in a directory of the test.
type server struct {
	addr string
	args []string
	cmd  *exec.Cmd
	t    *testing.T
}

// startServer starts an etcd, or skips the test where none is installed.
func startServer(t *testing.T) *server {
	t.Helper()
	program, err := exec.LookPath("etcd")
	if err != nil {
		t.Skip("SKIPPED: etcd is not installed (make test-deps)")
	}
	s := &server{t: t, addr: proctest.FreeAddr(t)}
	peer := "http://" + proctest.FreeAddr(t)
	s.args = []string{
		program, "--name", "one", "--data-dir", t.TempDir(), "--log-level", "error",
		"--listen-client-urls", "http://" + s.addr, "--advertise-client-urls", "http://" + s.addr,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "one=" + peer,
	}
	t.Cleanup(s.kill)
	s.start()
	return s
}

func (s *server) start() {
	s.t.Helper()
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// newStore returns a Store of an etcd that answers.
func newStore(t *testing.T, endpoints ...string) *Store {
	t.Helper()
	s, err := New(Config{Endpoints: endpoints, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	proctest.Until(t, "etcd answers", func() bool {
		ctx, stop := context.WithTimeout(t.Context(), 5*time.Second)
		defer stop()
		_, err := s.Read(ctx, "/")
		return err == nil
	})
	return s
}

func TestTransact(t *testing.T) {
	// The first endpoint refuses connections: the second is used.
	store := newStore(t, proctest.FreeAddr(t), startServer(t).addr)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	transact := func(tr cluster.Transaction) cluster.Result {
		t.Helper()
		res, err := store.Transact(ctx, tr)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}

	changed := make(chan cluster.KeyValue, 10)
	watched := make(chan error, 1)
	watching, end := context.WithCancel(ctx)
	go func() {
		watched <- store.Watch(watching, "/c/", func(kv cluster.KeyValue) { changed <- kv })
	}()

	res := transact(cluster.Transaction{Key: "/c/a", Value: []byte("1"), Prefix: "/c/"})
	if !res.OK || string(res.Key.Value) != "1" || res.Key.Revision == 0 || len(res.Found) != 1 {
		t.Fatalf("the first write: %+v", res)
	}
	first := res.Key.Revision
	res = transact(cluster.Transaction{Key: "/c/a", Value: []byte("2"), Prefix: "/c/"})
	if res.OK || string(res.Key.Value) != "1" || res.Key.Revision != first {
		t.Errorf("a write that expects no key: %+v", res)
	}
	res = transact(cluster.Transaction{Key: "/c/b", Value: []byte("3"), Expect: first})
	if res.OK || res.Key.Revision != 0 {
		t.Errorf("a write that expects another key: %+v", res)
	}
	res = transact(cluster.Transaction{Key: "/c/a", Value: []byte("4"), Expect: first, Prefix: "/none/"})
	if !res.OK || string(res.Key.Value) != "4" || res.Key.Revision <= first || len(res.Found) != 0 {
		t.Errorf("a write that expects the key as it is: %+v", res)
	}
	found, err := store.Read(ctx, "/c/")
	if err != nil || len(found) != 1 || string(found[0].Value) != "4" {
		t.Errorf("read: %+v, %v", found, err)
	}

	// The watch may have begun late, so it gets something to see until it sees it.
	seen := func() bool {
		res = transact(cluster.Transaction{Key: "/c/a", Value: []byte("5"), Expect: res.Key.Revision})
		select {
		case kv := <-changed:
			return kv.Key == "/c/a" && string(kv.Value) == "5"
		case <-time.After(50 * time.Millisecond):
			return false
		}
	}
	proctest.Until(t, "the watch reports a write", seen)
	end()
	if err := <-watched; err != nil {
		t.Errorf("the watch ends with %v", err)
	}
}

// An endpoint that accepts connections and never answers, like one that is cut
// off from its majority, costs one request.
func TestSilentEndpoint(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	alone, err := New(Config{Endpoints: []string{silent.Addr().String()}, Timeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(alone.Close)
	long, end := context.WithTimeout(t.Context(), time.Minute)
	defer end()
	if _, err := alone.Read(long, "/"); !errors.Is(err, errSilent) {
		t.Errorf("read: %v, want that it does not answer", err)
	}
	store := newStore(t, silent.Addr().String(), startServer(t).addr)
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if _, err := store.Read(ctx, "/"); err != nil {
		t.Errorf("after the first request: %v", err)
	}
}

// An endpoint that is away is tried again and again, so that it is used soon when it is
// back. (The default of gRPC would have tried it four times in the same time.)
func TestAwayEndpointIsTried(t *testing.T) {
	away, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { away.Close() })
	var tried atomic.Int32
	go func() {
		for {
			conn, err := away.Accept()
			if err != nil {
				return
			}
			tried.Add(1)
			conn.Close()
		}
	}()
	s, err := New(Config{Endpoints: []string{away.Addr().String()}, Timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	begin := time.Now()
	proctest.Until(t, "it is tried ten times", func() bool {
		ctx, stop := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer stop()
		if _, err := s.Read(ctx, "/"); err == nil {
			t.Error("it answers")
		}
		return tried.Load() >= 10
	})
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it was tried ten times in %v", took)
	}
}

// exchange is one compare-and-swap, by values: each is written once.
type exchange struct {
	expect, value string
	unknown       bool // there was no answer
}

// outcome is its answer.
type outcome struct {
	ok  bool
	now string // the value afterwards
}

// register is the promise of a store: one value, exchanged in one step. An
// exchange without an answer has happened at some time, or never; its end is at
// the end of the history, so both are possible.
var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		now, in, out := state.(string), input.(exchange), output.(outcome)
		if in.unknown {
			if now == in.expect {
				now = in.value
			}
			return true, now
		}
		if now == in.expect {
			return out.ok && out.now == in.value, in.value
		}
		return !out.ok && out.now == now, now
	},
}

// The history of members that exchange one key, while etcd is killed, is that of
// a register.
func TestHistoryIsLinearizable(t *testing.T) {
	server := startServer(t)
	store := newStore(t, server.addr)

	var mu sync.Mutex
	var history []porcupine.Operation
	answered := 0
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return answered
	}
	begin := time.Now()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var members sync.WaitGroup
	for member := range 4 {
		members.Go(func() {
			value, revision := "", int64(0)
			for n := 0; ctx.Err() == nil; n++ {
				in := exchange{expect: value, value: fmt.Sprintf("%d of %d", n, member)}
				request, end := context.WithTimeout(context.WithoutCancel(ctx), 300*time.Millisecond)
				call := time.Since(begin)
				res, err := store.Transact(request, cluster.Transaction{Key: "/h", Value: []byte(in.value), Expect: revision})
				end()
				op := porcupine.Operation{ClientId: member, Input: in, Call: int64(call), Return: int64(time.Since(begin))}
				if err != nil {
					in.unknown = true
					op.Input, op.Output, op.Return = in, outcome{}, math.MaxInt64
					op.ClientId = -1
				} else {
					op.Output = outcome{res.OK, string(res.Key.Value)}
					value, revision = string(res.Key.Value), res.Key.Revision
				}
				mu.Lock()
				history = append(history, op)
				if err == nil {
					answered++
				}
				mu.Unlock()
				if err == nil {
					time.Sleep(5 * time.Millisecond)
				} else {
					time.Sleep(600 * time.Millisecond) // each without an answer makes the check longer
				}
			}
		})
	}
	for range 2 {
		enough := count() + 60
		proctest.Until(t, "members exchange the key", func() bool { return count() >= enough })
		server.kill()
		server.start()
	}
	enough := count() + 60
	proctest.Until(t, "members exchange the key after the last kill", func() bool { return count() >= enough })
	stop()
	members.Wait()

	for i := range history {
		if history[i].ClientId < 0 {
			history[i].ClientId = 4 + i // it is not over, so its client does nothing else
		}
	}
	if got := porcupine.CheckOperationsTimeout(register, history, time.Minute); got != porcupine.Ok {
		t.Errorf("the history of %d exchanges is %s", len(history), got)
	}
	t.Logf("%d exchanges, %d answered", len(history), count())
}

// An endpoint that refuses connections costs no time, and the error says so.
func TestRefusedEndpoint(t *testing.T) {
	away := proctest.FreeAddr(t)
	store, err := New(Config{Endpoints: []string{away}, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	_, err = store.Read(ctx, "/")
	if err == nil || ctx.Err() != nil || err.Error() != "etcd at "+away+": dial tcp "+away+": connect: connection refused" {
		t.Errorf("read: %v, want connection refused, named, at once", err)
	}
}

// A login is made when etcd wants one, with the password as it is in the file then.
func TestLogin(t *testing.T) {
	server := startServer(t)
	admin := newStore(t, server.addr)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c := admin.clients[0]
	must(c.RoleAdd(ctx, "understudy"))
	must(c.RoleGrantPermission(ctx, "understudy", "/understudy/", clientv3.GetPrefixRangeEnd("/understudy/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	must(c.UserAdd(ctx, "root", "of root"))
	must(c.UserGrantRole(ctx, "root", "root"))
	must(c.UserAdd(ctx, "proxy", "first"))
	must(c.UserGrantRole(ctx, "proxy", "understudy"))

	file := filepath.Join(t.TempDir(), "password")
	say := func(word string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(word+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	say("first")
	// New succeeds although the first endpoint is away.
	store, err := New(Config{Endpoints: []string{proctest.FreeAddr(t), server.addr}, User: "proxy", PasswordFile: file, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	revision := int64(0)
	write := func() error {
		ctx, stop := context.WithTimeout(ctx, 5*time.Second)
		defer stop()
		res, err := store.Transact(ctx, cluster.Transaction{Key: "/understudy/a", Value: []byte("1"), Expect: revision, Prefix: "/understudy/"})
		if err == nil && !res.OK {
			t.Fatalf("expected %d: %+v", revision, res)
		}
		if err == nil {
			revision = res.Key.Revision
		}
		return err
	}
	if err := write(); err != nil {
		t.Fatalf("before etcd wants a login: %v", err)
	}
	must(c.AuthEnable(ctx))
	if err := write(); err != nil {
		t.Errorf("when etcd wants a login: %v", err)
	}
	seen := make(chan string, 1)
	watching, end := context.WithCancel(ctx)
	watched := make(chan error, 1)
	go func() {
		watched <- store.Watch(watching, "/understudy/", func(kv cluster.KeyValue) {
			select {
			case seen <- kv.Key:
			default:
			}
		})
	}()
	proctest.Until(t, "the watch reports a write", func() bool {
		if err := write(); err != nil {
			t.Fatal(err)
		}
		return len(seen) > 0
	})
	end()
	if err := <-watched; err != nil {
		t.Errorf("the watch ends with %v", err)
	}
	if _, err := store.Read(ctx, "/other/"); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("what the user may not read: %v", err)
	}

	// etcd forgets its tokens when it starts again, and the password has changed.
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{server.addr}, Username: "root", Password: "of root", DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	must(root.UserChangePassword(ctx, "proxy", "second"))
	server.kill()
	server.start()
	proctest.Until(t, "the old password is refused, and said", func() bool {
		err := write()
		return err != nil && strings.Contains(err.Error(), "login as proxy") && strings.Contains(err.Error(), "authentication failed, invalid user ID or password")
	})
	say("second")
	proctest.Until(t, "the new password is accepted", func() bool { return write() == nil })
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := write(); err != nil {
		t.Errorf("logged in, without the file: %v", err)
	}
}
