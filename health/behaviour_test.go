package health

// What users of four older tools rely on (CF, BRP, DP, HS), what was wrong with
// them (D-…), and the faults that concern verdicts (F…), item by item, and the
// tests that show how it is here. TestBehaviourTable keeps the table true.
//
//	CF 1       the listener, by one flag: config.TestHTTPAlone
//	CF 2       ports in order, one that stands there twice asked twice: health.TestPingAnswers e2e.TestBehaviourEveryPathReplayed
//	CF 3       flags are enough: config.TestHTTPAlone
//	CF 4       wrong usage ends with status 2: script/usage.txtar config.TestProblems
//	CF 5       every address, or the one that is named: config.TestHTTPAlone e2e.TestBehaviourIPv6AndGracefulEnd
//	CF 6       a busy port ends with status 1: understudy.TestBusyPortEndsBeforeAnyScriptRuns health.TestServerBindNamesBusyAddress
//	CF 7       TERM; requests under way are answered now: health.TestServerStop e2e.TestBehaviourIPv6AndGracefulEnd
//	CF 8       standard output is for good verdicts alone now: e2e.TestLogOfVerdicts
//	CF 9       needs no rights: e2e.TestBehaviourUnreadableFlags e2e.TestBareEnvironment
//	CF 10      every path and query, for who asks for it: e2e.TestBehaviourEveryPathReplayed health.TestPingReplay
//	CF 11      methods; more of them now: health.TestPingReplay health.TestPingHEAD
//	CF 12      bodies of requests go to every port: health.TestPingReplay health.TestPingBodies
//	CF 13      headers go to every port, all of a name: health.TestPingHeaders
//	CF 14      ports of 127.0.0.1, in plain: health.TestPingJudge
//	CF 15      ports are asked at once now: health.TestPingHungServices
//	CF 16      every port is asked, whatever others say: health.TestBehaviourEveryPortIsAsked
//	CF 17      redirects are not followed: health.TestPingAnswers health.TestBehaviourRedirectLoop
//	CF 18      what cannot be asked is 500 "error": health.TestPingAnswers health.TestPingBrokenServices
//	CF 19      200 and "pong" but for white space: health.TestPingAnswers
//	CF 20      all pass: the first, as it is: health.TestPingAnswers
//	CF 21      one fails: the first of those: health.TestPingAnswers
//	CF 22      200 with another body is no 200 now, unless kept: health.TestPingAnswers health.TestFailStatus
//	CF 23      the failing status is the service's: health.TestPingAnswers
//	CF 24      no header of a service leaves: health.TestPingAnswerHeaders
//	CF 25      HTTP/1.0; connections are kept now: health.TestPingReplay health.TestServerKeepsHonestConnections
//	CF 26      the record: health.TestVerdictText e2e.TestLogOfVerdicts
//	CF 27      its stream, whole now: health.TestPingLog e2e.TestLogOfVerdicts
//	CF 28      its times, of each port now: health.TestBehaviourEveryPortIsAsked
//	CF 29      written at once: health.TestPingLog
//	CF 30-32   the package and its unit: not of this program's code
//	D-CF1      sequential calls: health.TestPingHungServices
//	D-CF2      a failing verdict that is 200: health.TestPingAnswers health.TestFailStatus
//	D-CF3      bodies that are not UTF-8: health.TestPingAnswers
//	D-CF4      broken lengths, chunked bodies: health.TestPingBodies health.TestPingReplay health.TestServerRefusesAmbiguousRequests
//	D-CF5      HEAD: health.TestPingHEAD
//	D-CF6      hop-by-hop headers, compression: health.TestPingHeaders health.TestPingNeverAsksForCompression
//	D-CF7      open to every path: e2e.TestBehaviourNothingBesideTheRoutes health.TestServerRoutes
//	D-CF8      no limits: health.TestPingBodies health.TestPingBodiesAreBounded health.TestPingMemoryIsBounded health.TestServerTimeouts health.TestServerConnectionLimit
//	D-CF9      no reasons: health.TestPingBrokenServices e2e.TestLogOfVerdicts
//	D-CF10     connections, reload, end, rights, IPv6: health.TestServerKeepsHonestConnections e2e.TestReloadHarmsNobody e2e.TestBehaviourIPv6AndGracefulEnd e2e.TestBehaviourUnreadableFlags
//	D-CF11     39 probes at once: health.TestPingCoalesces e2e.TestCloudflareMonitor
//
//	BRP 1      endpoints: config.TestRoutes e2e.TestFirstUsableAnswer
//	BRP 2      the address: config.TestHTTPAlone
//	BRP 3      usable classes: config.TestProblems health.TestEndpointsPolicy
//	BRP 4      fan-out: e2e.TestFirstUsableAnswer health.TestEndpointsRaceCancelsLosers
//	BRP 5      where the log goes: understudy.TestLogGoesWhereTheSettingsSay logs.TestFileIsAppendedToAndForFewToRead
//	BRP 6      an end after some time: not taken over, timeout(1) does it
//	BRP 7      wrong usage, with status 2 now: script/usage.txtar
//	BRP 8      abbreviations: not taken over, unknown flags are told: script/usage.txtar
//	BRP 9      an empty endpoint: config.TestProblems
//	BRP 10     statuses that are none: config.TestProblems
//	BRP 11     a log file that cannot be opened: e2e.TestLogFileThatCannotBeOpenedEndsTheStart
//	BRP 12     a busy port: understudy.TestBusyPortEndsBeforeAnyScriptRuns
//	BRP 13     what is configured, by a verb now: script/config.txtar config.TestRoutes
//	BRP 14     an endpoint without a scheme is refused now: config.TestProblems health.TestNewEndpointsNamesEveryMistake
//	BRP 15     no file and no variables are needed: e2e.TestFirstUsableAnswer
//	BRP 16     every path and method: health.TestEndpointsReplay
//	BRP 17     joined paths, merged queries: health.TestEndpointsReplay
//	BRP 18     headers, X-Forwarded-For, Host: health.TestEndpointsRequestHeaders
//	BRP 19     usable by class: health.TestEndpointsPolicy
//	BRP 20     a refused connect is never usable now: health.TestBehaviourRefusedIsNeverUsable
//	BRP 21     in turn, and only until one is usable now: health.TestEndpointsPolicy
//	BRP 22     raced, and only until one is usable now: health.TestEndpointsRaceCancelsLosers
//	BRP 23     none is usable: 500: health.TestEndpointsPolicy health.TestBehaviourRefusedIsNeverUsable
//	BRP 24     the body, and the headers now: health.TestEndpointsAnswerIsExact
//	BRP 25     other statuses, and nothing before the body now: health.TestEndpointsAnswerIsExact
//	BRP 26     HEAD: health.TestEndpointsAnswerIsExact
//	BRP 27     redirects are the client's to follow: health.TestEndpointsAnswerIsExact health.TestBehaviourRedirectLoop
//	BRP 28     a record of each request, at debug now: health.TestBehaviourRefusedIsNeverUsable
//	BRP 29     a record when none is usable: health.TestEndpointsPolicy
//	BRP 30     why an endpoint could not be asked: health.TestEndpointsPolicy
//	BRP 31     the form of the log: understudy.TestLogGoesWhereTheSettingsSay
//	BRP 32     the log into a pipe, or syslog now: understudy.TestLogGoesWhereTheSettingsSay logs.TestSyslog
//	BRP 33-34  companions for trying it: understudy.TestDemo
//	D-BRP1     bodies in two parts: health.TestBehaviourBodiesOfEverySize health.TestEndpointsStreamLargeBodies
//	D-BRP2     all are asked: health.TestEndpointsPolicy
//	D-BRP3     the slowest decides: health.TestEndpointsRaceCancelsLosers health.TestEndpointsBrokenAndHung
//	D-BRP4     one body for all: health.TestEndpointsBodyGoesToAll
//	D-BRP5     headers lost, bodies changed: health.TestEndpointsAnswerIsExact
//	D-BRP6     Host: health.TestEndpointsRequestHeaders
//	D-BRP7     upgrades, streams, trailers: health.TestEndpointsRefuseUpgrade health.TestEndpointsFlush health.TestEndpointsTrailers
//	D-BRP8     whole responses in memory: health.TestEndpointsStreamLargeBodies
//	D-BRP9     no timeouts, no end: health.TestServerTimeouts health.TestServerStop
//	D-BRP10    dead endpoints, TLS, reload: health.TestEndpointsRememberSilence health.TestServerTLS e2e.TestHealthOverTLS e2e.TestReloadHarmsNobody
//	D-BRP11    endpoints and classes that are none, clients that leave: config.TestProblems health.TestNewEndpointsNamesEveryMistake health.TestBehaviourClientsThatGiveUp health.TestEndpointsClientGone
//
//	DP 1       the file: config.TestExample
//	DP 2       one that cannot be read ends with status 2: e2e.TestBehaviourNothingIsPassedOver config.TestBadFiles
//	DP 3       GELF: logs.TestGELFFields logs.TestGELFOverTCPSurvivesARestart e2e.TestStuckCollector config.TestLogOutputs
//	DP 4       without a setting to standard error; syslog: understudy.TestLogGoesWhereTheSettingsSay logs.TestSyslog
//	DP 5       address, path, token and name: config.TestRoutes e2e.TestHeartbeat
//	DP 6       the folder; that there is none is told now: e2e.TestHeartbeat health.TestDeadFilesRun
//	DP 7       probes and their periods: config.TestRoutes health.TestProberSchedule
//	DP 8       probes that do not count; a word for it of our own: health.TestHeartbeat e2e.TestBehaviourNothingIsPassedOver
//	DP 9       what is asked, with TLS verified: health.TestHTTPAsksAsTold health.TestHTTPS health.TestHTTPRedirectLoop
//	DP 10      criteria, all of which must hold: health.TestCriteria e2e.TestBehaviourFortyProbes
//	DP 11      SQL, by a script now: e2e.TestBehaviourProbesOfEveryKind
//	DP 12      modules, by a script now: e2e.TestBehaviourProbesOfEveryKind
//	DP 13      an unknown module does not start now: e2e.TestBehaviourNothingIsPassedOver
//	DP 14      one path, GET and HEAD: health.TestBehaviourHeartbeatAnswersNothingElse health.TestHeartbeat
//	DP 15      the token: health.TestHeartbeatToken e2e.TestHeartbeat
//	DP 16      whose files count: health.TestHeartbeatOverride
//	DP 17      all live: health.TestHeartbeat
//	DP 18      some do not: health.TestHeartbeat e2e.TestBehaviourFortyProbes
//	DP 19      its headers, of plain text now: health.TestHeartbeat
//	DP 20      files of others: health.TestHeartbeatOverride e2e.TestHeartbeat
//	DP 21      each probe on its own: health.TestProberSchedule e2e.TestBehaviourProbesOfEveryKind
//	DP 22      a file changes when a verdict is known: health.TestDeadFiles health.TestHeartbeatNeverFlickers
//	DP 23      a probe that is not answered is dead: e2e.TestBehaviourProbesOfEveryKind
//	DP 24      the file says why: health.TestDeadFiles e2e.TestHeartbeat
//	DP 25      the log says what changed, and why: health.TestProberThresholds
//	DP 26      before the first result all are dead now: e2e.TestBehaviourAlwaysDeadIsNeverWell
//	DP 27      files stay after TERM: e2e.TestBehaviourFilesOfAnEarlierRun
//	DP 28      in containers: docker.TestHealthcheckAndStop
//	D-DP1      well between two failures: e2e.TestBehaviourAlwaysDeadIsNeverWell health.TestHeartbeatNeverFlickers
//	D-DP2      broken probes are well: e2e.TestBehaviourNothingIsPassedOver e2e.TestBehaviourAlwaysDeadIsNeverWell health.TestBehaviourHeartbeatWithoutItsFolder config.TestBadFiles
//	D-DP3      probes that hang or trickle: health.TestProberStuckCheck health.TestHTTPEndsInTime e2e.TestBehaviourProbesOfEveryKind
//	D-DP4      well before the first result, dead by old files: e2e.TestBehaviourAlwaysDeadIsNeverWell e2e.TestBehaviourFilesOfAnEarlierRun
//	D-DP5      the debugger: health.TestBehaviourHeartbeatAnswersNothingElse e2e.TestBehaviourNothingBesideTheRoutes
//	D-DP6      the token: health.TestHeartbeatTokenTime health.TestNewHeartbeatNamesEveryMistake config.TestSecretsAreMasked
//	D-DP7      what a file may run or name: e2e.TestBehaviourNothingIsPassedOver config.TestBadFiles
//	D-DP8      files half written, or endless: health.TestDeadFiles health.TestDeadFilesReplaceNothing
//	D-DP9      thresholds: health.TestProberThresholds
//	D-DP10     the wrong probe: e2e.TestBehaviourFortyProbes
//	D-DP11     connections left open, reasons lost: health.TestTCPLeavesNothing health.TestHTTP
//	D-DP12     unknown keys: e2e.TestBehaviourNothingIsPassedOver config.TestBadFiles
//	D-DP13     levels, reload, end, reasons: e2e.TestBehaviourNothingIsPassedOver e2e.TestReloadHarmsNobody health.TestServerStop health.TestPingJSON
//
//	HS 1       address and port: config.TestHTTPAlone
//	HS 2-3     daemon and pidfile: not taken over, the service manager does it: e2e.TestServiceManagerIsTold
//	HS 4       a busy port, a port that is none: understudy.TestBusyPortEndsBeforeAnyScriptRuns config.TestProblems
//	HS 5       IPv6 works now: e2e.TestBehaviourIPv6AndGracefulEnd
//	HS 6       the init script: not taken over, the service manager does it
//	HS 7       the directory, a setting now: e2e.TestHAProxyDrainsByFlag
//	HS 8       one path: e2e.TestBehaviourNothingBesideTheRoutes
//	HS 9       GET and HEAD: health.TestStatus
//	HS 10      parameters, their case, the first counts: health.TestStatus
//	HS 11      the name of the file: health.TestStatus
//	HS 12      no file: health.TestBehaviourStatusAnswers
//	HS 13      a file, whatever it is: health.TestBehaviourStatusAnswers health.TestStatus
//	HS 14      the file counts before the address: health.TestBehaviourStatusAnswers
//	HS 15      addresses, whatever their mask: health.TestStatus health.TestBehaviourStatusAnswers e2e.TestStatusWithAddresses
//	HS 16      lists of addresses: health.TestStatus e2e.TestStatusWithAddresses
//	HS 17      addresses that are none: health.TestStatus
//	HS 18      headers: health.TestBehaviourStatusAnswers
//	HS 19      HEAD: health.TestBehaviourStatusAnswers
//	HS 20      no record of each request: health.TestBehaviourStatusInjection
//	HS 21      the names of the helpers: e2e.TestHAProxyDrainsByFlag script/flags.txtar
//	HS 22      activate: e2e.TestHAProxyDrainsByFlag script/flags.txtar health.TestFlags
//	HS 23      deactivate: e2e.TestHAProxyDrainsByFlag script/flags.txtar health.TestFlags
//	HS 24      seen at once: health.TestBehaviourStatusIsNeverOld
//	HS 25      HAProxy, disable-on-404: e2e.TestHAProxyDrainsByFlag e2e.TestHAProxyFollowsTheVerdict
//	HS 26      any Host: e2e.TestHAProxyDrainsByFlag health.TestServerKeepsHonestConnections
//	HS 27      keepalived, HTTP/1.0: e2e.TestStatusWithAddresses
//	D-HS1      traversal: health.TestStatus e2e.TestBehaviourNothingOutsideIsLookedAt
//	D-HS2      any error is a yes: health.TestStatus health.TestStatusThatNobodyCanTell e2e.TestBehaviourUnreadableFlags
//	D-HS3      empty and broken queries: health.TestStatus
//	D-HS4      lists, IPv6: health.TestStatus e2e.TestStatusWithAddresses
//	D-HS5      methods: health.TestStatus
//	D-HS6      the daemon: not taken over; nothing is written: e2e.TestBareEnvironment
//	D-HS7      timeouts, faults told, "activated" is not "alive": health.TestServerTimeouts health.TestBehaviourStatusInjection e2e.TestBehaviourFlagAndLife
//	D-HS8      the wishes: service manager, log, speed, security, directory: e2e.TestServiceManagerIsTold logs.TestSyslog e2e.TestManyPings e2e.TestBehaviourNothingOutsideIsLookedAt e2e.TestHAProxyDrainsByFlag
//
//	F46        the log's reader stops, its disk is full: e2e.TestStuckLog e2e.TestFullLogDisk e2e.TestStuckCollector e2e.TestBehaviourStuckRecords health.TestVerdictLogStuck logs.TestStuckReaderDelaysNobodyAndIsToldWhatWasLost
//	F60        slow heads: e2e.TestSlowClients e2e.TestSlowClientIsCutOff health.TestServerSlowlorisDoesNotLockOut health.TestServerTLSSlowloris
//	F61        slow bodies and readers: e2e.TestSlowClients e2e.TestSlowClientIsCutOff health.TestServerTimeouts
//	F62        huge heads: health.TestServerLimitsHeads health.TestBehaviourHeadsAreCheap
//	F63        broken services: health.TestPingBrokenServices health.TestPingMemoryIsBounded health.TestPingGzipBomb health.TestHTTPEndsInTime health.TestHTTPMemoryOfManyHosts health.TestEndpointsBrokenAndHung health.TestBehaviourRedirectLoop
//	F64        99 of 100 hang: health.TestPingHungServices health.TestEndpointsBrokenAndHung
//	F65        injection: health.TestPingAnswerHeaders health.TestVerdictText health.TestEndpointsInjection health.TestBehaviourStatusInjection
//	F66        traversal: e2e.TestBehaviourNothingOutsideIsLookedAt health.TestStatus
//	F67        odd requests: health.TestServerRefusesAmbiguousRequests health.TestBehaviourAmbiguousRequestsReachNobody
//	F68        many at once: e2e.TestManyPings e2e.TestCloudflareMonitor health.TestPingCoalesces
//	F69        the token: health.TestHeartbeatToken health.TestHeartbeatTokenTime health.TestToken config.TestBadFiles
//	F70        garbage, port scans: health.TestBehaviourGarbage health.TestServerTLSGarbage health.TestComplaintsAreRateLimited e2e.TestBehaviourPortScan
//	F71        fuzzing, huge numbers: config.FuzzFile config.FuzzHosts config.FuzzDuration config.FuzzPort health.FuzzStatusQuery health.FuzzCriteria health.FuzzEndpointTarget health.FuzzCheckHead config.TestProblems script/usage.txtar
//	F102       reload: e2e.TestReloadHarmsNobody e2e.TestReloadOfAWrongFileChangesNothing e2e.TestReloadTakesThePrimaryOut e2e.TestReloadMovesAddresses

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
)

