# shellcheck shell=bash
# What drills are made of: servers, walhouse, a load, damage, and what is found afterwards. To be
# sourced by scripts/failover and scripts/soak, after servers.sh and nodes.sh.
#
# Everything lives below STAGE, a folder. `fault REASON` says that something is not as it should be
# and goes on; `broken REASON` ends the drill. Either way it has failed. walhouse runs with its defaults, so that the times are what users get.
#
#   primary NAME [KEY=VALUE...]    a Postgres that runs, with the source tables
#   standby NAME FROM              a physical standby that runs and streams
#   services_up [ARGUMENT...]      Redis and ClickHouse; the arguments are for clickhouse-front
#   instance NAME [VARIABLE=VALUE...]   walhouse as it starts, no more; see await_streaming
#   load_begin, load_end, load_grows N  the write load, and N more transactions of it
#   opening [standby]              all of that: primary `a`, standby `b`, instance `one`, load
#   proxy NAME IP:PORT TO          what walhouse may be told of instead of TO; `order` damages it
#   hosts_are NAME...              what walhouse and the load are told from now on, in this order
#   did WHAT                       what was done, for the table
#   since_now                      the moment that times are counted from
#   visible SECONDS                writes a row; it must be visible so soon after that moment
#   await SECONDS WHAT COMMAND...  or the drill has failed

DRILL_TOOL=$ROOT/target/debug/examples/drill
WALHOUSE=${WALHOUSE_BIN:-$ROOT/target/release/walhouse}
# Longer than anything here takes on a slow machine.
PATIENCE_SECONDS=90
LOGICAL="slot_type = 'logical'"

STAGE=
CLICKHOUSE=
DID=
SINCE=
VISIBLE=
# The Postgres servers that walhouse and the load are told of, in this order.
HOSTS=()

step() { say "== $(date +%T.%3N) $*"; }

fault() {
    say "FAULT: $*"
    [ -z "$STAGE" ] || echo "$*" >>"$STAGE/reasons"
}

broken() {
    fault "$@"
    exit 1
}

did() {
    DID=$*
    step "$DID"
}

await() { wait_for "$@" || broken "$2: not within $1 s"; }

# What was visible before it does not count.
since_now() {
    SINCE=$(date +%s.%N)
    VISIBLE=
}

seconds_since() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN { printf "%.2f", b - a }'; }

# is_at_most A B: for numbers with a fraction.
is_at_most() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a + 0 <= b + 0) }'; }

# json_value FILE NAME: of a flat object.
json_value() { sed -n "s/.*\"$2\":\([^,}]*\).*/\1/p" "$1" | tail -n 1; }

# --- servers

stage_begin() {
    STAGE=$1
    nodes_begin "$STAGE/nodes" || broken "the backend $NODES_BACKEND does not begin"
}

primary() {
    local name=$1
    shift
    node_init "$name" || broken "node $name cannot be made"
    [ $# = 0 ] || node_set "$name" "$@" || broken "node $name takes no settings"
    node_start "$name" || broken "node $name does not start"
    psql -X -q -v ON_ERROR_STOP=1 "postgresql://postgres@$(node_address "$name")/postgres" \
        -f "$ROOT/scripts/lib/tables.sql" || broken "the source tables cannot be made"
    HOSTS+=("$name")
}

standby() {
    node_clone "$1" "$2" || broken "$1 cannot be cloned from $2"
    node_start "$1" || broken "standby $1 does not start"
    await 30 "$1 streams from $2" streams_to "$2" "$1"
    case " ${HOSTS[*]} " in
    *" $1 "*) ;;
    *) HOSTS+=("$1") ;;
    esac
}

# streams_to FROM NAME
streams_to() {
    [ "$(node_sql "$1" "SELECT count(*) FROM pg_stat_replication
        WHERE application_name = '$2' AND state = 'streaming'")" = 1 ]
}

