# shellcheck shell=bash
# Postgres nodes in Docker containers: the backend `docker` of nodes.sh, whose header has the
# contract. To be sourced by it.
#
# A node is two containers and a volume. One container does nothing but hold the network: the
# address and a cut outlive the server, even a removed one, and a stopped server refuses connections
# like one whose machine goes on. The other has `postgres` as its first process. This machine talks to the
# container's own address, because a published port is answered by Docker's proxy even when nothing
# behind it does.
#
# The entrypoint of the image is not used. The image needs a user postgres, Postgres' programs and
# `sleep` on PATH, and PGDATA at or below a volume that belongs to postgres: the official image of
# every version, and scripts/docker-postgres-image. Settings live in the server's container at
# /walhouse.conf, not in the data, so that a clone does not get those of its primary.
#
# Everything made carries the label walhouse-nodes=ID with the id that DIR/id has; that is how
# another process finds it, and how nodes_end finds all of it and nothing else.
#
#   POSTGRES_IMAGE    default: postgres:$POSTGRES_VERSION, which is 15 by default
#   PG_FSYNC          on or off (default: off)

NODES_IMAGE=${POSTGRES_IMAGE:-postgres:${POSTGRES_VERSION:-15}}
NODES_DIR=
NODES_ID=
NODES_PGDATA=
NODES_VOLUME=

# --- the backend

nodes_begin() {
    mkdir -p "$1" || return 1
    NODES_DIR=$(cd "$1" && pwd)
    docker_answers || {
        fail "reach Docker: no daemon answers. Start it, or: scripts/docker-postgres-image"
        return 1
    }
    docker image inspect "$NODES_IMAGE" >/dev/null 2>&1 ||
        timeout 900 docker pull --quiet "$NODES_IMAGE" >&2 || {
        fail "pull $NODES_IMAGE. On a machine that reaches no registry, make an image:" \
            "POSTGRES_IMAGE=\$(scripts/docker-postgres-image)"
        return 1
    }
    read_image_layout || return 1
    if [ ! -s "$NODES_DIR/id" ]; then
        # Before anything is made: who is interrupted removes what is there by then.
        echo "walhouse-$(od -A n -N 4 -t x4 /dev/urandom | tr -d ' ')" >"$NODES_DIR/id" || return 1
    fi
    NODES_ID=$(cat "$NODES_DIR/id")
    docker network inspect "$NODES_ID" >/dev/null 2>&1 ||
        quietly docker network create --label "walhouse-nodes=$NODES_ID" "$NODES_ID" || return 1
    say "ready: Docker, with $NODES_IMAGE and a network $NODES_ID"
}

