//! What the catalog says about any number of tables, of any name, with columns of any type.

use std::fmt::Write as _;
use std::time::Instant;

use walhouse::postgres::source_table::{
    Generated, ReplicaIdentity, SourceTable, TableKind, TableName, Which,
};
use walhouse::postgres::sql::Sql;
use walhouse::wal::Oid;
use walhouse::wal::pg_type::{PgForm, PgType};

use super::server::database;
use super::{run, soon, value};

const WEIRD: [&str; 8] = [
    "qu\"ote",
    "a.b",
    "with space",
    "UPPER",
    "back\\slash",
    "ап'остроф",
    // 63 bytes.
    "ßßßßßßßßßßßßßßßßßßßßßßßßßßßßßßß1",
    "ßßßßßßßßßßßßßßßßßßßßßßßßßßßßßßß2",
];

fn one(sql: &mut Sql, schema: &str, name: &str) -> SourceTable {
    SourceTable::inspect(sql, &TableName::new(schema, name), soon()).unwrap()
}

fn type_of<'t>(table: &'t SourceTable, column: &str) -> &'t PgType {
    &table.column(column).unwrap().pg_type
}

#[test]
fn many_tables_of_any_name_are_one_answer_in_the_order_asked_for() {
    let (_, mut sql) = database();
    let names: Vec<TableName> = WEIRD
        .iter()
        .flat_map(|schema| WEIRD.iter().map(|name| TableName::new(*schema, *name)))
        .collect();
    let mut ddl = String::new();
    for schema in WEIRD {
        let _ = write!(ddl, "CREATE SCHEMA {};", walhouse::postgres::sql::ident(schema));
    }
    for name in &names {
        assert!(name.name.len() <= 63);
        let column = walhouse::postgres::sql::ident(&name.name);
        let _ = write!(ddl, "CREATE TABLE {} ({column} int PRIMARY KEY);", name.quoted());
    }
    run(&mut sql, &ddl);
    let mut asked = names.clone();
    // Cut to 63 bytes these would be tables that are there.
    asked.push(TableName::new(WEIRD[6], "ßßßßßßßßßßßßßßßßßßßßßßßßßßßßßßß12"));
    asked.push(TableName::new("nowhere", "none"));
    asked.reverse();
    let found = SourceTable::inspect_all(&mut sql, Which::Named(&asked), soon()).unwrap();
    let found_names: Vec<&TableName> = found.iter().map(|table| &table.name).collect();
    assert_eq!(found_names, names.iter().rev().collect::<Vec<_>>());
    for table in &found {
        assert_eq!(
            table.primary_key.as_ref().unwrap().columns,
            std::slice::from_ref(&table.name.name)
        );
        table.check_publishable().unwrap();
    }
    let oids: Vec<Oid> = found.iter().map(|table| Oid(table.oid)).chain([Oid(1)]).collect();
    let by_oid = SourceTable::inspect_all(&mut sql, Which::Numbered(&oids), soon()).unwrap();
    assert_eq!(by_oid, found);
    assert_eq!(SourceTable::inspect_all(&mut sql, Which::Named(&[]), soon()).unwrap(), []);
}

#[test]
fn keys_have_the_order_of_their_index() {
    let (_, mut sql) = database();
    run(
        &mut sql,
        "CREATE TABLE public.t (a int, b text, c int NOT NULL, d int, PRIMARY KEY (b, a));
         CREATE UNIQUE INDEX by_d ON public.t (d);
         CREATE UNIQUE INDEX by_c ON public.t (c, a) INCLUDE (d);
         CREATE TABLE public.late (a int PRIMARY KEY DEFERRABLE);
         CREATE TABLE public.none (a int); ALTER TABLE public.none REPLICA IDENTITY FULL",
    );
    let table = one(&mut sql, "public", "t");
    let key = table.primary_key.as_ref().unwrap();
    assert_eq!(key.columns, ["b", "a"]);
    assert!(key.is_immediate && key.is_not_null);
    assert_eq!(table.identity_key, table.primary_key);
    run(&mut sql, "ALTER TABLE public.t REPLICA IDENTITY USING INDEX by_c");
    let table = one(&mut sql, "public", "t");
    let identity = table.identity_key.as_ref().unwrap();
    assert_eq!((&*identity.index, table.identity), ("by_c", ReplicaIdentity::Index));
    assert_eq!(identity.columns, ["c", "a"]);
    assert_eq!(table.parts[0].identity_columns, ["c", "a"]);
    assert_eq!(table.parts[0].keys.len(), 3);
    assert_eq!(table.parts[0].may_be_identity.as_ref().unwrap().columns, ["b", "a"]);

    let late = one(&mut sql, "public", "late");
    assert!(!late.primary_key.as_ref().unwrap().is_immediate);
    assert_eq!((late.identity_key, late.parts[0].identity_columns.len()), (None, 0));
    assert_eq!(late.parts[0].deferrable_keys, [["a"]]);
    let none = one(&mut sql, "public", "none");
    assert_eq!((none.primary_key, none.identity), (None, ReplicaIdentity::Full));
}

