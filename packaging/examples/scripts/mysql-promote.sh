#!/bin/sh
# Trigger for MariaDB 10.5 or MySQL 8.0.22 with GTIDs, or later: makes the elected
# host writable, when it has applied all that it has received and the old
# primary is read-only or cannot be reached.
set -eu

new=$1 old=${UNDERSTUDY_OLD:-}
dir=${STATE_DIR:-/var/lib/understudy}
note=$dir/$UNDERSTUDY_RELAY.mysql
[ -n "${UNDERSTUDY_ROLE:-}" ] || { [ -d "$dir" ] && [ -w "$dir" ]; } || { echo "cannot note the primary in $dir: set state_dir"; exit 1; }

# sql HOST:PORT STATEMENTS [OPTION]
sql() {
	host=${1%:*} host=${host#[} host=${host%]} port=${1##*:}
	shift
	timeout 15 mysql --defaults-extra-file="${MYSQL_DEFAULTS:-/etc/understudy/mysql.cnf}" --connect-timeout=3 \
		-h "$host" -P "$port" --protocol=tcp -NB -e "$@"
}

# replica FIELD: the end of a field's name in the new host's replica status.
replica() { sql "$new" 'show replica status\G' --column-names | sed -n "s/^ *[A-Za-z]*_$1: //p"; }

# fence makes the old primary read-only and waits for the new one to have all.
fence() {
	trap 'sql "$old" "set global read_only = 0"' EXIT # unless this succeeds
	trap 'exit 1' TERM
	case $(sql "$old" 'select version()') in
	*MariaDB*)
		sql "$old" 'set global read_only = 1'
		end=$(sql "$old" 'select @@gtid_binlog_pos')
		[ "$(sql "$new" "select master_gtid_wait('$end', 10)")" = 0 ]
		;;
	*)
		sql "$old" 'set global super_read_only = 1'
		end=$(sql "$old" "select replace(@@gtid_executed, '\n', '')")
		[ "$(sql "$new" "select wait_for_executed_gtid_set('$end', 10)")" = 0 ]
		;;
	esac
	trap - EXIT TERM
}

# applied: whether all that was received is applied within 10 s.
applied() {
	for _ in $(seq 100); do
		case $(replica SQL_Running_State) in *'has read all relay log'*) return 0 ;; esac
		sleep 0.1
	done
	return 1
}

read_only=$(sql "$new" 'select @@global.read_only')
[ "${UNDERSTUDY_DRY_RUN:-}" != 1 ] || exit 0

if [ "$read_only" = 1 ] && [ -n "$(replica SQL_Running)" ]; then
	was=unknown
	if [ -n "$old" ]; then was=$(sql "$old" 'select @@global.read_only') || was=unknown; fi
	case $UNDERSTUDY_EVENT,$was in
	start,*) echo 'no host is promoted when understudy starts'; exit 1 ;;
	*,0) fence ;;
	*,1) ;; # it cannot be written to
	failover,*) echo "$old cannot be asked, and comes back read-only; $new lagged by ${UNDERSTUDY_LAG_SECONDS:-an unknown number of} seconds when last seen" ;;
	*) echo "$old cannot be asked, so it cannot be made read-only"; exit 1 ;;
	esac
	sql "$new" 'stop replica io_thread'
	applied
	sql "$new" 'stop replica; set global read_only = 0; reset replica all'
else
	sql "$new" 'set global read_only = 0'
fi
if [ -z "${UNDERSTUDY_ROLE:-}" ]; then # the note is for mysql-check.sh
	echo "$new" >"$note.$$"
	mv "$note.$$" "$note"
fi
echo "$new is the primary"
