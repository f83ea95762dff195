//! Where a session continues: compares the record with the server and its slot, and takes the
//! course that follows. Runs on the session's own thread.
//!
//! The order of the writes makes a kill between any two of them harmless: first the debt, a repair
//! that matches no state; then the slot, the repair, the state. The cause of a repair may not be
//! visible a second time, so a recorded repair that does not match the state is owed, and starts
//! again ([`recovery::course_in_debt`]). Earlier findings come as a debt, too
//! ([`debt`](crate::mending::debt)), and so does the initial backfill of tables that are about to
//! be created.

use std::time::{Duration, Instant};

use crate::clickhouse::Client;
use crate::clickhouse::own::databases::{self, DatabaseRow};
use crate::clickhouse::own::repairs::{self, ADOPTED, AT_FENCE, RepairRow, RepairStatus};
use crate::clickhouse::own::sources::{self, SourceRow};
use crate::clickhouse::own::state::{self, StateRow};
use crate::clickhouse::own::{adoptions, backfills};
use crate::clickhouse::stored::highest_version;
use crate::clickhouse::tables::is_empty;
use crate::config::ServiceConfig;
use crate::delivery::connecting::{in_numbers, step};
use crate::delivery::source_look::{self, SourceLook};
use crate::error::{Error, ErrorKind, Result};
use crate::machines::lineage::{self, Fork, Gap, LineageVerdict};
use crate::machines::recovery::{self, Course, Debt};
use crate::machines::undecodable::Given;
use crate::mending::debt::{DEBT, Numbers, due, is_only_owed, makes_debt, reason_over, repair_row};
use crate::mending::repairer::RepairCursor;
use crate::metrics::ServiceMetrics;
use crate::postgres::connection::Connection;
use crate::postgres::server::{self, Database};
use crate::postgres::source_table::TableName;
use crate::postgres::sql::Sql;
use crate::postgres::{publication, slot};
use crate::rows::Shape;
use crate::services::mapping::Mapping;
use crate::wal::Lsn;

/// Creating a slot waits for the transactions that are running.
const CREATE_SLOT_TIMEOUT: Duration = Duration::from_secs(300);

/// A look into a slot may have to pass much WAL that is not ours.
const PEEK_TIMEOUT: Duration = Duration::from_secs(10);
/// The first version that decodes WAL from before its publication, without what that has.
const WARNS_ONLY_SINCE: u32 = 180_000;

/// Whom it talks to, and about what.
pub struct Parties<'a> {
    pub config: &'a ServiceConfig,
    pub metrics: &'a ServiceMetrics,
    pub mapping: &'a dyn Mapping,
    /// By target table.
    pub shapes: &'a [Shape],
    pub client: &'a mut Client,
    pub sql: &'a mut Sql,
    pub connection: &'a mut Connection,
    /// The WAL in the slot that is not to be tried again.
    pub given_up: Option<Given>,
    /// Whether the session may still write.
    pub may_write: &'a dyn Fn() -> Result<()>,
}

/// Recorded in ClickHouse; rows may come.
pub struct Resumed {
    pub state: StateRow,
    /// To be done alongside the stream.
    pub repair: Option<RepairRow>,
    pub slot_is_new: bool,
    /// The snapshot of the source, as it is recorded.
    pub source: SourceRow,
}

