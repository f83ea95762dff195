# shellcheck shell=bash
# Postgres servers that drills may damage, on one of two backends. To be sourced, after servers.sh.
#
#   nodes_choose [docker|local]   source that backend, and set NODES_BACKEND. Without a choice:
#                                 docker where a daemon answers and the image is there or can be
#                                 pulled, else local.
#
# A backend is a file nodes_BACKEND.sh that defines exactly this. NAME is a short word of a-z and
# 0-9. What is said goes to stderr; whatever does not succeed says why and returns non-zero.
#
#   nodes_begin DIR            prepare the backend; all its files are below DIR, and so is what it
#                              knows: begun again on the same DIR by another process, it goes on
#                              with the nodes that are there.
#   nodes_end                  stop and remove everything that was made below DIR: exactly that, and
#                              whatever its state (paused, cut, stopped, half made).
#   node_init NAME             a fresh cluster: superuser `postgres`, trust for SQL and replication,
#                              wal_level=logical, max_wal_senders and max_replication_slots 20,
#                              hot_standby on. Not running.
#   node_set NAME KEY=VALUE... settings from the next start or reload on; VALUE is not quoted.
#   node_reload NAME           the running server reads its settings.
#   node_clone NAME FROM       a physical standby of the running FROM: its data, standby.signal,
#                              primary_conninfo with dbname=postgres and application_name=NAME, a
#                              physical slot named NAME on FROM as primary_slot_name (one that is
#                              there is used), hot_standby_feedback=on, and from 17 on
#                              sync_replication_slots=on. Settings of FROM are taken over. Not
#                              started. NAME may have existed before and been removed.
#   node_start NAME            returns when it accepts connections.
#   node_stop NAME [smart|fast|immediate|kill]   default fast; kill is SIGKILL to all of it.
#   node_promote NAME          returns when it is writable.
#   node_detach NAME           a stopped standby is to start as a primary, on the timeline it is on: as
#                              a restored backup or snapshot does.
#   node_remove NAME           stops it and removes its data. Its address stays reserved for NAME.
#   node_pause NAME            all its processes are frozen.
#   node_resume NAME           they run on.
#   node_cut NAME              its network goes silent: packets are dropped, in both directions and
#                              of connections that exist, without a RST. Undone by node_heal, by
#                              nodes_end, and when the script is interrupted.
#   node_heal NAME             packets flow again.
#   node_address NAME          prints HOST:PORT that works from this machine and from walhouse on
#                              it; the same through restarts and through node_remove.
#   node_sql NAME SQL          one statement; prints rows, unaligned, tuples only.
#   node_signal NAME PID SIGNAL   to a process by the id that Postgres shows.
#
# Variables:
#   POSTGRES_VERSION   14 to 18 (default: 15)
#   POSTGRES_IMAGE     for docker (default: postgres:POSTGRES_VERSION)

NODES_LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NODES_BACKEND=
POSTGRES_VERSION=${POSTGRES_VERSION:-15}

nodes_docker_works() {
    local image=${POSTGRES_IMAGE:-postgres:$POSTGRES_VERSION}
    [ -f "$NODES_LIB/nodes_docker.sh" ] && command -v docker >/dev/null || return 1
    timeout 10 docker info >/dev/null 2>&1 || return 1
    docker image inspect "$image" >/dev/null 2>&1 ||
        timeout 300 docker pull -q "$image" >/dev/null 2>&1
}

nodes_choose() {
    local backend=${1:-}
    if [ -z "$backend" ]; then
        if nodes_docker_works; then backend=docker; else backend=local; fi
    fi
    case $backend in
    docker | local) ;;
    *) fail "choose a backend: \`$backend\` is neither docker nor local" || return 1 ;;
    esac
    [ -f "$NODES_LIB/nodes_$backend.sh" ] || fail "choose a backend: there is no $backend" || return 1
    # shellcheck disable=SC1090 # one of two, see above
    source "$NODES_LIB/nodes_$backend.sh" || return 1
    # shellcheck disable=SC2034 # for the caller
    NODES_BACKEND=$backend
}
