//! The only reader of the environment. Every problem is reported at once, each naming its variable.
//!
//! Whether the servers are there and let us in is not asked here.
//!
//! A new variable is a row of [`variables`], is read in `assemble`, and has its row in the manual.

mod assemble;
mod built_in;
pub mod effective;
mod problems;
mod reader;
mod unknown;
pub mod variables;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

pub use built_in::{BuiltIn, SERVICES, ServiceKind, ServiceName};
pub use problems::{Problem, Problems};

pub use crate::machines::recovery::GapStrategy;
use crate::postgres::failover_slot::Failover;
use crate::secret::Secret;
use crate::{clickhouse, postgres, redis};

/// The checked configuration of the environment.
#[derive(Debug, Clone)]
pub struct Config {
    /// The enabled services, in the order of [`SERVICES`].
    pub services: Vec<ServiceConfig>,
    /// Services that are off, with the reason, for one log line each.
    pub off: Vec<(ServiceName, String)>,
    /// `None` is off.
    pub http_listen: Option<std::net::SocketAddr>,
    pub shutdown_timeout: Duration,
    /// Worth a warning at start: unknown parameters of a URL, unknown `*_REPLICATION_*` variables.
    pub warnings: Vec<String>,
}

/// One service: one slot, one publication, one source table.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    pub name: ServiceName,
    pub kind: ServiceKind,
    pub postgres: postgres::PostgresParams,
    pub clickhouse: clickhouse::ClickHouseParams,
    pub slot: String,
    pub publication: String,
    /// Whether the slot is marked as a failover slot, where the server knows them.
    pub failover: Failover,
    /// Ask Postgres for binary values; `false` asks for text.
    pub binary: bool,
    pub create_tables: bool,
    pub initial_backfill: InitialBackfill,
    pub lock: LockConfig,
    pub flush: FlushConfig,
    pub strategy: Strategy,
    pub reconnect: ReconnectConfig,
    pub gap_strategy: GapStrategy,
    /// Connections that read the table during a repair.
    pub repair_concurrency: usize,
    /// How much of a table a comparison may mark as deleted without asking.
    pub repair_deletes_max_percent: u64,
    /// A status update is sent, and `confirmed` moved, at least this often.
    pub ack_interval: Duration,
    /// Silence of the walsender for this long ends the session.
    pub receive_timeout: Duration,
    pub log_level: log::LevelFilter,
    pub clickhouse_log_level: log::LevelFilter,
}

/// Into which tables rows are copied that were there before the first start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitialBackfill {
    Off,
    /// Those that walhouse creates.
    Created,
    /// Also tables that already existed.
    Existing,
}

#[derive(Debug, Clone)]
pub struct LockConfig {
    pub kind: LockKind,
    /// How its key in Redis begins.
    pub key_prefix: String,
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

impl Config {
    /// Reads the environment of the process, and warns of variables that look like ours.
    pub fn from_env() -> Result<Config, Problems> {
        let text = |value: OsString| value.to_string_lossy().into_owned();
        // Bytes that are not UTF-8 become U+FFFD, which the reader refuses where the value matters.
        let read = Config::from_lookup(|name| std::env::var_os(name).map(text));
        let unknown = unknown::warnings(std::env::vars_os().map(|(name, _)| text(name)));
        read.map(|mut config| {
            config.warnings.extend(unknown.iter().cloned());
            config
        })
        .map_err(|mut problems| {
            problems.warnings.extend(unknown);
            problems
        })
    }

    /// One service, as if it alone was turned on: what a command acts upon.
    pub fn of_service(name: &ServiceName) -> Result<ServiceConfig, Problems> {
        let lookup = |asked: &str| {
            if asked.ends_with("_REPLICATION_ENABLED") {
                return Some(if name.owns(asked) { "1" } else { "0" }.to_owned());
            }
            std::env::var_os(asked).map(|value| value.to_string_lossy().into_owned())
        };
        let services = Config::from_lookup(lookup)?.services;
        Ok(services.into_iter().next().expect("a configuration without services is refused"))
    }

    /// Every secret in it, for texts of others to be searched for.
    pub fn secrets(&self) -> Vec<Secret> {
        let mut secrets = Vec::new();
        for service in &self.services {
            secrets.extend(service.postgres.password.clone());
            secrets.push(service.clickhouse.password.clone());
            if let LockKind::Redis(params) = &service.lock.kind {
                secrets.extend(params.password.clone());
            }
        }
        secrets
    }

    /// An empty value counts as unset, but for `REPLICATION_HTTP_LISTEN`.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Config, Problems> {
        assemble::config(&lookup)
    }
}

/// A service's configuration on one line, without secrets.
impl fmt::Display for ServiceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServiceConfig { name, postgres, clickhouse, slot, publication, .. } = self;
        write!(f, "`{}`: slot `{slot}`, publication `{publication}`, ", name.as_str())?;
        write!(f, "from {postgres} to {clickhouse}, lock ")?;
        match &self.lock.kind {
            LockKind::Redis(params) => write!(f, "redis {params}")?,
            LockKind::Postgres => f.write_str("postgres")?,
        }
        f.write_str(match self.strategy {
            Strategy::Reconnect => ", strategy reconnect",
            Strategy::Exit { .. } => ", strategy exit",
            Strategy::Log => ", strategy log",
        })
    }
}