pub fn resume(mut with: Parties<'_>) -> Result<Resumed> {
    let (service, slot_name) = (with.service(), with.config.slot.as_str());
    let ahead = with.look_ahead(&[])?;
    let Outlook { recorded, repair, before, server, slot, verdict, course, debt, reason, .. } =
        ahead;
    let Outlook { database, recorded_database, .. } = ahead;
    let mut source = ahead.source;
    (with.may_write)()?;
    let mut is_usable = slot.is_some_and(|slot| !slot.invalidated);
    let mut revision = repair.as_ref().map_or(0, |row| row.revision);
    if debt.is_none() && makes_debt(&verdict, course) {
        let owed = reason_over(repair.as_ref(), &reason);
        revision = with
            .write_repair(RepairStatus::Running, &RepairCursor::start(), DEBT, &owed, revision)?
            .revision;
    }
    let (state, repair) = match course {
        Course::Stop => return Err(stopped(service, slot_name, verdict, reason)),
        Course::Begin => (with.begin(&server)?, None),
        Course::Continue { record } => {
            let state = with.go_on(&verdict, record, before, slot.as_ref(), &server)?;
            (state, repair.filter(|repair| repair.status == RepairStatus::Running))
        }
        Course::StartOver { repair: is_repaired } => {
            let is_blind = source.judgement.publication_is_new;
            is_usable &= !is_blind;
            let slot = with.usable_slot(slot, is_blind)?;
            let (state, cursor) = match debt {
                Some(Debt::InitialBackfill) => {
                    (with.begin_filling(&reason, &slot, &server)?, with.cursor_of_filling()?)
                }
                _ => {
                    let state = with.start_over(&reason, before.as_ref(), &slot, &server)?;
                    (state, RepairCursor::start())
                }
            };
            // The debt may date from any time, and the slot may still bring older changes.
            let at_fence = debt == Some(Debt::Repair) || source.judgement.may_hide_rows();
            let base_version =
                if at_fence { AT_FENCE } else { recovery::base_version(&state, &slot) };
            let numbers = Numbers { state, base_version };
            match is_repaired {
                true => {
                    if debt != Some(Debt::InitialBackfill) {
                        with.metrics.repairs.inc();
                    }
                    let row = with.write_repair(
                        RepairStatus::Running,
                        &cursor,
                        numbers,
                        &reason,
                        revision,
                    )?;
                    (state, Some(row))
                }
                false => {
                    with.metrics.gaps_skipped.inc();
                    log::error!(
                        "{service}: {reason}: skipped: the differences between Postgres and \
                         ClickHouse remain (REPLICATION_GAP_STRATEGY is `skip`)"
                    );
                    // So that it is not owed.
                    with.write_repair(RepairStatus::Done, &cursor, numbers, &reason, revision)?;
                    (state, None)
                }
            }
        }
    };
    (with.may_write)()?;
    // Behind the debt, and before anything is confirmed.
    source.record(with.client, with.config.clickhouse.request_timeout)?;
    let mut row = StateRow {
        service: service.to_owned(),
        slot: slot_name.to_owned(),
        system_identifier: state.system_identifier.to_string(),
        timeline: state.timeline,
        began: state.began,
        confirmed: state.confirmed,
        upper_lsn: state.upper_lsn,
        version_shift: state.shift,
        // For people who look at the table.
        instance: crate::threads::instance(),
        revision: state::next_revision_base(recorded.map_or(0, |row| row.revision)),
    };
    // Before the state: one that was written is of a database that is known.
    with.record_database(&database, recorded_database)?;
    state::write(with.client, &mut row, with.deadline())?;
    Ok(Resumed { state: row, repair, slot_is_new: !is_usable, source: source.row })
}

/// What a session would find if it began now. It writes nothing.
pub enum Foreseen {
    /// It streams; the finding, and whether nothing was recorded before.
    GoesOn {
        reason: String,
        is_first: bool,
    },
    /// It streams, from elsewhere than where the last stream ended; whether the table is compared.
    StartsOver {
        reason: String,
        repair: bool,
    },
    Stops(Error),
}

/// `absent` are those of walhouse's own tables that are not there.
pub fn foresee(mut with: Parties<'_>, absent: &[&str]) -> Result<Foreseen> {
    let (service, slot_name) = (with.service(), with.config.slot.as_str());
    let ahead = with.look_ahead(absent)?;
    Ok(match ahead.course {
        Course::Begin | Course::Continue { .. } => Foreseen::GoesOn {
            reason: ahead.reason,
            is_first: ahead.recorded.is_none() && ahead.repair.is_none(),
        },
        Course::StartOver { repair } => Foreseen::StartsOver { reason: ahead.reason, repair },
        Course::Stop => Foreseen::Stops(stopped(service, slot_name, ahead.verdict, ahead.reason)),
    })
}

