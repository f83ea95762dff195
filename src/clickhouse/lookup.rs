//! Finds where in a target table the rows of some primary keys stand.
//!
//! A DELETE under REPLICA IDENTITY DEFAULT brings only the primary key, but a tombstone must carry
//! the whole sorting key of the row it covers. The table itself knows it.
//!
//! The primary key stands last in the sorting key, so ClickHouse reads that column of the whole
//! table for each statement: callers gather the ids of a batch into one call.

use std::time::Instant;

use super::client::{Client, quote_bytes, quote_name};
use super::stored::live_keys_where;
use crate::error::{Error, ErrorKind, Result};
use crate::services::mapping::Target;
use crate::services::tombstone::LiveKey;

/// Where rows of one id stand. One id has several if an update moved it (a changed `created_at`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SortKey {
    pub id: Vec<u8>,
    pub organization_id: Vec<u8>,
    pub project_id: Vec<u8>,
    pub environment_id: Vec<u8>,
    /// Milliseconds since 1970, as the column's ticks are.
    pub created_at_ms: i64,
}

/// ClickHouse parses at most `max_query_size` (256 KiB by default) of a statement.
const LITERAL_BYTES_MAX: usize = 128 * 1024;
/// Far below `max_ast_elements` (50,000 by default).
const IDS_MAX: usize = 5_000;

/// Every sorting key under which one of `ids` has a row. In no order; ids that were never there are
/// not in the answer.
///
/// Keys whose latest row is a tombstone are in it too: a process may have died after the tombstone
/// of this table and before those of the tables beside it, and a replay must write them all.
pub fn find_sort_keys(
    client: &mut Client,
    table: &str,
    id_column: &str,
    ids: &[&[u8]],
    deadline: Instant,
) -> Result<Vec<SortKey>> {
    let mut keys = Vec::new();
    client.expect_others(table);
    let from = client.qualified(table);
    let id_name = quote_name(id_column);
    for list in literal_lists(ids) {
        // No FINAL: it would merge every column of every part the ids touch.
        let sql = format!(
            "SELECT {id_name}, organization_id, project_id, environment_id, \
             toUnixTimestamp64Milli(created_at) FROM {from} WHERE {id_name} IN ({list}) \
             GROUP BY {id_name}, organization_id, project_id, environment_id, created_at"
        );
        for row in client.query_bytes(&sql, deadline)? {
            keys.push(parse(row).ok_or_else(|| {
                Error::new(ErrorKind::Protocol, format!("find rows of {from} by `{id_column}`"))
                    .because("the answer does not hold sorting keys")
            })?);
        }
    }
    Ok(keys)
}

/// The keys of `ids` whose latest row in `target` is alive. For a table beside the first, which is
/// sorted by the id.
pub fn find_live(
    client: &mut Client,
    target: &Target,
    ids: &[&[u8]],
    deadline: Instant,
) -> Result<Vec<LiveKey>> {
    let mut live = Vec::new();
    client.expect_others(target.table);
    let id_name = quote_name(target.id_name());
    for list in literal_lists(ids) {
        live.extend(live_keys_where(client, target, &format!("{id_name} IN ({list})"), deadline)?);
    }
    Ok(live)
}

fn parse(row: Vec<Option<Vec<u8>>>) -> Option<SortKey> {
    let [id, organization_id, project_id, environment_id, created_at] =
        <[Option<Vec<u8>>; 5]>::try_from(row).ok()?;
    Some(SortKey {
        id: id?,
        organization_id: organization_id?,
        project_id: project_id?,
        environment_id: environment_id?,
        created_at_ms: std::str::from_utf8(&created_at?).ok()?.parse().ok()?,
    })
}

/// The ids as literals, in lists that fit into a statement. A single id above the limit makes a
/// list of its own.
fn literal_lists(ids: &[&[u8]]) -> Vec<String> {
    let mut lists: Vec<String> = Vec::new();
    let mut ids_in_last = 0;
    for id in ids {
        let literal = quote_bytes(id);
        match lists.last_mut() {
            Some(list)
                if ids_in_last < IDS_MAX && list.len() + literal.len() < LITERAL_BYTES_MAX =>
            {
                list.push(',');
                list.push_str(&literal);
                ids_in_last += 1;
            }
            _ => {
                lists.push(literal);
                ids_in_last = 1;
            }
        }
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_hold_every_id_once_and_stay_below_the_limits() {
        let ids: Vec<String> = (0..12_345).map(|n| format!("run_{n:021}")).collect();
        let ids: Vec<&[u8]> = ids.iter().map(String::as_bytes).collect();
        let lists = literal_lists(&ids);
        assert!(lists.iter().all(|list| list.len() <= LITERAL_BYTES_MAX));
        assert!(lists.iter().all(|list| list.split(',').count() <= IDS_MAX));
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
        assert_eq!(key.created_at_ms, -62_135_596_800_000);
        assert_eq!(parse(row("1970-01-01")), None);
        assert_eq!(parse(row("1")[..4].to_vec()), None);
    }
}
