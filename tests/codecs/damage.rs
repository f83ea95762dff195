//! The recordings cut at every length, and with every byte changed: nothing panics, and nothing
//! that is not whole passes for whole.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fastrand::Rng;
use walhouse::postgres::Frames;
use walhouse::services::assemble::Answers;
use walhouse::wal::copy_both::FromServer;
use walhouse::wal::pgoutput::{Message, Old};
use walhouse::wal::{Datum, Tuple, value};

use super::mutate;
use super::recording::Recording;
use super::replay::{Changes, encode, mappings, shapes};

/// In a message up to this long every byte becomes every other; in a longer one, and in a second
/// one of the same kind and length, some others.
const SHORT_BYTES_MAX: usize = 64;

/// Tells the input of a panic, in hexadecimal.
#[track_caller]
pub fn must_not_panic<T>(what: &str, input: &[u8], check: impl FnOnce(&[u8]) -> T) -> T {
    catch_unwind(AssertUnwindSafe(|| check(input))).unwrap_or_else(|panic| {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("{what}: input {hex}");
        resume_unwind(panic)
    })
}

/// Reads everything that a message may hold, in every way.
pub fn walk(copy_data: &[u8]) {
    let Ok(FromServer::XLogData { payload, .. }) = FromServer::parse(copy_data) else { return };
    match Message::parse(payload) {
        Ok(Message::Insert { new, .. }) => walk_tuple(&new),
        Ok(Message::Update { old, new, .. }) => {
            walk_old(&old);
            walk_tuple(&new);
        }
        Ok(Message::Delete { old, .. }) => walk_old(&old),
        Ok(Message::Truncate { relations, .. }) => assert!(relations.len() * 4 < payload.len()),
        Ok(Message::Relation(relation)) => assert!(relation.columns.len() * 10 < payload.len()),
        Ok(Message::Begin { .. } | Message::Commit { .. } | Message::Ignored) | Err(_) => {}
    }
}

fn walk_old(old: &Old<'_>) {
    match old {
        Old::None => {}
        Old::Key(tuple) | Old::Row(tuple) => walk_tuple(tuple),
    }
}

fn walk_tuple(tuple: &Tuple<'_>) {
    assert_eq!(tuple.datums().count(), tuple.columns());
    let unchanged = tuple.datums().any(|datum| datum == Datum::Unchanged);
    assert_eq!(unchanged, tuple.has_unchanged());
    tuple.datums().for_each(walk_value);
}

/// As if the column were of each type.
pub fn walk_value(datum: Datum<'_>) {
    let _ = value::text(datum);
    let _ = value::int(datum);
    let _ = value::float(datum);
    let _ = value::boolean(datum);
    let _ = value::timestamp(datum);
    for type_oid in [value::oid::JSON, value::oid::JSONB] {
        let _ = value::json(datum, type_oid);
    }
    let bytes = value::text(datum).map_or(0, <[u8]>::len);
    let mut elements = 0;
    let _ = value::text_array(datum, |element| {
        elements += 1;
        assert!(element.map_or(0, <[u8]>::len) <= bytes);
    });
    assert!(elements <= bytes, "an element takes a byte at least");
}

/// Each message once, whatever recording it is in; the header tells recordings apart, and is cut
/// off for that.
fn distinct(all: &[Recording]) -> Vec<Vec<u8>> {
    let mut seen = BTreeSet::new();
    let mut distinct = Vec::new();
    for data in all.iter().flat_map(Recording::copy_data) {
        let payload = match FromServer::parse(data).expect("it was recorded") {
            FromServer::XLogData { payload, .. } => payload,
            FromServer::PrimaryKeepalive { .. } => b"k",
        };
        if seen.insert(payload.to_vec()) {
            distinct.push(data.to_vec());
        }
    }
    distinct
}

#[test]
fn no_prefix_of_a_recorded_message_passes_for_it() {
    let distinct = distinct(&Recording::all());
    assert!(50 < distinct.len(), "{}", distinct.len());
    for whole in &distinct {
        for cut in 0..whole.len() {
            must_not_panic("prefix", &whole[..cut], |prefix| match FromServer::parse(prefix) {
                Err(_) => assert!(cut < 25),
                Ok(FromServer::PrimaryKeepalive { .. }) => panic!("a keepalive cut at {cut}"),
                Ok(FromServer::XLogData { payload, .. }) => match Message::parse(payload) {
                    Err(_) => {}
                    // Their content is not looked at.
                    Ok(Message::Ignored) => assert!(!payload.is_empty()),
                    Ok(message) => panic!("cut at {cut}: {message:?}"),
                },
            });
        }
    }
}

