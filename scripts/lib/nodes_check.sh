#!/usr/bin/env bash
# Holds a backend of nodes.sh to the contract that stands there: drives every function once and looks
# at what came of it.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/lib/nodes_check.sh DIR docker|local

DIR is for what the backend writes; its logs stay there. The variables are those of
scripts/lib/nodes.sh. Prints one line a check and `N passed, N failed`; exits with 0 if none failed.
TEXT
}

LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=servers.sh
source "$LIB/servers.sh"
# shellcheck source=nodes.sh
source "$LIB/nodes.sh"

DIR=
BACKEND=
PASSED=0
FAILED=0
VERSION=
ADDRESS=
# For docker: what was made has this label, and its containers used these volumes.
LABEL=
VOLUMES=()
# A session that is held open, as walhouse holds its own: process, and files to and from it.
SESSION=
SESSION_IN=
SESSION_OUT=

# check FACT COMMAND...
check() {
    local fact=$1
    shift
    if "$@" >>"$DIR/said" 2>&1; then
        PASSED=$((PASSED + 1))
        echo "ok      $fact"
    else
        FAILED=$((FAILED + 1))
        echo "FAILED  $fact: $*"
    fi
}

# --- what is asked of a node

gives() { [ "$(node_sql "$1" "$2")" = "$3" ]; }

becomes() { wait_for 20 "$2 gives $3 on $1" gives "$1" "$2" "$3"; }

not() { ! "$@"; }

# url NAME: of the node as this machine reaches it.
url() { echo "postgresql://postgres@$(node_address "$1")/postgres"; }

psql_here() { timeout 20 psql -X -q -A -t -v ON_ERROR_STOP=1 "$@"; }

here_gives() { [ "$(psql_here "$(url "$1")" -c "$2")" = "$3" ]; }

# Asked of the walsender's grammar, which only a replication connection has.
replication_connects() {
    psql_here "$(url "$1")?replication=database" -c 'IDENTIFY_SYSTEM' | grep -q '|'
}

keeps_address() { [ "$(node_address "$1")" = "$ADDRESS" ]; }

# A connection to the node neither comes about nor is refused.
connecting_hangs() {
    local status=0
    timeout 3 psql -X -d "$(url "$1")" -c 'SELECT 1' || status=$?
    [ "$status" = 124 ]
}

is_refused() {
    local status=0
    timeout 10 psql -X -d "$(url "$1")" -c 'SELECT 1' || status=$?
    [ "$status" = 2 ]
}

# --- a session that is held open

session_open() {
    mkfifo "$DIR/session.in"
    : >"$DIR/session.out"
    psql -X -q -A -t "$(url "$1")" <"$DIR/session.in" >"$DIR/session.out" 2>>"$DIR/said" &
    SESSION=$!
    exec {SESSION_IN}>"$DIR/session.in"
    SESSION_OUT=$DIR/session.out
    rm "$DIR/session.in"
}

# To a session that is lost it says nothing: what should come of it will not.
session_send() { echo "$1" >&"$SESSION_IN" || true; }

session_said() { grep -qx -- "$1" "$SESSION_OUT"; }

stays_unsaid() { sleep "$2" && ! session_said "$1"; }

session_says() { wait_for 20 "the session said $1" session_said "$1"; }

session_runs() { kill -0 "$SESSION" 2>/dev/null; }

# psql notices at its next statement that the connection is gone.
session_is_lost() {
    session_send 'SELECT 1;' 2>/dev/null
    wait_for 10 "the session is lost" not session_runs
}

session_pid() {
    session_send "SELECT 'pid ' || pg_backend_pid();"
    wait_for 10 "the session says its process" session_said 'pid [0-9]*' &&
        sed -n 's/^pid //p' "$SESSION_OUT" | tail -n 1
}

session_close() {
    [ -n "$SESSION" ] || return 0
    kill "$SESSION" 2>/dev/null || true
    wait "$SESSION" 2>/dev/null || true
    exec {SESSION_IN}>&-
    SESSION=
}

# --- the checks

check_init() {
    check 'a node is made' node_init a
    check 'a node that is there is not made again' not node_init a
    check 'a setting is taken' node_set a work_mem=5MB "log_line_prefix=it's %p "''
    check 'a made node does not run' is_refused a
    check 'it starts' node_start a
    ADDRESS=$(node_address a)
    # Without it nothing else makes sense.
    VERSION=$(node_sql a 'SHOW server_version_num')
    check 'SQL works from this machine' here_gives a 'SELECT 40 + 2' 42
    check 'an error of SQL is a failure' not node_sql a 'SELECT 1/0'
    check 'replication connects' replication_connects a
    check 'wal_level is logical' gives a 'SHOW wal_level' logical
    check 'max_wal_senders is 20' gives a 'SHOW max_wal_senders' 20
    check 'max_replication_slots is 20' gives a 'SHOW max_replication_slots' 20
    check 'hot_standby is on' gives a 'SHOW hot_standby' on
    check 'the setting is in force' gives a 'SHOW work_mem' 5MB
    check 'a setting may have quotes' gives a 'SHOW log_line_prefix' "it's %p "
    check 'another setting is taken' node_set a work_mem=6MB
    check 'it waits for a reload' gives a 'SHOW work_mem' 5MB
    check 'the settings are loaded' node_reload a
    check 'the other setting is in force' becomes a 'SHOW work_mem' 6MB
}