# has_replayed NAME FROM: all of what FROM has written by now.
has_replayed() {
    local lsn
    lsn=$(node_sql "$2" 'SELECT pg_current_wal_flush_lsn()') || return 1
    [ "$(node_sql "$1" "SELECT pg_last_wal_replay_lsn() >= '$lsn'")" = t ]
}

# shellcheck disable=SC2120 # some drills give the front arguments
services_up() {
    redis_start "$STAGE/redis" 0 || broken "Redis does not start"
    clickhouse_start "$STAGE/clickhouse" 0 "$@" || broken "ClickHouse does not start"
    CLICKHOUSE=${SERVER_URL%%\?*}
}

redis_again() {
    redis_start "$STAGE/redis" "$(cat "$STAGE/redis/port")" || broken "Redis does not start again"
}

clickhouse_again() {
    clickhouse_start "$STAGE/clickhouse" "$(cat "$STAGE/clickhouse/port")" ||
        broken "ClickHouse does not start again"
}

clickhouse() { curl -fsS -m 60 --data-binary "$1" "$CLICKHOUSE"; }

# proxy NAME LISTEN TO: passes everything on, see `drill proxy`. `proxy_address` says where it is.
proxy() {
    local dir=$STAGE/proxy-$1
    mkdir -p "$dir"
    mkfifo "$dir/orders"
    launch "$dir" "$DRILL_TOOL" proxy --listen "$2" --to "$3" --address "$dir/address" \
        --orders "$dir/orders"
    wait_for_launched "$dir" "the proxy $1 listens" test -s "$dir/address" ||
        broken "the proxy $1 does not listen"
}

proxy_address() { cat "$STAGE/proxy-$1/address"; }

# order NAME pass|tear|lose: what the proxy does with all that the server sends from now on.
order() {
    launched_runs "$STAGE/proxy-$1" || broken "the proxy $1 has ended"
    echo "$2" >"$STAGE/proxy-$1/orders"
}

hosts_are() { HOSTS=("$@"); }

# hosts: for the tool.
hosts() {
    local name list=
    for name in "${HOSTS[@]}"; do list+=${list:+,}$(node_address "$name"); done
    echo "$list"
}

