//! The publication: made when it is missing, checked when it is there, never altered.
//!
//! What is checked is whatever would make changes go missing in silence. Each finding carries the
//! SQL that mends it; running it is left to the operator, whose publication it is.

use std::fmt::Write as _;
use std::time::Instant;

use serde_json::Value;

use super::source_table::{SourceTable, TableKind, TableName};
use super::sql::{Sql, SqlError, ident, literal, protocol};
use crate::error::{Error, ErrorKind, Result};

/// What has to be published.
#[derive(Debug, Clone, Copy)]
pub struct WantedPublication<'a> {
    pub publication: &'a str,
    pub table: &'a SourceTable,
    /// The columns that are mapped; all of them, the key included, have to be in a column list.
    pub columns: &'a [&'a str],
}

/// The last is not required: it is counted, not applied.
const ACTIONS: &str = "'insert, update, delete, truncate'";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ensured {
    Created,
    Existing,
}

/// Once it returns, the publication streams what is wanted; else the error says what it lacks.
pub fn ensure(sql: &mut Sql, wanted: &WantedPublication, deadline: Instant) -> Result<Ensured> {
    if let Some(found) = find(sql, wanted, deadline)? {
        return first(problems(&found, wanted)).map(|()| Ensured::Existing);
    }
    let doing = format!("create publication `{}`", wanted.publication);
    match sql.try_rows(&create_statement(wanted), deadline) {
        Ok(_) => Ok(Ensured::Created),
        // Another instance was faster; what it made is checked like any other.
        Err(error) if error.is("42710") || error.is("23505") => {
            match find(sql, wanted, deadline)? {
                Some(found) => first(problems(&found, wanted)).map(|()| Ensured::Existing),
                None => Err(error.doing(doing)),
            }
        }
        Err(error) if error.is("42501") => {
            let lacking = grants(sql, wanted, deadline).map_err(|error| error.doing(&doing))?;
            Err(error.with_hint(how_to_grant(&lacking, wanted)).doing(doing))
        }
        Err(error) => Err(error.doing(doing)),
    }
}

/// What [`ensure`] would say, all of it, without making anything. `None`: there is no publication,
/// and our role may make it.
pub fn look(
    sql: &mut Sql,
    wanted: &WantedPublication,
    deadline: Instant,
) -> Result<Option<Vec<Error>>> {
    if let Some(found) = find(sql, wanted, deadline)? {
        return Ok(Some(problems(&found, wanted)));
    }
    let doing = format!("create publication `{}`", wanted.publication);
    let lacking = grants(sql, wanted, deadline).map_err(|error| error.doing(&doing))?;
    if lacking.is_empty() {
        return Ok(None);
    }
    let error = Error::new(ErrorKind::Setup, doing)
        .because("it does not exist, and our role may not create it")
        .hint(how_to_grant(&lacking, wanted));
    Ok(Some(vec![error]))
}

fn first(problems: Vec<Error>) -> Result<()> {
    problems.into_iter().next().map_or(Ok(()), Err)
}

/// The statement that makes it, for `ensure` and for people who have the rights that we lack.
pub fn create_statement(wanted: &WantedPublication) -> String {
    let via_root = match wanted.table.kind {
        TableKind::Ordinary | TableKind::Other => "",
        // Else the partitions are streamed under their own names.
        TableKind::Partitioned => ", publish_via_partition_root = true",
    };
    format!(
        "CREATE PUBLICATION {} FOR TABLE {} \
         WITH (publish = {ACTIONS}{via_root})",
        ident(wanted.publication),
        wanted.table.rows()
    )
}

pub fn exists(sql: &mut Sql, publication: &str, deadline: Instant) -> Result<bool> {
    let doing = format!("look for publication `{publication}`");
    let query = format!("SELECT 1 FROM pg_publication WHERE pubname = {}", literal(publication));
    Ok(!sql.rows(&doing, &query, deadline)?.is_empty())
}

