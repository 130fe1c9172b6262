package relay

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"testing"
)

// faults lists what goes wrong on the way of a connection, and the tests of
// this package that play it. Ends of streams and switches are played with the
// whole program as well, in e2e.
var faults = []struct {
	fault string
	tests []string
}{
	{"little memory, many slow readers", []string{"TestStuckReadersCostNothing", "TestNothingGrows", "TestMessagesAllocateNothing"}},
	{"no pipes to be had, as nobody with hundreds of busy connections", []string{"TestUnprivilegedAndBusy"}},
	{"9,500 idle connections, and their end", []string{"TestThousandsOfIdleConnections", "TestIdleConnectionsAreCheap"}},
	{"tens of thousands of short connections", []string{"TestNothingGrows", "TestOutOfPorts", "TestCountingUnderLoad"}},
	{"half-close with bytes pending", []string{"TestHalfCloseBehindPendingBytes", "TestMovedAfterHalfClose"}},
	{"a reset of an idle connection", []string{"TestResetAtEveryStage"}},
	{"bytes, and then a reset", []string{"TestResetKeepsItsBytes", "TestResetBehindMovingBytes", "TestResetBehindStuckHost"}},
	{"one-byte segments", []string{"TestWriterChunks", "TestSmallSegmentsToSlowReader"}},
	{"small segments over a slow link", []string{"TestSmallSegmentsOverSlowLink"}},
	{"much both ways at once", []string{"TestMuchBothWays", "TestBothDirectionsAtOnce", "TestSizesBothWays"}},
	{"simultaneous close; close during connect", []string{"TestSimultaneousClose", "TestClientLeavesDuringConnect"}},
	{"urgent bytes at every place", []string{"TestUrgentByte", "TestUrgentByteInBulk", "TestUrgentByteFirst", "TestManyUrgentBytes"}},
	{"readers that stop", []string{"TestStuckReadersDelayNobody", "TestStuckReadersCostNothing"}},
	{"monitors that connect and leave", []string{"TestMonitors"}},
	{"either side speaks first", []string{"TestWhoSpeaksFirst"}},
	{"hours of silence: keep-alive", []string{"TestSocketOptions", "TestUserTimeout"}},
	{"IPv6, small segments and windows, Multipath TCP", []string{"TestIPv6", "TestSmallSegmentsAndWindows", "TestMultipathClient"}},
	{"a switch in the middle of transfers", []string{"TestSwitchInTheMiddleOfTransfers", "TestFencedFlowKeepsItsBytes"}},
}

// A fault whose test was renamed or removed would look covered and not be.
func TestFaultsAreCovered(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			if f, ok := d.(*ast.FuncDecl); ok {
				there[f.Name.Name] = true
			}
		}
	}
	for _, f := range faults {
		for _, name := range f.tests {
			if !there[name] {
				t.Errorf("%s: there is no %s", f.fault, name)
			}
		}
	}
}
