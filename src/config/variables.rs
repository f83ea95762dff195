//! Every variable that walhouse reads: the one list behind parsing, help and manual.
//!
//! Only words and presets live here; nothing reads the environment. A name that begins with `*`
//! stands for one variable of each service: `RUN_REPLICATION_...`, `SESSION_REPLICATION_...`.

use std::fmt::Write;

use super::{BuiltIn, SERVICES};
use crate::clickhouse::params::Quorum;

/// Variables that belong together, for readers of the help.
pub struct Section {
    pub title: &'static str,
    pub variables: &'static [Variable],
}

pub struct Variable {
    pub name: &'static str,
    pub kind: VariableKind,
    pub preset: Preset,
    /// One sentence or two, each with its full stop.
    pub about: &'static str,
}

/// The values that a variable accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VariableKind {
    Flag,
    Integer {
        min: u64,
        max: u64,
    },
    Choice(&'static [&'static str]),
    Slot,
    Publication,
    PostgresUrl,
    ClickhouseUrl,
    /// How many replicas must have an insert.
    Quorum,
    Host,
    Text,
    /// Never shown.
    Secret,
    Address,
    /// Known and without effect, and no warning is needed.
    Ignored,
    /// Known and without effect, which needs a warning unless the value is one of these.
    Unsupported {
        harmless: &'static [&'static str],
    },
}

/// The default of a variable that is unset or empty.
#[derive(Debug, Clone, Copy)]
pub enum Preset {
    Unset,
    Value(&'static str),
    PerService(fn(&BuiltIn) -> &'static str),
    /// The value of another variable.
    Variable(&'static str),
    /// Decided in code, described in words.
    Rule(&'static str),
}

impl VariableKind {
    pub fn accepted(self) -> String {
        match self {
            VariableKind::Flag => "1, 0, true or false".into(),
            VariableKind::Integer { min, max } => format!("a whole number from {min} to {max}"),
            VariableKind::Choice([only]) => (*only).into(),
            VariableKind::Choice(choices) => {
                let (last, rest) = choices.split_last().expect("a choice has choices");
                format!("{} or {last}", rest.join(", "))
            }
            VariableKind::Slot => "1 to 63 characters of a-z, 0-9 and _".into(),
            VariableKind::Publication => "a name of 1 to 63 bytes".into(),
            VariableKind::PostgresUrl => {
                "postgres://user:password@host:5432/database, or libpq's key=value pairs".into()
            }
            VariableKind::ClickhouseUrl => {
                "http://user:password@host:8123 or https://user:password@host:8443".into()
            }
            VariableKind::Quorum => {
                format!("a whole number from 1 to {}, or auto", Quorum::REPLICAS_MAX)
            }
            VariableKind::Host => "a host name or an IP address".into(),
            VariableKind::Text | VariableKind::Secret => "text".into(),
            VariableKind::Address => {
                "an IP address and a port such as 127.0.0.1:9465, or nothing for off".into()
            }
            VariableKind::Ignored | VariableKind::Unsupported { .. } => {
                "anything, without effect".into()
            }
        }
    }
}

impl Variable {
    /// The real names, in the order of the services.
    pub fn names(&self) -> Vec<String> {
        match self.name.strip_prefix('*') {
            Some(rest) => {
                SERVICES.iter().map(|service| format!("{}{rest}", service.prefix)).collect()
            }
            None => vec![self.name.into()],
        }
    }

    fn is_named(&self, name: &str) -> bool {
        self.service(name).is_some() || (self.name == name && !name.starts_with('*'))
    }

    /// Whose variable it is under this name.
    fn service(&self, name: &str) -> Option<&'static BuiltIn> {
        let rest = self.name.strip_prefix('*')?;
        SERVICES.iter().find(|service| name.strip_prefix(service.prefix) == Some(rest))
    }

    /// The text that holds under this name when nothing is set.
    pub(super) fn preset_of(&self, name: &str) -> Option<&'static str> {
        match self.preset {
            Preset::Value(value) => Some(value),
            Preset::PerService(of) => self.service(name).map(of),
            Preset::Unset | Preset::Variable(_) | Preset::Rule(_) => None,
        }
    }

    /// The default in words.
    pub fn preset_text(&self) -> String {
        match self.preset {
            Preset::Unset => "unset".into(),
            Preset::Value(value) => value.into(),
            Preset::PerService(of) => {
                let each = |service: &BuiltIn| format!("{} ({})", of(service), service.name);
                SERVICES.iter().map(each).collect::<Vec<_>>().join(", ")
            }
            Preset::Variable(name) => format!("what {name} says"),
            Preset::Rule(text) => text.into(),
        }
    }
}

pub fn all() -> impl Iterator<Item = &'static Variable> {
    SECTIONS.iter().flat_map(|section| section.variables)
}

pub fn find(name: &str) -> Option<&'static Variable> {
    all().find(|variable| variable.is_named(name))
}

