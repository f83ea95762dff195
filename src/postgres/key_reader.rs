//! Reads rows of a table in the order of its key, page by page, during writes.
//!
//! It uses the index of the key, so that the last key of a page leads to the next one. Each page
//! has its own snapshot, taken when the table is locked, as in
//! [`table_reader`](super::table_reader): a long one would hold back VACUUM.

use std::time::Instant;

use super::source_table::SourceTable;
use super::sql::{Sql, SqlError, SqlRow, Texts, ident, literal, protocol};
use super::table_reader::{AS_OF, AsOf, PageRows};
use crate::error::{ErrorKind, Result};
use crate::wal::row_key::KeyText;

#[derive(Debug, Clone, Copy)]
pub struct KeysRequest<'a> {
    /// As it was looked at; another one of that name is an error.
    pub table: &'a SourceTable,
    pub key_columns: &'a [&'a str],
    pub columns: &'a [&'a str],
    pub wanted: &'a WantedKeys<'a>,
    /// The keys above this one; `None`: from the first.
    pub after: Option<&'a KeyText>,
    /// Stop once the values take this many bytes, or there are this many rows.
    pub bytes_max: usize,
    pub rows_max: usize,
}

/// Which rows, of all there are.
#[derive(Debug, Clone, Default)]
pub struct WantedKeys<'a> {
    /// A column whose value is not below the one, and below the other.
    pub from: Option<(&'a str, String)>,
    pub to: Option<(&'a str, String)>,
    /// A column that has one of these values.
    pub one_of: Option<(&'a str, &'a [&'a str])>,
    /// Keys that are wanted, if not all.
    pub keys: Option<&'a [KeyText]>,
}

/// The next page; a row stands behind its key.
pub fn page(sql: &mut Sql, request: &KeysRequest, deadline: Instant) -> Result<PageRows<KeyText>> {
    read_in_snapshot(sql, request, deadline).map_err(|error| {
        sql.roll_back(deadline);
        error.doing(format!("read table `{}` by key", request.table.name))
    })
}

/// How many rows there are, about: what the planner thinks.
pub fn estimate(
    sql: &mut Sql,
    table: &SourceTable,
    key_columns: &[&str],
    wanted: &WantedKeys<'_>,
    deadline: Instant,
) -> Result<u64> {
    let doing = format!("estimate the rows of table `{}`", table.name);
    let condition = condition(key_columns, wanted, None, sql.texts());
    let query = format!("EXPLAIN (FORMAT JSON) SELECT 1 FROM {}{condition}", table.rows());
    let rows = sql.rows(&doing, &query, deadline)?;
    let row = rows.first().ok_or_else(|| protocol("expected a plan").doing(&doing))?;
    let plan = row.json(0).map_err(|error| error.doing(&doing))?;
    Ok(plan[0]["Plan"]["Plan Rows"].as_f64().map_or(0, |rows| rows as u64))
}

fn read_in_snapshot(
    sql: &mut Sql,
    request: &KeysRequest,
    deadline: Instant,
) -> std::result::Result<PageRows<KeyText>, SqlError> {
    // A cursor, so that the server sends no row that does not fit. The LSNs need their own
    // statement: the one that takes the snapshot might read them before it.
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE {} IN ACCESS SHARE MODE;
         DECLARE page NO SCROLL CURSOR FOR {};
         SELECT to_regclass({})::oid::int8, {AS_OF}",
        request.table.rows(),
        select(request, sql.texts()),
        literal(&request.table.name.quoted())
    );
    let rows = sql.try_rows(&begin, deadline)?;
    let row = rows.first().ok_or_else(|| protocol("expected one row about the snapshot"))?;
    let table_oid: Option<u32> = row.parse_nullable(0)?;
    if table_oid != Some(request.table.oid) {
        return Err(SqlError::new(ErrorKind::Setup, "another table has taken its name"));
    }
    let limits = (request.bytes_max, request.rows_max);
    let (texts, columns) = (sql.texts(), request.key_columns.len());
    let key = |row: &SqlRow| {
        (0..columns).map(|at| Ok(texts.bytes(row.required(at)?).into_owned())).collect()
    };
    PageRows::new(AsOf::read(row, 1)?, texts, columns).fetch(sql, limits, key, deadline)
}

fn select(request: &KeysRequest, texts: Texts) -> String {
    let columns = request.key_columns.iter().chain(request.columns);
    let columns: Vec<String> = columns.map(|column| texts.column(column)).collect();
    let order: Vec<String> = request.key_columns.iter().map(|column| ident(column)).collect();
    let mut statement = format!("SELECT {}", columns.join(", "));
    statement.push_str(&format!(
        " FROM {}{} ORDER BY {} LIMIT {}",
        request.table.rows(),
        condition(request.key_columns, request.wanted, request.after, texts),
        order.join(", "),
        // One more, so that the end is seen.
        request.rows_max.saturating_add(1)
    ));
    statement
}

/// One as it is, several as a row.
fn tuple(values: impl Iterator<Item = String>) -> String {
    let values: Vec<String> = values.collect();
    match values.as_slice() {
        [only] => only.clone(),
        several => format!("({})", several.join(", ")),
    }
}

/// Untyped literals take the type of their column.
fn condition(
    key_columns: &[&str],
    wanted: &WantedKeys<'_>,
    after: Option<&KeyText>,
    texts: Texts,
) -> String {
    let key = tuple(key_columns.iter().map(|column| ident(column)));
    // As they came, and so what the database holds.
    let literals = |key: &KeyText| {
        let literals = key.iter().map(|value| texts.literal(value));
        literals.collect::<Option<Vec<String>>>().map(|literals| tuple(literals.into_iter()))
    };
    let list =
        |values: &mut dyn Iterator<Item = &str>| values.map(literal).collect::<Vec<_>>().join(", ");
    let mut all = Vec::new();
    all.extend(after.and_then(literals).map(|after| format!("{key} > {after}")));
    if let Some(keys) = wanted.keys {
        let keys: Vec<String> = keys.iter().filter_map(literals).collect();
        all.push(format!("{key} IN ({})", keys.join(", ")));
    }
    if let Some((column, from)) = &wanted.from {
        all.push(format!("{} >= {}", ident(column), literal(from)));
    }
    if let Some((column, to)) = &wanted.to {
        all.push(format!("{} < {}", ident(column), literal(to)));
    }
    if let Some((column, values)) = wanted.one_of {
        // An enum may not know all of them.
        all.push(format!("{}::text IN ({})", ident(column), list(&mut values.iter().copied())));
    }
    if all.is_empty() { String::new() } else { format!(" WHERE {}", all.join(" AND ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::source_table::{TableName, testing};

    #[test]
    fn every_name_and_value_is_quoted() {
        let table = testing::table(TableName::new("s", "t\"1"));
        let key = |text: &str| vec![text.as_bytes().to_vec()];
        let keys = [key("k'1"), key("k2")];
        let wanted = WantedKeys {
            from: Some(("createdAt", "2026-01-01T00:00:00".to_owned())),
            to: Some(("createdAt", "2026-02-01T00:00:00".to_owned())),
            one_of: Some(("status", &["A", "B'"])),
            keys: Some(&keys),
        };
        let request = KeysRequest {
            table: &table,
            key_columns: &["i\"d"],
            columns: &["a"],
            wanted: &wanted,
            after: Some(&key("x'")),
            bytes_max: 1,
            rows_max: 10,
        };
        assert_eq!(
            select(&request, Texts::default()),
            "SELECT \"i\"\"d\", \"a\" FROM ONLY \"s\".\"t\"\"1\" WHERE \"i\"\"d\" > 'x''' \
             AND \"i\"\"d\" IN ('k''1', 'k2') AND \"createdAt\" >= '2026-01-01T00:00:00' AND \
             \"createdAt\" < '2026-02-01T00:00:00' AND \"status\"::text IN ('A', 'B''') \
             ORDER BY \"i\"\"d\" LIMIT 11"
        );
        let (wanted, both) = (WantedKeys::default(), vec![b"x".to_vec(), b"7".to_vec()]);
        let of_two = KeysRequest {
            key_columns: &["a", "b"],
            wanted: &wanted,
            after: Some(&both),
            ..request
        };
        assert_eq!(
            select(&of_two, Texts::default()),
            "SELECT \"a\", \"b\", \"a\" FROM ONLY \"s\".\"t\"\"1\" \
             WHERE (\"a\", \"b\") > ('x', '7') ORDER BY \"a\", \"b\" LIMIT 11"
        );
        let all = KeysRequest { wanted: &wanted, after: None, ..request };
        assert!(
            select(&all, Texts::default())
                .ends_with("FROM ONLY \"s\".\"t\"\"1\" ORDER BY \"i\"\"d\" LIMIT 11")
        );
    }
}
