#!/bin/sh
# Check script for MariaDB 10.5 or MySQL 8.0.22, or later: the primary is
# usable, and so is a replica whose replication runs. Every server has
# read_only = 1 in its configuration, so an old primary that comes back cannot be
# written to.
#
# A server that cannot be asked is unknown, which is exit status 75: all its
# connections are taken, it does not answer, it refuses the login, or mysql is
# missing.
#
# mysql-promote.sh notes who became primary.
set -eu

host=${1%:*} host=${host#[} host=${host%]}
port=${1##*:}

unusable() { echo "$1"; exit 1; }
sql() { # STATEMENT [OPTION]
	timeout 2 mysql --defaults-extra-file="${MYSQL_DEFAULTS:-/etc/understudy/mysql.cnf}" --connect-timeout=2 \
		-h "$host" -P "$port" --protocol=tcp -NB -e "$@"
}

read_only=$(sql 'select @@global.read_only') || exit 75
status=$(sql 'show replica status\G' --column-names) || exit 75
applying=$(echo "$status" | sed -n 's/^ *[A-Za-z]*_SQL_Running: //p')

noted=''
note=${STATE_DIR:-/var/lib/understudy}/$UNDERSTUDY_RELAY.mysql
if [ -e "$note" ]; then read -r noted <"$note" || exit 75; fi

case $read_only,$applying in
0,*) [ -z "$noted" ] || [ "$noted" = "$1" ] || [ "$UNDERSTUDY_EVENT" = reselect ] ||
	unusable "a second primary, beside $noted: make this a replica" ;;
1,Yes)
	[ "$UNDERSTUDY_EVENT" != start ] || unusable 'a replica: no host is promoted when understudy starts'
	[ "$noted" != "$1" ] || unusable 'it was the primary and is a replica now'
	;;
1,'') [ "$noted" = "$1" ] || unusable "neither primary nor replica: make this a replica of $noted" ;; # a primary was restarted
*) unusable 'a replica that does not apply what it receives' ;;
esac
