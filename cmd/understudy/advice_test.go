package main

import (
	"strings"
	"testing"
	"time"

	"understudy/control"
	"understudy/failover"
)

// Every cause that why can show ends with advice, and there is none where there
// is no problem.
func TestAdvice(t *testing.T) {
	check := func(phase string, unknown bool) []control.Host {
		return []control.Host{{Name: "db2:1", State: "down", Checks: []control.Check{{Name: "x", Last: &control.Result{Phase: phase, Unknown: unknown}}}}}
	}
	says := func(word, err string) []control.Host {
		return []control.Host{{Name: "db2:1", State: "down", Role: &control.Role{Role: word, Identity: "7"},
			Checks: []control.Check{{Name: "x", Last: &control.Result{Phase: "role", Error: err}}}}}
	}
	for _, tt := range []struct {
		name string
		r    control.RelayStatus
		want string
	}{
		{"well", control.RelayStatus{State: "serving", Hosts: []control.Host{{State: "up", Checks: []control.Check{{Last: &control.Result{OK: true}}, {}}}}}, ""},
		{"frozen", control.RelayStatus{Frozen: &failover.Lock{}}, "understudy unfreeze --relay r, "},
		{"switching", control.RelayStatus{State: "switching", Frozen: &failover.Lock{}}, "wait until the triggers have run"},
		{"drained", control.RelayStatus{Hosts: []control.Host{{Name: "db2:1", Drained: &failover.Lock{}}}}, "understudy ready db2:1 --relay r, "},
		{"rejected", control.RelayStatus{Hosts: []control.Host{{Name: "db2:1", Rejected: true}}}, "then understudy switch db2:1 --relay r"},
		{"guarded", control.RelayStatus{Hosts: []control.Host{{Name: "db2:1", State: "up", Guarded: true}}}, "find out why db2:1 fails"},
		{"not saved", control.RelayStatus{SaveError: "no space"}, "give the state directory space"},
		{"resolve", control.RelayStatus{Hosts: check("resolve", false)}, "make the name of db2:1 resolve"},
		{"connect", control.RelayStatus{Hosts: check("connect", false)}, "start the service of db2:1"},
		{"tls", control.RelayStatus{Hosts: check("tls", false)}, "certificate of db2:1"},
		{"script", control.RelayStatus{Hosts: check("script", false)}, "follow the message of check x about db2:1"},
		{"unknown", control.RelayStatus{Hosts: check("script", true)}, "run the script of check x by hand"},
		{"own fault", control.RelayStatus{Hosts: check("connect", true)}, "find out what this machine lacks"},
		{"criteria", control.RelayStatus{Hosts: check("criteria", false)}, "does not meet the criteria"},
		{"login", control.RelayStatus{Hosts: check("login", true)}, "let check x log in to db2:1"},
		{"replica", control.RelayStatus{Primary: "db1:1", Hosts: says("replica", "it is a replica (in recovery)")}, ""},
		{"replica alone", control.RelayStatus{Hosts: says("replica", "it is a replica (in recovery)")}, "promote the replica that has its data: db2:1"},
		{"detached", control.RelayStatus{Primary: "db1:1", Hosts: says("replica", "it follows no primary")}, "make db2:1 a replica of db1:1"},
		{"rival", control.RelayStatus{Primary: "db1:1", Hosts: says("primary", "it says primary in term 1, and db1:1 was primary in term 2")}, "make db2:1 a replica of db1:1"},
		{"foreign", control.RelayStatus{Hosts: says("primary", "its identity 7 is not that of the cluster, 8")}, "set role-identity to 7"},
		{"starting", control.RelayStatus{Hosts: says("starting", "57P03")}, "wait until db2:1 has started"},
		{"mute", control.RelayStatus{Hosts: says("unknown", "context deadline exceeded")}, "does not answer check x in time"},
		{"read", control.RelayStatus{Hosts: check("read", false)}, "does not answer check x in time"},
		{"other settings", control.RelayStatus{State: "switching", Cluster: &control.Cluster{Trouble: "the settings differ from those of the cluster: x here, y there"}}, "give all instances the same settings (understudy cluster --relay r "},
		{"forgotten", control.RelayStatus{State: "switching", Cluster: &control.Cluster{Member: "c", Trouble: `"c" is not in the roster of the cluster`}}, "understudy cluster add c --relay r at one of the members"},
		{"name twice", control.RelayStatus{Cluster: &control.Cluster{Member: "c", Trouble: `another process has the member name "c"`}}, "stop the other process that has the name c"},
		{"restored", control.RelayStatus{Cluster: &control.Cluster{Trouble: "the store has gone back in time: epoch 3 was seen"}}, "whether etcd was restored from a backup"},
		{"store away", control.RelayStatus{State: "switching", Cluster: &control.Cluster{Open: true, StoreFails: time.Now(), StoreError: "connection refused", Members: []control.Instance{{}, {Name: "d"}}}}, "start etcd, or "},
		{"store away, not all answer", control.RelayStatus{Cluster: &control.Cluster{StoreFails: time.Now(), Members: []control.Instance{{}, {Name: "d", Error: "refused"}}}}, "\nor start instance d, "},
		{"store full", control.RelayStatus{Cluster: &control.Cluster{StoreFails: time.Now(), StoreError: "etcdserver: mvcc: database space exceeded"}}, "compact and defragment etcd"},
		{"keep", control.RelayStatus{State: "switching", Cluster: &control.Cluster{Waiting: []control.Waited{{Member: "c", Seconds: 3}}}}, "if it is dead for certain: understudy cluster force --relay r"},
		{"waits with an end", control.RelayStatus{State: "switching", Cluster: &control.Cluster{Waiting: []control.Waited{{Member: "c", Seconds: 3, MostSeconds: 6}}}}, "the lease of c is over after 6s at most"},
		{"never came", control.RelayStatus{Cluster: &control.Cluster{Members: []control.Instance{{Name: "a"}, {Name: "d"}}}}, "start instance d, or understudy cluster forget d --relay r"},
		{"agreed", control.RelayStatus{Cluster: &control.Cluster{Members: []control.Instance{{Name: "a"}, {Name: "d", Known: true}}}}, ""},
	} {
		tt.r.Name = "r"
		got := strings.Join(adviceFor(tt.r), "\n")
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) || strings.Count(got, "\n") != strings.Count(tt.want, "\n") {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
