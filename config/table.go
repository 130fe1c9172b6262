package config

import (
	"strings"
	"time"
)

// Setting describes one setting: its names, its default, its help, and how its
// text becomes a value.
type Setting struct {
	Flag    string // long name, without dashes
	Short   rune   // short name, or zero
	Env     string // environment variable
	Default string // as an operator would write it; empty for none
	Group   string // heading in the help
	Value   string // name of the value in the help; empty for a switch
	Help    string // one line
	List    bool   // comma-separated or repeated
	Secret  bool   // masked when printed

	parse parser[*draft]
}

// OfRelay says whether each relay has a value of its own.
func (s *Setting) OfRelay() bool {
	switch s.Group {
	case listening, electing, scripts, switching, connections:
		return true
	}
	return false
}

// key is the setting's name in the file.
func (s *Setting) key() string {
	if s.Flag == "bind" {
		return "listen"
	}
	return strings.ReplaceAll(s.Flag, "-", "_")
}

// Switch says whether the flag needs no value.
func (s *Setting) Switch() bool { return s.Value == "" }

// Table returns every setting in the order of the help.
func Table() []Setting { return append([]Setting(nil), table...) }

// The groups of the help.
const (
	listening   = "Listening"
	electing    = "Hosts and election"
	scripts     = "Scripts"
	switching   = "Switching"
	connections = "Connections"
	answering   = "Health verdicts over HTTP"
	operating   = "Operating"
	logs        = "Logs"
)

