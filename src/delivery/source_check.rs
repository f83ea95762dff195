//! Whether the source can be streamed: checked at the start of a session, at each check during the
//! stream, and, for the table's columns, again before a repair reads it, since rows that the stream
//! is still to bring may have been written since.

use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::publication::{self, WantedPublication, WantedTable};
use crate::postgres::source_table::{OldRow, SourceTable, TableColumn, TableName};
use crate::postgres::sql::{Sql, ident};
use crate::services::source::Source;
use crate::wal::Oid;

/// The table, if it can be streamed, and its replica identity.
pub fn table(sql: &mut Sql, source: &Source, deadline: Instant) -> Result<(SourceTable, OldRow)> {
    let name = TableName::new(&*source.schema, &*source.table);
    let table = SourceTable::inspect(sql, &name, deadline)?;
    let old_row = table.old_row(&source.key_names())?;
    columns(&table, source)?;
    Ok((table, old_row))
}

/// What a start would refuse about the table or the publication as they are now. It creates
/// nothing: a start creates a missing publication.
pub fn refusal(
    sql: &mut Sql,
    publication: &str,
    source: &Source,
    deadline: Instant,
) -> Result<Option<Error>> {
    // A start fails by any set-up error as well.
    let refused = |error: Error| match error.kind() {
        ErrorKind::Setup => Ok(Some(error)),
        _ => Err(error),
    };
    let table = match table(sql, source, deadline) {
        Ok((table, _)) => table,
        Err(error) => return refused(error),
    };
    let columns = published_columns(&table, source);
    let tables = [WantedTable { table: &table, columns: &columns }];
    let wanted = WantedPublication { publication, tables: &tables, widen: false };
    match publication::look(sql, &wanted, deadline) {
        Ok(problems) => Ok(problems.and_then(|problems| problems.into_iter().next())),
        Err(error) => refused(error),
    }
}

/// The columns that the publication has to have.
pub fn published_columns<'s>(table: &SourceTable, source: &'s Source) -> Vec<&'s str> {
    (source.columns.iter())
        .filter(|column| !column.optional || table.column(&column.name).is_some())
        .map(|column| &*column.name)
        .collect()
}

/// Every column that is needed is there, and each is of a type that is understood.
pub fn columns(table: &SourceTable, source: &Source) -> Result<()> {
    column_problems(table, source).into_iter().next().map_or(Ok(()), Err)
}

/// Each column that is not.
pub fn column_problems(table: &SourceTable, source: &Source) -> Vec<Error> {
    let mut problems = Vec::new();
    let altered = |change: String| {
        format!(
            "Run: ALTER TABLE {} {change}; or install a version that knows the table as it is.",
            table.name.quoted()
        )
    };
    for column in &source.columns {
        let (name, type_name) = (ident(&column.name), column.kind.sql());
        let Some(found) = table.column(&column.name) else {
            if column.optional {
                continue;
            }
            problems.push(
                Error::new(ErrorKind::Setup, doing(table))
                    .because(format!("it has no column `{}`", column.name))
                    .hint(altered(format!("ADD COLUMN {name} {type_name}"))),
            );
            continue;
        };
        let (declared, reads_as) = (Oid(found.type_oid), found.reads_as());
        if !column.kind.accepts(declared, reads_as) {
            let underneath = match reads_as == Some(declared) {
                true => String::new(),
                false => format!(", underneath {}", found.pg_type.underlying().sql),
            };
            let cause = format!(
                "its column `{}` is {}{underneath}, expected {}",
                column.name, found.type_name, column.kind
            );
            let change =
                format!("ALTER COLUMN {name} TYPE {type_name} USING {name}::text::{type_name}");
            let error = Error::new(ErrorKind::Setup, doing(table)).because(cause);
            problems.push(error.hint(altered(change)));
        }
    }
    problems
}

