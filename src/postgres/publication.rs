//! The publication: made when it is missing, widened where that is wanted, never narrowed.
//!
//! What is checked is whatever would make changes go missing in silence. Each finding carries the
//! SQL that mends it; running it is left to the operator, whose publication it is.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::time::Instant;

use super::source_table::{SourceTable, TableKind, TableName};
use super::sql::{Sql, SqlError, ident, literal, protocol};
use super::tables::{Published, PublishedTable, published};
use crate::error::{Error, ErrorKind, Result};

/// What has to be published.
#[derive(Debug, Clone, Copy)]
pub struct WantedPublication<'a> {
    pub publication: &'a str,
    pub tables: &'a [WantedTable<'a>],
    /// Tables that it lacks are added.
    pub widen: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct WantedTable<'a> {
    pub table: &'a SourceTable,
    /// The columns that are mapped; all of them, the key included, have to be in a column list.
    pub columns: &'a [&'a str],
}

/// The last is not required: it is counted, not applied.
const ACTIONS: &str = "'insert, update, delete, truncate'";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ensured {
    Created,
    Existing,
    /// By these tables.
    Widened(Vec<TableName>),
}

/// Once it returns, the publication streams what is wanted; else the error says what it lacks.
pub fn ensure(sql: &mut Sql, wanted: &WantedPublication, deadline: Instant) -> Result<Ensured> {
    let found = published(sql, wanted.publication, deadline)?;
    let Some(statement) = statement(found.as_ref(), wanted) else {
        let found = found.unwrap_or_default();
        return first(problems(&found, wanted)).map(|()| Ensured::Existing);
    };
    let (done, doing) = match &found {
        None => (Ensured::Created, format!("create publication `{}`", wanted.publication)),
        Some(found) => {
            let names = missing(found, wanted).iter().map(|table| table.name.clone()).collect();
            (Ensured::Widened(names), format!("widen publication `{}`", wanted.publication))
        }
    };
    match sql.try_rows(&statement, deadline) {
        Ok(_) if done == Ensured::Created => return Ok(done),
        Ok(_) => {}
        // Another instance was faster; what it made is checked like any other.
        Err(error) if error.is("42710") || error.is("23505") => {
            return match published(sql, wanted.publication, deadline)? {
                Some(found) => first(problems(&found, wanted)).map(|()| Ensured::Existing),
                None => Err(error.doing(doing)),
            };
        }
        Err(error) if error.is("42501") => {
            let lacking = lacking(sql, found.is_none(), wanted, deadline);
            let lacking = lacking.map_err(|error| error.doing(&doing))?;
            return Err(error.with_hint(how_to_grant(&lacking, &statement, wanted)).doing(doing));
        }
        Err(error) => return Err(error.doing(doing)),
    }
    let found = published(sql, wanted.publication, deadline)?.unwrap_or_default();
    first(problems(&found, wanted)).map(|()| done)
}

/// What [`ensure`] would say, all of it, without making anything. `None`: there is no publication,
/// and our role may make it.
pub fn look(
    sql: &mut Sql,
    wanted: &WantedPublication,
    deadline: Instant,
) -> Result<Option<Vec<Error>>> {
    if let Some(found) = published(sql, wanted.publication, deadline)? {
        return Ok(Some(problems(&found, wanted)));
    }
    let doing = format!("create publication `{}`", wanted.publication);
    let lacking = lacking(sql, true, wanted, deadline).map_err(|error| error.doing(&doing))?;
    if lacking.is_empty() {
        return Ok(None);
    }
    let statement = create_statement(wanted);
    let error = Error::new(ErrorKind::Setup, doing)
        .because("it does not exist, and our role may not create it")
        .hint(how_to_grant(&lacking, &statement, wanted));
    Ok(Some(vec![error]))
}

fn first(problems: Vec<Error>) -> Result<()> {
    problems.into_iter().next().map_or(Ok(()), Err)
}

/// What [`ensure`] runs, and what people run who have the rights that we lack. `None`: nothing.
pub fn statement(found: Option<&Published>, wanted: &WantedPublication) -> Option<String> {
    let Some(found) = found else { return Some(create_statement(wanted)) };
    let missing = missing(found, wanted);
    (wanted.widen && !missing.is_empty()).then(|| {
        format!("ALTER PUBLICATION {} ADD TABLE {}", ident(wanted.publication), rows(&missing))
    })
}

/// Without the option, partitions are streamed under their own names, and it has to be there before
/// the first partitioned table is.
fn create_statement(wanted: &WantedPublication) -> String {
    let tables: Vec<&SourceTable> = wanted.tables.iter().map(|wanted| wanted.table).collect();
    format!(
        "CREATE PUBLICATION {} FOR TABLE {} \
         WITH (publish = {ACTIONS}, publish_via_partition_root = true)",
        ident(wanted.publication),
        rows(&tables)
    )
}

fn rows(tables: &[&SourceTable]) -> String {
    tables.iter().map(|table| table.rows()).collect::<Vec<_>>().join(", ")
}

