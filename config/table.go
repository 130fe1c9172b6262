package config

import (
	"io/fs"
	"strings"
	"time"

	"understudy/internal/greeting"
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

	verbatim bool // white space around it belongs to the value

	parse parser[*draft]
}

// OfRelay reports whether each relay has its own value.
func (s *Setting) OfRelay() bool {
	switch s.Group {
	case listening, electing, asking, scripts, switching, connections, watching:
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

// Switch reports whether the flag needs no value.
func (s *Setting) Switch() bool { return s.Value == "" }

// Table returns every setting in the order of the help.
func Table() []Setting { return append([]Setting(nil), table...) }

// The groups of the help.
const (
	listening   = "Listening"
	electing    = "Hosts and election"
	asking      = "Roles of databases"
	scripts     = "Scripts"
	switching   = "Switching"
	connections = "Connections"
	watching    = "Canary"
	answering   = "Health verdicts over HTTP"
	agreeing    = "Several instances"
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
	{Flag: "freebind", Group: listening,
		Help:  "also listen on addresses that this machine does not have yet (IP_FREEBIND)",
		parse: one(onOff, func(d *draft, v bool) { d.relay.Freebind = v })},
	{Flag: "socket-mode", Default: "0660", Group: listening, Value: "MODE",
		Help:  "permissions of unix socket files, in octal; users with write permission can connect",
		parse: one(fileMode, func(d *draft, v fs.FileMode) { d.relay.SocketMode = v })},
	{Flag: "socket-owner", Group: listening, Value: "USER",
		Help:  "owner of unix socket files, by name or number; default: the user of the process",
		parse: one(owner(userID), func(d *draft, v string) { d.relay.SocketOwner = v })},
	{Flag: "socket-group", Group: listening, Value: "GROUP",
		Help:  "group of unix socket files, by name or number; default: the group of the process",
		parse: one(owner(groupID), func(d *draft, v string) { d.relay.SocketGroup = v })},
	{Flag: "accept-proxy", Group: listening,
		Help:  "expect a PROXY protocol header (v1 or v2) from each client",
		parse: one(onOff, func(d *draft, v bool) { d.relay.AcceptProxy = v })},
	{Flag: "allow", Group: listening, Value: "CIDR", List: true,
		Help:  "networks from which clients are accepted; default: all",
		parse: each(prefix, func(d *draft, v prefixValue) { d.relay.Allow = append(d.relay.Allow, v) })},
	{Flag: "max-connections", Group: listening, Value: "N",
		Help:  "limit of open connections; default: as many as the descriptor limit allows",
		parse: one(number(1, 10_000_000), func(d *draft, n int) { d.relay.MaxConnections = n })},

	{Flag: "hosts", Short: 'H', Group: electing, Value: "LIST", List: true,
		Help:  "hosts in order of preference: name:port, [::1]:port, unix:/path",
		parse: hosts},
	{Flag: "interval", Default: "1s", Group: electing, Value: "D",
		Help:  "time between checks of a host",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.Interval = v })},
	{Flag: "fast-interval", Default: "100ms", Group: electing, Value: "D",
		Help:  "time between checks of a suspected primary",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.FastInterval = v })},
	{Flag: "timeout", Default: "1s", Group: electing, Value: "D",
		Help:  "timeout of one check",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.Timeout = v })},
	{Flag: "check-tcp", Default: "auto", Group: electing, Value: "WHAT",
		Help:  "TCP check of a host: auto (a connect, unseen by the service where the system can do that), on (a connection that the service accepts), off (another check takes its place), or a greeting: " + alternatives(greeting.Names()),
		parse: one(word(append([]string{"auto", "on", "off"}, greeting.Names()...)...), func(d *draft, v string) { d.relay.CheckTCP = v })},
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
		Help:  "path that --pong-port requests",
		parse: one(urlTarget, func(d *draft, v string) { d.relay.PongPath = v })},
	{Flag: "max-backoff", Short: 'B', Default: "60s", Group: electing, Value: "D",
		Help:  "longest interval between log messages that no host is usable, and between retries of hosts whose triggers failed; at least 1s",
		parse: one(duration(time.Second), func(d *draft, v time.Duration) { d.relay.MaxBackoff = v })},
	{Flag: "dns-hold", Default: "30s", Group: electing, Value: "D",
		Help:  "time that a host keeps its addresses after DNS reports that the name does not exist; then it is unknown",
		parse: one(duration(0), func(d *draft, v time.Duration) { d.relay.DNSHold = v })},
	{Flag: "stay", Default: "3s", Group: electing, Value: "D",
		Help:  "after a time without a usable host, wait this long for the last primary before another host is elected; 0: do not wait",
		parse: one(duration(0), func(d *draft, v time.Duration) { d.relay.Stay = v })},

	{Flag: "role", Group: asking, Value: "PROTOCOL",
		Help:  "ask each host for its role, in a session that stays: only the primary is usable. postgres, mysql (also MariaDB) or redis (also Valkey)",
		parse: one(word(roleProtocols...), func(d *draft, v string) { d.relay.Role.Protocol = v })},
	{Flag: "role-user", Group: asking, Value: "NAME",
		Help:  "user to log in as; redis: the default user without one",
		parse: one(text, func(d *draft, v string) { d.relay.Role.User = v })},
	{Flag: "role-password-file", Group: asking, Value: "FILE",
		Help:  "file with the password; it is read at each login",
		parse: one(passwordFile, func(d *draft, v string) { d.relay.Role.PasswordFile = v })},
	{Flag: "role-database", Group: asking, Value: "NAME",
		Help:  "database to connect to; default: postgres for PostgreSQL, none for MySQL",
		parse: one(text, func(d *draft, v string) { d.relay.Role.Database = v })},
	{Flag: "role-port", Group: asking, Value: "N",
		Help:  "port of each host to ask, where its own is that of a pool of connections",
		parse: one(port, func(d *draft, v int) { d.relay.Role.Port = v })},
	{Flag: "role-tls", Default: "auto", Group: asking, Value: "MODE",
		Help:  "off, prefer or require (certificates are not verified), verify, or auto: off on loopback and unix sockets, verify elsewhere",
		parse: one(word("auto", "off", "prefer", "require", "verify"), func(d *draft, v string) { d.relay.Role.TLS = v })},
	{Flag: "role-server-name", Group: asking, Value: "NAME",
		Help:  "name in the certificate of the hosts, instead of that of each host",
		parse: one(hostName, func(d *draft, v string) { d.relay.Role.PEM.ServerName = v })},
	{Flag: "role-ca-file", Group: asking, Value: "FILE",
		Help:  "authorities to trust instead of the system's (PEM)",
		parse: one(authorities, func(d *draft, v string) { d.relay.Role.PEM.CA = v })},
	{Flag: "role-cert-file", Group: asking, Value: "FILE",
		Help:  "client certificate; needs --role-key-file",
		parse: one(path, func(d *draft, v string) { d.relay.Role.PEM.Cert = v })},
	{Flag: "role-key-file", Group: asking, Value: "FILE",
		Help:  "private key of --role-cert-file",
		parse: one(path, func(d *draft, v string) { d.relay.Role.PEM.Key = v })},
	{Flag: "role-identity", Group: asking, Value: "ID",
		Help:  "identity of the cluster, which a host must not contradict: the system identifier of PostgreSQL, the name of a replication group, the uuid of a Galera cluster; default: that of the last primary; any: no host is refused for it",
		parse: one(text, func(d *draft, v string) { d.relay.Role.Identity = v })},
	{Flag: "promote", Group: asking,
		Help:  "a replica may be elected too, because a trigger promotes it; clients are connected when it says that it is the primary",
		parse: one(onOff, func(d *draft, v bool) { d.relay.Role.Promote = v })},
	{Flag: "elect", Default: "order", Group: asking, Value: "WHICH",
		Help:  "of several replicas that may be promoted, elect the first in order, or the one with the newest data: order or freshest",
		parse: one(word("order", "freshest"), func(d *draft, v string) { d.relay.Elect = v })},
	{Flag: "max-lag", Default: "16MiB,10s", Group: asking, Value: "LIST", List: true,
		Help:  "what a replica that is promoted may lack at most: bytes where the protocol counts them, a duration elsewhere; 0: no limit",
		parse: each(lag, addLag)},

	{Flag: "check-host", Short: 'c', Group: scripts, Value: "FILE",
		Help:  "check script: a host is usable only if it exits 0",
		parse: one(path, func(d *draft, v string) { d.relay.CheckHost = v })},
	{Flag: "check-interval", Default: "2s", Group: scripts, Value: "D",
		Help:  "time between runs of the check script",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.CheckInterval = v })},
	{Flag: "check-timeout", Default: "5s", Group: scripts, Value: "D",
		Help:  "timeout of the check script",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.CheckTimeout = v })},
	{Flag: "on-failover", Short: 'f', Group: scripts, Value: "PATH",
		Help:  "trigger script, or directory of scripts, to run after an election, before clients are connected",
		parse: one(path, func(d *draft, v string) { d.relay.OnFailover = v })},
	{Flag: "trigger-timeout", Default: "30s", Group: scripts, Value: "D",
		Help:  "timeout of each trigger",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.TriggerTimeout = v })},
	{Flag: "trigger-policy", Default: "continue", Group: scripts, Value: "POLICY",
		Help:  "after a failed trigger: continue, or abort and try the next host",
		parse: one(word("continue", "abort"), func(d *draft, v string) { d.relay.TriggerAbort = v == "abort" })},
	{Flag: "on-standby", Group: scripts, Value: "PATH",
		Help:  "script, or directory of them, to make a host a standby again that came back and is not usable",
		parse: one(path, func(d *draft, v string) { d.relay.OnStandby = v })},
	{Flag: "standby-timeout", Default: "10m", Group: scripts, Value: "D",
		Help:  "time that each script of --on-standby may take",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.StandbyTimeout = v })},
	{Flag: "on-event", Group: scripts, Value: "PATH",
		Help:  "script, or directory of them, to run for events: no-standby, primary-lost, nobody-usable and others",
		parse: one(path, func(d *draft, v string) { d.relay.OnEvent = v })},
	{Flag: "webhook", Group: scripts, Value: "URL", Secret: true,
		Help:  "URL that gets each event as JSON with POST; a secret, so better in the environment or a file",
		parse: webhookURL},
	{Flag: "scripts-dir", Group: scripts, Value: "DIR",
		Help:  "directory with check-host.sh and triggers.d, used where they exist and the flags above are not set",
		parse: one(path, func(*draft, string) {})}, // applyScriptsDir

	{Flag: "hold", Default: "10s", Group: switching, Value: "D",
		Help:  "time that clients wait for a primary before they are refused; 0: refuse at once",
		parse: one(duration(0), func(d *draft, v time.Duration) { d.relay.Hold = v })},
	{Flag: "fence", Default: "now", Group: switching, Value: "HOW",
		Help:  "connections to the old primary: reset now, drain=D, or keep",
		parse: one(fence, func(d *draft, v Fence) { d.relay.Fence = v })},
	{Flag: "failback", Default: "never", Group: switching, Value: "D",
		Help:  "return to a preferred host after it has been up for this time, or never",
		parse: one(failback, func(d *draft, v time.Duration) { d.relay.Failback = v })},
	{Flag: "open-rate", Default: "auto", Group: switching, Value: "RATE",
		Help:  "clients that waited for a primary are connected to it in the order in which they came, so many a second: auto (at first twice the usual number of new clients, 50 at least; doubles each second while the host keeps up), a number, or off (all at once); never so few that hold ends for one of them",
		parse: one(openRate, func(d *draft, v int) { d.relay.OpenRate = v })},
	{Flag: "on-silence", Default: "auto", Group: switching, Value: "WHAT",
		Help:  "when the primary accepts clients, passes its checks and answers nobody: fail (counts as a failed check), alarm (a warning), auto (fail if clients that wait lose nothing by a failover)",
		parse: one(word("auto", "fail", "alarm"), func(d *draft, v string) { d.relay.OnSilence = v })},
	{Flag: "replay", Default: "auto", Group: switching, Value: "WHICH",
		Help:  "send a client's first bytes again to the next host when its host fails before it has answered: auto (openings that are known to have no effect), always or off",
		parse: one(word("auto", "always", "off"), func(d *draft, v string) { d.relay.Replay = v })},

	{Flag: "connect-timeout", Default: "3s", Group: connections, Value: "D",
		Help:  "timeout of connecting a client to the primary",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.ConnectTimeout = v })},
	{Flag: "idle-timeout", Default: "0", Group: connections, Value: "D",
		Help:  "close a connection that carried no data for this time; 0: never",
		parse: one(duration(0), func(d *draft, v time.Duration) { d.relay.IdleTimeout = v })},
	{Flag: "user-timeout", Default: "20s", Group: connections, Value: "D",
		Help:  "reset a connection whose sent data is unacknowledged for this time (TCP_USER_TIMEOUT); 0: the system's default",
		parse: one(duration(0), func(d *draft, v time.Duration) { d.relay.UserTimeout = v })},
	{Flag: "drain-timeout", Default: "30s", Group: connections, Value: "D",
		Help:  "time that open connections may take to finish when the program ends; 0: reset at once",
		parse: one(duration(0), func(d *draft, v time.Duration) { d.relay.DrainTimeout = v })},
	{Flag: "send-proxy", Default: "off", Group: connections, Value: "VERSION",
		Help:  "send a PROXY protocol header to each host, also in checks: v1, v2 or off",
		parse: one(word("off", "v1", "v2"), func(d *draft, v string) { d.relay.SendProxy = map[string]int{"v1": 1, "v2": 2}[v] })},
	{Flag: "connection-log", Group: connections,
		Help:  "log each connection when it has ended: client, host, duration, bytes, how it ended and why",
		parse: one(onOff, func(d *draft, v bool) { d.relay.ConnectionLog = v })},
	{Flag: "source", Group: connections, Value: "IP",
		Help:  "local address for connections to hosts and for checks",
		parse: one(ipAddress, func(d *draft, v addrValue) { d.relay.Source = v })},

	{Flag: "canary", Default: "off", Group: watching, Value: "D",
		Help:  "connect through the relay itself as a client does, once in this time, to measure what clients see: outages, in metrics, status and events; in no count of clients. off, or at least 100ms",
		parse: one(canaryEvery, func(d *draft, v time.Duration) { d.relay.Canary.Every = v })},
	{Flag: "canary-slow", Default: "200ms", Group: watching, Value: "D",
		Help:  "an attempt that takes longer counts as an outage, as one that fails does",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.relay.Canary.Slow = v })},
	{Flag: "canary-send", Group: watching, Value: "TEXT", verbatim: true,
		Help:  `what the canary sends, with escapes such as \r\n; without this, an answer and a handshake a connect to the primary is enough`,
		parse: one(escapedText, func(d *draft, v string) { d.relay.Canary.Send = v })},
	{Flag: "canary-expect", Group: watching, Value: "TEXT", verbatim: true,
		Help:  "what the answer must contain, with escapes, within --timeout",
		parse: one(escapedText, func(d *draft, v string) { d.relay.Canary.Expect = v })},
	{Flag: "canary-handshake", Group: watching, Value: "PROTOCOL",
		Help:  "read the greeting of this protocol instead, without a login: " + alternatives(greeting.Names()) + "; default: that of --check-tcp or --role, if it is one of them",
		parse: one(word(greeting.Names()...), func(d *draft, v string) { d.relay.Canary.Handshake = v })},

	{Flag: "http", Group: answering, Value: "ADDR",
		Help:  "answer health verdicts on address:port",
		parse: one(httpAddress, func(d *draft, v string) { d.settings.HTTP.Listen = v })},
	{Flag: "lport", Env: "LPORTS", Group: answering, Value: "N", List: true,
		Help:  "forward each ping to this local port too (repeatable)",
		parse: each(port, func(d *draft, n int) { d.ping.Ports = append(d.ping.Ports, n) })},
	{Flag: "ping-path", Default: "/ping", Group: answering, Value: "PATH", List: true,
		Help:  "path of the verdict; a path that ends in / matches all paths below it (repeatable)",
		parse: each(urlPath, func(d *draft, v string) { d.pingPaths = append(d.pingPaths, v) })},
	{Flag: "ping-timeout", Default: "2s", Group: answering, Value: "D",
		Help:  "timeout of all answers to a ping; at most 9s",
		parse: one(verdictTime, func(d *draft, v time.Duration) { d.ping.Timeout = v })},
	{Flag: "fail-status", Default: "auto", Group: answering, Value: "STATUS",
		Help:  "status of a failing verdict: auto (never a 2xx), keep, or a number from 400 to 599",
		parse: one(failStatus, func(d *draft, v string) { d.ping.FailStatus = v })},

	{Flag: "status-dir", Group: answering, Value: "DIR",
		Help:  "answer /status?SERVICE=&PORT=&VIP= from flag files in this directory",
		parse: one(path, func(d *draft, v string) { d.statusDir = v })},

	{Flag: "endpoints", Group: answering, Value: "LIST", List: true,
		Help:  "forward requests for all other paths to these URLs, one after the other, until one returns a usable answer",
		parse: each(endpointURL, func(d *draft, v string) { d.endpoints.URLs = append(d.endpoints.URLs, v) })},
	{Flag: "fanout", Group: answering,
		Help:  "send the request to all --endpoints at once; the first usable answer wins",
		parse: one(onOff, func(d *draft, v bool) { d.endpoints.Race = v })},
	{Flag: "terminal-responses", Default: "100,200,300,400", Group: answering, Value: "LIST", List: true,
		Help:  "status classes that make an answer of --endpoints usable: 200 means 200 to 299",
		parse: each(statusClass, func(d *draft, v string) { d.endpoints.Status = append(d.endpoints.Status, v) })},
	{Flag: "preserve-host", Group: answering,
		Help:  "send the client's Host header to --endpoints instead of their own",
		parse: one(onOff, func(d *draft, v bool) { d.endpoints.PreserveHost = v })},
	{Flag: "endpoint-timeout", Default: "5s", Group: answering, Value: "D",
		Help:  "time within which the answer of an endpoint must begin",
		parse: one(duration(time.Millisecond), func(d *draft, v time.Duration) { d.endpoints.Timeout = v })},
	{Flag: "http-cert", Group: answering, Value: "FILE",
		Help:  "certificate that makes --http use TLS; needs --http-key",
		parse: one(path, func(d *draft, v string) { d.settings.HTTP.Cert = v })},
	{Flag: "http-key", Group: answering, Value: "FILE",
		Help:  "private key of --http-cert",
		parse: one(path, func(d *draft, v string) { d.settings.HTTP.Key = v })},

	{Flag: "cluster", Group: agreeing, Value: "URL",
		Help: "agree with other instances on the primary of each relay, through etcd://host:port,host:port or etcds:// likewise, with TLS",
		parse: one(clusterURL, func(d *draft, v clusterStore) {
			d.settings.Cluster.Endpoints, d.settings.Cluster.TLS = v.endpoints, v.tls
		})},
	{Flag: "cluster-name", Default: "main", Group: agreeing, Value: "NAME",
		Help:  "name of the cluster in the store: instances of the same name and with relays of the same names agree",
		parse: one(name, func(d *draft, v string) { d.settings.Cluster.Name = v })},
	{Flag: "cluster-user", Group: agreeing, Value: "NAME",
		Help:  "user to log in to the store as; needs --cluster-password-file",
		parse: one(text, func(d *draft, v string) { d.settings.Cluster.User = v })},
	{Flag: "cluster-password-file", Group: agreeing, Value: "FILE",
		Help:  "file with the password for the store; it is read at each login",
		parse: one(passwordFile, func(d *draft, v string) { d.settings.Cluster.PasswordFile = v })},
	{Flag: "cluster-ca-file", Group: agreeing, Value: "FILE",
		Help:  "authorities to trust for the store instead of the system's (PEM)",
		parse: one(authorities, func(d *draft, v string) { d.settings.Cluster.PEM.CA = v })},
	{Flag: "cluster-cert-file", Group: agreeing, Value: "FILE",
		Help:  "client certificate for the store; needs --cluster-key-file",
		parse: one(path, func(d *draft, v string) { d.settings.Cluster.PEM.Cert = v })},
	{Flag: "cluster-key-file", Group: agreeing, Value: "FILE",
		Help:  "private key of --cluster-cert-file",
		parse: one(path, func(d *draft, v string) { d.settings.Cluster.PEM.Key = v })},
	{Flag: "member", Group: agreeing, Value: "NAME",
		Help:  "name of this instance in the cluster; default: the host name",
		parse: one(name, func(d *draft, v string) { d.settings.Cluster.Member = v })},
	{Flag: "members", Group: agreeing, Value: "LIST", List: true,
		Help:  "all instances of a new cluster, this one too: NAME=host:port, where it listens for the others (--cluster-listen); later only understudy cluster add and forget change the list",
		parse: each(clusterMember, addClusterMember)},
	{Flag: "cluster-listen", Group: agreeing, Value: "ADDR",
		Help:  "answer the other instances on address:port, for when the store is away",
		parse: one(httpAddress, func(d *draft, v string) { d.settings.Cluster.Listen = v })},
	{Flag: "cluster-secret", Group: agreeing, Value: "FILE",
		Help:  "file with a secret that all instances have, 16 bytes at least, by which they know each other; or --peer-cert-file, or both",
		parse: clusterSecret},
	{Flag: "peer-ca-file", Group: agreeing, Value: "FILE",
		Help:  "authorities of the certificates of all instances (PEM); needs --peer-cert-file",
		parse: one(authorities, func(d *draft, v string) { d.settings.Cluster.Peer.CA = v })},
	{Flag: "peer-cert-file", Group: agreeing, Value: "FILE",
		Help:  "certificate of this instance, as client and server, for its name (--member) or the host of its address, by which the others know it; it is read again when it is used",
		parse: one(path, func(d *draft, v string) { d.settings.Cluster.Peer.Cert = v })},
	{Flag: "peer-key-file", Group: agreeing, Value: "FILE",
		Help:  "private key of --peer-cert-file",
		parse: one(path, func(d *draft, v string) { d.settings.Cluster.Peer.Key = v })},
	{Flag: "lease", Default: "5s", Group: agreeing, Value: "D",
		Help:  "time for which an instance goes on after its last contact; an election waits that long, and a little more, for one that is silent",
		parse: one(durationWithin(time.Second, time.Hour), func(d *draft, v time.Duration) { d.settings.Cluster.Lease = v })},
	{Flag: "agree", Default: "majority", Group: agreeing, Value: "HOW",
		Help:  "how many of the instances that are heard of must see the primary down before one replaces it: majority, any or all",
		parse: one(word("majority", "any", "all"), func(d *draft, v string) { d.settings.Cluster.Agree = v })},
	{Flag: "on-store-loss", Default: "failsafe", Group: agreeing, Value: "WHAT",
		Help:  "while the store is away: failsafe (go on while all other instances confirm that nothing has changed), fence (reset all connections when the lease is over), or keep (go on; an election waits for every instance)",
		parse: one(word("failsafe", "fence", "keep"), func(d *draft, v string) { d.settings.Cluster.OnStoreLoss = v })},
	{Flag: "failsafe-limit", Default: "0", Group: agreeing, Value: "D",
		Help:  "longest time to go on without the store; 0: as long as all answer",
		parse: one(duration(0), func(d *draft, v time.Duration) { d.settings.Cluster.FailsafeLimit = v })},

	{Flag: "config", Group: operating, Value: "FILE",
		Help:  "configuration file (YAML): the same settings with _ for -, several relays, probes, routes",
		parse: one(path, func(d *draft, v string) { d.settings.File = v })},
	{Flag: "control", Default: "auto", Group: operating, Value: "PATH",
		Help:  "unix socket for commands to a running process; auto: the usual place, off: none",
		parse: one(controlPath, func(d *draft, v string) { d.settings.Control = v })},
	{Flag: "admin", Group: operating, Value: "ADDR",
		Help:  "serve a page that shows the relays live, and metrics, on address:port, apart from --http",
		parse: one(httpAddress, func(d *draft, v string) { d.settings.Admin.Listen = v })},
	{Flag: "admin-token-file", Group: operating, Value: "FILE",
		Help:  "every request to --admin needs the content of this file, as a bearer token or as a password; the page takes orders then",
		parse: adminToken},
	{Flag: "state-dir", Group: operating, Value: "DIR",
		Help:  "keep primary, epoch, locks and past elections in this directory across restarts",
		parse: one(path, func(d *draft, v string) { d.settings.StateDir = v })},

	{Flag: "lame-duck", Default: "0", Group: operating, Value: "D",
		Help:  "time after TERM in which verdicts are bad and clients are still accepted; 0: stop accepting at once",
		parse: one(duration(0), func(d *draft, v time.Duration) { d.settings.LameDuck = v })},

	{Flag: "loops", Default: "auto", Group: operating, Value: "N",
		Help:  "most event loops, each a thread, that the load may start; auto is one for each processor, 16 at most",
		parse: one(numberOr("auto", 1, 1024), func(d *draft, n int) { d.settings.Loops = n })},
	{Flag: "spin", Default: "auto", Group: operating, Value: "WHEN",
		Help:  "let an event loop poll for some microseconds before it sleeps: auto or off",
		parse: one(word("auto", "off"), func(d *draft, v string) { d.settings.Spin = v == "auto" })},

	{Flag: "log-level", Default: "info", Group: logs, Value: "LEVEL",
		Help: "trace, debug, info, warn, error or off; off silences the records of verdicts too",
		parse: one(word("trace", "debug", "info", "warn", "error", "off"),
			func(d *draft, v string) { d.settings.Log.Level = v })},
	{Flag: "verdict-log", Default: "changes", Group: logs, Value: "WHICH",
		Help:  "records of verdicts: changes (and one a minute with the number of those alike), bad or all",
		parse: one(word("changes", "bad", "all"), func(d *draft, v string) { d.settings.Log.Verdicts = v })},
	{Flag: "log-format", Default: "text", Group: logs, Value: "FORMAT",
		Help:  "text or json",
		parse: one(word("text", "json"), func(d *draft, v string) { d.settings.Log.JSON = v == "json" })},
	{Flag: "log-output", Default: "stderr", Group: logs, Value: "WHERE",
		Help:  "stderr, stdout, syslog, gelf+tcp://host:port, gelf+udp://host:port or a file path",
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

// Variable returns the environment variable of a flag that exists.
func Variable(flag string) string { return lookup(flag).Env }

// defaultOf is the default of a flag, for a key of the file that says the same
// of one route.
func defaultOf(flag string) string { return lookup(flag).Default }

// lookup returns the setting of a flag that exists.
func lookup(flag string) *Setting {
	for i := range table {
		if table[i].Flag == flag {
			return &table[i]
		}
	}
	panic("config: no setting --" + flag)
}
