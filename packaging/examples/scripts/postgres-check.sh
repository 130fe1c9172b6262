#!/bin/sh
# Check script for PostgreSQL 12 or later: the primary is usable, and so is a
# standby that may be promoted. An old primary that comes back is not: a line of
# its history ended where the standby was promoted, so its timeline is behind.
#
# A server that cannot be asked is unknown, which is exit status 75: all its
# connections are taken, it starts up or does not answer, it refuses the login,
# or psql is missing.
#
# postgres-promote.sh notes who became primary, and in which timeline.
set -eu

host=${1%:*} host=${host#[} host=${host%]}
export PGHOST="$host" PGPORT="${1##*:}"
export PGUSER="${PGUSER:-understudy}" PGDATABASE="${PGDATABASE:-postgres}"
export PGPASSFILE="${PGPASSFILE:-/etc/understudy/pgpass}"
export PGCONNECT_TIMEOUT="${PGCONNECT_TIMEOUT:-2}" PGOPTIONS='-c statement_timeout=2s'

unusable() { echo "$1"; exit 1; }

# The first 8 digits of a segment's name are its timeline.
answer=$(psql -XAtq -F ' ' -c "
	select pg_is_in_recovery(),
	       (select max(('x' || left(name, 8))::bit(32)::int) from pg_ls_waldir() where name ~ '^[0-9A-F]{24}\$'),
	       case when pg_is_in_recovery() then pg_is_wal_replay_paused() else false end" 2>&1) || {
	echo "${answer%%
*}" # the first line has the reason
	exit 75
}
read -r recovery timeline paused <<END
${answer##*
}
END

noted='' since=0
note=${STATE_DIR:-/var/lib/understudy}/$UNDERSTUDY_RELAY.postgres
if [ -e "$note" ]; then read -r noted since <"$note" || exit 75; fi

[ "$timeline" -ge "$since" ] ||
	unusable "timeline $timeline has ended, $noted went on in $since: make this a standby again (pg_rewind)"

if [ "$recovery" = f ]; then
	[ "$timeline" -gt "$since" ] || [ -z "$noted" ] || [ "$noted" = "$1" ] ||
		unusable "a second primary in timeline $timeline, beside $noted"
	exit 0
fi

# A standby.
[ "$UNDERSTUDY_EVENT" != start ] || unusable 'a standby: no host is promoted when understudy starts'
[ "$noted" != "$1" ] || unusable 'it was the primary and is a standby now'
[ "$paused" = f ] || unusable 'a standby whose replay is paused'
