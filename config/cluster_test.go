package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// clusterFlags returns flags of a relay in a cluster, which are valid, with changes: a flag
// without values is left out.
func clusterFlags(t *testing.T, changes map[string][]string) map[string][]string {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("sixteen bytes at least\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := map[string][]string{
		"port": {"5432"}, "hosts": {"192.0.2.1:5432,192.0.2.2:5432"}, "state-dir": {t.TempDir()},
		"cluster": {"etcd://192.0.2.7:2379,192.0.2.8:2379"}, "member": {"a"}, "members": {"a=192.0.2.3:9010,b=192.0.2.4:9010"},
		"cluster-listen": {":9010"}, "cluster-secret": {secret},
	}
	for flag, texts := range changes {
		flags[flag] = texts
		if len(texts) == 0 {
			delete(flags, flag)
		}
	}
	return flags
}

func TestCluster(t *testing.T) {
	s, _, err := Load(Given{Flags: clusterFlags(t, nil)})
	if err != nil {
		t.Fatal(err)
	}
	c := s.Cluster
	if len(c.Endpoints) != 2 || c.Endpoints[1] != "192.0.2.8:2379" || c.TLS || c.Member != "a" || len(c.Members) != 2 ||
		c.Members[1] != (ClusterMember{"b", "192.0.2.4:9010"}) || c.Name != "main" || c.Agree != "majority" || c.OnStoreLoss != "failsafe" {
		t.Errorf("%+v", c)
	}
	if c.Address() != "192.0.2.3:9010" || len(s.Warnings) != 0 {
		t.Errorf("address %q, warnings %q", c.Address(), s.Warnings)
	}
	if strings.Contains(c.Secret.String(), "sixteen") {
		t.Error("the secret is shown")
	}

	// Without --cluster there is nothing of it.
	s, _, err = Load(Given{Flags: map[string][]string{"port": {"1"}, "hosts": {"db:1"}}})
	if err != nil || s.Cluster.Endpoints != nil || s.Cluster.Lease != 0 {
		t.Errorf("%+v, %v", s.Cluster, err)
	}
}

// Each mistake is named where it was made.
func TestClusterMistakes(t *testing.T) {
	for _, tt := range []struct {
		flag, text, want string
	}{
		{"cluster", "", "--members: needs --cluster"},
		{"cluster", "consul://x:1", "--cluster: \"consul://x:1\" is not the URL of a store"},
		{"cluster", "etcd://u:p@x:1", "has a user in it"},
		{"cluster", "etcd://x:1,x:1", "names \"x:1\" twice"},
		{"cluster", "etcd://x", "--cluster: "},
		{"fence", "keep", "--fence: keep contradicts --cluster"},
		{"hosts", "db1:5432,192.0.2.2:5432", "\"db1:5432\" is a name"},
		{"member", "c", "--members: \"c\" is missing, this instance"},
		{"members", "a=192.0.2.3:1,a=192.0.2.3:2", "\"a\" is listed twice"},
		{"members", "a=192.0.2.3:1,b", "\"b\" has no address"},
		{"members", "a=192.0.2.3:1,.x=y:1", "is not NAME=host:port"},
		{"cluster-listen", "", "missing: with --on-store-loss failsafe the instances ask each other"},
		{"cluster-secret", "", "needs --cluster-secret"},
		{"cluster-user", "u", "needs --cluster-password-file"},
		{"cluster-ca-file", "/nowhere", "--cluster-ca-file"},
		{"lease", "10ms", "--lease: \"10ms\" is shorter than 1s"},
		{"agree", "most", "--agree: "},
	} {
		t.Run(tt.flag+" "+tt.text, func(t *testing.T) {
			var texts []string
			if tt.text != "" {
				texts = []string{tt.text}
			}
			_, _, err := Load(Given{Flags: clusterFlags(t, map[string][]string{tt.flag: texts})})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}

	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(Given{Flags: clusterFlags(t, map[string][]string{"cluster-secret": {short}})}); err == nil || strings.Contains(err.Error(), `"short"`) || !strings.Contains(err.Error(), "has 5 bytes") {
		t.Errorf("a short secret: %v", err)
	}
}

// What is valid and unwise is a warning.
func TestClusterWarnings(t *testing.T) {
	for flag, tt := range map[string]struct{ text, want string }{
		"on-store-loss": {"keep", "an election waits for every instance"},
		"state-dir":     {"", "does not notice after a restart that the store has gone back"},
	} {
		var texts []string
		if tt.text != "" {
			texts = []string{tt.text}
		}
		s, _, err := Load(Given{Flags: clusterFlags(t, map[string][]string{flag: texts})})
		if err != nil || len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], tt.want) {
			t.Errorf("%s %s: %q, %v", flag, tt.text, s.Warnings, err)
		}
	}
}