# Unlogged rows survive an orderly stop and no other: they tell what a stop really was.
check_stop() {
    local mode kept
    check 'a table is made' node_sql a 'CREATE TABLE kept (n int)'
    check 'an unlogged table is made' node_sql a 'CREATE UNLOGGED TABLE orderly (n int)'
    for mode in smart fast immediate kill; do
        case $mode in
        smart | fast) kept=1 ;;
        *) kept=0 ;;
        esac
        check 'the tables are emptied' node_sql a 'TRUNCATE kept, orderly'
        check 'a row is written' node_sql a 'INSERT INTO kept VALUES (1)'
        check 'an unlogged row is written' node_sql a 'INSERT INTO orderly VALUES (1)'
        [ "$mode" != fast ] || session_open a
        check "it stops ($mode)" node_stop a "$mode"
        if [ "$mode" = fast ]; then
            check 'a session is lost by a fast stop' session_is_lost
            session_close
        fi
        check "it refuses after that ($mode)" is_refused a
        check "stopping a stopped one is nothing ($mode)" node_stop a "$mode"
        check "it starts after that ($mode)" node_start a
        check "no row is lost ($mode)" gives a 'SELECT count(*) FROM kept' 1
        check "it was $mode" gives a 'SELECT count(*) FROM orderly' "$kept"
        check "its address stays ($mode)" keeps_address a
        check "the address works ($mode)" here_gives a 'SELECT 1' 1
    done
}

check_clone() {
    check 'a standby is made' node_clone b a
    check 'it does not run' is_refused b
    check 'it starts' node_start b
    check 'it is a standby' gives b 'SELECT pg_is_in_recovery()' t
    check 'the primary knows its name' becomes a \
        "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'b'" 1
    check 'it uses its slot' becomes a \
        "SELECT count(*) FROM pg_replication_slots
            WHERE slot_name = 'b' AND slot_type = 'physical' AND active" 1
    check 'it sends feedback' gives b 'SHOW hot_standby_feedback' on
    check 'its primary_conninfo names the database' gives b \
        "SELECT setting LIKE '%dbname=postgres%' FROM pg_settings
            WHERE name = 'primary_conninfo'" t
    check 'settings of the primary are taken over' gives b 'SHOW work_mem' 6MB
    if [ "$VERSION" -ge 170000 ]; then
        check 'it synchronises slots' gives b 'SHOW sync_replication_slots' on
        check 'a failover slot is made' node_sql a \
            "SELECT pg_create_logical_replication_slot('failover', 'pgoutput', false, false, true)"
        check 'the standby has it' becomes b \
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'failover' AND synced" 1
    fi
    check 'a row is written' node_sql a 'INSERT INTO kept VALUES (2)'
    check 'rows arrive at it' becomes b 'SELECT count(*) FROM kept' 2
}

check_pause() {
    session_open a
    session_send "SELECT 'before pause';"
    check 'a session is open' session_says 'before pause'
    check 'it is paused' node_pause a
    session_send "SELECT 'while paused';"
    check 'the session hangs' stays_unsaid 'while paused' 2
    check 'it is not lost' session_runs
    check 'connecting hangs while paused' connecting_hangs a
    check 'it is resumed' node_resume a
    check 'the session goes on' session_says 'while paused'
    session_close
    check 'it is paused again' node_pause a
    check 'a paused one is killed' node_stop a kill
    check 'it starts after that' node_start a
    check 'it is paused a third time' node_pause a
    check 'a paused one stops' node_stop a fast
    check 'it starts after that, too' node_start a
}

check_cut() {
    session_open a
    session_send "DO \$\$ BEGIN PERFORM pg_sleep(1); INSERT INTO kept VALUES (3); END \$\$;"
    session_send "SELECT 'while cut';"
    sleep 0.5
    check 'its network is cut' node_cut a
    check 'a session hangs' stays_unsaid 'while cut' 3
    check 'it is not lost' session_runs
    check 'connecting hangs while cut' connecting_hangs a
    check 'nothing arrives at the standby' gives b 'SELECT count(*) FROM kept' 2
    check 'its network heals' node_heal a
    check 'the session goes on' session_says 'while cut'
    check 'the row arrives at the standby' becomes b 'SELECT count(*) FROM kept' 3
    check 'its address stays' keeps_address a
    check 'the address works' here_gives a 'SELECT 1' 1
    session_close
    check 'it is cut again' node_cut a
    check 'a cut one is killed' node_stop a kill
    check 'it heals while it is down' node_heal a
    check 'it starts after that' node_start a
    check 'the address works after that' here_gives a 'SELECT 1' 1
    check 'healing a whole one is nothing' node_heal a
}

