//! From messages to the bytes of an INSERT, the way of a batch through the program.

use std::collections::HashMap;
use std::ops::Range;

use walhouse::rows::as_json::row_as_json;
use walhouse::rows::order::sorted_by;
use walhouse::rows::target::Target;
use walhouse::rows::{Block, Shape, native};
use walhouse::services::assemble::{Answers, Assembled, Missing, Updates, assemble, wanted};
use walhouse::services::fold::{Folded, FoldedChange, fold};
use walhouse::services::mapping::{Mapping, ValueError};
use walhouse::services::plan::{RelationPlan, Types};
use walhouse::services::runs::Runs;
use walhouse::services::sessions::Sessions;
use walhouse::wal::copy_both::FromServer;
use walhouse::wal::pgoutput::Message;
use walhouse::wal::value::oid;
use walhouse::wal::{DecodeError, Lsn, Oid, Relation};

pub static RUNS: Runs = Runs { payloads: true, fingerprints: true };
pub static SESSIONS: Sessions = Sessions;

/// Of a user's own, the recorded tables have enums alone.
fn enums(relation: &Relation) -> Types {
    relation.columns.iter().map(|column| (column.type_oid, oid::TEXT)).collect()
}

pub fn mappings() -> [&'static dyn Mapping; 2] {
    [&RUNS, &SESSIONS]
}

/// The changes of one mapping's table, each with the plan of the relation it came under.
pub struct Changes<'a> {
    pub mapping: &'static dyn Mapping,
    plans: Vec<RelationPlan>,
    all: Vec<At<'a>>,
    /// The changes of each transaction that has some, as ranges of `all`.
    pub transactions: Vec<Range<usize>>,
}

struct At<'a> {
    message: &'a [u8],
    lsn: Lsn,
    xid: u32,
    plan: usize,
}

impl<'a> Changes<'a> {
    /// Leaves out what cannot be read, and the changes of a relation that is not described: what
    /// they were is for others to judge.
    pub fn of(
        mapping: &'static dyn Mapping,
        copy_data: impl IntoIterator<Item = &'a [u8]>,
    ) -> Changes<'a> {
        let source = mapping.source();
        let mut changes =
            Changes { mapping, plans: Vec::new(), all: Vec::new(), transactions: Vec::new() };
        let mut relations: HashMap<Oid, usize> = HashMap::new();
        let (mut current, mut begun) = (0, 0);
        for data in copy_data {
            let Ok(FromServer::XLogData { wal_start: lsn, payload: message, .. }) =
                FromServer::parse(data)
            else {
                continue;
            };
            match Message::parse(message) {
                Ok(Message::Begin { xid, .. }) => (current, begun) = (xid, changes.all.len()),
                Ok(Message::Commit { .. }) if begun < changes.all.len() => {
                    changes.transactions.push(begun..changes.all.len());
                }
                Ok(Message::Relation(relation)) => {
                    relations.remove(&relation.oid);
                    if (relation.namespace.as_str(), relation.name.as_str())
                        == (&source.schema, &source.table)
                        && let Ok(plan) = RelationPlan::new(source, &relation, &enums(&relation))
                    {
                        relations.insert(relation.oid, changes.plans.len());
                        changes.plans.push(plan);
                    }
                }
                Ok(
                    Message::Insert { relation, .. }
                    | Message::Update { relation, .. }
                    | Message::Delete { relation, .. },
                ) => {
                    if let Some(&plan) = relations.get(&relation) {
                        changes.all.push(At { message, lsn, xid: current, plan });
                    }
                }
                _ => {}
            }
        }
        changes
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn plans(&self) -> usize {
        self.plans.len()
    }

    pub fn fold(&self, range: Range<usize>) -> Result<Folded<'_>, DecodeError> {
        let changes = self.all[range].iter().map(|at| FoldedChange {
            message: at.message,
            lsn: at.lsn,
            xid: at.xid,
            plan: &self.plans[at.plan],
            ask_below: None,
        });
        fold(self.mapping.source(), changes)
    }

    /// Those that come to rows one by one; the others are left out.
    pub fn retain_readable(&mut self) {
        let shapes = shapes(self.mapping);
        let is_readable = |at| {
            let Ok(folded) = self.fold(at..at + 1) else { return false };
            let (wanted, found) = (Missing::default(), Answers::default());
            self.assemble_with(&folded, &wanted, &found, &shapes, 0).is_ok()
        };
        let readable: Vec<bool> = (0..self.len()).map(is_readable).collect();
        let mut readable = readable.into_iter();
        self.all.retain(|_| readable.next().expect("one for each"));
        self.transactions.clear();
    }

    pub fn wanted(&self, folded: &Folded<'_>) -> Missing {
        wanted(self.mapping, folded, Updates::AsUpdates)
    }

    /// The blocks of a batch for which nobody needs to be asked.
    #[track_caller]
    pub fn assemble(&self, range: Range<usize>) -> Assembled {
        let folded = self.fold(range).unwrap();
        let wanted = self.wanted(&folded);
        assert!(wanted.is_empty(), "{wanted:?}");
        let shapes = shapes(self.mapping);
        self.assemble_with(&folded, &wanted, &Answers::default(), &shapes, 0).unwrap()
    }

    pub fn assemble_with(
        &self,
        folded: &Folded<'_>,
        wanted: &Missing,
        found: &Answers,
        shapes: &[Shape],
        shift: u64,
    ) -> Result<Assembled, ValueError> {
        let all = 0..folded.entries.len();
        assemble(self.mapping, folded, wanted, found, shapes, shift, all)
    }
}

/// Tables that have every column.
pub fn shapes(mapping: &dyn Mapping) -> Vec<Shape> {
    let shape = |target: &Target| Shape::of(vec![true; target.columns.len()]);
    mapping.targets().iter().map(shape).collect()
}

/// The rows of all blocks as they would be sent, in the order of each table.
pub fn encode(mapping: &dyn Mapping, blocks: &[Block], blanked: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for (target, block) in mapping.targets().iter().zip(blocks) {
        let order = sorted_by(block, &target.order_by);
        let blanked = if blanked { &target.documents[..] } else { &[] };
        native::encode(block, &order, blanked, &mut out);
    }
    out
}

/// The rows of one block, in the order they were put.
pub fn rows(block: &Block) -> Vec<serde_json::Map<String, serde_json::Value>> {
    (0..block.rows())
        .map(|row| serde_json::from_slice(&row_as_json(block, row)).expect("it is an object"))
        .collect()
}
