//! Rows whose DELETE came by its key alone while the table is copied: the rest of the sorting key
//! that a tombstone takes is looked up in ClickHouse.
//!
//! A copy that read such a row before it was deleted, or before it moved, and lands it after,
//! brings back a row that is gone. Whoever copies asks at the end which of these there are, and
//! marks them as deleted.

use std::collections::HashSet;

use parking_lot::Mutex;

use crate::wal::row_key::KeyText;

/// A list of more says no more than that there are many.
const KEYS_MAX: usize = 10_000;
const BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
pub struct DeletedKeys(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    keys: HashSet<(usize, KeyText)>,
    bytes: usize,
    is_too_much: bool,
}

impl DeletedKeys {
    /// Each with its table, as an index into those of the session.
    pub fn note(&self, keys: impl Iterator<Item = (usize, KeyText)>) {
        let mut state = self.0.lock();
        for key in keys {
            if state.is_too_much || state.keys.contains(&key) {
                continue;
            }
            state.bytes += key.1.iter().map(Vec::len).sum::<usize>();
            if state.keys.len() == KEYS_MAX || BYTES_MAX < state.bytes {
                *state = State { is_too_much: true, ..State::default() };
            } else {
                state.keys.insert(key);
            }
        }
    }

    /// All that were noted of a table; `None` if they were too many to be held.
    pub fn keys(&self, table: usize) -> Option<Vec<KeyText>> {
        let state = self.0.lock();
        let of_table = state.keys.iter().filter(|(of, _)| *of == table);
        (!state.is_too_much).then(|| of_table.map(|(_, key)| key.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_noted_once_and_too_many_are_not_held() {
        let deleted_keys = DeletedKeys::default();
        let key = |text: &str| vec![text.as_bytes().to_vec()];
        assert_eq!(deleted_keys.keys(0), Some(vec![]));
        deleted_keys.note([(0, key("a")), (0, key("a")), (1, key("b"))].into_iter());
        assert_eq!(deleted_keys.keys(0), Some(vec![key("a")]));
        assert_eq!(deleted_keys.keys(1), Some(vec![key("b")]), "each table has its own");
        deleted_keys.note((0..KEYS_MAX).map(|n| (0, key(&n.to_string()))));
        assert_eq!(deleted_keys.keys(0), None);
        deleted_keys.note([(0, key("b"))].into_iter());
        assert_eq!(deleted_keys.keys(0), None, "nor later");
        let deleted_keys = DeletedKeys::default();
        deleted_keys.note([(0, key(&"x".repeat(BYTES_MAX + 1)))].into_iter());
        assert_eq!(deleted_keys.keys(0), None);
    }
}
