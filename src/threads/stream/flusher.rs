//! `flusher-<n>/<service>`: makes a batch durable in ClickHouse, however long that takes.
//!
//! ```text
//!   fold -> ask Postgres or ClickHouse for what the batch lacks -> assemble -> insert -> report
//! ```
//!
//! All tables of a batch are durable, and every refused row kept, before the batch counts. A kill
//! at any line here is harmless: batches not reported as durable are streamed again, under the same
//! versions.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::batch::{Batch, TablePlan};
use super::look_up::LookUps;
use super::rereading::{RereadContext, Rereading};
use crate::clickhouse::Client;
use crate::delivery::context::DeliveryContext;
use crate::delivery::landing::Landing;
use crate::delivery::member::Member;
use crate::delivery::session_state::SessionState;
use crate::delivery::table_set::TableSet;
use crate::error::{Error, ErrorKind, Result};
use crate::machines::progress::BatchId;
use crate::rows::Block;
use crate::services::assemble::{Answers, Assembled, Missing, Updates, assemble_into, wanted};
use crate::services::fold::{Folded, FoldedChange, fold};
use crate::wal::{Lsn, PgTime};

/// How long an idle flusher keeps memory for its next batch.
const BLOCKS_KEPT: Duration = Duration::from_secs(5);
/// Of so many tables at most: each block keeps the memory of its largest batch.
const BLOCKS_KEPT_MAX: usize = 16;

pub struct Flusher<'a> {
    pub delivery: DeliveryContext<'a>,
    pub shared: &'a SessionState,
    pub tables: &'a TableSet,
    pub version_shift: u64,
    pub rereads: RereadContext<'a>,
}

/// Runs until the batcher hangs up or the session is given up.
pub fn run(with: &Flusher<'_>, batches: &Receiver<Batch>, flushed: &Sender<BatchId>) -> Result<()> {
    let mut open = OpenFlusher {
        client: Client::connect(with.delivery.clickhouse)?,
        rereading: Rereading::new(with.rereads),
        tables: HashMap::new(),
        with,
    };
    loop {
        let batch = match batches.recv_timeout(BLOCKS_KEPT) {
            Ok(batch) => batch,
            Err(RecvTimeoutError::Timeout) => {
                open.tables.values_mut().for_each(|table| table.blocks = None);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        let id = batch.cut.id;
        match open.flush(batch) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Stopped => return Ok(()),
            Err(error) => {
                with.delivery.metrics.batches_failed.inc();
                return Err(error);
            }
        }
        if flushed.send(id).is_err() {
            return Ok(());
        }
    }
}

pub(super) struct OpenFlusher<'a> {
    pub(super) with: &'a Flusher<'a>,
    pub(super) client: Client,
    pub(super) rereading: Rereading<'a>,
    /// Those that had changes.
    tables: HashMap<usize, OpenTable<'a>>,
}

/// What is kept for a table from batch to batch.
struct OpenTable<'a> {
    landings: Vec<Landing<'a>>,
    look_ups: LookUps,
    /// Those of the batch before, emptied: their memory is the next one's, so that a busy stream
    /// does not have it given and taken away by the kernel all the time.
    blocks: Option<Vec<Block>>,
}

fn open_table<'t, 'a>(
    tables: &'t mut HashMap<usize, OpenTable<'a>>,
    with: &'a Flusher<'a>,
    table: usize,
) -> &'t mut OpenTable<'a> {
    tables.entry(table).or_insert_with(|| OpenTable {
        landings: with.delivery.landings(with.tables.get(table).targets()),
        look_ups: LookUps::default(),
        blocks: None,
    })
}

/// The changes of one table.
struct TableChanges {
    table: usize,
    /// As indexes into [`Batch::changes`]; `None`: all.
    which: Option<Vec<u32>>,
}

