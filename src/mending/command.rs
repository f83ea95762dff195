//! The context of a command that reads both sides and may write, whether or not the service
//! streams.
//!
//! It holds neither the slot nor the lock. So before it writes it makes sure that the stream has
//! not started over meanwhile, by `walhouse_state`, and afterwards that it had not; and it records
//! which commits it may write in its own table, which the next start of the service takes into
//! account.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::debt;
use super::mapped::{Columns, Mapped, columns_of};
use super::parties::{MendingContext, SQL_TIMEOUT, sql_deadline};
use crate::clickhouse::own::backfills::{self, BackfillRow};
use crate::clickhouse::own::repairs::{self, RepairStatus};
use crate::clickhouse::own::state::{self, StateRow};
use crate::clickhouse::own::{self, databases};
use crate::clickhouse::{Client, tables};
use crate::config::ServiceConfig;
use crate::delivery::alongside::{Alongside, StopLevel};
use crate::delivery::context::DeliveryContext;
use crate::delivery::learned::Learned;
use crate::delivery::limits::{copy_bytes_max, page_bytes_max};
use crate::delivery::member::Member;
use crate::delivery::outage::Delays;
use crate::delivery::{connecting, source_check, target_tables};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Metrics;
use crate::postgres::primary::Primary;
use crate::postgres::server::{self, as_of};
use crate::postgres::slot::{self, SlotVerdict};
use crate::postgres::source_table::{SourceTable, TableName};
use crate::postgres::sql::Sql;
use crate::wal::Lsn;

/// How soon it is seen that the stream has come further.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// In addition to the interval of confirmations: how long the stream may take to reach our
/// snapshot.
const PASSES_WITHIN: Duration = Duration::from_secs(90);

/// How far a command is, for people.
#[derive(Debug, Clone, Copy)]
pub struct CommandProgress<'a> {
    pub what: &'a str,
    /// Of the whole, from 0 to 1.
    pub fraction: f64,
    pub left: Option<Duration>,
    pub rows: u64,
}

pub struct CommandContext<'c> {
    pub config: &'c ServiceConfig,
    pub member: Member,
    columns: Columns,
    primary: Primary,
    application_name: String,
    /// The stream's state, as it was found.
    state: StateRow,
    learned: Learned,
    metrics: Metrics,
    record: Mutex<Record>,
    begun_at: Instant,
}

/// The record of the command itself.
struct Record {
    client: Client,
    /// `None`: the command only reads.
    row: Option<BackfillRow>,
}

