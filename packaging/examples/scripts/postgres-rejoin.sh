#!/bin/sh
# Rejoin script (on_standby) for PostgreSQL 12 or later: makes an old primary that
# came back a standby of the new one, with pg_rewind. It changes nothing on a host
# that is no old primary of the same cluster. Which host was promoted last is known by
# the role check (--role), or by the note of postgres-promote.sh.
#
# Commands run on the old primary, as the user postgres, through REJOIN_SHELL.
set -eu

old=$1 new=$UNDERSTUDY_NEW
host=${old%:*} host=${host#[} host=${host%]}
source=${new%:*} source=${source#[} source=${source%]}
data=${REJOIN_DATA:-/var/lib/postgresql/15/main}
start=${REJOIN_START:-pg_ctlcluster 15 main start}
stop=${REJOIN_STOP:-pg_ctlcluster 15 main stop -m fast}
follow=${REJOIN_FOLLOW:-user=standby}            # how it follows the primary
rewind=${REJOIN_REWIND:-user=rewind dbname=postgres} # how pg_rewind reads it
export PGUSER="${PGUSER:-understudy}" PGDATABASE="${PGDATABASE:-postgres}"
export PGPASSFILE="${PGPASSFILE:-/etc/understudy/pgpass}" PGCONNECT_TIMEOUT=3

unfit() { echo "$1"; exit 1; }
on() { ${REJOIN_SHELL:-ssh -o BatchMode=yes -o ConnectTimeout=5 -l postgres} "$host" "$1"; }

# identify HOST PORT: its cluster and, of a primary, its timeline.
identify() {
	PGHOST=$1 PGPORT=$2 psql -XAtq -F ' ' -c "select system_identifier, case when pg_is_in_recovery() then 0
		else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int end from pg_control_system()"
}

if [ -z "${UNDERSTUDY_ROLE:-}" ]; then
	read -r noted _ <"${STATE_DIR:-/var/lib/understudy}/$UNDERSTUDY_RELAY.postgres"
	[ "$noted" = "$new" ] || unfit "$noted was promoted last, and not $new"
fi
was=$(identify "$host" "${old##*:}")
is=$(identify "$source" "${new##*:}")
[ "${was% *}" = "${is% *}" ] || unfit "$old belongs to another cluster than $new"
[ "${was#* }" != 0 ] || unfit "$old is a standby: nothing to rewind"
[ "${was#* }" -lt "${is#* }" ] || unfit "the timeline of $new, ${is#* }, is not later than that of $old, ${was#* }"

# pg_rewind would see the old timeline without it.
PGHOST=$source PGPORT=${new##*:} psql -XAtq -v ON_ERROR_STOP=1 -c checkpoint

to="host=$source port=${new##*:}"
on "$stop"
on "PATH=\$PATH:$(printf %s "${REJOIN_PATH:-/usr/lib/postgresql/15/bin}") &&
	pg_rewind -D '$data' --source-server '$to $rewind' &&
	echo \"primary_conninfo = '$to $follow'\" >>'$data/postgresql.auto.conf' &&
	touch '$data/standby.signal'" || unfit "pg_rewind failed: $old is stopped and has to be made a standby by hand"
on "$start"
echo "$old follows $new"