#[test]
fn a_table_says_what_it_is() {
    let (_, mut sql) = database();
    run(
        &mut sql,
        "CREATE TABLE public.parent (id int PRIMARY KEY, v int);
         CREATE TABLE public.child () INHERITS (public.parent);
         CREATE TABLE public.root (id int, at date NOT NULL, PRIMARY KEY (at, id))
            PARTITION BY RANGE (at);
         CREATE TABLE public.p1 PARTITION OF public.root FOR VALUES FROM ('2026-01-01')
            TO ('2027-01-01') PARTITION BY RANGE (id);
         CREATE TABLE public.p1a PARTITION OF public.p1 FOR VALUES FROM (0) TO (10);
         CREATE UNLOGGED TABLE public.unlogged (id int);
         CREATE VIEW public.view AS SELECT 1 AS x;
         CREATE TABLE public.hidden (id int PRIMARY KEY);
         ALTER TABLE public.hidden ENABLE ROW LEVEL SECURITY;
         ALTER TABLE public.hidden FORCE ROW LEVEL SECURITY;
         INSERT INTO public.parent SELECT n FROM generate_series(1, 1000) n;
         ANALYZE public.parent",
    );
    let child = one(&mut sql, "public", "child");
    assert!(child.inherits && !child.is_partition && child.primary_key.is_none());
    let parent = one(&mut sql, "public", "parent");
    assert!(!parent.inherits);
    assert_eq!((parent.parts[0].rows, parent.parts[0].bytes), (Some(1000), 5 * 8192));
    assert_eq!((parent.rows(), parent.parts.len()), ("ONLY \"public\".\"parent\"".into(), 1));

    let root = one(&mut sql, "public", "root");
    assert_eq!((root.kind, root.parts.len()), (TableKind::Partitioned, 1));
    assert_eq!(root.parts[0].name, TableName::new("public", "p1a"));
    assert_eq!(root.parts[0].identity_columns, ["at", "id"]);
    assert_eq!(root.parts[0].rows, None, "never analyzed");
    assert!(one(&mut sql, "public", "p1a").is_partition);

    let names = ["unlogged", "view"].map(|name| TableName::new("public", name));
    let found = SourceTable::inspect_all(&mut sql, Which::Named(&names), soon()).unwrap();
    assert!(!found[0].is_permanent);
    assert_eq!(found[1].kind, TableKind::Other);

    // A superuser sees every row.
    assert!(!one(&mut sql, "public", "hidden").hides_rows);
    run(
        &mut sql,
        "DO $$ BEGIN CREATE ROLE sees_some; EXCEPTION WHEN duplicate_object THEN END $$;
         GRANT SELECT ON public.hidden TO sees_some; SET ROLE sees_some",
    );
    let hidden = one(&mut sql, "public", "hidden");
    assert!(hidden.hides_rows && hidden.parts[0].hides_rows && hidden.is_readable);
    assert!(!one(&mut sql, "public", "parent").is_readable);
}

#[test]
fn a_foreign_partition_is_told_apart() {
    let (_, mut sql) = database();
    run(
        &mut sql,
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
         CREATE TABLE public.root (id int) PARTITION BY RANGE (id);
         CREATE FOREIGN TABLE public.far PARTITION OF public.root FOR VALUES FROM (0) TO (9)
            SERVER s",
    );
    let root = one(&mut sql, "public", "root");
    assert!(root.parts[0].is_foreign);
    root.check_publishable().unwrap();
}

