//! walhouse's status for people: the facts of `/status`, and the same as a page and as a table.
//!
//! Nothing here queries or waits for anything, and only the words around the facts come from here.
//!
//! A new fact is a field of a type in this file, filled in by `health` or by a thread, and shown by
//! [`page`] and [`table`].

pub mod graph;
pub mod history;
pub mod page;
pub mod table;
pub mod words;

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::wal::Lsn;

/// The document of `GET /status`. A field that is not known is null or left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    pub version: String,
    pub source: SourceServer,
    /// Host and process.
    pub instance: Option<String>,
    pub started_unix_seconds: Option<u64>,
    pub now_unix_seconds: u64,
    pub healthy: bool,
    /// Why not.
    pub reasons: Vec<String>,
    pub services: BTreeMap<String, ServiceOverview>,
}

/// The source of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceServer {
    /// A process of walhouse, of itself.
    Process,
    /// Postgres, Redis and ClickHouse, asked by a command.
    Servers,
}

/// The state of a service of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceState {
    Starting,
    /// Another instance leads.
    StandingBy,
    Streaming,
    /// Waiting for the next attempt.
    BackingOff,
    Draining,
    /// It will not stream again in this process.
    Stopped,
    /// It waits for an operator.
    Failed,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceOverview {
    pub slot: String,
    /// A [`ServiceState`], or what the slot is doing where no process was asked.
    pub state: String,
    pub healthy: bool,
    pub since_unix_seconds: Option<u64>,
    pub reason: Option<String>,
    pub hint: Option<String>,
    pub leader: LeaderOverview,
    pub wal: Wal,
    pub lag: Lag,
    pub retained_wal: RetainedWal,
    pub throughput: Option<Throughput>,
    pub unflushed_bytes: Option<u64>,
    pub insert_outage: Option<Trouble>,
    pub last_error: Option<Trouble>,
    /// By table, since the process started.
    pub refused_rows: BTreeMap<String, u64>,
    pub repair: Option<Repair>,
    /// Notes for an operator that stop nothing.
    #[serde(default)]
    pub notes: Vec<String>,
    /// The latest first.
    pub changes: Vec<StateChange>,
    pub history: HistoryOverview,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderOverview {
    pub who: Who,
    /// As far as it is known.
    pub name: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    ThisProcess,
    Another,
    /// Somebody: a command cannot distinguish the processes.
    Somebody,
    Nobody,
    #[default]
    Unknown,
}

/// Positions, as Postgres prints them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wal {
    pub server_lsn: Option<String>,
    /// When the server was looked at.
    pub server_seen_unix_seconds: Option<u64>,
    pub received_lsn: Option<String>,
    pub flushed_lsn: Option<String>,
    pub confirmed_lsn: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// The distance from the end of the server's WAL to what is durable.
    pub bytes: Option<u64>,
    pub seconds: Option<f64>,
    /// Since everything that was read, or some of it, was confirmed.
    pub seconds_since_confirmed: Option<f64>,
}

/// The WAL that the slot retains on the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct RetainedWal {
    /// `None` without a slot.
    pub bytes: Option<u64>,
    pub growth_bytes_per_second: Option<f64>,
    /// `max_slot_wal_keep_size`; null is without limit, or not known.
    pub limit_bytes: Option<u64>,
    /// The WAL that may still be written before Postgres invalidates the slot.
    pub left_bytes: Option<u64>,
    /// At that speed.
    pub seconds_left: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    pub rows_per_second: f64,
    pub changes_per_second: f64,
    pub bytes_per_second: f64,
}

/// An error, with the time of it, or since when it has been so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    pub error: String,
    pub hint: Option<String>,
    pub at_unix_seconds: u64,
}

/// How far a repair has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Repair {
    /// The reason for it.
    pub reason: String,
    /// `read`, `count`, `delete`, or `catch up`: it only waits for the stream.
    pub pass: String,
    /// Progress of the pass, from 0 to 1.
    pub fraction: Option<f64>,
    pub seconds_left: Option<u64>,
    /// Pieces are of `/healthz` alone.
    #[serde(skip)]
    pub pieces_done: usize,
    #[serde(skip)]
    pub pieces: usize,
    pub rows_read: u64,
    pub rows_written: u64,
    #[serde(flatten, with = "tombstones")]
    pub tombstones_written: u64,
    /// Attempts in a row that failed.
    pub failed_attempts: u32,
    pub error: Option<String>,
}

/// Under two names: version 0.1 calls it `rows_buried`, and its `status` does not read an answer
/// without. Gone in the next version.
mod tombstones {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Names {
        tombstones_written: Option<u64>,
        rows_buried: Option<u64>,
    }

