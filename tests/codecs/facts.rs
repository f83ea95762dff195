//! What the recordings say, against what the statements did.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use walhouse::rows::Block;
use walhouse::services::assemble::Missing;
use walhouse::wal::copy_both::FromServer;
use walhouse::wal::pgoutput::{Message, Old};
use walhouse::wal::{Datum, Lsn, Tuple};

use super::recording::{Format, Identity, Recording};
use super::replay::{Changes, RUNS, SESSIONS, encode, mappings, rows};
use super::server::Server;

/// Since this version, transactions of which nothing is published are not sent.
const EMPTY_IS_SKIPPED_SINCE: u32 = 15;

type Row = Map<String, Value>;

fn kind(message: &Message<'_>) -> &'static str {
    match message {
        Message::Begin { .. } => "begin",
        Message::Commit { .. } => "commit",
        Message::Relation(_) => "relation",
        Message::Insert { .. } => "insert",
        Message::Update { old: Old::None, .. } => "update",
        Message::Update { old: Old::Key(_), .. } => "update with key",
        Message::Update { old: Old::Row(_), .. } => "update with row",
        Message::Delete { old: Old::None, .. } => "delete",
        Message::Delete { old: Old::Key(_), .. } => "delete with key",
        Message::Delete { old: Old::Row(_), .. } => "delete with row",
        Message::Truncate { .. } => "truncate",
        Message::Ignored => "ignored",
    }
}

fn tuples<'a>(message: &Message<'a>) -> Vec<Tuple<'a>> {
    let of_old = |old: &Old<'a>| match *old {
        Old::None => None,
        Old::Key(tuple) | Old::Row(tuple) => Some(tuple),
    };
    match message {
        Message::Insert { new, .. } => vec![*new],
        Message::Update { old, new, .. } => of_old(old).into_iter().chain([*new]).collect(),
        Message::Delete { old, .. } => of_old(old).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// Everything that must hold of a recording by itself.
fn check(recording: &Recording) {
    check_kinds(recording);
    check_order(recording);
    check_formats(recording);
    check_relations(recording);
    check_rows(recording);
    check_what_is_wanted(recording);
}

fn check_kinds(recording: &Recording) {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for transaction in recording.transactions() {
        for sent in &transaction.messages {
            *kinds.entry(kind(&sent.message)).or_default() += 1;
        }
    }
    let mut expected = BTreeMap::from([
        // One for each table; one more after ALTER TABLE, two more around TRUNCATE.
        ("relation", 5),
        // Before them three types of runs, and each time one of sessions; and an origin.
        ("ignored", 8),
        ("insert", 7),
        ("truncate", 1),
    ]);
    match recording.identity() {
        Identity::Default => {
            expected.extend([("update", 3), ("update with key", 1), ("delete with key", 3)]);
        }
        Identity::Full => expected.extend([("update with row", 4), ("delete with row", 3)]),
    }
    assert_eq!(kinds, expected, "{}", recording.name);
}

fn check_order(recording: &Recording) {
    let name = &recording.name;
    let transactions = recording.transactions();
    let with_rows = transactions.iter().filter(|transaction| !transaction.messages.is_empty());
    assert_eq!(with_rows.count(), 11, "{name}");
    let has_empty = transactions.iter().any(|transaction| transaction.messages.is_empty());
    assert_eq!(has_empty, recording.version() < EMPTY_IS_SKIPPED_SINCE, "{name}");
    let xids: BTreeSet<u32> = transactions.iter().map(|transaction| transaction.xid).collect();
    assert_eq!(xids.len(), transactions.len(), "{name}: each has its own id");
    assert!(transactions.is_sorted_by_key(|transaction| transaction.xid), "{name}");
    assert!(transactions.is_sorted_by_key(|transaction| transaction.commit_time), "{name}");
    let mut end = Lsn(0);
    for transaction in &transactions {
        assert!(end < transaction.end_lsn, "{name}: commits come in order");
        end = transaction.end_lsn;
        assert!(transaction.commit_lsn < end, "{name}");
        let mut last = transaction.begin;
        for sent in &transaction.messages {
            match kind(&sent.message) {
                // They stand for no place in the WAL. An origin takes the place of its Begin.
                "relation" => assert_eq!(sent.wal_start, Lsn(0), "{name}"),
                "ignored" => {
                    let has_origin = transaction.begin == Lsn(0);
                    assert!(sent.wal_start == Lsn(0) || has_origin, "{name}");
                }
                "truncate" => assert!(last <= sent.wal_start, "{name}"),
                _ => {
                    assert!(
                        last < sent.wal_start || last == transaction.begin,
                        "{name}: each change has an LSN of its own"
                    );
                    last = sent.wal_start;
                }
            }
            assert!(sent.wal_start < transaction.commit_lsn, "{name}");
        }
    }
    let mut keepalives = recording.copy_data().into_iter().filter_map(|data| {
        match FromServer::parse(data).expect("it was recorded") {
            FromServer::PrimaryKeepalive { wal_end, .. } => Some(wal_end),
            FromServer::XLogData { .. } => None,
        }
    });
    let last = keepalives.next_back().expect("the recording ends with a keepalive");
    assert!(end <= last, "{name}: the last keepalive is behind all that was sent");
}

/// Binary means binary for every type there is, and the other way round.
fn check_formats(recording: &Recording) {
    let name = &recording.name;
    let (mut values, mut unchanged) = (0, 0);
    for transaction in recording.transactions() {
        for sent in &transaction.messages {
            for tuple in tuples(&sent.message) {
                assert_eq!(tuple.datums().count(), tuple.columns(), "{name}");
                let left_out = tuple.datums().filter(|datum| *datum == Datum::Unchanged).count();
                assert_eq!(tuple.has_unchanged(), 0 < left_out, "{name}");
                unchanged += left_out;
                for datum in tuple.datums() {
                    match (datum, recording.format()) {
                        (Datum::Null | Datum::Unchanged, _) => {}
                        (Datum::Text(_), Format::Text) | (Datum::Binary(_), Format::Binary) => {
                            values += 1;
                        }
                        other => panic!("{name}: {other:?}"),
                    }
                }
            }
        }
    }
    assert!(200 < values, "{name}: {values}");
    // Output and error of `run_2`, twice.
    assert_eq!(unchanged, 4, "{name}");
}

fn check_relations(recording: &Recording) {
    let name = &recording.name;
    let mut sessions = Vec::new();
    let mut truncated = Vec::new();
    for transaction in recording.transactions() {
        for sent in transaction.messages {
            match sent.message {
                Message::Relation(relation) if relation.name == "Session" => {
                    sessions.push(relation)
                }
                Message::Relation(relation) => {
                    assert_eq!(relation.name, "TaskRun", "{name}");
                    assert_eq!(relation.columns.len(), 83, "{name}");
                    let keys = relation.columns.iter().filter(|column| column.key);
                    let expected = match recording.identity() {
                        Identity::Default => 1,
                        Identity::Full => 83,
                    };
                    assert_eq!(keys.count(), expected, "{name}");
                }
                Message::Truncate { relations, cascade, restart_identity } => {
                    assert!(cascade && restart_identity, "{name}");
                    truncated.extend(relations);
                }
                _ => {}
            }
        }
    }
    let [before, after, truncating, again] = &sessions[..] else {
        panic!("{name}: {sessions:?}");
    };
    assert_eq!([after, after], [truncating, again], "{name}: TRUNCATE changes nothing of it");
    assert_eq!(truncated, [before.oid], "{name}");
    assert_eq!(before.oid, after.oid, "{name}");
    assert_eq!((before.columns.len(), after.columns.len()), (22, 23), "{name}");
    let type_of = |relation: &walhouse::wal::Relation, column: &str| {
        let found = relation.columns.iter().find(|found| found.name == column);
        found.map(|found| found.type_oid.0)
    };
    assert_eq!(type_of(before, "currentRunVersion"), Some(23), "{name}");
    assert_eq!(type_of(after, "currentRunVersion"), Some(20), "{name}");
    assert_eq!(type_of(before, "basin"), None, "{name}");
    assert_eq!(type_of(after, "basin"), Some(25), "{name}");
    assert_eq!(type_of(after, "note"), Some(25), "{name}");
}

/// The last row of each id without its version, when the whole recording is one batch.
fn last_rows(block: &Block, id: &str) -> BTreeMap<String, Row> {
    let mut last: BTreeMap<String, (u64, Row)> = BTreeMap::new();
    for mut row in rows(block) {
        let id = row[id].as_str().unwrap().to_owned();
        let version = row.remove("_version").and_then(|version| version.as_u64()).unwrap();
        // A row that only moved is no newer than the row in its new place.
        let deleted = row["_is_deleted"] == json!(1);
        match last.get(&id) {
            Some((newest, _)) if version < *newest || (version == *newest && deleted) => {}
            _ => {
                last.insert(id, (version, row));
            }
        }
    }
    last.into_iter().map(|(id, (_, row))| (id, row)).collect()
}

#[track_caller]
fn assert_has(row: &Row, expected: Value) {
    for (column, value) in expected.as_object().unwrap() {
        assert_eq!(row.get(column), Some(value), "column `{column}` of {row:?}");
    }
}

fn check_rows(recording: &Recording) {
    let name = &recording.name;
    let copy_data = recording.copy_data();
    let changes = Changes::of(&RUNS, copy_data.iter().copied());
    assert_eq!((changes.plans(), changes.len()), (1, 6), "{name}");
    let assembled = changes.assemble(0..changes.len());
    let runs = last_rows(&assembled.blocks[0], "run_id");
    assert_eq!(runs.keys().collect::<Vec<_>>(), ["run_1", "run_2", "run_3"], "{name}");
    assert_has(
        &runs["run_1"],
        json!({
            "organization_id": "org", "project_id": "proj_moved", "environment_id": "env",
            "_is_deleted": 0, "status": "COMPLETED_WITH_ERRORS", "environment_type": "PRODUCTION",
            "engine": "V2", "created_at": 1_709_210_096_789_i64,
            "updated_at": 1_709_210_097_000_i64, "attempt": 3, "depth": 1,
            "usage_duration_ms": 2_147_483_647, "cost_in_cents": 1.0 / 3.0,
            "base_cost_in_cents": 1e-7, "worker_queue": "eu", "is_test": 1, "is_warm_start": 1,
            "output": "{\"data\":[true, null, 1.5]}", "max_duration_in_seconds": 4_000_000,
            "tags": ["plain", "with \"quotes\"", "comma, {brace}", "", "NULL", "back\\slash", "",
                " "],
            "idempotency_key_user": "order \"7\"", "idempotency_key_scope": "run",
            "trigger_source": "api", "root_trigger_source": "sdk", "completed_at": null,
        }),
    );
    assert_eq!(runs["run_1"]["error_fingerprint"].as_str().map(str::len), Some(16), "{name}");
    // It went with these values, the TOASTed one included, and its old id before it.
    for (id, status) in [("run_2", "CRASHED"), ("run_3", "CRASHED")] {
        assert_has(
            &runs[id],
            json!({
                "_is_deleted": 1, "status": status, "attempt": 255, "usage_duration_ms": 0,
                "created_at": -1, "updated_at": 253_402_300_799_999_i64, "cost_in_cents": "NaN",
                "base_cost_in_cents": "-inf", "delay_until": null, "started_at": null,
                "queued_at": null, "completed_at": null, "tags": [],
                "output": format!("{{\"data\":\"{}\"}}", "output ".repeat(5)),
                "error": format!("{{\"data\":{{\"message\": \"{}\"}}}}", "error ".repeat(5)),
            }),
        );
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let kept: BTreeSet<(&str, String)> = assembled
        .notes
        .kept
        .iter()
        .map(|kept| (kept.column.as_deref().unwrap_or(""), text(&kept.document)))
        .collect();
    for expected in [
        ("attemptNumber", "300"),
        ("usageDurationMs", "-1"),
        ("updatedAt", "infinity"),
        ("delayUntil", "infinity"),
        ("startedAt", "-infinity"),
        ("queuedAt", "2000-01-01 00:00:00 + -64464465600000000 us"),
        ("payload", "not JSON"),
    ] {
        let expected = (expected.0, expected.1.to_owned());
        assert!(kept.contains(&expected), "{name}: {expected:?} is in {kept:?}");
    }
    let payloads = last_rows(&assembled.blocks[1], "run_id");
    assert_has(
        &payloads["run_1"],
        json!({"payload": "{\"data\":{\"π\": [1, 2.50, \"\\ud83d\\ude00\"]}}", "_is_deleted": 0}),
    );
    assert_has(&payloads["run_3"], json!({"payload": "{}", "_is_deleted": 1}));

    let changes = Changes::of(&SESSIONS, copy_data.iter().copied());
    assert_eq!((changes.plans(), changes.len()), (4, 8), "{name}");
    let sessions = last_rows(&changes.assemble(0..changes.len()).blocks[0], "session_id");
    let live = |id: &str| sessions.get(id).map(|row| row["_is_deleted"] == json!(0));
    // What was rolled back was never sent, and TRUNCATE deletes nothing.
    let expected = [Some(false), None, Some(true), Some(false), Some(true), Some(true)];
    for (n, expected) in (1..).zip(expected) {
        assert_eq!(live(&format!("session_{n}")), expected, "{name}: session_{n}");
    }
    assert_has(
        &sessions["session_1"],
        json!({"tags": ["a", "b", "c d", ""], "environment_type": "STAGING"}),
    );
    assert_has(
        &sessions["session_3"],
        json!({
            "tags": ["x", "y"], "external_id": "ext", "closed_reason": "",
            "closed_at": 1_704_412_800_000_i64, "expires_at": 1_704_326_400_500_i64,
            "metadata": "{\"data\":[{\"a\": {}}, null]}",
        }),
    );
    assert_has(
        &sessions["session_5"],
        json!({"environment_type": "SANDBOX", "metadata": "{\"data\":null}"}),
    );
}

/// With each transaction as a batch of its own, what the stream left out is missed, and only that.
fn check_what_is_wanted(recording: &Recording) {
    let name = &recording.name;
    let copy_data = recording.copy_data();
    let (mut rereads, mut lookups) = (Vec::new(), Vec::new());
    for mapping in mappings() {
        let changes = Changes::of(mapping, copy_data.iter().copied());
        for range in changes.transactions.clone() {
            let folded = changes.fold(range).unwrap();
            let Missing { rereads: reread, lookups: looked_up, .. } = changes.wanted(&folded);
            let id = |at: &usize| String::from_utf8(folded.entries[*at].id.to_vec()).unwrap();
            rereads.extend(reread.iter().map(id));
            lookups.extend(looked_up.iter().map(id));
        }
    }
    match recording.identity() {
        Identity::Full => assert!(rereads.is_empty() && lookups.is_empty(), "{name}"),
        Identity::Default => {
            assert_eq!(rereads, ["run_2", "run_3"], "{name}");
            assert_eq!(lookups, ["run_2", "run_3", "session_1", "session_4"], "{name}");
        }
    }
}

/// What the statements left, whoever tells it.
fn outcome(recording: &Recording) -> Vec<BTreeMap<String, Row>> {
    let copy_data = recording.copy_data();
    let mut outcome = Vec::new();
    for mapping in mappings() {
        let changes = Changes::of(mapping, copy_data.iter().copied());
        let assembled = changes.assemble(0..changes.len());
        for (target, block) in mapping.targets().iter().zip(&assembled.blocks) {
            outcome.push(last_rows(block, target.id_names()[0]));
        }
    }
    outcome
}

/// Both are of the same WAL.
fn check_equal(binary: &Recording, text: &Recording) {
    assert_eq!((binary.format(), text.format()), (Format::Binary, Format::Text));
    let names = format!("{} and {}", binary.name, text.name);
    let [of_binary, of_text] = [binary, text].map(|recording| {
        let starts = recording.payloads().into_iter().map(|(wal_start, _)| wal_start);
        starts.collect::<Vec<_>>()
    });
    assert_eq!(of_binary, of_text, "{names}: each message is of the same place");
    let [of_binary, of_text] = [binary, text].map(Recording::copy_data);
    for mapping in mappings() {
        let binary = Changes::of(mapping, of_binary.iter().copied());
        let text = Changes::of(mapping, of_text.iter().copied());
        assert_eq!(binary.transactions, text.transactions, "{names}");
        // Also batches that begin in the middle, as far as nobody need be asked for them.
        for begin in 0..binary.len() {
            let [of_binary, of_text] = [&binary, &text].map(|changes| {
                let folded = changes.fold(begin..changes.len()).unwrap();
                if !changes.wanted(&folded).is_empty() {
                    return None;
                }
                let assembled = changes.assemble(begin..changes.len());
                Some((encode(mapping, &assembled.blocks, false), assembled.notes.kept))
            });
            assert!(of_binary.is_some() || 0 < begin, "{names}");
            assert!(of_binary == of_text, "{names}: changes from {begin} give the same bytes");
        }
    }
}

fn pairs(all: &[Recording]) -> Vec<(&Recording, &Recording)> {
    let text_of = |binary: &Recording| {
        let name = binary.name.replace("-binary", "-text");
        all.iter().find(|recording| recording.name == name)
    };
    let binaries = all.iter().filter(|recording| recording.format() == Format::Binary);
    binaries.filter_map(|binary| Some((binary, text_of(binary)?))).collect()
}

#[test]
fn recordings_say_what_the_statements_did() {
    let all = Recording::all();
    all.iter().for_each(check);
    let versions: BTreeSet<u32> = all.iter().map(Recording::version).collect();
    assert!(versions.is_superset(&BTreeSet::from([14, 15, 18])), "{versions:?}");
}

#[test]
fn text_and_binary_become_the_same_blocks() {
    let all = Recording::all();
    let pairs = pairs(&all);
    assert!(!pairs.is_empty(), "one is there in both formats");
    pairs.iter().for_each(|(binary, text)| check_equal(binary, text));
}

#[test]
fn versions_and_identities_tell_the_same_outcome() {
    let all = Recording::all();
    let expected = outcome(&all[0]);
    for recording in &all[1..] {
        assert_eq!(outcome(recording), expected, "{} and {}", all[0].name, recording.name);
    }
}

/// Goal: what the recordings taught still holds of the server that runs here. Method: record it
/// again, and ask the same. `WALHOUSE_RECORD` names the recordings to write, such as
/// `full-binary default-binary`.
#[test]
fn the_server_at_hand_says_what_was_recorded() {
    let server = Server::start();
    let wanted = std::env::var("WALHOUSE_RECORD").unwrap_or_default();
    let mut all = Vec::new();
    for identity in [Identity::Default, Identity::Full] {
        all.extend(server.record(identity));
    }
    drop(server);
    all.iter().for_each(check);
    pairs(&all).iter().for_each(|(binary, text)| check_equal(binary, text));
    let expected = outcome(&all[0]);
    assert!(all.iter().all(|recording| outcome(recording) == expected));
    let is_wanted = |recording: &&Recording| {
        wanted.split_whitespace().any(|name| recording.name.ends_with(&format!("-{name}")))
    };
    all.iter().filter(is_wanted).for_each(Recording::save);
    if wanted.is_empty() {
        assert_eq!(outcome(&Recording::load("pg15-default-binary")), expected);
    }
}