check_signal() {
    local pid
    session_open a
    pid=$(session_pid 2>>"$DIR/said") || pid=none
    check 'a backend is stopped' node_signal a "$pid" STOP
    session_send "SELECT 'while stopped';"
    check 'the session hangs' stays_unsaid 'while stopped' 1
    check 'others go on' here_gives a 'SELECT 1' 1
    check 'a backend continues' node_signal a "$pid" CONT
    check 'the session goes on' session_says 'while stopped'
    check 'a backend is ended' node_signal a "$pid" TERM
    check 'it is gone' becomes a "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid" 0
    check 'the session is lost' session_is_lost
    session_close
}

check_promote() {
    check 'the primary is killed' node_stop a kill
    check 'the standby is promoted' node_promote b
    check 'it writes' node_sql b 'INSERT INTO kept VALUES (4)'
    check 'it has all rows' gives b 'SELECT count(*) FROM kept' 4
    check 'it is on a new timeline' here_gives b \
        "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)" 00000002
    if [ "$VERSION" -ge 170000 ]; then
        check 'it has the failover slot' gives b \
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'failover'" 1
    fi
}

check_remove() {
    check 'the old primary is removed' node_remove a
    check 'its address refuses' is_refused a
    check 'it is made again as a standby' node_clone a b
    check 'it starts' node_start a
    check 'it is a standby' gives a 'SELECT pg_is_in_recovery()' t
    check 'rows arrive at it' becomes a 'SELECT count(*) FROM kept' 4
    check 'it has the address that it had' keeps_address a
    check 'removing a running one' node_remove a
    check 'removing a removed one is nothing' node_remove a
    check 'the other one goes on' here_gives b 'SELECT 1' 1
}

# The end finds nodes in every state: running, paused, cut, stopped, never started.
check_end() {
    check 'one is cut for the end' node_cut b
    check 'one is made for the end' node_init c
    check 'one is paused for the end' node_start c
    check 'it is paused for the end' node_pause c
    check 'one is not started for the end' node_init d
    check 'what there is is known' remember_volumes
    check 'another process goes on with what is there' another_process node_address c
    check 'another process ends it' another_process nodes_end
    check 'nothing is left' nothing_is_left
    check 'ending what has ended is nothing' nodes_end
}

another_process() {
    (
        nodes_choose "$BACKEND" && nodes_begin "$DIR" && "$@"
    )
}

nothing_is_left() {
    if [ "$BACKEND" = docker ]; then
        local volume label=$LABEL
        [ -z "$(docker ps --all --quiet --filter "$label")" ] || return 1
        [ -z "$(docker network ls --quiet --filter "$label")" ] || return 1
        [ -z "$(docker volume ls --quiet --filter "$label")" ] || return 1
        # Those that an image brings have no label.
        for volume in "${VOLUMES[@]}"; do
            ! docker volume inspect "$volume" >/dev/null 2>&1 || return 1
        done
    else
        local cwd
        for cwd in /proc/[0-9]*/cwd; do
            case $(readlink "$cwd" 2>/dev/null || true) in
            "$DIR"/*) return 1 ;;
            esac
        done
        # The rules of the whole machine; another check may run.
        [ ! -e "$DIR/b/cut" ]
    fi
}

# What nothing_is_left will look for.
remember_volumes() {
    [ "$BACKEND" = docker ] || return 0
    local containers
    LABEL=label=$(docker network ls --filter "name=${NODES_ID:-}" --format '{{.Labels}}')
    mapfile -t containers < <(docker ps --all --quiet --filter "$LABEL")
    mapfile -t VOLUMES < <(docker inspect "${containers[@]}" \
        --format '{{range .Mounts}}{{println .Name}}{{end}}' | grep .)
    [ ${#VOLUMES[@]} -ge "${#containers[@]}" ]
}

on_exit() {
    local status=$?
    trap - EXIT
    session_close
    nodes_end || status=1
    exit "$status"
}

main() {
    [ $# = 2 ] || { usage >&2; exit 2; }
    mkdir -p "$1"
    DIR=$(cd "$1" && pwd)
    BACKEND=$2
    : >"$DIR/said"
    command -v psql >/dev/null || install_debs postgresql-client
    nodes_choose "$BACKEND"
    nodes_begin "$DIR"
    trap on_exit EXIT
    # Writing to a session that is lost is no end of the check.
    trap '' PIPE
    trap 'exit 130' INT
    trap 'exit 143' TERM
    local part
    for part in init stop clone pause cut signal promote remove end; do
        echo "== $part"
        "check_$part"
    done
    [ "$FAILED" = 0 ] || say "what was said is in $DIR/said"
    echo "$PASSED passed, $FAILED failed"
    [ "$FAILED" = 0 ]
}

main "$@"
