//! Which tables there are, what a publication says about them, and whether that does harm: each
//! verdict beside what Postgres does.

use walhouse::postgres::publication::{Ensured, WantedPublication, WantedTable, ensure};
use walhouse::postgres::source_table::{SourceTable, TableName};
use walhouse::postgres::sql::Sql;
use walhouse::postgres::tables::{self, Published};
use walhouse::services::publishable::{Effect, Entry, Trap, judge};

use super::server::database;
use super::{run, soon};

fn found(sql: &mut Sql) -> Published {
    tables::published(sql, "p", soon()).unwrap().unwrap()
}

/// The verdict about table `t` in publication `p`, as they are.
fn verdict(sql: &mut Sql, beside: &[(String, Option<Vec<String>>)]) -> Vec<Trap> {
    let name = TableName::new("public", "t");
    let table = SourceTable::inspect(sql, &name, soon()).unwrap();
    let found = found(sql);
    let member = found.tables.iter().find(|member| member.name() == name).unwrap();
    let entry = Entry {
        publication: "p",
        table: &name.quoted(),
        server: sql.about().version_num,
        inserts: found.inserts,
        updates: found.updates,
        deletes: found.deletes,
        truncates: found.truncates,
        column_list: member.column_list(),
        filter_columns: member.filter_columns.as_deref().unwrap_or_default(),
        sends_generated: found.sends_generated,
        beside,
        older_slot: None,
    };
    judge(&entry, &tables::holders(&table))
}

#[test]
fn what_the_verdict_says_of_writes_is_what_postgres_does() {
    // Each with the least version that has it, and what the UPDATE is told.
    const NO_IDENTITY: &str = "does not have a replica identity and publishes updates";
    const LIST: &str = "does not cover the replica identity";
    const FILTER: &str = "is not part of the replica identity";
    const GENERATED: &str = "must not contain unpublished generated columns";
    for (since, made, entry, refusal) in [
        (14, "(id int, b int)", "", NO_IDENTITY),
        (14, "(id int NOT NULL UNIQUE, b int)", "", NO_IDENTITY),
        (14, "(id int PRIMARY KEY DEFERRABLE, b int)", "", NO_IDENTITY),
        (
            14,
            "(id int PRIMARY KEY, b int); ALTER TABLE public.t REPLICA IDENTITY NOTHING",
            "",
            NO_IDENTITY,
        ),
        (14, "() INHERITS (public.parent)", "", NO_IDENTITY),
        (
            14,
            "(id int, b int) PARTITION BY RANGE (id);
              CREATE TABLE public.part PARTITION OF public.t DEFAULT",
            "",
            NO_IDENTITY,
        ),
        (
            15,
            "(id int PRIMARY KEY, b int); ALTER TABLE public.t REPLICA IDENTITY FULL",
            "(id, b)",
            LIST,
        ),
        (15, "(id int, b int); ALTER TABLE public.t REPLICA IDENTITY FULL", "(id, b)", LIST),
        (15, "(id int PRIMARY KEY, b int)", "(b)", LIST),
        (15, "(id int PRIMARY KEY, b int)", "WHERE (b > 0)", FILTER),
        (15, "(id int PRIMARY KEY, b int)", "(id) WHERE (b > 0)", FILTER),
        (
            18,
            "(id int, b int, g int GENERATED ALWAYS AS (b) STORED);
              ALTER TABLE public.t REPLICA IDENTITY FULL",
            "",
            GENERATED,
        ),
        (
            18,
            "(id int PRIMARY KEY, b int, g int GENERATED ALWAYS AS (b) VIRTUAL);
              ALTER TABLE public.t REPLICA IDENTITY FULL",
            "",
            GENERATED,
        ),
        (18, "(b int, id int GENERATED ALWAYS AS (b) STORED PRIMARY KEY)", "", GENERATED),
        // No harm.
        (14, "(id int PRIMARY KEY, b int)", "", ""),
        (14, "(id int, b int); ALTER TABLE public.t REPLICA IDENTITY FULL", "", ""),
        (15, "(id int PRIMARY KEY, b int)", "(b, id) WHERE (id > 0)", ""),
        (15, "(id int, b int); ALTER TABLE public.t REPLICA IDENTITY FULL", "WHERE (b > 0)", ""),
        (18, "(id int PRIMARY KEY, b int, g int GENERATED ALWAYS AS (b) VIRTUAL)", "", ""),
    ] {
        let (_, mut sql) = database();
        if sql.about().version_num / 10_000 < since {
            continue;
        }
        let of = format!("{made} {entry}");
        run(
            &mut sql,
            &format!(
                "CREATE TABLE public.parent (id int PRIMARY KEY, b int); CREATE TABLE public.t {made};
                 INSERT INTO public.t (b{id}) VALUES (1{one});
                 CREATE PUBLICATION p FOR TABLE public.t {entry}
                     WITH (publish_via_partition_root = true)",
                id = if made.contains("id int GENERATED") { "" } else { ", id" },
                one = if made.contains("id int GENERATED") { "" } else { ", 1" },
            ),
        );
        // With the detail, which is where the reason is.
        let update = |sql: &mut Sql| {
            let update = "DO $$ DECLARE detail text; BEGIN UPDATE public.t SET b = b + 1;
                 EXCEPTION WHEN OTHERS THEN GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
                 RAISE EXCEPTION '% %', SQLERRM, detail; END $$";
            sql.try_rows(update, soon())
        };
        let traps = verdict(&mut sql, &[]);
        let outcome = update(&mut sql);
        if refusal.is_empty() {
            outcome.map_err(|error| error.doing(&of)).unwrap();
            assert_eq!(traps, [], "{of}");
            continue;
        }
        let error = outcome.err().unwrap_or_else(|| panic!("expected a refusal: {of}")).doing(&of);
        assert!(error.to_string().contains(refusal), "{error}");
        assert_eq!(traps.len(), 1, "{of}: {traps:?}");
        assert_eq!(traps[0].effect, Effect::WritesFail, "{of}");
        // Its mend mends it, and nothing else is found then.
        let mend = traps[0].mend.replace("(...)", "(id)");
        let is_late_key = made.contains("DEFERRABLE");
        assert!(!is_late_key || mend.contains("FULL"), "{mend}");
        run(&mut sql, &mend);
        assert_eq!(verdict(&mut sql, &[]), [], "{of}: {mend}");
        update(&mut sql).map_err(|error| error.doing(format!("{of}: {mend}"))).unwrap();
    }
}

