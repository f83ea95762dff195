//! The memory that a change takes, in addition to its bytes, until its rows are written.
//!
//! A DELETE under REPLICA IDENTITY DEFAULT is forty bytes on the wire, and a row of sixty columns
//! and a sorting key that was looked up in a block: if only its bytes counted, a batch would take
//! ten times its limit. The row's own values are not counted here: they are in those bytes, and
//! once more in a block whose batch has been cut.

use super::fold::Entry;
use super::mapping::Mapping;
use crate::rows::ColumnType;
use crate::rows::key::Key;
use crate::rows::target::Target;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeWeight {
    /// A row of the first table.
    update: usize,
    /// One in each table.
    first: usize,
    /// The same, and a sorting key that was looked up.
    look_up: usize,
}

/// A table of hashes is between half and nearly full.
const SLOT: usize = 2 * size_of::<(&[u8], usize)>();
/// An id as part of a statement, which is held twice while it is sent, and its answer.
const ASKED: usize = 2 * KEY_TEXT;
/// A sorting key of four ids of the usual length.
const KEY_TEXT: usize = 4 * 28;
/// A separate allocation.
const ALLOCATED: usize = 16;

impl ChangeWeight {
    /// The overhead of each change in a batch; `place` is the size of its position.
    pub fn new(mapping: &dyn Mapping, place: usize) -> ChangeWeight {
        let folded = place + size_of::<Entry<'_>>() + SLOT;
        let rows: Vec<usize> = mapping.targets().iter().map(row).collect();
        let first = folded + rows.iter().sum::<usize>();
        let key = size_of::<Key>() + KEY_TEXT + 2 * ALLOCATED + 2 * SLOT;
        ChangeWeight {
            update: folded + rows.first().copied().unwrap_or_default(),
            first,
            look_up: first + key + KEY_TEXT + ASKED,
        }
    }

    /// The weight of a message that is a change.
    pub fn of(&self, message: &[u8]) -> usize {
        match message {
            // The old row's key alone.
            [b'D', _, _, _, _, b'K', ..] => self.look_up,
            [b'U', ..] => self.update,
            _ => self.first,
        }
    }
}

/// A row whose texts are empty; lists grow to twice what they hold.
fn row(target: &Target) -> usize {
    // A text and an array are their end and their bytes.
    let width = |kind: &ColumnType| match kind {
        ColumnType::Of(scalar) => scalar.width().unwrap_or(size_of::<usize>()),
        ColumnType::Nullable(scalar) => 1 + scalar.width().unwrap_or(size_of::<usize>()),
        nested => nested.lists() * size_of::<usize>(),
    };
    target.columns.iter().map(|spec| width(&spec.kind)).sum::<usize>() * 3 / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::runs::Runs;
    use crate::services::sessions::Sessions;
    use crate::wal::Oid;
    use crate::wal::testing::{self, V};

    #[test]
    fn a_delete_by_its_key_weighs_most() {
        let runs = ChangeWeight::new(&Runs { payloads: true, fingerprints: true }, 32);
        let key = [V::Text("a")];
        let weigh = |message: &[u8]| runs.of(message);
        let [insert, update] =
            [testing::insert(Oid(1), &key), testing::update(Oid(1), None, &key)].map(|m| weigh(&m));
        let by_key = weigh(&testing::delete(Oid(1), b'K', &key));
        let by_row = weigh(&testing::delete(Oid(1), b'O', &key));
        assert!(update < insert && insert == by_row && by_row < by_key);
        assert!((1_000..3_000).contains(&by_key), "{by_key}");
        assert!(ChangeWeight::new(&Sessions, 32).look_up < by_key);
    }
}
