#!/bin/sh
# Trigger for PostgreSQL 12 or later: makes the elected host the primary, if it
# is not, once the old one cannot write any more or cannot be reached.
#
# With a role check (--role) the terms of the hosts keep an old primary out.
# Without one, the script notes the primary for postgres-check.sh.
set -eu

new=$1 old=${UNDERSTUDY_OLD:-}
dir=${STATE_DIR:-/var/lib/understudy}
note=$dir/$UNDERSTUDY_RELAY.postgres
[ -n "${UNDERSTUDY_ROLE:-}" ] || { [ -d "$dir" ] && [ -w "$dir" ]; } || { echo "cannot note the primary in $dir: set state_dir"; exit 1; }
export PGUSER="${PGUSER:-understudy}" PGDATABASE="${PGDATABASE:-postgres}"
export PGPASSFILE="${PGPASSFILE:-/etc/understudy/pgpass}"
export PGCONNECT_TIMEOUT=3

# sql HOST:PORT [-c] SQL...
sql() {
	host=${1%:*} host=${host#[} host=${host%]} port=${1##*:}
	shift
	PGHOST=$host PGPORT=$port psql -XAtq -v ON_ERROR_STOP=1 "$@"
}

# answers HOST:PORT QUERY: whether the answer is t within 10 s.
answers() {
	for _ in $(seq 100); do
		[ "$(sql "$1" -c "$2")" != t ] || return 0
		sleep 0.1
	done
	return 1
}

writable() {
	sql "$1" -c 'alter system reset default_transaction_read_only' -c 'select pg_reload_conf()' >/dev/null
}

# fence makes the old primary read-only and sends its clients away. The standby
# goes on receiving, and has all that was committed when this returns.
fence() {
	trap 'writable "$old"' EXIT # unless this succeeds
	trap 'exit 1' TERM
	sql "$old" -c 'alter system set default_transaction_read_only = on' -c 'select pg_reload_conf()' >/dev/null
	answers "$old" "select current_setting('default_transaction_read_only')::bool"
	sql "$old" -c "select pg_terminate_backend(pid) from pg_stat_activity
		where backend_type = 'client backend' and pid <> pg_backend_pid()
		and usesysid not in (select oid from pg_roles where rolsuper)" >/dev/null
	end=$(sql "$old" -c 'select pg_current_wal_lsn()')
	answers "$new" "select pg_last_wal_replay_lsn() >= '$end'"
	trap - EXIT TERM
}

recovery=$(sql "$new" -c 'select pg_is_in_recovery()') || {
	# The same host again, as when all its connections are taken.
	noted=''
	if [ -e "$note" ]; then read -r noted _ <"$note"; fi
	case $UNDERSTUDY_EVENT,${UNDERSTUDY_ROLE:-},$noted in
	reselect,primary,* | reselect,,"$new") ;;
	*) exit 1 ;;
	esac
	echo "$new cannot be asked, and goes on as the primary that it was"
	exit 0
}
if [ "$recovery" = t ]; then
	standby=unknown # whether the old one is a standby already
	if [ -n "$old" ]; then standby=$(sql "$old" -c 'select pg_is_in_recovery()') || standby=unknown; fi
	if [ "${UNDERSTUDY_DRY_RUN:-}" = 1 ]; then
		sql "$new" -c "select has_function_privilege('pg_promote(bool, int)', 'execute')" | grep -qx t
		exit 0
	fi
	case $UNDERSTUDY_EVENT,$standby in
	start,*) echo 'no host is promoted when understudy starts'; exit 1 ;;
	*,f) fence ;;
	*,t) ;; # a standby already
	failover,*) echo "$old cannot be asked; $new lacked ${UNDERSTUDY_LAG_BYTES:-an unknown number of} bytes when last seen" ;;
	*) echo "$old cannot be asked, so it cannot be made read-only"; exit 1 ;;
	esac
	[ "$(sql "$new" -c 'select pg_promote(true, 20)')" = t ]
elif [ "${UNDERSTUDY_DRY_RUN:-}" = 1 ]; then
	exit 0
fi
writable "$new"
timeline=$(sql "$new" -c "select ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int")
if [ -z "${UNDERSTUDY_ROLE:-}" ]; then
	echo "$new $timeline" >"$note.$$"
	mv "$note.$$" "$note"
fi
echo "$new is the primary, in timeline $timeline"
