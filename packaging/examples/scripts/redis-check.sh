#!/bin/sh
# Check script for Redis 5 or later: the primary is usable, and so is a replica
# that has the primary's data. An old primary that comes back is not: its data
# has another history (replication id) than the one that was noted.
#
# A server that cannot be asked is unknown, which is exit status 75: it has all
# the clients it may have, it does not answer, it refuses the password, or
# redis-cli is missing.
#
# redis-promote.sh notes who became primary, and the id of its history.
set -eu

host=${1%:*} host=${host#[} host=${host%]}
port=${1##*:}
REDISCLI_AUTH=$(cat "${REDIS_PASSWORD_FILE:-/etc/understudy/redis.password}") || exit 75
export REDISCLI_AUTH

unusable() { echo "$1"; exit 1; }
value() { echo "$info" | sed -n "s/^$1://p"; }

info=$(timeout 3 redis-cli -h "$host" -p "$port" info replication 2>&1 | tr -d '\r')
role=$(value role) id=$(value master_replid) before=$(value master_replid2)

noted='' history=''
note=${STATE_DIR:-/var/lib/understudy}/$UNDERSTUDY_RELAY.redis
if [ -e "$note" ]; then read -r noted history <"$note" || exit 75; fi

case $role in
master)
	[ -z "$noted" ] || [ "$noted" = "$1" ] || [ "$before" = "$history" ] ||
		unusable "a second primary, beside $noted: make this a replica (replicaof)"
	# Its id is another one after a restart.
	if [ "$UNDERSTUDY_EVENT,$noted" = "reselect,$1" ] && [ "$id" != "$history" ]; then
		echo "$1 $id" >"$note.check"
		mv "$note.check" "$note"
	fi
	;;
slave)
	[ "$UNDERSTUDY_EVENT" != start ] || unusable 'a replica: no host is promoted when understudy starts'
	[ "$noted" != "$1" ] || unusable 'it was the primary and is a replica now'
	[ "$(value master_sync_in_progress)" = 0 ] || unusable 'a replica that is still loading its data'
	[ "$id" = "$history" ] || [ "$before" = "$history" ] || unusable "a replica that does not have the data of $noted"
	;;
*)
	echo "no answer: $info"
	exit 75
	;;
esac
