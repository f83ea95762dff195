//! Compares a page of the source table and writes rows that are missing in ClickHouse or differ.

use std::collections::{HashMap, HashSet};

use super::mapped::Mapped;
use super::worker::Worker;
use crate::clickhouse::stored;
use crate::delivery::member::is_dropped;
use crate::error::Result;
use crate::machines::repair::{Fate, Stored, fate_of_row};
use crate::postgres::table_reader::AsOf;
use crate::rows::Block;
use crate::rows::key::Key;
use crate::rows::target::Target;
use crate::wal::row_key::one_or_array;

/// Returns the keys of the rows that were written, each with its target table. `as_of` is the
/// page's snapshot: a row deleted since then may be brought back by this write.
pub fn land<V: AsRef<[u8]>>(
    worker: &mut Worker<'_>,
    mapped: Mapped<'_>,
    rows: impl Iterator<Item = Result<Vec<Option<V>>>>,
    as_of: AsOf,
    base_version: u64,
) -> Result<Vec<(usize, Key)>> {
    let delivery = worker.with.delivery;
    let (blocks, notes) = mapped.blocks(rows, base_version)?;
    let (targets, mut written) = (mapped.member.targets(), Vec::new());
    let mut refused = Vec::new();
    for (index, (target, block)) in targets.iter().zip(&blocks).enumerate() {
        let wanted = keys_to_write(worker, target, block, base_version)?;
        let is_wanted = wanted.iter().map(Option::is_some).collect::<Vec<_>>();
        if is_wanted.contains(&true) {
            worker.cover(as_of)?;
        }
        written.extend(wanted.into_iter().flatten().map(|key| (index, key)));
        let (landing, client) = (&mut worker.landings[index], &mut worker.client);
        landing.land_rows(&delivery, client, block, |row| is_wanted[row], &mut refused)?;
    }
    // The original of a row that ClickHouse already has was kept when it was written.
    let mut kept = notes.kept;
    if !kept.is_empty() {
        let mut ids: HashMap<&str, HashSet<Vec<u8>>> = HashMap::new();
        for (index, key) in &written {
            let id = one_or_array(mapped.member.key_text(*index, key).iter());
            ids.entry(&targets[*index].table).or_default().insert(id);
        }
        kept.retain(|kept| ids.get(&*kept.table).is_some_and(|ids| ids.contains(&kept.key)));
    }
    refused.extend(delivery.kept_rows(kept));
    delivery.keep(&mut worker.client, &refused)?;
    Ok(written)
}

/// By row of the block: its key, if ClickHouse's current row shows that it must be written.
fn keys_to_write(
    worker: &mut Worker<'_>,
    target: &Target,
    block: &Block,
    base_version: u64,
) -> Result<Vec<Option<Key>>> {
    if block.rows() == 0 {
        return Ok(Vec::new());
    }
    let found = worker.ask(|client, deadline| stored::rows_of(client, target, block, deadline))?;
    let has_versions = stored::has_versions(target, |column| block.is_present(column));
    let wanted = |row| {
        if is_dropped(block, row) {
            return None;
        }
        let key = stored::key_of(target, block, row);
        let found = found.get(&key).map(|found| Stored {
            version: found.version,
            is_deleted: found.is_deleted,
            // Without versions a second row would stay next to the first for ever.
            is_same: !has_versions
                || stored::differing_columns(target, block, row, found).next().is_none(),
        });
        (fate_of_row(base_version, found) == Fate::Write).then_some(key)
    };
    Ok((0..block.rows()).map(wanted).collect())
}
