#!/usr/bin/env bash
# Brings a backup back, with nothing of medflow running:  restore.sh FOLDER/TIME
#
# Into empty databases (postgres/databases.sh makes them), and an object folder that may hold some already. Reads the
# same settings as backup.sh. Afterwards: medflow db upgrade, medflow deploy, and the services.
set -euo pipefail
from=${1:?usage: restore.sh FOLDER/TIME}
objects=${MEDFLOW_OBJECTS:-${MEDFLOW_HOME:?}/objects}

# In one transaction: a restore that fails has changed nothing, and a database that is not empty makes it fail
bring_back() { (
    # shellcheck source=postgres/url.sh
    . "$(dirname "${BASH_SOURCE[0]}")/postgres/url.sh" "$1"
    pg_restore --single-transaction --exit-on-error --no-owner --no-privileges --dbname="$PGDATABASE" "$2"
); }

bring_back "${MEDFLOW_DATABASE_URL:?}" "$from/medflow.dump"
if [ -n "${PREFECT_SERVER_DATABASE_CONNECTION_URL:-}" ]; then
    bring_back "$PREFECT_SERVER_DATABASE_CONNECTION_URL" "$from/prefect.dump"
fi
case $objects in
    *://*) echo "the objects are in $objects: not copied" >&2 ;;
    *)
        mkdir -p "$objects"
        rsync --archive --ignore-existing "$(dirname "$from")/objects/" "$objects/"
        ;;
esac
