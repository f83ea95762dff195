//! Reads rows of a table in the order of its key, page by page, during writes.
//!
//! It uses the index of the key, so that the last key of a page leads to the next one. Each page
//! has its own snapshot, taken when the table is locked, as in
//! [`table_reader`](super::table_reader): a long one would hold back VACUUM.

use std::time::Instant;

use super::source_table::SourceTable;
use super::sql::{Sql, SqlError, Texts, ident, literal, protocol};
use super::table_reader::{AS_OF, AsOf, PageRows};
use crate::error::{ErrorKind, Result};

#[derive(Debug, Clone, Copy)]
pub struct KeysRequest<'a> {
    /// As it was looked at; another one of that name is an error.
    pub table: &'a SourceTable,
    pub key_column: &'a str,
    pub columns: &'a [&'a str],
    pub wanted: &'a WantedKeys<'a>,
    /// The keys above this one; `None`: from the first.
    pub after: Option<&'a str>,
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
    pub keys: Option<&'a [String]>,
}

/// The next page; a row stands behind its key.
pub fn page(sql: &mut Sql, request: &KeysRequest, deadline: Instant) -> Result<PageRows<String>> {
    read_in_snapshot(sql, request, deadline).map_err(|error| {
        sql.roll_back(deadline);
        error.doing(format!("read table `{}` by key", request.table.name))
    })
}

/// How many rows there are, about: what the planner thinks.
pub fn estimate(
    sql: &mut Sql,
    table: &SourceTable,
    key_column: &str,
    wanted: &WantedKeys<'_>,
    deadline: Instant,
) -> Result<u64> {
    let doing = format!("estimate the rows of table `{}`", table.name);
    let condition = condition(key_column, wanted, None, sql.texts());
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
) -> std::result::Result<PageRows<String>, SqlError> {
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
    PageRows::new(AsOf::read(row, 1)?, sql.texts()).fetch(
        sql,
        limits,
        |key| Ok(key.to_owned()),
        deadline,
    )
}

fn select(request: &KeysRequest, texts: Texts) -> String {
    let key_column = ident(request.key_column);
    let mut statement = format!("SELECT {}", texts.column(request.key_column));
    for column in request.columns {
        statement.push_str(", ");
        statement.push_str(&texts.column(column));
    }
    statement.push_str(&format!(
        " FROM {}{} ORDER BY {key_column} LIMIT {}",
        request.table.rows(),
        condition(request.key_column, request.wanted, request.after, texts),
        // One more, so that the end is seen.
        request.rows_max.saturating_add(1)
    ));
    statement
}

/// Untyped literals take the type of their column.
fn condition(
    key_column: &str,
    wanted: &WantedKeys<'_>,
    after: Option<&str>,
    texts: Texts,
) -> String {
    let key = ident(key_column);
    let list =
        |values: &mut dyn Iterator<Item = &str>| values.map(literal).collect::<Vec<_>>().join(", ");
    let mut all = Vec::new();
    // As it came, and so what the database holds.
    let after = after.and_then(|after| texts.literal(&texts.bytes(after)));
    all.extend(after.map(|after| format!("{key} > {after}")));
    if let Some(keys) = wanted.keys {
        all.push(format!("{key} IN ({})", list(&mut keys.iter().map(String::as_str))));
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
        let keys = ["k'1".to_owned(), "k2".to_owned()];
        let wanted = WantedKeys {
            from: Some(("createdAt", "2026-01-01T00:00:00".to_owned())),
            to: Some(("createdAt", "2026-02-01T00:00:00".to_owned())),
            one_of: Some(("status", &["A", "B'"])),
            keys: Some(&keys),
        };
        let request = KeysRequest {
            table: &table,
            key_column: "i\"d",
            columns: &["a"],
            wanted: &wanted,
            after: Some("x'"),
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
        let wanted = WantedKeys::default();
        let all = KeysRequest { wanted: &wanted, after: None, ..request };
        assert!(
            select(&all, Texts::default())
                .ends_with("FROM ONLY \"s\".\"t\"\"1\" ORDER BY \"i\"\"d\" LIMIT 11")
        );
    }
}
