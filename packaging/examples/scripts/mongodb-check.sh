#!/bin/sh
# Check script for MongoDB 5 or later: the member of the replica set that is its
# primary is usable. The set elects it; there is nothing to trigger. Asking for
# it needs no account. One that cannot be asked is unknown, which is exit status 75.
set -eu

status=0
mongosh --quiet --norc "mongodb://$1/?directConnection=true&serverSelectionTimeoutMS=3000" \
	--eval 'quit(db.hello().isWritablePrimary ? 0 : 42)' || status=$?
case $status in
0) ;;
42) echo 'not the primary of its replica set'; exit 1 ;;
*) exit 75 ;;
esac
