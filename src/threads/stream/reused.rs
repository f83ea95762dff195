//! Rows whose key may have been removed above them by a transaction that this session has not seen:
//! asks ClickHouse for the tombstones, and Postgres whether the rows are there. [`outranking`]
//! decides what follows.

use std::time::Instant;

use super::flusher::OpenFlusher;
use crate::clickhouse::Client;
use crate::clickhouse::stored::{has_versions, key_of, versions_of};
use crate::delivery::context::DeliveryContext;
use crate::delivery::member::Member;
use crate::error::Result;
use crate::machines::removals::outranking;
use crate::postgres::reread::RereadRequest;
use crate::rows::target::Target;
use crate::services::assemble::Assembled;
use crate::services::fold::Folded;
use crate::wal::Lsn;

/// A row, as an index into [`Assembled::asked`], and the version that would outrank ClickHouse's.
type Outranking = (usize, u64);

impl OpenFlusher<'_> {
    /// Raises rows above a tombstone of their key that lies above them, where Postgres has the row.
    /// Returns the LSN up to which this may reflect commits.
    pub(super) fn outrank_tombstones(
        &mut self,
        member: &Member,
        folded: &Folded<'_>,
        part: &mut Assembled,
    ) -> Result<Lsn> {
        if part.asked.is_empty() {
            return Ok(Lsn(0));
        }
        let with = self.with;
        let (targets, source) = (member.targets(), member.source());
        let (client, shift) = (&mut self.client, with.version_shift);
        let found = find_tombstones(&with.delivery, client, targets, folded, part, shift)?;
        if found.is_empty() {
            return Ok(Lsn(0));
        }
        let entry = |asked: usize| &folded.entries[part.asked[asked].entry];
        let mut xids: Vec<u32> = found.iter().map(|(asked, _)| entry(*asked).xid).collect();
        xids.sort_unstable();
        xids.dedup();
        let (mut ids, mut keys) = (hashbrown::HashMap::<&[u8], usize>::new(), Vec::new());
        for (asked, _) in &found {
            ids.entry(&*entry(*asked).id).or_insert_with(|| {
                keys.push(folded.key_texts(source, part.asked[*asked].entry));
                keys.len() - 1
            });
        }
        let request = RereadRequest {
            table: &member.found,
            key_columns: &source.key_names(),
            columns: &[],
            keys: &keys,
            xids: &xids,
            bytes_max: usize::MAX,
        };
        let rows = self.rereading.ask_until_visible(&request)?;
        for (asked, version) in found {
            if rows.found.contains_key(&ids[&*folded.entries[part.asked[asked].entry].id]) {
                part.set_version(targets, asked, version);
                with.delivery.metrics.reused_keys.inc();
            }
        }
        Ok(if rows.is_as_streamed { Lsn(0) } else { rows.as_of.insert_lsn })
    }
}

/// Those of `part.asked` for whose key a target has a later tombstone.
fn find_tombstones(
    delivery: &DeliveryContext<'_>,
    client: &mut Client,
    targets: &[Target],
    folded: &Folded<'_>,
    part: &Assembled,
    shift: u64,
) -> Result<Vec<Outranking>> {
    let mut found = vec![None; part.asked.len()];
    let below = |asked: usize| {
        let below = folded.entries[part.asked[asked].entry].ask_below;
        below.map_or(0, |below| below.0.saturating_add(shift))
    };
    for (at, target) in targets.iter().enumerate() {
        let block = &part.blocks[at];
        // A table without versions holds no tombstones.
        if !has_versions(target, |column| block.is_present(column)) {
            continue;
        }
        let asked: Vec<(usize, usize)> = (part.asked.iter().enumerate())
            .flat_map(|(asked, of)| of.rows.iter().map(move |row| (asked, *row)))
            .filter_map(|(asked, (target, row))| (target == at).then_some((asked, row)))
            .collect();
        let own = |row: usize| block.u64(target.version, row);
        let Some(low) = asked.iter().map(|(_, row)| own(*row)).min() else { continue };
        let rows: Vec<usize> = asked.iter().map(|(_, row)| *row).collect();
        let timeout = delivery.clickhouse.request_timeout;
        let deadline = || Instant::now() + timeout;
        let versions = delivery
            .retry(|| versions_of(client, target, block, &rows, low, deadline), |_| false)?;
        for (asked, row) in asked {
            if let Some(there) = versions.get(&key_of(target, block, row)) {
                found[asked] = found[asked].max(outranking(own(row), below(asked), there));
            }
        }
    }
    let found = found.into_iter().enumerate();
    Ok(found.filter_map(|(asked, version)| Some((asked, version?))).collect())
}
