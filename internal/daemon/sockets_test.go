package daemon

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"reflect"
	"syscall"
	"testing"

	"understudy/config"
)

// passed prints the sockets that were passed to a child process.
func passed() {
	sockets, err := PassedSockets()
	again, _ := PassedSockets()
	_, there := os.LookupEnv("LISTEN_FDS")
	for _, s := range sockets {
		name, sockErr := syscall.Getsockname(s.Descriptor)
		port := 0
		if a, ok := name.(*syscall.SockaddrInet4); ok {
			port = a.Port
		}
		fmt.Printf("%q on port %d %v\n", s.Name, port, sockErr)
	}
	fmt.Println("error", err, "again", len(again), "environment", there)
}

func TestPassedSockets(t *testing.T) {
	var files []*os.File
	var ports []int
	for range 2 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		file, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		l.Close()
		files = append(files, file)
	}
	both := func(a, b string) string {
		return fmt.Sprintf("%q on port %d <nil>\n%q on port %d <nil>\n", a, ports[0], b, ports[1])
	}
	for _, tt := range []struct{ name, pid, n, names, want string }{
		{"none", "", "", "", ""},
		{"another process's", "1", "2", "", ""},
		{"no number", "$$", "many", "", ""},
		{"none at all", "$$", "0", "", ""},
		{"without names", "$$", "2", "", both("", "")},
		{"with names", "$$", "2", "orders:understudy.socket", both("orders", "understudy.socket")},
		{"an empty name", "$$", "2", ":mail", both("", "mail")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// LISTEN_PID is only known after the fork.
			cmd := exec.Command("/bin/sh", "-c", "export LISTEN_PID="+tt.pid+`; exec "$0"`, os.Args[0])
			cmd.Env = append(os.Environ(), "DAEMON_TEST_PASSED=1", "LISTEN_FDS="+tt.n, "LISTEN_FDNAMES="+tt.names)
			cmd.ExtraFiles = files
			out, err := cmd.CombinedOutput()
			want := tt.want + "error <nil> again 0 environment false\n"
			if err != nil || string(out) != want {
				t.Errorf("%v\n%s\nwant\n%s", err, out, want)
			}
		})
	}
}

func TestDescriptorsOfRelay(t *testing.T) {
	sockets := []Socket{{3, "mail"}, {4, "orders"}, {5, "mail"}}
	if got, want := SocketNames(sockets), []string{"mail", "orders", "mail"}; !reflect.DeepEqual(got, want) {
		t.Errorf("names %v, want %v", got, want)
	}
	if got, want := descriptorsOf(sockets, config.Relay{Sockets: []int{0, 2}}), []int{3, 5}; !reflect.DeepEqual(got, want) {
		t.Errorf("descriptors %v, want %v", got, want)
	}
	if got := descriptorsOf(sockets, config.Relay{}); got != nil {
		t.Errorf("descriptors %v of a relay without sockets", got)
	}
}
