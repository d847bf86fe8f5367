# Deletes what was archived of days more than $KEEP_DAYS ago: <archive>/<topic>/date=YYYY-MM-DD, and the same under
# <archive>/<table>/topic=<topic>. The days are those of the events, so this is the retention of users' data.
set -eu
archive=${ARCHIVE:-/archive}
oldest=$(date -u -d "${TODAY:-today} -$KEEP_DAYS days" +%F)
for day in "$archive"/*/date=* "$archive"/*/topic=*/date=*; do
    [ -d "$day" ] || continue
    # Names sort as dates do.
    first=$(printf '%s\n%s\n' "$oldest" "${day##*/date=}" | sort | head -n 1)
    if [ "$first" != "$oldest" ]; then
        echo "deleting $day"
        rm -r -- "$day"
    fi
done
