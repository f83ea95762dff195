//! Compares both sides in full: every column of every row, by key, as FINAL shows them.
//!
//! What is expected is computed from Postgres by SQL, and documents are compared value by value
//! after what ClickHouse is known to do with them ([`super::document`]). Nothing here uses
//! walhouse's own code: a mistake there must not be made here again. Three things are not seen:
//! whether a fingerprint of a message with ids, paths or the like is the right one (its rules have
//! their own tests), the exact `_version`, and, in a payload table that is a plain MergeTree,
//! deleted and repeated rows.

mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

use serde_json::Value;

use tables::{Column, Kind, Table};

use super::database::Database;
use super::document;
use super::warehouse::{DATABASE, Warehouse};

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    pub runs: bool,
    pub payloads: bool,
    pub sessions: bool,
    pub webhooks: bool,
}

impl Scope {
    const NOTHING: Scope = Scope { runs: false, payloads: false, sessions: false, webhooks: false };
    pub const ALL: Scope = Scope { sessions: true, ..Scope::RUNS };
    pub const RUNS: Scope = Scope { runs: true, payloads: true, ..Scope::NOTHING };
    /// For runs whose payload may be another than that of their INSERT.
    pub const RUNS_WITHOUT_PAYLOADS: Scope = Scope { runs: true, ..Scope::NOTHING };
    pub const SESSIONS: Scope = Scope { sessions: true, ..Scope::NOTHING };
    pub const WEBHOOKS: Scope = Scope { webhooks: true, ..Scope::NOTHING };
}

/// What the two sides do not agree on.
#[derive(Debug, Default)]
pub struct Report {
    /// Rows that Postgres has and that should be in ClickHouse, over all tables.
    pub rows: usize,
    pub differences: Vec<Difference>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    pub table: &'static str,
    pub key: String,
    pub what: What,
}

#[derive(Debug, PartialEq, Eq)]
pub enum What {
    Lost,
    /// Postgres does not have it (any more), or it should never have been sent.
    Extra,
    /// This often, FINAL notwithstanding.
    Repeated(usize),
    Wrong {
        column: &'static str,
        expected: String,
        found: String,
    },
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.differences.is_empty()
    }

    /// `table key column` of each wrong value, `table key lost` and so on of each other difference.
    pub fn names(&self) -> Vec<String> {
        let name = |d: &Difference| {
            let what = match &d.what {
                What::Lost => "lost",
                What::Extra => "extra",
                What::Repeated(_) => "repeated",
                What::Wrong { column, .. } => column,
            };
            format!("{} {} {what}", d.table, d.key)
        };
        self.differences.iter().map(name).collect()
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_MAX: usize = 40;
        writeln!(f, "{} rows compared, {} differences", self.rows, self.differences.len())?;
        for Difference { table, key, what } in self.differences.iter().take(SHOWN_MAX) {
            match what {
                What::Wrong { column, expected, found } => {
                    writeln!(f, "{table} {key}: `{column}` is {found}, expected {expected}")?;
                }
                other => writeln!(f, "{table} {key}: {other:?}")?,
            }
        }
        Ok(())
    }
}

/// Fails with the differences, if there are any. Returns how many rows there were.
#[track_caller]
pub fn assert_same(postgres: &Database, clickhouse: &Warehouse, scope: Scope) -> usize {
    let report = compare(postgres, clickhouse, scope);
    assert!(report.is_clean(), "{report}");
    report.rows
}

#[track_caller]
pub fn compare(postgres: &Database, clickhouse: &Warehouse, scope: Scope) -> Report {
    let mut report = Report::default();
    if scope.runs {
        compare_table(&tables::runs(), postgres, clickhouse, &mut report);
    }
    if scope.payloads {
        compare_table(&tables::payloads(), postgres, clickhouse, &mut report);
    }
    if scope.sessions {
        compare_table(&tables::sessions(), postgres, clickhouse, &mut report);
    }
    if scope.webhooks {
        compare_table(&tables::webhooks(), postgres, clickhouse, &mut report);
    }
    report
}

type Row = Vec<Option<String>>;

