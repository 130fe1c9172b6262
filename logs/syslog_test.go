package logs

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/internal/proctest"
)

// openSyslog opens a log to a socket in place of /dev/log.
func openSyslog(t *testing.T, path string, asJSON bool, trouble *failures) *Log {
	t.Helper()
	out := newSyslog("understudy", asJSON, []string{path}, trouble)
	out.link.retry = time.Millisecond
	return openOutput(t, out, trouble, hclog.LoggerOptions{Name: "understudy", Level: hclog.Trace, JSONFormat: asJSON, DisableTime: !asJSON})
}

// syslogd listens for datagrams at path.
func syslogd(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(patience))
	t.Cleanup(func() { conn.Close() })
	return conn
}

func receive(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	buf := make([]byte, 1<<20)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func TestSyslog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	server := syslogd(t, path)
	log := openSyslog(t, path, false, quiet())
	for _, tt := range []struct {
		level hclog.Level
		pri   int
	}{{hclog.Error, 27}, {hclog.Warn, 28}, {hclog.Info, 30}, {hclog.Debug, 31}, {hclog.Trace, 31}} {
		log.Logger().Named("relay").Log(tt.level, "something happened", "client", "192.0.2.1:5", "text", "a\nb\x1b")
		want := regexp.MustCompile(fmt.Sprintf(`^<%d>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d understudy\[%d\]: `+
			`understudy\.relay: something happened: client=192\.0\.2\.1:5\\n  text=\\n  \| a\\n  \| b\\x1b$`, tt.pri, os.Getpid()))
		if got := receive(t, server); !want.MatchString(got) {
			t.Errorf("level %v: got %q, want %v", tt.level, got, want)
		}
	}
}

func TestSyslogInJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	server := syslogd(t, path)
	log := openSyslog(t, path, true, quiet())
	log.Logger().Warn("something happened", "number", 5)
	if got := receive(t, server); !strings.HasPrefix(got, "<28>") ||
		!regexp.MustCompile(`\]: \{"@level":"warn",.*"@timestamp":".*"number":5\}$`).MatchString(got) {
		t.Errorf("got %q", got)
	}
}

func TestSyslogOverAStream(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	log := openSyslog(t, path, false, quiet())
	for round := range 2 { // in the second the server has gone and come
		log.Logger().Info("one", "round", round)
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(patience))
		log.Logger().Info("two", "round", round)
		reader := bufio.NewReader(conn)
		for _, name := range []string{"one", "two"} {
			want := fmt.Sprintf("understudy: %s: round=%d\x00", name, round)
			if got, err := reader.ReadString(0); !strings.HasPrefix(got, "<30>") || !strings.HasSuffix(got, want) {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
		}
		conn.Close()
	}
}

func TestSyslogComesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	tale := &buffer{}
	log := openSyslog(t, path, false, &failures{who: "understudy", output: Syslog, w: tale})
	log.Logger().Info("one")
	proctest.Until(t, "trouble is reported", func() bool { return strings.Contains(tale.String(), "syslog does not work") })
	for _, message := range []string{"one", "two", "three"} {
		if message != "one" {
			log.Logger().Info(message)
		}
		server := syslogd(t, path)
		if got := receive(t, server); !strings.HasSuffix(got, "understudy: "+message) {
			t.Errorf("got %q, want %s", got, message)
		}
		server.Close()
		os.Remove(path)
	}
	log.Close(time.Millisecond)
	if log.queue.lost.Load() != 0 || !strings.Contains(tale.String(), "works again") {
		t.Errorf("%d lines lost, reported %q", log.queue.lost.Load(), tale.String())
	}
}

func TestStuckSyslogDelaysNoCaller(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	server := syslogd(t, path)
	log := openSyslog(t, path, false, quiet())
	const records = 30_000
	flood(t, log, records)
	kept, reported := 0, 0
	for kept+reported < records {
		text := receive(t, server)
		if strings.Contains(text, "something happened") {
			kept++
		}
		reported += reportedLost(text)
	}
	if reported == 0 || kept == 0 || kept+reported != records || uint64(reported) != log.queue.lost.Load() {
		t.Errorf("%d kept and %d reported lost of %d records; Lost is %d", kept, reported, records, log.queue.lost.Load())
	}
}
