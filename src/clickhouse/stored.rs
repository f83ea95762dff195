//! Reads back the contents of a target table: rows by their keys, for a comparison, and live keys.
//!
//! Latest by version, deleted ones included; FINAL would read every column of every part. Queries
//! use tuples of the whole sorting key, so that the primary index finds them.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::client::{Client, quote_bytes, quote_name};
use super::partitions::{self, partitions, too_much};
use crate::error::{Error, ErrorKind, Result};
use crate::machines::portions::{Next, PortionSearch, Sizes};
use crate::machines::removals::StoredVersion;
use crate::rows::key::{Key, LiveKey};
use crate::rows::target::Target;
use crate::rows::{Block, Scalar, Shape, stored};

/// The latest row of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRow {
    /// 0 for a table without versions: its rows stay.
    pub version: u64,
    pub is_deleted: bool,
    /// For each column that is sent: its text; `None` is NULL.
    pub values: Vec<Option<Vec<u8>>>,
}

/// ClickHouse parses at most `max_query_size` (256 KiB by default) of a statement.
const LITERAL_BYTES_MAX: usize = 128 * 1024;
const KEYS_MAX: usize = 2_000;

/// What ClickHouse has for the rows of `block`, by their keys.
pub fn rows_of(
    client: &mut Client,
    target: &Target,
    block: &Block,
    deadline: impl Fn() -> Instant,
) -> Result<HashMap<Key, StoredRow>> {
    let mut found = HashMap::new();
    let has_versions = has_versions(target, |column| block.is_present(column));
    let names = |columns: &[usize]| {
        columns
            .iter()
            .map(|&at| quote_name(&target.columns[at].name))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let key = names(&target.order_by);
    let mut select: Vec<String> = target.order_by.iter().map(|&at| text_of(target, at)).collect();
    let (version, order) = match has_versions {
        true => ([text_of(target, target.version), text_of(target, target.is_deleted)], "DESC"),
        false => (["'0'".to_owned(), "'0'".to_owned()], ""),
    };
    select.extend(version);
    select.extend(block.sent().map(|at| text_of(target, at)));
    let by_version = match has_versions {
        true => format!("{key}, {} {order}", quote_name(&target.columns[target.version].name)),
        false => key.clone(),
    };
    for set in row_sets(target, block, 0..block.rows()) {
        let sql = format!(
            "SELECT {} FROM {} WHERE ({key}) IN ({set}) ORDER BY {by_version} LIMIT 1 BY {key}",
            select.join(", "),
            client.qualified(&target.table),
        );
        for row in client.query_bytes(&sql, &[&target.table], deadline())? {
            let (key, row) = read_row(target, row).ok_or_else(|| malformed(target))?;
            found.insert(key, row);
        }
    }
    Ok(found)
}

/// What ClickHouse has above version `low` for the keys of these rows; older versions, too, unless
/// they are merged away.
pub fn versions_of(
    client: &mut Client,
    target: &Target,
    block: &Block,
    rows: &[usize],
    low: u64,
    deadline: impl Fn() -> Instant,
) -> Result<HashMap<Key, Vec<StoredVersion>>> {
    let mut found: HashMap<Key, Vec<StoredVersion>> = HashMap::new();
    client.expect_others(&target.table);
    let name = |&at: &usize| quote_name(&target.columns[at].name);
    let key = target.order_by.iter().map(name).collect::<Vec<_>>().join(", ");
    let mut select: Vec<String> = target.order_by.iter().map(|&at| text_of(target, at)).collect();
    select.extend([target.version, target.is_deleted].map(|at| text_of(target, at)));
    for set in row_sets(target, block, rows.iter().copied()) {
        let sql = format!(
            "SELECT {} FROM {} WHERE ({key}) IN ({set}) AND {low} < {}",
            select.join(", "),
            client.qualified(&target.table),
            name(&target.version),
        );
        for row in client.query_bytes(&sql, &[&target.table], deadline())? {
            let (key, row) = read_row(target, row).ok_or_else(|| malformed(target))?;
            let StoredRow { version, is_deleted, .. } = row;
            found.entry(key).or_default().push(StoredVersion { version, is_deleted });
        }
    }
    Ok(found)
}

/// The columns of a row that differ in ClickHouse, except version and deletion.
pub fn differing_columns<'a>(
    target: &'a Target,
    block: &'a Block,
    row: usize,
    found: &'a StoredRow,
) -> impl Iterator<Item = usize> + 'a {
    let own = [target.version, target.is_deleted];
    block
        .sent()
        .zip(&found.values)
        .filter(move |(column, value)| {
            !own.contains(column) && !stored::is_same(block, *column, row, value.as_deref())
        })
        .map(|(column, _)| column)
}

