#!/bin/sh
# Trigger for a load balancer at Cloudflare: puts the new primary's pool first,
# the others behind it in their order.
#
#   cloudflare.header    Authorization: Bearer TOKEN          (mode 0600)
#   cloudflare.balancer  ZONE_ID LOAD_BALANCER_ID
#   cloudflare.pools     a line for each host: db1:5432 POOL_ID
set -eu

dir=${CLOUDFLARE_DIR:-/etc/understudy}
read -r zone balancer <"$dir/cloudflare.balancer"
pools=$(awk -v host="$1" '
	$1 == host { first = "\"" $2 "\"" }
	$1 != host && NF == 2 { rest = rest ",\"" $2 "\"" }
	END { if (first) print first rest }' "$dir/cloudflare.pools")
[ -n "$pools" ] || { echo "no pool for $1 in $dir/cloudflare.pools"; exit 1; }

cloudflare() {
	curl -fsS --max-time 8 --retry 2 --retry-max-time 20 -o /dev/null -H "@$dir/cloudflare.header" "$@" \
		"${CLOUDFLARE_API:-https://api.cloudflare.com/client/v4}/zones/$zone/load_balancers/$balancer"
}

if [ "${UNDERSTUDY_DRY_RUN:-}" = 1 ]; then
	cloudflare # the token, the zone and the load balancer are right
	exit 0
fi
cloudflare -X PATCH -H 'Content-Type: application/json' --data "{\"default_pools\":[$pools]}"
echo "the pools are $pools"
