package config

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// roleProtocols are the protocols in which hosts are asked for their role.
var roleProtocols = []string{"postgres", "mysql", "redis"}

// checkRole reports settings of the role of d.relay that contradict each other, as
// checkRelay does.
func (d *draft) checkRole(values map[string]raw, at func(flag string) Origin) {
	r := &d.relay.Role
	if r.Protocol == "" {
		for i := range table {
			s := &table[i]
			if s.Group == asking && values[s.Flag].given() && !values["role"].given() {
				d.problem(at(s.Flag), errors.New("needs role: the protocol to ask the hosts in"))
			}
		}
		r.TLS, r.MaxLag, d.relay.Elect = "", Lag{}, "" // the defaults of nothing
		return
	}
	if r.Protocol != "redis" && r.User == "" {
		d.problem(at("role-user"), errors.New("missing: the user to log in as, to ask for the role"))
	}
	if r.Protocol == "redis" && r.Database != "" {
		d.problem(at("role-database"), errors.New("is not for redis, which has one role for all its databases"))
	}
	if r.Protocol == "redis" && r.TLS == "prefer" {
		d.problem(at("role-tls"), errors.New("redis cannot fall back from TLS: set require or off"))
	}
	if r.Protocol == "redis" && r.Identity != "" {
		d.problem(at("role-identity"), errors.New("is not for redis, which has none"))
	}
	for _, flag := range []string{"role-ca-file", "role-server-name"} {
		if values[flag].given() && r.TLS != "auto" && r.TLS != "verify" {
			d.problem(at(flag), fmt.Errorf("has no effect: with %s nothing is verified", r.TLS))
		}
	}
	if values["role-cert-file"].given() || values["role-key-file"].given() {
		d.checkPair(at("role-cert-file"), r.PEM.Cert, at("role-key-file"), r.PEM.Key)
	}
	r.PEM.Digest = digest(r.PEM.CA, r.PEM.Cert, r.PEM.Key)
	if info, err := os.Stat(r.PasswordFile); r.PasswordFile != "" && err == nil && info.Mode().Perm()&0o004 != 0 {
		d.warn(at("role-password-file"), "%s can be read by everybody: chmod o-r", r.PasswordFile)
	}
	if r.Promote && d.relay.OnFailover == "" {
		d.problem(at("promote"), errors.New("needs on-failover: a trigger that promotes the elected replica"))
	}
	for _, flag := range []string{"max-lag", "elect"} {
		if !r.Promote && values[flag].given() {
			d.problem(at(flag), errors.New("needs promote: without it no replica is elected"))
		}
	}
}

// role reads the role of a relay where it is one of its checks, as in "postgres: {user:
// monitor}" or "redis". It stores what it finds in settings, and reports whether s is one.
func (r *reader) role(s spot, settings map[string]raw) bool {
	word := s
	var own *yaml.Node
	if isMap(s) {
		for i := 0; i+1 < len(s.node.Content) && own == nil; i += 2 {
			if key := s.node.Content[i]; slices.Contains(roleProtocols, key.Value) {
				word = spot{node: key, line: key.Line, key: key.Value, path: join(s.path, key.Value)}
				own = s.node.Content[i+1]
			}
		}
	}
	if !isSingle(word) || !slices.Contains(roleProtocols, word.node.Value) {
		return false
	}
	r.store(word, settingOf("role"), settings)
	if own == nil {
		return true
	}
	entries, _ := r.entries(s, maxList)
	for _, e := range entries {
		if e.node != own {
			r.problem(e, "is not for %s, which has the interval and the timeout of the relay", word.key)
		}
	}
	if isNull(own) {
		return true
	}
	keys := slices.DeleteFunc(aliasKeys("role"), func(key string) bool { return key == "protocol" })
	word.node = own
	entries, _ = r.entries(word, maxList)
	for _, e := range entries {
		if !slices.Contains(keys, e.key) || !r.setting(e, "role."+e.key, settings) {
			r.unknown(e, keys)
		}
	}
	return true
}

// passwordFile accepts a file with a password. It is read again at each login.
func passwordFile(file string) (string, error) {
	text, err := readRegular(file)
	switch word := strings.TrimRight(string(text), "\r\n"); {
	case err != nil:
		return "", fmt.Errorf("cannot be read: %w", err)
	case strings.ContainsAny(word, "\r\n"):
		return "", errors.New("has several lines: want the password alone")
	default:
		return file, checkSecret(word)
	}
}

// addLag sets the limit of a kind.
func addLag(d *draft, v Lag) {
	to := &d.relay.Role.MaxLag
	to.Bytes, to.Time = max(to.Bytes, v.Bytes), max(to.Time, v.Time)
}

// lag accepts a size like 16MiB, a duration like 10s, or 0 for neither.
func lag(text string) (Lag, error) {
	if text == "0" {
		return Lag{}, nil
	}
	if size, err := bytesOf(text); err == nil {
		return Lag{Bytes: size}, nil
	}
	if limit, err := duration(time.Millisecond)(text); err == nil && strings.ContainsAny(text, "hmsnuµ") {
		return Lag{Time: limit}, nil
	}
	return Lag{}, errors.New("is neither a size like 16MiB nor a duration like 10s")
}

// units are the units of sizes, as powers of 1024 and of 1000.
var units = map[string]uint64{
	"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
	"KB": 1e3, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
}

// bytesOf accepts a number with a unit, at least one byte.
func bytesOf(text string) (uint64, error) {
	digits := strings.TrimRight(text, "KMGTkiB")
	unit, known := units[text[len(digits):]]
	n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 64)
	high, size := bits.Mul64(n, unit)
	if err != nil || !known || high != 0 || size == 0 {
		return 0, errors.New("is not a size: want a number and B, KiB, MiB or GiB")
	}
	return size, nil
}
