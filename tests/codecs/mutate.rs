//! Random changes to bytes, and to the values in messages, so that the damage also lies behind the
//! first check.

use fastrand::Rng;
use walhouse::wal::pgoutput::{Message, Old};
use walhouse::wal::{Datum, Lsn, Tuple};

const BYTES_MAX: usize = 64 * 1024;

/// Numbers at the edges of their types, for the places where lengths and counts may be.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    0x7FFF_FFFF_FFFF_FFFF,
    0xFFFF_FFFF_FFFF_FFFF,
];

/// Some changes, one after the other; `words` are pieces that mean something to the reader.
pub fn bytes(rng: &mut Rng, mut bytes: Vec<u8>, words: &[&[u8]]) -> Vec<u8> {
    for _ in 0..rng.usize(1..6) {
        change(rng, &mut bytes, words);
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, words: &[&[u8]]) {
    let at = rng.usize(..=bytes.len());
    let part = at..rng.usize(at..=bytes.len().min(at + 64));
    match rng.u8(..9) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << rng.u8(..8);
            }
        }
        1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = rng.u8(..);
            }
        }
        // A length that lies, or any other number.
        2 => {
            let edge = EDGES[rng.usize(..EDGES.len())].wrapping_add(rng.u64(..3)).wrapping_sub(1);
            let number = edge.to_be_bytes();
            let number = &number[8 - [1, 2, 4, 8][rng.usize(..4)]..];
            if let Some(place) = bytes.get_mut(at..at + number.len()) {
                place.copy_from_slice(number);
            }
        }
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(part)),
        5 => {
            let again = bytes[part].repeat(1 << rng.u8(..4));
            bytes.splice(at..at, again);
        }
        6 => {
            let other = rng.usize(..=bytes.len());
            let piece = bytes[part].to_vec();
            bytes.splice(other..other, piece);
        }
        _ => match rng.choice(words) {
            Some(word) => drop(bytes.splice(part, word.iter().copied())),
            None => drop(bytes.splice(at..at, [rng.u8(..)])),
        },
    }
}

/// A CopyData frame.
pub fn frame(copy_data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(copy_data.len() + 4).expect("messages are short");
    [&b"d"[..], &length.to_be_bytes(), copy_data].concat()
}

pub fn xlog_data(wal_start: Lsn, payload: &[u8]) -> Vec<u8> {
    let wal_start = wal_start.0.to_be_bytes();
    [&b"w"[..], &wal_start, &wal_start, &[0; 8], payload].concat()
}

/// A value that owns its bytes.
#[derive(Debug, Clone)]
pub enum Owned {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

impl Owned {
    fn of(datum: Datum<'_>) -> Owned {
        match datum {
            Datum::Null => Owned::Null,
            Datum::Unchanged => Owned::Unchanged,
            Datum::Text(bytes) => Owned::Text(bytes.to_vec()),
            Datum::Binary(bytes) => Owned::Binary(bytes.to_vec()),
        }
    }
}

/// INSERT, UPDATE or DELETE in parts: `head` is the tag and the relation, each row has its kind.
pub struct Change {
    head: Vec<u8>,
    pub rows: Vec<(u8, Vec<Owned>)>,
}

impl Change {
    pub fn of(payload: &[u8]) -> Option<Change> {
        let head = payload.get(..5)?.to_vec();
        let row = |kind: u8, tuple: &Tuple<'_>| (kind, tuple.datums().map(Owned::of).collect());
        let of_old = |old: &Old<'_>| match old {
            Old::None => None,
            Old::Key(tuple) => Some(row(b'K', tuple)),
            Old::Row(tuple) => Some(row(b'O', tuple)),
        };
        let rows = match Message::parse(payload).ok()? {
            Message::Insert { new, .. } => vec![row(b'N', &new)],
            Message::Update { old, new, .. } => {
                of_old(&old).into_iter().chain([row(b'N', &new)]).collect()
            }
            Message::Delete { old, .. } => of_old(&old).into_iter().collect(),
            _ => return None,
        };
        Some(Change { head, rows })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.head.clone();
        for (kind, row) in &self.rows {
            bytes.push(*kind);
            bytes.extend((row.len() as u16).to_be_bytes());
            for value in row {
                let (kind, value) = match value {
                    Owned::Null => (b'n', None),
                    Owned::Unchanged => (b'u', None),
                    Owned::Text(value) => (b't', Some(value)),
                    Owned::Binary(value) => (b'b', Some(value)),
                };
                bytes.push(kind);
                if let Some(value) = value {
                    bytes.extend((value.len() as u32).to_be_bytes());
                    bytes.extend(value);
                }
            }
        }
        bytes
    }

    /// Changes one value, or swaps two of a row.
    pub fn mutate(&mut self, rng: &mut Rng, words: &[&[u8]]) {
        let Some(at) = rng.choice(0..self.rows.len()) else { return };
        let row = &mut self.rows[at].1;
        let Some(at) = rng.choice(0..row.len()) else { return };
        let old = row[at].clone();
        row[at] = match (rng.u8(..8), old) {
            (0, _) => Owned::Null,
            (1, _) => Owned::Unchanged,
            // The same bytes in the other format.
            (2, Owned::Text(value)) => Owned::Binary(value),
            (2, Owned::Binary(value)) => Owned::Text(value),
            (3, value) => {
                let other = rng.usize(..row.len());
                std::mem::replace(&mut row[other], value)
            }
            (4, Owned::Binary(_)) => Owned::Binary(rng.u64(..).to_be_bytes().to_vec()),
            (_, Owned::Text(value)) => Owned::Text(bytes(rng, value, words)),
            (_, Owned::Binary(value)) => Owned::Binary(bytes(rng, value, words)),
            (_, Owned::Null | Owned::Unchanged) => {
                let word = rng.choice(words).map_or(Vec::new(), |word| word.to_vec());
                if rng.bool() { Owned::Text(word) } else { Owned::Binary(word) }
            }
        };
    }
}
