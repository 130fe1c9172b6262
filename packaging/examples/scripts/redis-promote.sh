#!/bin/sh
# Trigger for Redis 5 or later: makes the elected host the primary, if it is
# not. An old primary that can still be asked stops writing before, and becomes
# a replica of the new one.
set -eu

new=$1 old=${UNDERSTUDY_OLD:-}
dir=${STATE_DIR:-/var/lib/understudy}
note=$dir/$UNDERSTUDY_RELAY.redis
[ -n "${UNDERSTUDY_ROLE:-}" ] || { [ -d "$dir" ] && [ -w "$dir" ]; } || { echo "cannot note the primary in $dir: set state_dir"; exit 1; }
REDISCLI_AUTH=$(cat "${REDIS_PASSWORD_FILE:-/etc/understudy/redis.password}")
export REDISCLI_AUTH

# redis HOST:PORT COMMAND...
redis() {
	host=${1%:*} host=${host#[} host=${host%]} port=${1##*:}
	shift
	timeout 3 redis-cli -h "$host" -p "$port" "$@" | tr -d '\r'
}
value() { redis "$1" info replication | sed -n "s/^$2://p"; }

# caught_up: whether the new one has all that the old one has, within 10 s.
caught_up() {
	for _ in $(seq 100); do
		[ "$(value "$new" slave_repl_offset)" -lt "$1" ] || return 0
		sleep 0.1
	done
	return 1
}

role=$(value "$new" role)
[ -n "$role" ] || { echo "$new does not say what it is"; exit 1; }
[ "${UNDERSTUDY_DRY_RUN:-}" != 1 ] || exit 0

if [ "$role" = slave ]; then
	was=unknown
	if [ -n "$old" ]; then was=$(value "$old" role); fi
	case $UNDERSTUDY_EVENT,$was in
	start,*) echo 'no host is promoted when understudy starts'; exit 1 ;;
	*,master)
		[ "$(redis "$old" client pause 15000 write)" = OK ]
		trap 'redis "$old" client unpause' EXIT
		trap 'exit 1' TERM
		caught_up "$(value "$old" master_repl_offset)"
		;;
	*,slave) ;;
	failover,*) echo "$old cannot be asked; $new lacked ${UNDERSTUDY_LAG_BYTES:-an unknown number of} bytes when last seen" ;;
	*) echo "$old cannot be asked, so it cannot be stopped from writing"; exit 1 ;;
	esac
	[ "$(redis "$new" replicaof no one)" = OK ]
	if [ "$was" = master ]; then
		host=${new%:*} host=${host#[} host=${host%]}
		redis "$old" replicaof "$host" "${new##*:}"
		redis "$old" config rewrite
	fi
fi
[ "$(redis "$new" config rewrite)" = OK ] || echo "$new will not remember its role after a restart"
if [ -z "${UNDERSTUDY_ROLE:-}" ]; then # the note is for redis-check.sh
	echo "$new $(value "$new" master_replid)" >"$note.$$"
	mv "$note.$$" "$note"
fi
echo "$new is the primary"