/// The tables that adding would bring: one whose partitions are streamed under their own names it
/// would not.
fn missing<'a>(found: &Published, wanted: &WantedPublication<'a>) -> Vec<&'a SourceTable> {
    let names = names(found);
    let is_missing = |table: &&SourceTable| {
        !names.contains(&table.name) && (found.via_root || !has_family(found, table))
    };
    wanted.tables.iter().map(|wanted| wanted.table).filter(is_missing).collect()
}

fn names(found: &Published) -> HashSet<TableName> {
    found.tables.iter().map(PublishedTable::name).collect()
}

/// The table itself or one of its partitions was put in, however it is streamed.
fn has_family(found: &Published, table: &SourceTable) -> bool {
    let streamed = |oid: u32| found.tables.iter().any(|member| member.oid == oid);
    found.members.contains(&table.oid)
        || streamed(table.oid)
        || table.kind == TableKind::Partitioned && table.parts.iter().any(|part| streamed(part.oid))
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

/// Everything for which changes would go missing.
fn problems(found: &Published, wanted: &WantedPublication) -> Vec<Error> {
    let publication = ident(wanted.publication);
    let actions = [("insert", found.inserts), ("update", found.updates), ("delete", found.deletes)];
    let named = |is: bool| -> Vec<&str> {
        actions.iter().filter(|action| action.1 == is).map(|action| action.0).collect()
    };
    let mut problems = Vec::new();
    if !named(false).is_empty() {
        let cause = format!(
            "it is missing required actions: expected [insert, update, delete], current [{}], \
             missing [{}]",
            named(true).join(", "),
            named(false).join(", ")
        );
        let sql = format!(
            "ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate');"
        );
        problems.push(refusal(wanted, cause, &sql));
    }
    let members: HashMap<u32, &PublishedTable> =
        found.tables.iter().map(|member| (member.oid, member)).collect();
    for table in wanted.tables {
        problems_of(found, members.get(&table.table.oid).copied(), wanted, table, &mut problems);
    }
    problems
}

fn refusal(wanted: &WantedPublication, cause: String, sql: &str) -> Error {
    let doing = format!("check publication `{}`", wanted.publication);
    Error::new(ErrorKind::Setup, doing).because(cause).hint(format!("Run: {sql}"))
}

fn problems_of(
    found: &Published,
    member: Option<&PublishedTable>,
    wanted: &WantedPublication,
    WantedTable { table, columns }: &WantedTable,
    problems: &mut Vec<Error>,
) {
    let publication = ident(wanted.publication);
    let (name, quoted) = (&table.name, table.name.quoted());
    let mut refuse = |cause: String, sql: &str| problems.push(refusal(wanted, cause, sql));
    // In two transactions, what is written in between would not be streamed.
    let again = format!(
        "BEGIN; ALTER PUBLICATION {publication} DROP TABLE {quoted}; \
         ALTER PUBLICATION {publication} ADD TABLE {quoted}; COMMIT;"
    );
    if table.kind == TableKind::Partitioned && !found.via_root && has_family(found, table) {
        return refuse(
            format!("it publishes the partitions of `{name}` under their own names"),
            &format!("ALTER PUBLICATION {publication} SET (publish_via_partition_root = true);"),
        );
    }
    let Some(member) = member else {
        let cause = match found.tables.is_empty() {
            true => format!("it has no tables configured, expected table `{name}`"),
            false => format!(
                "it does not include the required table `{name}`; current tables: {}",
                list(&found.tables)
            ),
        };
        return refuse(cause, &format!("ALTER PUBLICATION {publication} ADD TABLE {quoted};"));
    };
    if member.row_filter.is_some() {
        refuse(format!("it has a row filter on table `{name}`"), &again);
    }
    if let Some(list) = &member.columns {
        let is_missing = |wanted: &&str| !list.iter().any(|column| column == wanted);
        let missing: Vec<&str> = columns.iter().copied().filter(is_missing).collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            refuse(
                format!("its column list for table `{name}` is missing columns: {missing}"),
                &again,
            );
        }
    }
}

fn list(tables: &[PublishedTable]) -> String {
    /// Enough to recognise the publication; one for all tables may have thousands.
    const SHOWN_MAX: usize = 10;
    let mut text = String::new();
    for (i, table) in tables.iter().take(SHOWN_MAX).enumerate() {
        let separator = if i == 0 { "" } else { ", " };
        let _ = write!(text, "{separator}`{}`", table.name());
    }
    if tables.len() > SHOWN_MAX {
        let _ = write!(text, " and {} more", tables.len() - SHOWN_MAX);
    }
    text
}

/// What gives our role what it lacks to create the publication, or to add the tables to it; empty
/// if it lacks nothing of that.
fn lacking(
    sql: &mut Sql,
    creates: bool,
    wanted: &WantedPublication,
    deadline: Instant,
) -> std::result::Result<String, SqlError> {
    let owners: BTreeSet<&str> = wanted.tables.iter().map(|table| &*table.table.owner).collect();
    let owners: Vec<String> = owners.into_iter().map(literal).collect();
    let rows = sql.try_rows(
        &format!(
            "SELECT NULL WHERE NOT has_database_privilege(current_database(), 'CREATE')
             UNION ALL
             SELECT owner FROM unnest(ARRAY[{}]::text[]) AS owner
             WHERE NOT pg_has_role(current_user, owner::name, 'USAGE')",
            owners.join(", ")
        ),
        deadline,
    )?;
    let about = sql.about();
    let (role, database) = (ident(&about.role), ident(&about.database));
    let mut lacking = String::new();
    for row in rows {
        let _ = match row.text(0)? {
            None if !creates => Ok(()),
            None => write!(lacking, " GRANT CREATE ON DATABASE {database} TO {role};"),
            Some(owner) => write!(lacking, " GRANT {} TO {role};", ident(owner)),
        };
    }
    Ok(lacking)
}

