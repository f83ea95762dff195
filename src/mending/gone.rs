//! Which keys of ClickHouse Postgres does not have any more.

use std::collections::HashSet;

use super::parties::{MendingContext, SQL_TIMEOUT};
use super::worker::Worker;
use crate::clickhouse::stored;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::table_reader::AsOf;
use crate::rows::key::{Key, LiveKey};
use crate::services::mapping::{Stamp, is_owned, key_places};
use crate::services::notes::Notes;
use crate::services::row::Row;
use crate::wal::Datum;

/// The keys of a slice are held at once: some MB.
pub const SLICE_ROWS_MAX: u64 = 20_000;
/// Rows per slice, and the number of slices, if they are read one after the other.
pub const SLICES_AT_ONCE: (u64, usize) = (SLICE_ROWS_MAX, 100);
/// Looked up in Postgres under one snapshot.
pub const LOOKUP_KEYS: usize = 500;

/// Postgres's answer about some keys.
pub struct LookedUp {
    pub there: Vec<bool>,
    /// By the last snapshot; there is one for all of them unless memory did not suffice.
    pub as_of: Option<AsOf>,
}

/// Which of the keys Postgres has.
pub fn are_in_postgres(
    worker: &mut Worker<'_>,
    target: usize,
    keys: &[LiveKey],
) -> Result<LookedUp> {
    let with = worker.with;
    let source = with.member.source();
    let places = key_places(&*with.member.mapping);
    let columns: Vec<&str> = places.iter().map(|&place| &*source.columns[place].name).collect();
    let id_of = |live: &LiveKey| with.member.key_text(target, &live.key);
    // A key that is not text cannot be in Postgres, and cannot be queried either.
    let ids = worker.sql.held_keys(keys.iter().map(id_of), SQL_TIMEOUT)?;
    let mut looked_up = LookedUp { there: vec![false; keys.len()], as_of: None };
    let mut rest = ids.as_slice();
    while !rest.is_empty() {
        worker.go_on()?;
        let rows = worker.rows_of_keys(&columns, rest)?;
        looked_up.as_of = Some(rows.as_of);
        let mut found = HashSet::new();
        for values in rows.found.values() {
            found.extend(key_in_postgres(with, target, &places, values)?);
        }
        for (live, there) in keys.iter().zip(&mut looked_up.there) {
            *there |= found.contains(&live.key);
        }
        rest = rest.get(rows.answered..).unwrap_or_default();
    }
    Ok(looked_up)
}

/// The key that a row of Postgres has in the target table; `None` if it has no place there.
fn key_in_postgres(
    with: &MendingContext<'_>,
    target: usize,
    places: &[usize],
    values: &[Option<Vec<u8>>],
) -> Result<Option<Key>> {
    let mut row = Row::of(with.member.source());
    for (place, value) in places.iter().zip(values) {
        row.values[*place] = value.as_deref().map_or(Datum::Null, Datum::Text);
    }
    // The stream writes nothing for an id that has come back without an owner.
    if !is_owned(&*with.member.mapping, &row) {
        return Ok(None);
    }
    let (mut blocks, mut notes) = (with.member.blocks(), Notes::default());
    // As a tombstone, because of its values only the key is known.
    let stamp = Stamp { version: 0, deleted: true, row: true, first: true };
    with.member.mapping.append(&row, stamp, &mut blocks, &mut notes).map_err(|e| {
        let doing = format!("map a key of service `{}`", with.delivery.service);
        Error::new(ErrorKind::Protocol, doing).because(e)
    })?;
    let block = &blocks[target];
    Ok((0 < block.rows()).then(|| stored::key_of(&with.member.targets()[target], block, 0)))
}
