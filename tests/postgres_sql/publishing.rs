use walhouse::error::ErrorKind;
use walhouse::postgres::publication::{Ensured, WantedPublication, WantedTable, ensure};
use walhouse::postgres::source_table::{
    OldRow, ReplicaIdentity, SourceTable, TableColumn, TableKind, TableName,
};
use walhouse::postgres::sql::{Sql, ident};
use walhouse::wal::pg_type::PgForm;

use super::server::database;
use super::{connect, expect_error, run, soon};

const PUBLICATION: &str = "p'u\"b ü\\";
const COLUMNS: [&str; 2] = ["id", "pay\"load"];

fn name() -> TableName {
    TableName::new("public", "Task\"Run' ü")
}

fn create_table(sql: &mut Sql, rest: &str) {
    run(
        sql,
        &format!(
            "CREATE TYPE public.\"St\" AS ENUM ('A');
         CREATE TABLE {} (gone int, id text PRIMARY KEY, \"pay\"\"load\" text NOT NULL,
                          status public.\"St\", tags text[]) {rest}",
            name().quoted()
        ),
    );
}

fn inspect(sql: &mut Sql) -> SourceTable {
    SourceTable::inspect(sql, &name(), soon()).unwrap()
}

fn try_ensure(sql: &mut Sql) -> walhouse::error::Result<Ensured> {
    let table = inspect(sql);
    let tables = [WantedTable { table: &table, columns: &COLUMNS }];
    let wanted = WantedPublication { publication: PUBLICATION, tables: &tables, widen: false };
    ensure(sql, &wanted, soon())
}

/// Creates the publication again by `definition` and expects its refusal; then the hint's SQL has
/// to mend it.
#[track_caller]
fn check_mended(sql: &mut Sql, definition: &str, part: &str) {
    let publication = ident(PUBLICATION);
    run(
        sql,
        &format!(
            "DROP PUBLICATION IF EXISTS {publication}; \
                       CREATE PUBLICATION {publication} {definition}"
        ),
    );
    let result = try_ensure(sql);
    let hint = expect_error(result, ErrorKind::Setup, part);
    run(sql, hint.strip_prefix("Run: ").unwrap());
    assert_eq!(try_ensure(sql).unwrap(), Ensured::Existing, "{definition}");
}

/// 0: nothing built in.
fn reads_as(column: &TableColumn) -> u32 {
    column.reads_as().map_or(0, |oid| oid.0)
}

#[test]
fn the_table_is_described_as_it_is() {
    let (_, mut sql) = database();
    create_table(&mut sql, "");
    run(&mut sql, &format!("ALTER TABLE {} DROP COLUMN gone", name().quoted()));
    let table = inspect(&mut sql);
    assert_eq!(table.kind, TableKind::Ordinary);
    assert_eq!(table.owner, "postgres");
    assert_eq!(table.primary_key.as_ref().unwrap().columns, ["id"]);
    assert!(table.is_readable);
    let columns: Vec<(&str, i16, u32, &str, bool, bool)> = table
        .columns
        .iter()
        .map(|c| {
            let is_enum = c.pg_type.form == PgForm::Enum;
            (c.name.as_str(), c.number, c.type_oid, c.type_name.as_str(), c.is_not_null, is_enum)
        })
        .collect();
    let enum_oid = table.column("status").unwrap().type_oid;
    assert!(enum_oid >= 16_384);
    assert_eq!(
        columns,
        [
            ("id", 2, 25, "text", true, false),
            ("pay\"load", 3, 25, "text", true, false),
            ("status", 4, enum_oid, "St", false, true),
            ("tags", 5, 1009, "_text", false, false),
        ]
    );
}

#[test]
fn what_cannot_be_published_is_refused_by_name() {
    let (_, mut sql) = database();
    let hint = expect_error(
        SourceTable::inspect(&mut sql, &name(), soon()),
        ErrorKind::Setup,
        "is not in database",
    );
    assert!(hint.contains("database URL"), "{hint}");
    run(&mut sql, "CREATE VIEW public.v AS SELECT 1; CREATE UNLOGGED TABLE public.u (id text)");
    let mut refused = |table| {
        let result = SourceTable::inspect(&mut sql, &TableName::new("public", table), soon());
        expect_error(result, ErrorKind::Setup, &format!("inspect table `public.{table}`: "))
    };
    refused("v");
    assert_eq!(refused("u"), "Run: ALTER TABLE \"public\".\"u\" SET LOGGED;");
}

#[test]
fn the_replica_identity_is_judged_and_the_hint_mends_it() {
    let (_, mut sql) = database();
    create_table(&mut sql, "");
    let quoted = name().quoted();
    let alter = |sql: &mut Sql, rest: &str| run(sql, &format!("ALTER TABLE {quoted} {rest}"));
    assert_eq!(inspect(&mut sql).old_row(&["id"]).unwrap(), OldRow::KeyOnly);

    alter(&mut sql, "REPLICA IDENTITY NOTHING");
    let hint = expect_error(inspect(&mut sql).old_row(&["id"]), ErrorKind::Setup, "NOTHING");
    run(&mut sql, hint.strip_prefix("Run: ").unwrap());
    assert_eq!(inspect(&mut sql).old_row(&["id"]).unwrap(), OldRow::Whole);

    run(&mut sql, &format!("CREATE UNIQUE INDEX other ON {quoted} (\"pay\"\"load\") INCLUDE (id)"));
    alter(&mut sql, "REPLICA IDENTITY USING INDEX other");
    let table = inspect(&mut sql);
    assert_eq!(table.parts[0].identity, ReplicaIdentity::Index);
    assert_eq!(table.parts[0].identity_columns, ["pay\"load"], "an included column is no key");
    expect_error(table.old_row(&["id"]), ErrorKind::Setup, "without the key `id`");
    run(&mut sql, "DROP INDEX public.other");
    expect_error(inspect(&mut sql).old_row(&["id"]), ErrorKind::Setup, "was dropped");

    alter(&mut sql, "REPLICA IDENTITY DEFAULT, DROP CONSTRAINT \"Task\"\"Run' ü_pkey\"");
    expect_error(inspect(&mut sql).old_row(&["id"]), ErrorKind::Setup, "no primary key");
    alter(&mut sql, "ADD PRIMARY KEY (id) DEFERRABLE");
    let hint = expect_error(inspect(&mut sql).old_row(&["id"]), ErrorKind::Setup, "is deferrable");
    alter(&mut sql, "REPLICA IDENTITY FULL");
    expect_error(inspect(&mut sql).old_row(&["id"]), ErrorKind::Setup, "(id) is deferrable");
    run(&mut sql, hint.strip_prefix("Run: ").unwrap());
    assert_eq!(inspect(&mut sql).old_row(&["id"]).unwrap(), OldRow::Whole);
}

/// Goal: what a type is underneath is the catalog's to say, not its name's or number's.
#[test]
fn types_of_a_users_own_read_as_what_they_are_underneath() {
    let (_, mut sql) = database();
    run(
        &mut sql,
        "CREATE SCHEMA \"own\"; CREATE TYPE own.e AS ENUM ('a'); CREATE DOMAIN own.e2 AS own.e;
         CREATE DOMAIN own.t1 AS text; CREATE DOMAIN own.t2 AS own.t1 CHECK (value <> '');
         CREATE DOMAIN own.i1 AS int; CREATE DOMAIN own.i2 AS own.i1; CREATE DOMAIN own.j AS jsonb;
         CREATE DOMAIN own.at AS timestamp(3); CREATE DOMAIN own.tags AS text[];
         CREATE DOMAIN own.tags2 AS own.t2[]; CREATE TYPE own.c AS (a int, b text);
         CREATE TYPE own.r AS RANGE (subtype = int); CREATE DOMAIN own.m AS int4multirange",
    );
    let types = [
        ("e", 25),
        ("e2", 25),
        ("t1", 25),
        ("t2", 25),
        ("i1", 23),
        ("i2", 23),
        ("j", 3802),
        ("at", 1114),
        ("tags", 1009),
        ("tags2", 1009),
        ("e[]", 1009),
        ("e2[]", 1009),
        ("t2[]", 1009),
        ("i2[]", 0),
        ("c", 0),
        ("c[]", 0),
        ("r", 0),
        ("m", 0),
    ];
    let columns: Vec<String> =
        types.iter().map(|(name, _)| format!("\"{name}\" own.{name}")).collect();
    run(&mut sql, &format!("CREATE TABLE own.all_of_them ({})", columns.join(", ")));
    let name = TableName::new("own", "all_of_them");
    let table = SourceTable::inspect(&mut sql, &name, soon()).unwrap();
    let found: Vec<_> = table.columns.iter().map(|c| (c.name.as_str(), reads_as(c))).collect();
    assert_eq!(found, types);
    assert_eq!(&*table.column("i2").unwrap().pg_type.underlying().sql, "integer");
    assert_eq!(&*table.column("c").unwrap().pg_type.underlying().sql, "own.c");
    let available = "SELECT count(*) FROM pg_available_extensions WHERE name = 'citext'";
    if sql.rows("look", available, soon()).unwrap()[0].required(0).unwrap() == "1" {
        run(
            &mut sql,
            "CREATE EXTENSION citext SCHEMA own; ALTER TABLE own.all_of_them ADD x own.citext",
        );
        let table = SourceTable::inspect(&mut sql, &name, soon()).unwrap();
        assert_eq!(reads_as(table.column("x").unwrap()), 25);
    }
}

#[test]
fn a_missing_publication_is_created_once() {
    let (_, mut sql) = database();
    create_table(&mut sql, "");
    assert_eq!(try_ensure(&mut sql).unwrap(), Ensured::Created);
    assert_eq!(try_ensure(&mut sql).unwrap(), Ensured::Existing);
    let rows = sql
        .rows(
            "read",
            "SELECT pubinsert, pubupdate, pubdelete, pubtruncate \
                                 FROM pg_publication",
            soon(),
        )
        .unwrap();
    let flags: Vec<bool> = (0..4).map(|i| rows[0].bool(i).unwrap()).collect();
    assert_eq!((rows.len(), flags), (1, vec![true, true, true, true]));
}

#[test]
fn what_a_publication_lacks_is_named_and_the_hint_mends_it() {
    let (_, mut sql) = database();
    create_table(&mut sql, "");
    let t = name().quoted();
    run(&mut sql, "CREATE TABLE public.other (id int PRIMARY KEY)");
    check_mended(&mut sql, "", "no tables configured, expected table `public.Task\"Run' ü`");
    check_mended(&mut sql, "FOR TABLE public.other", "current tables: `public.other`");
    check_mended(
        &mut sql,
        &format!("FOR TABLE {t} WITH (publish = 'insert, truncate')"),
        "current [insert], missing [update, delete]",
    );
    if sql.about().version_num >= 150_000 {
        check_mended(
            &mut sql,
            &format!("FOR TABLE public.other, {t} WHERE (id <> 'x')"),
            "row filter",
        );
        check_mended(
            &mut sql,
            &format!("FOR TABLE {t} (id, status)"),
            "missing columns: pay\"load",
        );
        let publication = ident(PUBLICATION);
        run(
            &mut sql,
            &format!(
                "DROP PUBLICATION {publication}; \
            CREATE PUBLICATION {publication} FOR TABLES IN SCHEMA public"
            ),
        );
        assert_eq!(try_ensure(&mut sql).unwrap(), Ensured::Existing);
    }
    let publication = ident(PUBLICATION);
    run(
        &mut sql,
        &format!(
            "DROP PUBLICATION {publication}; \
                            CREATE PUBLICATION {publication} FOR ALL TABLES"
        ),
    );
    assert_eq!(try_ensure(&mut sql).unwrap(), Ensured::Existing);
}

#[test]
fn a_partitioned_table_is_published_via_its_root() {
    let (_, mut sql) = database();
    create_table(&mut sql, "PARTITION BY RANGE (id)");
    assert_eq!(inspect(&mut sql).kind, TableKind::Partitioned);
    let t = name().quoted();
    check_mended(&mut sql, &format!("FOR TABLE {t}"), "under their own names");
    run(
        &mut sql,
        &format!("CREATE TABLE public.p1 PARTITION OF {t} FOR VALUES FROM ('a') TO ('m')"),
    );
    check_mended(&mut sql, &format!("FOR TABLE {t}"), "under their own names");
    check_mended(&mut sql, "FOR ALL TABLES", "under their own names");
    run(&mut sql, &format!("DROP PUBLICATION {}", ident(PUBLICATION)));
    assert_eq!(try_ensure(&mut sql).unwrap(), Ensured::Created);
    assert_eq!(try_ensure(&mut sql).unwrap(), Ensured::Existing);

    assert_eq!(inspect(&mut sql).old_row(&["id"]).unwrap(), OldRow::KeyOnly);
    run(&mut sql, "ALTER TABLE public.p1 REPLICA IDENTITY NOTHING");
    let hint = expect_error(inspect(&mut sql).old_row(&["id"]), ErrorKind::Setup, "`public.p1`");
    run(&mut sql, hint.strip_prefix("Run: ").unwrap());
    // What is streamed in the name of the root is called whole only if the root says so.
    assert_eq!(inspect(&mut sql).old_row(&["id"]).unwrap(), OldRow::KeyOnly);
    run(&mut sql, &format!("ALTER TABLE {t} REPLICA IDENTITY FULL"));
    assert_eq!(inspect(&mut sql).old_row(&["id"]).unwrap(), OldRow::Whole);
}

#[test]
fn rights_that_are_lacking_are_named() {
    let (mut params, mut sql) = database();
    create_table(&mut sql, "");
    run(
        &mut sql,
        &format!(
            "CREATE ROLE \"te\"\"nant\" LOGIN; CREATE ROLE \"own er\"; \
        ALTER TABLE {} OWNER TO \"own er\"",
            name().quoted()
        ),
    );
    params.user = "te\"nant".into();
    let mut tenant = connect(&params);
    let table = inspect(&mut tenant);
    let hint = expect_error(table.check_readable("te\"nant"), ErrorKind::Setup, "may not read it");
    run(&mut sql, hint.strip_prefix("Run: ").unwrap());
    inspect(&mut tenant).check_readable("te\"nant").unwrap();

    let hint = expect_error(try_ensure(&mut tenant), ErrorKind::Setup, "SQLSTATE 42501");
    let (create, grants) = hint.split_once("; or, to have it created at the start, run:").unwrap();
    let create = create.strip_prefix("Run as the owner of the table: ").unwrap();
    assert!(create.starts_with("CREATE PUBLICATION \"p'u\"\"b ü\\\" FOR TABLE"), "{create}");
    run(&mut sql, grants);
    assert_eq!(try_ensure(&mut tenant).unwrap(), Ensured::Created);
}
