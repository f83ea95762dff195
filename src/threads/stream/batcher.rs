//! `batcher/<service>`: cuts the stream into batches and tracks what is durable.
//!
//! It decodes only what decides about order: transactions, relations, keepalives. Rows stay raw
//! bytes until a flusher takes them, so that this one thread keeps up with Postgres.
//!
//! Batcher and flushers form a cycle of channels, in which no thread may block on a send: a batch
//! is cut only when a flusher is free to take it, and while too much is held the batcher receives
//! nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, never, select};

use super::batch::{Ask, Batch, ChangeAt, TablePlan};
use crate::delivery::alongside::{Alongside, StopLevel};
use crate::delivery::member::Member;
use crate::delivery::session_state::SessionState;
use crate::error::{Error, ErrorKind, Result};
use crate::machines::batches::{BatchLimits, Batches};
use crate::machines::progress::{BatchId, Progress};
use crate::machines::removals::{self, Removals, WalPlace};
use crate::metrics::ServiceMetrics;
use crate::postgres::frames::Frames;
use crate::services::plan::{RelationPlan, Types};
use crate::services::source::Source;
use crate::services::weight::ChangeWeight;
use crate::wal::copy_both::FromServer;
use crate::wal::pgoutput::{self, Keys, Message};
use crate::wal::{Lsn, Oid, PgTime, Relation};

/// How often it is noticed that the session is given up, while nothing else happens.
const NOTICE_EVERY: std::time::Duration = std::time::Duration::from_millis(50);
/// The same where there is nothing to give up.
const NOTICE_EVERY_IDLE: std::time::Duration = std::time::Duration::from_millis(250);
/// For the removals of some 170,000 keys such as those of runs; beyond that it asks ClickHouse.
const REMOVALS: removals::RemovalLimits =
    removals::RemovalLimits { generations: 8, generation_bytes: 2 * 1024 * 1024 };

pub struct Batcher<'a> {
    pub service: &'a str,
    pub tables: Vec<StreamedTable<'a>>,
    /// Up to here the WAL was written when the catalog had the tables as they should be.
    pub tables_checked_at: Lsn,
    pub limits: BatchLimits,
    pub flushers: usize,
    pub resume: Lsn,
    pub shared: &'a SessionState,
    pub metrics: &'a ServiceMetrics,
}

pub struct StreamedTable<'a> {
    pub source: &'a Source,
    /// The underlying types of its columns.
    pub types: Types,
    /// In the catalog, to distinguish a renamed table from another one.
    pub oid: Oid,
    pub weight: ChangeWeight,
}

impl<'a> StreamedTable<'a> {
    pub fn of(member: &'a Member) -> StreamedTable<'a> {
        StreamedTable {
            source: member.source(),
            types: member.found.types(),
            oid: Oid(member.found.oid),
            weight: ChangeWeight::new(&*member.mapping, size_of::<ChangeAt>()),
        }
    }
}

/// The ends of the channels that this thread holds.
pub struct Channels {
    /// Closed by the reader when the stream has ended.
    pub frames: Receiver<Frames>,
    pub batches: Sender<Batch>,
    pub flushed: Receiver<BatchId>,
}

/// How to handle a relation's changes.
enum Known {
    Ours(u32),
    /// With its name, until it was logged. Each partition is described, too, and sends nothing.
    Other(Option<String>),
}

struct State<'a> {
    with: Batcher<'a>,
    batches: Batches,
    progress: Progress,
    open: Open,
    removals: Removals,
    relations: HashMap<Oid, Known>,
    plans: Vec<Arc<TablePlan>>,
    /// Of each of `plans` its place in the open batch.
    open_plans: Vec<Option<u32>>,
    tables_by_oid: HashMap<Oid, usize>,
    tables_by_name: HashMap<(&'a str, &'a str), usize>,
    /// A key with its table in front: the same key of another table is another one.
    removed_key: Vec<u8>,
    /// Of the open transaction.
    xid: u32,
    commit_lsn: Lsn,
    commit_time: PgTime,
    /// The open transaction has changed rows of ours. Before Postgres 15 the stream has every
    /// transaction of the database; the counted bytes must bound what is kept for each.
    has_rows: bool,
    in_flight: Vec<InFlight>,
    next_batch: BatchId,
}