/// The table is the same, with every column that it had. Columns may have been added: their values
/// came later, by the stream.
pub fn still_is(table: &SourceTable, before: &SourceTable, source: &Source) -> Result<()> {
    let refuse = |cause: String| {
        Err(Error::new(ErrorKind::Setup, doing(table)).because(cause).hint(
            "It was changed while the service runs. The stream will reach that change too; then \
             the service starts again with the table as it is.",
        ))
    };
    if table.oid != before.oid {
        return refuse("another table has taken its name".to_owned());
    }
    let same = |a: &TableColumn, b: &TableColumn| (a.number, a.type_oid) == (b.number, b.type_oid);
    for column in &source.columns {
        let Some(had) = before.column(&column.name) else { continue };
        if !table.column(&column.name).is_some_and(|has| same(has, had)) {
            return refuse(format!("its column `{}` has changed", column.name));
        }
    }
    Ok(())
}

fn doing(table: &SourceTable) -> String {
    format!("check table `{}`", table.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::postgres::source_table::testing;
    use crate::services::mapping::Mapping;
    use crate::services::sessions::Sessions;
    use crate::wal::pg_type::PgType;

    /// With every column of sessions, numbered in their order.
    fn table() -> SourceTable {
        let columns = Sessions.source().columns.iter().enumerate().map(|(at, column)| {
            let oid = (1..10_000)
                .find(|oid| column.kind.accepts(Oid(*oid), Some(Oid(*oid))))
                .unwrap_or(25);
            TableColumn {
                number: i16::try_from(at).unwrap() + 1,
                ..testing::column(&column.name, Oid(oid))
            }
        });
        let columns = columns.collect();
        SourceTable { columns, ..testing::table(TableName::new("public", "Session")) }
    }

    fn place(table: &SourceTable, name: &str) -> usize {
        table.columns.iter().position(|column| column.name == name).unwrap()
    }

    #[test]
    fn a_column_that_is_needed_must_be_there_and_of_its_type() {
        let source = Sessions.source();
        columns(&table(), source).unwrap();
        let mut without = table();
        let id = place(&without, "id");
        without.columns.remove(id);
        let error = columns(&without, source).unwrap_err();
        assert!(error.to_string().contains("no column `id`"), "{error}");
        let mut other = table();
        let set = |column: &mut TableColumn, of: PgType| {
            (column.type_oid, column.pg_type) = (of.oid.0, Arc::new(of));
        };
        set(&mut other.columns[id], PgType::built_in(Oid(600), "x", -1));
        assert!(columns(&other, source).unwrap_err().to_string().contains("`id` is x, expected"));
        // A user-defined type counts as its underlying type.
        let own = PgType::built_in(Oid(20_000), "x", -1);
        set(&mut other.columns[id], PgType { sends_text: true, ..own.clone() });
        columns(&other, source).unwrap();
        set(&mut other.columns[id], own);
        let error = columns(&other, source).unwrap_err().to_string();
        assert!(error.contains("`id` is x, underneath x, expected text"), "{error}");
    }

    #[test]
    fn a_table_that_only_grew_still_is_what_it_was() {
        let (source, before) = (Sessions.source(), table());
        still_is(&before, &before, source).unwrap();
        let mut grown = table();
        grown.columns.push(TableColumn {
            name: "new".into(),
            number: 99,
            ..grown.columns[0].clone()
        });
        still_is(&grown, &before, source).unwrap();
        still_is(&before, &grown, source).unwrap();

        let tags = place(&before, "tags");
        for change in [
            |column: &mut TableColumn| column.name = "renamed".into(),
            |column: &mut TableColumn| column.number += 50,
            |column: &mut TableColumn| column.type_oid += 1,
        ] {
            let mut changed = table();
            change(&mut changed.columns[tags]);
            let error = still_is(&changed, &before, source).unwrap_err();
            assert!(error.to_string().contains("`tags` has changed"), "{error}");
        }
        let other = SourceTable { oid: 2, ..table() };
        assert!(still_is(&other, &before, source).is_err());
    }
}
