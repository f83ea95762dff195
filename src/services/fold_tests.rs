//! What a batch of changes comes to, seen through the sessions mapping.

use hashbrown::HashMap;

use super::assemble::{Answers, Assembled, Missing, Updates, assemble, wanted};
use super::fold::{Folded, FoldedChange, fold};
use super::mapping::{Mapping, is_owned};
use super::plan::{RelationPlan, Types};
use super::row::Row;
use super::runs::Runs;
use super::sessions::Sessions;
use crate::rows::key::{Key, LiveKey};
use crate::rows::{Shape, stored};
use crate::wal::testing::{self, V};
use crate::wal::{Datum, Lsn, Oid, value::oid};

const ALL: std::ops::Range<usize> = 0..usize::MAX;
const TABLE: Oid = Oid(16_400);

fn shapes() -> [Shape; 1] {
    [Shape::of(vec![true; 19])]
}

fn plan() -> RelationPlan {
    plan_of(&Sessions)
}

fn plan_of(mapping: &dyn Mapping) -> RelationPlan {
    let source = mapping.source();
    let columns: Vec<_> =
        source.columns.iter().map(|column| (&*column.name, column.kind.a_type())).collect();
    let relation = testing::relation_of(TABLE.0, &source.table, &columns);
    RelationPlan::new(source, &relation, &Types::default()).unwrap()
}

/// A session's tuple: id, organization, metadata; the rest is constant.
fn session<'a>(id: &'a str, organization: &'a str, metadata: V<'a>) -> Vec<V<'a>> {
    let text = V::Text;
    vec![
        text(id),
        text("friendly"),
        V::Null,
        text("chat"),
        text("project"),
        text("environment"),
        text("PRODUCTION"),
        text(organization),
        text("task"),
        text("{b,a}"),
        metadata,
        V::Null,
        V::Null,
        V::Null,
        text("2024-01-01 00:00:00"),
        text("2024-01-02 00:00:00"),
        text("f"),
    ]
}

fn key_of(id: &str) -> Vec<V<'_>> {
    let mut values = vec![V::Null; 17];
    values[0] = V::Text(id);
    values
}

/// Folds messages whose LSNs are 1, 2, 3...
fn folded<'a>(plan: &'a RelationPlan, messages: &'a [Vec<u8>]) -> Folded<'a> {
    let changes = (1..).zip(messages).map(|(lsn, message)| FoldedChange {
        message,
        lsn: Lsn(lsn),
        xid: 1,
        plan,
        ask_below: None,
    });
    fold(Sessions.source(), changes).unwrap()
}

/// The rows as `id/organization@version metadata`, with `-` in front of a tombstone.
fn rows(assembled: &Assembled) -> Vec<String> {
    let block = &assembled.blocks[0];
    let text =
        |column: usize, row: usize| String::from_utf8_lossy(block.text(column, row)).into_owned();
    let target = &Sessions.targets()[0];
    let mut rows: Vec<_> = (0..block.rows())
        .map(|row| {
            let sign = if block.value(target.is_deleted, row) == Some(&[1]) { "-" } else { "" };
            let (id, organization) = (text(3, row), text(1, row));
            let version = block.u64(target.version, row);
            format!("{sign}{id}/{organization}@{version} {}", text(10, row))
        })
        .collect();
    rows.sort();
    rows
}

/// As ClickHouse sorts it.
fn key_of_session(id: &str, organization: &str, created_at: i64) -> Key {
    let texts = [organization, "p", "e"].map(str::as_bytes);
    texts.into_iter().chain([&created_at.to_le_bytes()[..], id.as_bytes()]).collect()
}

#[track_caller]
fn check(messages: &[Vec<u8>], expected: &[&str]) {
    let plan = plan();
    let folded = folded(&plan, messages);
    let wanted = wanted(&Sessions, &folded, Updates::AsUpdates);
    assert!(wanted.is_empty(), "{wanted:?}");
    let found = Answers::default();
    let assembled = assemble(&Sessions, &folded, &wanted, &found, &shapes(), 0, ALL).unwrap();
    assert_eq!(rows(&assembled), expected);
}