var table = environmentNames([]Setting{
	{Flag: "bind", Short: 'b', Group: listening, Value: "ADDR", List: true,
		Help:  "listen on address:port or unix:/path (repeatable; not with --port)",
		parse: each(bindAddress, func(d *draft, v string) { d.relay.Listen = append(d.relay.Listen, v) })},
	{Flag: "port", Short: 'p', Group: listening, Value: "N",
		Help:  "listen on this port of every address, IPv4 and IPv6",
		parse: one(port, func(d *draft, n int) { d.relay.Listen = append(d.relay.Listen, ":"+itoa(n)) })},
	{Flag: "accept-proxy", Group: listening,
		Help:  "expect a PROXY protocol header (v1 or v2) from each client",
		parse: one(onOff, func(d *draft, v bool) { d.relay.AcceptProxy = v })},
	{Flag: "allow", Group: listening, Value: "CIDR", List: true,
		Help:  "networks that clients may come from; all when not given",
		parse: each(prefix, func(d *draft, v prefixValue) { d.relay.Allow = append(d.relay.Allow, v) })},
	{Flag: "max-connections", Group: listening, Value: "N",
		Help:  "limit of open connections; what the descriptor limit allows when not given",
		parse: one(number(1, 10_000_000), func(d *draft, n int) { d.relay.MaxConnections = n })},

	{Flag: "hosts", Short: 'H', Group: electing, Value: "LIST", List: true,
		Help:  "hosts in order of preference: name:port, [::1]:port, unix:/path",
		parse: hosts},
	{Flag: "interval", Default: "1s", Group: electing, Value: "D",
		Help:  "time between checks of a host",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.Interval = v })},
	{Flag: "fast-interval", Default: "100ms", Group: electing, Value: "D",
		Help:  "time between checks of a primary that is under suspicion",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.FastInterval = v })},
	{Flag: "timeout", Default: "1s", Group: electing, Value: "D",
		Help:  "time that one check may take",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.Timeout = v })},
	{Flag: "rise", Default: "2", Group: electing, Value: "N",
		Help:  "passed checks in a row until a host is up (first election: one)",
		parse: one(number(1, 1000), func(d *draft, n int) { d.relay.Rise = n })},
	{Flag: "fall", Default: "3", Group: electing, Value: "N",
		Help:  "failed checks in a row until a host is down",
		parse: one(number(1, 1000), func(d *draft, n int) { d.relay.Fall = n })},
	{Flag: "pong-port", Env: "PONG_PORTS", Group: electing, Value: "N", List: true,
		Help:  "a host is usable only if its HTTP port N answers 200 and pong (repeatable)",
		parse: each(port, func(d *draft, n int) { d.relay.PongPorts = append(d.relay.PongPorts, n) })},
	{Flag: "pong-path", Default: "/ping", Group: electing, Value: "PATH",
		Help:  "path that --pong-port asks for",
		parse: one(urlTarget, func(d *draft, v string) { d.relay.PongPath = v })},
	{Flag: "max-backoff", Short: 'B', Default: "60s", Group: electing, Value: "D",
		Help:  "longest wait between rounds of selection; at least 1s",
		parse: one(duration(time.Second), func(d *draft, v time.Duration) { d.relay.MaxBackoff = v })},

	{Flag: "check-host", Short: 'c', Group: scripts, Value: "FILE",
		Help:  "check script: a host is usable only if it exits 0",
		parse: one(path, func(d *draft, v string) { d.relay.CheckHost = v })},
	{Flag: "check-interval", Default: "2s", Group: scripts, Value: "D",
		Help:  "time between runs of the check script",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.CheckInterval = v })},
	{Flag: "check-timeout", Default: "5s", Group: scripts, Value: "D",
		Help:  "time that the check script may take",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.CheckTimeout = v })},
	{Flag: "on-failover", Short: 'f', Group: scripts, Value: "PATH",
		Help:  "trigger script, or directory of them, to run after an election",
		parse: one(path, func(d *draft, v string) { d.relay.OnFailover = v })},
	{Flag: "trigger-timeout", Default: "30s", Group: scripts, Value: "D",
		Help:  "time that each trigger may take",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.TriggerTimeout = v })},
	{Flag: "trigger-policy", Default: "continue", Group: scripts, Value: "POLICY",
		Help:  "after a failed trigger: continue, or abort and try the next host",
		parse: one(word("continue", "abort"), func(d *draft, v string) { d.relay.TriggerAbort = v == "abort" })},
	{Flag: "scripts-dir", Group: scripts, Value: "DIR",
		Help:  "use check-host.sh and triggers.d in it where they exist and the flags above are not given",
		parse: one(path, func(*draft, string) {})}, // lookIntoScriptsDir

	{Flag: "hold", Default: "10s", Group: switching, Value: "D",
		Help:  "time that clients wait for a primary before they are refused; 0 refuses at once",
		parse: one(duration(0), func(d *draft, v time.Duration) { d.relay.Hold = v })},
	{Flag: "fence", Default: "now", Group: switching, Value: "HOW",
		Help:  "connections to the old primary: reset now, drain=D, or keep",
		parse: one(fence, func(d *draft, v Fence) { d.relay.Fence = v })},
	{Flag: "failback", Default: "never", Group: switching, Value: "D",
		Help:  "return to a preferred host once it was up for that long, or never",
		parse: one(failback, func(d *draft, v time.Duration) { d.relay.Failback = v })},

	{Flag: "connect-timeout", Default: "3s", Group: connections, Value: "D",
		Help:  "time that a client's connect to the primary may take",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.ConnectTimeout = v })},
	{Flag: "idle-timeout", Default: "0", Group: connections, Value: "D",
		Help:  "end a connection over which nothing passed for that long; 0 never does",
		parse: one(duration(0), func(d *draft, v time.Duration) { d.relay.IdleTimeout = v })},
	{Flag: "user-timeout", Default: "20s", Group: connections, Value: "D",
		Help:  "time that sent data may stay unacknowledged (TCP_USER_TIMEOUT); 0 leaves it to the system",
		parse: one(duration(0), func(d *draft, v time.Duration) { d.relay.UserTimeout = v })},
	{Flag: "drain-timeout", Default: "30s", Group: connections, Value: "D",
		Help:  "time that connections may finish at the end of the program; 0 resets them at once",
		parse: one(duration(0), func(d *draft, v time.Duration) { d.relay.DrainTimeout = v })},
	{Flag: "send-proxy", Default: "off", Group: connections, Value: "VERSION",
		Help:  "send each host a PROXY protocol header: v1, v2 or off",
		parse: one(word("off", "v1", "v2"), func(d *draft, v string) { d.relay.SendProxy = map[string]int{"v1": 1, "v2": 2}[v] })},
	{Flag: "source", Group: connections, Value: "IP",
		Help:  "local address that hosts are connected from",
		parse: one(ipAddress, func(d *draft, v addrValue) { d.relay.Source = v })},
	{Flag: "loops", Default: "auto", Group: connections, Value: "N",
		Help:  "number of event loops; auto is one for each processor, 16 at most",
		parse: one(numberOr("auto", 1, 1024), func(d *draft, n int) { d.relay.Loops = n })},
	{Flag: "spin", Default: "auto", Group: connections, Value: "WHEN",
		Help:  "let an event loop poll for some microseconds before it sleeps: auto or off",
		parse: one(word("auto", "off"), func(d *draft, v string) { d.relay.Spin = v == "auto" })},

	{Flag: "http", Group: answering, Value: "ADDR",
		Help:  "answer health verdicts on address:port",
		parse: one(httpAddress, func(d *draft, v string) { d.settings.HTTP.Listen = v })},
	{Flag: "lport", Env: "LPORTS", Group: answering, Value: "N", List: true,
		Help:  "replay each ping to this local port too (repeatable)",
		parse: each(port, func(d *draft, n int) { d.ping.Ports = append(d.ping.Ports, n) })},
	{Flag: "ping-path", Default: "/ping", Group: answering, Value: "PATH", List: true,
		Help:  "path of the verdict; one that ends in / matches everything below (repeatable)",
		parse: each(urlPath, func(d *draft, v string) { d.pingPaths = append(d.pingPaths, v) })},
	{Flag: "ping-timeout", Default: "2s", Group: answering, Value: "D",
		Help:  "time that all answers to a ping may take; at most 9s",
		parse: one(durationWithin(time.Millisecond, 9*time.Second), func(d *draft, v time.Duration) { d.ping.Timeout = v })},
	{Flag: "fail-status", Default: "auto", Group: answering, Value: "STATUS",
		Help:  "status of a failing verdict: auto (never a 2xx), keep, or a number from 400 to 599",
		parse: one(failStatus, func(d *draft, v string) { d.ping.FailStatus = v })},

	{Flag: "status-dir", Group: answering, Value: "DIR",
		Help:  "answer /status?SERVICE=&PORT=&VIP= from flag files in this directory",
		parse: one(path, func(d *draft, v string) { d.statusDir = v })},

	{Flag: "endpoints", Group: answering, Value: "LIST", List: true,
		Help:  "replay what no other path answers to these URLs, one after the other until one has a usable answer",
		parse: each(endpointURL, func(d *draft, v string) { d.endpoints.URLs = append(d.endpoints.URLs, v) })},
	{Flag: "fanout", Group: answering,
		Help:  "ask all --endpoints at once; the first usable answer wins",
		parse: one(onOff, func(d *draft, v bool) { d.endpoints.Race = v })},
	{Flag: "terminal-responses", Default: "100,200,300,400", Group: answering, Value: "LIST", List: true,
		Help:  "classes of status that make an answer of --endpoints usable: 200 stands for 200 to 299",
		parse: each(statusClass, func(d *draft, v string) { d.endpoints.Status = append(d.endpoints.Status, v) })},
	{Flag: "preserve-host", Group: answering,
		Help:  "send --endpoints the Host of the request instead of their own",
		parse: one(onOff, func(d *draft, v bool) { d.endpoints.PreserveHost = v })},
	{Flag: "endpoint-timeout", Default: "5s", Group: answering, Value: "D",
		Help:  "time until the answer of one of --endpoints has to begin",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.endpoints.Timeout = v })},
	{Flag: "http-cert", Group: answering, Value: "FILE",
		Help:  "certificate of --http, which speaks TLS then; needs --http-key",
		parse: one(path, func(d *draft, v string) { d.settings.HTTP.Cert = v })},
	{Flag: "http-key", Group: answering, Value: "FILE",
		Help:  "private key of --http-cert",
		parse: one(path, func(d *draft, v string) { d.settings.HTTP.Key = v })},

	{Flag: "config", Group: operating, Value: "FILE",
		Help:  "configuration file (YAML): the same settings with _ for -, several relays, probes, routes",
		parse: one(path, func(d *draft, v string) { d.settings.File = v })},
	{Flag: "control", Default: "auto", Group: operating, Value: "PATH",
		Help:  "unix socket for the commands that look into a running process; auto finds a place, off has none",
		parse: one(controlPath, func(d *draft, v string) { d.settings.Control = v })},
	{Flag: "state-dir", Group: operating, Value: "DIR",
		Help:  "remember primary, epoch, locks and incidents in this directory across restarts",
		parse: one(path, func(d *draft, v string) { d.settings.StateDir = v })},

	{Flag: "log-level", Default: "info", Group: logs, Value: "LEVEL",
		Help: "trace, debug, info, warn, error or off",
		parse: one(word("trace", "debug", "info", "warn", "error", "off"),
			func(d *draft, v string) { d.settings.Log.Level = v })},
	{Flag: "log-format", Default: "text", Group: logs, Value: "FORMAT",
		Help:  "text or json",
		parse: one(word("text", "json"), func(d *draft, v string) { d.settings.Log.JSON = v == "json" })},
	{Flag: "log-output", Default: "stderr", Group: logs, Value: "WHERE",
		Help:  "stderr, stdout, syslog, gelf+tcp://host:port, gelf+udp://host:port or the path of a file",
		parse: one(logOutput, func(d *draft, v string) { d.settings.Log.Output = v })},
})

// environmentNames fills in the variables that are named like their flag.
func environmentNames(settings []Setting) []Setting {
	for i := range settings {
		s := &settings[i]
		if s.Env == "" {
			s.Env = strings.ToUpper(strings.ReplaceAll(s.Flag, "-", "_"))
		}
	}
	return settings
}

// lookup returns the setting of a flag that exists.
func lookup(flag string) *Setting {
	for i := range table {
		if table[i].Flag == flag {
			return &table[i]
		}
	}
	panic("config: no setting --" + flag)
}
