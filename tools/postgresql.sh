#!/usr/bin/env bash
# Start a throw-away PostgreSQL server for the tests and print its URL; `tools/postgresql.sh stop FOLDER` ends it,
# and `restart` lets every connection break.
#   export HANSA_TEST_POSTGRESQL=$(tools/postgresql.sh start FOLDER)
set -euo pipefail

action=${1:?start, restart or stop}
folder=${2:?a folder of its own}
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
[ -n "$bin" ] || bin=$(dirname "$(command -v pg_ctl)")

# PostgreSQL refuses to run as root; Debian's package brings a user for it.
as() { if [ "$(id -u)" -eq 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }

case $action in
start)
    mkdir -p "$folder"
    [ "$(id -u)" -ne 0 ] || chown postgres "$folder"
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    as "$bin/initdb" -D "$folder/data" --auth=trust --username=hansa --encoding=UTF8 >/dev/null
    as "$bin/pg_ctl" -D "$folder/data" -l "$folder/log" -w \
        -o "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories=$folder" start >/dev/null
    echo "postgresql://hansa@127.0.0.1:$port/postgres"
    ;;
restart)
    as "$bin/pg_ctl" -D "$folder/data" -l "$folder/log" -m immediate -w restart >/dev/null
    ;;
stop)
    as "$bin/pg_ctl" -D "$folder/data" -m fast -w stop >/dev/null
    ;;
esac
