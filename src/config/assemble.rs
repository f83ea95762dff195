//! Puts the settings together, and checks what only shows between two variables.
//!
//! A service that is off is not read, so nothing in its variables can be a problem.

use std::time::Duration;

use super::reader::VariableReader;
use super::{
    BuiltIn, Config, FlushConfig, GapStrategy, InitialBackfill, LockConfig, LockKind, Problems,
    ReconnectConfig, SERVICES, ServiceConfig, ServiceKind, ServiceName, Strategy, clickhouse,
    redis,
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
    for service in &SERVICES {
        match why_off(&mut reader, &service.name()) {
            None => on.push(service),
            Some(reason) => off.push((service.name(), reason)),
        }
    }
    if on.is_empty() && !reader.has_problems() {
        // A process without services would look healthy.
        let reasons: Vec<String> =
            off.iter().map(|(name, reason)| format!("`{}`: {reason}", name.as_str())).collect();
        let text = format!("expected at least one service, got none ({})", reasons.join("; "));
        let flags: Vec<String> = off.iter().map(|(name, _)| name.variable("ENABLED")).collect();
        reader.problem(flags.join(", "), text);
    }

    let http_listen = reader.address("REPLICATION_HTTP_LISTEN");
    let shutdown_timeout = reader.millis("REPLICATION_SHUTDOWN_TIMEOUT_MS");
    let shared = shared(&mut reader, !on.is_empty());
    let services: Vec<ServiceConfig> =
        on.iter().filter_map(|of| service(&mut reader, of, &shared)).collect();
    check_slots(&mut reader, &services);
    reader.note_unsupported(&on);

    let all_read = services.len() == on.len() && !on.is_empty();
    reader.finish(|warnings| {
        all_read.then_some(Config { services, off, http_listen, shutdown_timeout, warnings })
    })
}

fn why_off(reader: &mut VariableReader, name: &ServiceName) -> Option<String> {
    let (enabled, url) = (name.variable("ENABLED"), name.variable("CLICKHOUSE_URL"));
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
    built_in: &BuiltIn,
    shared: &Shared,
) -> Option<ServiceConfig> {
    let name = &built_in.name();
    let database_url = name.variable("DATABASE_URL");
    let postgres = reader.postgres_url(&database_url);
    if reader.is_unset(&database_url) {
        reader.problem("DATABASE_URL", "not set: expected the URL of Postgres");
    }
    let clickhouse = clickhouse(reader, (name, built_in.database), shared);
    let lock = lock(reader, (name, built_in.lock), &shared.lock);
    let flush = flush(reader, name);
    let strategy = strategy(reader, name);
    let ack_interval = Duration::from_secs(reader.integer(&name.variable("ACK_INTERVAL_SECONDS")));
    let kind = kind(reader, built_in.kind);
    let slot = reader.slot(&name.variable("SLOT_NAME"));
    let failover = match reader.flag(&name.variable("SLOT_FAILOVER")) {
        true => Failover::On,
        false => Failover::Off,
    };
    let publication = reader.publication(&name.variable("PUBLICATION_NAME"));
    let initial_backfill = match reader.choice(&name.variable("INITIAL_BACKFILL")) {
        Some("0" | "false") => InitialBackfill::Off,
        Some("existing") => InitialBackfill::Existing,
        Some(_) | None => InitialBackfill::Created,
    };
    let log_level = reader.log_level(&name.variable("LOG_LEVEL"));
    let clickhouse_log_level = reader.log_level(&name.variable("CLICKHOUSE_LOG_LEVEL"));
    Some(ServiceConfig {
        name: name.clone(),
        kind,
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
        log_level,
        clickhouse_log_level,
    })
}