database_url() {
    local parameters=
    [ ${#HOSTS[@]} = 1 ] || parameters='?target_session_attrs=read-write'
    echo "postgresql://postgres@$(hosts)/postgres$parameters"
}

# end_walsenders NODE: those that stream to walhouse. They are gone when it returns.
end_walsenders() {
    local ended
    ended=$(node_sql "$1" "SELECT count(pg_terminate_backend(active_pid, 5000))
        FROM pg_replication_slots WHERE $LOGICAL AND active") || broken "$1 does not answer"
    [ "$ended" = 2 ] || broken "two walsenders were to be ended, there were $ended"
}

# --- walhouse

# walhouse_settings NAME: one a line.
walhouse_settings() {
    local redis_port
    redis_port=$(cat "$STAGE/redis/port")
    cat <<TEXT
DATABASE_URL=$(database_url)
RUN_REPLICATION_ENABLED=1
RUN_REPLICATION_CLICKHOUSE_URL=$CLICKHOUSE
SESSION_REPLICATION_ENABLED=1
SESSION_REPLICATION_CLICKHOUSE_URL=$CLICKHOUSE
REDIS_HOST=127.0.0.1
REDIS_PORT=$redis_port
REDIS_TLS_DISABLED=1
REPLICATION_HTTP_LISTEN=127.0.0.1:$(cat "$STAGE/instance-$1/http")
TEXT
}

# run_walhouse NAME [ARGUMENT...]: in the foreground, with the settings of the instance.
run_walhouse() {
    local settings
    mapfile -t settings <"$STAGE/instance-$1/settings"
    shift
    env -i "PATH=$PATH" "HOME=${HOME:-/}" "${settings[@]}" "$WALHOUSE" "$@"
}

# A restart under the same name has the same port and log; its settings are written again.
instance() {
    local name=$1 dir=$STAGE/instance-$1 settings
    shift
    mkdir -p "$dir"
    [ -f "$dir/http" ] || free_port >"$dir/http" || broken "no port for walhouse"
    {
        walhouse_settings "$name"
        [ $# = 0 ] || printf '%s\n' "$@"
    } >"$dir/settings"
    mapfile -t settings <"$dir/settings"
    launch "$dir" env -i "PATH=$PATH" "HOME=${HOME:-/}" "${settings[@]}" "$WALHOUSE"
}

metric() {
    curl -fsS -m 5 "http://127.0.0.1:$(cat "$STAGE/instance-$1/http")/metrics" |
        awk -v name="$2" '$1 == name { print $2 }'
}

is_in_state() { [ "$(metric "$1" "walhouse_state{service=\"$2\",state=\"$3\"}")" = 1 ]; }

both_in_state() { is_in_state "$1" runs "$2" && is_in_state "$1" sessions "$2"; }

await_streaming() { await "${2:-$PATIENCE_SECONDS}" "$1 streams both services" both_in_state "$1" streaming; }

await_standing_by() { await "${2:-$PATIENCE_SECONDS}" "$1 stands by" both_in_state "$1" standing_by; }

# Of the instances `one` and `two`.
one_leads_each() {
    local service leaders
    for service in runs sessions; do
        leaders=0
        if is_in_state one "$service" streaming; then leaders=1; fi
        if is_in_state two "$service" streaming; then leaders=$((leaders + 1)); fi
        [ "$leaders" = 1 ] || return 1
    done
}

instance_signal() {
    local pid _
    read -r pid _ <"$STAGE/instance-$1/pid"
    kill "-$2" "$pid"
}

instance_stop() { stop_launched "$STAGE/instance-$1" "${2:-TERM}" || broken "$1 does not end"; }

# log_lines NAME: how many there are, to ask for those after it.
log_lines() { wc -l <"$STAGE/instance-$1/log"; }

# log_says NAME AFTER PATTERN. Without -q: a grep that leaves early would end tail, and so the whole
# pipe, with a failure.
log_says() { tail -n "+$(($2 + 1))" "$STAGE/instance-$1/log" | grep -E -- "$3" >/dev/null; }

# Or the damage was none, and the drill has shown nothing.
it_was_repaired() { log_says one 0 ': repair: ' || fault "it does not say that it repaired anything"; }

# --- the load, the stopwatch, the comparison

load_begin() {
    # What was compared before it does not count.
    # shellcheck disable=SC2034 # for scripts/failover and the soak
    ROWS=
    mkdir -p "$STAGE/load"
    launch "$STAGE/load" "$DRILL_TOOL" load --postgres "$(hosts)" --seed "${DRILL_SEED:-1}" \
        --rate "${DRILL_RATE:-20}" --counts "$STAGE/load/counts"
    wait_for_launched "$STAGE/load" "the load writes" load_has_committed 1 ||
        broken "the load does not write"
}

load_count() { json_value "$STAGE/load/counts" "$1"; }

load_has_committed() {
    launched_runs "$STAGE/load" || return 1
    [ "$(load_count committed)" -ge "$1" ]
}

load_grows() {
    await "${2:-$PATIENCE_SECONDS}" "the load commits $1 more" \
        load_has_committed $(($(load_count committed) + $1))
}

load_end() {
    [ -f "$STAGE/load/pid" ] || return 0
    launched_runs "$STAGE/load" || {
        rm -f "$STAGE/load/pid"
        broken "the load has ended before it was told to, see load/log"
    }
    stop_launched "$STAGE/load" TERM || broken "the load does not end"
}

# visible SECONDS: how long after SINCE a row that is written now is in ClickHouse.
visible() {
    local limit=$1 within tool
    within=$(awk -v limit="$limit" -v gone="$(seconds_since "$SINCE")" \
        'BEGIN { print limit + 60 + gone }')
    "$DRILL_TOOL" visible --postgres "$(hosts)" --clickhouse "$CLICKHOUSE" --since "$SINCE" \
        --within "$within" >"$STAGE/visible" &
    tool=$!
    while kill -0 "$tool" 2>/dev/null; do
        # Nothing more will come. Killed by us, it prints nothing.
        if all_have_failed; then kill "$tool" 2>/dev/null || true; fi
        sleep 0.2
    done
    wait "$tool" || true
    cat "$STAGE/visible"
    VISIBLE=$(json_value "$STAGE/visible" visible)
    case $VISIBLE in
    '' | null)
        VISIBLE=never
        broken "no new row is visible: $(why_not)"
        ;;
    esac
    VISIBLE=$(printf '%.2f' "$VISIBLE")
    [ "${DRILL_PLANT:-}" != slow ] || limit=0
    is_at_most "$VISIBLE" "$limit" ||
        fault "the first new row was visible after $VISIBLE s, allowed are $limit s"
}

# Every instance has ended, or stopped both services for good.
all_have_failed() {
    local dir
    for dir in "$STAGE"/instance-*/; do
        launched_has_ended "$dir" || both_in_state "$(instance_of "$dir")" failed 2>/dev/null ||
            return 1
    done
}

instance_of() {
    local name
    name=$(basename "$1")
    echo "${name#instance-}"
}

# Why a service of an instance stopped, or else its last error, shortly.
why_not() {
    local dir errors
    for dir in "$STAGE"/instance-*/; do
        errors=$(sed 's/\x1b\[[0-9;]*m//g' "$dir/log" | grep -E ' ERROR ' | grep -v 'hint:' |
            grep -v 'until an operator' | sed -E 's/^[^ ]* ERROR [^ ]*: //' | cut -c 1-200)
        { grep 'resume service' <<<"$errors" || echo "$errors"; } | tail -n 1
    done | paste -s -d ' '
}

# compare [PATIENCE]: sets ROWS, LOST, WRONG, EXTRA and REPEATED; fails if the sides are not equal.
compare() {
    local status=0 name
    step "comparing both sides"
    "$DRILL_TOOL" compare --postgres "$(hosts)" --clickhouse "$CLICKHOUSE" \
        --patience "${1:-$PATIENCE_SECONDS}" >"$STAGE/compared" 2>"$STAGE/differences" || status=1
    cat "$STAGE/compared" "$STAGE/differences"
    for name in rows lost wrong extra repeated; do
        printf -v "${name^^}" '%s' "$(json_value "$STAGE/compared" "$name")"
    done
    return "$status"
}

# plant FAULT: a mistake in ClickHouse that the comparison has to find.
plant() {
    local runs=trigger_dev.task_runs_v2 one
    step "planting: $1"
    one=$(clickhouse "SELECT run_id FROM $runs FINAL WHERE run_id LIKE 'w%' ORDER BY run_id LIMIT 1")
    case $1 in
    lost) clickhouse "DELETE FROM $runs WHERE run_id = '$one'" ;;
    wrong) plant_row "attempt + 1 AS attempt" ;;
    extra) plant_row "'planted' AS run_id" ;;
    repeated) plant_row "'planted' AS organization_id" ;;
    *) broken "plant \`$1\`: only lost, wrong, extra, repeated and slow are known" ;;
    esac
}

