//! Keys of rows of a target table.

use super::target::Target;

/// The values of [`Target::order_by`], column by column, each with its bytes in a Native block: one
/// value has one form, wherever it was read.
pub type Key = Vec<Vec<u8>>;

/// A live key, and what a tombstone for it must carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveKey {
    pub key: Key,
    /// The values of the columns of [`Target::partition_by`], which are not all in the key.
    pub partition: Vec<Vec<u8>>,
    pub version: u64,
}

impl LiveKey {
    pub fn id(&self, target: &Target) -> &[u8] {
        id(target, &self.key)
    }
}

/// The row's primary key in Postgres.
pub fn id<'k>(target: &Target, key: &'k Key) -> &'k [u8] {
    let place = target.order_by.iter().position(|&at| at == target.id);
    &key[place.expect("the id is part of every sorting key")]
}
