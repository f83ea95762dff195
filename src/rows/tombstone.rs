//! Tombstones of rows that only ClickHouse still has: built from what it has stored.

use super::key::LiveKey;
use super::{Block, ColumnKind, Target};

/// Appends a tombstone: the key, what decides about the partition, the version; the rest is empty.
pub fn append(target: &Target, block: &mut Block, live: &LiveKey, version: u64) {
    for (at, spec) in target.columns.iter().enumerate() {
        let known = |columns: &[usize], values: &[Vec<u8>]| {
            columns.iter().position(|&column| column == at).map(|place| values[place].clone())
        };
        let text = known(&target.order_by, &live.key)
            .or_else(|| known(&target.partition_by, &live.partition));
        match spec.kind {
            ColumnKind::String => block.put_str(&text.unwrap_or_default()),
            ColumnKind::Json => block.put_json(|out| out.extend_from_slice(b"{}")),
            ColumnKind::StringArray => block.put_str_array(|_| ()),
            ColumnKind::UInt8 => block.put_u8(u8::from(at == target.is_deleted)),
            ColumnKind::UInt32 => block.put_u32(0),
            ColumnKind::UInt64 => block.put_u64(if at == target.version { version } else { 0 }),
            ColumnKind::Float64 => block.put_f64(0.0),
            ColumnKind::Millis => {
                let text = text.as_deref().and_then(|text| std::str::from_utf8(text).ok());
                block.put_millis(text.and_then(|text| text.parse().ok()).unwrap_or(0));
            }
            ColumnKind::NullableUInt8 => block.put_nullable_u8(None),
            ColumnKind::NullableUInt32 => block.put_nullable_u32(None),
            ColumnKind::NullableMillis => block.put_nullable_millis(None),
        }
    }
    block.end_row();
}
