//! Rows whose DELETE came by its key alone while the table is copied, and for which ClickHouse had
//! no row yet whose sorting key a tombstone could take.
//!
//! A copy that read such a row before it was deleted, and lands it after, brings back a row that is
//! gone. Whoever copies asks at the end which of these there are, and marks them as deleted.

use std::collections::HashSet;

use parking_lot::Mutex;

/// A list of more says no more than that there are many.
const IDS_MAX: usize = 10_000;
const BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
pub struct Unplaced(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    ids: HashSet<Vec<u8>>,
    bytes: usize,
    is_too_much: bool,
}

impl Unplaced {
    pub fn note<'i>(&self, ids: impl Iterator<Item = &'i [u8]>) {
        let mut state = self.0.lock();
        for id in ids {
            if state.is_too_much || state.ids.contains(id) {
                continue;
            }
            state.bytes += id.len();
            if state.ids.len() == IDS_MAX || BYTES_MAX < state.bytes {
                *state = State { is_too_much: true, ..State::default() };
            } else {
                state.ids.insert(id.to_vec());
            }
        }
    }

    /// All that were noted; `None` if they were too many to be held.
    pub fn ids(&self) -> Option<Vec<Vec<u8>>> {
        let state = self.0.lock();
        (!state.is_too_much).then(|| state.ids.iter().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_noted_once_and_too_many_are_not_held() {
        let unplaced = Unplaced::default();
        assert_eq!(unplaced.ids(), Some(vec![]));
        unplaced.note([&b"a"[..], b"a"].into_iter());
        assert_eq!(unplaced.ids(), Some(vec![b"a".to_vec()]));
        let ids: Vec<String> = (0..IDS_MAX).map(|n| n.to_string()).collect();
        unplaced.note(ids.iter().map(String::as_bytes));
        assert_eq!(unplaced.ids(), None);
        unplaced.note([&b"b"[..]].into_iter());
        assert_eq!(unplaced.ids(), None, "nor later");
        let unplaced = Unplaced::default();
        unplaced.note([&[b'x'; BYTES_MAX + 1][..]].into_iter());
        assert_eq!(unplaced.ids(), None);
    }
}
