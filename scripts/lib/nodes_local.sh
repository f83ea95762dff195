# shellcheck shell=bash
# The backend `local` of nodes.sh: processes of this machine. To be sourced by nodes.sh.
#
# A node is a folder DIR/NAME as pg_start of servers.sh makes it, and beside that: `port`, kept for
# ever; `settings`, one KEY=VALUE a line; `cut` while its network is silent.
#
# npm's Postgres has no pg_basebackup. So a clone is made by the low-level backup interface and cp.

NODES_DIR=

nodes_begin() {
    mkdir -p "$1"
    NODES_DIR=$(cd "$1" && pwd)
    # Postgres' user passes through.
    [ "$(id -u)" != 0 ] || chmod a+x "$NODES_DIR"
    pg_install "$POSTGRES_VERSION"
}

nodes_end() {
    local dir status=0
    for dir in "$NODES_DIR"/*/; do
        [ -d "$dir" ] || continue
        node_remove "$(basename "$dir")" || status=1
    done
    return "$status"
}

node_dir() {
    [ -f "$NODES_DIR/$1/port" ] || fail "find node $1: there is none in $NODES_DIR" || return 1
    echo "$NODES_DIR/$1"
}

node_settings() { cat "$NODES_DIR/$1/settings" 2>/dev/null || true; }

# node_new NAME: an empty folder, with the address that NAME has for ever.
node_new() {
    local dir=$NODES_DIR/$1
    mkdir -p "$dir"
    [ ! -e "$dir/data" ] || fail "make node $1: it is there already" || return 1
    [ -f "$dir/port" ] || free_port >"$dir/port" || return 1
    echo "$POSTGRES_VERSION" >"$dir/version"
    : >"$dir/settings"
    [ "$(id -u)" != 0 ] || chmod a+x "$dir"
    install -d -m 700 "$dir/data"
    [ "$(id -u)" != 0 ] || chown "$(pg_user)" "$dir/data"
}

node_init() {
    local dir=$NODES_DIR/$1
    node_new "$1" || return 1
    pg_initdb "$dir" "$(pg_home "$POSTGRES_VERSION")" || return 1
    node_set "$1" hot_standby=on
}

node_set() {
    local dir name=$1 setting
    shift
    dir=$(node_dir "$name") || return 1
    for setting in "$@"; do
        { grep -v "^${setting%%=*}=" "$dir/settings" || true; } >"$dir/settings.new"
        echo "$setting" >>"$dir/settings.new"
        mv "$dir/settings.new" "$dir/settings"
    done
}

node_reload() {
    local dir
    dir=$(node_dir "$1") || return 1
    mapfile -t NODE_SETTINGS < <(node_settings "$1")
    # Of two lines with one name the last counts.
    for setting in "${NODE_SETTINGS[@]}"; do
        echo "${setting%%=*} = $(pg_quote "${setting#*=}")"
    done | as_pg_user tee -a "$dir/data/walhouse.conf" >/dev/null
    pg_run "$(pg_home "$(cat "$dir/version")")" pg_ctl -D "$dir/data" reload >/dev/null
}

node_clone() {
    local name=$1 from=$2 dir source label
    source=$(node_dir "$from") || return 1
    node_new "$name" || return 1
    dir=$NODES_DIR/$name
    cp "$source/settings" "$dir/settings"
    node_sql "$from" "SELECT pg_create_physical_replication_slot('$name', true)
        WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '$name')" >/dev/null ||
        return 1
    label=$(node_copy "$from" "$source/data" "$dir/data") ||
        fail "clone $name from $from: see above" || return 1
    printf '%s\n' "$label" | as_pg_user tee "$dir/data/backup_label" >/dev/null || return 1
    as_pg_user touch "$dir/data/standby.signal" || return 1
    node_set "$name" hot_standby=on hot_standby_feedback=on "primary_slot_name=$name" \
        "primary_conninfo=host=127.0.0.1 port=$(cat "$source/port") user=postgres dbname=postgres application_name=$name" ||
        return 1
    [ "$POSTGRES_VERSION" -lt 17 ] || node_set "$name" sync_replication_slots=on
}

# node_copy NAME FROM TO: copies the data of the running NAME and prints the backup label. One
# session begins and ends the backup, for Postgres forgets a backup whose session is gone.
node_copy() {
    local start=pg_backup_start stop='pg_backup_stop(false)' version
    version=$(cat "$NODES_DIR/$1/version")
    if [ "$version" -lt 15 ]; then
        start=pg_start_backup
        stop='pg_stop_backup(false, false)'
    fi
    local exclusive=''
    [ "$version" -ge 15 ] || exclusive=', false'
    psql -X -q -A -t -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$(cat "$NODES_DIR/$1/port")" \
        -U postgres -d postgres <<SQL
\\o /dev/null
SELECT $start('walhouse', true$exclusive);
\\o
\\setenv COPY_FROM '$2'
\\setenv COPY_TO '$3'
\\! cd "\$COPY_FROM" && tar cf - --ignore-failed-read --warning=no-file-changed --warning=no-file-removed --exclude=./postmaster.pid --exclude=./postmaster.opts --exclude='./pg_replslot/*' --exclude='./pg_dynshmem/*' --exclude='./pg_notify/*' --exclude='./pg_stat_tmp/*' --exclude='./pgsql_tmp*' --exclude=./standby.signal --exclude=./recovery.signal --exclude=./backup_label . | tar xpf - -C "\$COPY_TO" || touch "\$COPY_TO/copy_failed"
SELECT labelfile FROM $stop;
SQL
    [ ! -e "$3/copy_failed" ]
}

node_start() {
    local dir settings
    dir=$(node_dir "$1") || return 1
    mapfile -t settings < <(node_settings "$1")
    pg_start "$dir" "$POSTGRES_VERSION" "$(cat "$dir/port")" "${settings[@]}"
}

node_stop() {
    local dir pid began
    dir=$(node_dir "$1") || return 1
    if [ "${2:-fast}" = kill ]; then
        pid=$(head -n 1 "$dir/data/postmaster.pid" 2>/dev/null || echo 0)
        began=$(process_began "$pid" || echo none)
        node_signal_all "$1" KILL
        wait_for 30 "the end of all processes of $1" node_has_ended "$1" "$pid" "$began" || return 1
    else
        # A frozen process does not hear that it is to end.
        node_resume "$1"
        pg_stop "$dir" "${2:-fast}" || return 1
    fi
    # Whatever was found to stop: a drill goes on from here with a server that is gone.
    ! port_answers "$(cat "$dir/port")" || fail "stop $1: it still answers on its port"
}

# node_has_ended NAME PID BEGAN: not even as a zombie, whose lock file the next one would respect.
node_has_ended() {
    [ -z "$(node_processes "$1")" ] && [ "$(process_began "$2" || echo gone)" != "$3" ]
}

node_promote() {
    local dir
    dir=$(node_dir "$1") || return 1
    pg_run "$(pg_home "$(cat "$dir/version")")" pg_ctl -D "$dir/data" -w -t 60 promote >/dev/null ||
        fail "promote $1: see $dir/log" || return 1
    wait_for 30 "node $1 is writable" node_is_writable "$1"
}

node_detach() {
    local dir
    dir=$(node_dir "$1") || return 1
    rm "$dir/data/standby.signal"
}

node_is_writable() { [ "$(node_sql "$1" 'SELECT pg_is_in_recovery()')" = f ]; }

node_remove() {
    local dir=$NODES_DIR/$1 status=0
    node_heal "$1" || status=1
    if [ -d "$dir/data" ]; then
        # Its data is thrown away, so it need not be asked.
        node_stop "$1" kill || status=1
        rm -rf "$dir/data" || status=1
    fi
    return "$status"
}

# The postmaster first: it is the one that would notice what its children do. All of them have
# entered the data. Also those are found whose data somebody has removed.
node_processes() {
    local data=$NODES_DIR/$1/data
    {
        head -n 1 "$data/postmaster.pid" 2>/dev/null | sed 's|.*|/proc/&|'
        echo /proc
    } | xargs -I {} find {} -maxdepth 2 -name cwd \
        \( -lname "$data" -o -lname "$data (deleted)" \) -printf '%h\n' 2>/dev/null |
        sed 's|^/proc/||' | grep -vx "$BASHPID" || true
}

node_signal_all() {
    local pid
    for pid in $(node_processes "$1"); do kill "-$2" "$pid" 2>/dev/null || true; done
}

# Twice: a process may have been made while the first round went by.
node_pause() { node_signal_all "$1" STOP && node_signal_all "$1" STOP; }

node_resume() { node_signal_all "$1" CONT; }

# node_rules NAME I|D: adds or deletes what silences its port.
node_rules() {
    local port side
    port=$(cat "$NODES_DIR/$1/port") || return 1
    for side in --dport --sport; do
        iptables -w 10 "-$2" INPUT -i lo -p tcp "$side" "$port" \
            -m comment --comment walhouse-drill -j DROP || return 1
    done
}

node_cut() {
    local dir
    dir=$(node_dir "$1") || return 1
    [ "$(id -u)" = 0 ] || fail "cut the network of $1: only root may, with iptables" || return 1
    command -v iptables >/dev/null || install_debs iptables || return 1
    # Before the rules: who is interrupted in between undoes what is there by then.
    : >"$dir/cut"
    node_rules "$1" I
}

node_heal() {
    local dir=$NODES_DIR/$1
    [ -f "$dir/cut" ] || return 0
    while node_rules "$1" D 2>/dev/null; do :; done
    if iptables -w 10 -S INPUT | grep -E -- "--[sd]port $(cat "$dir/port") .*walhouse-drill" >/dev/null; then
        fail "heal the network of $1: iptables still has rules for port $(cat "$dir/port")"
        return 1
    fi
    rm -f "$dir/cut"
}

node_address() { echo "127.0.0.1:$(cat "$NODES_DIR/$1/port")"; }

node_sql() {
    local dir
    dir=$(node_dir "$1") || return 1
    pg_sql "$dir" "$2"
}

node_signal() {
    local data=$NODES_DIR/$1/data
    [ "$(readlink "/proc/$2/cwd" 2>/dev/null || true)" = "$data" ] ||
        fail "signal process $2 of node $1: it is not one of its" || return 1
    kill "-$3" "$2"
}
