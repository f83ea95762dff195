//! The services that are built in: a further one is a row here, its kind and its mapping.
//!
//! Variables, reader, help, arguments and the manual's tables are made from these rows.

use std::sync::Arc;

/// What tells one service from another before anything is set.
pub struct BuiltIn {
    pub name: &'static str,
    /// How its variables begin.
    pub prefix: &'static str,
    /// The table of Postgres, for readers of the help.
    pub source: &'static str,
    /// The database of its tables in ClickHouse; fixed, because their readers expect them there.
    pub database: &'static str,
    pub slot: &'static str,
    pub publication: &'static str,
    /// How the key of its lock in Redis begins.
    pub lock: &'static str,
    pub flush_concurrency: &'static str,
    /// Its kind; the settings that no other service has are read on top of it.
    pub kind: ServiceKind,
}

/// Every service, in the order of help, log and report.
pub static SERVICES: [BuiltIn; 3] = [
    BuiltIn {
        name: "runs",
        prefix: "RUN",
        source: "TaskRun",
        database: "trigger_dev",
        slot: "task_runs_to_clickhouse_v1",
        publication: "task_runs_to_clickhouse_v1_publication",
        lock: "runs-replication:",
        flush_concurrency: "2",
        kind: ServiceKind::Runs { payloads: true, fingerprints: true },
    },
    BuiltIn {
        name: "sessions",
        prefix: "SESSION",
        source: "Session",
        database: "trigger_dev",
        slot: "sessions_to_clickhouse_v1",
        publication: "sessions_to_clickhouse_v1_publication",
        lock: "sessions-replication:",
        flush_concurrency: "1",
        kind: ServiceKind::Sessions,
    },
    BuiltIn {
        name: "webhooks",
        prefix: "WEBHOOK_DELIVERIES",
        source: "WebhookDelivery",
        database: "trigger_dev",
        slot: "webhook_deliveries_to_clickhouse_v1",
        publication: "webhook_deliveries_to_clickhouse_v1_publication",
        lock: "webhook-deliveries-replication:",
        flush_concurrency: "1",
        kind: ServiceKind::Webhooks,
    },
];

/// What a service replicates, with the settings that it shares with no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceKind {
    Runs {
        /// Fill `raw_task_runs_payload_v1` as well.
        payloads: bool,
        /// Compute `error_fingerprint`.
        fingerprints: bool,
    },
    Sessions,
    Webhooks,
}

/// How a service is called, and how its variables begin.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceName {
    name: Arc<str>,
    prefix: Arc<str>,
}

impl ServiceName {
    /// The service of this name, if there is one.
    pub fn find(name: &str) -> Option<ServiceName> {
        SERVICES.iter().find(|service| service.name == name).map(BuiltIn::name)
    }

    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// Its variable of this ending.
    pub fn variable(&self, rest: &str) -> String {
        format!("{}_REPLICATION_{rest}", self.prefix)
    }

    /// `text` with its own variables for those that every service has, `*_REPLICATION_...`.
    pub fn with_own_variables(&self, text: &str) -> String {
        text.replace("*_REPLICATION", &format!("{}_REPLICATION", self.prefix))
    }

    /// Whether it is a variable of this service alone.
    pub(super) fn owns(&self, variable: &str) -> bool {
        variable.strip_prefix(&*self.prefix).is_some_and(|rest| rest.starts_with("_REPLICATION_"))
    }
}

impl BuiltIn {
    pub fn name(&self) -> ServiceName {
        ServiceName { name: self.name.into(), prefix: self.prefix.into() }
    }
}
