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
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::batch::Batch;
use super::look_up::LookUps;
use super::rereading::{RereadContext, Rereading};
use crate::clickhouse::Client;
use crate::delivery::context::DeliveryContext;
use crate::delivery::landing::Landing;
use crate::delivery::member::Member;
use crate::delivery::session_state::SessionState;
use crate::error::{Error, ErrorKind, Result};
use crate::machines::progress::BatchId;
use crate::rows::Block;
use crate::services::assemble::{Answers, Assembled, Missing, Updates, assemble_into, wanted};
use crate::services::fold::{Folded, FoldedChange, fold};
use crate::wal::{Lsn, PgTime};

/// How long an idle flusher keeps memory for its next batch.
const BLOCKS_KEPT: Duration = Duration::from_secs(5);
pub struct Flusher<'a> {
    pub delivery: DeliveryContext<'a>,
    pub shared: &'a SessionState,
    pub member: &'a Member,
    pub version_shift: u64,
    pub rereads: RereadContext<'a>,
}

/// Runs until the batcher hangs up or the session is given up.
pub fn run(with: &Flusher<'_>, batches: &Receiver<Batch>, flushed: &Sender<BatchId>) -> Result<()> {
    let mut open = OpenFlusher {
        client: Client::connect(with.delivery.clickhouse)?,
        rereading: Rereading::new(with.rereads),
        landings: with.delivery.landings(with.member.targets()),
        look_ups: LookUps::default(),
        blocks: None,
        with,
    };
    loop {
        let batch = match batches.recv_timeout(BLOCKS_KEPT) {
            Ok(batch) => batch,
            Err(RecvTimeoutError::Timeout) => {
                open.blocks = None;
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
    landings: Vec<Landing<'a>>,
    look_ups: LookUps,
    /// Those of the batch before, emptied: their memory is the next one's, so that a busy stream
    /// does not have it given and taken away by the kernel all the time.
    blocks: Option<Vec<Block>>,
}

impl OpenFlusher<'_> {
    fn flush(&mut self, batch: Batch) -> Result<()> {
        let (with, started_at) = (self.with, Instant::now());
        let Batch { cut, frames, changes, asks, plans, commit_times, .. } = batch;
        let doing = || format!("map the changes of service `{}`", with.delivery.service);
        // The LSN of the change decoded last.
        let place = Cell::new(Lsn(0));
        let folded = {
            let mut asks = asks.iter().peekable();
            let changes = changes.iter().enumerate().map(|(index, at)| {
                place.set(at.lsn);
                let bytes = frames[at.frame as usize].bytes();
                let start = at.start as usize;
                FoldedChange {
                    message: &bytes[start..start + at.length as usize],
                    lsn: at.lsn,
                    xid: at.xid,
                    plan: &plans[at.plan as usize],
                    ask_below: asks.next_if(|ask| ask.change == index).map(|ask| ask.below),
                }
            });
            fold(with.member.source(), changes)
                .map_err(|e| Error::new(ErrorKind::Protocol, doing()).because(e).at(place.get()))?
        };
        let updates = with.shared.updates();
        let wanted = wanted(&*with.member.mapping, &folded, updates);
        self.count(&folded, &wanted);
        let mut found = Answers::default();
        if !wanted.lookups.is_empty() {
            // An INSERT that the DELETE ends may be in an earlier batch still on its way.
            with.shared.wait_for_batches_before(cut.id)?;
            let client = &mut self.client;
            self.look_ups.find(
                &with.delivery,
                client,
                with.member,
                &folded,
                &wanted,
                &mut found,
            )?;
            if updates == Updates::AsFirst {
                let unplaced = wanted.lookups.iter().filter(|at| !found.keys.contains_key(*at));
                with.shared.unplaced().note(unplaced.map(|at| folded.entries[*at].id));
            }
        }
        let mut begin = 0;
        let (upper, last) = loop {
            // Values read again may be many times the size of the stream, so they are inserted in
            // parts.
            let (values, end) = self.rereading.reread(&folded, &wanted, begin)?;
            let upper = cut.upper_lsn.max(values.as_of);
            found.values = values.by_entry;
            let (mapping, shift) = (&*with.member.mapping, with.version_shift);
            let blocks = self.blocks.take().unwrap_or_else(|| with.member.blocks());
            let part = begin..end;
            let mut part = assemble_into(blocks, mapping, &folded, &wanted, &found, shift, part)
                .map_err(|e| {
                    let place = e.lsn;
                    Error::new(ErrorKind::Protocol, doing()).because(e).at(place)
                })?;
            let upper = upper.max(self.outrank_tombstones(&folded, &mut part)?);
            if end == folded.entries.len() {
                break (upper, part);
            }
            found.values.clear();
            self.land(upper, part)?;
            begin = end;
        };
        drop(folded);
        // The bytes they came in are not needed any more; a block may be as large.
        drop((found, changes, frames));
        self.land(upper, last)?;
        with.delivery.metrics.batches_flushed.inc();
        with.delivery.metrics.batch_rows.observe(cut.rows as f64);
        with.delivery.metrics.flush_duration.observe_duration(started_at.elapsed());
        let now = PgTime::of(SystemTime::now());
        for committed_at in commit_times {
            with.delivery.metrics.replication_lag.observe_duration(committed_at.age(now));
        }
        Ok(())
    }

    /// Makes the rows durable, and keeps refused ones. `upper` bounds the commits that they come
    /// from.
    fn land(&mut self, upper: Lsn, mut part: Assembled) -> Result<()> {
        let with = self.with;
        with.delivery.metrics.rows_without_owner.inc_by(part.notes.rows_without_owner);
        with.delivery.metrics.toast_rows_gone.inc_by(part.rows_gone);
        with.delivery.metrics.deletes_unresolved.inc_by(part.tombstones_of_nothing);
        for kept in &part.notes.kept {
            with.delivery.metrics.adjusted_values(&kept.column).inc();
        }
        with.delivery.alongside.admit(upper)?;
        let mut refused = with.delivery.kept_rows(part.notes.kept);
        for (landing, block) in self.landings.iter_mut().zip(&part.blocks) {
            landing.land(&with.delivery, &mut self.client, block, &mut refused)?;
        }
        with.delivery.keep(&mut self.client, &refused)?;
        part.blocks.iter_mut().for_each(Block::clear);
        self.blocks = Some(part.blocks);
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;

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
        values[source.key.id] = V::Text("a");
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
            plans: vec![Arc::new(plan)],
            commit_times: vec![],
        }
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
        let member = Member { mapping: Arc::new(Sessions), shapes, found: table };
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
            member: &member,
            version_shift: 0,
            rereads: RereadContext {
                delivery,
                member: &member,
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