impl<'c> CommandContext<'c> {
    /// `writes` says whether tables of our own may be made for it.
    pub fn open(
        config: &'c ServiceConfig,
        command: &str,
        writes: bool,
    ) -> Result<CommandContext<'c>> {
        let service = config.name.as_str();
        let deadline = || Instant::now() + config.clickhouse.request_timeout;
        let mapping = target_tables::mapping(config);
        let mut client = Client::connect(&config.clickhouse)?;
        let version = client.ping(deadline())?;
        let is_new = !tables::missing(&mut client, &[state::TABLE.name], deadline())?.is_empty();
        let state = match is_new {
            true => None,
            false => state::TABLE.read(&mut client, service, &config.slot, deadline())?,
        };
        let state = state.ok_or_else(|| no_stream(config, command))?;
        if writes {
            own::tables::ensure(&mut client, config.create_tables, deadline())?;
        }
        let shapes = target_tables::shapes(&mut client, config, &*mapping, &version, false)?.shapes;
        let application_name = format!("walhouse/{command}");
        let known = connecting::known(config, &mut client)?;
        let deadline = Instant::now() + config.postgres.connect_timeout.min(SQL_TIMEOUT);
        let (mut primary, mut sql) =
            Primary::find(&config.postgres, &application_name, known, deadline, || Ok(()))?;
        primary.set_patience(config.receive_timeout);
        let found = primary.identity();
        if (found.system_identifier.to_string().as_str(), found.timeline)
            != (state.system_identifier.as_str(), state.timeline)
        {
            let doing = format!("{command} service `{service}`");
            return Err(Error::new(ErrorKind::Lineage, doing)
                .because(format!(
                    "its rows come from cluster {} on timeline {}, and the database URL leads to \
                     {} on {}",
                    state.system_identifier,
                    state.timeline,
                    found.system_identifier,
                    found.timeline
                ))
                .hint("Let the service stream from there first; or correct the database URL."));
        }
        check_database(config, command, &mut client, &mut sql)?;
        let source = mapping.source();
        let name = TableName::new(&*source.schema, &*source.table);
        let table = SourceTable::inspect(&mut sql, &name, sql_deadline())?;
        table.check_readable(&sql.about().role)?;
        source_check::columns(&table, source)?;
        Ok(CommandContext {
            config,
            columns: columns_of(&table, source),
            member: Member { mapping, shapes, found: table },
            primary,
            application_name,
            state,
            learned: Learned::default(),
            metrics: Metrics::new(&[service]),
            record: Mutex::new(Record { client, row: None }),
            begun_at: Instant::now(),
        })
    }

    /// Calls `act` with the context of a repair.
    pub fn with<T>(&self, act: impl FnOnce(&MendingContext<'_>) -> Result<T>) -> Result<T> {
        let (service, flush) = (self.service(), &self.config.flush);
        let metrics = self.metrics.service(service);
        let with = MendingContext {
            delivery: DeliveryContext {
                service,
                clickhouse: &self.config.clickhouse,
                delays: Delays {
                    min: flush.delay_min,
                    max: flush.delay_max,
                    outage_after: flush.retries_before_outage,
                },
                alongside: self,
                learned: &self.learned,
                metrics: &metrics,
            },
            member: &self.member,
            primary: &self.primary,
            application_name: &self.application_name,
            deletes_max_percent: self.config.repair_deletes_max_percent,
            page_bytes_max: page_bytes_max(self.config),
            copy_bytes_max: copy_bytes_max(self.config),
            begun_at: self.begun_at,
        };
        act(&with)
    }

    pub fn service(&self) -> &str {
        self.config.name.as_str()
    }

    /// Maps rows that are read.
    pub fn mapped(&self) -> Mapped<'_> {
        Mapped { service: self.service(), member: &self.member, columns: &self.columns }
    }

    pub fn deadline(&self) -> Instant {
        Instant::now() + self.config.clickhouse.request_timeout
    }

    /// The last record of a command for this slot.
    pub fn recorded(&self, command: &str) -> Result<Option<BackfillRow>> {
        let of = (self.service(), self.config.slot.as_str());
        backfills::read(&mut self.record.lock().client, of, command, self.deadline())
    }

    /// A record of the work that is about to begin; it follows and replaces `last`.
    pub fn new_record(
        &self,
        command: &str,
        last: Option<&BackfillRow>,
        request: &str,
    ) -> BackfillRow {
        let state = &self.state;
        // Rows that an earlier command wrote, of this very history, may still be forked off.
        let same = last.filter(|last| {
            (last.system_identifier.as_str(), last.timeline, last.version_shift)
                == (state.system_identifier.as_str(), state.timeline, state.version_shift)
        });
        BackfillRow {
            service: self.service().to_owned(),
            slot: self.config.slot.clone(),
            command: command.to_owned(),
            is_done: false,
            system_identifier: state.system_identifier.clone(),
            timeline: state.timeline,
            version_shift: state.version_shift,
            upper: same.map_or(Lsn(0), |last| last.upper),
            version_min: 0,
            version_max: 0,
            request: request.to_owned(),
            position: String::new(),
            rows_read: 0,
            rows_written: 0,
            revision: last.map_or(0, |last| last.revision),
        }
    }

    /// From now on progress is recorded here.
    pub fn set_record(&self, mut row: BackfillRow) -> Result<()> {
        let mut record = self.record.lock();
        backfills::write(&mut record.client, &mut row, self.deadline())?;
        record.row = Some(row);
        Ok(())
    }

    pub fn record(&self, change: impl FnOnce(&mut BackfillRow)) -> Result<()> {
        let mut record = self.record.lock();
        let Record { client, row } = &mut *record;
        let Some(row) = row else { return Ok(()) };
        change(row);
        backfills::write(client, row, self.deadline())
    }

    /// The state of the stream, unless it has started over, or follows another server.
    pub fn check(&self, client: &mut Client) -> Result<StateRow> {
        let now = state::TABLE.read(client, self.service(), &self.config.slot, self.deadline())?;
        let history = |state: &StateRow| {
            (state.system_identifier.clone(), state.timeline, state.version_shift)
        };
        match now {
            Some(now) if history(&now) == history(&self.state) => Ok(now),
            other => {
                let doing = format!("continue alongside service `{}`", self.service());
                Err(Error::new(ErrorKind::Lineage, doing)
                    .because(match other {
                        Some(_) => "it has started over, or follows another server, meanwhile",
                        None => "its recorded state is gone",
                    })
                    .hint("Once it streams, run this again."))
            }
        }
    }

    /// Checks after rows were written. If the stream has started over meanwhile, the repair may not
    /// have seen them: then another one is owed.
    pub fn check_landed(&self) -> Result<()> {
        let mut record = self.record.lock();
        let error = match self.check(&mut record.client) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if error.kind() == ErrorKind::Lineage {
            let reason = "a command wrote rows while the stream started over";
            let of = (self.service(), self.config.slot.as_str());
            let timeout = self.config.clickhouse.request_timeout;
            debt::owe(&mut record.client, of, reason, timeout)?;
        }
        Err(error)
    }

    /// The version of rows that are read from now on: below all that is still to be streamed.
    pub fn base_version(&self, sql: &mut Sql) -> Result<u64> {
        let found = slot::inspect(sql, &self.config.slot, sql_deadline())?;
        let found = found.filter(|found| slot::verdict(sql, found) == SlotVerdict::Usable);
        let restart_lsn = found.and_then(|found| found.restart_lsn);
        let restart_lsn = restart_lsn.ok_or_else(|| {
            Error::new(ErrorKind::Setup, format!("find slot `{}`", self.config.slot))
                .because("it is gone, or was invalidated")
                .hint("Start walhouse: it makes a new one, and mends what was missed.")
        })?;
        Ok(restart_lsn.0.saturating_add(self.state.version_shift))
    }

    /// The highest version that a change below this place can have.
    pub fn version_at(&self, lsn: Lsn) -> u64 {
        lsn.0.saturating_add(self.state.version_shift)
    }

    /// Where Postgres is now.
    pub fn now(&self, sql: &mut Sql) -> Result<Lsn> {
        Ok(as_of(sql, sql_deadline())?.insert_lsn)
    }

    /// Why a repair of the service is under way, if one is.
    pub fn repair_under_way(&self) -> Result<Option<String>> {
        let client = &mut self.record.lock().client;
        let row =
            repairs::TABLE.read(client, self.service(), &self.config.slot, self.deadline())?;
        Ok(row.filter(|row| row.status == RepairStatus::Running).map(|row| row.reason))
    }
}