/// The key of a row, to find it in what [`rows_of`] found.
pub fn key_of(target: &Target, block: &Block, row: usize) -> Key {
    target.order_by.iter().map(|&at| block.value(at, row).unwrap_or_default()).collect()
}

/// Whether the table has versions and tombstones.
pub fn has_versions(target: &Target, is_present: impl Fn(usize) -> bool) -> bool {
    is_present(target.version) && is_present(target.is_deleted)
}

/// The highest version in the table; 0 of an empty one and of one without versions.
///
/// It reads that column of the whole table, at once if the answer comes in time, and otherwise
/// partition by partition: each statement has `timeout`, or a multiple of it where a partition
/// takes longer, so that it ends at any size. It calls `go_on` before each.
pub fn highest_version(
    client: &mut Client,
    target: &Target,
    shape: &Shape,
    timeout: Duration,
    go_on: impl Fn() -> Result<()>,
) -> Result<u64> {
    if !shape.present[target.version] {
        return Ok(0);
    }
    let name = quote_name(&target.columns[target.version].name);
    let (mut sizes, mut highest, mut names) = (Sizes::new(1), 0, Vec::new());
    let mut search = PortionSearch::new(&mut sizes, 1, true);
    loop {
        go_on()?;
        let portion = match search.step() {
            Next::Done => return Ok(highest),
            Next::ListPartitions => {
                let listed = partitions(client, &target.table, Instant::now() + timeout)?;
                search.on_partitions(listed.iter().map(|partition| partition.rows).collect());
                names = listed.into_iter().map(|partition| partition.id).collect();
                continue;
            }
            Next::Ask(portion) => portion,
        };
        let among: &[String] = portion.partitions.map_or(&[], |range| &names[range]);
        let sql = format!(
            "SELECT toString(max({name})) FROM {} WHERE {}",
            client.qualified(&target.table),
            partitions::is_in(among.iter().map(String::as_str)),
        );
        let deadline = Instant::now() + timeout.saturating_mul(search.patience());
        match client.query(&sql, &[&target.table], deadline) {
            Ok(rows) => {
                let [row] = rows.as_slice() else { return Err(malformed(target)) };
                let [Some(version)] = row.as_slice() else { return Err(malformed(target)) };
                highest = highest.max(version.parse().map_err(|_| malformed(target))?);
                search.on_answer();
            }
            Err(error) => match too_much(client, &error, 1, deadline <= Instant::now()) {
                Some(why) if search.on_too_much(why) => {
                    log::debug!("{error}; asking for less at a time");
                }
                Some(_) | None => return Err(error),
            },
        }
    }
}

/// A sample of the keys whose latest row in a partition is alive, selected by `residue`. A later
/// row in another partition may be deleted.
pub fn sample_of_live_keys(
    client: &mut Client,
    target: &Target,
    partition_id: &str,
    one_in: u64,
    residue: u64,
    deadline: Instant,
) -> Result<Vec<LiveKey>> {
    let id: Vec<String> = target.id_names().into_iter().map(quote_name).collect();
    let (id, place) = (id.join(", "), partitions::is_in([partition_id]));
    let condition = format!("{place} AND cityHash64({id}) % {} = {residue}", one_in.max(1));
    live_keys_where(client, target, &condition, deadline)
}

