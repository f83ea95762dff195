//! A made-up row that goes through the real mapping, to see whether the target tables take it.

use super::mapping::{Mapping, Notes, Stamp, ValueError};
use super::source::{Row, SourceKind};
use crate::rows::{Block, Shape};
use crate::wal::Datum;

/// One row for each target table, with a value in every column.
pub fn blocks(mapping: &dyn Mapping, shapes: &[Shape]) -> Result<Vec<Block>, ValueError> {
    let source = mapping.source();
    let mut row = Row::of(source);
    for (value, column) in row.values.iter_mut().zip(source.columns) {
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
        targets.map(|(target, shape)| Block::new(target.columns, shape)).collect();
    let stamp = Stamp { version: 1, deleted: false, row: true, first: true };
    mapping.append(&row, stamp, &mut blocks, &mut Notes::default())?;
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::JsonForm;
    use crate::services::runs::Runs;
    use crate::services::sessions::Sessions;

    #[test]
    fn each_target_gets_a_row() {
        let runs = Runs { payloads: true, fingerprints: true };
        for mapping in [&runs as &dyn Mapping, &Sessions] {
            let shapes: Vec<Shape> = (mapping.targets().iter())
                .map(|target| Shape {
                    present: vec![true; target.columns.len()],
                    json: JsonForm::Typed,
                })
                .collect();
            let blocks = blocks(mapping, &shapes).expect("the values are of their kinds");
            assert_eq!(blocks.len(), mapping.targets().len());
            assert!(blocks.iter().all(|block| block.rows() == 1), "{mapping:?}");
        }
    }
}
