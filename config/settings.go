package config

import (
	"io/fs"
	"net/netip"
	"time"

	"understudy/internal/criteria"
)

// Settings is everything an operator can set, checked and typed.
type Settings struct {
	// Relays holds the relays to run, in the order of the file; it is empty
	// when the process only answers over HTTP. The one that flags and
	// variables describe, or the top of the file, has no name of its own: it is
	// called after its first address, see [Relay.Unnamed].
	Relays []Relay

	Probes []Probe // in the order of the file
	HTTP   HTTP
	Admin  Admin
	Log    Log

	Cluster Cluster // without Endpoints there is none

	Control  string // path of the control socket, ControlAuto or ControlOff
	StateDir string // empty: state is not kept across restarts
	File     string // path of the configuration file, or empty

	// LameDuck is the time for which clients are accepted after the program got the
	// signal to end, while its verdicts are bad already. Zero stops accepting at
	// once.
	LameDuck time.Duration

	// Loops is the most event loops that the relays may have together. Zero is one
	// for each processor that the process may use, 16 at most.
	Loops int

	// Spin lets an event loop poll before it sleeps.
	Spin bool

	// Warnings are about settings that are valid but unwise: a secret in the file
	// itself, an address that is listed twice. Each names its place.
	Warnings []string

	secretVariables []string
}

// MainRelay is the name of a relay without a name and without a port. In the
// routes of a file it is another name for the relay without a name.
const MainRelay = "main"

// The values of [Settings.Control] that are no path.
const (
	ControlAuto = "auto" // the program chooses the place
	ControlOff  = "off"  // there is no control socket
)

// OpenAuto lets the program choose [Relay.OpenRate].
const OpenAuto = -1

// Relay is one listening service, its hosts and its rules. Every duration is
// positive unless its comment says otherwise.
type Relay struct {
	Name string // unique

	// Unnamed is set when the operator gave no name. Name is then the port of the
	// first address, the file name of a unix socket, or [MainRelay] where there is
	// neither.
	Unnamed bool

	Listen  []string // "192.0.2.1:5432", "[::]:5432", ":5432" or "unix:/path"; may be empty if there are Sockets
	Sockets []int    // those of [Given.Sockets] that are this relay's, by index

	Freebind bool // addresses of Listen need not be this machine's

	// The files of unix sockets in Listen: permission (never zero), owner and
	// group (names or numbers; empty leaves them).
	SocketMode               fs.FileMode
	SocketOwner, SocketGroup string

	Hosts []string // in order of preference, as the operator wrote them, without surrounding space

	PongPorts []int  // HTTP ports of each host to check; empty for none
	PongPath  string // begins with a slash

	Checks []Check // further checks, in order; from the file only

	Role Role // what the hosts are asked for their role

	Elect string // order or freshest

	Interval     time.Duration // between checks of a host
	FastInterval time.Duration // between checks of a suspected primary
	Timeout      time.Duration // of one check
	CheckTCP     string        // TCP check of the hosts: auto, on, off or one of [greeting.Names]
	Rise, Fall   int           // at least 1

	CheckHost      string // path of the check script, or empty
	CheckInterval  time.Duration
	CheckTimeout   time.Duration
	OnFailover     string // path of a trigger or of a directory of them, or empty
	TriggerTimeout time.Duration
	TriggerAbort   bool // a failed trigger rejects the host

	OnStandby      string // path of a script or of a directory of them, or empty
	StandbyTimeout time.Duration

	OnEvent string // path of a script or of a directory of them, or empty
	Webhook Secret // URL of http or https, or none

	MaxBackoff time.Duration // at least 1s
	DNSHold    time.Duration // how long a name that does not exist any more keeps its addresses; zero: not at all
	Stay       time.Duration // zero elects the first usable host always
	Hold       time.Duration // zero refuses at once
	Fence      Fence
	Failback   time.Duration // how long a preferred host must have been up to take over again; zero: never
	OpenRate   int           // clients a second after an opening, OpenAuto, or zero for all at once
	OnSilence  string        // the reaction to a primary that answers no client: auto, fail or alarm
	Replay     string        // which openings are sent again to another host: auto, always or off

	ConnectTimeout time.Duration
	IdleTimeout    time.Duration // zero never ends an idle connection
	UserTimeout    time.Duration // zero leaves it to the system
	DrainTimeout   time.Duration // zero resets at once
	MaxConnections int           // zero: what the descriptor limit allows
	SendProxy      int           // PROXY protocol version, zero for none
	AcceptProxy    bool
	Allow          []netip.Prefix // empty allows all
	ConnectionLog  bool           // log each connection when it has ended
	Source         netip.Addr     // the zero Addr leaves it to the system

	Canary Canary
}