/// A batch that a flusher has.
struct InFlight {
    id: BatchId,
    bytes: usize,
    /// Commit time of its first row.
    oldest: Option<PgTime>,
}

/// The batch that is being gathered.
#[derive(Default)]
struct Open {
    /// Commit time of its first row.
    oldest: Option<PgTime>,
    frames: Vec<Arc<Frames>>,
    changes: Vec<ChangeAt>,
    asks: Vec<Ask>,
    plans: Vec<Arc<TablePlan>>,
    commit_times: Vec<PgTime>,
    /// The memory of its changes, in addition to their bytes.
    weight: usize,
    /// Memory held, once they have.
    bytes: usize,
}

/// Runs until the reader has hung up and everything it sent is durable, or the session is given up.
pub fn run(with: Batcher<'_>, channels: Channels) -> Result<()> {
    let Channels { frames, batches, flushed } = channels;
    let tables = with.tables.iter().enumerate();
    let mut state = State {
        tables_by_oid: tables.clone().map(|(at, table)| (table.oid, at)).collect(),
        tables_by_name: tables
            .map(|(at, table)| ((&*table.source.schema, &*table.source.table), at))
            .collect(),
        removed_key: Vec::new(),
        open_plans: Vec::new(),
        batches: Batches::new(with.limits),
        progress: Progress::resume(with.resume),
        open: Open::default(),
        removals: Removals::resume(with.resume, REMOVALS),
        relations: HashMap::new(),
        plans: Vec::new(),
        xid: 0,
        commit_lsn: Lsn(0),
        commit_time: PgTime(0),
        has_rows: false,
        in_flight: Vec::new(),
        next_batch: BatchId(0),
        with,
    };
    let (never, mut hung_up) = (never(), false);
    loop {
        if state.with.shared.stop_level() == StopLevel::Abandoned {
            return Ok(());
        }
        let now = Instant::now();
        if hung_up {
            state.batches.drain();
        }
        while state.batches.ready(now, state.flushers_free()) {
            let batch = state.cut(now);
            // A free flusher means room in the channel; without flushers the session is over.
            if batches.send(batch).is_err() {
                return Ok(());
            }
        }
        state.publish();
        if hung_up && state.progress.unflushed_rows() == 0 {
            return Ok(());
        }
        let full = hung_up || state.batches.is_full();
        let receive_from = if full { &never } else { &frames };
        let is_idle = state.progress.is_idle();
        let soon = now + if is_idle { NOTICE_EVERY_IDLE } else { NOTICE_EVERY };
        let wake_at = state.batches.deadline(state.flushers_free()).map_or(soon, |at| at.min(soon));
        select! {
            recv(receive_from) -> block => match block {
                Ok(block) => state.on_frames(Instant::now(), block)?,
                Err(_) => hung_up = true,
            },
            recv(flushed) -> id => match id {
                Ok(id) => state.on_flushed(id)?,
                // Flushers end before us only by failing.
                Err(_) => return Ok(()),
            },
            default(wake_at.saturating_duration_since(now)) => {}
        }
    }
}