# plant_row REPLACEMENT: the row `one` once more, otherwise and newer. It is chosen further inside, for
# a WHERE beside a REPLACE sees what is replaced.
plant_row() {
    clickhouse "INSERT INTO $runs SELECT * REPLACE ($1, _version + 1 AS _version)
        FROM (SELECT * FROM $runs FINAL WHERE run_id = '$one')"
}

# opening [standby [VARIABLE=VALUE...]]: the latter for walhouse.
opening() {
    primary a
    if [ "${1:-}" = standby ]; then
        shift
        standby b a
    fi
    # shellcheck disable=SC2119
    services_up
    instance one "$@"
    await_streaming one
    load_begin
    load_grows 30
}

# --- failing over

has_failover_slots() { [ "$POSTGRES_VERSION" -ge 17 ]; }

# Both slots are on the standby NAME and will outlive its promotion.
slots_are_synced() {
    [ "$(node_sql "$1" "SELECT count(*) FROM pg_replication_slots
        WHERE $LOGICAL AND synced AND NOT temporary")" = 2 ]
}

# keep_slots_on STANDBY PRIMARY: what makes failover slots real: they exist on the standby, and
# walhouse is sent nothing that the standby does not have.
keep_slots_on() {
    node_set "$2" "synchronized_standby_slots=$1" || broken "$2 takes no settings"
    node_reload "$2" || broken "$2 does not reload"
    await 60 "both slots are kept on $1" slots_are_synced "$1"
}