// Canary is a client of the program's own.
type Canary struct {
	Every time.Duration // from one attempt to the next; zero: there is none
	Slow  time.Duration // the longest time that a good attempt takes

	Send, Expect string // either may be empty
	Handshake    string // protocol of the greeting to read, one of [greeting.Names], or empty; excludes Send and Expect
}

// Role is how the hosts of a relay are asked for their role, and which of them may be
// elected.
type Role struct {
	Protocol string // postgres, mysql or redis; empty: the hosts are not asked

	Port         int    // of each host; zero is the host's own
	User         string // empty only for redis: the default user
	PasswordFile string // read at each login; empty: no password
	Database     string // empty: the usual one

	TLS string    // auto, off, prefer, require or verify
	PEM ClientTLS // names and files for it; SkipVerify is not used

	Identity string // of the cluster; empty: that of the last primary; any: all

	Promote bool // a replica may be elected, since the triggers promote it
	MaxLag  Lag  // of such a replica
}

// Lag is a limit for what a replica lacks. Zero is no limit.
type Lag struct {
	Bytes uint64        // where the protocol counts bytes
	Time  time.Duration // where it does not
}

// Fence is the policy for the connections of earlier epochs.
type Fence struct {
	Keep  bool          // they stay open
	Drain time.Duration // they may finish for that long before they are reset; zero resets at once
}

// StatusPath is the default path that reports flags.
const StatusPath = "/status"

// Check is one check, of a host or as a probe. Exactly one of its kinds is set.
type Check struct {
	HTTP *HTTPCheck
	TCP  *TCPCheck
	Exec *ExecCheck
	Flag *FlagCheck
	VIP  *VIPCheck
	SQL  *SQLCheck // of a probe

	Interval time.Duration // from one start to the next
	Timeout  time.Duration // of one
}

// HTTPCheck is a request with the expected answer.
type HTTPCheck struct {
	// URL is the URL of a probe. A check has Port (zero: the host's own), Path
	// and HTTPS instead.
	URL   string
	Port  int
	Path  string // begins with a slash
	HTTPS bool

	Method      string // GET by default
	Headers     [][2]string
	RequestBody string

	criteria.Expect // of the answer

	TLS ClientTLS
}

// ClientTLS configures connections to a TLS server. The zero ClientTLS trusts the
// system's certificate authorities.
type ClientTLS struct {
	ServerName string // for SNI and the certificate, instead of the host's name
	CA         string // file of the authorities to trust instead of the system's
	Cert, Key  string // files of our own certificate, or both empty
	SkipVerify bool   // trust any certificate
	Digest     string // of the contents of the files, so that a new certificate is a change of the setting
}

// TCPCheck is a connect and, if Expect is set, an expected answer.
type TCPCheck struct {
	Address string // host:port or unix:/path of a probe; empty for a check
	Port    int    // of a check; zero is the host's own
	Send    string // after the connect; may be empty
	Expect  string // text that the answer must contain; empty: the connect is enough

	Handshake string // protocol of the greeting to read, one of [greeting.Names]; excludes Send and Expect
}

// ExecCheck is a command whose exit status answers.
type ExecCheck struct {
	Command []string // path and arguments; no shell in between
}

// FlagCheck is a file in a directory of flags.
type FlagCheck struct {
	Dir, Name string
	Absent    bool // passes when it is not there
}

// VIPCheck is a list of addresses that must be this machine's.
type VIPCheck struct {
	Addresses    []netip.Addr
	AnyInterface bool // not the loopback ones only
}

// SQLCheck is a query of a database.
type SQLCheck struct {
	Driver         string // postgres, mysql or sqlserver
	Address        string // host:port or unix:/path
	User, Database string // the database may be empty
	PasswordFile   string // read at each login; empty logs in without a password
	Query          string
	Exists         []SQLValue // what one row must have; empty: the query has to succeed
	TLS            *ClientTLS // nil uses TLS if the server offers it, with any certificate
}

// SQLValue is the value that a column must have.
type SQLValue struct {
	Column, Text string
	Null         bool // it must be NULL instead
}

