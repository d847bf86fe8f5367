# A copy of Redis, taken as a replica takes one; the newest $KEEP stay. Written aside and renamed: what is there is whole.
set -eu
folder=${FOLDER:-/backup}
file="$folder/redis-$(date -u +%Y%m%dT%H%M%SZ).rdb"
# The password is in REDISCLI_AUTH.
# shellcheck disable=SC2086
"${CLI:-valkey-cli}" -h "$REDIS_HOST" -p "$REDIS_PORT" --user backup ${TLS_FLAGS:-} --rdb "$folder/.tmp.rdb"
mv "$folder/.tmp.rdb" "$file"
ls -1 "$folder"/redis-*.rdb | sort -r | tail -n "+$((KEEP + 1))" | while read -r old; do rm -- "$old"; done