fn compare_table(table: &Table, postgres: &Database, clickhouse: &Warehouse, report: &mut Report) {
    let present: BTreeSet<String> = clickhouse
        .rows(&format!(
            "SELECT name FROM system.columns WHERE database = '{DATABASE}' AND table = '{}'",
            table.name
        ))
        .into_iter()
        .filter_map(|row| Some(row.first()?.as_str()?.to_owned()))
        .collect();
    for column in &table.columns {
        assert!(
            column.optional || present.contains(column.name),
            "`{}` has no column `{}`",
            table.name,
            column.name
        );
    }
    let columns: Vec<&Column> =
        table.columns.iter().filter(|column| present.contains(column.name)).collect();
    let expected = expected_rows(table, &columns, postgres);
    let replaces = clickhouse
        .value(&format!(
            "SELECT engine FROM system.tables WHERE database = '{DATABASE}' AND name = '{}'",
            table.name
        ))
        .ends_with("ReplacingMergeTree");
    let found = found_rows(table, &columns, clickhouse, replaces);

    report.rows += expected.len();
    let mut differ = |key: &str, what| {
        report.differences.push(Difference { table: table.name, key: key.to_owned(), what });
    };
    for (key, expected) in &expected {
        let Some(found) = found.get(key) else {
            differ(key, What::Lost);
            continue;
        };
        if replaces && found.len() != 1 {
            differ(key, What::Repeated(found.len()));
        }
        // Of repeated rows one may be the right one; without versions nobody knows which is last.
        let wrong = found.iter().map(|found| wrong_columns(&columns, expected, found));
        for (at, expected, found) in wrong.min_by_key(Vec::len).unwrap_or_default() {
            differ(key, What::Wrong { column: columns[at].name, expected, found });
        }
    }
    for key in found.keys().filter(|key| replaces && !expected.contains_key(*key)) {
        differ(key, What::Extra);
    }
}

fn expected_rows(table: &Table, columns: &[&Column], postgres: &Database) -> BTreeMap<String, Row> {
    let list: Vec<&str> = columns.iter().map(|column| column.postgres.as_str()).collect();
    let sql = format!(
        "SELECT \"id\", {} FROM public.\"{}\" WHERE {}",
        list.join(", "),
        table.source,
        table.condition
    );
    let rows = postgres.rows(&sql).into_iter().map(|mut row| {
        let key = row.remove(0).expect("the key is not null");
        (key, row)
    });
    rows.collect()
}

fn found_rows(
    table: &Table,
    columns: &[&Column],
    clickhouse: &Warehouse,
    replaces: bool,
) -> BTreeMap<String, Vec<Row>> {
    let list: Vec<&str> = columns.iter().map(|column| column.clickhouse.as_str()).collect();
    let sql = format!(
        "SELECT {}, {} FROM {DATABASE}.{} {}",
        table.key,
        list.join(", "),
        table.name,
        if replaces { "FINAL" } else { "" }
    );
    let mut found: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for row in clickhouse.rows(&sql) {
        let mut values = row.into_iter().map(|value| match value {
            Value::String(text) => Some(text),
            Value::Null => None,
            other => panic!("every column is asked for as text: {other}"),
        });
        let key = values.next().flatten().expect("the key is not null");
        found.entry(key).or_default().push(values.collect());
    }
    found
}

/// The place of each column that differs, and both values as text that can be read.
fn wrong_columns(columns: &[&Column], expected: &Row, found: &Row) -> Vec<(usize, String, String)> {
    let mut wrong = Vec::new();
    for (at, column) in columns.iter().enumerate() {
        let (expected, found) = (
            comparable(column.kind, &expected[at], true),
            comparable(column.kind, &found[at], false),
        );
        let same = match column.kind {
            Kind::Fingerprint if expected == "?" => is_fingerprint(&found),
            _ => expected == found,
        };
        if !same {
            wrong.push((at, shortened(&expected, &found), shortened(&found, &expected)));
        }
    }
    wrong
}

fn comparable(kind: Kind, value: &Option<String>, from_postgres: bool) -> String {
    const NULL: &str = "null";
    match (kind, value) {
        (Kind::Document, value) if from_postgres => document::expected(value.as_deref()),
        (_, None) => NULL.to_owned(),
        (Kind::Document, Some(text)) => document::found(text),
        (Kind::Array, Some(text)) => {
            let array: Value = serde_json::from_str(text).expect("both sides write JSON");
            array.to_string()
        }
        // Told from null and from each other by their quotes.
        (Kind::Text, Some(text)) => format!("'{text}'"),
        (Kind::Fingerprint, Some(text)) => text.clone(),
    }
}

fn is_fingerprint(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A long value from a little before where it differs from the other.
fn shortened(value: &str, other: &str) -> String {
    const SHOWN_MAX: usize = 160;
    let same = value.chars().zip(other.chars()).take_while(|(a, b)| a == b).count();
    let start = same.saturating_sub(40);
    let shown: String = value.chars().skip(start).take(SHOWN_MAX).collect();
    let before = if 0 < start { "..." } else { "" };
    let after = if value.chars().count() > start + SHOWN_MAX { "..." } else { "" };
    format!("{before}{shown}{after}")
}
