#!/usr/bin/env bash
# A backup of medflow while it runs:  backup.sh FOLDER
#
# FOLDER/TIME/ gets medflow.dump and prefect.dump, FOLDER/objects/ what is not there yet. The databases first: an object
# is written before the row that names it and is never changed, so objects copied later have all that the dump names.
#
# Reads the settings that the services have: MEDFLOW_DATABASE_URL, MEDFLOW_HOME or MEDFLOW_OBJECTS, and
# PREFECT_SERVER_DATABASE_CONNECTION_URL (without it, Prefect's database is left out). A bucket is not copied: turn on
# its versioning. Needs pg_dump of the server's version or newer, and rsync.
set -euo pipefail
folder=${1:?usage: backup.sh FOLDER}
objects=${MEDFLOW_OBJECTS:-${MEDFLOW_HOME:?}/objects}

dump() { (
    # shellcheck source=postgres/url.sh
    . "$(dirname "${BASH_SOURCE[0]}")/postgres/url.sh" "$1"
    pg_dump --format=custom --no-owner --no-privileges --file="$2.part"
    pg_restore --list "$2.part" >/dev/null # it can be read
    mv "$2.part" "$2"
); }

umask 077
into=$folder/$(date --utc +%Y-%m-%dT%H-%M-%SZ)
mkdir -p "$into"
dump "${MEDFLOW_DATABASE_URL:?}" "$into/medflow.dump"
if [ -n "${PREFECT_SERVER_DATABASE_CONNECTION_URL:-}" ]; then
    dump "$PREFECT_SERVER_DATABASE_CONNECTION_URL" "$into/prefect.dump"
fi
case $objects in
    *://*) echo "the objects are in $objects: not copied" >&2 ;;
    *) rsync --archive --ignore-existing --exclude='.incoming-*' "$objects/" "$folder/objects/" ;;
esac
echo "$into"