/// The settings that only services of this kind have.
fn kind(reader: &mut VariableReader, kind: ServiceKind) -> ServiceKind {
    match kind {
        ServiceKind::Runs { .. } => {
            reader.choice("RUN_REPLICATION_LEGACY_ORIGIN_GENERATION");
            refuse_split(reader);
            ServiceKind::Runs {
                payloads: !reader.flag("RUN_REPLICATION_DISABLE_PAYLOAD_INSERT"),
                fingerprints: !reader.flag("RUN_REPLICATION_DISABLE_ERROR_FINGERPRINTING"),
            }
        }
        ServiceKind::Sessions | ServiceKind::Webhooks => kind,
    }
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
    (name, database): (&ServiceName, &str),
    shared: &Shared,
) -> Option<clickhouse::ClickHouseParams> {
    let params = reader.clickhouse_url(&name.variable("CLICKHOUSE_URL"), database);
    let keep_alive = reader.flag(&name.variable("KEEP_ALIVE_ENABLED"));
    let keep_alive_idle = reader.optional_integer(&name.variable("KEEP_ALIVE_IDLE_SOCKET_TTL_MS"));
    let connections_max = reader.size(&name.variable("MAX_OPEN_CONNECTIONS"));
    let insert_strategy = match reader.choice(&name.variable("INSERT_STRATEGY")) {
        Some("insert_async") => InsertStrategy::InsertAsync,
        Some(_) | None => InsertStrategy::Insert,
    };
    let awaiting = name.variable("WAIT_FOR_ASYNC_INSERT");
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

fn lock(
    reader: &mut VariableReader,
    (name, key_prefix): (&ServiceName, &str),
    kind: &LockKind,
) -> LockConfig {
    let (term, extend) =
        (name.variable("LEADER_LOCK_TIMEOUT_MS"), name.variable("LEADER_LOCK_EXTEND_INTERVAL_MS"));
    let lock = LockConfig {
        kind: kind.clone(),
        key_prefix: key_prefix.to_owned(),
        term: reader.millis(&term),
        extend_every: reader.millis(&extend),
        additional: reader.millis(&name.variable("LEADER_LOCK_ADDITIONAL_TIME_MS")),
        retry_every: reader.millis(&name.variable("LEADER_LOCK_RETRY_INTERVAL_MS")),
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

fn flush(reader: &mut VariableReader, name: &ServiceName) -> FlushConfig {
    let (delay_min, delay_max) =
        (name.variable("INSERT_BASE_DELAY_MS"), name.variable("INSERT_MAX_DELAY_MS"));
    reader.check_order(&delay_min, &delay_max);
    FlushConfig {
        rows_max: reader.size(&name.variable("FLUSH_BATCH_SIZE")),
        age_max: reader.millis(&name.variable("FLUSH_INTERVAL_MS")),
        concurrency: reader.size(&name.variable("MAX_FLUSH_CONCURRENCY")),
        buffer_bytes_max: reader.size(&name.variable("MAX_BUFFER_BYTES")),
        retries_before_outage: reader.narrow(&name.variable("INSERT_MAX_RETRIES")),
        delay_min: reader.millis(&delay_min),
        delay_max: reader.millis(&delay_max),
    }
}

fn strategy(reader: &mut VariableReader, name: &ServiceName) -> Strategy {
    let delay = reader.millis(&name.variable("EXIT_DELAY_MS"));
    let code = reader.narrow(&name.variable("EXIT_CODE"));
    match reader.choice(&name.variable("ERROR_STRATEGY")) {
        Some("exit") => Strategy::Exit { delay, code },
        Some("log") => Strategy::Log,
        Some(_) | None => Strategy::Reconnect,
    }
}

/// Slot names are one space for the whole of a Postgres cluster.
fn check_slots(reader: &mut VariableReader, services: &[ServiceConfig]) {
    for (at, service) in services.iter().enumerate() {
        let is_same = |other: &&ServiceConfig| {
            other.slot == service.slot && other.postgres.hosts == service.postgres.hosts
        };
        if let Some(other) = services[..at].iter().find(is_same) {
            let other = other.name.variable("SLOT_NAME");
            let text = format!("expected another slot than `{other}`, got `{}`", service.slot);
            reader.problem(service.name.variable("SLOT_NAME"), text);
        }
    }
}