// D-BRP1: bodies of the sizes that broke the older program, whole and in two
// parts, and the next request is answered as well.
func TestBehaviourBodiesOfEverySize(t *testing.T) {
	parts := func(sizes ...int) (handler http.HandlerFunc, whole string) {
		for i, n := range sizes {
			whole += strings.Repeat(string(rune('a'+i)), n)
		}
		return func(w http.ResponseWriter, _ *http.Request) {
			rest := whole
			for _, n := range sizes {
				io.WriteString(w, rest[:n])
				w.(http.Flusher).Flush()
				rest = rest[n:]
			}
		}, whole
	}
	for _, sizes := range [][]int{{3800}, {4200}, {5000}, {32768}, {100_000}, {2, 3}, {4096, 1}, {40_000, 40_000}} {
		t.Run(fmt.Sprint(sizes), func(t *testing.T) {
			handler, whole := parts(sizes...)
			url := at(service(t, handler))
			for _, race := range []bool{false, true} {
				e := serveEndpoints(t, EndpointsConfig{URLs: []string{url, url}, Race: race})
				for range 3 {
					if got := e.ask(t, ""); got.StatusCode != http.StatusOK || got.body != whole {
						t.Errorf("race %t: answered %d with %d bytes, want 200 with %d", race, got.StatusCode, len(got.body), len(whole))
					}
				}
			}
		})
	}
}