fn insert(id: &str, metadata: &str) -> Vec<u8> {
    testing::insert(TABLE, &session(id, "org", V::Text(metadata)))
}

fn update(id: &str, metadata: V<'_>) -> Vec<u8> {
    testing::update(TABLE, None, &session(id, "org", metadata))
}

#[test]
fn the_latest_row_of_a_key_wins() {
    check(
        &[insert("a", "1"), insert("b", "2"), update("a", V::Text("3")), update("a", V::Text("4"))],
        &[r#"a/org@4 {"data":4}"#, r#"b/org@2 {"data":2}"#],
    );
}

#[test]
fn unchanged_values_are_carried_through_any_number_of_updates() {
    check(
        &[insert("a", "1"), update("a", V::Unchanged), update("a", V::Unchanged)],
        &[r#"a/org@3 {"data":1}"#],
    );
}

#[test]
fn unchanged_values_come_from_the_old_row_first() {
    let old = session("a", "org", V::Text("7"));
    let new = session("a", "org", V::Unchanged);
    check(&[testing::update(TABLE, Some((b'O', &old)), &new)], &[r#"a/org@1 {"data":7}"#]);
}

#[test]
fn a_deleted_row_becomes_a_tombstone_with_its_last_image() {
    let full = testing::delete(TABLE, b'O', &session("a", "org", V::Text("1")));
    check(&[full], &[r#"-a/org@1 {"data":1}"#]);
    let by_key = testing::delete(TABLE, b'K', &key_of("a"));
    check(&[insert("a", "1"), update("a", V::Unchanged), by_key], &[r#"-a/org@3 {"data":1}"#]);
}

#[test]
fn a_row_that_comes_back_outranks_its_tombstone() {
    let delete = testing::delete(TABLE, b'K', &key_of("a"));
    check(
        &[insert("a", "1"), delete.clone(), insert("a", "2"), delete, insert("a", "3")],
        &[r#"-a/org@2 {"data":1}"#, r#"-a/org@4 {"data":2}"#, r#"a/org@5 {"data":3}"#],
    );
}

#[test]
fn a_changed_key_leaves_a_tombstone_and_carries_its_values() {
    let new = session("b", "org", V::Unchanged);
    let change = testing::update(TABLE, Some((b'K', &key_of("a"))), &new);
    check(&[insert("a", "1"), change], &[r#"-a/org@2 {"data":1}"#, r#"b/org@2 {"data":1}"#]);
    let old = session("a", "org", V::Text("9"));
    let change = testing::update(TABLE, Some((b'O', &old)), &new);
    check(&[change], &[r#"-a/org@1 {"data":9}"#, r#"b/org@1 {"data":9}"#]);
}

#[test]
fn swapped_keys_keep_both_rows() {
    // Within a transaction: a -> x, b -> a, x -> b, under REPLICA IDENTITY FULL.
    let full = |old: &str, new: &str, value: &str| {
        let old = session(old, "org", V::Text(value));
        testing::update(TABLE, Some((b'O', &old)), &session(new, "org", V::Text(value)))
    };
    check(
        &[full("a", "x", "1"), full("b", "a", "2"), full("x", "b", "1")],
        &[
            r#"-a/org@1 {"data":1}"#,
            r#"-b/org@2 {"data":2}"#,
            r#"-x/org@3 {"data":1}"#,
            r#"a/org@2 {"data":2}"#,
            r#"b/org@3 {"data":1}"#,
        ],
    );
}

#[test]
fn a_row_that_moves_to_another_sorting_key_leaves_a_tombstone() {
    let old = session("a", "org", V::Text("1"));
    let new = session("a", "org2", V::Text("1"));
    let full = testing::update(TABLE, Some((b'O', &old)), &new);
    check(&[full], &[r#"-a/org@1 {"data":1}"#, r#"a/org2@1 {"data":1}"#]);
    let plain = testing::update(TABLE, None, &new);
    check(&[insert("a", "1"), plain], &[r#"-a/org@2 {"data":1}"#, r#"a/org2@2 {"data":1}"#]);
}

#[test]
fn rows_without_an_organization_are_counted_not_written() {
    let plan = plan();
    let messages = [
        testing::insert(TABLE, &session("a", "", V::Null)),
        testing::delete(TABLE, b'K', &key_of("a")),
    ];
    let folded = folded(&plan, &messages);
    let found = Answers::default();
    let assembled =
        assemble(&Sessions, &folded, &Missing::default(), &found, &shapes(), 0, ALL).unwrap();
    assert!(rows(&assembled).is_empty());
    assert_eq!(assembled.notes.rows_without_owner, 0, "it was deleted in the same batch");

    let folded = self::folded(&plan, &messages[..1]);
    let assembled =
        assemble(&Sessions, &folded, &Missing::default(), &found, &shapes(), 0, ALL).unwrap();
    assert_eq!(assembled.notes.rows_without_owner, 1);
}

#[test]
fn values_the_batch_lacks_are_asked_for_once() {
    let plan = plan();
    let messages =
        [update("a", V::Unchanged), update("a", V::Unchanged), update("b", V::Unchanged)];
    let folded = folded(&plan, &messages);
    let wanted = wanted(&Sessions, &folded, Updates::AsUpdates);
    assert_eq!(wanted.rereads, [1, 2]);
    assert_eq!(wanted.places.iter().collect::<Vec<_>>(), [10]);

    // `b` is gone from Postgres: its DELETE is still to come.
    let found = Answers {
        values: HashMap::from([(1, [Some(b"5".to_vec())].into())]),
        ..Answers::default()
    };
    let assembled = assemble(&Sessions, &folded, &wanted, &found, &shapes(), 100, ALL).unwrap();
    assert_eq!(rows(&assembled), [r#"a/org@102 {"data":5}"#]);
    assert_eq!(assembled.rows_gone, 1);
}

#[test]
fn parts_of_a_batch_come_to_what_the_whole_does() {
    let plan = plan();
    let messages = [
        update("a", V::Unchanged),
        testing::delete(TABLE, b'K', &key_of("b")),
        insert("c", "1"),
        testing::delete(TABLE, b'K', &key_of("d")),
        update("e", V::Unchanged),
    ];
    let folded = folded(&plan, &messages);
    let wanted = wanted(&Sessions, &folded, Updates::AsUpdates);
    let key = |id: &str| vec![key_of_session(id, "org", 0)];
    let found = Answers {
        values: HashMap::from([0, 4].map(|entry| (entry, [Some(b"5".to_vec())].into()))),
        keys: HashMap::from([(1, key("b")), (3, key("d"))]),
        ..Answers::default()
    };
    let of = |part| {
        let part = assemble(&Sessions, &folded, &wanted, &found, &shapes(), 0, part).unwrap();
        assert_eq!(part.tombstones_of_nothing + part.rows_gone, 0);
        rows(&part)
    };
    for cut in 0..=messages.len() {
        let mut parts = [of(0..cut), of(cut..messages.len())].concat();
        parts.sort();
        assert_eq!(parts, of(ALL), "cut at {cut}");
    }
}

#[test]
fn a_key_changed_with_unchanged_values_is_reread_under_its_new_key() {
    let plan = plan();
    let new = session("b", "org", V::Unchanged);
    let messages =
        [update("a", V::Unchanged), testing::update(TABLE, Some((b'K', &key_of("a"))), &new)];
    let folded = folded(&plan, &messages);
    let wanted = wanted(&Sessions, &folded, Updates::AsUpdates);
    let [entry] = wanted.rereads[..] else { panic!("{wanted:?}") };
    assert_eq!(*folded.entries[entry].id, *b"b");
}

#[test]
fn a_tombstone_of_an_unknown_row_is_looked_up() {
    let plan = plan();
    let messages = [testing::delete(TABLE, b'K', &key_of("a")), insert("a", "1")];
    let folded = folded(&plan, &messages);
    let wanted = wanted(&Sessions, &folded, Updates::AsUpdates);
    assert_eq!(wanted.lookups, [0]);
    let key = |organization: &str| key_of_session("a", organization, 1_704_067_200_123);
    let found = Answers {
        keys: HashMap::from([(0, vec![key("org1"), key("org2")])]),
        ..Answers::default()
    };
    let assembled = assemble(&Sessions, &folded, &wanted, &found, &shapes(), 0, ALL).unwrap();
    assert_eq!(
        rows(&assembled),
        [r#"-a/org1@1 {"data":null}"#, r#"-a/org2@1 {"data":null}"#, r#"a/org@2 {"data":1}"#]
    );
    assert_eq!(assembled.blocks[0].u64(14, 0), 1_704_067_200_123);

    let assembled =
        assemble(&Sessions, &folded, &wanted, &Answers::default(), &shapes(), 0, ALL).unwrap();
    assert_eq!(assembled.tombstones_of_nothing, 1);
}

#[test]
fn a_payload_without_its_run_is_deleted_with_what_is_known_of_it() {
    let mapping = Runs { payloads: true, fingerprints: true };
    let plan = plan_of(&mapping);
    let mut key = vec![V::Null; mapping.source().columns.len()];
    key[mapping.source().key[0]] = V::Text("a");
    let messages = [testing::delete(TABLE, b'K', &key)];
    let folded = folded(&plan, &messages);
    let wanted = wanted(&mapping, &folded, Updates::AsUpdates);
    assert_eq!(wanted.lookups, [0]);
    let (key, partition) = (Key::from_iter([b"a"]), Key::from_iter([7_i64.to_le_bytes()]));
    let orphan = LiveKey { key, partition, version: 1 };
    let found = Answers { orphans: HashMap::from([(0, vec![(1, orphan)])]), ..Answers::default() };
    let shapes: Vec<Shape> = (mapping.targets().iter())
        .map(|target| Shape::of(vec![true; target.columns.len()]))
        .collect();
    let assembled = assemble(&mapping, &folded, &wanted, &found, &shapes, 0, ALL).unwrap();
    let [runs, payloads] = &assembled.blocks[..] else { panic!("two tables") };
    assert_eq!((runs.rows(), payloads.rows(), assembled.tombstones_of_nothing), (0, 1, 0));
    let target = &mapping.targets()[1];
    let text = |column| String::from_utf8(stored::text(payloads, column, 0).unwrap());
    assert_eq!(
        [target.id[0], 1, target.version, target.is_deleted].map(|at| text(at).unwrap()),
        ["a", "7", "1", "1"]
    );
}

#[test]
fn a_row_without_an_owner_is_not_one_that_is_written() {
    let mapping = Runs { payloads: true, fingerprints: true };
    let mut row = Row::of(mapping.source());
    for (at, value) in mapping.owners().iter().zip(["org", "PRODUCTION"]) {
        assert!(!is_owned(&mapping, &row));
        row.values[*at] = Datum::Text(value.as_bytes());
    }
    assert!(is_owned(&mapping, &row));
    row.values[mapping.owners()[1]] = Datum::Text(b"");
    assert!(!is_owned(&mapping, &row));
}

#[test]
fn a_version_beyond_its_type_is_refused() {
    let (plan, message) = (plan(), insert("a", "1"));
    let change = FoldedChange {
        message: &message,
        lsn: Lsn(u64::MAX - 1),
        xid: 1,
        plan: &plan,
        ask_below: None,
    };
    let folded = fold(Sessions.source(), [change]).unwrap();
    let with_shift = |shift| {
        let (wanted, found) = (Missing::default(), Answers::default());
        assemble(&Sessions, &folded, &wanted, &found, &shapes(), shift, ALL)
    };
    assert_eq!(rows(&with_shift(1).unwrap()).len(), 1);
    assert_eq!(
        with_shift(2).unwrap_err().to_string(),
        "column `_version`: LSN of a change plus the version shift: malformed value"
    );
}

#[test]
fn a_row_that_the_batch_only_updates_is_looked_up_when_it_is_deleted() {
    let plan = plan();
    let by_key = || testing::delete(TABLE, b'K', &key_of("a"));
    let lookups = |messages: &[Vec<u8>]| {
        wanted(&Sessions, &folded(&plan, messages), Updates::AsUpdates).lookups
    };
    // It may have come from another sorting key.
    assert_eq!(lookups(&[update("a", V::Text("1")), update("a", V::Text("2")), by_key()]), [2]);
    let moved = testing::update(TABLE, None, &session("a", "org2", V::Text("2")));
    assert_eq!(lookups(&[update("a", V::Text("1")), moved.clone(), by_key()]), [3]);
    // What the batch has from its start, or with its old row, it knows.
    assert_eq!(lookups(&[insert("a", "1"), moved.clone(), by_key()]), [] as [usize; 0]);
    let old = session("a", "org", V::Text("1"));
    let full = testing::update(TABLE, Some((b'O', &old)), &session("a", "org2", V::Text("2")));
    assert_eq!(lookups(&[full, by_key()]), [] as [usize; 0]);
}

#[test]
fn a_tuple_of_another_width_is_refused() {
    let plan = plan();
    let message = testing::insert(TABLE, &[V::Text("a")]);
    let change =
        FoldedChange { message: &message, lsn: Lsn(1), xid: 1, plan: &plan, ask_below: None };
    assert!(fold(Sessions.source(), [change]).is_err());
}

#[test]
fn a_relation_without_a_mapped_column_or_with_another_type_is_refused_by_name() {
    let relation = testing::relation_of(1, "Session", &[("id", oid::TEXT)]);
    let error =
        RelationPlan::new(Sessions.source(), &relation, &Types::default()).unwrap_err().to_string();
    assert_eq!(error, r#"relation "public"."Session" has no column `friendlyId`"#);
    let relation = testing::relation_of(1, "Session", &[("id", oid::INT4)]);
    let error =
        RelationPlan::new(Sessions.source(), &relation, &Types::default()).unwrap_err().to_string();
    assert_eq!(
        error,
        r#"column `id` of relation "public"."Session": expected text or an enum, got type oid 23"#
    );
}

#[test]
fn what_a_past_version_of_the_relation_lacks_is_read_again() {
    let source = Sessions.source();
    let columns = |missing: &str, retyped: &str| -> Vec<_> {
        let columns = source.columns.iter().filter(|column| *column.name != *missing);
        let kind = |column: &crate::services::source::SourceColumn| match *column.name == *retyped {
            true => oid::BOOL,
            false => column.kind.a_type(),
        };
        columns.map(|column| (&*column.name, kind(column))).collect()
    };
    let relation = testing::relation_of(TABLE.0, "Session", &columns("closedReason", "metadata"));
    assert!(RelationPlan::new(source, &relation, &Types::default()).is_err());
    let plan = RelationPlan::of_the_past(source, &relation, &Types::default()).unwrap();
    let mut values = session("a", "org", V::Text("t"));
    values.remove(12);
    let mut other = session("b", "org", V::Text("t"));
    other.remove(12);
    let messages = [
        testing::insert(TABLE, &values),
        testing::update(TABLE, None, &values),
        testing::insert(TABLE, &other),
        testing::delete(TABLE, b'O', &other),
    ];
    let folded = folded(&plan, &messages);
    let wanted = wanted(&Sessions, &folded, Updates::AsUpdates);
    assert!(wanted.rereads.contains(&1) && wanted.lookups.is_empty(), "{wanted:?}");
    let names: Vec<_> = wanted.places.iter().map(|place| &*source.columns[place].name).collect();
    assert_eq!(names, ["metadata", "closedReason"]);
    let found = Answers {
        values: HashMap::from([(1, [Some(b"5".to_vec()), Some(b"done".to_vec())].into())]),
        ..Answers::default()
    };
    let assembled = assemble(&Sessions, &folded, &wanted, &found, &shapes(), 0, ALL).unwrap();
    assert_eq!(rows(&assembled), [r#"-b/org@4 {"data":null}"#, r#"a/org@2 {"data":5}"#]);
    assert_eq!(assembled.blocks[0].text(12, 0), b"done");

    let without_id = testing::relation_of(TABLE.0, "Session", &columns("id", ""));
    assert!(RelationPlan::of_the_past(source, &without_id, &Types::default()).is_err());

    // What came before it in the batch does not stand for what it lacks: that may have changed
    // under it. Nor does it for an update after it that left the value in TOAST.
    let present = self::plan();
    let (insert, update) = (insert("a", "m"), testing::update(TABLE, None, &values));
    let toasted = self::update("a", V::Unchanged);
    let changes = [(&insert, &present), (&update, &plan), (&toasted, &present)];
    for count in [2, 3] {
        let changes = (1..).zip(&changes[..count]).map(|(lsn, (message, plan))| FoldedChange {
            message,
            lsn: Lsn(lsn),
            xid: 1,
            plan,
            ask_below: None,
        });
        let folded = fold(source, changes).unwrap();
        let wanted = crate::services::assemble::wanted(&Sessions, &folded, Updates::AsUpdates);
        assert_eq!(wanted.rereads, [count - 1], "{wanted:?}");
        assert!(wanted.places.iter().any(|place| *source.columns[place].name == *"metadata"));
    }
}

/// A run's tuple: only what a row cannot be written without.
fn run<'a>(organization: &'a str, payload: V<'a>) -> Vec<V<'a>> {
    let value = |column: &crate::services::source::SourceColumn| match &*column.name {
        "id" => V::Text("a"),
        "organizationId" => V::Text(organization),
        "payload" => payload,
        "environmentType" => V::Text("PRODUCTION"),
        "createdAt" | "updatedAt" => V::Text("2024-01-01 00:00:00"),
        _ => V::Null,
    };
    RUNS.source().columns.iter().map(value).collect()
}

fn run_shapes() -> Vec<Shape> {
    let shape = |count| Shape::of(vec![true; count]);
    RUNS.targets().iter().map(|target| shape(target.columns.len())).collect()
}

const RUNS: Runs = Runs { payloads: true, fingerprints: false };

#[test]
fn a_run_that_moves_to_another_sorting_key_keeps_its_payload() {
    let plan = plan_of(&RUNS);
    let shapes = run_shapes();
    let moves = testing::update(
        TABLE,
        Some((b'O', &run("org", V::Text("{}")))),
        &run("org2", V::Unchanged),
    );
    let delete = testing::delete(TABLE, b'O', &run("org2", V::Text("{}")));
    for (messages, tombstones) in [(vec![moves.clone()], [1, 0]), (vec![moves, delete], [2, 1])] {
        let changes = (1..).zip(&messages).map(|(lsn, message)| FoldedChange {
            message,
            lsn: Lsn(lsn),
            xid: 1,
            plan: &plan,
            ask_below: None,
        });
        let folded = fold(RUNS.source(), changes).unwrap();
        let wanted = wanted(&RUNS, &folded, Updates::AsUpdates);
        assert!(wanted.is_empty(), "{wanted:?}");
        let assembled =
            assemble(&RUNS, &folded, &wanted, &Answers::default(), &shapes, 0, ALL).unwrap();
        let deleted = |table: usize| {
            let (block, at) = (&assembled.blocks[table], RUNS.targets()[table].is_deleted);
            (0..block.rows()).filter(|row| block.value(at, *row) == Some(&[1])).count()
        };
        assert_eq!([deleted(0), deleted(1)], tombstones, "a deleted run has no payload");
    }
}

/// While a repair reads the table, an update may be what moved a row out of its way.
#[test]
fn an_update_under_a_repair_brings_the_payload_too() {
    let plan = plan_of(&RUNS);
    let shapes = run_shapes();
    let payload = |value| testing::update(TABLE, None, &run("org", value));
    for (message, updates, payloads, rereads) in [
        (payload(V::Text("{}")), Updates::AsUpdates, 0, 0),
        (payload(V::Text("{}")), Updates::AsFirst, 1, 0),
        (payload(V::Unchanged), Updates::AsUpdates, 0, 0),
        (payload(V::Unchanged), Updates::AsFirst, 1, 1),
    ] {
        let change =
            FoldedChange { message: &message, lsn: Lsn(1), xid: 1, plan: &plan, ask_below: None };
        let folded = fold(RUNS.source(), [change]).unwrap();
        let wanted = wanted(&RUNS, &folded, updates);
        assert_eq!(wanted.rereads.len(), rereads, "{updates:?}");
        let mut found = Answers::default();
        let values = wanted.places.iter().map(|_| Some(b"{}".to_vec())).collect();
        found.values.insert(0, values);
        let assembled = assemble(&RUNS, &folded, &wanted, &found, &shapes, 0, ALL).unwrap();
        assert_eq!(assembled.blocks[0].rows(), 1);
        assert_eq!(assembled.blocks[1].rows(), payloads, "{updates:?}");
    }
}

/// Its tombstone may be in ClickHouse already, and must not be outranked.
#[test]
fn a_row_that_the_batch_removes_is_not_asked_for() {
    let plan = plan();
    let asked = |messages: &[Vec<u8>]| {
        let changes = (1..).zip(messages).map(|(lsn, message)| FoldedChange {
            message,
            lsn: Lsn(lsn),
            xid: 1,
            plan: &plan,
            ask_below: Some(Lsn(9)),
        });
        let folded = fold(Sessions.source(), changes).unwrap();
        let asked = folded.entries.iter().filter(|entry| entry.ask_below.is_some());
        asked.map(|entry| (entry.id.to_vec(), entry.lsn.0)).collect::<Vec<_>>()
    };
    let old = session("a", "org", V::Text("old"));
    let whole = testing::update(TABLE, Some((b'O', &old)), &old);
    let rekeyed = testing::update(TABLE, Some((b'K', &key_of("a"))), &session("b", "org", V::Null));
    let delete = || testing::delete(TABLE, b'K', &key_of("a"));
    let a = |lsn| (b"a".to_vec(), lsn);
    assert_eq!(asked(&[insert("a", "m"), whole.clone()]), [a(1)]);
    assert_eq!(asked(&[insert("a", "m"), delete()]), []);
    assert_eq!(asked(&[insert("a", "m"), whole, delete(), insert("a", "n")]), [a(4)]);
    assert_eq!(asked(&[insert("a", "m"), rekeyed]), [(b"b".to_vec(), 2)]);
}

#[test]
fn what_an_asked_entry_came_to_takes_another_version() {
    let plan = plan_of(&RUNS);
    let message = testing::insert(TABLE, &run("org", V::Text("{\"a\":1,\"a\":2}")));
    let ask_below = Some(Lsn(9));
    let change = FoldedChange { message: &message, lsn: Lsn(1), xid: 1, plan: &plan, ask_below };
    let folded = fold(RUNS.source(), [change]).unwrap();
    let wanted = wanted(&RUNS, &folded, Updates::AsUpdates);
    let (found, shapes) = (Answers::default(), run_shapes());
    let mut assembled = assemble(&RUNS, &folded, &wanted, &found, &shapes, 0, ALL).unwrap();
    assert_eq!(assembled.asked.len(), 1);
    assert_eq!(assembled.asked[0].rows, [(0, 0), (1, 0)]);
    assembled.set_version(RUNS.targets(), 0, 25);
    for (target, block) in RUNS.targets().iter().zip(&assembled.blocks) {
        assert_eq!(block.u64(target.version, 0), 25);
    }
    assert!(assembled.notes.kept.iter().all(|kept| kept.version == 25), "{:?}", assembled.notes);
}
