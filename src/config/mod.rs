//! The only reader of the environment. Every problem is reported at once, each naming its variable.

use std::time::Duration;

use crate::{clickhouse, postgres, redis};

/// What the environment says, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The enabled services, `runs` before `sessions`.
    pub services: Vec<ServiceConfig>,
    /// Services that are off, with the reason, for one log line each.
    pub off: Vec<(ServiceName, String)>,
    /// `None` is off.
    pub http_listen: Option<std::net::SocketAddr>,
    pub shutdown_timeout: Duration,
    /// Things worth a warning at start: unknown parameters of a URL, unknown `*_REPLICATION_*` variables.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServiceName {
    Runs,
    Sessions,
}

/// One service: one slot, one publication, one source table.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    pub name: ServiceName,
    pub postgres: postgres::Params,
    pub clickhouse: clickhouse::Params,
    pub slot: String,
    pub publication: String,
    /// Ask Postgres for binary values; `false` asks for text.
    pub binary: bool,
    pub create_tables: bool,
    pub lock: LockConfig,
    pub flush: FlushConfig,
    pub strategy: Strategy,
    pub reconnect: ReconnectConfig,
    /// A status update is sent, and `confirmed` moved, at least this often.
    pub ack_interval: Duration,
    /// Silence of the walsender for this long ends the session.
    pub receive_timeout: Duration,
    pub shutdown_timeout: Duration,
    /// `runs` only.
    pub payload_insert: bool,
    /// `runs` only.
    pub error_fingerprint: bool,
    pub log_level: log::LevelFilter,
    pub clickhouse_log_level: log::LevelFilter,
}

#[derive(Debug, Clone)]
pub struct LockConfig {
    pub kind: LockKind,
    /// Life of the lock without an extension.
    pub term: Duration,
    pub extend_every: Duration,
    /// One acquire is tried for `term + additional`, every `retry_every`.
    pub additional: Duration,
    pub retry_every: Duration,
}

#[derive(Debug, Clone)]
pub enum LockKind {
    Redis(redis::Params),
    /// A session advisory lock on a connection of its own.
    Postgres,
}

#[derive(Debug, Clone, Copy)]
pub struct FlushConfig {
    pub rows_max: usize,
    pub age_max: Duration,
    pub concurrency: usize,
    pub buffer_bytes_max: usize,
    pub retries_before_outage: u32,
    pub delay_min: Duration,
    pub delay_max: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    Reconnect,
    Exit { delay: Duration, code: u8 },
    Log,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReconnectConfig {
    pub delay_min: Duration,
    pub delay_max: Duration,
    /// 0 is unlimited.
    pub attempts_max: u32,
}

impl ServiceName {
    pub const ALL: [ServiceName; 2] = [ServiceName::Runs, ServiceName::Sessions];

    pub fn as_str(self) -> &'static str {
        match self {
            ServiceName::Runs => "runs",
            ServiceName::Sessions => "sessions",
        }
    }
}