// BRP 20: an endpoint that cannot be asked has no response, whatever statuses
// are usable, and BRP 23: when none has, the answer is 500.
func TestBehaviourRefusedIsNeverUsable(t *testing.T) {
	refused, busy := at(deafPort(t)), at(saying(t, 503, "busy"))
	for _, race := range []bool{false, true} {
		e := serveEndpoints(t, EndpointsConfig{URLs: []string{refused, busy}, Status: []string{"5xx"}, Race: race})
		if got := e.ask(t, "GET /a HTTP/1.1"); got.StatusCode != http.StatusServiceUnavailable || got.body != "busy" {
			t.Errorf("race %t: answered %d %q, want the 503 of the one that answers", race, got.StatusCode, got.body)
		}
		// BRP 28: who answered, and how soon.
		served := regexp.MustCompile(`\[DEBUG\] request served: method=GET path=/a endpoint=` + regexp.QuoteMeta(busy) + ` status=503 .*took="?[\d.]+`)
		waitUntil(t, "the record is there", func() bool { return served.MatchString(e.log.String()) })
		e = serveEndpoints(t, EndpointsConfig{URLs: []string{refused, refused}, Status: []string{"5xx"}, Race: race})
		if got := e.ask(t, ""); got.StatusCode != http.StatusInternalServerError || strings.Contains(got.body, "127.0.0.1") {
			t.Errorf("race %t: answered %d %q, want 500 without an address", race, got.StatusCode, got.body)
		}
	}
}

