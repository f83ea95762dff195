//! Tombstones of rows that only ClickHouse still has: built from what it has stored.

use super::column::put_nothing;
use super::key::{Key, LiveKey};
use super::{Block, Target};

/// Appends a tombstone: the key, what decides about the partition, the version; the rest is empty.
pub fn append(target: &Target, block: &mut Block, live: &LiveKey, version: u64) {
    let (key, partition) = (&live.key, &live.partition);
    for at in 0..target.columns.len() {
        let known = |columns: &[usize], values: &Key| {
            columns
                .iter()
                .position(|&column| column == at)
                .map(|place| values.value(place).to_vec())
        };
        let value = match at {
            _ if at == target.version => Some(version.to_le_bytes().to_vec()),
            _ if at == target.is_deleted => Some(vec![1]),
            _ => known(&target.order_by, key).or_else(|| known(&target.partition_by, partition)),
        };
        let (kind, lists) = block.next_column();
        match (value, lists) {
            (Some(value), [values]) => values.put_bytes(&value),
            (Some(value), [nulls, values]) => {
                nulls.put([0]);
                values.put_bytes(&value);
            }
            (_, lists) => put_nothing(kind, lists),
        }
    }
    block.end_row();
}