# promote NAME: times are counted from when it can be written.
promote() {
    node_promote "$1" || broken "$1 cannot be promoted"
    since_now
}

# fail_over FROM TO: FROM is killed.
fail_over() {
    node_stop "$1" kill || broken "$1 cannot be killed"
    promote "$2"
}

# cut_off STANDBY: it receives nothing more, and can still be promoted.
cut_off() {
    node_set "$1" primary_conninfo= || broken "$1 takes no settings"
    node_reload "$1" || broken "$1 does not reload"
    await 30 "$1 receives nothing more" receives_nothing "$1"
}

receives_nothing() { [ "$(node_sql "$1" 'SELECT count(*) FROM pg_stat_wal_receiver')" = 0 ]; }

# is_past NAME LSN
is_past() { [ "$(node_sql "$1" "SELECT pg_current_wal_lsn() > '$2'")" = t ]; }

# drop_slots NODE: both of walhouse, whoever uses them.
drop_slots() {
    local dropped
    dropped=$(node_sql "$1" "SELECT count(pg_drop_replication_slot(slot_name))
        FROM (SELECT slot_name, pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots
              WHERE $LOGICAL OFFSET 0) s") || broken "the slots cannot be dropped"
    [ "$dropped" = 2 ] || broken "two slots were to be dropped, there were $dropped"
}

# drill_ends: what every drill ends with. Fails, or all has held.
drill_ends() {
    local patience=$PATIENCE_SECONDS
    load_grows 20
    load_end
    if [ -n "${DRILL_PLANT:-}" ] && [ "$DRILL_PLANT" != slow ]; then
        await "$PATIENCE_SECONDS" "both sides are equal before a fault is planted" compare 0
        plant "$DRILL_PLANT"
        patience=3
    fi
    compare "$patience" || broken "the sides differ"
    if grep -hE 'panicked|bug of walhouse' "$STAGE"/instance-*/log; then
        fault "walhouse reports a bug of its own"
    fi
    [ ! -s "$STAGE/reasons" ] || exit 1
}

# stage_end: stops and removes what runs below STAGE. Goes on over what does not succeed.
stage_end() {
    local dir status=0
    for dir in "$STAGE"/instance-*/ "$STAGE/load/" "$STAGE"/proxy-*/; do
        [ -f "$dir/pid" ] || continue
        # Frozen, it would not hear that it is to end.
        stop_frozen "$dir"
        stop_launched "$dir" KILL || status=1
    done
    clickhouse_stop "$STAGE/clickhouse" KILL || status=1
    if mountpoint -q "$STAGE/clickhouse/data"; then
        # What was killed holds it for a moment longer.
        wait_for 20 "unmounting ClickHouse's disk" quiet_umount "$STAGE/clickhouse/data" || status=1
    fi
    redis_stop "$STAGE/redis" KILL || status=1
    nodes_end || status=1
    return "$status"
}

quiet_umount() { umount "$1" 2>/dev/null; }

stop_frozen() {
    local pid _
    if launched_runs "$1"; then
        read -r pid _ <"$1/pid"
        kill -CONT "$pid" 2>/dev/null || true
    fi
}