impl State<'_> {
    fn flushers_free(&self) -> usize {
        self.with.flushers.saturating_sub(self.in_flight.len())
    }

    fn on_frames(&mut self, now: Instant, frames: Frames) -> Result<()> {
        let bytes = frames.bytes_held();
        self.with.metrics.received_bytes.inc_by(frames.bytes_len() as u64);
        let frames = Arc::new(frames);
        let (before, weight_before) = (self.open.changes.len(), self.open.weight);
        let frame = u32::try_from(self.open.frames.len()).map_err(|e| bug(e.to_string()))?;
        for data in frames.messages() {
            match FromServer::parse(data).map_err(|e| self.malformed(e))? {
                FromServer::PrimaryKeepalive { wal_end, .. } => self.progress.on_keepalive(wal_end),
                FromServer::XLogData { wal_start, payload, .. } => {
                    let start = frames.place_of(payload).ok_or_else(|| bug("payload elsewhere"))?;
                    let read = self.on_message(wal_start, payload, frame, start);
                    read.map_err(|error| error.at(self.place_of(wal_start)))?;
                }
            }
        }
        let rows = self.open.changes.len() - before;
        if 0 < rows {
            self.open.frames.push(frames);
            let bytes = bytes + (self.open.weight - weight_before);
            self.open.bytes += bytes;
            self.batches.push(now, rows, bytes);
        }
        Ok(())
    }

    fn on_message(&mut self, lsn: Lsn, payload: &[u8], frame: u32, start: u32) -> Result<()> {
        // Changes are by far the most; their rows are looked at by a flusher.
        if let [b'I' | b'U' | b'D', a, b, c, d, ..] = *payload {
            let oid = Oid(u32::from_be_bytes([a, b, c, d]));
            match self.relations.get_mut(&oid) {
                Some(Known::Ours(plan)) => {
                    self.progress.on_row()?;
                    let length = u32::try_from(payload.len()).map_err(|e| bug(e.to_string()))?;
                    let plan = *plan;
                    let lsn = self.place(lsn, payload, plan)?;
                    let table = self.plans[plan as usize].table;
                    let plan = self.open_plan(plan)?;
                    let change = ChangeAt { lsn, xid: self.xid, frame, start, length, plan };
                    self.open.changes.push(change);
                    self.open.weight += self.with.tables[table].weight.of(payload);
                    self.open.oldest.get_or_insert(self.commit_time);
                    self.has_rows = true;
                }
                Some(Known::Other(name)) => {
                    self.with.metrics.changes_ignored.inc();
                    if let Some(name) = name.take() {
                        log::warn!(
                            "{}: the publication also sends table {name}, which is ignored",
                            self.with.service
                        );
                    }
                }
                None => {
                    return Err(Error::new(ErrorKind::Protocol, self.doing())
                        .because(format!("change of relation {} before its description", oid.0)));
                }
            }
            return Ok(());
        }
        match Message::parse(payload).map_err(|e| self.malformed(e))? {
            Message::Begin { commit_lsn, commit_time, xid } => {
                (self.xid, self.commit_lsn, self.has_rows) = (xid, commit_lsn, false);
                self.commit_time = commit_time;
                self.progress.on_begin(commit_lsn)?;
            }
            Message::Commit { end_lsn, commit_time, .. } => {
                self.progress.on_commit(end_lsn)?;
                self.with.metrics.transactions.inc();
                if self.has_rows && !self.open.changes.is_empty() {
                    self.open.commit_times.push(commit_time);
                }
            }
            Message::Relation(relation) => self.on_relation(relation)?,
            Message::Truncate { relations, .. } => self.on_truncate(&relations),
            Message::Ignored => {}
            Message::Insert { .. } | Message::Update { .. } | Message::Delete { .. } => {
                return Err(bug("a change has a relation"));
            }
        }
        Ok(())
    }

    /// Where the change stands among those of its key.
    #[inline]
    fn place(&mut self, lsn: Lsn, payload: &[u8], plan: u32) -> Result<Lsn> {
        let concerns_keys = match *payload {
            [b'I', ..] => !self.removals.is_above_all(lsn),
            // Without an old tuple the key is unchanged.
            [b'U', _, _, _, _, kind, ..] => kind != b'N',
            _ => true,
        };
        if concerns_keys { self.place_by_key(lsn, payload, plan) } else { Ok(lsn) }
    }

    fn place_by_key(&mut self, lsn: Lsn, payload: &[u8], plan: u32) -> Result<Lsn> {
        let TablePlan { table, plan } = &*self.plans[plan as usize];
        let keys = pgoutput::keys(payload, |tuple, old| plan.key_at(tuple, old));
        let Keys { gone, come } = keys.map_err(|e| self.malformed(e))?;
        let table = table.to_be_bytes();
        let of_table = |key: &[u8], buffer: &mut Vec<u8>| {
            buffer.clear();
            buffer.extend_from_slice(&table);
            buffer.extend_from_slice(key);
        };
        let place = come.map_or(WalPlace::AsWritten, |key| {
            of_table(&key, &mut self.removed_key);
            self.removals.place(lsn, &self.removed_key)
        });
        let lsn = match place {
            WalPlace::AsWritten => lsn,
            WalPlace::Above(above) => {
                self.with.metrics.reused_keys.inc();
                above
            }
            WalPlace::Ask { below } => {
                self.open.asks.push(Ask { change: self.open.changes.len(), below });
                lsn
            }
        };
        if let Some(key) = gone {
            of_table(&key, &mut self.removed_key);
            self.removals.on_removed(lsn, &self.removed_key, self.next_batch);
        }
        Ok(lsn)
    }

    /// The place of a plan in the open batch.
    #[inline]
    fn open_plan(&mut self, plan: u32) -> Result<u32> {
        let place = &mut self.open_plans[plan as usize];
        if let Some(place) = *place {
            return Ok(place);
        }
        let next = u32::try_from(self.open.plans.len()).map_err(|e| bug(e.to_string()))?;
        self.open.plans.push(Arc::clone(&self.plans[plan as usize]));
        *place = Some(next);
        Ok(next)
    }

    fn on_relation(&mut self, relation: Relation) -> Result<()> {
        // A DDL change that was undone before this session began must not block it for ever.
        let is_past = self.commit_lsn < self.with.tables_checked_at;
        let name = (&*relation.namespace, &*relation.name);
        let of_name = self.tables_by_name.get(&name).copied();
        let of_oid = self.tables_by_oid.get(&relation.oid).copied();
        if of_name.is_some() && of_oid != of_name && !is_past {
            return Err(Error::new(ErrorKind::Protocol, self.doing())
                .because(format!("another table is now called \"{}\".\"{}\"", name.0, name.1))
                .hint(
                    "The next session streams the table that has the name then, and compares it \
                     with ClickHouse.",
                ));
        }
        // One that had the name before is not what the table is made equal to.
        let known = if let Some(at) = of_oid {
            let StreamedTable { source, types, .. } = &self.with.tables[at];
            if of_name != of_oid && !is_past {
                return Err(Error::new(ErrorKind::Protocol, self.doing())
                    .because(format!(
                        "table \"{}\".\"{}\" is now called \"{}\".\"{}\"",
                        source.schema, source.table, name.0, name.1
                    ))
                    .hint("Give the table its name back; walhouse maps it by name."));
            }
            let plan = match is_past {
                true => RelationPlan::of_the_past(source, &relation, types),
                false => RelationPlan::new(source, &relation, types),
            };
            let plan = plan.map_err(|e| {
                Error::new(ErrorKind::Protocol, self.doing()).because(e).hint(
                    "The table changed in a way that this version does not map. Undo the change, \
                     or install a version that knows it; nothing was skipped.",
                )
            })?;
            Known::Ours(self.add_plan(relation.oid, TablePlan { table: at, plan })?)
        } else {
            let name = format!("\"{}\".\"{}\"", relation.namespace, relation.name);
            let is_told = matches!(self.relations.get(&relation.oid), Some(Known::Other(None)));
            Known::Other((!is_told).then_some(name))
        };
        self.relations.insert(relation.oid, known);
        Ok(())
    }

    /// The one that its relation had before, if it is the same.
    fn add_plan(&mut self, oid: Oid, plan: TablePlan) -> Result<u32> {
        if let Some(Known::Ours(before)) = self.relations.get(&oid)
            && *self.plans[*before as usize] == plan
        {
            return Ok(*before);
        }
        self.plans.push(Arc::new(plan));
        self.open_plans.push(None);
        u32::try_from(self.plans.len() - 1).map_err(|e| bug(e.to_string()))
    }

    fn on_truncate(&mut self, relations: &[Oid]) {
        for oid in relations {
            let Some(Known::Ours(plan)) = self.relations.get(oid) else { continue };
            let source = self.with.tables[self.plans[*plan as usize].table].source;
            self.with.metrics.truncates.inc();
            self.with.metrics.truncates_ignored.inc();
            log::error!(
                "{}: TRUNCATE of \"{}\".\"{}\" was not applied: its rows stay in ClickHouse",
                self.with.service,
                source.schema,
                source.table
            );
        }
    }

    fn cut(&mut self, now: Instant) -> Batch {
        self.batches.cut(now);
        let cut = self.progress.on_batch_cut();
        let open = std::mem::take(&mut self.open);
        let Open { oldest, frames, changes, asks, plans, commit_times, bytes, .. } = open;
        self.open_plans.fill(None);
        self.in_flight.push(InFlight { id: cut.id, bytes, oldest });
        self.next_batch = BatchId(cut.id.0 + 1);
        self.with.shared.marks().set_upper(cut.upper_lsn);
        Batch { cut, frames, changes, asks, plans, commit_times }
    }

    fn on_flushed(&mut self, id: BatchId) -> Result<()> {
        self.progress.on_flushed(id)?;
        self.with.shared.marks().set_rows_flushed();
        self.in_flight.retain(|in_flight| in_flight.id != id);
        // Ids are handed out in order, so all below the oldest in flight are durable.
        let oldest = self.in_flight.iter().map(|in_flight| in_flight.id).min();
        let durable_below = oldest.unwrap_or(self.next_batch);
        self.with.shared.set_durable_below(durable_below);
        self.removals.on_durable_below(durable_below);
        self.removals.on_restart_lsn(self.with.shared.marks().restart_lsn());
        Ok(())
    }

    /// Says how far things are, for the confirmer and the metrics.
    fn publish(&self) {
        let (received, flushed) = (self.progress.received(), self.progress.flushed());
        self.with.shared.marks().set_progress(received, flushed);
        self.with.metrics.received.set(received);
        self.with.metrics.flushed.set(flushed);
        let held: usize = self.in_flight.iter().map(|in_flight| in_flight.bytes).sum();
        self.with.metrics.unflushed_bytes.set((held + self.open.bytes) as u64);
        let in_flight = self.in_flight.iter().filter_map(|in_flight| in_flight.oldest);
        self.with.metrics.set_oldest_unflushed(in_flight.chain(self.open.oldest).min());
    }

    /// A message that changes nothing, such as the description of a table, has no LSN.
    fn place_of(&self, lsn: Lsn) -> Lsn {
        if lsn == Lsn(0) { self.commit_lsn } else { lsn }
    }

    fn doing(&self) -> String {
        format!("read the stream of service `{}`", self.with.service)
    }

    fn malformed(&self, cause: crate::wal::DecodeError) -> Error {
        Error::new(ErrorKind::Protocol, self.doing()).because(cause)
    }
}

