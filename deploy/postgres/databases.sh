#!/usr/bin/env bash
# Two databases, each with an owner that cannot reach the other: medflow's store, and Prefect's.
# The PostgreSQL image runs this once, when its volume is new; on a server of your own, run it as a superuser with
# PGHOST and the like set. It may be run again: what is there stays, and passwords are set to the ones given.
set -euo pipefail
: "${MEDFLOW_DB_PASSWORD:?the password of the role medflow}" "${PREFECT_DB_PASSWORD:?the password of the role prefect}"

# The passwords go in through the environment, never through the arguments, which any user of the machine can list
database() {
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres \
        --set name="$1" <<'SQL'
\getenv password ROLE_PASSWORD
SELECT format('CREATE ROLE %I LOGIN', :'name') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
SELECT format('ALTER ROLE %I PASSWORD %L', :'name', :'password') \gexec
SELECT format('CREATE DATABASE %I OWNER %I ENCODING ''UTF8'' TEMPLATE template0', :'name', :'name')
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', :'name') \gexec
SQL
}

ROLE_PASSWORD=$MEDFLOW_DB_PASSWORD database medflow
ROLE_PASSWORD=$PREFECT_DB_PASSWORD database prefect