// CF 17, BRP 27, F63: a service that redirects to itself for ever is asked
// once.
func TestBehaviourRedirectLoop(t *testing.T) {
	var asked atomic.Int32
	port := service(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		http.Redirect(w, r, r.URL.Path+"?again", http.StatusFound)
	})
	if got := servePing(t, PingConfig{Ports: []int{port}}).ask(t, ""); got.StatusCode != http.StatusBadGateway || asked.Load() != 1 {
		t.Errorf("/ping answered %d and asked %d times, want 502 and once", got.StatusCode, asked.Load())
	}
	asked.Store(0)
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{at(port)}})
	if got := e.ask(t, "GET /loop HTTP/1.1"); got.StatusCode != http.StatusFound || got.Header.Get("Location") != "/loop?again" || asked.Load() != 1 {
		t.Errorf("an endpoint answered %d to %q and was asked %d times, want 302, /loop?again and once", got.StatusCode, got.Header.Get("Location"), asked.Load())
	}
}

// CF 16: every port is asked, whatever those before it said. CF 28: the time of
// each is its own.
func TestBehaviourEveryPortIsAsked(t *testing.T) {
	const slow = 400 * time.Millisecond
	first, last := deafPort(t), seeing(t)
	middle := service(t, func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(slow)
		http.Error(w, "no", http.StatusTeapot)
	})
	p := servePing(t, PingConfig{Ports: []int{first, middle, last.port}, Timeout: 9 * time.Second})
	p.want(t, 500, "error")
	if last.times() != 1 {
		t.Errorf("the last service was asked %d times, want once", last.times())
	}
	record := regexp.MustCompile(fmt.Sprintf(`- Port %d → Status: 418, Body: no\\n\.\., Time: ([\d.]+)s\n- Port %d → Status: 200, Body: pong\.\., Time: ([\d.]+)s\n`, middle, last.port))
	waitUntil(t, "the record is there", func() bool { return record.MatchString(p.bad.String()) })
	times := record.FindStringSubmatch(p.bad.String())
	took := func(i int) float64 {
		seconds, err := strconv.ParseFloat(times[i], 64)
		if err != nil {
			t.Fatal(err)
		}
		return seconds
	}
	if took(1) < slow.Seconds() || took(2) >= took(1) {
		t.Errorf("the slow service took %gs and the one behind it %gs, want %gs at least, and less", took(1), took(2), slow.Seconds())
	}
}