#[test]
fn columns_say_what_stream_and_copy_have_to_know() {
    let (_, mut sql) = database();
    run(
        &mut sql,
        "CREATE TABLE public.t (id bigint GENERATED ALWAYS AS IDENTITY, gone int,
            amount numeric(10, 2)[][] NOT NULL,
            twice bigint GENERATED ALWAYS AS (id * 2) STORED);
         ALTER TABLE public.t DROP COLUMN gone;
         INSERT INTO public.t (amount) VALUES ('{}');
         ALTER TABLE public.t ADD note text DEFAULT 'it''s \"a, b\" \\', ADD tags text[]
            DEFAULT '{x,NULL}', ADD plain int, ADD place box DEFAULT '(1,1),(0,0)'",
    );
    if sql.about().version_num >= 180_000 {
        run(
            &mut sql,
            "ALTER TABLE public.t ADD thrice bigint GENERATED ALWAYS AS (id * 3) VIRTUAL",
        );
    }
    let table = one(&mut sql, "public", "t");
    let column = |name: &str| table.column(name).unwrap();
    assert!(column("id").is_identity && column("id").is_not_null);
    assert_eq!((column("amount").dimensions, column("amount").number), (2, 3));
    assert_eq!(column("twice").generated, Some(Generated::Stored));
    if let Some(thrice) = table.column("thrice") {
        assert_eq!(thrice.generated, Some(Generated::Virtual));
    }
    let missing = |name: &str| column(name).missing_value.as_deref();
    assert_eq!(missing("note"), Some("it's \"a, b\" \\"));
    assert_eq!(missing("tags"), Some("{x,NULL}"));
    assert_eq!(missing("place"), Some("(1,1),(0,0)"));
    assert!(column("place").has_missing_value && !column("plain").has_missing_value);
    let PgForm::Array { element, .. } = &column("amount").pg_type.form else { panic!() };
    let typmod = ((10 << 16) | 2) + 4;
    assert_eq!((&*element.name, element.typmod), ("numeric", typmod));
}

/// A NOT NULL that was never proved says nothing about the rows that are there.
#[test]
fn an_unproved_not_null_is_none() {
    let (_, mut sql) = database();
    if sql.about().version_num < 180_000 {
        return;
    }
    run(
        &mut sql,
        "CREATE TABLE public.t (a int, b int NOT NULL); INSERT INTO public.t VALUES (NULL, 1);
         ALTER TABLE public.t ADD CONSTRAINT a_there NOT NULL a NOT VALID;
         CREATE UNIQUE INDEX ON public.t (a)",
    );
    let table = one(&mut sql, "public", "t");
    assert!(!table.column("a").unwrap().is_not_null && table.column("b").unwrap().is_not_null);
    assert_eq!(table.parts[0].may_be_identity, None);
}

