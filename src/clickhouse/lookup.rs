//! Finds the sorting keys of rows in a target table by their primary keys.
//!
//! A DELETE under REPLICA IDENTITY DEFAULT brings only the primary key, but a tombstone must carry
//! the whole sorting key of the row it covers. The table itself knows it.
//!
//! The primary key is last in the sorting key, so ClickHouse reads that column of the whole table
//! for each statement, for any number of ids: so all ids of a batch go into one.
//! [`portions`](crate::machines::portions) decides how much of the table a statement reads.

use std::time::Instant;

use super::client::{Client, quote_name};
use super::partitions;
use super::stored::{key_sets, live_keys_where, parse_key, text_of};
use crate::error::{Error, ErrorKind, Result};
use crate::rows::key::{Key, LiveKey};
use crate::rows::target::Target;

/// The size of the ids in one statement: 250,000 of the usual length. An array of constants is read
/// at once; a list of as many takes three times as long, and [`Client`] makes the server allow the
/// length.
const LITERAL_BYTES_MAX: usize = 8 << 20;

/// Appends every sorting key under which one of `ids`, values of [`Target::id`], has a row in one
/// of these partitions (none named: in the table). In no order; ids that were never there are not
/// in the answer.
///
/// Keys whose latest row is a tombstone are in it too: a process may have died after the tombstone
/// of this table and before those of the other tables, and a replay must write them all.
pub fn find_sort_keys(
    client: &mut Client,
    target: &Target,
    ids: &[Key],
    partitions: &[String],
    deadline: impl Fn() -> Instant,
    found: &mut Vec<Key>,
) -> Result<()> {
    client.expect_others(&target.table);
    let from = client.qualified(&target.table);
    let names = |columns: &[usize]| {
        let names = columns.iter().map(|&at| quote_name(&target.columns[at].name));
        names.collect::<Vec<_>>().join(", ")
    };
    let texts = target.order_by.iter().map(|&at| text_of(target, at)).collect::<Vec<_>>();
    let place = partitions::is_in(partitions.iter().map(String::as_str));
    for list in id_lists(target, ids) {
        // No FINAL: it would merge every column of every part the ids touch.
        let sql = format!(
            "SELECT {} FROM {from} WHERE {place} AND ({}) IN ({list}) GROUP BY {}",
            texts.join(", "),
            names(&target.id),
            names(&target.order_by),
        );
        let take = |row: Vec<Option<Vec<u8>>>| {
            found.push(parse_key(target, &mut row.into_iter())?);
            Some(())
        };
        let outcome = client.query_each(&sql, &[&target.table], &[], deadline(), take);
        outcome.map_err(|error| match error.kind() {
            ErrorKind::Protocol => {
                let doing = format!("find rows of {from} by their ids");
                Error::new(ErrorKind::Protocol, doing).because(error)
            }
            _ => error,
        })?;
    }
    Ok(())
}

/// Appends the keys of `ids` whose latest row in `target` is alive. For a further table, which is
/// sorted by the id.
pub fn find_live(
    client: &mut Client,
    target: &Target,
    ids: &[Key],
    deadline: impl Fn() -> Instant,
    live: &mut Vec<LiveKey>,
) -> Result<()> {
    client.expect_others(&target.table);
    let names: Vec<String> = target.id_names().into_iter().map(quote_name).collect();
    for list in id_lists(target, ids) {
        let condition = format!("({}) IN ({list})", names.join(", "));
        live.extend(live_keys_where(client, target, &condition, deadline())?);
    }
    Ok(())
}

fn id_lists(target: &Target, ids: &[Key]) -> Vec<String> {
    let of_columns = target.id.iter().map(|&at| target.scalar(at)).collect::<Vec<_>>();
    key_sets(&of_columns, ids.iter().map(Key::values), (LITERAL_BYTES_MAX, usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clickhouse::client::quote_bytes;
    use crate::services::runs;

    #[test]
    fn lists_hold_every_id_once_and_stay_below_the_limit() {
        let ids: Vec<String> = (0..400_000).map(|n| format!("run_{n:021}")).collect();
        let keys: Vec<Key> = ids.iter().map(|id| Key::from_iter([id])).collect();
        let target = &runs::TARGETS[0];
        let lists = id_lists(target, &keys);
        assert_eq!(lists.len(), 2, "as few as there can be");
        assert!(lists.iter().all(|list| list.len() <= LITERAL_BYTES_MAX + 32));
        let lists = lists.iter().map(|list| {
            list.strip_prefix("SELECT arrayJoin([").and_then(|list| list.strip_suffix("])"))
        });
        let lists: Vec<&str> = lists.map(|list| list.expect("an array")).collect();
        let all: Vec<&str> = lists.iter().flat_map(|list| list.split(',')).collect();
        let expected: Vec<String> = ids.iter().map(|id| quote_bytes(id.as_bytes())).collect();
        assert_eq!(all, expected);
        assert_eq!(id_lists(target, &[]), Vec::<String>::new());
    }
}