// HS 12 to 15, 18 and 19: the answers letter by letter, as they leave the
// listener.
func TestBehaviourStatusAnswers(t *testing.T) {
	f := flagsIn(t, "squid")
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/status": NewStatus(StatusConfig{
		Flags: f, Loopback: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil },
	})}})
	for _, tt := range []struct {
		query  string
		status int
		body   string
	}{
		{"SERVICE=squid", 200, "OK - service fine!\n"},
		{"SERVICE=squid&VIP=192.0.2.1", 200, "OK - service and VIP all fine!\n"},
		{"SERVICE=squid&VIP=192.0.2.2", 404, "Not Found - VIP alias not available\n"},
		{"SERVICE=nope", 404, "Not Found - service not available\n"},
		{"SERVICE=nope&VIP=192.0.2.2", 404, "Not Found - service not available\n"}, // the flag comes first
		{"", 404, "Not Found - service not available\n"},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			got := parseAnswer(t, say(t, addr, method+" /status?"+tt.query+" HTTP/1.0\r\n\r\n"), method)
			body := tt.body
			if method == "HEAD" {
				body = ""
			}
			if got.StatusCode != tt.status || got.body != body || got.rest != "" {
				t.Errorf("%s %s = %d %q, want %d %q", method, tt.query, got.StatusCode, got.body, tt.status, body)
			}
			got.Header.Del("Date")
			got.Header.Del("Connection")
			want := http.Header{
				"Server": {"Status"}, "Cache-Control": {"private, no-store"}, "Content-Type": {"text/plain; charset=utf-8"},
				"X-Content-Type-Options": {"nosniff"}, "Content-Length": {strconv.Itoa(len(tt.body))},
			}
			if diff := cmp.Diff(want, got.Header); diff != "" {
				t.Errorf("%s %s: headers (-want +got):\n%s", method, tt.query, diff)
			}
		}
	}
}

