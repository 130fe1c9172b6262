#!/bin/sh
# Check script for MongoDB 5 or later: the member of the replica set that is its
# primary is usable. The set elects it; there is nothing to trigger. Asking for
# it needs no account.
set -eu

exec mongosh --quiet --norc "mongodb://$1/?directConnection=true&serverSelectionTimeoutMS=3000" \
	--eval 'quit(db.hello().isWritablePrimary ? 0 : 1)'
