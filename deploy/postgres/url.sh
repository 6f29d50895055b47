# shellcheck shell=bash
# Read by `.`: an SQLAlchemy URL as libpq's variables, so that no password is among the arguments of a program.
if [[ $1 =~ ^postgresql(\+[a-z]+)?://([^:@/]+)(:([^@/]*))?@([^:/]+)(:([0-9]+))?/([^?]+) ]]; then
    export PGUSER=${BASH_REMATCH[2]} PGPASSWORD=${BASH_REMATCH[4]} PGHOST=${BASH_REMATCH[5]}
    export PGPORT=${BASH_REMATCH[7]:-5432} PGDATABASE=${BASH_REMATCH[8]}
else
    echo "not a URL like postgresql+psycopg://user:password@host/database" >&2
    exit 1
fi
