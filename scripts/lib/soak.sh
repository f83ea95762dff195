# shellcheck shell=bash
# shows: random damage at random moments, two servers and two instances, both sides compared
#
# A drill for scripts/failover, started by scripts/soak, which says what SOAK_MINUTES, SOAK_SEED and
# SOAK_ONLY are. A damage is a function `damage_NAME` that ends with everything started again; it
# does not wait until anyone has recovered.

# Which of the two nodes is what, at the moment.
PRIMARY=a
STANDBY=b
RANDOM_STATE=0
RECOVERY_SECONDS=180
COMPARE_EVERY=10
RUNS='public."TaskRun"'
RUNS_PUBLICATION=task_runs_to_clickhouse_v1_publication
RUNS_TARGET=trigger_dev.task_runs_v2

# pick N: sets PICKED to 0..N-1. Not bash's RANDOM, which others use in between.
pick() {
    RANDOM_STATE=$(((RANDOM_STATE * 1103515245 + 12345) % 2147483648))
    PICKED=$((RANDOM_STATE / 65536 % $1))
}

pick_instance() {
    pick 2
    if [ "$PICKED" = 0 ]; then INSTANCE=one; else INSTANCE=two; fi
}

# hold MAX: for 0 to MAX tenths of a second.
hold() {
    pick "$1"
    sleep "$((PICKED / 10)).$((PICKED % 10))"
}

# --- the damages

damage_walsenders_ended() {
    node_sql "$PRIMARY" "SELECT count(pg_terminate_backend(active_pid))
        FROM pg_replication_slots WHERE $LOGICAL AND active"
}