/// Whether the publication, or the table's entry in it, may have been made or altered after the
/// slot. Certain where it says no: of every transaction below its `catalog_xmin` the slot sees what
/// it has done. A publication that is missing is younger than any slot.
pub fn may_be_younger(
    sql: &mut Sql,
    publication: &str,
    table: &TableName,
    slot: &str,
    deadline: Instant,
) -> Result<bool> {
    let doing = format!("compare the age of publication `{publication}` with its slot's");
    let query = format!(
        "SELECT coalesce(bool_or(age(entry.xmin) BETWEEN 0 AND age(s.catalog_xmin)), true)
         FROM (SELECT p.xmin FROM pg_publication p WHERE p.pubname = {name}
               UNION ALL
               SELECT r.xmin FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
               WHERE p.pubname = {name} AND r.prrelid = to_regclass({table})) entry
         CROSS JOIN pg_replication_slots s WHERE s.slot_name = {slot}",
        name = literal(publication),
        table = literal(&table.quoted()),
        slot = literal(slot),
    );
    let rows = sql.rows(&doing, &query, deadline)?;
    let row = rows.first().ok_or_else(|| protocol("expected one row"));
    row.and_then(|row| row.bool(0)).map_err(|error| error.doing(doing))
}

/// True if there was one.
pub fn drop(sql: &mut Sql, publication: &str, deadline: Instant) -> Result<bool> {
    match sql.try_rows(&format!("DROP PUBLICATION {}", ident(publication)), deadline) {
        Ok(_) => Ok(true),
        Err(error) if error.is("42704") => Ok(false),
        Err(error) => {
            let error = match error.is("42501") {
                true => error.with_hint(format!(
                    "As its owner, or as a superuser, run: DROP PUBLICATION {};",
                    ident(publication)
                )),
                false => error,
            };
            Err(error.doing(format!("drop publication `{publication}`")))
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Found {
    insert: bool,
    update: bool,
    delete: bool,
    via_root: bool,
    /// The table itself or one of its partitions was put in, however it is streamed.
    includes_family: bool,
    tables: Vec<FoundTable>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FoundTable {
    name: TableName,
    /// `None` before Postgres 15, which has no column lists.
    columns: Option<Vec<String>>,
    has_row_filter: bool,
}

fn find(sql: &mut Sql, wanted: &WantedPublication, deadline: Instant) -> Result<Option<Found>> {
    let doing = format!("inspect publication `{}`", wanted.publication);
    // Rows of the view as JSON objects, since 14 lacks two of its columns. The view has the tables
    // of FOR ALL TABLES and of TABLES IN SCHEMA already.
    let query = format!(
        "SELECT row_to_json(answer) FROM (SELECT
           p.pubinsert, p.pubupdate, p.pubdelete, p.pubviaroot,
           EXISTS (SELECT 1 FROM pg_publication_rel r
                   WHERE r.prpubid = p.oid AND r.prrelid = {oid})
           OR EXISTS (SELECT 1 FROM pg_partition_tree({oid}) f
                      JOIN pg_class c ON c.oid = f.relid
                      JOIN pg_namespace n ON n.oid = c.relnamespace
                      JOIN pg_publication_tables t
                        ON t.schemaname = n.nspname AND t.tablename = c.relname
                      WHERE t.pubname = p.pubname) AS includes_family,
           (SELECT json_agg(row_to_json(t) ORDER BY t.schemaname, t.tablename)
              FROM pg_publication_tables t WHERE t.pubname = p.pubname) AS tables
         FROM pg_publication p WHERE p.pubname = {name}) answer",
        oid = wanted.table.oid,
        name = literal(wanted.publication),
    );
    let rows = sql.rows(&doing, &query, deadline)?;
    let Some(row) = rows.first() else { return Ok(None) };
    let value = row.json(0).map_err(|error| error.doing(&doing))?;
    match read(&value) {
        Some(found) => Ok(Some(found)),
        None => Err(protocol("the catalog's answer has an unexpected form").doing(doing)),
    }
}

fn read(value: &Value) -> Option<Found> {
    let flag = |field: &str| value.get(field).and_then(Value::as_bool);
    let tables = value.get("tables")?.as_array().map_or(&[][..], Vec::as_slice);
    let tables = tables.iter().map(|table| {
        let text = |field: &str| table.get(field).and_then(Value::as_str);
        let columns = table.get("attnames").and_then(Value::as_array);
        Some(FoundTable {
            name: TableName::new(text("schemaname")?, text("tablename")?),
            columns: columns
                .map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
            has_row_filter: text("rowfilter").is_some(),
        })
    });
    Some(Found {
        insert: flag("pubinsert")?,
        update: flag("pubupdate")?,
        delete: flag("pubdelete")?,
        via_root: flag("pubviaroot")?,
        includes_family: flag("includes_family")?,
        tables: tables.collect::<Option<_>>()?,
    })
}

/// Everything for which changes would go missing.
fn problems(found: &Found, wanted: &WantedPublication) -> Vec<Error> {
    let publication = ident(wanted.publication);
    let table = &wanted.table.name;
    let quoted = table.quoted();
    let mut problems = Vec::new();
    let mut refuse = |cause: String, sql: String| {
        let doing = format!("check publication `{}`", wanted.publication);
        let error = Error::new(ErrorKind::Setup, doing).because(cause);
        problems.push(error.hint(format!("Run: {sql}")));
    };
    let again = || {
        // In two transactions, what is written in between would not be streamed.
        format!(
            "BEGIN; ALTER PUBLICATION {publication} DROP TABLE {quoted}; \
             ALTER PUBLICATION {publication} ADD TABLE {quoted}; COMMIT;"
        )
    };
    let actions = [("insert", found.insert), ("update", found.update), ("delete", found.delete)];
    let named = |is: bool| -> Vec<&str> {
        actions.iter().filter(|action| action.1 == is).map(|action| action.0).collect()
    };
    if !named(false).is_empty() {
        refuse(
            format!(
                "it is missing required actions: expected [insert, update, delete], current [{}], \
                 missing [{}]",
                named(true).join(", "),
                named(false).join(", ")
            ),
            format!(
                "ALTER PUBLICATION {publication} \
                 SET (publish = 'insert, update, delete, truncate');"
            ),
        );
    }
    if wanted.table.kind == TableKind::Partitioned && found.includes_family && !found.via_root {
        refuse(
            format!("it publishes the partitions of `{table}` under their own names"),
            format!("ALTER PUBLICATION {publication} SET (publish_via_partition_root = true);"),
        );
        return problems;
    }
    let Some(member) = found.tables.iter().find(|member| member.name == *table) else {
        let cause = match found.tables.is_empty() {
            true => format!("it has no tables configured, expected table `{table}`"),
            false => format!(
                "it does not include the required table `{table}`; current tables: {}",
                list(&found.tables)
            ),
        };
        refuse(cause, format!("ALTER PUBLICATION {publication} ADD TABLE {quoted};"));
        return problems;
    };
    if member.has_row_filter {
        refuse(format!("it has a row filter on table `{table}`"), again());
    }
    if let Some(columns) = &member.columns {
        let missing: Vec<&str> = (wanted.columns.iter().copied())
            .filter(|wanted| !columns.iter().any(|column| column == wanted))
            .collect();
        if !missing.is_empty() {
            refuse(
                format!(
                    "its column list for table `{table}` is missing columns: {}",
                    missing.join(", ")
                ),
                again(),
            );
        }
    }
    problems
}

fn list(tables: &[FoundTable]) -> String {
    /// Enough to recognise the publication; one for all tables may have thousands.
    const SHOWN_MAX: usize = 10;
    let mut text = String::new();
    for (i, table) in tables.iter().take(SHOWN_MAX).enumerate() {
        let separator = if i == 0 { "" } else { ", " };
        let _ = write!(text, "{separator}`{}`", table.name);
    }
    if tables.len() > SHOWN_MAX {
        let _ = write!(text, " and {} more", tables.len() - SHOWN_MAX);
    }
    text
}

/// What gives our role what it lacks to create the publication; empty if it lacks nothing.
fn grants(
    sql: &mut Sql,
    wanted: &WantedPublication,
    deadline: Instant,
) -> std::result::Result<String, SqlError> {
    let rows = sql.try_rows(
        &format!(
            "SELECT has_database_privilege(current_database(), 'CREATE'),
                    pg_has_role(current_user, {}, 'USAGE')",
            literal(&wanted.table.owner)
        ),
        deadline,
    )?;
    let row = rows.first().ok_or_else(|| protocol("expected one row"))?;
    let about = sql.about();
    let (role, database) = (ident(&about.role), ident(&about.database));
    let mut lacking = String::new();
    if !row.bool(0)? {
        let _ = write!(lacking, " GRANT CREATE ON DATABASE {database} TO {role};");
    }
    if !row.bool(1)? {
        let _ = write!(lacking, " GRANT {} TO {role};", ident(&wanted.table.owner));
    }
    Ok(lacking)
}

fn how_to_grant(lacking: &str, wanted: &WantedPublication) -> String {
    let create = create_statement(wanted);
    match lacking.is_empty() {
        true => format!("Run as a superuser: {create};"),
        // Its owner may be a superuser, whose membership nobody should have to give away.
        false => format!(
            "Run as the owner of the table: {create}; or, to have it created at the start, \
             run:{lacking}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::source_table::testing;

    fn table(kind: TableKind) -> SourceTable {
        SourceTable { kind, ..testing::table(TableName::new("public", "TaskRun")) }
    }

    fn good() -> Found {
        Found {
            insert: true,
            update: true,
            delete: true,
            via_root: false,
            includes_family: true,
            tables: vec![FoundTable {
                name: TableName::new("public", "TaskRun"),
                columns: Some(vec!["id".into(), "status".into()]),
                has_row_filter: false,
            }],
        }
    }

    /// The line and the hint of the refusal, or nothing.
    fn refusal(kind: TableKind, change: impl FnOnce(&mut Found)) -> Option<(String, String)> {
        let table = table(kind);
        let wanted =
            WantedPublication { publication: "p", table: &table, columns: &["id", "status"] };
        let mut found = good();
        change(&mut found);
        let mut problems = problems(&found, &wanted).into_iter();
        let error = problems.next()?;
        assert!(problems.next().is_none(), "one change is one problem");
        assert_eq!(error.kind(), ErrorKind::Setup);
        Some((error.to_string(), error.hint_text().unwrap().to_owned()))
    }

    #[test]
    fn a_publication_with_what_is_wanted_passes() {
        assert_eq!(refusal(TableKind::Ordinary, |_| ()), None);
        assert_eq!(refusal(TableKind::Ordinary, |found| found.tables[0].columns = None), None);
        assert_eq!(refusal(TableKind::Partitioned, |found| found.via_root = true), None);
    }

    #[test]
    fn each_lack_is_named_with_the_sql_that_mends_it() {
        let (line, hint) = refusal(TableKind::Ordinary, |found| found.tables.clear()).unwrap();
        assert_eq!(
            line,
            "check publication `p`: it has no tables configured, expected table `public.TaskRun`"
        );
        assert_eq!(hint, "Run: ALTER PUBLICATION \"p\" ADD TABLE \"public\".\"TaskRun\";");

        let other = |found: &mut Found| found.tables[0].name.name = "taskrun".into();
        let (line, _) = refusal(TableKind::Ordinary, other).unwrap();
        assert!(line.ends_with("`public.TaskRun`; current tables: `public.taskrun`"), "{line}");

        let (line, hint) = refusal(TableKind::Ordinary, |found| found.delete = false).unwrap();
        assert!(line.ends_with("current [insert, update], missing [delete]"), "{line}");
        assert!(hint.contains("SET (publish = 'insert, update, delete, truncate')"), "{hint}");

        let filter = |found: &mut Found| found.tables[0].has_row_filter = true;
        assert!(refusal(TableKind::Ordinary, filter).unwrap().0.contains("row filter"));

        let columns = |found: &mut Found| found.tables[0].columns = Some(vec!["id".into()]);
        let (line, hint) = refusal(TableKind::Ordinary, columns).unwrap();
        assert!(line.ends_with("is missing columns: status"), "{line}");
        assert_eq!(
            hint,
            "Run: BEGIN; ALTER PUBLICATION \"p\" DROP TABLE \"public\".\"TaskRun\"; \
             ALTER PUBLICATION \"p\" ADD TABLE \"public\".\"TaskRun\"; COMMIT;"
        );

        let (_, hint) = refusal(TableKind::Partitioned, |_| ()).unwrap();
        assert!(hint.contains("publish_via_partition_root = true"), "{hint}");
    }

    #[test]
    fn all_lacks_are_told_at_once() {
        let table = table(TableKind::Ordinary);
        let wanted =
            WantedPublication { publication: "p", table: &table, columns: &["id", "status"] };
        let mut found = Found { insert: false, ..good() };
        found.tables[0].has_row_filter = true;
        found.tables[0].columns = Some(vec![]);
        let told: Vec<String> = problems(&found, &wanted).iter().map(Error::to_string).collect();
        assert_eq!(told.len(), 3, "{told:?}");
    }

    #[test]
    fn a_long_list_of_tables_is_cut() {
        let member = &good().tables[0];
        let text = list(&vec![member.clone(); 12]);
        assert!(text.ends_with("`public.TaskRun` and 2 more"), "{text}");
    }
}
