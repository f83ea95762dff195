//! Compares Postgres and ClickHouse while the stream goes on between them: `walhouse verify`, on
//! the thread of its command.
//!
//! ```text
//!   rows of the table  -> does ClickHouse have them, with these columns? --+
//!   keys of ClickHouse -> does Postgres have them?                         +-> suspects
//!   suspects -> looked at again behind the stream ([`look`]) -> findings -> mended ([`mend`])
//! ```
//!
//! The first comparison waits for nothing and proves nothing: changes still in the stream look
//! different, too. [`machines::verify`](crate::machines::verify) decides when a suspect really
//! differs.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

mod look;
mod mend;
mod passes;

use super::command::{CommandContext, CommandProgress};
use super::deletes;
use super::worker::Worker;
use crate::clickhouse::stored;
use crate::config::ServiceConfig;
use crate::delivery::member::Member;
use crate::error::{Error, Result};
use crate::machines::repair::Count;
use crate::machines::verify::{Difference, Suspicion, VerifyJudgement};
use crate::rows::Block;
use crate::rows::key::Key;
use crate::rows::target::Target;
use crate::wal::row_key::one_or_array;

/// Held at once; then they are looked at again.
const SUSPECTS_MAX: usize = 10_000;
/// Keys that only ClickHouse has, held until it is known how many there are; more stay as they are.
const EXTRAS_MAX: usize = 100_000;
/// Listed in full; the others are only counted.
const FINDINGS_MAX: usize = 1_000;

/// How much is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// About so many rows of each side, chosen at random.
    Sample(u64),
    Full,
}

#[derive(Debug, Clone, Copy)]
pub struct VerifyRequest {
    pub extent: Extent,
    pub repair: bool,
}

/// A key that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyFinding {
    pub table: Arc<str>,
    /// The columns of the sorting key.
    pub key: Vec<(Arc<str>, String)>,
    pub id: String,
    pub difference: Difference,
    /// The columns that differ.
    pub columns: Vec<Arc<str>>,
    pub is_mended: bool,
}

#[derive(Debug, Default)]
pub struct VerifyReport {
    pub rows_compared: u64,
    pub keys_compared: u64,
    pub counts: BTreeMap<Difference, u64>,
    pub mended: u64,
    /// Keys that changed too fast to be compared.
    pub unsettled: u64,
    /// Rows of Postgres that are left out, since ClickHouse drops rows of their age by itself.
    pub dropped: u64,
    /// Rows with a character that UTF-8 has no place for.
    pub unreadable: u64,
    /// The first of them.
    pub findings: Vec<VerifyFinding>,
    /// Why keys that only ClickHouse has were not marked as deleted, by table.
    pub questions: Vec<Error>,
    /// Why a repair of the service is under way, if one is.
    pub repair_under_way: Option<String>,
}

impl VerifyReport {
    pub fn differing(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Nothing differs, or nothing does any more.
    pub fn is_equal(&self) -> bool {
        self.differing() == self.mended
    }
}

/// A key that looked different once.
#[derive(Debug, Clone)]
struct Suspect {
    /// Index of the target table.
    target: usize,
    key: Key,
    suspicion: Suspicion,
}

/// A suspect that was found to differ.
#[derive(Debug, Clone)]
struct Found {
    suspect: Suspect,
    difference: Difference,
    columns: Vec<Arc<str>>,
    /// The version in ClickHouse; `None`: it has no row.
    version: Option<u64>,
    /// The columns of ClickHouse that decide about the partition.
    partition: Key,
}

struct Verifier<'v, 'c> {
    by: &'v CommandContext<'c>,
    request: VerifyRequest,
    report: VerifyReport,
    suspects: Vec<Suspect>,
    /// By target table: keys of ClickHouse, and those that Postgres does not have.
    counts: Vec<Count>,
    extras: Vec<Found>,
    begun_at: Instant,
    show: &'v dyn Fn(CommandProgress<'_>),
}

