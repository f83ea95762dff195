//! Lands a page of the source table: what ClickHouse has not, or has otherwise, is written.

use std::collections::HashSet;

use super::work::Worker;
use crate::clickhouse::stored;
use crate::error::Result;
use crate::machines::repair::{Fate, Stored, fate_of_row};
use crate::postgres::table_reader::AsOf;
use crate::rows::Block;
use crate::services::mapping::Target;
use crate::threads::beside::mapped::Mapped;

/// Returns how many rows were written. `as_of` is the page's snapshot.
pub fn land<V: AsRef<[u8]>>(
    worker: &mut Worker<'_>,
    mapped: Mapped<'_>,
    rows: impl Iterator<Item = Result<Vec<Option<V>>>>,
    as_of: AsOf,
    base_version: u64,
) -> Result<usize> {
    let ground = worker.with.ground;
    let (blocks, notes) = mapped.blocks(rows, base_version)?;
    let mut written = HashSet::new();
    let mut refused = Vec::new();
    for (index, (target, block)) in mapped.mapping.targets().iter().zip(&blocks).enumerate() {
        let fates = fates(worker, target, block, base_version)?;
        let is_wanted = |row: usize| fates[row] == Fate::Write;
        for row in (0..block.rows()).filter(|row| is_wanted(*row)) {
            written.insert((target.table, block.text(target.id, row).to_vec()));
        }
        if fates.contains(&Fate::Write) {
            worker.cover(as_of)?;
        }
        let landing = &mut worker.landings[index];
        landing.land_rows(&ground, &mut worker.client, block, is_wanted, &mut refused)?;
    }
    // What is there already was kept when it was written.
    let kept = notes.kept.into_iter();
    let kept = kept.filter(|kept| written.contains(&(kept.table, kept.key.clone()))).collect();
    refused.extend(ground.kept_rows(kept));
    ground.keep(&mut worker.client, &refused)?;
    Ok(written.len())
}

/// What becomes of each row of the block, by what ClickHouse has now.
fn fates(
    worker: &mut Worker<'_>,
    target: &Target,
    block: &Block,
    base_version: u64,
) -> Result<Vec<Fate>> {
    if block.rows() == 0 {
        return Ok(Vec::new());
    }
    let found = worker.ask(|client, deadline| stored::rows_of(client, target, block, deadline))?;
    let has_versions = stored::has_versions(target, |column| block.is_present(column));
    let fate = |row| {
        let found = found.get(&stored::key_of(target, block, row)).map(|found| Stored {
            version: found.version,
            is_deleted: found.is_deleted,
            // Without versions a second row would stand beside the first for ever.
            is_same: !has_versions
                || stored::differing_columns(target, block, row, found).next().is_none(),
        });
        fate_of_row(base_version, found)
    };
    Ok((0..block.rows()).map(fate).collect())
}
