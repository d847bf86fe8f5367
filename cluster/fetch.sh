#!/usr/bin/env bash
# cluster/fetch.sh SERVER [--lock]: the jars of a server that tests start, into .cluster/SERVER. They are those that
# SERVER/jars.sha256 names, no more and no less, with the same bytes; --lock writes that file anew instead.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
server="$1" lock="$here/$1/jars.sha256" target="$here/../.cluster/$1"

complete() {
    [ -d "$1" ] && cd "$1" && sha256sum --quiet --strict -c "$lock" > /dev/null 2>&1 \
        && diff -q <(ls -- *.jar) <(awk '{print $2}' "$lock") > /dev/null
}

if [ "${2:-}" != --lock ] && (complete "$target"); then
    exit 0
fi
if ! command -v mvn > /dev/null || ! command -v java > /dev/null; then
    echo "cluster: fetching $server needs Maven (mvn) and Java 17 or later on the PATH" >&2
    exit 1
fi

mkdir -p "$target"
fresh="$(mktemp -d "$target.XXXXXX")"
trap 'rm -rf "$fresh"' EXIT
mvn -B -ntp -q -f "$here/$server/pom.xml" dependency:copy-dependencies -DoutputDirectory="$fresh"
if [ "${2:-}" = --lock ]; then
    (cd "$fresh" && sha256sum -- *.jar) > "$lock"
elif ! (complete "$fresh"); then
    echo "cluster: the jars that Maven fetched for $server are not those of $lock:" >&2
    (cd "$fresh" && sha256sum -- *.jar | diff "$lock" - >&2) || true
    exit 1
fi
rm -rf "$target"
mv "$fresh" "$target"
chmod 755 "$target"