pub fn verify(
    config: &ServiceConfig,
    request: VerifyRequest,
    show: &dyn Fn(CommandProgress<'_>),
) -> Result<VerifyReport> {
    let by = CommandContext::open(config, "verify", request.repair)?;
    if request.repair {
        let last = by.recorded("verify")?;
        by.set_record(by.new_record("verify", last.as_ref(), "repair"))?;
    }
    let mut verifier = Verifier {
        by: &by,
        request,
        report: VerifyReport {
            repair_under_way: by.repair_under_way()?,
            ..VerifyReport::default()
        },
        suspects: Vec::new(),
        counts: vec![Count::default(); by.member.targets().len()],
        extras: Vec::new(),
        begun_at: Instant::now(),
        show,
    };
    by.with(|with| {
        let mut worker = Worker::new(with)?;
        verifier.read(&mut worker)?;
        verifier.list(&mut worker)?;
        verifier.settle(&mut worker)?;
        verifier.settle_extras(&mut worker)
    })?;
    by.record(|row| row.is_done = true)?;
    Ok(verifier.report)
}

impl<'v> Verifier<'v, '_> {
    fn targets(&self) -> &'v [Target] {
        self.by.member.targets()
    }

    /// Whether a table has versions; one without them keeps its rows.
    fn has_versions(&self, target: usize) -> bool {
        let present = &self.by.member.shapes[target].present;
        stored::has_versions(&self.targets()[target], |column| present[column])
    }

    fn suspect(&mut self, target: usize, key: Key) {
        self.suspects.push(Suspect { target, key, suspicion: Suspicion::default() });
    }

    /// Checks the gathered suspects once there are many.
    fn settle_if_many(&mut self, worker: &mut Worker<'_>) -> Result<()> {
        if self.suspects.len() < SUSPECTS_MAX { Ok(()) } else { self.settle(worker) }
    }

    /// Looks at the suspects until each is known to be equal or not.
    fn settle(&mut self, worker: &mut Worker<'_>) -> Result<()> {
        let suspects = std::mem::take(&mut self.suspects);
        let found = self.judge(worker, suspects)?;
        for Found { difference, suspect, .. } in &found {
            *self.report.counts.entry(*difference).or_default() += 1;
            if *difference == Difference::Extra {
                self.counts[suspect.target].gone += 1;
            }
        }
        if !self.request.repair {
            self.tell_of(found, |_| false);
            return Ok(());
        }
        // Whether they may be marked as deleted shows when all are known.
        let is_extra = |found: &Found| found.difference == Difference::Extra;
        let (mut extras, found): (Vec<_>, Vec<_>) = found.into_iter().partition(is_extra);
        let room = EXTRAS_MAX.saturating_sub(self.extras.len()).min(extras.len());
        let too_many = extras.split_off(room);
        self.extras.extend(extras);
        self.tell_of(too_many, |_| false);
        self.mend_and_tell(worker, found)
    }

    /// Marks as deleted what only ClickHouse has, unless it is much of the table.
    fn settle_extras(&mut self, worker: &mut Worker<'_>) -> Result<()> {
        let slot = &self.by.config.slot;
        for count in &mut self.counts {
            count.alive = count.alive.max(count.gone);
        }
        let extras = std::mem::take(&mut self.extras);
        if extras.is_empty() {
            return Ok(());
        }
        let asked = deletes::ask(worker.with, slot, &self.counts, false)?;
        let is_left = |found: &Found| asked[found.suspect.target].is_none();
        let (found, kept): (Vec<_>, Vec<_>) = extras.into_iter().partition(is_left);
        self.tell_of(kept, |_| false);
        self.report.questions.extend(asked.into_iter().flatten());
        self.mend_and_tell(worker, found)
    }

    fn mend_and_tell(&mut self, worker: &mut Worker<'_>, found: Vec<Found>) -> Result<()> {
        fn place(found: &Found) -> (usize, Key) {
            (found.suspect.target, found.suspect.key.clone())
        }
        let known: HashSet<_> = found.iter().map(place).collect();
        let left = self.mend(worker, &found)?;
        let unmended: HashSet<_> = left.iter().map(place).collect();
        self.tell_of(found, |found| !unmended.contains(&place(found)));
        let more: Vec<_> = left.into_iter().filter(|left| !known.contains(&place(left))).collect();
        for found in &more {
            *self.report.counts.entry(found.difference).or_default() += 1;
        }
        self.tell_of(more, |_| false);
        Ok(())
    }

    fn tell_of(&mut self, found: Vec<Found>, is_mended: impl Fn(&Found) -> bool) {
        for found in found {
            let is_mended = is_mended(&found);
            self.report.mended += u64::from(is_mended);
            if self.report.findings.len() < FINDINGS_MAX {
                self.report.findings.push(finding(&self.by.member, found, is_mended));
            }
        }
    }

    /// Those that differ.
    fn judge(&mut self, worker: &mut Worker<'_>, suspects: Vec<Suspect>) -> Result<Vec<Found>> {
        let (mut suspects, mut differing) = (suspects, Vec::new());
        while !suspects.is_empty() {
            let seen = self.look(worker, &suspects)?;
            let mut left = Vec::new();
            for (mut suspect, seen) in suspects.into_iter().zip(seen) {
                match suspect.suspicion.on_look(&seen.pair, seen.newest) {
                    VerifyJudgement::Equal => {}
                    VerifyJudgement::LookAgain => left.push(suspect),
                    VerifyJudgement::Unsettled => self.report.unsettled += 1,
                    VerifyJudgement::Differs(difference) => {
                        let version = seen.pair.stored.map(|stored| stored.version);
                        let (columns, partition) = (seen.columns, seen.partition);
                        differing.push(Found { suspect, difference, columns, version, partition });
                    }
                }
            }
            suspects = left;
        }
        Ok(differing)
    }
}

fn finding(member: &Member, found: Found, is_mended: bool) -> VerifyFinding {
    let target = &member.targets()[found.suspect.target];
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let key: Vec<_> = (target.key_texts(&found.suspect.key))
        .map(|(at, value)| (Arc::clone(&target.columns[at].name), text(&value)))
        .collect();
    let id = member.key_text(found.suspect.target, &found.suspect.key);
    VerifyFinding {
        table: Arc::clone(&target.table),
        id: text(&one_or_array(id.iter())),
        key,
        difference: found.difference,
        columns: found.columns,
        is_mended,
    }
}

/// A block whose rows have these keys, to ask ClickHouse for them.
fn block_of_keys<'k>(
    target: &Target,
    shape: &crate::rows::Shape,
    keys: impl Iterator<Item = &'k Key>,
) -> Block {
    let mut block = Block::new(&target.columns, shape);
    for key in keys {
        // It is asked for by its key.
        let partition = target.partition_by.iter().map(|&at| target.nothing(at)).collect();
        let live = crate::rows::key::LiveKey { key: key.clone(), partition, version: 0 };
        crate::rows::tombstone::append(target, &mut block, &live, 0);
    }
    block
}