/// Follows a variable to those that it falls back on, until `own` has a value of one. Returns the
/// last one, by its name, and the value.
pub(super) fn resolve(
    name: &str,
    mut own: impl FnMut(&'static Variable, &str) -> Option<String>,
) -> (&'static Variable, &str, Option<String>) {
    let mut name = name;
    loop {
        let variable = find(name).expect("the variable is in the table");
        match (own(variable, name), variable.preset) {
            (None, Preset::Variable(other)) => name = other,
            (value, _) => return (variable, name, value),
        }
    }
}

/// The tables of the topic `variables`, one for each section.
pub fn markdown_table() -> String {
    let mut out = String::new();
    for section in SECTIONS {
        let _ = writeln!(out, "## {}\n", section.title);
        out.push_str("| Variable | Default | Accepted | What it does |\n|---|---|---|---|\n");
        for variable in section.variables {
            let names: Vec<String> = variable.names().iter().map(|n| format!("`{n}`")).collect();
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} |",
                names.join("<br>"),
                variable.preset_text(),
                variable.kind.accepted(),
                variable.about
            );
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

const fn variable(
    name: &'static str,
    kind: VariableKind,
    preset: Preset,
    about: &'static str,
) -> Variable {
    Variable { name, kind, preset, about }
}

const fn flag(name: &'static str, preset: &'static str, about: &'static str) -> Variable {
    variable(name, VariableKind::Flag, Preset::Value(preset), about)
}

/// The bounds refuse what can only be a mistake; they are not tuning advice.
const fn integer(
    name: &'static str,
    (min, max): (u64, u64),
    preset: &'static str,
    about: &'static str,
) -> Variable {
    variable(name, VariableKind::Integer { min, max }, Preset::Value(preset), about)
}

const fn ignored(name: &'static str, about: &'static str) -> Variable {
    variable(name, VariableKind::Ignored, Preset::Unset, about)
}

const fn unsupported(
    name: &'static str,
    harmless: &'static [&'static str],
    about: &'static str,
) -> Variable {
    variable(name, VariableKind::Unsupported { harmless }, Preset::Unset, about)
}

const HOUR_MS: u64 = 3_600_000;
const READERS: &str = "walhouse reads the lock from the server that it writes it to.";
const LOG_LEVELS: VariableKind = VariableKind::Choice(&["log", "error", "warn", "info", "debug"]);

#[rustfmt::skip] // A variable reads best as two short lines: name and bounds, then its sentence.
pub const SECTIONS: &[Section] = &[
    Section { title: "What is replicated, from where, to where", variables: &[
        flag("*_REPLICATION_ENABLED", "0",
            "Turns the service on; it also needs its ClickHouse URL."),
        variable("*_REPLICATION_CLICKHOUSE_URL", VariableKind::ClickhouseUrl, Preset::Unset,
            "ClickHouse's HTTP interface. The service is off while this is unset. Several hosts, \
             as in `http://a:8123,b:8123`, are tried in turn. Tables live in database \
             `trigger_dev`. `?request_timeout=` in ms (30000); `?compress=1` or `0`: inserts as \
             LZ4 (unless the host is this machine)."),
        variable("DATABASE_URL", VariableKind::PostgresUrl, Preset::Unset,
            "Postgres, reached directly: logical replication does not go through a pooler."),
        variable("RUN_REPLICATION_DATABASE_URL", VariableKind::PostgresUrl,
            Preset::Variable("RUN_REPLICATION_LEGACY_DATABASE_URL"),
            "Postgres for runs alone."),
        variable("RUN_REPLICATION_LEGACY_DATABASE_URL", VariableKind::PostgresUrl,
            Preset::Variable("DATABASE_URL"),
            "The same, under trigger.dev's name for it."),
        variable("SESSION_REPLICATION_DATABASE_URL", VariableKind::PostgresUrl,
            Preset::Variable("DATABASE_URL"),
            "Postgres for sessions alone."),
        variable("WEBHOOK_DELIVERIES_REPLICATION_DATABASE_URL", VariableKind::PostgresUrl,
            Preset::Variable("WEBHOOK_DATABASE_URL"),
            "Postgres for webhooks alone."),
        variable("WEBHOOK_DATABASE_URL", VariableKind::PostgresUrl,
            Preset::Variable("DATABASE_URL"),
            "The same, under trigger.dev's name for it."),
        variable("*_REPLICATION_SLOT_NAME", VariableKind::Slot,
            Preset::PerService(|service| service.slot),
            "The replication slot; created when it is missing on a first start."),
        flag("*_REPLICATION_SLOT_FAILOVER", "1",
            "Marks the slot as a failover slot if the server supports that (Postgres 17 and \
             newer), so that standbys can keep a copy; 0 removes the mark."),
        variable("*_REPLICATION_PUBLICATION_NAME", VariableKind::Publication,
            Preset::PerService(|service| service.publication),
            "The publication; created when it is missing."),
        flag("REPLICATION_CREATE_TABLES", "1",
            "Creates missing tables in ClickHouse; 0 expects them to exist."),
        variable("REPLICATION_CLICKHOUSE_CLUSTER", VariableKind::Text, Preset::Unset,
            "Creates missing tables ON CLUSTER of this name, as Replicated ones."),
        variable("REPLICATION_CLICKHOUSE_INSERT_QUORUM", VariableKind::Quorum, Preset::Unset,
            "How many replicas must have an insert before it counts; auto is more than half of \
             them."),
        variable("*_REPLICATION_INITIAL_BACKFILL",
            VariableKind::Choice(&["1", "0", "true", "false", "existing"]), Preset::Value("1"),
            "Copies the rows that already exist when walhouse creates the service's tables; \
             `existing` also fills tables that already existed, as long as no state is recorded; 0 \
             replicates only later changes."),
        flag("RUN_REPLICATION_DISABLE_PAYLOAD_INSERT", "0",
            "Leaves `raw_task_runs_payload_v1` alone."),
        flag("RUN_REPLICATION_DISABLE_ERROR_FINGERPRINTING", "0",
            "Leaves the column `error_fingerprint` empty."),
    ]},
    Section { title: "Reading and confirming", variables: &[
        flag("REPLICATION_BINARY", "1",
            "Asks Postgres for binary values where it can send them; 0 asks for text."),
        integer("*_REPLICATION_ACK_INTERVAL_SECONDS", (1, 3600), "10",
            "Reports to Postgres at least this often up to where changes are durable in \
             ClickHouse."),
        integer("REPLICATION_RECEIVE_TIMEOUT_MS", (100, HOUR_MS), "30000",
            "Silence of Postgres for this long, keepalives included, ends the connection."),
    ]},
    Section { title: "Flushing", variables: &[
        integer("*_REPLICATION_FLUSH_BATCH_SIZE", (1, 10_000_000), "100",
            "A batch of this many rows waits for only a tenth of the interval, and so does the \
             rest of the burst that follows it."),
        integer("*_REPLICATION_FLUSH_INTERVAL_MS", (1, HOUR_MS), "1000",
            "A batch is flushed at the latest when its first row is this old."),
        variable("*_REPLICATION_MAX_FLUSH_CONCURRENCY", VariableKind::Integer { min: 1, max: 256 },
            Preset::PerService(|service| service.flush_concurrency),
            "Batches in flight to ClickHouse at the same time, each on its own thread."),
        integer("*_REPLICATION_MAX_BUFFER_BYTES", (65_536, 1 << 40), "67108864",
            "Rows held in memory; when full, reading waits and nothing is dropped."),
        integer("*_REPLICATION_INSERT_MAX_RETRIES", (1, 1000), "3",
            "Attempts at one insert before the outage is reported; attempts go on after that."),
        integer("*_REPLICATION_INSERT_BASE_DELAY_MS", (1, HOUR_MS), "100",
            "Wait before the second attempt at an insert; doubles with each further one."),
        integer("*_REPLICATION_INSERT_MAX_DELAY_MS", (1, HOUR_MS), "2000",
            "Longest wait between two attempts at an insert."),
        variable("*_REPLICATION_INSERT_STRATEGY", VariableKind::Choice(&["insert", "insert_async"]),
            Preset::Value("insert"),
            "Inserts directly, or through ClickHouse's asynchronous inserts. Either way walhouse \
             waits for the insert before it counts."),
        flag("*_REPLICATION_KEEP_ALIVE_ENABLED", "0",
            "Keeps HTTP connections to ClickHouse open between inserts."),
        variable("*_REPLICATION_KEEP_ALIVE_IDLE_SOCKET_TTL_MS",
            VariableKind::Integer { min: 1, max: HOUR_MS }, Preset::Unset,
            "Closes a kept connection after this long without use; keep it below the server's \
             `keep_alive_timeout`."),
        integer("*_REPLICATION_MAX_OPEN_CONNECTIONS", (1, 10_000), "10",
            "Maximum number of HTTP connections to ClickHouse."),
    ]},
    Section { title: "Leader election", variables: &[
        variable("REPLICATION_LEADER_LOCK", VariableKind::Choice(&["redis", "postgres"]),
            Preset::Rule("redis if a Redis host is set, else postgres"),
            "Where the lock is kept. Next to trigger.dev's own replication it must be redis."),
        integer("*_REPLICATION_LEADER_LOCK_TIMEOUT_MS", (100, HOUR_MS), "30000",
            "TTL of the lock."),
        integer("*_REPLICATION_LEADER_LOCK_EXTEND_INTERVAL_MS", (1, HOUR_MS), "10000",
            "How often the lock is extended; less than half of its TTL."),
        integer("*_REPLICATION_LEADER_LOCK_ADDITIONAL_TIME_MS", (0, HOUR_MS), "10000",
            "How long one attempt keeps trying beyond the TTL before it waits and starts over."),
        integer("*_REPLICATION_LEADER_LOCK_RETRY_INTERVAL_MS", (1, HOUR_MS), "500",
            "Wait between two attempts to take the lock."),
        variable("RUN_REPLICATION_REDIS_HOST", VariableKind::Host, Preset::Variable("REDIS_HOST"),
            "Redis, for every service."),
        variable("RUN_REPLICATION_REDIS_PORT", VariableKind::Integer { min: 1, max: 65_535 },
            Preset::Variable("REDIS_PORT"),
            "Its port."),
        variable("RUN_REPLICATION_REDIS_USERNAME", VariableKind::Text,
            Preset::Variable("REDIS_USERNAME"),
            "Its user, if it has users."),
        variable("RUN_REPLICATION_REDIS_PASSWORD", VariableKind::Secret,
            Preset::Variable("REDIS_PASSWORD"),
            "Its password."),
        variable("RUN_REPLICATION_REDIS_TLS_DISABLED", VariableKind::Flag,
            Preset::Variable("REDIS_TLS_DISABLED"),
            "Connects to Redis without TLS."),
        variable("REDIS_HOST", VariableKind::Host, Preset::Unset,
            "Used where `RUN_REPLICATION_REDIS_HOST` is unset."),
        integer("REDIS_PORT", (1, 65_535), "6379",
            "Used where `RUN_REPLICATION_REDIS_PORT` is unset."),
        variable("REDIS_USERNAME", VariableKind::Text, Preset::Unset,
            "Used where `RUN_REPLICATION_REDIS_USERNAME` is unset."),
        variable("REDIS_PASSWORD", VariableKind::Secret, Preset::Unset,
            "Used where `RUN_REPLICATION_REDIS_PASSWORD` is unset."),
        flag("REDIS_TLS_DISABLED", "0",
            "Used where `RUN_REPLICATION_REDIS_TLS_DISABLED` is unset."),
    ]},
    Section { title: "When a stream ends unexpectedly", variables: &[
        variable("*_REPLICATION_ERROR_STRATEGY",
            VariableKind::Choice(&["reconnect", "exit", "log"]),
            Preset::Value("reconnect"),
            "reconnect tries again after a wait; exit ends the process so that a supervisor \
             restarts it; log leaves the stream down and the process up."),
        integer("REPLICATION_RECONNECT_INITIAL_DELAY_MS", (1, HOUR_MS), "1000",
            "First wait of strategy reconnect; doubles with each further one."),
        integer("REPLICATION_RECONNECT_MAX_DELAY_MS", (1, HOUR_MS), "60000",
            "Longest wait of strategy reconnect."),
        integer("REPLICATION_RECONNECT_MAX_ATTEMPTS", (0, u32::MAX as u64), "0",
            "Attempts in a row before the service is stopped for good; 0 is without limit."),
        integer("*_REPLICATION_EXIT_DELAY_MS", (0, HOUR_MS), "5000",
            "Longest time for draining under strategy exit."),
        integer("*_REPLICATION_EXIT_CODE", (0, 255), "1",
            "Exit code under strategy exit."),
    ]},
    Section { title: "When changes were missed, or Postgres lost some", variables: &[
        variable("REPLICATION_GAP_STRATEGY", VariableKind::Choice(&["repair", "halt", "skip"]),
            Preset::Value("repair"),
            "After a lost slot, or a failover that lost rows which ClickHouse has: repair compares \
             the whole table and repairs what differs, while the stream goes on; halt stops the \
             service; skip goes on and leaves the difference."),
        integer("REPLICATION_REPAIR_CONCURRENCY", (1, 64), "2",
            "Connections that read the table during a repair, each a few MB at a time, or during \
             an initial backfill, up to 64 MB."),
        integer("REPLICATION_REPAIR_DELETES_MAX_PERCENT", (0, 100), "40",
            "How much of a table a repair may mark as deleted; if more of it is not in Postgres, \
             the repair waits for an operator and marks nothing. 100 allows everything."),
    ]},
    Section { title: "The process", variables: &[
        integer("REPLICATION_SHUTDOWN_TIMEOUT_MS", (1, HOUR_MS), "30000",
            "Longest time for draining after SIGTERM or SIGINT; a second signal ends at once."),
        variable("REPLICATION_HTTP_LISTEN", VariableKind::Address, Preset::Value("127.0.0.1:9465"),
            "Health and metrics over HTTP; set but empty is off."),
        variable("*_REPLICATION_LOG_LEVEL", LOG_LEVELS, Preset::Value("info"),
            "Log level of the service; log is the same as info."),
        variable("*_REPLICATION_CLICKHOUSE_LOG_LEVEL", LOG_LEVELS, Preset::Value("info"),
            "Log level of its ClickHouse client."),
    ]},
    Section { title: "Known from trigger.dev, without effect here", variables: &[
        ignored("*_REPLICATION_WAIT_FOR_ASYNC_INSERT",
            "walhouse always waits for an insert: nothing is confirmed before it is durable."),
        unsupported("RUN_REPLICATION_MAX_POISON_STRIPS_PER_BATCH", &[],
            "A row that ClickHouse refuses is kept in full in a dead-letter table."),
        unsupported("RUN_REPLICATION_RUN_OPS_DATABASE_URL", &[],
            "Runs are replicated from one source; a second one is not read."),
        unsupported("RUN_REPLICATION_NEW_ENABLED", &["0", "disabled"],
            "Runs are replicated from one source; a second one is not read."),
        unsupported("RUN_REPLICATION_NEW_SLOT_NAME", &[],
            "Runs are replicated from one source; a second one is not read."),
        unsupported("RUN_REPLICATION_NEW_PUBLICATION_NAME", &[],
            "Runs are replicated from one source; a second one is not read."),
        unsupported("RUN_REPLICATION_NEW_ORIGIN_GENERATION", &[],
            "Runs are replicated from one source; a second one is not read."),
        flag("RUN_OPS_SPLIT_ENABLED", "0",
            "Only 0: with 1 trigger.dev writes runs of two databases into one table, and walhouse \
             would treat those of the database that it does not read as deleted."),
        variable("RUN_REPLICATION_LEGACY_ORIGIN_GENERATION", VariableKind::Choice(&["0"]),
            Preset::Value("0"),
            "Only 0: versions are WAL positions, which rows of a higher generation would outrank."),
        ignored("RUN_REPLICATION_REDIS_READER_HOST", READERS),
        ignored("RUN_REPLICATION_REDIS_READER_PORT", READERS),
        ignored("REDIS_READER_HOST", READERS),
        ignored("REDIS_READER_PORT", READERS),
    ]},
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_is_listed_once_and_found() {
        let mut seen = BTreeSet::new();
        for variable in all() {
            for name in variable.names() {
                assert!(seen.insert(name.clone()), "{name} is listed twice");
                assert_eq!(find(&name).map(|found| found.name), Some(variable.name));
            }
        }
        assert!(seen.contains("RUN_REPLICATION_FLUSH_BATCH_SIZE"));
        assert!(seen.contains("SESSION_REPLICATION_FLUSH_BATCH_SIZE"));
        assert!(find("RUN_REPLICATION_").is_none());
        assert!(find("*_REPLICATION_ENABLED").is_none());
    }

    #[test]
    fn presets_name_known_variables_and_sentences_end() {
        for variable in all() {
            if let Preset::Variable(name) = variable.preset {
                assert!(find(name).is_some(), "{} falls back on {name}", variable.name);
            }
            assert!(variable.about.ends_with('.'), "{}", variable.name);
            assert!(!variable.about.contains('|'), "{} would break the table", variable.name);
        }
    }

    #[test]
    fn markdown_has_a_row_for_every_variable() {
        let text = markdown_table();
        for variable in all() {
            for name in variable.names() {
                assert!(text.contains(&format!("`{name}`")), "{name}");
            }
        }
        let row = "| `REDIS_PORT` | 6379 | a whole number from 1 to 65535 | Used where \
                   `RUN_REPLICATION_REDIS_PORT` is unset. |";
        assert!(text.contains(row));
        assert!(text.ends_with("|\n"));
    }
}