fn stopped(service: &str, slot: &str, verdict: LineageVerdict, reason: String) -> Error {
    let error = verdict.into_error(service, slot).unwrap_or_else(|| {
        Error::new(ErrorKind::Lineage, format!("resume service `{service}` from slot `{slot}`"))
            .hint("REPLICATION_GAP_STRATEGY is `halt`. Set it to `repair` and start again.")
    });
    // With the names, and the finding.
    error.because(reason)
}

/// The finding, and what follows from it.
struct Outlook {
    recorded: Option<StateRow>,
    database: Database,
    recorded_database: Option<DatabaseRow>,
    repair: Option<RepairRow>,
    before: Option<lineage::LineageState>,
    server: lineage::ServerTimeline,
    slot: Option<lineage::Slot>,
    verdict: LineageVerdict,
    course: Course,
    debt: Option<Debt>,
    reason: String,
    source: SourceLook,
}

impl<'a> Parties<'a> {
    /// Reads only.
    fn look_ahead(&mut self, absent: &[&str]) -> Result<Outlook> {
        let (service, slot_name) = (self.service(), self.config.slot.as_str());
        // Before the state, which is written first: `check` runs alongside a stream, and a slot
        // that moved between the two reads would seem to be ahead of its state.
        let slot = self.look_at_slot()?;
        let (mut recorded, mut repair, mut recorded_database) = (None, None, None);
        if !absent.contains(&state::TABLE.name) {
            recorded = state::TABLE.read(self.client, service, slot_name, self.deadline())?;
        }
        if !absent.contains(&repairs::TABLE.name) {
            repair = repairs::TABLE.read(self.client, service, slot_name, self.deadline())?;
        }
        if !absent.contains(&databases::TABLE.name) {
            recorded_database =
                databases::TABLE.read(self.client, service, slot_name, self.deadline())?;
        }
        let recorded_source = match absent.contains(&sources::TABLE.name) {
            false => source_look::recorded(self.client, self.config)?,
            true => None,
        };
        let database = server::database(self.sql, step())?;
        let (server, history) = self.identify()?;
        let mut before = recorded.as_ref().map(in_numbers).transpose()?;
        if let (Some(row), Some(state)) = (&recorded, &mut before)
            && !absent.contains(&backfills::TABLE.name)
        {
            // Commands may have written alongside the stream.
            let upper = backfills::upper(self.client, row, self.deadline())?;
            state.upper_lsn = state.upper_lsn.max(upper);
        }
        let mut verdict = lineage::judge(before.as_ref(), slot.as_ref(), &server, &history);
        if let Some(state) = &before
            && lineage::depends_on_landed(&verdict, state, &server)
        {
            verdict = lineage::judge_landed(verdict, state, &server, self.highest_version()?);
        }
        if before.is_some() {
            // The snapshot of the source has it as well: one of the two may be lost.
            let of_source = || recorded_source.as_ref()?.catalog.as_ref().map(|of| of.database);
            let of = recorded_database.as_ref().map(|row| row.oid).or_else(of_source);
            verdict = lineage::judge_database(verdict, of, database.oid);
        }
        if let Some(given) = &self.given_up {
            verdict = lineage::judge_undecodable(verdict, before.as_ref(), given.at);
        }
        let is_older =
            matches!(verdict, LineageVerdict::TakeOver { .. }) && self.slot_is_older()?;
        if is_older {
            verdict = LineageVerdict::Gap { confirmed: None, why: Gap::OlderThanPublication };
        }
        // No session will stream from it again, whatever else is wrong.
        let is_dead = is_older || self.given_up.is_some();
        let slot =
            slot.map(|slot| lineage::Slot { invalidated: slot.invalidated || is_dead, ..slot });
        log::debug!("{service}: {verdict}");
        let named = match &recorded {
            Some(row) if !absent.contains(&adoptions::TABLE.name) => {
                adoptions::read(self.client, row, self.deadline())?
            }
            _ => None,
        };
        // Named was a database, too, and this may be another one.
        let named = named.filter(|named| named.database.is_none_or(|oid| oid == database.oid));
        let strategy = self.config.gap_strategy;
        let mut course = recovery::course(&verdict, strategy, &server, named);
        let mut reason = match (&verdict, &recorded_database) {
            (LineageVerdict::ForeignDatabase { .. }, Some(row)) => format!(
                "foreign database: expected `{}` (oid {}), got `{}` (oid {}) of the same cluster",
                row.name, row.oid, database.name, database.oid
            ),
            (LineageVerdict::Gap { why: Gap::Undecodable { .. }, .. }, _) => {
                let error = self.given_up.as_ref().map_or("", |given| given.error.as_str());
                format!("{verdict}: {error}")
            }
            _ => verdict.to_string(),
        };
        // Without a name it would have been stopped.
        if let LineageVerdict::ForeignCluster { .. }
        | LineageVerdict::ForeignDatabase { .. }
        | LineageVerdict::Diverged { why: Fork::Older, .. } = verdict
            && course != Course::Stop
        {
            reason = format!("{ADOPTED}: {reason}");
        }
        let of = (&*server.system_identifier.to_string(), before.is_some());
        let config = (self.config, self.mapping);
        let source = source_look::look(recorded_source, self.sql, config, of, step())?;
        if source.judgement.may_hide_rows() {
            let of_hidden = recovery::course_of_hidden(course, strategy);
            if of_hidden != course {
                reason = source.judgement.to_string();
            }
            course = of_hidden;
        }
        let debt = due(repair.as_ref(), before.as_ref(), course, &source.judgement.hidden);
        if let (Some(owed), Some(debt)) = (&repair, debt) {
            let in_debt = recovery::course_in_debt(course, strategy, debt);
            if in_debt != course {
                let of_debt = match (debt, owed.status) {
                    (Debt::InitialBackfill, _) => owed.reason.clone(),
                    (_, RepairStatus::Running) if is_only_owed(owed) => owed.reason.clone(),
                    (_, RepairStatus::Running) => {
                        format!("a repair was not finished: {}", owed.reason)
                    }
                    (_, RepairStatus::Done) => {
                        "the state that goes with the last repair is gone".to_owned()
                    }
                };
                reason = match (course, debt) {
                    (Course::StartOver { .. }, Debt::Repair) => {
                        format!("{reason}; not skipped, since a repair is pending: {of_debt}")
                    }
                    _ => of_debt,
                };
            }
            course = in_debt;
        }
        Ok(Outlook {
            recorded,
            database,
            recorded_database,
            repair,
            before,
            server,
            slot,
            verdict,
            course,
            debt,
            reason,
            source,
        })
    }

