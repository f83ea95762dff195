//! Made-up rows, to see whether the target tables accept them.

use super::mapping::{Mapping, Stamp, ValueError};
use super::notes::Notes;
use super::row::Row;
use super::source::SourceKind;
use crate::rows::column::{List, put_nothing};
use crate::rows::target::Target;
use crate::rows::{Block, ColumnType, Scalar, Shape};
use crate::wal::Datum;

/// One row for each target table, with a value in every column.
pub fn blocks(mapping: &dyn Mapping, shapes: &[Shape]) -> Result<Vec<Block>, ValueError> {
    let source = mapping.source();
    // Their values are of the targets' own types.
    if source.columns.iter().any(|column| matches!(column.kind, SourceKind::Own(_))) {
        let targets = mapping.targets().iter().zip(shapes);
        return Ok(targets.map(|(target, shape)| made_up(target, shape, false)).collect());
    }
    let mut row = Row::of(source);
    for (value, column) in row.values.iter_mut().zip(&source.columns) {
        *value = Datum::Text(match &column.kind {
            SourceKind::Text => b"walhouse check",
            SourceKind::Int => b"1",
            SourceKind::Float => b"0.5",
            SourceKind::Bool => b"t",
            SourceKind::Timestamp => b"2026-01-02 03:04:05.678",
            SourceKind::Json => br#"{"walhouse": {"check": [1, "two"]}}"#,
            SourceKind::TextArray => br#"{walhouse,"a check"}"#,
            SourceKind::Own(_) => continue,
        });
    }
    let targets = mapping.targets().iter().zip(shapes);
    let mut blocks: Vec<Block> =
        targets.map(|(target, shape)| Block::new(&target.columns, shape)).collect();
    let stamp = Stamp { version: 1, deleted: false, row: true, first: true };
    mapping.append(&row, stamp, &mut blocks, &mut Notes::default())?;
    Ok(blocks)
}

/// A tombstone of a row that never existed, for an empty table: `FINAL` hides it, and any later row
/// of its key outranks it.
pub fn tombstone(target: &Target, shape: &Shape) -> Block {
    made_up(target, shape, true)
}

fn made_up(target: &Target, shape: &Shape, is_dead: bool) -> Block {
    let mut block = Block::new(&target.columns, shape);
    for at in 0..target.columns.len() {
        let is_deleted = is_dead && at == target.is_deleted;
        let (kind, lists) = block.next_column();
        put_trial(kind, is_deleted, lists);
    }
    block.end_row();
    block
}

/// A value that every type has, and that is not the one of an empty row.
fn put_trial(of: &ColumnType, is_deleted: bool, lists: &mut [List]) {
    match of {
        ColumnType::Of(Scalar::Json) => lists[0].put_bytes(br#"{"data":{"walhouse":"trial"}}"#),
        ColumnType::Of(Scalar::DateTime64 { precision: 3, .. }) => {
            lists[0].put(TRIAL_MILLIS.to_le_bytes());
        }
        ColumnType::Of(Scalar::UInt8) => lists[0].put([u8::from(is_deleted)]),
        ColumnType::Of(scalar) => match scalar.width() {
            None => lists[0].put_bytes(b"walhouse trial"),
            Some(width) => {
                let mut one = vec![0; width];
                one[0] = 1;
                lists[0].put_bytes(&one);
            }
        },
        ColumnType::Nullable(scalar) => {
            lists[0].put([0]);
            put_trial(&ColumnType::Of(*scalar), true, &mut lists[1..]);
        }
        ColumnType::Array(of) => {
            put_trial(of, true, &mut lists[1..]);
            let end = lists[1].len();
            lists[0].put_end(end);
        }
        ColumnType::Map(_) => put_nothing(of, lists),
        ColumnType::Tuple(elements) => {
            let mut rest = lists;
            for (_, of) in elements.iter() {
                let (own, others) = rest.split_at_mut(of.lists());
                put_trial(of, true, own);
                rest = others;
            }
        }
    }
}

/// 2026-01-02 03:04:05.678
const TRIAL_MILLIS: i64 = 1_767_323_045_678;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::key::{Key, LiveKey};
    use crate::rows::tombstone;
    use crate::services::runs::Runs;
    use crate::services::sessions::Sessions;

    #[test]
    fn each_target_gets_a_row() {
        let runs = Runs { payloads: true, fingerprints: true };
        for mapping in [&runs as &dyn Mapping, &Sessions] {
            let shapes: Vec<Shape> = (mapping.targets().iter())
                .map(|target| Shape::of(vec![true; target.columns.len()]))
                .collect();
            let blocks = blocks(mapping, &shapes).expect("the values are of their kinds");
            for (target, shape) in mapping.targets().iter().zip(&shapes) {
                let block = tombstone(target, shape);
                assert_eq!(block.rows(), 1);
                assert_eq!(block.value(target.is_deleted, 0), Some(&[1][..]));
            }
            assert_eq!(blocks.len(), mapping.targets().len());
            assert!(blocks.iter().all(|block| block.rows() == 1), "{mapping:?}");
        }
    }

    #[test]
    fn a_tombstone_has_the_key_its_partition_and_its_version() {
        let mapping = Runs { payloads: true, fingerprints: true };
        let text = |text: &str| text.as_bytes().to_vec();
        let ticks = |ticks: i64| ticks.to_le_bytes().to_vec();
        let lives = [
            LiveKey {
                key: [text("o"), text("p"), text("e"), ticks(-5), text("run")].iter().collect(),
                partition: Key::from_iter([ticks(-5)]),
                version: 3,
            },
            LiveKey {
                key: Key::from_iter(["run"]),
                partition: Key::from_iter([ticks(7)]),
                version: 3,
            },
        ];
        for (target, live) in mapping.targets().iter().zip(&lives) {
            let present = vec![true; target.columns.len()];
            let mut block = Block::new(&target.columns, &Shape::of(present));
            tombstone::append(target, &mut block, live, 9);
            let of = |at: usize| block.value(at, 0).unwrap().to_vec();
            assert_eq!(target.order_by.iter().map(|&at| of(at)).collect::<Key>(), live.key);
            assert_eq!(
                target.partition_by.iter().map(|&at| of(at)).collect::<Key>(),
                live.partition
            );
            assert_eq!((of(target.version), of(target.is_deleted)), (ticks(9), vec![1]));
        }
    }
}
