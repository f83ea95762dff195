//! Tombstones of rows of which only ClickHouse still knows: made of what it has stored.

use super::mapping::Target;
use crate::rows::{Block, Kind};

/// A key as text, column by column, as [`crate::rows::stored::text`] prints it.
pub type Key = Vec<Vec<u8>>;

/// A live key, and what a tombstone for it must carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveKey {
    pub key: Key,
    /// Of the columns of [`Target::partition_by`], which are not all in the key.
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

/// Appends a tombstone: the key, what decides about the partition, the version; the rest is empty.
pub fn append(target: &Target, block: &mut Block, live: &LiveKey, version: u64) {
    for (at, spec) in target.columns.iter().enumerate() {
        let known = |columns: &[usize], values: &[Vec<u8>]| {
            columns.iter().position(|&column| column == at).map(|place| values[place].clone())
        };
        let text = known(target.order_by, &live.key)
            .or_else(|| known(target.partition_by, &live.partition));
        match spec.kind {
            Kind::String => block.put_str(&text.unwrap_or_default()),
            Kind::Json => block.put_json(|out| out.extend_from_slice(b"{}")),
            Kind::StringArray => block.put_str_array(|_| ()),
            Kind::UInt8 => block.put_u8(u8::from(at == target.is_deleted)),
            Kind::UInt32 => block.put_u32(0),
            Kind::UInt64 => block.put_u64(if at == target.version { version } else { 0 }),
            Kind::Float64 => block.put_f64(0.0),
            Kind::Millis => {
                let text = text.as_deref().and_then(|text| std::str::from_utf8(text).ok());
                block.put_millis(text.and_then(|text| text.parse().ok()).unwrap_or(0));
            }
            Kind::NullableUInt8 => block.put_nullable_u8(None),
            Kind::NullableUInt32 => block.put_nullable_u32(None),
            Kind::NullableMillis => block.put_nullable_millis(None),
        }
    }
    block.end_row();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{Shape, stored};
    use crate::services::mapping::Mapping;
    use crate::services::runs::Runs;

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
            let mut block = Block::new(target.columns, &Shape::of(present));
            append(target, &mut block, live, 9);
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
