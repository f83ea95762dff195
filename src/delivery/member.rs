//! A table in use: its mapping, and its form on both sides.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::source_table::SourceTable;
use crate::rows::key::Key;
use crate::rows::ttl::Ttl;
use crate::rows::{Block, Shape, Target};
use crate::services::assemble::new_blocks;
use crate::services::mapping::Mapping;
use crate::services::source::Source;
use crate::wal::row_key::KeyText;

pub struct Member {
    pub mapping: Arc<dyn Mapping>,
    /// By target table.
    pub shapes: Vec<Shape>,
    /// As Postgres had it when the session began.
    pub found: SourceTable,
}

impl Member {
    pub fn source(&self) -> &Source {
        self.mapping.source()
    }

    pub fn targets(&self) -> &[Target] {
        self.mapping.targets()
    }

    /// The key in Postgres of a row that a target has.
    pub fn key_text(&self, target: usize, key: &Key) -> KeyText {
        let (source, target) = (self.source(), &self.targets()[target]);
        let id = target.id_of(key);
        let columns = source.key.iter().zip(&target.id).zip(id.values());
        columns
            .map(|((&place, &at), value)| {
                source.columns[place].text_of_stored(target.scalar(at), value)
            })
            .collect()
    }

    /// The inverse: what a target has of a key in Postgres, as [`Target::id_of`] gives it.
    pub fn stored_id(&self, target: usize, id: &KeyText) -> Result<Key> {
        let (source, target) = (self.source(), &self.targets()[target]);
        let columns = source.key.iter().zip(&target.id).zip(id);
        let value = |((&place, &at), text): ((&usize, &usize), &Vec<u8>)| {
            let column = &source.columns[place];
            column.stored_of_text(target.scalar(at), text).ok_or_else(|| {
                Error::new(
                    ErrorKind::Protocol,
                    format!("find rows of `{}` by their ids", target.table),
                )
                .because(format!("a value of column `{}` is not of its type", column.name))
            })
        };
        columns.map(value).collect()
    }

    /// One for each target table.
    pub fn blocks(&self) -> Vec<Block> {
        new_blocks(&*self.mapping, &self.shapes)
    }

    /// Whether ClickHouse may drop a row of this key, or has done so, by itself. The row of
    /// Postgres tells more than the key, where there is one.
    pub fn may_be_dropped(&self, target: usize, key: &Key, row: Option<(&Block, usize)>) -> bool {
        let Some(ttl) = self.shapes[target].ttl else { return false };
        let of_key = self.targets()[target].value_of(key, ttl.column).and_then(Ttl::millis);
        let of_row = || row.and_then(|(block, row)| Ttl::millis(block.value(ttl.column, row)?));
        let millis = of_key.or_else(of_row);
        millis.is_some_and(|millis| ttl.may_have_passed(millis, now_millis()))
    }

    pub fn block_of(&self, target: usize) -> Block {
        Block::new(&self.targets()[target].columns, &self.shapes[target])
    }
}

/// Whether ClickHouse drops this row of a block by itself, so that writing it is of no use.
pub fn is_dropped(block: &Block, row: usize) -> bool {
    let Some(ttl) = block.shape().ttl else { return false };
    let millis = block.value(ttl.column, row).and_then(Ttl::millis);
    millis.is_some_and(|millis| ttl.drops(millis, now_millis()))
}

fn now_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
