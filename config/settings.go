package config

import (
	"net/netip"
	"time"
)

// Settings is everything an operator can set, checked and typed.
type Settings struct {
	// Relays holds the relays to run, in the order of the file; it is empty
	// when the process only answers over HTTP. The one that flags and
	// variables describe without a file is called [MainRelay].
	Relays []Relay

	Probes []Probe // in the order of the file
	HTTP   HTTP
	Log    Log

	Control  string // path of the control socket, ControlAuto or ControlOff
	StateDir string // empty: nothing is remembered across restarts
	File     string // path of the configuration file, or empty

	// Warnings are about what is allowed and unwise: a secret that stands in
	// the file itself. Each names its place.
	Warnings []string

	secretVariables []string
}

// MainRelay is the name of the relay that has none in a file.
const MainRelay = "main"

// What [Settings.Control] says instead of a path.
const (
	ControlAuto = "auto" // the program chooses the place
	ControlOff  = "off"  // there is no control socket
)

// Relay is one listening service, its hosts and its rules. Every duration is
// positive unless its comment says otherwise.
type Relay struct {
	Name string // unique

	Listen  []string // "192.0.2.1:5432", "[::]:5432", ":5432" or "unix:/path"; may be empty if there are Sockets
	Sockets []int    // those of [Given.Sockets] that are this relay's, by index

	Hosts []string // in order of preference, as the operator wrote them, without surrounding space

	PongPorts []int  // ask each host's HTTP port; empty asks none
	PongPath  string // begins with a slash

	Checks []Ask // further checks, in order; from the file only

	Interval     time.Duration // between checks of a host
	FastInterval time.Duration // between checks of a suspected primary
	Timeout      time.Duration // of one check
	Rise, Fall   int           // at least 1

	CheckHost      string // path of the check script, or empty
	CheckInterval  time.Duration
	CheckTimeout   time.Duration
	OnFailover     string // path of a trigger or of a directory of them, or empty
	TriggerTimeout time.Duration
	TriggerAbort   bool // a failed trigger puts the host aside

	MaxBackoff time.Duration // at least 1s
	Hold       time.Duration // zero refuses at once
	Fence      Fence
	Failback   time.Duration // how long a preferred host must have been up to take over again; zero: never

	ConnectTimeout time.Duration
	IdleTimeout    time.Duration // zero never ends an idle connection
	UserTimeout    time.Duration // zero leaves it to the system
	DrainTimeout   time.Duration // zero resets at once
	MaxConnections int           // zero: what the descriptor limit allows
	SendProxy      int           // PROXY protocol version, zero for none
	AcceptProxy    bool
	Allow          []netip.Prefix // empty allows all
	Source         netip.Addr     // the zero Addr leaves it to the system
	Loops          int            // zero: chosen by the relay
	Spin           bool
}

// Fence says what becomes of the connections of earlier epochs.
type Fence struct {
	Keep  bool          // they live on
	Drain time.Duration // they may finish for that long before they are reset; zero resets at once
}

// StatusPath is where flags are told.
const StatusPath = "/status"

// Ask is one question, of a host (a check) or on a schedule (a probe). Exactly
// one of its kinds is set.
type Ask struct {
	HTTP *AskHTTP
	TCP  *AskTCP
	Exec *AskExec
	Flag *AskFlag
	VIP  *AskVIP

	Interval time.Duration // from one start to the next
	Timeout  time.Duration // of one
}

// AskHTTP is a request and what its answer must be.
type AskHTTP struct {
	// URL is what a probe asks. A check has Port (zero: the host's own), Path
	// and HTTPS instead.
	URL   string
	Port  int
	Path  string // begins with a slash
	HTTPS bool

	Method      string // GET by default
	Headers     [][2]string
	RequestBody string

	Status       []string // numbers and classes like 2xx; empty: 2xx
	Body         string   // equal, white space around it aside; empty asks for nothing
	BodyContains string
	BodyRegex    string

	TLS ClientTLS
}