    /// Than its publication, and where changes lie between the two: before 18 the server ends with
    /// an error there, from then on it passes them over with a warning.
    fn slot_is_older(&mut self) -> Result<bool> {
        let (slot, publication) = (&self.config.slot, &self.config.publication);
        let source = self.mapping.source();
        let table = TableName::new(&*source.schema, &*source.table);
        let may_be = publication::may_be_younger(self.sql, publication, &table, slot, step())?;
        if !may_be || WARNS_ONLY_SINCE <= self.sql.about().version_num {
            return Ok(may_be);
        }
        slot::lacks_publication(self.sql, slot, publication, Instant::now() + PEEK_TIMEOUT)
    }

    /// If it differs from the record.
    fn record_database(&mut self, found: &Database, recorded: Option<DatabaseRow>) -> Result<()> {
        let is_known = |row: &DatabaseRow| (row.oid, &row.name) == (found.oid, &found.name);
        if recorded.as_ref().is_some_and(is_known) {
            return Ok(());
        }
        let mut row = DatabaseRow {
            service: self.service().to_owned(),
            slot: self.config.slot.clone(),
            oid: found.oid,
            name: found.name.clone(),
            revision: recorded.map_or(0, |row| row.revision),
        };
        databases::write(self.client, &mut row, self.deadline())
    }