// HS 24: nothing of an answer is kept.
func TestBehaviourStatusIsNeverOld(t *testing.T) {
	f := flagsIn(t)
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/status": NewStatus(StatusConfig{Flags: f})}})
	for range 20 {
		for status, change := range map[int]func(string) error{200: f.Set, 404: f.Clear} {
			if err := change("web"); err != nil {
				t.Fatal(err)
			}
			if got := parseAnswer(t, say(t, addr, "GET /status?SERVICE=web HTTP/1.0\r\n\r\n"), "GET"); got.StatusCode != status {
				t.Fatalf("right after the change answered %d, want %d", got.StatusCode, status)
			}
		}
	}
}

// F65: what is asked of /status makes neither a line of the log nor one of the
// answer. HS 20: and what it can answer makes no record at all.
func TestBehaviourStatusInjection(t *testing.T) {
	var log lockedBuffer
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/status": NewStatus(StatusConfig{
		Flags: flagsIn(t, "squid"), Logger: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Trace}),
	})}})
	for _, query := range []string{"SERVICE=squid", "SERVICE=nope", "SERVICE=squid&VIP=192.0.2.1"} {
		say(t, addr, "GET /status?"+query+" HTTP/1.0\r\n\r\n")
	}
	if log.String() != "" {
		t.Errorf("log %s, want no record of what could be answered", log.String())
	}
	evil := []string{
		"SERVICE=a%0d%0aSet-Cookie:%20x=y", "SERVICE=%0a[ERROR]%20forged", "VIP=%0d%0a%0d%0a200", "PORT=1%0a",
		"SERVICE=%1b[2J", "SERVICE=%zz%0aforged", "SERVICE=a;b=%0a", "SERVICE=%00", "SERVICE=/%0d%0aX-Evil:%201",
	}
	for _, query := range evil {
		raw := say(t, addr, "GET /status?"+query+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		got := parseAnswer(t, raw, "GET")
		if strings.Contains(strings.ToLower(raw), "cookie") || got.Header.Get("X-Evil") != "" || strings.Count(got.body, "\n") != 1 {
			t.Errorf("%s: answered %q, want nothing of the question", query, raw)
		}
	}
	text := log.String()
	if lines := strings.Count(text, "\n"); lines > len(evil) || strings.Contains(text, "\n[ERROR]") || strings.ContainsAny(text, "\x1b\r\x00") {
		t.Errorf("%d lines for %d questions, want no more, and no control characters:\n%q", lines, len(evil), text)
	}
}

