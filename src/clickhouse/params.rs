//! Where ClickHouse is and how to reach it: what a `CLICKHOUSE_URL` says, and how inserts are made.

use std::time::Duration;

use crate::secret::Secret;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    /// `http://host:port` or `https://host:port`, without credentials, path or query.
    pub endpoint: String,
    pub user: String,
    pub password: Secret,
    /// The database of the target tables and of walhouse's own tables.
    pub database: String,
    /// One request, from its first byte to its answer.
    pub request_timeout: Duration,
    pub keep_alive: bool,
    pub keep_alive_idle: Option<Duration>,
    pub connections_max: usize,
    pub insert_strategy: InsertStrategy,
}

/// Which path the server takes. Either way the answer is awaited before anything is confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InsertStrategy {
    Insert,
    InsertAsync,
}