#[test]
fn no_changed_byte_of_a_recorded_message_panics() {
    let mut rng = Rng::with_seed(7);
    let mut read = 0_u64;
    let mut kinds = BTreeSet::new();
    for whole in &distinct(&Recording::all()) {
        let mut damaged = whole.clone();
        let in_full =
            whole.len() <= SHORT_BYTES_MAX && kinds.insert((whole.get(25).copied(), whole.len()));
        for at in 0..whole.len() {
            let mut read_with = |byte| {
                damaged[at] = byte;
                must_not_panic("damage", &damaged, walk);
                read += 1;
            };
            if in_full {
                (0..=255).for_each(&mut read_with);
            } else {
                let byte = whole[at];
                let others = [byte ^ 1, rng.u8(..)];
                others.into_iter().for_each(&mut read_with);
            }
            damaged[at] = whole[at];
        }
    }
    assert!(8 <= kinds.len(), "{kinds:?}");
    assert!(100_000 < read, "{read}");
}

/// A change whose length still fits its values goes on into the blocks; so must the damage.
#[test]
fn no_changed_byte_of_a_change_panics_on_its_way_into_a_block() {
    let mut rng = Rng::with_seed(8);
    for name in ["pg15-default-text", "pg18-full-binary"] {
        let recording = Recording::load(name);
        let copy_data = recording.copy_data();
        for mapping in mappings() {
            let shapes = shapes(mapping);
            for at in 0..copy_data.len() {
                let is_change = matches!(copy_data[at].get(25), Some(b'I' | b'U' | b'D'));
                for place in (26..copy_data[at].len()).step_by(5).filter(|_| is_change) {
                    let mut damaged = copy_data[at].to_vec();
                    damaged[place] = rng.u8(..);
                    must_not_panic(name, &damaged, |damaged| {
                        let before = copy_data[..at].iter().copied();
                        let relations = before.filter(|data| data.get(25) == Some(&b'R'));
                        let changes = Changes::of(mapping, relations.chain([damaged]));
                        let Ok(folded) = changes.fold(0..changes.len()) else { return };
                        let wanted = changes.wanted(&folded);
                        let found = Answers::default();
                        if let Ok(assembled) =
                            changes.assemble_with(&folded, &wanted, &found, &shapes, 0)
                        {
                            encode(mapping, &assembled.blocks, false);
                        }
                    });
                }
            }
        }
    }
}

/// The changes stay as they are; it is the plan that fits them no more, or not quite.
#[test]
fn no_changed_byte_of_a_relation_panics() {
    let mut rng = Rng::with_seed(9);
    let recording = Recording::load("pg18-full-binary");
    let copy_data = recording.copy_data();
    for mapping in mappings() {
        let shapes = shapes(mapping);
        for at in 0..copy_data.len() {
            let is_relation = copy_data[at].get(25) == Some(&b'R');
            for place in (26..copy_data[at].len()).step_by(17).filter(|_| is_relation) {
                let mut damaged = copy_data[at].to_vec();
                damaged[place] ^= 1 << rng.u8(..8);
                must_not_panic("relation", &damaged, |damaged| {
                    let after = copy_data[at + 1..].iter().copied();
                    let changes = Changes::of(mapping, [damaged].into_iter().chain(after));
                    let Ok(folded) = changes.fold(0..changes.len()) else { return };
                    let wanted = changes.wanted(&folded);
                    let found = Answers::default();
                    let _ = changes.assemble_with(&folded, &wanted, &found, &shapes, 0);
                });
            }
        }
    }
}

#[test]
fn a_block_cut_anywhere_gives_the_messages_before_the_cut() {
    for name in ["pg15-default-text", "pg18-full-binary"] {
        let recording = Recording::load(name);
        let whole = recording.copy_data();
        let bytes = recording.frames.bytes();
        let (mut expected, mut next_end) = (0, 5 + whole[0].len());
        for cut in 0..=bytes.len() {
            while next_end <= cut && expected < whole.len() {
                expected += 1;
                next_end += 5 + whole.get(expected).map_or(0, |data| data.len());
            }
            let frames = Frames::from_bytes(bytes[..cut].to_vec());
            assert_eq!(frames.messages().count(), expected, "{name} cut at {cut}");
            // The last one is the one that a wrong cut would spoil.
            let last = frames.messages().last();
            assert_eq!(last, expected.checked_sub(1).map(|at| whole[at]), "{name} cut at {cut}");
        }
        assert_eq!(expected, whole.len());
    }
}

#[test]
fn changes_are_written_as_they_were_read() {
    let mut changes = 0;
    for recording in Recording::all() {
        for (_, payload) in recording.payloads() {
            if let Some(change) = mutate::Change::of(payload) {
                assert_eq!(change.encode(), payload, "{}", recording.name);
                changes += 1;
            }
        }
    }
    assert!(50 < changes, "{changes}");
}