/// In the order in which the tables come first.
fn by_table(batch: &Batch) -> Vec<TableChanges> {
    let mut tables: Vec<usize> = Vec::new();
    for plan in &batch.plans {
        if !tables.contains(&plan.table) {
            tables.push(plan.table);
        }
    }
    if let [table] = *tables.as_slice() {
        return vec![TableChanges { table, which: None }];
    }
    let place = |plan: &Arc<TablePlan>| tables.iter().position(|table| *table == plan.table);
    let places: Vec<usize> = batch.plans.iter().map(|plan| place(plan).unwrap_or(0)).collect();
    let mut which = vec![Vec::new(); tables.len()];
    for (at, change) in (0_u32..).zip(&batch.changes) {
        which[places[change.plan as usize]].push(at);
    }
    let changes = tables.into_iter().zip(which);
    changes.map(|(table, which)| TableChanges { table, which: Some(which) }).collect()
}

impl OpenFlusher<'_> {
    fn flush(&mut self, mut batch: Batch) -> Result<()> {
        let (with, started_at) = (self.with, Instant::now());
        let mut tables = by_table(&batch).into_iter().peekable();
        let (rows, commit_times) = (batch.cut.rows, std::mem::take(&mut batch.commit_times));
        let mut batch = Some(batch);
        while let Some(changes) = tables.next() {
            let Some(whole) = &batch else { break };
            let (upper, last) = self.map(whole, &changes)?;
            if tables.peek().is_none() {
                // The bytes they came in are not needed any more; a block may be as large.
                batch = None;
            }
            self.land(changes.table, upper, last)?;
        }
        with.delivery.metrics.batches_flushed.inc();
        with.delivery.metrics.batch_rows.observe(rows as f64);
        with.delivery.metrics.flush_duration.observe_duration(started_at.elapsed());
        let now = PgTime::of(SystemTime::now());
        for committed_at in commit_times {
            with.delivery.metrics.replication_lag.observe_duration(committed_at.age(now));
        }
        Ok(())
    }

    /// The rows of a table, but for those that it lands already. With the commits that they may
    /// come from.
    fn map(&mut self, batch: &Batch, changes: &TableChanges) -> Result<(Lsn, Assembled)> {
        let (with, table) = (self.with, changes.table);
        let member = with.tables.get(table);
        let Batch { cut, .. } = batch;
        let doing = || format!("map the changes of service `{}`", with.delivery.service);
        let folded = fold_table(&with.delivery, member, batch, changes.which.as_deref())?;
        let updates = with.shared.updates();
        let wanted = wanted(&*member.mapping, &folded, updates);
        self.count(&folded, &wanted);
        let mut found = Answers::default();
        if !wanted.lookups.is_empty() {
            // An INSERT that the DELETE ends may be in an earlier batch still on its way.
            with.shared.wait_for_batches_before(cut.id)?;
            let open = open_table(&mut self.tables, with, table);
            let client = &mut self.client;
            open.look_ups.find(&with.delivery, client, member, &folded, &wanted, &mut found)?;
            if updates == Updates::AsFirst {
                // Also of a row that has a place: the copy may still land it at an earlier one.
                let deleted = wanted.lookups.iter();
                let keys = deleted.map(|at| folded.key_texts(member.source(), *at));
                with.shared.deleted_keys().note(keys.map(|key| (table, key)));
            }
        }
        let mut begin = 0;
        loop {
            // Values read again may be many times the size of the stream, so they are inserted in
            // parts.
            let (values, end) = self.rereading.reread(member, &folded, &wanted, begin)?;
            let upper = cut.upper_lsn.max(values.as_of);
            found.values = values.by_entry;
            let (mapping, shift) = (&*member.mapping, with.version_shift);
            let blocks = open_table(&mut self.tables, with, table)
                .blocks
                .take()
                .unwrap_or_else(|| member.blocks());
            let part = begin..end;
            let mut part = assemble_into(blocks, mapping, &folded, &wanted, &found, shift, part)
                .map_err(|e| {
                    let place = e.lsn;
                    Error::new(ErrorKind::Protocol, doing()).because(e).at(place)
                })?;
            let upper = upper.max(self.outrank_tombstones(member, &folded, &mut part)?);
            if end == folded.entries.len() {
                return Ok((upper, part));
            }
            found.values.clear();
            self.land(table, upper, part)?;
            begin = end;
        }
    }

    /// Makes the rows durable, and keeps refused ones. `upper` bounds the commits that they come
    /// from.
    fn land(&mut self, table: usize, upper: Lsn, mut part: Assembled) -> Result<()> {
        let with = self.with;
        with.delivery.metrics.rows_without_owner.inc_by(part.notes.rows_without_owner);
        with.delivery.metrics.toast_rows_gone.inc_by(part.rows_gone);
        with.delivery.metrics.deletes_unresolved.inc_by(part.tombstones_of_nothing);
        for kept in &part.notes.kept {
            if let Some(column) = &kept.column {
                with.delivery.metrics.adjusted_values(column).inc();
            }
        }
        with.delivery.alongside.admit(upper)?;
        let mut refused = with.delivery.kept_rows(part.notes.kept);
        let others = self.tables.values().filter(|table| table.blocks.is_some()).count();
        let open = open_table(&mut self.tables, with, table);
        for (landing, block) in open.landings.iter_mut().zip(&part.blocks) {
            landing.land(&with.delivery, &mut self.client, block, &mut refused)?;
        }
        with.delivery.keep(&mut self.client, &refused)?;
        part.blocks.iter_mut().for_each(Block::clear);
        open.blocks = (others < BLOCKS_KEPT_MAX).then_some(part.blocks);
        Ok(())
    }

    fn count(&self, folded: &Folded<'_>, wanted: &Missing) {
        let metrics = self.with.delivery.metrics;
        metrics.inserts.inc_by(folded.inserts);
        metrics.updates.inc_by(folded.updates);
        metrics.deletes.inc_by(folded.deletes);
        if !wanted.is_empty() {
            log::debug!(
                "{}: {} rows read again, {} tombstones looked up",
                self.with.delivery.service,
                wanted.rereads.len(),
                wanted.lookups.len()
            );
        }
    }
}