// F67: nothing that two servers could understand differently gets to a service
// or an endpoint.
func TestBehaviourAmbiguousRequestsReachNobody(t *testing.T) {
	s := seeing(t)
	ping, err := NewPing(PingConfig{Ports: []int{s.port}})
	if err != nil {
		t.Fatal(err)
	}
	endpoints, err := NewEndpoints(EndpointsConfig{URLs: []string{at(s.port)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(endpoints.Close)
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/ping": ping, "/": endpoints}})
	const smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, path := range []string{"/ping", "/any"} {
		for _, raw := range []string{
			"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
			"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 36\r\n\r\n",
			"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
			"GET http://127.0.0.1%s HTTP/1.1\r\nHost: x\r\n\r\n",
			"CONNECT 127.0.0.1:80%s HTTP/1.1\r\nHost: x\r\n\r\n",
			"TRACE %s HTTP/1.1\r\nHost: x\r\n\r\n",
			"get %s HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET %s\r\n\r\n",
			"GET %s HTTP/1.1\nHost: x\n\n",
			"GET %s HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
			"GET %s HTTP/1.1\r\nHost : x\r\n\r\n",
			"GET %s/../smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
			"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n%.0s",
			"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n%.0s",
		} {
			raw := fmt.Sprintf(raw, path)
			if got := parseAnswer(t, say(t, addr, raw+smuggled), "GET"); got.StatusCode < 400 || !got.Close || got.rest != "" {
				t.Errorf("%q: answered %d, close %t, %q behind it, want a refusal and the end", raw, got.StatusCode, got.Close, got.rest)
			}
		}
	}
	if s.times() != 0 {
		t.Errorf("the service was asked %d times, first %s %s, want none", s.times(), s.got[0].Method, s.got[0].RequestURI)
	}
}

// F62: a head that is as long as it may be costs 64 KiB at most while it is
// waited for.
func TestBehaviourHeadsAreCheap(t *testing.T) {
	const conns = 300
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": told}})
	inUse := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	say(t, addr, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	before := inUse()
	head := "GET /" + strings.Repeat("a", 8<<10) + " HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("b", 7<<10)
	var open []net.Conn
	for range conns {
		conn := dialHTTP(t, addr)
		if _, err := io.WriteString(conn, head); err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	time.Sleep(200 * time.Millisecond) // for the server to read: if it has not, it costs less
	each := (int64(inUse()) - int64(before)) / conns
	t.Logf("%d unfinished heads cost %d bytes each, clients included", conns, each)
	if each > 64<<10 {
		t.Errorf("an unfinished head costs %d bytes, want at most %d", each, 64<<10)
	}
	runtime.KeepAlive(open)
}

// DP 14, D-DP5: methods and paths that are not the heartbeat's say nothing,
// with and without the token.
func TestBehaviourHeartbeatAnswersNothingElse(t *testing.T) {
	h, err := NewHeartbeat(HeartbeatConfig{Name: "DC 1", Token: "s3cret", Members: []Member{memberOf("elastic", errDead)}})
	if err != nil {
		t.Fatal(err)
	}
	addr := serveRoutes(t, ServerConfig{Routes: map[string]http.Handler{"/": http.NotFoundHandler(), "/beat": h}})
	for _, auth := range []string{"", shownToken + "\r\n"} {
		for request, want := range map[string]int{
			"GET /console": 404, "GET /console?__debugger__=yes&cmd=resource&f=debugger.js": 404, "GET /": 404, "GET /beat/": 404,
			"POST /beat": 405, "PUT /beat": 405, "DELETE /beat": 405, "OPTIONS /beat": 405,
		} {
			got := parseAnswer(t, say(t, addr, request+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+auth+"\r\n"), "GET")
			if got.StatusCode != want || strings.Contains(got.body, "elastic") || strings.Contains(got.body, "DC 1") {
				t.Errorf("%s with %q: answered %d %q, want %d and no word of the probes", request, auth, got.StatusCode, got.body, want)
			}
		}
	}
	if got := parseAnswer(t, say(t, addr, "GET /beat HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), "GET"); got.StatusCode != http.StatusNetworkAuthenticationRequired || got.body != "Auth ERR" {
		t.Errorf("without the token answered %d %q, want 511 Auth ERR", got.StatusCode, got.body)
	}
}

// DP 20, D-DP2: a folder that is not there, or cannot be written to, makes
// nobody well.
func TestBehaviourHeartbeatWithoutItsFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	put(t, file, "")
	for _, dir := range []string{"/nowhere/at/all", file, "/proc/self", "/dev/full"} {
		ask := serveHeartbeat(t, HeartbeatConfig{Dead: dir, Members: []Member{memberOf("elastic", errDead), memberOf("mongo", nil)}})
		if got := ask("GET / HTTP/1.1", shownToken); got.StatusCode != http.StatusServiceUnavailable || got.body != "Server: DC 1 reports:\nThe elastic is DEAD!\n" {
			t.Errorf("%s: answered %d %q, want 503 and elastic", dir, got.StatusCode, got.body)
		}
	}
}

// F70: what is no HTTP at all is refused or hung up on, at most told once a
// second, and honest requests beside it are answered.
func TestBehaviourGarbage(t *testing.T) {
	var log lockedBuffer
	addr := serveRoutes(t, ServerConfig{
		Routes: map[string]http.Handler{"/": told}, Logger: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Debug}),
		HeaderTimeout: time.Second,
	})
	garbage := []string{
		"", "\x00", "\r\n\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\xaa", 500),
		"SSH-2.0-scan\r\n", "\x80\x9e\x01\x03\x01", "HELP\r\n", "EHLO x\r\n", "\xff\xfb\x1f\xff\xfb\x20", "*1\r\n$4\r\nPING\r\n",
		strings.Repeat("\xff", 40_000), "GET " + strings.Repeat("/", 20_000), "\x03\x00\x00\x0b\x06\xe0\x00\x00\x00\x00\x00", "{}\n",
	}
	began := time.Now()
	var all sync.WaitGroup
	for i := range 20 * len(garbage) {
		all.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			io.WriteString(conn, garbage[i%len(garbage)])
			switch i % 3 {
			case 0:
				conn.(*net.TCPConn).SetLinger(0) // a port scan's goodbye
			case 1:
				conn.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, conn)
			case 2:
				answer, err := io.ReadAll(conn)
				if bytes.Contains(answer, []byte(" 200 ")) || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%.20q was answered %q, %v, want a refusal or the end", garbage[i%len(garbage)], answer, err)
				}
			}
		})
	}
	if got := say(t, addr, "GET /honest HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); !strings.Contains(got, "GET /honest") {
		t.Errorf("an honest client was answered %q", got)
	}
	all.Wait()
	text, seconds := log.String(), int(time.Since(began)/time.Second)+1
	if n := strings.Count(text, "http client refused"); n > seconds || strings.Count(text, "\n") > seconds+2 || strings.Contains(text, "panic") {
		t.Errorf("%d complaints in %d seconds, want one in each at most:\n%.2000s", n, seconds, text)
	}
}

