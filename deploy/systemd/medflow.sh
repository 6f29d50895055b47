#!/bin/sh
# medflow by hand, as its services run it: their user, settings and folders. For root (/usr/local/sbin/medflow).
# systemd reads the settings, as root, so that their file need not be readable to anybody else.
exec systemd-run --quiet --pipe --wait --collect --uid=medflow --gid=medflow \
    --property=EnvironmentFile=/etc/medflow/medflow.env --property=StateDirectory=medflow \
    --setenv=MEDFLOW_HOME=/var/lib/medflow/home --setenv=PREFECT_HOME=/var/lib/medflow/prefect \
    --setenv=COLUMNS="${COLUMNS:-120}" --working-directory="$PWD" -- /opt/medflow/bin/medflow "$@"
