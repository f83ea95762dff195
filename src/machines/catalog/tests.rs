//! Each kind of difference, one by one.

use super::*;

const COLUMNS: [WantedColumn<'_>; 2] = [
    WantedColumn { name: "needed", is_optional: false },
    WantedColumn { name: "extra", is_optional: true },
];

fn column(name: &str, number: i16) -> CatalogColumn {
    CatalogColumn {
        name: name.into(),
        number,
        version: 10,
        type_oid: 25,
        is_missing: false,
        is_generated: false,
        default: None,
        hash: Some("as it was".into()),
        labels: vec![Label { oid: 1, text: "A".into(), version: Some(10) }],
    }
}

fn part(oid: u32) -> CatalogPart {
    CatalogPart {
        name: format!("public.part_{oid}"),
        oid,
        filenode: 100,
        is_logged: true,
        toast: 200,
        is_leaf: true,
        attached: Some(10),
        is_born: true,
        is_empty: false,
    }
}

fn before() -> Catalog {
    Catalog {
        database: 5,
        publications: vec![Publication {
            name: "p".into(),
            oid: 1,
            version: 10,
            owner: 10,
            options: "all".into(),
            members: vec![Member { oid: 2, version: 10, of: 50, options: String::new() }],
        }],
        tables: vec![Table {
            name: "public.t".into(),
            oid: 50,
            is_logged: true,
            in_schema: Some(10),
            last_number: 2,
            columns: vec![column("needed", 1), column("extra", 2)],
            parts: vec![part(60), part(61)],
        }],
    }
}

fn of(change: impl Fn(&mut Catalog)) -> CatalogJudgement {
    let mut now = before();
    change(&mut now);
    judge(&before(), &now, &COLUMNS)
}

#[track_caller]
fn hides(says: &str, change: impl Fn(&mut Catalog)) {
    let judgement = of(&change);
    assert!(judgement.differs && judgement.may_hide_rows(), "{says}");
    assert!(judgement.to_string().contains(says), "`{says}` in {judgement}");
}

#[track_caller]
fn is_harmless(change: impl Fn(&mut Catalog)) {
    let judgement = of(change);
    assert!(judgement.differs && !judgement.may_hide_rows(), "{judgement}");
}

#[test]
fn two_looks_at_the_same_are_the_same() {
    assert_eq!(of(|_| ()), CatalogJudgement::default());
}

#[test]
fn a_look_reads_as_it_was_written() {
    let text = serde_json::to_string(&before()).unwrap();
    assert_eq!(serde_json::from_str::<Catalog>(&text).unwrap(), before());
}

#[test]
fn another_database_is_not_compared() {
    let judgement = of(|now| {
        now.database = 6;
        now.tables.clear();
    });
    assert!(judgement.differs && !judgement.may_hide_rows());
}

#[test]
fn whatever_a_publication_may_have_withheld_hides_rows() {
    hides("publication `p` is gone", |now| now.publications.clear());
    hides("was dropped, and made again", |now| now.publications[0].oid = 9);
    hides("was altered, and reads as before", |now| now.publications[0].version = 11);
    hides("was altered", |now| {
        now.publications[0].version = 11;
        now.publications[0].options = "insert".into();
    });
    hides("no longer has a table", |now| now.publications[0].members.clear());
    hides("and has it again", |now| now.publications[0].members[0].oid = 3);
    hides("and has it again", |now| now.publications[0].members[0].version = 11);
    hides("another column list or row filter", |now| {
        now.publications[0].members[0].version = 11;
        now.publications[0].members[0].options = "filter".into();
    });
    hides("was given a table", |now| {
        now.publications[0].members.push(Member { oid: 4, version: 9, of: 61, options: "".into() });
    });
    assert!(of(|now| now.publications[0].oid = 9).publication_is_new);
    assert!(!of(|now| now.publications[0].version = 11).publication_is_new);
    let made = judge(&Catalog { publications: vec![], ..before() }, &before(), &COLUMNS);
    assert!(made.may_hide_rows() && made.publication_is_new);
}

#[test]
fn another_table_under_the_name_hides_rows() {
    hides("is another one under the same name", |now| now.tables[0].oid = 51);
    hides("table `public.t` is gone", |now| now.tables.clear());
    hides("was unlogged", |now| now.tables[0].is_logged = false);
    assert!(judge(&Catalog { tables: vec![], ..before() }, &before(), &COLUMNS).may_hide_rows());
}