fn bug(cause: impl Into<String>) -> Error {
    Error::new(ErrorKind::Bug, "batch the stream").because(cause.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::delivery::lease_watch::LeaseWatch;
    use crate::metrics::Metrics;
    use crate::services::mapping::Mapping;
    use crate::services::runs::Runs;
    use crate::services::sessions::Sessions;
    use crate::wal::testing::{self, V};

    const TABLE: Oid = Oid(16_400);
    const OTHER: Oid = Oid(16_500);
    static RUNS: Runs = Runs { payloads: true, fingerprints: true };
    const SOON: Duration = Duration::from_secs(10);

    fn relation() -> Vec<u8> {
        relation_of(Sessions.source(), TABLE)
    }

    fn relation_of(source: &Source, oid: Oid) -> Vec<u8> {
        let columns: Vec<_> =
            source.columns.iter().map(|column| (&*column.name, column.kind.a_type())).collect();
        testing::relation(&testing::relation_of(oid.0, &source.table, &columns))
    }

    fn streamed(mapping: &'static dyn Mapping, oid: Oid) -> StreamedTable<'static> {
        let weight = ChangeWeight::new(mapping, size_of::<ChangeAt>());
        StreamedTable { source: mapping.source(), types: Types::default(), oid, weight }
    }

    fn insert() -> Vec<u8> {
        testing::insert(TABLE, &[V::Null])
    }

    fn frames(messages: &[Vec<u8>]) -> Frames {
        let messages: Vec<_> = messages.iter().map(|message| (0, message.clone())).collect();
        frames_at(&messages)
    }

    /// Each at its place in the WAL.
    fn frames_at(messages: &[(u64, Vec<u8>)]) -> Frames {
        let mut bytes = Vec::new();
        for (lsn, message) in messages {
            bytes.push(b'd');
            bytes.extend(u32::try_from(4 + 25 + message.len()).unwrap().to_be_bytes());
            bytes.push(b'w');
            bytes.extend(lsn.to_be_bytes());
            bytes.extend([0; 16]);
            bytes.extend(message);
        }
        Frames::from_bytes(bytes)
    }

    fn transaction(end_lsn: u64, rows: usize) -> Vec<Vec<u8>> {
        let mut messages = vec![testing::begin(end_lsn - 1, 0, 7)];
        messages.extend((0..rows).map(|_| insert()));
        messages.push(testing::commit(end_lsn - 1, end_lsn, 0));
        messages
    }

    /// Runs the batcher with one flusher, which `play` is.
    fn with_batcher(
        limits: BatchLimits,
        play: impl FnOnce(Sender<Frames>, Receiver<Batch>, Sender<BatchId>),
    ) -> Result<()> {
        let lease = LeaseWatch::default();
        lease.set(Instant::now() + Duration::from_secs(3600), Duration::ZERO);
        let shared = SessionState::new(Arc::new(lease));
        let metrics = Metrics::new(&["sessions"]);
        let with = Batcher {
            service: "sessions",
            tables: vec![streamed(&Sessions, TABLE), streamed(&RUNS, OTHER)],
            tables_checked_at: Lsn(0),
            limits,
            flushers: 1,
            resume: Lsn(0),
            shared: &shared,
            metrics: &metrics.service("sessions"),
        };
        let (to_batcher, blocks) = bounded(4);
        let (to_flusher, batches) = bounded(1);
        let (told, flushed) = bounded(1);
        std::thread::scope(|scope| {
            let channels = Channels { frames: blocks, batches: to_flusher, flushed };
            let batcher = scope.spawn(move || run(with, channels));
            play(to_batcher, batches, told);
            batcher.join().expect("no panic")
        })
    }

    /// Two tables, and the same key in both.
    #[test]
    fn a_removal_is_one_of_its_table() {
        let limits =
            BatchLimits { rows_max: 3, bytes_max: 1 << 20, age_max: Duration::from_secs(60) };
        let mut of_runs = vec![V::Null; RUNS.source().columns.len()];
        of_runs[RUNS.source().key[0]] = V::Text("x");
        let mut of_session = vec![V::Null; Sessions.source().columns.len()];
        of_session[Sessions.source().key[0]] = V::Text("x");
        with_batcher(limits, |to_batcher, batches, _told| {
            to_batcher
                .send(frames_at(&[
                    (0, relation()),
                    (0, relation_of(RUNS.source(), OTHER)),
                    (0, testing::begin(59, 0, 7)),
                    (32, testing::delete(TABLE, b'K', &of_session)),
                    (0, testing::commit(59, 60, 0)),
                    (0, testing::begin(69, 0, 8)),
                    (16, testing::insert(OTHER, &of_runs)),
                    (24, testing::insert(TABLE, &of_session)),
                    (0, testing::commit(69, 70, 0)),
                ]))
                .unwrap();
            let batch = batches.recv_timeout(SOON).expect("cut for its rows");
            let lsns: Vec<u64> = batch.changes.iter().map(|change| change.lsn.0).collect();
            assert_eq!(lsns, [32, 16, 36], "only the row of the same table is raised");
            let tables: Vec<usize> =
                batch.changes.iter().map(|at| batch.plans[at.plan as usize].table).collect();
            assert_eq!(tables, [0, 1, 0]);
        })
        .expect("it ends with the stream");
    }

    #[test]
    fn transactions_without_rows_take_no_memory_while_a_flush_lasts() {
        let limits =
            BatchLimits { rows_max: 1, bytes_max: 1 << 20, age_max: Duration::from_millis(1) };
        with_batcher(limits, |to_batcher, batches, told| {
            to_batcher.send(frames(&[relation()])).unwrap();
            to_batcher.send(frames(&transaction(10, 1))).unwrap();
            let first = batches.recv_timeout(SOON).expect("cut for the free flusher");
            let mut messages = transaction(20, 2);
            (3..1_000).for_each(|n| messages.extend(transaction(n * 10, 0)));
            to_batcher.send(frames(&messages)).unwrap();
            // Taken once the batcher has room again, so after the block before it.
            for _ in 0..5 {
                to_batcher.send_timeout(frames(&[]), SOON).unwrap();
            }
            told.send(first.cut.id).unwrap();
            let second = batches.recv_timeout(SOON).expect("cut for the free flusher");
            assert_eq!((second.changes.len(), second.commit_times.len()), (2, 1));
            told.send(second.cut.id).unwrap();
        })
        .unwrap();
    }
}