// ClientTLS says how a TLS server is spoken to. The zero ClientTLS believes
// what the system believes.
type ClientTLS struct {
	ServerName string // for SNI and the certificate, instead of the host's name
	CA         string // file of the authorities to believe instead of the system's
	Cert, Key  string // files of our own certificate, or both empty
	SkipVerify bool   // believe any certificate
	Digest     string // of what the files hold; another certificate is another setting
}

// AskTCP is a connect and, if Expect is set, what the peer must say.
type AskTCP struct {
	Address string // host:port or unix:/path of a probe; empty for a check
	Port    int    // of a check; zero is the host's own
	Send    string // after the connect; may be empty
	Expect  string // must come, as a part of what comes; empty: the connect is enough
}

// AskExec is a command whose exit status answers.
type AskExec struct {
	Command []string // path and arguments; no shell in between
}

// AskFlag is a file in a directory of flags.
type AskFlag struct {
	Dir, Name string
	Absent    bool // passes when it is not there
}

// AskVIP is a list of addresses that must be this machine's.
type AskVIP struct {
	Addresses    []netip.Addr
	AnyInterface bool // not the loopback ones only
}

// Probe is a question that is asked on a schedule and belongs to verdicts.
type Probe struct {
	Name string // unique among probes and relays
	Ask

	Rise, Fall int
	Jitter     time.Duration // each interval is longer by a random part of it, at most
}

// HTTP is the verdict listener.
type HTTP struct {
	Listen    string // address:port, or empty for none
	Cert, Key string // files of the listener's certificate, or both empty for plain HTTP
	Routes    []Route
}

// Route is what is answered at one path. Exactly one of its kinds is set.
type Route struct {
	Path string // begins with a slash; one that ends in a slash matches all below

	Verdict   *Verdict
	Flags     string // directory of flag files, for questions as in StatusPath
	Heartbeat *Heartbeat
	Endpoints *Endpoints
}

// Verdict is one answer over local ports, relays and probes.
type Verdict struct {
	Ports []int // local ports that the request is replayed to, in order

	// What each port must answer, as in [AskHTTP]; by default 200 and "pong".
	Status       []string
	Body         string
	BodyContains string
	BodyRegex    string

	Members []Member
	Quorum  int // how many of ports and members must pass, beside those that must in any case; zero: all

	Timeout    time.Duration // at most 9s
	FailStatus string        // status of a failing verdict: "auto", "keep", or a number from 400 to 599
	Token      Secret        // who shows it is told the reasons

	Agent string // address:port that answers in the words of HAProxy's agent-check, or empty
	TCP   string // address:port that listens only while the verdict is good, or empty
}

// Member is a relay or a probe that counts in a verdict.
type Member struct {
	Name   string // of a relay or a probe
	Probe  bool
	Must   bool // beside any quorum
	Ignore bool // only reported
}

// Heartbeat answers in lines of text about probes.
type Heartbeat struct {
	Name    string   // what the server calls itself
	Members []Member // in order
	Token   Secret   // required
	Dead    string   // directory of NAME.dead files, or empty
}

// Secret is a word that is known by few: from a file, a variable or, with a
// warning, the configuration file itself. The zero Secret is none.
type Secret struct {
	value string
}

// Endpoints asks others until one has a usable answer.
type Endpoints struct {
	URLs         []string      // http or https, with a path that is a prefix
	Race         bool          // all at once instead of one after the other
	Status       []string      // numbers and classes like 2xx of a usable answer
	Timeout      time.Duration // of each until its answer begins
	Total        time.Duration // of all of them until one's answer begins
	PreserveHost bool
	TLS          ClientTLS
}

// Log says what is logged, how and where.
type Log struct {
	Level  string // trace, debug, info, warn, error or off
	JSON   bool
	Output string // "stderr", "stdout", "syslog", "gelf+tcp://host:port", "gelf+udp://host:port" or an absolute path
}