#[test]
fn rows_come_and_go_with_partitions() {
    hides("`public.part_61` of table `public.t` was detached or dropped", |now| {
        now.tables[0].parts.pop();
    });
    hides("was detached, and attached again", |now| now.tables[0].parts[0].attached = Some(11));
    hides("was attached, with rows", |now| {
        now.tables[0].parts.push(CatalogPart { is_born: false, ..part(62) });
    });
    // A tree of partitions that was made apart, and attached as a whole.
    hides("`public.part_62` of table `public.t` was attached", |now| {
        now.tables[0].parts.push(CatalogPart { is_born: false, is_leaf: false, ..part(62) });
        now.tables[0].parts.push(part(63));
    });
    is_harmless(|now| now.tables[0].parts.push(part(62)));
    is_harmless(|now| {
        now.tables[0].parts.push(CatalogPart { is_born: false, is_empty: true, ..part(62) });
        now.tables[0].parts.push(part(63));
    });
    is_harmless(|now| {
        now.tables[0].parts.push(CatalogPart { is_born: false, is_leaf: false, ..part(62) });
        now.tables[0].parts.push(CatalogPart { is_empty: true, ..part(63) });
    });
}

#[test]
fn another_file_alone_hides_nothing_and_is_told_of_a_partition() {
    let judgement = of(|now| now.tables[0].parts[1].filenode = 101);
    assert!(!judgement.may_hide_rows());
    assert_eq!(judgement.told.len(), 1);
    assert!(judgement.told[0].contains("`public.part_61`"), "{:?}", judgement.told);
    // That of the table itself is in the stream.
    let whole = |filenode| {
        let mut catalog = before();
        catalog.tables[0].parts = vec![CatalogPart { attached: None, filenode, ..part(50) }];
        catalog
    };
    let judgement = judge(&whole(100), &whole(101), &COLUMNS);
    assert!(judgement.differs && judgement.told.is_empty() && !judgement.may_hide_rows());
}

fn rewritten(now: &mut Catalog) -> &mut CatalogColumn {
    now.tables[0].parts[0].filenode = 101;
    let column = &mut now.tables[0].columns[0];
    column.version = 11;
    column
}

#[test]
fn values_that_were_rewritten_hide_rows() {
    hides("column `needed` was rewritten", |now| {
        rewritten(now);
    });
    hides("column `needed` was rewritten", |now| rewritten(now).type_oid = 701);
    // Of a column that is not read.
    let mut other = before();
    other.tables[0].columns.push(column("other", 3));
    let mut now = other.clone();
    now.tables[0].parts[0].filenode = 101;
    now.tables[0].columns[2].version = 11;
    assert!(!judge(&other, &now, &COLUMNS).may_hide_rows());
}

/// VACUUM FULL puts the values of columns that were added with a default into the rows.
#[test]
fn values_that_were_only_filled_in_hide_nothing() {
    let mut filled = before();
    filled.tables[0].columns[0].is_missing = true;
    filled.tables[0].columns[0].default = Some(7);
    let after = |change: fn(&mut CatalogColumn)| {
        let mut now = filled.clone();
        let column = rewritten(&mut now);
        column.is_missing = false;
        change(column);
        judge(&filled, &now, &COLUMNS).may_hide_rows()
    };
    assert!(!after(|_| ()));
    // A change of the type creates the default again.
    assert!(after(|column| column.default = Some(8)));
    assert!(after(|column| column.type_oid = 701));
}

#[test]
fn another_column_under_the_name_hides_rows() {
    hides("column `needed` is another one under the same name", |now| {
        now.tables[0].last_number = 3;
        now.tables[0].columns[0].number = 3;
    });
    hides("was dropped, or is called otherwise", |now| {
        now.tables[0].columns.pop();
    });
    hides("has an enum of which a label was renamed", |now| {
        now.tables[0].columns[0].labels[0].text = "B".into();
    });
    is_harmless(|now| {
        now.tables[0].columns[0].labels.push(Label { oid: 2, text: "B".into(), version: None });
    });
    // Both are named, in one reason.
    hides("column `needed` is another one under the same name, and 1 more", |now| {
        now.tables[0].columns[0].number = 3;
        now.tables[0].columns[1].number = 4;
    });
}

#[test]
fn a_label_that_had_another_name_for_a_while_hides_rows() {
    hides("has an enum of which a label was renamed", |now| {
        now.tables[0].columns[0].labels[0].version = Some(11);
    });
    is_harmless(|now| now.tables[0].columns[0].labels[0].version = None);
}

