#!/bin/sh
# Starts the servers that the tests can use, and prints what they need to know:
#
#     server/testdata/services.sh start > services.env   # DOWNLINK_TEST_POSTGRES=..., DOWNLINK_TEST_S3=...
#     set -a; . ./services.env; set +a; go test ./...
#     server/testdata/services.sh stop "$DOWNLINK_TEST_SERVICES"
#
# They run on free ports of the loopback interface, from a temporary directory:
#
#   - PostgreSQL, without fsync. Where it is missing and apt-get may be used,
#     Debian's package is installed.
#   - versitygw, an S3 server over a folder, with a bucket named downlink. It is
#     built once, into the user's cache directory.
#
# Messages go to standard error.
set -eu

versitygw=v1.8.0
cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}/downlink-services/versitygw-$versitygw

say() { echo "services: $*" >&2; }

# program prints the path of a program of PostgreSQL.
program() {
    command -v "$1" 2>/dev/null && return
    for dir in /usr/lib/postgresql/*/bin /opt/homebrew/opt/postgresql*/bin; do
        if [ -x "$dir/$1" ]; then echo "$dir/$1"; return; fi
    done
    return 1
}

# owner runs a command as the user that PostgreSQL runs as: it refuses to be root.
owner() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid=postgres --regid=postgres --clear-groups "$@"
    else
        "$@"
    fi
}

start() {
    dir=$(mktemp -d "${TMPDIR:-/tmp}/downlink-services.XXXXXX")
    echo "DOWNLINK_TEST_SERVICES=$dir"
    start_postgres || { stop "$dir"; exit 1; }
    start_s3 || { stop "$dir"; exit 1; }
    say "stop them with: $0 stop $dir"
}

start_postgres() {
    if ! program initdb >/dev/null; then
        if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
            say "PostgreSQL is not installed (Debian: apt-get install postgresql)"
            return 1
        fi
        say "installing postgresql"
        {
            apt-get update -qq
            # Only the programs are wanted, not a server that runs on its own.
            mkdir -p /etc/postgresql-common
            [ -e /etc/postgresql-common/createcluster.conf ] ||
                echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf
            DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends postgresql
        } >&2
    fi
    if [ "$(id -u)" = 0 ]; then
        id postgres >/dev/null 2>&1 || useradd --system --no-create-home postgres
        chown postgres: "$dir"
    fi
    # Trust is fine: only this machine's loopback reaches it, and it holds nothing.
    owner "$(program initdb)" -D "$dir/data" -U downlink -A trust -E UTF8 --locale=C.UTF-8 --no-sync >"$dir/initdb.log" 2>&1 || {
        cat "$dir/initdb.log" >&2
        return 1
    }
    # Another program may take the port in between, hence the second try.
    for try in 1 2 3; do
        port=$(free_port)
        if owner "$(program pg_ctl)" -D "$dir/data" -l "$dir/data/server.log" -w -t 30 \
            -o "-c listen_addresses=127.0.0.1 -p $port -k $dir -F -c max_connections=300 -c synchronous_commit=off -c full_page_writes=off" \
            start >"$dir/start.log" 2>&1; then
            say "PostgreSQL is up on port $port"
            echo "DOWNLINK_TEST_POSTGRES='postgres://downlink@127.0.0.1:$port/postgres?sslmode=disable'"
            return
        fi
        say "try $try to start PostgreSQL on port $port did not work"
    done
    cat "$dir/start.log" "$dir/data/server.log" >&2
    return 1
}

start_s3() {
    if [ ! -x "$cache/versitygw" ]; then
        say "building versitygw $versitygw"
        GOBIN="$cache" "${GO:-go}" install "github.com/versity/versitygw/cmd/versitygw@$versitygw" >&2 || return 1
    fi
    mkdir -p "$dir/s3/downlink"
    secret=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    for try in 1 2 3; do
        port=$(free_port)
        ROOT_ACCESS_KEY=downlink ROOT_SECRET_KEY="$secret" "$cache/versitygw" --quiet --keep-alive --health /health \
            --port "127.0.0.1:$port" posix "$dir/s3" >"$dir/s3.log" 2>&1 &
        echo $! >"$dir/s3.pid"
        for _ in $(seq 100); do
            if curl -fs -o "$dir/s3.health" "http://127.0.0.1:$port/health"; then
                say "versitygw is up on port $port"
                echo "DOWNLINK_TEST_S3='s3://downlink?region=us-east-1&endpoint=http://127.0.0.1:$port&use_path_style=true'"
                echo "AWS_ACCESS_KEY_ID=downlink"
                echo "AWS_SECRET_ACCESS_KEY=$secret"
                return
            fi
            kill -0 "$(cat "$dir/s3.pid")" 2>/dev/null || break
            sleep 0.1
        done
        kill "$(cat "$dir/s3.pid")" 2>/dev/null || true
        say "try $try to start versitygw on port $port did not work"
    done
    cat "$dir/s3.log" >&2
    return 1
}

# free_port prints a port that nothing listens on.
free_port() {
    while :; do
        port=$(awk 'BEGIN { srand(); print 20000 + int(rand() * 12000) }')
        port=$((port + $$ % 1000))
        listening=$(printf ':%04X ' "$port")
        grep -qs "$listening" /proc/net/tcp /proc/net/tcp6 || { echo "$port"; return; }
        sleep 1 # srand counts in seconds
    done
}

stop() {
    dir=${1:?usage: $0 stop DIR, as printed by start}
    if [ -f "$dir/data/postmaster.pid" ]; then
        owner "$(program pg_ctl)" -D "$dir/data" -m immediate -w stop >&2
    fi
    if [ -f "$dir/s3.pid" ]; then
        kill "$(cat "$dir/s3.pid")" 2>/dev/null || true
    fi
    rm -rf "$dir"
}

case "${1:-}" in
start) start ;;
stop) shift; stop "$@" ;;
*) echo "usage: $0 start | stop DIR" >&2; exit 2 ;;
esac