nodes_end() {
    local label dir things
    [ -n "$NODES_ID" ] || return 0
    docker_answers || {
        fail "remove what there is of $NODES_ID: no Docker daemon answers"
        return 1
    }
    label=label=walhouse-nodes=$NODES_ID
    for dir in "$NODES_DIR"/*/; do
        [ ! -f "$dir/address" ] || keep_log "$(basename "$dir")"
    done
    mapfile -t things < <(docker ps --all --quiet --filter "$label")
    [ ${#things[@]} = 0 ] || quietly docker rm --force --volumes "${things[@]}" || return 1
    mapfile -t things < <(docker volume ls --quiet --filter "$label")
    [ ${#things[@]} = 0 ] || quietly docker volume rm --force "${things[@]}" || return 1
    mapfile -t things < <(docker network ls --quiet --filter "$label")
    [ ${#things[@]} = 0 ] || quietly docker network rm "${things[@]}" || return 1
    rm -f "$NODES_DIR/id" "$NODES_DIR"/*/address "$NODES_DIR"/*/cut
    say "removed: the containers, volumes and network of $NODES_ID"
    NODES_ID=
}

# quietly COMMAND...: the ids and warnings of Docker are of interest only where it fails.
quietly() {
    local said
    said=$("$@" 2>&1) || {
        say "$said"
        return 1
    }
}

docker_answers() { timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

read_image_layout() {
    NODES_PGDATA=$(docker image inspect "$NODES_IMAGE" \
        --format '{{range .Config.Env}}{{println .}}{{end}}' | sed -n 's/^PGDATA=//p')
    NODES_VOLUME=$(docker image inspect "$NODES_IMAGE" \
        --format '{{range $path, $_ := .Config.Volumes}}{{println $path}}{{end}}' | head -n 1)
    case $NODES_PGDATA/ in
    "${NODES_VOLUME:-none}"/*) ;;
    *) fail "use $NODES_IMAGE: its PGDATA is not at or below a volume of it" ;;
    esac
}

# --- making and removing a node

node_init() {
    local name=$1
    make_folder_and_network "$name" || return 1
    # shellcheck disable=SC2016 # the inner shell expands it
    run_once "$name" sh -ec '
        mkdir -p "$PGDATA"
        chmod 700 "$PGDATA"
        initdb -D "$PGDATA" -U postgres -A trust -E UTF8 --locale=C --no-sync
        echo "include = '\''/walhouse.conf'\''" >>"$PGDATA/postgresql.conf"
        echo "host all all all trust" >>"$PGDATA/pg_hba.conf"
        echo "host replication all all trust" >>"$PGDATA/pg_hba.conf"
    ' >"$NODES_DIR/$name/init.log" 2>&1 || {
        tail -n 20 "$NODES_DIR/$name/init.log" >&2
        fail "create a cluster for the node $name: see $NODES_DIR/$name/init.log"
        return 1
    }
    # The socket is where every image lets postgres write.
    cat >"$NODES_DIR/$name/walhouse.conf" <<CONF || return 1
listen_addresses = '*'
port = 5432
unix_socket_directories = '/tmp'
wal_level = logical
max_wal_senders = 20
max_replication_slots = 20
hot_standby = on
shared_buffers = 64MB
fsync = ${PG_FSYNC:-off}
full_page_writes = ${PG_FSYNC:-off}
CONF
    make_server "$name"
}

node_clone() {
    local name=$1 from=$2 address version settings
    address=$(node_address "$from") || return 1
    version=$(node_sql "$from" 'SHOW server_version_num') || return 1
    make_folder_and_network "$name" || return 1
    # With WAL reserved from now on, so that nothing after the copy can be missing.
    node_sql "$from" "SELECT pg_create_physical_replication_slot('$name', true)
        WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '$name')" \
        >/dev/null || return 1
    # shellcheck disable=SC2016 # the inner shell expands it
    run_once "$name" sh -ec '
        mkdir -p "$PGDATA"
        chmod 700 "$PGDATA"
        pg_basebackup -h "$1" -p "$2" -U postgres -D "$PGDATA" -X stream -S "$3" -c fast --no-sync
        : >"$PGDATA/standby.signal"
    ' sh "${address%:*}" "${address##*:}" "$name" >"$NODES_DIR/$name/init.log" 2>&1 || {
        tail -n 20 "$NODES_DIR/$name/init.log" >&2
        fail "copy the node $from to $name: see $NODES_DIR/$name/init.log"
        return 1
    }
    # Of two lines with one name the last counts.
    cp "$NODES_DIR/$from/walhouse.conf" "$NODES_DIR/$name/walhouse.conf" || return 1
    make_server "$name" || return 1
    settings=(
        "primary_conninfo=host=${address%:*} port=${address##*:} user=postgres dbname=postgres"
        "primary_slot_name=$name"
        hot_standby_feedback=on
    )
    settings[0]+=" application_name=$name"
    [ "$version" -lt 170000 ] || settings+=(sync_replication_slots=on)
    node_set "$name" "${settings[@]}"
}

node_remove() {
    local name=$1
    [ -f "$NODES_DIR/$name/address" ] || return 0
    keep_log "$name"
    ! container_exists "$NODES_ID-$name" ||
        quietly docker rm --force --volumes "$NODES_ID-$name" || return 1
    quietly docker volume rm --force "$NODES_ID-$name" || return 1
    node_heal "$name" || return 1
    say "removed: the node $name"
}

make_folder_and_network() {
    local name=$1 address
    [[ $name =~ ^[a-z][a-z0-9]*$ ]] || {
        fail "name a node \`$name\`: its slot has that name, too, so only a-z and 0-9"
        return 1
    }
    mkdir -p "$NODES_DIR/$name"
    # That of an earlier node of this name is kept.
    [ ! -f "$NODES_DIR/$name/address" ] || return 0
    quietly docker run --detach --name "$NODES_ID-$name-net" --label "walhouse-nodes=$NODES_ID" \
        --network "$NODES_ID" --hostname "$name" --user postgres --entrypoint sleep \
        "$NODES_IMAGE" infinity || return 1
    address=$(docker inspect "$NODES_ID-$name-net" \
        --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}') || return 1
    echo "$address:5432" >"$NODES_DIR/$name/address"
}

# run_once NAME COMMAND...: as postgres, with the node's network and data, before there is a server.
run_once() {
    local name=$1 program=$2
    shift 2
    ! docker volume inspect "$NODES_ID-$name" >/dev/null 2>&1 || {
        fail "make the node $name: it is there already"
        return 1
    }
    quietly docker volume create --label "walhouse-nodes=$NODES_ID" "$NODES_ID-$name" || return 1
    docker run --rm --label "walhouse-nodes=$NODES_ID" --network "container:$NODES_ID-$name-net" \
        --volume "$NODES_ID-$name:$NODES_VOLUME" --user postgres --entrypoint "$program" \
        "$NODES_IMAGE" "$@"
}

make_server() {
    local name=$1
    # More shared memory than the 64 MB of Docker, which a parallel query can exceed.
    quietly docker create --name "$NODES_ID-$name" --label "walhouse-nodes=$NODES_ID" \
        --network "container:$NODES_ID-$name-net" --volume "$NODES_ID-$name:$NODES_VOLUME" \
        --shm-size 256m --user postgres --entrypoint postgres \
        "$NODES_IMAGE" -D "$NODES_PGDATA" || return 1
    node_set "$name"
}

# What the server said, all the time of its container: for who looks when that is gone.
keep_log() {
    ! container_exists "$NODES_ID-$1" ||
        docker logs --timestamps "$NODES_ID-$1" >"$NODES_DIR/$1/log" 2>&1 || true
}

container_exists() { docker container inspect "$1" >/dev/null 2>&1; }

# --- the server of a node

node_set() {
    local name=$1 file=$NODES_DIR/$1/walhouse.conf setting
    shift
    for setting in "$@"; do
        echo "${setting%%=*} = $(pg_quote "${setting#*=}")"
    done >>"$file" || return 1
    # It keeps its mode in the container, where it belongs to root.
    chmod 644 "$file"
    quietly docker cp "$file" "$NODES_ID-$name:/walhouse.conf"
}

node_reload() {
    local name=$1 before
    before=$(node_sql "$name" 'SELECT pg_conf_load_time()') || return 1
    quietly docker kill --signal HUP "$NODES_ID-$name" || return 1
    wait_for 30 "the settings of the node $name are loaded" has_loaded_since "$name" "$before"
}

has_loaded_since() { [ "$(node_sql "$1" 'SELECT pg_conf_load_time()')" != "$2" ]; }

node_start() {
    local name=$1 started=$SECONDS
    quietly docker start "$NODES_ID-$name" || return 1
    until docker exec "$NODES_ID-$name" pg_isready -q -h /tmp 2>/dev/null; do
        if ! server_runs "$name"; then
            docker logs --tail 20 "$NODES_ID-$name" >&2 || true
            fail "start the node $name: its server has ended, see above"
            return 1
        elif [ $((SECONDS - started)) -ge "$SERVERS_READY_SECONDS" ]; then
            docker logs --tail 20 "$NODES_ID-$name" >&2 || true
            fail "start the node $name: no connections after $SERVERS_READY_SECONDS s, see above"
            return 1
        fi
        sleep 0.05
    done
    [ -e "$NODES_DIR/$name/cut" ] || is_reachable "$name" || {
        fail "reach the node $name at $(node_address "$name"): it accepts connections, but this" \
            "machine has no way to the addresses of its containers (Docker without root, or in a" \
            "virtual machine). Use the local backend."
        return 1
    }
    say "ready: the node $name accepts connections (waited $((SECONDS - started)) s)"
}

server_runs() {
    [ "$(docker inspect --format '{{.State.Running}}' "$NODES_ID-$1" 2>/dev/null)" = true ]
}

is_paused() {
    [ "$(docker inspect --format '{{.State.Paused}}' "$NODES_ID-$1" 2>/dev/null)" = true ]
}

is_reachable() {
    local address
    address=$(node_address "$1") || return 1
    # shellcheck disable=SC2016 # the inner shell expands it
    timeout 5 bash -c 'exec 3<>"/dev/tcp/$1/$2"' bash "${address%:*}" "${address##*:}" 2>/dev/null
}

# kill ends every process of the server at once, as a crash of its machine does.
node_stop() {
    local name=$1 mode=${2:-fast} signal
    case $mode in
    smart) signal=TERM ;;
    fast) signal=INT ;;
    immediate) signal=QUIT ;;
    kill) signal=KILL ;;
    *) fail "stop the node $name: \`$mode\` is not smart, fast, immediate or kill" || return 1 ;;
    esac
    server_runs "$name" || return 0
    # A frozen one does not hear that it is to end. Killed it is as it is.
    [ "$mode" = kill ] || ! is_paused "$name" || node_resume "$name" || return 1
    quietly docker kill --signal "$signal" "$NODES_ID-$name" || return 1
    timeout 60 docker wait "$NODES_ID-$name" >/dev/null || {
        fail "stop the node $name ($mode): it still runs after 60 s"
        return 1
    }
    say "stopped: the node $name ($mode)"
}

node_promote() {
    local name=$1
    [ "$(node_sql "$name" 'SELECT pg_promote(true, 60)')" = t ] || {
        fail "promote the node $name: it did not within 60 s"
        return 1
    }
    wait_for 30 "the node $name is writable" is_writable "$name"
}

node_detach() {
    docker run --rm --label "walhouse-nodes=$NODES_ID" --volume "$NODES_ID-$1:$NODES_VOLUME" \
        --user postgres --entrypoint rm "$NODES_IMAGE" "$NODES_PGDATA/standby.signal"
}

is_writable() { [ "$(node_sql "$1" 'SHOW transaction_read_only')" = off ]; }

node_pause() { quietly docker pause "$NODES_ID-$1"; }

node_resume() { quietly docker unpause "$NODES_ID-$1"; }

node_address() {
    cat "$NODES_DIR/$1/address" 2>/dev/null || fail "know the address of $1: there is no such node"
}

# By the socket inside of the container, so that a cut does not matter.
node_sql() {
    docker exec "$NODES_ID-$1" psql -X -q -A -t -v ON_ERROR_STOP=1 -h /tmp -U postgres \
        -d postgres -c "$2"
}

node_signal() {
    local name=$1 pid=$2 signal=${3#SIG}
    if [ "$pid" = 1 ]; then
        # The first process does not get everything from inside.
        quietly docker kill --signal "$signal" "$NODES_ID-$name"
    else
        # shellcheck disable=SC2016 # the inner shell expands it
        docker exec "$NODES_ID-$name" sh -c 'kill -s "$1" "$2"' sh "$signal" "$pid"
    fi
}

# --- the network of a node

# Packets to and from it are dropped and nobody is told. Addresses still resolve, so that a new
# connection hangs, too. The rules are in the network of the node, which takes them along.
node_cut() {
    : >"$NODES_DIR/$1/cut"
    firewall "$1" --insert INPUT ! --in-interface lo --jump DROP &&
        firewall "$1" --insert OUTPUT ! --out-interface lo --jump DROP
}

node_heal() {
    firewall "$1" --flush && rm -f "$NODES_DIR/$1/cut"
}

# firewall NAME ARGUMENT...: with the iptables of this machine, for images have none. Who is not root
# but may use Docker is root in a container.
firewall() {
    local holder=$NODES_ID-$1-net pid
    shift
    if [ "$(id -u)" = 0 ]; then
        pid=$(docker inspect --format '{{.State.Pid}}' "$holder") || return 1
        command -v iptables >/dev/null || install_debs iptables || return 1
        nsenter --target "$pid" --net -- iptables --wait 10 "$@"
    else
        quietly docker run --rm --label "walhouse-nodes=$NODES_ID" --network "container:$holder" \
            --user root --cap-add NET_ADMIN --security-opt label=disable --volume /:/machine \
            --entrypoint chroot "$NODES_IMAGE" /machine iptables --wait 10 "$@"
    fi
}
