#!/usr/bin/env bash
# Installs or upgrades medflow on a machine with systemd, Python 3.11 or newer and PostgreSQL within reach. As root:
#
#   deploy/systemd/install.sh              from this tree: builds the wheels, then as below
#   deploy/systemd/install.sh WHEELS       from a folder of wheels (medflow and its plugins)
#
# May be run again: it upgrades what is there, and never changes a file below /etc/medflow that exists.
# pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, ...) say where packages come from. DESTDIR=FOLDER installs below a
# folder, without user and services, to look at or to package.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$(cd "$here/../.." && pwd)
root=${DESTDIR:-}
prefix=/opt/medflow
python=${PYTHON:-python3}

say() { printf 'medflow: %s\n' "$*" >&2; }

user() {
    [ -n "$root" ] && return
    getent passwd medflow >/dev/null ||
        useradd --system --user-group --home-dir /var/lib/medflow --shell /usr/sbin/nologin medflow
}

wheels() {
    say "building the wheels"
    "$python" -m venv "$scratch/build"
    "$scratch/build/bin/pip" wheel --quiet --no-deps --wheel-dir "$scratch/wheels" \
        "$tree" "$tree"/plugins/medflow-monai "$tree"/plugins/medflow-risk "$tree"/plugins/medflow-genomics
}

# A new environment each time, put in place of the old one by a rename: a pip that fails leaves the old one working.
# It is built under its final path, which its scripts name; the one before is kept as .before for going back.
environment() {
    local target=$root$prefix
    say "installing into $target"
    rm -rf "$target.before"
    if [ -e "$target" ]; then mv "$target" "$target.before"; fi
    if ! { "$python" -m venv "$target" &&
        "$target/bin/pip" install --quiet --disable-pip-version-check --constraint "$tree/constraints.txt" \
            "$(echo "$1"/medflow-[0-9]*.whl)[dask,s3]" "$1"/medflow_*.whl &&
        "$target/bin/pip" check && as_user "$target/bin/python" -c 'import medflow.cli'; }; then
        rm -rf "$target"
        if [ -e "$target.before" ]; then mv "$target.before" "$target"; fi
        say "the packages could not be installed; what was there before is untouched"
        exit 1
    fi
}

# A Python below somebody's home, say, works for root alone
as_user() {
    if [ -n "$root" ]; then return; fi
    setpriv --reuid=medflow --regid=medflow --clear-groups "$@" || { say "the user medflow cannot run $1"; return 1; }
}

# Secrets are made here and written nowhere else; the two that PostgreSQL must know are read by postgres/databases.sh
settings() {
    local folder=$root/etc/medflow file name secret
    install -d -m 0755 "$folder"
    for file in medflow.env prefect-server.env; do
        [ -e "$folder/$file" ] && continue
        install -m 0600 "$here/$file.example" "$folder/$file"
        for name in MEDFLOW_DB_PASSWORD PREFECT_DB_PASSWORD PREFECT_PASSWORD; do
            secret=$(secret_of "$name")
            sed -i "s/@$name@/$secret/" "$folder/$file"
        done
        say "wrote $folder/$file: read it, and change what is not so here"
    done
}

# One value a name, however many files name it
secret_of() {
    local file=$scratch/$1
    [ -e "$file" ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$file"
    cat "$file"
}

units() {
    local folder=$root/etc/systemd/system
    install -d -m 0755 "$folder/medflow-.service.d"
    install -m 0644 "$here"/medflow*.service "$here"/medflow*.timer "$here"/medflow.target "$folder"
    install -m 0644 "$here"/medflow-.service.d/*.conf "$folder/medflow-.service.d"
    install -D -m 0755 "$here/medflow.sh" "$root/usr/local/sbin/medflow"
    install -D -m 0755 -t "$root/usr/local/lib/medflow" "$tree/deploy/backup.sh" "$tree/deploy/restore.sh"
    install -D -m 0755 -t "$root/usr/local/lib/medflow/postgres" "$tree"/deploy/postgres/*.sh
}

databases() {
    if ! command -v psql >/dev/null || ! getent passwd postgres >/dev/null; then
        say "no PostgreSQL on this machine: make the databases where it is, with deploy/postgres/databases.sh"
        return
    fi
    value() { sed -nE "s|^$1=[^:]+://[^:]+:([^@]+)@127\.0\.0\.1.*|\1|p" "$root/etc/medflow/$2"; }
    MEDFLOW_DB_PASSWORD=$(value MEDFLOW_DATABASE_URL medflow.env)
    PREFECT_DB_PASSWORD=$(value PREFECT_SERVER_DATABASE_CONNECTION_URL prefect-server.env)
    if [ -z "$MEDFLOW_DB_PASSWORD" ] || [ -z "$PREFECT_DB_PASSWORD" ]; then
        say "the settings name a database elsewhere: it is left alone"
        return
    fi
    export MEDFLOW_DB_PASSWORD PREFECT_DB_PASSWORD
    setpriv --reuid=postgres --regid=postgres --init-groups "$tree/deploy/postgres/databases.sh"
}

start() {
    systemctl daemon-reload
    systemctl enable medflow.target medflow-prefect-server medflow-setup medflow-serve medflow-receive medflow-metrics
    systemctl list-unit-files 'medflow-worker@*' | grep -q enabled || systemctl enable medflow-worker@cpu
    systemctl enable --now medflow-backup.timer
    systemctl restart medflow.target
    say "started: systemctl status 'medflow-*', then medflow status"
}

[ -n "$root" ] || [ "$(id -u)" = 0 ] || { say "run it as root"; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { say "Python 3.11 or newer is needed (PYTHON=...)"; exit 1; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

given=${1:-}
if [ -z "$given" ]; then
    wheels
    given=$scratch/wheels
fi
user
if [ -z "$root" ] && systemctl is-active --quiet medflow.target; then
    say "stopping the services; workers finish what they have in hand"
    systemctl stop medflow.target 'medflow-*.service'
fi
environment "$given"
settings
units
if [ -n "$root" ]; then
    say "installed below $root; nothing was started"
    exit 0
fi
databases
start
