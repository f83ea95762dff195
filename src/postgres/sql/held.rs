//! Which texts a database can hold. In one that is in another encoding than UTF-8 the server has to
//! be asked: a statement with a character that it has no place for is refused as a whole (22P05).

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use super::{Sql, SqlError};
use crate::error::Result;
use crate::wal::row_key::KeyText;

impl Sql {
    /// The keys that the database can hold, and so can be queried, in their order. ClickHouse's
    /// keys may have come from anywhere.
    pub fn held<'v>(
        &mut self,
        values: impl Iterator<Item = &'v [u8]>,
        timeout: Duration,
    ) -> Result<Vec<&'v [u8]>> {
        let texts = self.texts();
        let values: Vec<&[u8]> = values.filter(|value| texts.may_hold(value)).collect();
        let asked: Vec<&[u8]> =
            values.iter().copied().filter(|value| !texts.surely_holds(value)).collect();
        let mut refused = HashSet::new();
        let mut chunks = vec![asked.as_slice()];
        while let Some(chunk) = chunks.pop().filter(|chunk| !chunk.is_empty()) {
            match self.takes(chunk, Instant::now() + timeout) {
                Ok(true) => {}
                Ok(false) if chunk.len() == 1 => {
                    refused.insert(chunk[0]);
                }
                Ok(false) => chunks.extend(<[_; 2]>::from(chunk.split_at(chunk.len() / 2))),
                Err(error) => return Err(error.doing("ask which keys the database can hold")),
            }
        }
        Ok(values.into_iter().filter(|value| !refused.contains(value)).collect())
    }

    /// The same of keys of several columns.
    pub fn held_keys(
        &mut self,
        keys: impl Iterator<Item = KeyText>,
        timeout: Duration,
    ) -> Result<Vec<KeyText>> {
        let keys: BTreeSet<KeyText> = keys.collect();
        let values: BTreeSet<&[u8]> = keys.iter().flatten().map(Vec::as_slice).collect();
        let held: HashSet<&[u8]> = self.held(values.into_iter(), timeout)?.into_iter().collect();
        let is_held = |key: &&KeyText| key.iter().all(|value| held.contains(value.as_slice()));
        Ok(keys.iter().filter(is_held).cloned().collect())
    }

    fn takes(
        &mut self,
        values: &[&[u8]],
        deadline: Instant,
    ) -> std::result::Result<bool, SqlError> {
        let texts = self.texts();
        let literals: Vec<String> =
            values.iter().filter_map(|value| texts.literal(value)).collect();
        match self.try_rows(&format!("SELECT 1 WHERE '' IN ({})", literals.join(", ")), deadline) {
            Ok(_) => Ok(true),
            Err(error) if error.is_unconvertible() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