    pub fn serialize<S: Serializer>(count: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        let names = Names { tombstones_written: Some(*count), rows_buried: Some(*count) };
        names.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let Names { tombstones_written, rows_buried } = Names::deserialize(deserializer)?;
        tombstones_written.or(rows_buried).ok_or_else(|| D::Error::missing_field("rows_buried"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateChange {
    pub at_unix_seconds: u64,
    /// The state since then; the same as before if the entry reports something else.
    pub state: String,
    pub reason: Option<String>,
}

/// The last hour: lists of one length, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HistoryOverview {
    pub at_unix_seconds: Vec<u64>,
    pub lag_seconds: Vec<Option<f64>>,
    pub rows_per_second: Vec<Option<f64>>,
    pub retained_wal_bytes: Vec<Option<u64>>,
    pub unflushed_bytes: Vec<u64>,
}

impl ServiceState {
    pub const ALL: [ServiceState; 7] = [
        ServiceState::Starting,
        ServiceState::StandingBy,
        ServiceState::Streaming,
        ServiceState::BackingOff,
        ServiceState::Draining,
        ServiceState::Stopped,
        ServiceState::Failed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            ServiceState::Starting => "starting",
            ServiceState::StandingBy => "standing_by",
            ServiceState::Streaming => "streaming",
            ServiceState::BackingOff => "backing_off",
            ServiceState::Draining => "draining",
            ServiceState::Stopped => "stopped",
            ServiceState::Failed => "failed",
        }
    }
}

pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Wal {
    /// Between two positions; `None` where one is not known.
    fn distance(from: &Option<String>, to: &Option<String>) -> Option<u64> {
        let (from, to): (Lsn, Lsn) = (from.as_ref()?.parse().ok()?, to.as_ref()?.parse().ok()?);
        Some(to.0.saturating_sub(from.0))
    }

    /// The server's WAL beyond `position`.
    pub fn behind(&self, position: &Option<String>) -> Option<u64> {
        Wal::distance(position, &self.server_lsn)
    }
}

impl RetainedWal {
    /// How long the rest lasts at the current rate; `None` if it does not shrink.
    pub fn with_forecast(mut self) -> RetainedWal {
        self.seconds_left = match (self.left_bytes, self.growth_bytes_per_second) {
            (Some(left), Some(growth)) if 0.0 < growth => Some((left as f64 / growth).round()),
            _ => None,
        };
        self
    }
}

impl Overview {
    /// Whether an outage keeps rows out of ClickHouse; `/healthz` does not report it, since a
    /// restart would not help.
    fn has_outage(&self) -> bool {
        self.services.values().any(|service| service.insert_outage.is_some())
    }

    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string(self).expect("every field can be written as JSON");
        text.push('\n');
        text
    }

    pub fn from_json(text: &[u8]) -> Result<Overview, String> {
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }
}

/// One with something in every field, for the tests of the room.
#[cfg(test)]
mod testing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_as_it_was_written() {
        let overview = testing::busy();
        let json = overview.to_json();
        assert_eq!(Overview::from_json(json.as_bytes()).as_ref(), Ok(&overview));
        assert!(json.contains(r#""source":"process""#), "{json}");
        assert!(Overview::from_json(b"{}").is_err());
    }

    /// Commands and processes of two versions ask each other while one is upgraded.
    #[test]
    fn a_count_that_was_renamed_is_written_and_read_under_both_names() {
        let overview = testing::busy();
        let json = overview.to_json();
        let (new, old) = (r#""tombstones_written":8,"#, r#""rows_buried":8,"#);
        assert!(json.contains(new) && json.contains(old), "{json}");
        for without in [new, old] {
            let read = Overview::from_json(json.replace(without, "").as_bytes());
            assert_eq!(read.as_ref(), Ok(&overview), "{without}");
        }
        let neither = json.replace(new, "").replace(old, "");
        assert!(Overview::from_json(neither.as_bytes()).is_err());
    }

    #[test]
    fn what_is_left_is_forecast_only_while_it_shrinks() {
        let retained = |left_bytes, growth_bytes_per_second| {
            let retained =
                RetainedWal { left_bytes, growth_bytes_per_second, ..RetainedWal::default() };
            retained.with_forecast().seconds_left
        };
        assert_eq!(retained(Some(1000), Some(10.0)), Some(100.0));
        assert_eq!(retained(Some(1000), Some(0.0)), None);
        assert_eq!(retained(Some(1000), Some(-5.0)), None);
        assert_eq!(retained(None, Some(10.0)), None);
        assert_eq!(retained(Some(1000), None), None);
    }

    #[test]
    fn distances_need_both_ends_and_are_never_below_zero() {
        let wal = Wal { server_lsn: Some("1/10".to_owned()), ..Wal::default() };
        assert_eq!(wal.behind(&Some("1/0".to_owned())), Some(16));
        assert_eq!(wal.behind(&Some("2/0".to_owned())), Some(0));
        assert_eq!(wal.behind(&None), None);
        assert_eq!(wal.behind(&Some("nonsense".to_owned())), None);
    }
}