impl Alongside for CommandContext<'_> {
    /// A command ends with its process: the next one repeats the work in hand.
    fn stop_level(&self) -> StopLevel {
        StopLevel::Running
    }

    fn rest(&self, until: Instant) -> StopLevel {
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        StopLevel::Running
    }

    fn pause(&self, until: Instant) -> Result<()> {
        self.rest(until).go_on()
    }

    /// Before any row is written: checks that the stream is the same, and records that commits up
    /// to `upper` may be written.
    fn admit(&self, upper: Lsn) -> Result<()> {
        let mut record = self.record.lock();
        let Record { client, row } = &mut *record;
        self.check(client)?;
        let Some(row) = row.as_mut().filter(|row| row.upper < upper) else { return Ok(()) };
        row.upper = upper;
        backfills::write(client, row, self.deadline())
    }

    /// Waits until commits below `lsn` are durable in ClickHouse.
    fn wait_for_stream(&self, lsn: Lsn) -> Result<()> {
        let patience = PASSES_WITHIN + 2 * self.config.ack_interval;
        let until = Instant::now() + patience;
        let mut record = self.record.lock();
        loop {
            let confirmed = self.check(&mut record.client)?.confirmed;
            if lsn <= confirmed {
                // The stream may write through another host than we read from.
                self.config.clickhouse.hosts.forget_fresh();
                return Ok(());
            }
            if until <= Instant::now() {
                let doing = format!("wait for the stream of service `{}`", self.service());
                return Err(Error::new(ErrorKind::Unreachable, doing)
                    .because(format!("it has reached {confirmed}, not {lsn}, within {patience:?}"))
                    .hint(
                        "The differences may still be in the stream. Run this while the service \
                         streams and has caught up.",
                    ));
            }
            self.pause(Instant::now() + LOOK_EVERY)?;
        }
    }
}

/// Another database of the same cluster has other rows under the same timeline.
fn check_database(
    config: &ServiceConfig,
    command: &str,
    client: &mut Client,
    sql: &mut Sql,
) -> Result<()> {
    let (service, deadline) =
        (config.name.as_str(), || Instant::now() + config.clickhouse.request_timeout);
    if !tables::missing(client, &[databases::TABLE.name], deadline())?.is_empty() {
        return Ok(());
    }
    let recorded = databases::TABLE.read(client, service, &config.slot, deadline())?;
    let found = server::database(sql, sql_deadline())?;
    match recorded.filter(|recorded| recorded.oid != found.oid) {
        None => Ok(()),
        Some(recorded) => {
            let doing = format!("{command} service `{service}`");
            Err(Error::new(ErrorKind::Lineage, doing)
                .because(format!(
                    "its rows come from database `{}` (oid {}), and the database URL leads to \
                     `{}` (oid {})",
                    recorded.name, recorded.oid, found.name, found.oid
                ))
                .hint("Correct the database URL."))
        }
    }
}

fn no_stream(config: &ServiceConfig, command: &str) -> Error {
    Error::new(ErrorKind::Setup, format!("{command} service `{}`", config.name.as_str()))
        .because(format!("slot `{}` has no recorded state: it was never streamed", config.slot))
        .hint(
            "Start walhouse first. It makes the slot, and copies the rows that are there \
             (*_REPLICATION_INITIAL_BACKFILL); without a slot, changes made meanwhile are lost.",
        )
}
