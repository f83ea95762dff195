//! What a row costs inside of walhouse, step by step, from the frames of Postgres to the body of an
//! INSERT: `scripts/bench encode`. Each step is over a batch of rows of one service.

#[allow(dead_code, reason = "`bench` uses the rest of it")]
mod documents;
mod messages;
#[allow(dead_code, reason = "`bench` uses the rest of it")]
mod service;

use std::sync::Arc;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use serde_json::value::RawValue;

use service::Service::{self, Runs as R, Sessions as S};

use walhouse::clickhouse::frame;
use walhouse::documents::convert::{append_document, append_jsonb};
use walhouse::postgres::Frames;
use walhouse::rows::order::sorted_by;
use walhouse::rows::{Block, Shape, native};
use walhouse::services::assemble::{Answers, Assembled, Missing, Updates, assemble, wanted};
use walhouse::services::fingerprint::error_fingerprint;
use walhouse::services::fold::{Folded, FoldedChange, fold};
use walhouse::services::mapping::Mapping;
use walhouse::services::plan::RelationPlan;
use walhouse::services::runs::Runs;
use walhouse::services::sessions::Sessions;
use walhouse::wal::Lsn;
use walhouse::wal::copy_both::FromServer;
use walhouse::wal::pgoutput::Message;
use walhouse::wal::value::oid;

/// As much as fits into the caches of a core.
const ROWS: usize = 2000;
/// What a backlog makes of a batch.
const ROWS_MANY: usize = 40_000;

fn main() {
    divan::main();
}

/// A batch, as the threads hold it.
struct Batch {
    mapping: &'static dyn Mapping,
    plan: Arc<RelationPlan>,
    frames: Frames,
    shapes: Vec<Shape>,
}

impl Batch {
    fn of(service: Service) -> Batch {
        Batch::with(service, ROWS)
    }

    fn with(service: Service, rows: usize) -> Batch {
        let mapping: &dyn Mapping = match service {
            R => &Runs { payloads: true, fingerprints: true },
            S => &Sessions,
        };
        let relation = messages::relation(service);
        let enums = [(messages::ENUM, oid::TEXT)].into_iter().collect();
        let plan = RelationPlan::new(mapping.source(), &relation, &enums);
        let plan = plan.expect("the relation is as it should be");
        let pool: Vec<_> = documents::pool().collect();
        let inserts: Vec<Vec<u8>> = (0..rows)
            .map(|g| messages::insert(service, &relation, g, &pool[g % pool.len()]))
            .collect();
        let lsns = (1..).map(|n| Lsn(n * 4096));
        let frames = messages::frames(lsns.zip(inserts.iter().map(Vec::as_slice)));
        let shape = |columns: usize| Shape::of(vec![true; columns]);
        let shapes = mapping.targets().iter().map(|t| shape(t.columns.len())).collect();
        Batch { mapping, plan: Arc::new(plan), frames, shapes }
    }

    fn changes(&self) -> impl Iterator<Item = FoldedChange<'_>> {
        self.frames.messages().map(|data| match FromServer::parse(data) {
            Ok(FromServer::XLogData { wal_start, payload, .. }) => FoldedChange {
                message: payload,
                lsn: wal_start,
                xid: 1,
                plan: &self.plan,
                ask_below: None,
            },
            other => unreachable!("{other:?}"),
        })
    }

    fn folded(&self) -> Folded<'_> {
        fold(self.mapping.source(), self.changes()).expect("the messages are well-formed")
    }

    fn assembled(&self, folded: &Folded<'_>, wanted: &Missing) -> Assembled {
        let all = 0..folded.entries.len();
        let none = Answers::default();
        assemble(self.mapping, folded, wanted, &none, &self.shapes, 0, all)
            .expect("values are fine")
    }

    fn blocks(&self) -> Vec<Block> {
        let folded = self.folded();
        self.assembled(&folded, &wanted(self.mapping, &folded, Updates::AsUpdates)).blocks
    }

    fn bodies(&self) -> Vec<Vec<u8>> {
        let blocks = self.blocks();
        let all = blocks.iter().zip(self.mapping.targets());
        all.map(|(block, target)| {
            let mut body = Vec::new();
            native::encode(block, &sorted_by(block, &target.order_by), &[], &mut body);
            body
        })
        .collect()
    }
}

/// Frames into messages, and messages into tuples whose columns are walked.
#[divan::bench(args = [S, R])]
fn a_decode(bencher: Bencher, service: Service) {
    let batch = Batch::of(service);
    let bytes = batch.frames.bytes_len();
    bencher.counter(ItemsCount::new(ROWS)).counter(BytesCount::new(bytes)).bench(|| {
        batch
            .changes()
            .map(|change| Message::parse(change.message).is_ok())
            .filter(|ok| *ok)
            .count()
    });
}

