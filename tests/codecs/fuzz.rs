//! Random streams, and how all random input is made, for a bounded time: `WALHOUSE_FUZZ_SECONDS` for each reader (default 5).
//!
//! Each execution has a seed of its own. A failure prints it with the input in hexadecimal;
//! `WALHOUSE_FUZZ_SEED` begins there, so that the first execution is the one that failed.

use std::cell::Cell;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::damage::{must_not_panic, walk};
use super::mutate;
use super::recording::Recording;
use super::replay::{Changes, encode, mappings};

use walhouse::postgres::Frames;
use walhouse::rows::key::Key;
use walhouse::rows::{Block, Shape};
use walhouse::services::assemble::{Answers, assemble};
use walhouse::services::mapping::Mapping;
use walhouse::wal::pgoutput::Message;
use walhouse::wal::{Lsn, Oid};

/// However little time there is, so that a test that passed has seen something.
const EXECUTIONS_MIN: u64 = 100;
/// No input takes long: what does would stop the stream. Far above what a busy machine adds.
const EXECUTION_MAX: Duration = Duration::from_secs(10);

#[track_caller]
pub fn fuzz(target: &str, generate: impl Fn(&mut Rng) -> Vec<u8>, check: impl Fn(&[u8])) {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|e| panic!("{name}: {e}")))
    };
    let seconds = Duration::from_secs(number("WALHOUSE_FUZZ_SECONDS").unwrap_or(5));
    let first = number("WALHOUSE_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    let begun = Instant::now();
    let mut executions = 0;
    while executions < EXECUTIONS_MIN || begun.elapsed() < seconds {
        let seed = first.wrapping_add(executions);
        let input = generate(&mut Rng::with_seed(seed));
        let what = format!("{target}: WALHOUSE_FUZZ_SEED={seed}");
        let begun = Instant::now();
        must_not_panic(&what, &input, |input| {
            check(input);
            assert!(begun.elapsed() < EXECUTION_MAX, "it took {:?}", begun.elapsed());
        });
        executions += 1;
    }
    println!("{target}: {executions} executions, the first with WALHOUSE_FUZZ_SEED={first}");
}

/// A number that follows from the input alone, for choices of the check.
fn rng_of(input: &[u8]) -> Rng {
    let hash = input.iter().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
    });
    Rng::with_seed(hash)
}

pub fn pick<'a>(rng: &mut Rng, from: &[&'a [u8]]) -> &'a [u8] {
    from[rng.usize(..from.len())]
}

const NO_WORDS: &[&[u8]] = &[];

#[test]
fn fuzz_messages_for_a_bounded_time() {
    let all = Recording::all();
    let all: Vec<Vec<&[u8]>> = all.iter().map(Recording::copy_data).collect();
    let generate = |rng: &mut Rng| {
        let recording = &all[rng.usize(..all.len())];
        let begin = rng.usize(..recording.len());
        let end = recording.len().min(begin + rng.usize(1..6));
        let mut block = Vec::new();
        for data in &recording[begin..end] {
            let data = data.to_vec();
            // Mostly within the frame, whose length is then true again.
            let data = if rng.u8(..4) < 3 { mutate::bytes(rng, data, NO_WORDS) } else { data };
            block.extend(mutate::frame(&data));
        }
        if rng.u8(..4) == 0 { mutate::bytes(rng, block, NO_WORDS) } else { block }
    };
    fuzz("messages", generate, |input| {
        let frames = Frames::from_bytes(input.to_vec());
        let mut bytes = 0;
        for data in frames.messages() {
            bytes += data.len() + 5;
            assert!(frames.place_of(data).is_some());
            walk(data);
        }
        assert!(bytes <= input.len());
        for mapping in mappings() {
            let changes = Changes::of(mapping, frames.messages());
            let _ = changes.fold(0..changes.len());
        }
    });
}

const VALUE_WORDS: &[&[u8]] = &[
    b"",
    b"run_1",
    b"run_2",
    b"session_1",
    b"infinity",
    b"-infinity",
    b"2024-02-29 12:34:56.789",
    b"0044-03-15 12:00:00 BC",
    b"999999999-12-31 24:59:60.999999",
    b"NaN",
    b"1e999",
    b"-9223372036854775808",
    b"\xff\xfe",
    b"\x01{\"a.b\":1,\"a\":{\"b\":2}}",
    b"{\"message\":\"x\",\"stack\":[1]}",
    b"{a,\"b\",NULL}",
    b"application/super+json",
    b"CRASHED",
    b"EXTERNAL_DEPLOYMENT_PENDING",
];

/// A stream in order, with the places of its changes.
struct Script<'a> {
    messages: Vec<(Lsn, &'a [u8])>,
    changes: Vec<usize>,
}