fn how_to_grant(lacking: &str, statement: &str, wanted: &WantedPublication) -> String {
    match lacking.is_empty() {
        true => format!("Run as a superuser: {statement};"),
        // Its owner may be a superuser, whose membership nobody should have to give away.
        false => format!(
            "Run as the owner of the {}: {statement}; or, to have it {} at the start, \
             run:{lacking}",
            if wanted.tables.len() == 1 { "table" } else { "tables" },
            if statement.starts_with("CREATE") { "created" } else { "widened" },
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

    fn member(name: &str) -> PublishedTable {
        let columns = Some(vec!["id".into(), "status".into()]);
        PublishedTable::new(1, &TableName::new("public", name), columns)
    }

    fn good() -> Published {
        Published {
            inserts: true,
            updates: true,
            deletes: true,
            tables: vec![member("TaskRun")],
            members: vec![1],
            ..Published::default()
        }
    }

    fn told(found: &Published, table: &SourceTable) -> Vec<Error> {
        let tables = [WantedTable { table, columns: &["id", "status"] }];
        problems(found, &WantedPublication { publication: "p", tables: &tables, widen: false })
    }

    /// The line and the hint of the refusal, or nothing.
    fn refusal(kind: TableKind, change: impl FnOnce(&mut Published)) -> Option<(String, String)> {
        let mut found = good();
        change(&mut found);
        let mut problems = told(&found, &table(kind)).into_iter();
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

        let other = |found: &mut Published| {
            let name = TableName::new("public", "taskrun");
            (found.tables, found.members) = (vec![PublishedTable::new(2, &name, None)], vec![2]);
        };
        let (line, _) = refusal(TableKind::Ordinary, other).unwrap();
        assert!(line.ends_with("`public.TaskRun`; current tables: `public.taskrun`"), "{line}");

        let (line, hint) = refusal(TableKind::Ordinary, |found| found.deletes = false).unwrap();
        assert!(line.ends_with("current [insert, update], missing [delete]"), "{line}");
        assert!(hint.contains("SET (publish = 'insert, update, delete, truncate')"), "{hint}");

        let filter = |found: &mut Published| found.tables[0].row_filter = Some("x".into());
        assert!(refusal(TableKind::Ordinary, filter).unwrap().0.contains("row filter"));

        let columns = |found: &mut Published| found.tables[0].columns = Some(vec!["id".into()]);
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
        let mut found = Published { inserts: false, ..good() };
        found.tables[0].row_filter = Some("x".into());
        found.tables[0].columns = Some(vec![]);
        let told: Vec<String> =
            told(&found, &table(TableKind::Ordinary)).iter().map(Error::to_string).collect();
        assert_eq!(told.len(), 3, "{told:?}");
    }

    #[test]
    fn a_long_list_of_tables_is_cut() {
        let member = &good().tables[0];
        let text = list(&vec![member.clone(); 12]);
        assert!(text.ends_with("`public.TaskRun` and 2 more"), "{text}");
    }

    #[test]
    fn what_is_run_is_what_is_printed() {
        let (here, root) = (table(TableKind::Ordinary), table(TableKind::Partitioned));
        let root =
            SourceTable { name: TableName::new("a.b", "ro\"ot"), oid: 2, parts: vec![], ..root };
        let late = SourceTable { name: TableName::new("public", "late"), oid: 3, ..here.clone() };
        let tables = [&here, &root, &late].map(|table| WantedTable { table, columns: &[] });
        let wanted = WantedPublication { publication: "p", tables: &tables, widen: true };
        assert_eq!(
            statement(None, &wanted).unwrap(),
            "CREATE PUBLICATION \"p\" FOR TABLE ONLY \"public\".\"TaskRun\", \
             \"a.b\".\"ro\"\"ot\", ONLY \"public\".\"late\" WITH (publish = \
             'insert, update, delete, truncate', publish_via_partition_root = true)"
        );
        let widening = statement(Some(&good()), &wanted).unwrap();
        assert_eq!(
            widening,
            "ALTER PUBLICATION \"p\" ADD TABLE \"a.b\".\"ro\"\"ot\", ONLY \"public\".\"late\""
        );
        let as_it_is = WantedPublication { widen: false, ..wanted };
        assert_eq!(statement(Some(&good()), &as_it_is), None);
        // It has the partitions already, under their own names: adding the root mends nothing.
        let of_parts = Published { members: vec![1, 2, 3], ..good() };
        assert_eq!(statement(Some(&of_parts), &wanted), None);
    }
}