damage_walsender_frozen() {
    local pid
    pid=$(node_sql "$PRIMARY" "SELECT active_pid FROM pg_replication_slots
        WHERE $LOGICAL AND active ORDER BY slot_name LIMIT 1")
    [ -z "$pid" ] || node_signal "$PRIMARY" "$pid" STOP || true
    hold 400
    # It may be gone by now.
    [ -z "$pid" ] || node_signal "$PRIMARY" "$pid" CONT || true
}

damage_walhouse_killed() {
    pick_instance
    instance_stop "$INSTANCE" KILL
    hold 50
    instance "$INSTANCE"
}

damage_walhouse_stopped() {
    pick_instance
    instance_stop "$INSTANCE" TERM
    instance "$INSTANCE"
}

damage_walhouse_frozen() {
    pick_instance
    instance_signal "$INSTANCE" STOP
    hold 450
    instance_signal "$INSTANCE" CONT
}

damage_redis_killed() {
    redis_stop "$STAGE/redis" KILL
    hold 450
    redis_again
}

damage_clickhouse_killed() {
    clickhouse_stop "$STAGE/clickhouse" KILL
    hold 200
    clickhouse_again
}

restart_primary() {
    node_stop "$PRIMARY" "$1" || broken "$PRIMARY does not stop"
    hold 100
    node_start "$PRIMARY" || broken "$PRIMARY does not start again"
}

damage_postgres_restarted_fast() { restart_primary fast; }
damage_postgres_restarted_immediate() { restart_primary immediate; }
damage_postgres_killed() { restart_primary kill; }

damage_postgres_frozen() {
    node_pause "$PRIMARY"
    hold 450
    node_resume "$PRIMARY"
}

damage_network_silent() {
    node_cut "$PRIMARY" || broken "the network of $PRIMARY cannot be cut"
    hold 450
    node_heal "$PRIMARY" || broken "the network of $PRIMARY cannot be healed"
}

damage_standby_killed() {
    node_stop "$STANDBY" kill || broken "$STANDBY cannot be killed"
    hold 100
    node_start "$STANDBY" || broken "$STANDBY does not start again"
}

damage_failover() {
    fail_over "$PRIMARY" "$STANDBY"
    swap
}

damage_failover_to_one_behind() {
    cut_off "$STANDBY"
    load_grows 30
    damage_failover
}

damage_switchover() {
    node_stop "$PRIMARY" fast || broken "$PRIMARY does not stop"
    promote "$STANDBY"
    swap
}

damage_slots_dropped() { drop_all_slots; }

damage_slots_recreated() {
    local slot
    drop_all_slots
    for slot in task_runs_to_clickhouse_v1 sessions_to_clickhouse_v1; do
        # walhouse may have been faster.
        node_sql "$PRIMARY" "SELECT pg_create_logical_replication_slot('$slot', 'pgoutput')" || true
    done
}

damage_slots_advanced() {
    node_sql "$PRIMARY" "SELECT pg_terminate_backend(active_pid, 5000)
        FROM pg_replication_slots WHERE $LOGICAL AND active"
    # Those that walhouse has not taken again.
    node_sql "$PRIMARY" "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_insert_lsn())
        FROM pg_replication_slots WHERE $LOGICAL AND NOT active" || true
}

# What the source does not stream: the publication, the table, its values.

damage_publication_without_the_table() {
    node_sql "$PRIMARY" "ALTER PUBLICATION $RUNS_PUBLICATION DROP TABLE $RUNS"
    hold 80
    node_sql "$PRIMARY" "ALTER PUBLICATION $RUNS_PUBLICATION ADD TABLE $RUNS"
}

damage_publication_of_inserts_only() {
    node_sql "$PRIMARY" "ALTER PUBLICATION $RUNS_PUBLICATION SET (publish = 'insert')"
    hold 80
    node_sql "$PRIMARY" "ALTER PUBLICATION $RUNS_PUBLICATION
        SET (publish = 'insert, update, delete, truncate')"
}

damage_publication_made_again() {
    node_sql "$PRIMARY" "DROP PUBLICATION $RUNS_PUBLICATION"
    hold 80
    # walhouse may have been faster.
    node_sql "$PRIMARY" "CREATE PUBLICATION $RUNS_PUBLICATION FOR TABLE $RUNS" || true
}

# Without a word in the stream every value changes.
damage_values_rewritten() {
    node_sql "$PRIMARY" "ALTER TABLE $RUNS
        ALTER COLUMN \"costInCents\" TYPE double precision USING \"costInCents\" + 1"
}

# Another table comes under the name. The publication goes with the old one.
damage_table_swapped() {
    node_sql "$PRIMARY" "BEGIN;
        LOCK TABLE $RUNS;
        CREATE TABLE public.next (LIKE $RUNS INCLUDING ALL);
        INSERT INTO public.next SELECT * FROM $RUNS;
        UPDATE public.next SET \"costInCents\" = \"costInCents\" + 1 WHERE random() < 0.1;
        ALTER TABLE $RUNS RENAME TO before;
        ALTER TABLE public.next RENAME TO \"TaskRun\";
        ALTER PUBLICATION $RUNS_PUBLICATION DROP TABLE public.before;
        ALTER PUBLICATION $RUNS_PUBLICATION ADD TABLE $RUNS;
        DROP TABLE public.before;
        COMMIT"
}

# What ClickHouse refuses for no fault of a row.

damage_target_refuses_everything() {
    clickhouse "ALTER TABLE $RUNS_TARGET ADD CONSTRAINT closed CHECK run_id = ''"
    hold 150
    clickhouse "ALTER TABLE $RUNS_TARGET DROP CONSTRAINT closed"
}

damage_view_throws() {
    clickhouse "CREATE TABLE trigger_dev.seen (run_id String) ENGINE = MergeTree ORDER BY run_id"
    clickhouse "CREATE MATERIALIZED VIEW trigger_dev.seen_mv TO trigger_dev.seen AS
        SELECT run_id FROM $RUNS_TARGET WHERE throwIf(cityHash64(run_id) % 3 = 0) = 0"
    hold 150
    clickhouse "DROP TABLE trigger_dev.seen_mv"
    clickhouse "DROP TABLE trigger_dev.seen"
}

drop_all_slots() {
    node_sql "$PRIMARY" "SELECT pg_terminate_backend(active_pid, 5000)
        FROM pg_replication_slots WHERE $LOGICAL AND active"
    node_sql "$PRIMARY" "SELECT pg_drop_replication_slot(slot_name)
        FROM pg_replication_slots WHERE $LOGICAL AND NOT active" || true
}

# The standby has been promoted: the old primary is made its standby.
swap() {
    local old=$PRIMARY
    PRIMARY=$STANDBY
    STANDBY=$old
    node_remove "$STANDBY" || broken "$STANDBY cannot be removed"
    standby "$STANDBY" "$PRIMARY"
    keep_slots
}

# Sometimes the slots are kept on the standby, sometimes a failover comes before they are.
keep_slots() {
    has_failover_slots || return 0
    node_set "$PRIMARY" "synchronized_standby_slots=$STANDBY" || broken "$PRIMARY takes no settings"
    node_reload "$PRIMARY" || broken "$PRIMARY does not reload"
    pick 4
    [ "$PICKED" = 0 ] || wait_for 60 "both slots are kept on $STANDBY" slots_are_synced "$STANDBY" ||
        true
}

# --- the soak

tell() {
    step "$*"
    printf '%s %s\n' "$(date +%T)" "$*" >&8
}

damages() {
    if [ -n "$SOAK_ONLY" ]; then
        tr ',' '\n' <<<"$SOAK_ONLY"
    else
        compgen -A function damage_ | sed 's/^damage_//' | sort
    fi
}

# recovered: a new row is visible. Says how long that took.
recovered() {
    since_now
    visible "$RECOVERY_SECONDS"
    is_at_most "$VISIBLE" "$SLOWEST" || SLOWEST=$VISIBLE
}

drill() {
    local names count=0 name end=$((SECONDS + SOAK_MINUTES * 60))
    SLOWEST=0
    RANDOM_STATE=$((SOAK_SEED % 2147483648))
    mapfile -t names < <(damages)
    for name in "${names[@]}"; do
        declare -F "damage_$name" >/dev/null || broken "there is no damage \`$name\`"
    done
    primary a
    standby b a
    services_up
    instance one
    await_streaming one
    instance two
    load_begin
    keep_slots
    while [ "$SECONDS" -lt "$end" ]; do
        hold 80
        pick ${#names[@]}
        name=${names[PICKED]}
        count=$((count + 1))
        did "$count damages, seed $SOAK_SEED"
        tell "damage $count: ${name//_/ }"
        "damage_$name"
        pick 4
        if [ "$PICKED" != 0 ]; then
            recovered
            tell "         a new row is visible after $VISIBLE s"
        fi
        if [ $((count % COMPARE_EVERY)) = 0 ]; then
            load_end
            compare || broken "the sides differ after damage $count, $name"
            tell "         both sides are equal: $ROWS rows"
            load_begin
        fi
    done
    recovered
    VISIBLE=$SLOWEST
}