    fn service(&self) -> &'a str {
        self.config.name.as_str()
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.config.clickhouse.request_timeout
    }

    /// The server and its past.
    fn identify(&mut self) -> Result<(lineage::ServerTimeline, Vec<lineage::Switch>)> {
        let identity = self.connection.identify_system(step())?;
        let system_identifier = identity.system_id.parse().map_err(|_| {
            let doing = format!("identify the server of service `{}`", self.service());
            Error::new(ErrorKind::Protocol, doing).because("its system identifier is not a number")
        })?;
        let timeline = identity.timeline;
        let history = self.connection.timeline_history(timeline, step()).or_else(|error| {
            // Somebody has removed the file. Unknown history does not prove descent.
            match error.kind() {
                ErrorKind::Setup => log::warn!("{}: {error}", self.service()),
                _ => return Err(error),
            }
            Ok(Vec::new())
        })?;
        let switch = |line: crate::postgres::connection::TimelineSwitch| lineage::Switch {
            timeline: line.timeline,
            switch_lsn: line.switch,
        };
        let history: Vec<_> = history.into_iter().map(switch).collect();
        let began = lineage::began(&history, timeline);
        let wal_end = identity.xlogpos;
        Ok((lineage::ServerTimeline { system_identifier, timeline, began, wal_end }, history))
    }

    /// A first start.
    fn begin(&mut self, server: &lineage::ServerTimeline) -> Result<lineage::LineageState> {
        let slot = self.create_slot()?;
        self.first_state(server, &slot)
    }

    /// ClickHouse may hold rows from a time that no state covers.
    fn first_state(
        &mut self,
        server: &lineage::ServerTimeline,
        slot: &lineage::Slot,
    ) -> Result<lineage::LineageState> {
        let highest = self.highest_version()?;
        let state = recovery::first_state(highest, server, slot).ok_or_else(|| self.no_room())?;
        if 0 < state.shift {
            log::warn!(
                "{}: the target tables have versions up to {highest}, above the WAL of this \
                 server: {} is added to the versions of its rows, so that they win",
                self.service(),
                state.shift
            );
        }
        Ok(state)
    }

    fn go_on(
        &mut self,
        verdict: &LineageVerdict,
        record: Option<lineage::LineageState>,
        before: Option<lineage::LineageState>,
        slot: Option<&lineage::Slot>,
        server: &lineage::ServerTimeline,
    ) -> Result<lineage::LineageState> {
        let service = self.service();
        match (verdict, record, before) {
            (LineageVerdict::TakeOver { .. }, Some(_), _) => {
                let slot = slot.ok_or_else(|| bug("take over a slot that is not there"))?;
                log::info!(
                    "{service}: slot `{}` was there without a recorded state: taken over at {}",
                    self.config.slot,
                    slot.confirmed_flush
                );
                self.first_state(server, slot)
            }
            (_, Some(record), before) => {
                if before.is_some_and(|before| before.timeline != record.timeline) {
                    log::warn!(
                        "{service}: now on timeline {}, which has every row that ClickHouse has",
                        record.timeline
                    );
                }
                Ok(record)
            }
            (_, None, before) => before.ok_or_else(|| bug("go on without a state")),
        }
    }

    /// The existing slot if it can be streamed from, else a new one. Before Postgres 18 one that is
    /// older than its publication cannot, and later it streams nothing from that time.
    fn usable_slot(
        &mut self,
        slot: Option<lineage::Slot>,
        is_blind: bool,
    ) -> Result<lineage::Slot> {
        match slot {
            Some(slot) if !slot.invalidated && !is_blind => return Ok(slot),
            Some(_) => {
                slot::drop(self.sql, &self.config.slot, step())?;
                log::warn!("{}: slot `{}` dropped", self.service(), self.config.slot);
            }
            None => {}
        }
        self.create_slot()
    }

    fn create_slot(&mut self) -> Result<lineage::Slot> {
        let deadline = Instant::now() + CREATE_SLOT_TIMEOUT;
        let (name, failover) = (&self.config.slot, self.config.failover);
        let confirmed = slot::create(self.sql, name, failover, deadline)?;
        log::info!("{}: slot `{}` created at {confirmed}", self.service(), self.config.slot);
        self.look_at_slot()?.ok_or_else(|| {
            Error::new(ErrorKind::SlotBusy, format!("inspect slot `{}`", self.config.slot))
                .because("it was created, and is gone again")
        })
    }

    fn start_over(
        &mut self,
        reason: &str,
        before: Option<&lineage::LineageState>,
        slot: &lineage::Slot,
        server: &lineage::ServerTimeline,
    ) -> Result<lineage::LineageState> {
        let highest = self.highest_version()?;
        let state =
            recovery::start_over(before, highest, server, slot).ok_or_else(|| self.no_room())?;
        log::warn!(
            "{}: {reason}; streaming from {} on timeline {}, versions shifted by {}",
            self.service(),
            state.confirmed,
            state.timeline,
            state.shift
        );
        Ok(state)
    }

    /// A first start, for tables that are empty, or whose rows no state covers.
    fn begin_filling(
        &mut self,
        reason: &str,
        slot: &lineage::Slot,
        server: &lineage::ServerTimeline,
    ) -> Result<lineage::LineageState> {
        let highest = self.highest_version()?;
        let state = recovery::begin_filling(highest, server, slot).ok_or_else(|| self.no_room())?;
        log::info!("{}: {reason}; streaming from {}", self.service(), state.confirmed);
        Ok(state)
    }

    fn write_repair(
        &mut self,
        status: RepairStatus,
        cursor: &RepairCursor,
        numbers: Numbers,
        reason: &str,
        revision: u64,
    ) -> Result<RepairRow> {
        let of = (self.service(), self.config.slot.as_str());
        let mut row = repair_row(of, status, numbers, reason, revision);
        row.position = cursor.to_string();
        repairs::write(self.client, &mut row, self.deadline())?;
        Ok(row)
    }

    /// Tables without a row are copied into, others compared. It is recorded before the state is,
    /// and so before any row can come: whatever is there later is the copy's own or the stream's.
    fn cursor_of_filling(&mut self) -> Result<RepairCursor> {
        for target in self.mapping.targets() {
            let deadline = self.deadline();
            if !is_empty(self.client, &target.table, deadline)? {
                return Ok(RepairCursor::start());
            }
        }
        Ok(RepairCursor::Copy(None))
    }

    fn highest_version(&mut self) -> Result<u64> {
        let mut highest = 0;
        for (target, shape) in self.mapping.targets().iter().zip(self.shapes) {
            let (timeout, go_on) = (self.config.clickhouse.request_timeout, self.may_write);
            highest = highest.max(highest_version(self.client, target, shape, timeout, go_on)?);
        }
        Ok(highest)
    }

    fn no_room(&self) -> Error {
        let doing = format!("find versions for the rows of service `{}`", self.service());
        Error::new(ErrorKind::Lineage, doing)
            .because("the target tables have versions so high that nothing could outrank them")
            .hint(
                "Another writer numbered them differently (for example by trigger.dev's origin \
                 generations). Empty the tables, or let the slot's service write to tables of its \
                 own.",
            )
    }

    fn look_at_slot(&mut self) -> Result<Option<lineage::Slot>> {
        let (config, service) = (self.config, self.service());
        let Some(found) = slot::inspect(self.sql, &config.slot, step())? else { return Ok(None) };
        let verdict = slot::verdict(self.sql, &found);
        let reason = slot::usable(&config.slot, verdict)?;
        if let Some(reason) = &reason {
            log::error!("{service}: slot `{}` is invalidated: {reason}", config.slot);
        }
        let confirmed_flush = found.confirmed_flush_lsn.unwrap_or(Lsn(0));
        Ok(Some(lineage::Slot {
            confirmed_flush,
            restart_lsn: found.restart_lsn.unwrap_or(confirmed_flush),
            invalidated: reason.is_some(),
        }))
    }
}

fn bug(doing: &str) -> Error {
    Error::new(ErrorKind::Bug, doing)
}