/// The keys whose latest row, of those that meet the condition, is alive.
pub(super) fn live_keys_where(
    client: &mut Client,
    target: &Target,
    condition: &str,
    deadline: Instant,
) -> Result<Vec<LiveKey>> {
    let name = |at: usize| quote_name(&target.columns[at].name);
    let (version, is_deleted) = (name(target.version), name(target.is_deleted));
    let key: Vec<String> = target.order_by.iter().map(|&at| name(at)).collect();
    let key = key.join(", ");
    let mut select: Vec<String> = target.order_by.iter().map(|&at| text_of(target, at)).collect();
    for &at in &target.partition_by {
        let value = match target.order_by.contains(&at) {
            true => text_of(target, at),
            false => {
                let latest = format!("argMax({}, {version})", name(at));
                stored::expression(&target.columns[at].kind, &latest)
            }
        };
        select.push(value);
    }
    select.push(format!("toString(max({version}))"));
    let sql = format!(
        "SELECT {} FROM {} WHERE {condition} GROUP BY {key} \
         HAVING argMax({is_deleted}, {version}) = 0",
        select.join(", "),
        client.qualified(&target.table),
    );
    let rows = client.query_bytes(&sql, &[&target.table], deadline)?;
    rows.into_iter()
        .map(|row| {
            let mut values = row.into_iter();
            let key = parse_key(target, &mut values)?;
            let mut values = values.collect::<Option<Vec<_>>>()?.into_iter();
            let parse = |(&at, text): (&usize, Vec<u8>)| target.scalar(at).parse_text(&text);
            let partition = target
                .partition_by
                .iter()
                .zip(values.by_ref())
                .map(parse)
                .collect::<Option<_>>()?;
            let version = number(&values.next()?)?;
            Some(LiveKey { key, partition, version })
        })
        .collect::<Option<_>>()
        .ok_or_else(|| malformed(target))
}

/// A key from the texts of its columns.
pub(super) fn parse_key(
    target: &Target,
    values: &mut impl Iterator<Item = Option<Vec<u8>>>,
) -> Option<Key> {
    let parse = |&at: &usize| target.scalar(at).parse_text(&values.next()??);
    target.order_by.iter().map(parse).collect()
}

pub(super) fn text_of(target: &Target, column: usize) -> String {
    let spec = &target.columns[column];
    stored::expression(&spec.kind, &quote_name(&spec.name))
}

fn read_row(target: &Target, row: Vec<Option<Vec<u8>>>) -> Option<(Key, StoredRow)> {
    let mut values = row.into_iter();
    let key = parse_key(target, &mut values)?;
    let (version, is_deleted) = (values.next()??, values.next()??);
    let row = StoredRow {
        version: number(&version)?,
        is_deleted: number::<u64>(&is_deleted)? != 0,
        values: values.collect(),
    };
    Some((key, row))
}

pub(super) fn number<T: FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The keys of these rows as sets for `IN`.
fn row_sets(target: &Target, block: &Block, rows: impl IntoIterator<Item = usize>) -> Vec<String> {
    let of_columns = target.order_by.iter().map(|&at| target.scalar(at)).collect::<Vec<_>>();
    let values = rows
        .into_iter()
        .map(|row| target.order_by.iter().map(move |&at| block.value(at, row).unwrap_or_default()));
    key_sets(&of_columns, values, (LITERAL_BYTES_MAX, KEYS_MAX))
}