/// The same, and which row of each key is the latest.
#[divan::bench(args = [S, R])]
fn b_fold(bencher: Bencher, service: Service) {
    let batch = Batch::of(service);
    bencher.counter(ItemsCount::new(ROWS)).bench(|| batch.folded());
}

/// Values into the columns of all target tables, documents and fingerprints among them.
#[divan::bench(args = [S, R])]
fn c_columns(bencher: Bencher, service: Service) {
    let batch = Batch::of(service);
    let folded = batch.folded();
    let wanted = wanted(batch.mapping, &folded, Updates::AsUpdates);
    bencher.counter(ItemsCount::new(ROWS)).bench(|| batch.assembled(&folded, &wanted));
}

#[divan::bench(args = [S, R])]
fn d_order(bencher: Bencher, service: Service) {
    let batch = Batch::of(service);
    let blocks = batch.blocks();
    bencher.counter(ItemsCount::new(ROWS)).bench(|| {
        let all = blocks.iter().zip(batch.mapping.targets());
        all.map(|(block, target)| sorted_by(block, &target.order_by).len()).sum::<usize>()
    });
}

/// Columns into Native blocks; the buffer is kept from batch to batch, as a flusher does.
#[divan::bench(args = [S, R])]
fn e_native(bencher: Bencher, service: Service) {
    let batch = Batch::of(service);
    let blocks = batch.blocks();
    let sorted = blocks.iter().zip(batch.mapping.targets());
    let orders: Vec<_> = sorted.map(|(block, target)| sorted_by(block, &target.order_by)).collect();
    let mut body = Vec::new();
    bencher.counter(ItemsCount::new(ROWS)).bench_local(|| {
        for (block, order) in blocks.iter().zip(&orders) {
            body.clear();
            native::encode(block, order, &[], &mut body);
            black_box(&body);
        }
    });
}

/// With the checksums that ClickHouse wants.
#[divan::bench(args = [S, R])]
fn f_compress(bencher: Bencher, service: Service) {
    let bodies = Batch::of(service).bodies();
    let bytes: usize = bodies.iter().map(Vec::len).sum();
    bencher.counter(ItemsCount::new(ROWS)).counter(BytesCount::new(bytes)).bench(|| {
        for body in &bodies {
            for piece in body.chunks(1 << 20) {
                black_box(frame::lz4(piece));
            }
        }
    });
}

/// All of it.
#[divan::bench(args = [S, R], consts = [ROWS, ROWS_MANY], sample_count = 20)]
fn g_all<const N: usize>(bencher: Bencher, service: Service) {
    let batch = Batch::with(service, N);
    bencher.counter(ItemsCount::new(N)).bench(|| {
        for body in batch.bodies() {
            for piece in body.chunks(1 << 20) {
                black_box(frame::lz4(piece));
            }
        }
    });
}

/// An output of 2 kB, each of the pool: validated, and copied.
#[divan::bench]
fn json_document(bencher: Bencher) {
    let pool: Vec<_> = documents::pool().collect();
    let bytes: usize = pool.iter().map(|of| of.output.len()).sum();
    let mut out = Vec::new();
    let counted = bencher.counter(ItemsCount::new(pool.len())).counter(BytesCount::new(bytes));
    counted.bench_local(|| {
        out.clear();
        for of in &pool {
            let outcome =
                append_document(Some(of.output.as_bytes()), b"application/json", &mut out);
            divan::black_box_drop(outcome);
        }
    });
}

/// What serde_json takes to find the same documents well-formed.
#[divan::bench]
fn json_document_by_serde(bencher: Bencher) {
    let pool: Vec<_> = documents::pool().collect();
    let bytes: usize = pool.iter().map(|of| of.output.len()).sum();
    bencher.counter(ItemsCount::new(pool.len())).counter(BytesCount::new(bytes)).bench(|| {
        let is_json = |text: &str| serde_json::from_str::<&RawValue>(text).is_ok();
        pool.iter().filter(|of| is_json(&of.output)).count()
    });
}

#[divan::bench]
fn json_metadata(bencher: Bencher) {
    let pool: Vec<_> = documents::pool().collect();
    let mut out = Vec::new();
    bencher.counter(ItemsCount::new(pool.len())).bench_local(|| {
        out.clear();
        for of in &pool {
            divan::black_box_drop(append_jsonb(Some(of.metadata.as_bytes()), &mut out));
        }
    });
}

#[divan::bench]
fn fingerprint(bencher: Bencher) {
    let pool: Vec<_> = documents::pool().collect();
    bencher.counter(ItemsCount::new(pool.len())).bench(|| {
        for of in &pool {
            black_box(error_fingerprint(Some(of.error.as_bytes()), b"COMPLETED_WITH_ERRORS"));
        }
    });
}
