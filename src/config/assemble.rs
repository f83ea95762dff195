//! Puts the settings together, and checks what only shows between two variables.
//!
//! A service that is off is not read, so nothing in its variables can be a problem.

use std::time::Duration;

use super::reader::VariableReader;
use super::{
    Config, FlushConfig, GapStrategy, InitialBackfill, LockConfig, LockKind, Problems,
    ReconnectConfig, ServiceConfig, ServiceName, Strategy, clickhouse, redis,
};
use crate::clickhouse::params::{InsertStrategy, Quorum};
use crate::postgres::failover_slot::Failover;

/// Settings that all services share.
struct Shared {
    lock: LockKind,
    binary: bool,
    create_tables: bool,
    reconnect: ReconnectConfig,
    gap_strategy: GapStrategy,
    repair_concurrency: usize,
    repair_deletes_max_percent: u64,
    receive_timeout: Duration,
    cluster: Option<String>,
    quorum: Option<Quorum>,
}

pub(super) fn config(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Config, Problems> {
    let mut reader = VariableReader::new(lookup);
    let mut on = Vec::new();
    let mut off = Vec::new();
    for name in ServiceName::ALL {
        match why_off(&mut reader, name) {
            None => on.push(name),
            Some(reason) => off.push((name, reason)),
        }
    }
    if on.is_empty() && !reader.has_problems() {
        // A process without services would look healthy.
        let reasons: Vec<String> =
            off.iter().map(|(name, reason)| format!("`{}`: {reason}", name.as_str())).collect();
        let text = format!("expected at least one service, got none ({})", reasons.join("; "));
        reader.problem("RUN_REPLICATION_ENABLED, SESSION_REPLICATION_ENABLED", text);
    }

    let http_listen = reader.address("REPLICATION_HTTP_LISTEN");
    let shutdown_timeout = reader.millis("REPLICATION_SHUTDOWN_TIMEOUT_MS");
    let shared = shared(&mut reader, !on.is_empty());
    let services: Vec<ServiceConfig> =
        on.iter().filter_map(|name| service(&mut reader, *name, &shared)).collect();
    check_slots(&mut reader, &services);
    reader.note_unsupported(&on);

    let all_read = services.len() == on.len() && !on.is_empty();
    reader.finish(|warnings| {
        all_read.then_some(Config { services, off, http_listen, shutdown_timeout, warnings })
    })
}

fn why_off(reader: &mut VariableReader, name: ServiceName) -> Option<String> {
    let (enabled, url) = (of(name, "ENABLED"), of(name, "CLICKHOUSE_URL"));
    if !reader.flag(&enabled) {
        Some(format!("`{enabled}` is not 1"))
    } else if !reader.is_set(&url) {
        Some(format!("`{url}` is not set"))
    } else {
        None
    }
}

fn shared(reader: &mut VariableReader, lock_is_needed: bool) -> Shared {
    reader.check_order(
        "REPLICATION_RECONNECT_INITIAL_DELAY_MS",
        "REPLICATION_RECONNECT_MAX_DELAY_MS",
    );
    Shared {
        lock: if lock_is_needed { lock_kind(reader) } else { LockKind::Postgres },
        binary: reader.flag("REPLICATION_BINARY"),
        create_tables: reader.flag("REPLICATION_CREATE_TABLES"),
        reconnect: ReconnectConfig {
            delay_min: reader.millis("REPLICATION_RECONNECT_INITIAL_DELAY_MS"),
            delay_max: reader.millis("REPLICATION_RECONNECT_MAX_DELAY_MS"),
            attempts_max: reader.narrow("REPLICATION_RECONNECT_MAX_ATTEMPTS"),
        },
        gap_strategy: match reader.choice("REPLICATION_GAP_STRATEGY") {
            Some("halt") => GapStrategy::Halt,
            Some("skip") => GapStrategy::Skip,
            Some(_) | None => GapStrategy::Repair,
        },
        repair_concurrency: reader.size("REPLICATION_REPAIR_CONCURRENCY"),
        repair_deletes_max_percent: reader.integer("REPLICATION_REPAIR_DELETES_MAX_PERCENT"),
        receive_timeout: reader.millis("REPLICATION_RECEIVE_TIMEOUT_MS"),
        cluster: reader.text("REPLICATION_CLICKHOUSE_CLUSTER"),
        quorum: reader.quorum("REPLICATION_CLICKHOUSE_INSERT_QUORUM"),
    }
}

fn lock_kind(reader: &mut VariableReader) -> LockKind {
    const HOST: &str = "RUN_REPLICATION_REDIS_HOST";
    let host_is_set = !reader.is_unset(HOST);
    let is_redis = match reader.choice("REPLICATION_LEADER_LOCK") {
        Some(kind) => kind == "redis",
        None => host_is_set,
    };
    if !is_redis {
        return LockKind::Postgres;
    }
    if !host_is_set {
        reader.problem(HOST, "not set: expected a host, as `REPLICATION_LEADER_LOCK` is redis");
    }
    let host = reader.redis_host(HOST);
    let params = redis::Params {
        host: host.unwrap_or_default(),
        port: reader.narrow("RUN_REPLICATION_REDIS_PORT"),
        username: reader.text("RUN_REPLICATION_REDIS_USERNAME"),
        password: reader.secret("RUN_REPLICATION_REDIS_PASSWORD"),
        tls: !reader.flag("RUN_REPLICATION_REDIS_TLS_DISABLED"),
    };
    LockKind::Redis(params)
}

fn service(
    reader: &mut VariableReader,
    name: ServiceName,
    shared: &Shared,
) -> Option<ServiceConfig> {
    let database_url = of(name, "DATABASE_URL");
    let postgres = reader.postgres_url(&database_url);
    if reader.is_unset(&database_url) {
        reader.problem("DATABASE_URL", "not set: expected the URL of Postgres");
    }
    let clickhouse = clickhouse(reader, name, shared);
    let lock = lock(reader, name, &shared.lock);
    let flush = flush(reader, name);
    let strategy = strategy(reader, name);
    let ack_interval = Duration::from_secs(reader.integer(&of(name, "ACK_INTERVAL_SECONDS")));
    let (payload_insert, error_fingerprint) = match name {
        ServiceName::Runs => {
            reader.choice("RUN_REPLICATION_LEGACY_ORIGIN_GENERATION");
            refuse_split(reader);
            (
                !reader.flag("RUN_REPLICATION_DISABLE_PAYLOAD_INSERT"),
                !reader.flag("RUN_REPLICATION_DISABLE_ERROR_FINGERPRINTING"),
            )
        }
        ServiceName::Sessions => (false, false),
    };
    let slot = reader.slot(&of(name, "SLOT_NAME"));
    let failover = match reader.flag(&of(name, "SLOT_FAILOVER")) {
        true => Failover::On,
        false => Failover::Off,
    };
    let publication = reader.publication(&of(name, "PUBLICATION_NAME"));
    let initial_backfill = match reader.choice(&of(name, "INITIAL_BACKFILL")) {
        Some("0" | "false") => InitialBackfill::Off,
        Some("existing") => InitialBackfill::Existing,
        Some(_) | None => InitialBackfill::Created,
    };
    let log_level = reader.log_level(&of(name, "LOG_LEVEL"));
    let clickhouse_log_level = reader.log_level(&of(name, "CLICKHOUSE_LOG_LEVEL"));
    Some(ServiceConfig {
        name,
        postgres: postgres?,
        clickhouse: clickhouse?,
        slot,
        publication,
        failover,
        binary: shared.binary,
        create_tables: shared.create_tables,
        initial_backfill,
        lock,
        flush,
        strategy,
        reconnect: shared.reconnect,
        gap_strategy: shared.gap_strategy,
        repair_concurrency: shared.repair_concurrency,
        repair_deletes_max_percent: shared.repair_deletes_max_percent,
        ack_interval,
        receive_timeout: shared.receive_timeout,
        payload_insert,
        error_fingerprint,
        log_level,
        clickhouse_log_level,
    })
}

/// Two sources of one table: a repair of one would delete the rows of the other.
fn refuse_split(reader: &mut VariableReader) {
    const SPLIT: &str = "RUN_OPS_SPLIT_ENABLED";
    if reader.flag(SPLIT) {
        reader.problem(
            SPLIT,
            "expected 0, got 1: trigger.dev then writes runs of two databases into `task_runs_v2`, \
             and walhouse reads only one: it would treat the runs of the other as deleted. Leave \
             runs to trigger.dev (RUN_REPLICATION_ENABLED=0)",
        );
    }
}

fn clickhouse(
    reader: &mut VariableReader,
    name: ServiceName,
    shared: &Shared,
) -> Option<clickhouse::ClickHouseParams> {
    let params = reader.clickhouse_url(&of(name, "CLICKHOUSE_URL"));
    let keep_alive = reader.flag(&of(name, "KEEP_ALIVE_ENABLED"));
    let keep_alive_idle = reader.optional_integer(&of(name, "KEEP_ALIVE_IDLE_SOCKET_TTL_MS"));
    let connections_max = reader.size(&of(name, "MAX_OPEN_CONNECTIONS"));
    let insert_strategy = match reader.choice(&of(name, "INSERT_STRATEGY")) {
        Some("insert_async") => InsertStrategy::InsertAsync,
        Some(_) | None => InsertStrategy::Insert,
    };
    let awaiting = of(name, "WAIT_FOR_ASYNC_INSERT");
    let is_off = reader.raw(&awaiting).is_some_and(|v| ["0", "false"].contains(&v.trim()));
    if insert_strategy == InsertStrategy::InsertAsync && is_off {
        reader.warn(format!("`{awaiting}` has no effect: walhouse always waits for an insert."));
    }
    Some(clickhouse::ClickHouseParams {
        keep_alive,
        keep_alive_idle: keep_alive_idle.map(Duration::from_millis),
        connections_max,
        insert_strategy,
        cluster: shared.cluster.clone(),
        quorum: shared.quorum,
        ..params?
    })
}

fn lock(reader: &mut VariableReader, name: ServiceName, kind: &LockKind) -> LockConfig {
    let (term, extend) =
        (of(name, "LEADER_LOCK_TIMEOUT_MS"), of(name, "LEADER_LOCK_EXTEND_INTERVAL_MS"));
    let lock = LockConfig {
        kind: kind.clone(),
        term: reader.millis(&term),
        extend_every: reader.millis(&extend),
        additional: reader.millis(&of(name, "LEADER_LOCK_ADDITIONAL_TIME_MS")),
        retry_every: reader.millis(&of(name, "LEADER_LOCK_RETRY_INTERVAL_MS")),
    };
    // One extension may be lost, and work still stops a margin before another instance may start.
    let fits = lock.extend_every * 2 < lock.term;
    if !fits && !reader.is_refused(&term) && !reader.is_refused(&extend) {
        let (term_ms, got) = (lock.term.as_millis(), lock.extend_every.as_millis());
        reader.problem(
            extend,
            format!("expected less than half of `{term}` ({term_ms}), got `{got}`"),
        );
    }
    lock
}

fn flush(reader: &mut VariableReader, name: ServiceName) -> FlushConfig {
    let (delay_min, delay_max) =
        (of(name, "INSERT_BASE_DELAY_MS"), of(name, "INSERT_MAX_DELAY_MS"));
    reader.check_order(&delay_min, &delay_max);
    FlushConfig {
        rows_max: reader.size(&of(name, "FLUSH_BATCH_SIZE")),
        age_max: reader.millis(&of(name, "FLUSH_INTERVAL_MS")),
        concurrency: reader.size(&of(name, "MAX_FLUSH_CONCURRENCY")),
        buffer_bytes_max: reader.size(&of(name, "MAX_BUFFER_BYTES")),
        retries_before_outage: reader.narrow(&of(name, "INSERT_MAX_RETRIES")),
        delay_min: reader.millis(&delay_min),
        delay_max: reader.millis(&delay_max),
    }
}

fn strategy(reader: &mut VariableReader, name: ServiceName) -> Strategy {
    let delay = reader.millis(&of(name, "EXIT_DELAY_MS"));
    let code = reader.narrow(&of(name, "EXIT_CODE"));
    match reader.choice(&of(name, "ERROR_STRATEGY")) {
        Some("exit") => Strategy::Exit { delay, code },
        Some("log") => Strategy::Log,
        Some(_) | None => Strategy::Reconnect,
    }
}

/// Slot names are one space for the whole of a Postgres cluster.
fn check_slots(reader: &mut VariableReader, services: &[ServiceConfig]) {
    if let [runs, sessions] = services
        && runs.slot == sessions.slot
        && runs.postgres.hosts == sessions.postgres.hosts
    {
        let variable = of(sessions.name, "SLOT_NAME");
        let other = of(runs.name, "SLOT_NAME");
        let text = format!("expected another slot than `{other}`, got `{}`", sessions.slot);
        reader.problem(variable, text);
    }
}

fn of(name: ServiceName, rest: &str) -> String {
    format!("{}_REPLICATION_{rest}", name.prefix())
}