// D-BRP11: a client that gives up is no endpoint's fault, and the endpoint is
// asked again as before.
func TestBehaviourClientsThatGiveUp(t *testing.T) {
	var asked atomic.Int32
	slow := at(service(t, func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) <= 10 {
			<-r.Context().Done()
			return
		}
		io.WriteString(w, "here")
	}))
	e := serveEndpoints(t, EndpointsConfig{URLs: []string{slow}, Timeout: time.Minute})
	for range 10 {
		before := asked.Load()
		conn := dialHTTP(t, e.addr)
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		waitUntil(t, "the endpoint is asked", func() bool { return asked.Load() > before })
		conn.SetLinger(0)
		conn.Close()
	}
	waitUntil(t, "all are seen to be gone", func() bool { return strings.Count(e.log.String(), "client left") == 10 })
	if got := e.ask(t, ""); got.body != "here" || strings.Contains(e.log.String(), "[WARN]") || strings.Contains(e.log.String(), "[ERROR]") {
		t.Errorf("answered %q, log %s, want the endpoint's answer and no warning", got.body, e.log)
	}
}

// Every item has a line in the table above, in order, every defect and fault a
// test, and every test that is named exists.
func TestBehaviourTable(t *testing.T) {
	text, err := os.ReadFile("behaviour_test.go")
	if err != nil {
		t.Fatal(err)
	}
	dirs := map[string]string{
		"health": ".", "e2e": "../e2e", "config": "../config", "logs": "../logs", "docker": "../docker", "understudy": "../cmd/understudy",
	}
	tests := make(map[string]bool)
	for name, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no tests in %s, %v", dir, err)
		}
		for _, path := range files {
			file, err := parser.ParseFile(gotoken.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range file.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
					tests[name+"."+f.Name.Name] = true
				}
			}
		}
	}
	scripts, err := filepath.Glob("../cmd/understudy/testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range scripts {
		tests["script/"+filepath.Base(path)] = true
	}

	var items []string
	line := regexp.MustCompile(`(?m)^//\t([A-Z-]+ ?)(\d+)(?:-(\d+))? +(.+)$`)
	named := regexp.MustCompile(`\b(?:[a-z0-9]+\.(?:Test|Fuzz)\w+|script/\w+\.txtar)`)
	for _, m := range line.FindAllStringSubmatch(string(text), -1) {
		from, _ := strconv.Atoi(m[2])
		to, _ := strconv.Atoi(m[3])
		for i := from; i <= max(from, to); i++ {
			items = append(items, m[1]+strconv.Itoa(i))
		}
		shown := named.FindAllString(m[4], -1)
		for _, test := range shown {
			if !tests[test] {
				t.Errorf("%s%s: there is no %s", m[1], m[2], test)
			}
		}
		if len(shown) == 0 && !strings.Contains(m[4], ": not ") {
			t.Errorf("%s%s: no test is named, nor why there is none", m[1], m[2])
		}
		if len(shown) == 0 && !strings.Contains(m[1], " ") {
			t.Errorf("%s%s: no test is named", m[1], m[2])
		}
	}
	var want []string
	for _, series := range []struct {
		name     string
		from, to int
	}{
		{"CF ", 1, 32}, {"D-CF", 1, 11}, {"BRP ", 1, 34}, {"D-BRP", 1, 11}, {"DP ", 1, 28}, {"D-DP", 1, 13}, {"HS ", 1, 27}, {"D-HS", 1, 8},
		{"F", 46, 46}, {"F", 60, 71}, {"F", 102, 102},
	} {
		for i := series.from; i <= series.to; i++ {
			want = append(want, series.name+strconv.Itoa(i))
		}
	}
	if diff := cmp.Diff(want, items); diff != "" {
		t.Errorf("items (-want +got):\n%s", diff)
	}
}