// Probe is a check that runs on a schedule and counts in verdicts.
type Probe struct {
	Name string // unique among probes and relays
	Check

	Rise, Fall int
	Jitter     time.Duration // each interval is longer by a random part of it, at most
}

// HTTP is the verdict listener.
type HTTP struct {
	Listen    string // address:port, or empty for none
	Cert, Key string // files of the listener's certificate, or both empty for plain HTTP
	Routes    []Route
}

// Admin is the listener for those who operate the program.
type Admin struct {
	Listen string // address:port, or empty for none
	Token  Secret // what every request has to show; none lets everybody read, and nobody act
}

// Cluster is how several instances agree on one primary.
type Cluster struct {
	Endpoints []string  // host:port of the members of an etcd; empty: this instance decides alone
	TLS       bool      // to the endpoints
	PEM       ClientTLS // files for it; only CA, Cert, Key and Digest are used
	User      string    // or empty

	PasswordFile string // of the user; read at each login

	Name    string
	Member  string          // name of this instance
	Members []ClusterMember // all of them, this one included; empty: this one is alone at first

	Listen string // address:port for the other instances, or empty
	Secret Secret // that all of them have, or none

	// Peer are the files for TLS with the other instances, or none; only CA, Cert and Key are
	// used. They are read again when they are used, so a new certificate is no other setting.
	Peer ClientTLS

	Lease         time.Duration
	Agree         string        // majority, any or all
	OnStoreLoss   string        // failsafe, fence or keep
	FailsafeLimit time.Duration // zero: as long as all answer
}

// ClusterMember is an instance of a cluster.
type ClusterMember struct{ Name, Address string } // host:port, or empty

// Route is the configuration of one path. Exactly one of its kinds is set.
type Route struct {
	Path string // begins with a slash; one that ends in a slash matches all below

	Verdict   *Verdict
	Flags     string // directory of flag files, for requests as to StatusPath
	Metrics   *Metrics
	Heartbeat *Heartbeat
	Endpoints *Endpoints
}

// Metrics is a route that serves the metrics.
type Metrics struct {
	Serve bool   // always true
	Token Secret // what every request has to show, or none
}

// Verdict is one answer over local ports, relays and probes.
type Verdict struct {
	Ports []int // local ports that the request is replayed to, in order

	criteria.Expect // of each port's answer; by default 200 and "pong"

	Members []Member
	Quorum  int // how many of ports and members must pass, beside those that must in any case; zero: all

	Timeout    time.Duration // at most 9s
	FailStatus string        // status of a failing verdict: "auto", "keep", or a number from 400 to 599
	Token      Secret        // clients that send it get the reasons

	Standby bool // a relay without a standby counts as one without a primary

	Agent string // address:port that answers HAProxy's agent-check, or empty

	// AgentDrain makes the agent send "drain" while the program ends, and "ready"
	// for a minute after the next start.
	AgentDrain bool

	TCP string // address:port that listens only while the verdict is good, or empty
}

// Member is a relay or a probe that counts in a verdict.
type Member struct {
	Name   string // of a relay or a probe
	Probe  bool
	Must   bool // beside any quorum
	Ignore bool // only reported
}

// Heartbeat answers with the dead probes as text.
type Heartbeat struct {
	Name    string   // name of the server in the answer
	Members []Member // in order
	Token   Secret   // required
	Dead    string   // directory of NAME.dead files, or empty
}

// Secret is a word that is known by few: from a file, a variable or, with a
// warning, the configuration file itself. The zero Secret is none.
type Secret struct {
	value string
}

// Endpoints replays requests to endpoints until one has a usable answer.
type Endpoints struct {
	URLs         []string      // http or https, with a path that is a prefix
	Race         bool          // all at once instead of one after the other
	Status       []string      // numbers and classes like 2xx of a usable answer
	Timeout      time.Duration // of each until its answer begins
	Total        time.Duration // of all of them until one's answer begins
	PreserveHost bool
	TLS          ClientTLS
}

// Log configures the log.
type Log struct {
	Level string // trace, debug, info, warn, error or off
	JSON  bool

	// Verdicts selects the verdicts that are recorded: changes, bad or all. With the
	// level off none are.
	Verdicts string

	Output string // "stderr", "stdout", "syslog", "gelf+tcp://host:port", "gelf+udp://host:port" or an absolute path
}
