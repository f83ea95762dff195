//! Made-up rows, to see whether the target tables accept them.

use super::mapping::{Mapping, Stamp, ValueError};
use super::notes::Notes;
use super::row::Row;
use super::source::SourceKind;
use crate::rows::column::ColumnKind;
use crate::rows::target::Target;
use crate::rows::{Block, Shape};
use crate::wal::Datum;

/// One row for each target table, with a value in every column.
pub fn blocks(mapping: &dyn Mapping, shapes: &[Shape]) -> Result<Vec<Block>, ValueError> {
    let source = mapping.source();
    let mut row = Row::of(source);
    for (value, column) in row.values.iter_mut().zip(&source.columns) {
        *value = Datum::Text(match column.kind {
            SourceKind::Text => b"walhouse check",
            SourceKind::Int => b"1",
            SourceKind::Float => b"0.5",
            SourceKind::Bool => b"t",
            SourceKind::Timestamp => b"2026-01-02 03:04:05.678",
            SourceKind::Json => br#"{"walhouse": {"check": [1, "two"]}}"#,
            SourceKind::TextArray => br#"{walhouse,"a check"}"#,
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
    let mut block = Block::new(&target.columns, shape);
    for (at, column) in target.columns.iter().enumerate() {
        match column.kind {
            ColumnKind::String => block.put_str(b"walhouse trial"),
            ColumnKind::Json => {
                block.put_json(|out| out.extend_from_slice(br#"{"data":{"walhouse":"trial"}}"#));
            }
            ColumnKind::StringArray => block.put_str_array(|items| items.push(b"walhouse trial")),
            ColumnKind::UInt8 => block.put_u8(u8::from(at == target.is_deleted)),
            ColumnKind::UInt32 => block.put_u32(1),
            ColumnKind::UInt64 => block.put_u64(1),
            ColumnKind::Float64 => block.put_f64(0.5),
            ColumnKind::Millis => block.put_millis(TRIAL_MILLIS),
            ColumnKind::NullableUInt8 => block.put_nullable_u8(Some(1)),
            ColumnKind::NullableUInt32 => block.put_nullable_u32(Some(1)),
            ColumnKind::NullableMillis => block.put_nullable_millis(Some(TRIAL_MILLIS)),
        }
    }
    block.end_row();
    block
}

/// 2026-01-02 03:04:05.678
const TRIAL_MILLIS: i64 = 1_767_323_045_678;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::key::{Key, LiveKey};
    use crate::rows::{stored, tombstone};
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
                assert_eq!(format!("{:?}", block.values(target.is_deleted)), "U8([1])");
            }
            assert_eq!(blocks.len(), mapping.targets().len());
            assert!(blocks.iter().all(|block| block.rows() == 1), "{mapping:?}");
        }
    }

    #[test]
    fn a_tombstone_has_the_key_its_partition_and_its_version() {
        let mapping = Runs { payloads: true, fingerprints: true };
        let text = |text: &str| text.as_bytes().to_vec();
        let lives = [
            LiveKey {
                key: ["o", "p", "e", "-5", "run"].map(text).to_vec(),
                partition: vec![text("-5")],
                version: 3,
            },
            LiveKey { key: vec![text("run")], partition: vec![text("7")], version: 3 },
        ];
        for (target, live) in mapping.targets().iter().zip(&lives) {
            let present = vec![true; target.columns.len()];
            let mut block = Block::new(&target.columns, &Shape::of(present));
            tombstone::append(target, &mut block, live, 9);
            let of = |at: usize| stored::text(block.values(at), 0).unwrap();
            assert_eq!(target.order_by.iter().map(|&at| of(at)).collect::<Key>(), live.key);
            assert_eq!(
                target.partition_by.iter().map(|&at| of(at)).collect::<Key>(),
                live.partition
            );
            assert_eq!((of(target.version), of(target.is_deleted)), (text("9"), text("1")));
        }
    }
}