/// Keys as sets for `IN`, each of which has at most so many bytes and keys; a single key above the
/// limit makes a set of its own.
///
/// An array for each column: ClickHouse reads an array of constants at once, and a tuple of
/// constants as an expression each, which takes 20 times as long (measured with 26.9).
pub(super) fn key_sets<'k, V: Iterator<Item = &'k [u8]>>(
    of_columns: &[Scalar],
    all: impl IntoIterator<Item = V>,
    (bytes_max, keys_max): (usize, usize),
) -> Vec<String> {
    let mut sets = Vec::new();
    let (mut columns, mut bytes, mut keys) = (vec![String::new(); of_columns.len()], 0, 0);
    let mut close = |columns: &mut Vec<String>| {
        let lists = of_columns.iter().zip(columns.iter_mut());
        let arrays: Vec<String> =
            lists.map(|(scalar, list)| scalar.array_expression(&std::mem::take(list))).collect();
        let set = match arrays.as_slice() {
            [only] => only.clone(),
            several => format!("arrayZip({})", several.join(", ")),
        };
        sets.push(format!("SELECT arrayJoin({set})"));
    };
    for key in all {
        let values = of_columns.iter().zip(key);
        let literals = values.map(|(scalar, value)| scalar.literal(value, quote_bytes));
        let literals: Vec<String> = literals.collect();
        let more = literals.iter().map(|literal| literal.len() + 1).sum::<usize>();
        if keys_max <= keys || (0 < keys && bytes_max <= bytes + more) {
            close(&mut columns);
            (bytes, keys) = (0, 0);
        }
        for (literal, list) in literals.iter().zip(&mut columns) {
            if !list.is_empty() {
                list.push(',');
            }
            list.push_str(literal);
        }
        (bytes, keys) = (bytes + more, keys + 1);
    }
    if 0 < keys {
        close(&mut columns);
    }
    sets
}

pub(super) fn malformed(target: &Target) -> Error {
    Error::new(ErrorKind::Protocol, format!("read back rows of `{}`", target.table))
        .because("the answer does not hold what the query asks for")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::tombstone;
    use crate::services::mapping::Mapping;
    use crate::services::runs::Runs;

    fn block(target: &Target, count: usize, id: &str) -> Block {
        let present = vec![true; target.columns.len()];
        let mut block = Block::new(&target.columns, &Shape::of(present));
        for n in 0..count {
            let text = |text: &str| text.as_bytes().to_vec();
            let key: Vec<String> = match target.order_by.len() {
                1 => vec![format!("{id}{n}")],
                _ => ["o'1", "p", "e", "-5"]
                    .map(str::to_owned)
                    .into_iter()
                    .chain([format!("{id}{n}")])
                    .collect(),
            };
            let ticks = (-5_i64).to_le_bytes().to_vec();
            let value = |value: &String| if value == "-5" { ticks.clone() } else { text(value) };
            let key = key.iter().map(value).collect();
            let live = LiveKey { key, partition: Key::from_iter([&ticks]), version: 0 };
            tombstone::append(target, &mut block, &live, 1);
        }
        block
    }

    fn all_key_sets(target: &Target, block: &Block) -> Vec<String> {
        row_sets(target, block, 0..block.rows())
    }

    #[test]
    fn keys_are_asked_for_in_arrays_of_quoted_values() {
        let mapping = Runs { payloads: true, fingerprints: true };
        let [runs, payloads] = mapping.targets() else { panic!("two tables") };
        assert_eq!(
            all_key_sets(runs, &block(runs, 2, "r")),
            ["SELECT arrayJoin(arrayZip(['o\\'1','o\\'1'], ['p','p'], ['e','e'], \
              arrayMap(x -> reinterpret(CAST(x, 'Int64'), 'DateTime64(3)'), [-5,-5]), \
              ['r0','r1']))"]
        );
        assert_eq!(all_key_sets(payloads, &block(payloads, 1, "r")), ["SELECT arrayJoin(['r0'])"]);
        assert_eq!(all_key_sets(runs, &block(runs, 0, "r")), [""; 0]);
    }

    #[test]
    fn many_or_large_keys_make_several_statements() {
        let mapping = Runs { payloads: true, fingerprints: true };
        let [runs, payloads] = mapping.targets() else { panic!("two tables") };
        let large = "x".repeat(1_000);
        for (target, count, id) in [(runs, 5_000, "r"), (payloads, 4_001, "r"), (runs, 400, &large)]
        {
            let sets = all_key_sets(target, &block(target, count, id));
            assert!(1 < sets.len());
            assert!(sets.iter().all(|set| set.len() < 200 * 1024));
            let named: usize = sets.iter().map(|set| set.matches(id).count()).sum();
            assert!(count <= named, "{named}");
        }
    }
}