/// The stream ends at the first change, each time again.
#[test]
fn other_columns_in_a_second_publication_end_the_stream() {
    let (_, mut sql) = database();
    if sql.about().version_num < 150_000 {
        return;
    }
    run(
        &mut sql,
        "CREATE TABLE public.t (id int PRIMARY KEY, b int);
         CREATE PUBLICATION p FOR TABLE public.t; CREATE PUBLICATION q FOR TABLE public.t (id)",
    );
    let slot = format!("beside_{}", sql.about().backend_pid);
    run(&mut sql, &format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    run(&mut sql, "INSERT INTO public.t VALUES (1)");
    let stream = format!(
        "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL,
            'proto_version', '1', 'publication_names', 'p,q')"
    );
    assert!(sql.try_rows(&stream, soon()).is_err());
    let beside = [("q".to_owned(), Some(vec!["id".to_owned()]))];
    let traps = verdict(&mut sql, &beside);
    assert_eq!((traps.len(), traps[0].effect), (1, Effect::StreamFails));
    run(&mut sql, &traps[0].mend);
    run(&mut sql, "INSERT INTO public.t VALUES (2)");
    run(&mut sql, &format!("SELECT pg_drop_replication_slot('{slot}')"));
}

#[test]
fn a_publication_is_read_as_it_is() {
    let (_, mut sql) = database();
    assert_eq!(tables::published(&mut sql, "p", soon()).unwrap(), None);
    run(
        &mut sql,
        "CREATE SCHEMA \"s.1\"; CREATE TABLE \"s.1\".\"T \"\"x\" (id int PRIMARY KEY, b int);
         CREATE TABLE public.root (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE public.part PARTITION OF public.root DEFAULT;
         CREATE PUBLICATION p FOR TABLE \"s.1\".\"T \"\"x\", public.root
             WITH (publish = 'insert, delete')",
    );
    let publication = found(&mut sql);
    assert!(publication.inserts && !publication.updates && publication.deletes);
    assert!(!publication.truncates && !publication.via_root);
    let names = |of: &Published| -> Vec<String> {
        of.tables.iter().map(|table| table.name().to_string()).collect()
    };
    assert_eq!(names(&publication), ["public.part", "s.1.T \"x"]);
    assert_eq!(publication.members.len(), 2);
    run(&mut sql, "ALTER PUBLICATION p SET (publish_via_partition_root = true)");
    assert_eq!(names(&found(&mut sql)), ["public.root", "s.1.T \"x"]);
    if sql.about().version_num < 150_000 {
        return;
    }
    assert!(!found(&mut sql).tables[0].has_column_list);
    run(
        &mut sql,
        "ALTER PUBLICATION p SET TABLE \"s.1\".\"T \"\"x\" (id) WHERE (b > 1 AND id > 0)",
    );
    let table = found(&mut sql).tables.remove(0);
    assert_eq!(table.column_list(), Some(&["id".to_owned()][..]));
    assert_eq!(table.filter_columns.as_deref(), Some(&["b".to_owned(), "id".to_owned()][..]));
    assert!(table.row_filter.unwrap().contains("b > 1"));
}

#[test]
fn candidates_are_the_tables_of_users_with_those_of_tools_told_apart() {
    let (_, mut sql) = database();
    run(
        &mut sql,
        "CREATE SCHEMA shop; CREATE SCHEMA cron; CREATE SCHEMA _timescaledb_internal;
         CREATE TABLE shop.orders (id int PRIMARY KEY); CREATE VIEW shop.v AS SELECT 1 AS x;
         CREATE TABLE shop.root (id int) PARTITION BY RANGE (id);
         CREATE TABLE shop.part PARTITION OF shop.root DEFAULT;
         CREATE TABLE cron.job (id int); CREATE TABLE _timescaledb_internal.chunk (id int);
         CREATE TEMPORARY TABLE passing (id int); CREATE UNLOGGED TABLE shop.unlogged (id int)",
    );
    let found = tables::candidates(&mut sql, soon()).unwrap();
    let named = |is_passed_over: bool| -> Vec<&str> {
        let of_kind = found.iter().filter(|t| tables::is_passed_over(t) == is_passed_over);
        of_kind.map(|table| &*table.name.name).collect()
    };
    assert_eq!(named(false), ["orders", "root", "unlogged"]);
    assert_eq!(named(true), ["chunk", "job"]);
    assert!(found.iter().find(|t| t.name.name == "unlogged").unwrap().check_publishable().is_err());
}

#[test]
fn a_publication_of_many_is_created_and_widened_and_never_narrowed() {
    let (_, mut sql) = database();
    run(
        &mut sql,
        "CREATE TABLE public.\"A.\"\"b\" (id int PRIMARY KEY); CREATE TABLE public.c (id int);
         CREATE TABLE public.child () INHERITS (public.c);
         CREATE TABLE public.root (id int) PARTITION BY RANGE (id);
         CREATE TABLE public.part PARTITION OF public.root DEFAULT",
    );
    let mut tables_of = |names: &[&str], widen: bool| {
        let names: Vec<TableName> =
            names.iter().map(|name| TableName::new("public", *name)).collect();
        let found: Vec<SourceTable> =
            names.iter().map(|n| SourceTable::inspect(&mut sql, n, soon()).unwrap()).collect();
        let wanted: Vec<WantedTable<'_>> =
            found.iter().map(|table| WantedTable { table, columns: &["id"] }).collect();
        let wanted = WantedPublication { publication: "p", tables: &wanted, widen };
        let ensured = ensure(&mut sql, &wanted, soon());
        let names = tables::published(&mut sql, "p", soon()).unwrap().unwrap().tables;
        (ensured, names.iter().map(|table| table.name().name).collect::<Vec<_>>())
    };
    let (ensured, names) = tables_of(&["A.\"b", "c"], true);
    assert_eq!((ensured.unwrap(), names), (Ensured::Created, vec!["A.\"b".into(), "c".into()]));
    let (ensured, names) = tables_of(&["c", "root"], false);
    assert!(ensured.unwrap_err().hint_text().unwrap().contains("ADD TABLE"));
    assert_eq!(names.len(), 2);
    let (ensured, names) = tables_of(&["c", "root"], true);
    let added = vec![TableName::new("public", "root")];
    assert_eq!(ensured.unwrap(), Ensured::Widened(added));
    assert_eq!(names, ["A.\"b", "c", "root"], "not the child, nor the partition by itself");
    assert_eq!(tables_of(&["c", "root"], true).0.unwrap(), Ensured::Existing);
}
