package failover

import (
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/cluster"
)

// Settings that make a failover impossible, or lose clients in each, are warned
// of in the log. Settings that may be intended are not, and neither are the
// defaults.
func TestSettingsThatConflictAreWarnings(t *testing.T) {
	two := []string{"a:1", "b:1"}
	for _, tt := range []struct {
		name string
		cfg  Config
		want string // empty for no warning
	}{
		{"defaults", Config{Hosts: two, Hold: 10 * time.Second}, ""},
		{"one host", Config{Hosts: two[:1], Hold: 10 * time.Second}, "only one host: failover is impossible"},
		{"hold", Config{Hosts: two, Hold: 2 * time.Second}, "hold 2s is shorter than a failover can take"},
		{"triggers", Config{Hosts: two, Hold: 10 * time.Second, Triggers: Triggers{Path: "/bin/true", Timeout: 30 * time.Second}},
			"1 × trigger-timeout 30s is longer than hold 10s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := conduct(t, newStage(), tt.cfg, func(*Conductor) { time.Sleep(time.Millisecond) })
				warned := strings.Count(log, "[WARN]  failover: settings conflict")
				if tt.want == "" && warned != 0 || tt.want != "" && (warned != 1 || !strings.Contains(log, tt.want)) {
					t.Errorf("log:\n%s\nwant one warning that has %q, or none", log, tt.want)
				}
			})
		})
	}
}

// With a cluster the longest time has the wait for an instance that has died too.
func TestPredictCluster(t *testing.T) {
	cfg := complete(Config{Hosts: []string{hostA, hostB}, Checks: []Check{{Name: "tcp"}}})
	alone := Predict(cfg)
	if alone.Cluster != nil {
		t.Errorf("without a cluster: %+v", alone.Cluster)
	}
	cfg.Cluster = &Cluster{Machine: cluster.Config{Lease: 5 * time.Second, Heartbeat: time.Second, Slack: time.Second}}
	with := Predict(cfg)
	want := ClusterWaits{InstanceSeconds: 6.152, StoreSeconds: 4} // 5s / 33 more, and the slack; 2s and two heartbeats
	if with.Cluster == nil || *with.Cluster != want {
		t.Fatalf("waits %+v, want %+v", with.Cluster, want)
	}
	for i, k := range with.Cases {
		if longer := k.TotalSeconds - alone.Cases[i].TotalSeconds; !k.Never && math.Abs(longer-want.InstanceSeconds) > 1e-9 {
			t.Errorf("%s: %vs longer with a cluster", k.Failure, longer)
		}
	}
}
