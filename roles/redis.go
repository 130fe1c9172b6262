package roles

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"

	"understudy/internal/role"
)

// redisProtocol is Redis and Valkey.
type redisProtocol struct{}

func (redisProtocol) open(ctx context.Context, to target) (client, error) {
	conn := to.conn
	if to.tls.config != nil {
		conn = tls.Client(conn, to.tls.config)
	}
	r := &redisClient{net: conn, conn: redis.NewConn(conn, 0, 0)}
	if err := r.login(ctx, to); err != nil {
		_ = r.conn.Close() // the login failed
		return nil, err
	}
	return r, nil
}

type redisClient struct {
	net  net.Conn
	conn redis.Conn

	// position is the last one that the replica told. It tells none while the link to
	// its primary is down, which is when it is wanted.
	position uint64
}

// login logs in and says the name of the session. HELLO and AUTH need no rights, and
// HELLO is the only command that sets a name without any.
func (r *redisClient) login(ctx context.Context, to target) error {
	defer r.until(ctx)()
	if encrypted, ok := r.net.(*tls.Conn); ok {
		if err := encrypted.HandshakeContext(ctx); err != nil {
			err = fmt.Errorf("tls handshake: %w", err) // a port without TLS waits for more
			if tlsError(err) {
				return refused(err)
			}
			return err
		}
	}
	hello := []any{"2"}
	if to.password != "" {
		user := to.user
		if user == "" {
			user = "default"
		}
		hello = append(hello, "AUTH", user, to.password)
	}
	_, err := r.conn.Do("HELLO", append(hello, "SETNAME", Name)...)
	if said, ok := errors.AsType[redis.Error](err); ok && strings.HasPrefix(string(said), "ERR unknown command") {
		err = nil // before version 6
		if to.password != "" {
			_, err = r.conn.Do("AUTH", to.password)
		}
	}
	if said, ok := errors.AsType[redis.Error](err); ok {
		return refused(said)
	}
	return err
}

// until lets the connection end with ctx; the function that it returns undoes that.
func (r *redisClient) until(ctx context.Context) (undo func()) {
	stop := context.AfterFunc(ctx, func() { _ = r.net.SetDeadline(time.Unix(1, 0)) }) // a closed one has ended too
	return func() { stop() }
}

func (r *redisClient) close(ctx context.Context) {
	defer r.until(ctx)()
	_, _ = r.conn.Do("QUIT") // the connection ends anyhow
	_ = r.conn.Close()
}

// ask asks PING and ROLE together. ROLE answers while the server loads its data, and
// where it refuses writes; PING does not.
func (r *redisClient) ask(ctx context.Context) (role.Fact, error) {
	defer r.until(ctx)()
	err := errors.Join(r.conn.Send("PING"), r.conn.Send("ROLE"), r.conn.Flush())
	if err != nil {
		return role.Fact{}, err
	}
	_, ping := r.conn.Receive()
	answer, err := r.conn.Receive()
	if err == nil {
		err = ping
	}
	if _, ok := errors.AsType[redis.Error](ping); !ok && ping != nil {
		return role.Fact{}, ping
	}
	f, err := redisFact(answer, err)
	if err == nil && f.Position == 0 && f.Role == role.Replica {
		f.Position = r.position
	}
	r.position = f.Position
	return f, err
}

// redisFact reads the answer to ROLE, and the error of PING or ROLE.
func redisFact(answer any, err error) (role.Fact, error) {
	var refuses string // writes
	if said, ok := errors.AsType[redis.Error](err); ok {
		word, _, _ := strings.Cut(string(said), " ")
		switch word {
		case "LOADING":
			return role.Fact{}, &startingError{said}
		case "NOAUTH", "NOPERM", "WRONGPASS", "DENIED":
			return role.Fact{}, refused(said)
		case "MISCONF": // it cannot save its data, and takes no writes
			refuses = string(said)
		case "MASTERDOWN": // a replica that does not answer clients while its link is down
		default:
			return role.Fact{}, fmt.Errorf("it answers %w", said)
		}
	} else if err != nil {
		return role.Fact{}, err
	}
	values, _ := answer.([]any)
	switch kind := redisText(values, 0); {
	case kind == "master" && len(values) >= 2:
		f := role.Fact{Role: role.Primary, Position: redisOffset(values, 1), Bytes: true, Detail: refuses}
		if refuses != "" {
			f.Role, f.Detached = role.Replica, true
		}
		return f, nil
	case kind == "slave" && len(values) >= 5:
		f := role.Fact{Role: role.Replica, Position: redisOffset(values, 4), Bytes: true}
		switch state := redisText(values, 3); state {
		case "connected":
		case "sync":
			return role.Fact{}, &startingError{errors.New("it loads the data of its primary")}
		default:
			f.Detail = "the link to the primary is down (" + state + ")"
		}
		return f, nil
	case kind == "sentinel":
		return role.Fact{}, refused(errors.New("it is a sentinel, which has no role"))
	}
	return role.Fact{}, fmt.Errorf("the answer to ROLE has %d parts, which is none of Redis", len(values))
}

// redisText returns the text of a value; empty for none.
func redisText(values []any, i int) string {
	if i >= len(values) {
		return ""
	}
	text, _ := values[i].([]byte)
	return string(text)
}

// redisOffset returns an offset of the replication stream; zero for none.
func redisOffset(values []any, i int) uint64 {
	n, _ := values[i].(int64)
	return uint64(max(n, 0))
}