#[test]
fn types_are_opened_down_to_what_they_are_made_of() {
    let (_, mut sql) = database();
    run(
        &mut sql,
        "CREATE SCHEMA own; CREATE TYPE own.mood AS ENUM ('a');
         CREATE DOMAIN own.price AS numeric(12, 3) NOT NULL; CREATE DOMAIN own.moods AS own.mood[];
         CREATE TYPE own.pair AS (\"A b\" own.price, moods own.moods);
         CREATE TYPE own.spread AS RANGE (subtype = own.price);
         CREATE TABLE public.t (price own.price, prices own.price[], moods own.moods,
            pair own.pair, pairs own.pair[], spread own.spread, spreads own.spread[],
            boxes box[], span int4range, code varchar(7)[], vector int2vector, spot point)",
    );
    let table = one(&mut sql, "public", "t");
    let numeric =
        |of: &PgType| assert_eq!((&*of.name, of.typmod), ("numeric", ((12 << 16) | 3) + 4));
    let price = type_of(&table, "price");
    assert_eq!((&*price.schema, &*price.name, &*price.sql), ("own", "price", "own.price"));
    numeric(price.underlying());
    let element = |of: &PgType| match &of.underlying().form {
        PgForm::Array { element, delimiter } => (element.clone(), *delimiter),
        other => panic!("{other:?}"),
    };
    numeric(element(type_of(&table, "prices")).0.underlying());
    assert_eq!(element(type_of(&table, "moods")).0.form, PgForm::Enum);
    for column in ["pair", "pairs"] {
        let mut of = type_of(&table, column).clone();
        if column == "pairs" {
            of = (*element(&of).0).clone();
        }
        let PgForm::Composite(fields) = &of.form else { panic!("{of:?}") };
        let names: Vec<&str> = fields.iter().map(|field| &*field.name).collect();
        assert_eq!(names, ["A b", "moods"]);
        numeric(fields[0].of.underlying());
        assert!(of.is_sendable());
    }
    let PgForm::Range(of) = &type_of(&table, "spread").form else { panic!() };
    numeric(of.underlying());
    assert!(matches!(element(type_of(&table, "spreads")).0.form, PgForm::Range(_)));
    assert_eq!(element(type_of(&table, "boxes")).1, b';');
    assert_eq!(element(type_of(&table, "code")).0.typmod, 7 + 4);
    for column in ["vector", "spot"] {
        assert_eq!(type_of(&table, column).form, PgForm::Base, "{column}");
    }
}

#[test]
fn types_of_extensions_are_known_by_the_extension() {
    let (_, mut sql) = database();
    run(&mut sql, "CREATE SCHEMA ext; CREATE TABLE public.t (id int)");
    let mut seen = 0;
    for (extension, of, breaks) in [
        ("hstore", "hstore", false),
        ("ltree", "ltree", false),
        ("citext", "citext", false),
        ("isn", "isbn13", true),
    ] {
        let available =
            format!("SELECT count(*) FROM pg_available_extensions WHERE name = '{extension}'");
        if value(&mut sql, &available) == "0" {
            continue;
        }
        seen += 1;
        run(
            &mut sql,
            &format!(
                "CREATE EXTENSION {extension} SCHEMA ext;
                 ALTER TABLE public.t ADD \"{extension}\" ext.{of}, ADD \"{extension}s\" ext.{of}[]"
            ),
        );
        let table = one(&mut sql, "public", "t");
        let (alone, array) =
            (type_of(&table, extension), type_of(&table, &format!("{extension}s")));
        assert_eq!(alone.extension.as_deref(), Some(extension));
        assert_eq!(array.extension.as_deref(), Some(extension));
        assert_eq!(alone.sends_text, extension == "citext");
        assert_eq!((alone.breaks_binary(), array.breaks_binary()), (false, breaks), "{extension}");
    }
    println!("{seen} extensions");
}

/// Goal: a start with 3,000 tables asks the catalog for less than 5 s.
#[test]
fn three_thousand_tables_are_described_within_seconds() {
    let (_, mut sql) = database();
    run(
        &mut sql,
        "CREATE SCHEMA many; CREATE TYPE many.mood AS ENUM ('a');
         CREATE DOMAIN many.price AS numeric(12, 3)",
    );
    for from in (0..3000).step_by(250) {
        run(
            &mut sql,
            &format!(
                "DO $$ BEGIN FOR n IN {from}..{} LOOP
                   EXECUTE format('CREATE TABLE many.t_%s (id bigint PRIMARY KEY, a int NOT NULL,
                     b text, c timestamptz, d numeric(10, 2), e uuid, f jsonb, g many.mood,
                     h many.price, i text[], j date, k boolean, l double precision, m bytea,
                     n int4range, UNIQUE (a, b))', n);
                 END LOOP; END $$",
                from + 249
            ),
        );
    }
    let names: Vec<TableName> =
        (0..3000).map(|n| TableName::new("many", format!("t_{n}"))).collect();
    let began = Instant::now();
    let found = SourceTable::inspect_all(&mut sql, Which::Named(&names), soon()).unwrap();
    let took = began.elapsed();
    println!("3,000 tables of 15 columns described in {took:?}");
    assert_eq!(found.len(), 3000);
    assert!(took.as_secs() < 5, "{took:?}");
}
