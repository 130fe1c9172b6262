#!/bin/sh
# Trigger for a DNS record at Cloudflare: gives it the new primary's address.
#
#   cloudflare.header     Authorization: Bearer TOKEN          (mode 0600)
#   cloudflare.dns        ZONE_ID RECORD_ID
#   cloudflare.addresses  a line for each host: db1:5432 192.0.2.1
set -eu

dir=${CLOUDFLARE_DIR:-/etc/understudy}
read -r zone record <"$dir/cloudflare.dns"
address=$(awk -v host="$1" '$1 == host { print $2 }' "$dir/cloudflare.addresses")
[ -n "$address" ] || { echo "no address for $1 in $dir/cloudflare.addresses"; exit 1; }

cloudflare() {
	curl -fsS --max-time 8 --retry 2 --retry-max-time 20 -o /dev/null -H "@$dir/cloudflare.header" "$@" \
		"${CLOUDFLARE_API:-https://api.cloudflare.com/client/v4}/zones/$zone/dns_records/$record"
}

if [ "${UNDERSTUDY_DRY_RUN:-}" = 1 ]; then
	cloudflare # the token, the zone and the record are right
	exit 0
fi
cloudflare -X PATCH -H 'Content-Type: application/json' --data "{\"content\":\"$address\"}"
echo "the record has $address"
