package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// passwordIn writes a password file and returns its path.
func passwordIn(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// The map in the file, its flat keys, the flags and the variables mean the same.
func TestRole(t *testing.T) {
	file := passwordIn(t, "word\n")
	want := Role{
		Protocol: "postgres", Port: 5433, User: "understudy", PasswordFile: file, Database: "app", TLS: "require",
		Identity: "7577029164138526737", Promote: true, MaxLag: Lag{Bytes: 1 << 20, Time: 5 * time.Second},
	}
	const relay = "listen: [\":1\"]\nhosts: [a:1, b:1]\non_failover: /x\n"
	for name, load := range map[string]func() (Settings, []Value, error){
		"map": func() (Settings, []Value, error) {
			return loadFile(t, relay+"role: {protocol: postgres, port: 5433, user: understudy, password_file: "+file+", database: app, tls: require, identity: 7577029164138526737, promote: true, max_lag: [1MiB, 5s]}\n", nil, nil)
		},
		"check": func() (Settings, []Value, error) {
			return loadFile(t, relay+"checks: [{postgres: {port: 5433, user: understudy, password_file: "+file+", database: app, tls: require, identity: 7577029164138526737, promote: true, max_lag: [1MiB, 5s]}}]\n", nil, nil)
		},
		"keys": func() (Settings, []Value, error) {
			return loadFile(t, relay+"role: postgres\nrole_port: 5433\nrole_user: understudy\nrole_password_file: "+file+"\nrole_database: app\nrole_tls: require\nrole_identity: 7577029164138526737\npromote: true\nmax_lag: 1MiB,5s\n", nil, nil)
		},
		"variables": func() (Settings, []Value, error) {
			return loadFile(t, relay, nil, []string{"ROLE=postgres", "ROLE_PORT=5433", "ROLE_USER=understudy", "ROLE_PASSWORD_FILE=" + file, "ROLE_DATABASE=app", "ROLE_TLS=require", "ROLE_IDENTITY=7577029164138526737", "PROMOTE=on", "MAX_LAG=1MiB,5s"})
		},
		"flags": func() (Settings, []Value, error) {
			return loadFile(t, relay, []string{"role=postgres", "role-port=5433", "role-user=understudy", "role-password-file=" + file, "role-database=app", "role-tls=require", "role-identity=7577029164138526737", "promote=true", "max-lag=1MiB", "max-lag=5s"}, nil)
		},
	} {
		settings, values, err := load()
		if err != nil || len(settings.Relays) != 1 || settings.Relays[0].Role != want || len(settings.Relays[0].Checks) != 0 {
			t.Errorf("%s: %+v, %v, want %+v", name, settings.Relays, err, want)
		}
		for _, v := range values {
			if strings.Contains(v.Text, "word") && v.Text != file {
				t.Errorf("%s: %s shows the password: %s", name, v.Name, v.Text)
			}
		}
	}
}

func TestRoleDefaults(t *testing.T) {
	settings, _, err := loadFile(t, "listen: [\":1\"]\nhosts: [a:1, b:1]\nrole: redis\n", nil, nil)
	want := Role{Protocol: "redis", TLS: "auto", MaxLag: Lag{Bytes: 16 << 20, Time: 10 * time.Second}}
	if err != nil || settings.Relays[0].Role != want {
		t.Errorf("%+v, %v, want %+v", settings.Relays, err, want)
	}
	for _, checks := range []string{"redis", "{redis: }", "redis: {}"} {
		settings, _, err = loadFile(t, "listen: [\":1\"]\nhosts: [a:1, b:1]\nchecks: ["+checks+", patroni]\n", nil, nil)
		if err != nil || settings.Relays[0].Role != want || len(settings.Relays[0].Checks) != 1 {
			t.Errorf("checks: [%s, patroni]: %+v, %v, want %+v", checks, settings.Relays, err, want)
		}
	}
	settings, _, err = loadFile(t, "listen: [\":1\"]\nhosts: [a:1, b:1]\n", nil, nil)
	if err != nil || settings.Relays[0].Role != (Role{}) {
		t.Errorf("without a role: %+v, %v, want none", settings.Relays, err)
	}
}

func TestRoleProblems(t *testing.T) {
	lines, missing := passwordIn(t, "one\ntwo\n"), filepath.Join(t.TempDir(), "none")
	for _, tt := range []struct{ text, want string }{
		{"role: oracle", "role: \"oracle\" is unknown: want postgres, mysql or redis"},
		{"role_user: x", "role_user: needs role"},
		{"promote: true", "promote: needs role"},
		{"role: postgres", "missing: the user to log in as"},
		{"role: {protocol: redis, database: x}", "role.database: is not for redis"},
		{"role: {protocol: redis, tls: prefer}", "role.tls: redis cannot fall back from TLS"},
		{"role: {protocol: redis, tls: require, server_name: x}", "role.server_name: has no effect: with require nothing is verified"},
		{"role: {protocol: redis, identity: x}", "role.identity: is not for redis"},
		{"role: {protocol: redis, promote: true}", "role.promote: needs on-failover"},
		{"role: {protocol: redis, max_lag: 1MiB}", "role.max_lag: needs promote"},
		{"role: {protocol: redis, max_lag: lots}", "is neither a size like 16MiB nor a duration like 10s"},
		{"role: {protocol: redis, max_lag: 30}", "is neither a size like 16MiB nor a duration like 10s"},
		{"role: {protocol: redis, max_lag: 99999999999TiB}", "is neither a size"},
		{"role: {protocol: redis, password_file: " + missing + "}", "cannot be read"},
		{"role: {protocol: redis, password_file: " + lines + "}", "has several lines"},
		{"role: {protocol: redis, cert_file: /x}", "needs a key"},
		{"role: {protocol: redis, pasword_file: /x}", "did you mean password_file?"},
		{"checks: [redis: {database: x}]", "checks[0].redis.database: is not for redis"},
		{"checks: [redis: {pasword_file: /x}]", "checks[0].redis.pasword_file: unknown key: did you mean password_file?"},
		{"checks: [redis: {protocol: mysql}]", "checks[0].redis.protocol: unknown key"},
		{"checks: [redis: lots]", "checks[0].redis: is the single value \"lots\": want a map"},
		{"checks: [{redis: {}, interval: 1s}]", "checks[0].interval: is not for redis, which has the interval and the timeout of the relay"},
		{"checks: [{redis: , postgres: {user: x}}]", "checks[0].postgres: is not for redis"},
		{"checks: [{redis: , redis: }]", "checks[0].redis: is listed twice"},
		{"checks: [redis, postgres]", "checks[1]: is the same as checks[0]"},
		{"role: redis\nchecks: [redis]", "checks[0]: is the same as role"},
		{"checks: [redsi]", "did you mean redis?"},
		{"checks: [redsi: {}]", "did you mean redis?"},
	} {
		_, _, err := loadFile(t, "listen: [\":1\"]\nhosts: [a:1, b:1]\n"+tt.text+"\n", nil, nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s:\n%v\nwant %s", tt.text, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "one") && strings.Contains(err.Error(), "two") {
			t.Errorf("%s: the error shows the password: %v", tt.text, err)
		}
	}
	open := passwordIn(t, "word")
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	settings, _, err := loadFile(t, "listen: [\":1\"]\nhosts: [a:1, b:1]\nrole: {protocol: redis, password_file: "+open+"}\n", nil, nil)
	if err != nil || len(settings.Warnings) != 1 || !strings.Contains(settings.Warnings[0], "can be read by everybody") {
		t.Errorf("a password file that everybody can read: %q, %v", settings.Warnings, err)
	}
}
