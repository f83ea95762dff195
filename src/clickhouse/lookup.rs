//! Finds the sorting keys of rows in a target table by their primary keys.
//!
//! A DELETE under REPLICA IDENTITY DEFAULT brings only the primary key, but a tombstone must carry
//! the whole sorting key of the row it covers. The table itself knows it.
//!
//! The primary key is last in the sorting key, so ClickHouse reads that column of the whole table
//! for each statement, for any number of ids: so all ids of a batch go into one.
//! [`portions`](crate::machines::portions) decides how much of the table a statement reads.

use std::time::Instant;

use super::client::{Client, quote_bytes, quote_name};
use super::partitions;
use super::stored::live_keys_where;
use crate::error::{Error, ErrorKind, Result};
use crate::rows::key::LiveKey;
use crate::rows::target::Target;
use crate::services::bare_key::BareKey;

/// The size of the ids in one statement: 250,000 of the usual length. An array of constants is read
/// at once; a list of as many takes three times as long, and [`Client`] makes the server allow the
/// length.
const LITERAL_BYTES_MAX: usize = 8 << 20;

/// Appends every sorting key under which one of `ids` has a row in one of these partitions (none
/// named: in the table). In no order; ids that were never there are not in the answer.
///
/// Keys whose latest row is a tombstone are in it too: a process may have died after the tombstone
/// of this table and before those of the other tables, and a replay must write them all.
pub fn find_sort_keys(
    client: &mut Client,
    table: &str,
    id_column: &str,
    ids: &[&[u8]],
    partitions: &[String],
    deadline: impl Fn() -> Instant,
    found: &mut Vec<BareKey>,
) -> Result<()> {
    client.expect_others(table);
    let from = client.qualified(table);
    let id_name = quote_name(id_column);
    let place = partitions::is_in(partitions.iter().map(String::as_str));
    for list in literal_lists(ids) {
        // No FINAL: it would merge every column of every part the ids touch.
        let sql = format!(
            "SELECT {id_name}, organization_id, project_id, environment_id, \
             toUnixTimestamp64Milli(created_at) FROM {from} \
             WHERE {place} AND {id_name} IN ({list}) \
             GROUP BY {id_name}, organization_id, project_id, environment_id, created_at"
        );
        let take = |row| {
            found.push(parse(row)?);
            Some(())
        };
        let outcome = client.query_each(&sql, &[table], &[], deadline(), take);
        outcome.map_err(|error| match error.kind() {
            ErrorKind::Protocol => {
                let doing = format!("find rows of {from} by `{id_column}`");
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
    ids: &[&[u8]],
    deadline: impl Fn() -> Instant,
    live: &mut Vec<LiveKey>,
) -> Result<()> {
    client.expect_others(&target.table);
    let id_name = quote_name(target.id_name());
    for list in literal_lists(ids) {
        let condition = format!("{id_name} IN ({list})");
        live.extend(live_keys_where(client, target, &condition, deadline())?);
    }
    Ok(())
}

fn parse(row: Vec<Option<Vec<u8>>>) -> Option<BareKey> {
    let [id, organization, project, environment, created_at] =
        <[Option<Vec<u8>>; 5]>::try_from(row).ok()?;
    let created_at = std::str::from_utf8(&created_at?).ok()?.parse().ok()?;
    Some(BareKey::new(&id?, &organization?, &project?, &environment?, created_at))
}

/// The ids as arrays of literals, each of which fits into a statement. A single id above the limit
/// makes one of its own.
fn literal_lists(ids: &[&[u8]]) -> Vec<String> {
    let mut lists: Vec<String> = Vec::new();
    for id in ids {
        let literal = quote_bytes(id);
        match lists.last_mut() {
            Some(list) if list.len() + literal.len() < LITERAL_BYTES_MAX => {
                list.push(',');
                list.push_str(&literal);
            }
            _ => lists.push(literal),
        }
    }
    lists.into_iter().map(|list| format!("SELECT arrayJoin([{list}])")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_hold_every_id_once_and_stay_below_the_limit() {
        let ids: Vec<String> = (0..400_000).map(|n| format!("run_{n:021}")).collect();
        let ids: Vec<&[u8]> = ids.iter().map(String::as_bytes).collect();
        let lists = literal_lists(&ids);
        assert_eq!(lists.len(), 2, "as few as there can be");
        assert!(lists.iter().all(|list| list.len() <= LITERAL_BYTES_MAX + 32));
        let lists = lists.iter().map(|list| {
            list.strip_prefix("SELECT arrayJoin([").and_then(|list| list.strip_suffix("])"))
        });
        let lists: Vec<&str> = lists.map(|list| list.expect("an array")).collect();
        let all: Vec<&str> = lists.iter().flat_map(|list| list.split(',')).collect();
        let expected: Vec<String> = ids.iter().map(|id| quote_bytes(id)).collect();
        assert_eq!(all, expected);
        assert_eq!(literal_lists(&[]), Vec::<String>::new());
    }

    #[test]
    fn a_key_of_another_shape_is_refused() {
        let text = |value: &str| Some(value.as_bytes().to_vec());
        let row = |at: &str| vec![text("r"), text("o"), text("p"), text("e"), text(at)];
        let key = parse(row("-62135596800000")).expect("each column fits");
        assert_eq!(key, BareKey::new(b"r", b"o", b"p", b"e", -62_135_596_800_000));
        assert_eq!(parse(row("1970-01-01")), None);
        assert_eq!(parse(row("1")[..4].to_vec()), None);
    }
}