fn fold_table<'b>(
    delivery: &DeliveryContext<'_>,
    member: &Member,
    batch: &'b Batch,
    which: Option<&[u32]>,
) -> Result<Folded<'b>> {
    let Batch { frames, changes, asks, plans, .. } = batch;
    // The LSN of the change decoded last.
    let place = Cell::new(Lsn(0));
    let folded = |index: usize| {
        let at = &changes[index];
        place.set(at.lsn);
        let bytes = frames[at.frame as usize].bytes();
        let start = at.start as usize;
        let ask = asks.binary_search_by_key(&index, |ask| ask.change);
        FoldedChange {
            message: &bytes[start..start + at.length as usize],
            lsn: at.lsn,
            xid: at.xid,
            plan: &plans[at.plan as usize].plan,
            ask_below: ask.ok().map(|ask| asks[ask].below),
        }
    };
    let outcome = match which {
        None => fold(member.source(), (0..changes.len()).map(folded)),
        Some(which) => fold(member.source(), which.iter().map(|at| folded(*at as usize))),
    };
    outcome.map_err(|e| {
        let doing = format!("map the changes of service `{}`", delivery.service);
        Error::new(ErrorKind::Protocol, doing).because(e).at(place.get())
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::clickhouse;
    use crate::delivery::learned::Learned;
    use crate::delivery::lease_watch::LeaseWatch;
    use crate::delivery::outage::Delays;
    use crate::delivery::session_state::SessionState;
    use crate::machines::progress::Progress;
    use crate::metrics::Metrics;
    use crate::postgres::frames::Frames;
    use crate::postgres::params::PostgresParams;
    use crate::postgres::primary::{KnownServer, Primary};
    use crate::postgres::source_table::{self, TableName};
    use crate::rows::Shape;
    use crate::services::mapping::Mapping;
    use crate::services::plan::RelationPlan;
    use crate::services::plan::Types;
    use crate::services::sessions::Sessions;
    use crate::threads::stream::batch::ChangeAt;
    use crate::wal::Oid;
    use crate::wal::testing::{self, V};

    /// An UPDATE of one row that leaves every value but the key in TOAST.
    fn batch() -> Batch {
        let source = Sessions.source();
        let columns: Vec<_> =
            source.columns.iter().map(|column| (&*column.name, column.kind.a_type())).collect();
        let relation = testing::relation_of(1, &source.table, &columns);
        let plan = RelationPlan::new(source, &relation, &Types::default()).unwrap();
        let mut values = vec![V::Unchanged; columns.len()];
        values[source.key[0]] = V::Text("a");
        let message = testing::update(Oid(1), None, &values);
        let change = ChangeAt {
            lsn: Lsn(1),
            xid: 3,
            frame: 0,
            start: 0,
            length: u32::try_from(message.len()).unwrap(),
            plan: 0,
        };
        Batch {
            cut: Progress::resume(Lsn(0)).on_batch_cut(),
            frames: vec![Arc::new(Frames::from_bytes(message))],
            changes: vec![change],
            asks: vec![],
            plans: vec![Arc::new(TablePlan { table: 0, plan })],
            commit_times: vec![],
        }
    }

    #[test]
    fn changes_are_grouped_by_their_table() {
        let one = batch();
        let groups = by_table(&one);
        assert!(matches!(groups.as_slice(), [TableChanges { table: 0, which: None }]));
        let mut several = batch();
        let plan = || {
            let columns = [("id", testing::TEXT)];
            let source = Sessions.source();
            let relation = testing::relation_of(1, &source.table, &columns);
            RelationPlan::of_the_past(source, &relation, &Types::default()).unwrap()
        };
        for table in [2, 0] {
            several.plans.push(Arc::new(TablePlan { table, plan: plan() }));
        }
        let change = several.changes[0];
        several.changes.extend([1, 2, 1].map(|plan| ChangeAt { plan, ..change }));
        let groups: Vec<_> =
            by_table(&several).into_iter().map(|group| (group.table, group.which)).collect();
        assert_eq!(groups, [(0, Some(vec![0, 2])), (2, Some(vec![1, 3]))]);
    }

    #[test]
    fn a_postgres_that_lets_nobody_in_ends_the_session() {
        // The port of a listener that is gone refuses.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("postgres://u@127.0.0.1:{port}/d?sslmode=disable");
        let (postgres, _) = PostgresParams::parse(&url).unwrap();
        let (clickhouse, _) =
            clickhouse::ClickHouseParams::parse(&format!("http://127.0.0.1:{port}"), "trigger_dev")
                .unwrap();
        let lease = LeaseWatch::default();
        lease.set(Instant::now() + Duration::from_secs(3600), Duration::ZERO);
        let shared = SessionState::new(Arc::new(lease));
        let metrics = Metrics::new(&["sessions"]);
        let shapes = vec![Shape::of(vec![true; 19])];
        let table = source_table::testing::table(TableName::new("public", "Session"));
        let tables =
            TableSet::new(vec![Member { mapping: Arc::new(Sessions), shapes, found: table }]);
        let (learned, of_service) = (Learned::default(), metrics.service("sessions"));
        let delivery = DeliveryContext {
            service: "sessions",
            clickhouse: &clickhouse,
            delays: Delays {
                min: Duration::from_millis(1),
                max: Duration::from_millis(1),
                outage_after: 1,
            },
            alongside: &shared,
            learned: &learned,
            metrics: &of_service,
        };
        let with = Flusher {
            delivery,
            shared: &shared,
            tables: &tables,
            version_shift: 0,
            rereads: RereadContext {
                delivery,
                primary: &Primary::new(postgres, KnownServer { system_identifier: 1, timeline: 1 }),
                application_name: "test",
                bytes_max: 1,
            },
        };
        let (to_flusher, batches) = bounded(1);
        let (told, flushed) = bounded(1);
        to_flusher.send(batch()).unwrap();
        // Its channel stays open: only the error ends it.
        let error = run(&with, &batches, &told).expect_err("nothing can be read again");
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        assert!(flushed.is_empty(), "the batch must be streamed again");
        assert!(!metrics.encode().contains("insert_outage{service=\"sessions\"} 1"));
    }
}