#[test]
fn what_may_have_been_unlogged_hides_rows() {
    hides("partition `public.part_60` of `public.t` was unlogged", |now| {
        now.tables[0].parts[0].is_logged = false;
    });
    hides("partition `public.part_62` of `public.t` was unlogged", |now| {
        now.tables[0].parts.push(CatalogPart { is_logged: false, ..part(62) });
    });
    hides("was written anew by ALTER TABLE", |now| now.tables[0].parts[0].toast = 201);
    let whole = |toast, member| {
        let mut catalog = before();
        catalog.tables[0].parts = vec![CatalogPart { attached: None, toast, ..part(50) }];
        catalog.publications[0].members[0].of = member;
        catalog
    };
    let may_hide = |member| judge(&whole(1, member), &whole(2, member), &COLUMNS).may_hide_rows();
    assert!(may_hide(2_200), "published with its schema");
    assert!(!may_hide(50), "published by its name");
}

#[test]
fn a_table_that_was_in_another_schema_hides_rows() {
    hides("was in another schema", |now| now.tables[0].in_schema = Some(11));
}

#[test]
fn an_optional_column_hides_rows_when_it_had_values_that_were_not_streamed() {
    let mut without = before();
    without.tables[0].columns.pop();
    without.tables[0].last_number = 1;
    let with = |change: fn(&mut Table)| {
        let mut now = before();
        change(&mut now.tables[0]);
        judge(&without, &now, &COLUMNS).may_hide_rows()
    };
    assert!(!with(|_| ()));
    assert!(with(|table| table.columns[1].is_missing = true));
    assert!(with(|table| table.columns[1].is_generated = true));
    assert!(with(|table| table.parts[0].filenode = 101));
    // One that came and went, under what name nobody knows.
    assert!(with(|table| {
        table.columns[1].number = 3;
        table.last_number = 3;
    }));
    // It was there, under another name.
    assert!(with(|table| table.columns[1].number = 1));
}

#[test]
fn an_entry_that_was_altered_and_reads_as_before_had_another_name_perhaps() {
    hides("column `extra` was altered, and reads as before", |now| {
        now.tables[0].columns[1].version = 11;
    });
    // A privilege, a statistics target, a default.
    is_harmless(|now| {
        now.tables[0].columns[1].version = 11;
        now.tables[0].columns[1].hash = Some("with a privilege".into());
    });
    // Without it nothing goes on, so it was not missed.
    is_harmless(|now| now.tables[0].columns[0].version = 11);
}

/// As the first version wrote it. What came later is not known of it, and no difference.
const OLDEST: &str = r#"{"database": 5,
    "publications": [{"name": "p", "oid": 1, "version": 10, "owner": 10, "options": "all",
        "members": [{"oid": 2, "version": 10, "of": 50, "options": ""}]}],
    "tables": [{"name": "public.t", "oid": 50, "is_logged": true, "last_number": 2,
        "columns": [
            {"name": "needed", "number": 1, "version": 10, "type_oid": 25, "is_missing": false,
             "is_generated": false, "default": null, "entry": "d41d8cd98f00b204e9800998ecf8427e",
             "labels": [{"oid": 1, "text": "A"}]},
            {"name": "extra", "number": 2, "version": 10, "type_oid": 25, "is_missing": false,
             "is_generated": false, "default": null, "entry": "d41d8cd98f00b204e9800998ecf8427e",
             "labels": [{"oid": 1, "text": "A"}]}],
        "parts": [
            {"name": "public.part_60", "oid": 60, "filenode": 100, "is_leaf": true,
             "attached": 10, "is_born": true, "is_empty": false},
            {"name": "public.part_61", "oid": 61, "filenode": 100, "is_leaf": true,
             "attached": 10, "is_born": true, "is_empty": false}]}]}"#;

#[test]
fn a_record_of_an_older_version_is_read_and_what_it_lacks_is_no_difference() {
    let oldest: Catalog = serde_json::from_str(OLDEST).expect("every later field has a default");
    let judgement = judge(&oldest, &before(), &COLUMNS);
    assert!(judgement.differs && !judgement.may_hide_rows(), "{judgement}");
    assert_eq!(judgement.told, Vec::<String>::new());
    // An entry that was altered since is in doubt: nobody knows whether it reads as before.
    let mut now = before();
    now.tables[0].columns[1].version = 11;
    let judgement = judge(&oldest, &now, &COLUMNS);
    assert!(judgement.to_string().contains("column `extra` was altered"), "{judgement}");
    // A later version may write more.
    let mut newer = serde_json::to_value(before()).unwrap();
    newer["tables"][0]["more"] = serde_json::json!(1);
    assert_eq!(serde_json::from_value::<Catalog>(newer).unwrap(), before());
}