impl<'a> Script<'a> {
    /// Only of one table: the relation's `oid` is what tells it.
    fn of(recording: &'a Recording, oid: Oid) -> Script<'a> {
        let is_of_it = |payload: &[u8]| match payload.first() {
            Some(b'R' | b'I' | b'U' | b'D') => payload.get(1..5) == Some(&oid.0.to_be_bytes()[..]),
            _ => false,
        };
        let mut messages = recording.payloads();
        messages.retain(|(_, payload)| is_of_it(payload));
        let changes =
            (0..messages.len()).filter(|&at| messages[at].1.first() != Some(&b'R')).collect();
        Script { messages, changes }
    }

    fn all(recordings: &'a [Recording]) -> Vec<Script<'a>> {
        let mut all = Vec::new();
        for recording in recordings {
            let mut oids: Vec<Oid> = Vec::new();
            for (_, payload) in recording.payloads() {
                if let Ok(Message::Relation(relation)) = Message::parse(payload)
                    && !oids.contains(&relation.oid)
                {
                    oids.push(relation.oid);
                }
            }
            all.extend(oids.into_iter().map(|oid| Script::of(recording, oid)));
        }
        all
    }

    /// A batch: some of the changes, each under its own relation, some of their values changed.
    fn batch(&self, rng: &mut Rng) -> Vec<u8> {
        let mut block = Vec::new();
        let mut put = |lsn, payload: &[u8]| {
            block.extend(mutate::frame(&mutate::xlog_data(lsn, payload)));
        };
        let last = self.changes.len() - 1;
        let [one, other] = std::array::from_fn(|_| rng.usize(..=last));
        let [first, last] = [one.min(other), one.max(other)].map(|at| self.changes[at]);
        let relation = self.messages[..first].iter().rfind(|message| message.1[0] == b'R');
        let (lsn, payload) = *relation.expect("a relation comes before its changes");
        put(lsn, payload);
        // A batch of nothing but malformed values would get no further than the first of them.
        let mut left = rng.u8(..5);
        for (wal_start, payload) in &self.messages[first..=last] {
            let Some(mut change) = mutate::Change::of(payload) else {
                put(*wal_start, payload);
                continue;
            };
            for _ in 0..rng.usize(..3) {
                while 0 < left && rng.bool() {
                    change.mutate(rng, VALUE_WORDS);
                    left -= 1;
                }
                let lsn = if rng.u8(..32) == 0 { Lsn(u64::MAX - rng.u64(..4)) } else { *wal_start };
                put(lsn, &change.encode());
            }
        }
        block
    }
}

#[test]
fn fuzz_batches_for_a_bounded_time() {
    let recordings = Recording::all();
    let scripts = Script::all(&recordings);
    assert_eq!(scripts.len(), 2 * recordings.len(), "of two tables each");
    let landed = Cell::new(0_u64);
    let generate = |rng: &mut Rng| scripts[rng.usize(..scripts.len())].batch(rng);
    fuzz("batches", generate, |input| {
        let frames = Frames::from_bytes(input.to_vec());
        for mapping in mappings() {
            let mut rng = rng_of(input);
            let mut changes = Changes::of(mapping, frames.messages());
            if rng.u8(..4) < 3 {
                changes.retain_readable();
            }
            landed.set(landed.get() + check_batch(&mut rng, mapping, &changes));
        }
    });
    assert!(0 < landed.get(), "some rows get through");
    println!("batches: {} rows", landed.get());
}

/// Returns the rows that came of it.
fn check_batch(rng: &mut Rng, mapping: &'static dyn Mapping, changes: &Changes<'_>) -> u64 {
    if changes.len() == 0 {
        return 0;
    }
    let Ok(folded) = changes.fold(0..changes.len()) else { return 0 };
    let wanted = changes.wanted(&folded);
    let word = |rng: &mut Rng| pick(rng, VALUE_WORDS).to_vec();
    let mut found = Answers::default();
    for &entry in &wanted.rereads {
        if rng.u8(..4) < 3 {
            let value = |rng: &mut Rng| (rng.u8(..8) == 0).then(|| word(rng));
            found.values.insert(entry, wanted.places.iter().map(|_| value(rng)).collect());
        }
    }
    for &entry in &wanted.lookups {
        let key = |rng: &mut Rng| {
            let [id, organization, project, environment] = std::array::from_fn(|_| word(rng));
            let created_at = rng.i64(..).to_le_bytes().to_vec();
            Key::from_iter([organization, project, environment, created_at, id])
        };
        let keys = (0..rng.usize(..3)).map(|_| key(rng)).collect();
        found.keys.insert(entry, keys);
    }
    let shapes: Vec<Shape> = (mapping.targets().iter())
        .map(|target| {
            let mut present = vec![true; target.columns.len()];
            target.optional.iter().for_each(|&column| present[column] = rng.bool());
            let own = ["JSON", "JSON(max_dynamic_paths=64)", "String"][rng.usize(..3)];
            let documents = target.documents.iter().map(|&at| (at, own.to_owned())).collect();
            Shape { documents, ..Shape::of(present) }
        })
        .collect();
    let shift = [0, 1 << 40, rng.u64(..)][rng.usize(..3)];
    let Ok(whole) = changes.assemble_with(&folded, &wanted, &found, &shapes, shift) else {
        return 0;
    };
    let rows: Vec<usize> = whole.blocks.iter().map(Block::rows).collect();
    for (block, target) in whole.blocks.iter().zip(mapping.targets()) {
        for column in 0..target.columns.len() {
            assert_eq!(block.lists(column)[0].len(), block.rows(), "every column is as long");
        }
    }
    let bytes = encode(mapping, &whole.blocks, rng.bool());
    assert!(rows.iter().sum::<usize>() < bytes.len());
    // In two parts it comes to the same rows.
    let all = folded.entries.len();
    let middle = rng.usize(..=all);
    let mut in_parts = vec![0; rows.len()];
    for part in [0..middle, middle..all] {
        let part = assemble(mapping, &folded, &wanted, &found, &shapes, shift, part)
            .expect("the whole of it could be assembled");
        in_parts.iter_mut().zip(&part.blocks).for_each(|(rows, block)| *rows += block.rows());
    }
    assert_eq!(in_parts, rows);
    rows.iter().sum::<usize>() as u64
}
