//! The source table, its replica identity, and the publication.

use super::step;
use crate::config::ServiceConfig;
use crate::delivery::source_check::{column_problems, published_columns};
use crate::delivery::target_tables::mapping;
use crate::delivery::unfilled;
use crate::finding::Finding;
use crate::postgres::publication::{self, WantedPublication, WantedTable};
use crate::postgres::source_table::{OldRow, SourceTable, TableKind, TableName};
use crate::postgres::sql::Sql;
use crate::postgres::survey::{self, PostgresFacts, judge};

/// The hint for a column that this version does not know.
pub(super) const UNFILLED: &str = "Nothing is lost in Postgres. Install a version of walhouse that \
                                   knows the column, if trigger.dev's own replication fills it.";

const AGAIN: &str = "Run `walhouse check` again; if the problem persists, see Postgres's log.";

pub(super) fn look(
    sql: &mut Sql,
    service: &ServiceConfig,
    facts: &PostgresFacts,
    found: &mut Vec<Finding>,
) {
    let mapping = mapping(service);
    let source = mapping.source();
    let name = TableName::new(&*source.schema, &*source.table);
    let table = match SourceTable::inspect(sql, &name, step()) {
        Ok(table) => table,
        Err(error) => {
            let hint = format!("Make {} a table, or point DATABASE_URL at its database.", name);
            found.push(Finding::of_error("table", &error, &hint));
            return;
        }
    };
    let before = found.len();
    match survey::access(sql, table.oid, &source.schema, step()) {
        Ok(access) => {
            found.extend(judge::access(facts, &access, &source.schema, &name.quoted()));
        }
        Err(error) => found.push(Finding::of_error("table", &error, AGAIN)),
    }
    if let Err(error) = table.check_readable(&facts.role) {
        found.push(Finding::of_error("table", &error, AGAIN));
    }
    for error in column_problems(&table, source) {
        found.push(Finding::of_error("table", &error, AGAIN));
    }
    let text = |text| Finding::warning("columns", text, UNFILLED);
    let is_whole = found.len() == before;
    found.extend(unfilled::of_source(&table, source).into_iter().map(text));
    if is_whole {
        let kind = match table.kind {
            TableKind::Ordinary | TableKind::Other => String::new(),
            TableKind::Partitioned => format!(", in {} partitions", table.parts.len()),
        };
        let text = format!("{} has every column with its type{kind}", name.quoted());
        found.push(Finding::ok("table", text));
    }
    identity(&table, &source.key_names(), found);
    publication(sql, service, &table, &published_columns(&table, source), found);
}

fn identity(table: &SourceTable, key: &[&str], found: &mut Vec<Finding>) {
    const ABOUT: &str = "replica identity";
    let (old_row, problems) = table.old_rows(key);
    for error in &problems {
        found.push(Finding::of_error(ABOUT, error, AGAIN));
    }
    if problems.is_empty() {
        found.push(Finding::ok(
            ABOUT,
            match old_row {
                OldRow::Whole => "FULL: the stream has every old row",
                OldRow::KeyOnly => {
                    "the key: large values that an update leaves alone are read again from the \
                     table, and FULL would stream them"
                }
            },
        ));
    }
}

fn publication(
    sql: &mut Sql,
    service: &ServiceConfig,
    table: &SourceTable,
    columns: &[&str],
    found: &mut Vec<Finding>,
) {
    const ABOUT: &str = "publication";
    let name = &service.publication;
    let tables = [WantedTable { table, columns }];
    let wanted = WantedPublication { publication: name, tables: &tables, widen: false };
    match publication::look(sql, &wanted, step()) {
        Err(error) => found.push(Finding::of_error(ABOUT, &error, AGAIN)),
        Ok(None) => {
            let text = format!(
                "publication `{name}` does not exist yet: walhouse creates it when it starts"
            );
            found.push(Finding::ok(ABOUT, text));
        }
        Ok(Some(problems)) if problems.is_empty() => {
            let text = format!("publication `{name}` has all of {}", table.name.quoted());
            found.push(Finding::ok(ABOUT, text));
        }
        Ok(Some(problems)) => {
            found.extend(problems.iter().map(|error| Finding::of_error(ABOUT, error, AGAIN)));
        }
    }
}
