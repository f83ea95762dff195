//! Keys of rows of a target table.

use super::target::Target;

/// The values of some columns, mostly of [`Target::order_by`], each with its bytes in a Native
/// block: one value has one form, wherever it was read. Kept small: a batch may look up a hundred
/// thousand.
/// The order is none of ClickHouse's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// End to end.
    bytes: Box<[u8]>,
    ends: Box<[u32]>,
}

impl Key {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn value(&self, at: usize) -> &[u8] {
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..self.ends[at] as usize]
    }

    pub fn values(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|at| self.value(at))
    }
}

impl<V: AsRef<[u8]>> FromIterator<V> for Key {
    fn from_iter<I: IntoIterator<Item = V>>(values: I) -> Key {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for value in values {
            bytes.extend_from_slice(value.as_ref());
            ends.push(u32::try_from(bytes.len()).expect("a key has less than 4 GB"));
        }
        Key { bytes: bytes.into(), ends: ends.into() }
    }
}

/// A live key, and what a tombstone for it must carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveKey {
    pub key: Key,
    /// The values of the columns of [`Target::partition_by`], which are not all in the key.
    pub partition: Key,
    pub version: u64,
}

impl Target {
    /// What identifies the row in Postgres: of a key, the values of [`Target::id`].
    pub fn id_of(&self, key: &Key) -> Key {
        let place = |at: &usize| self.order_by.iter().position(|column| column == at);
        let value = |place: usize| key.value(place);
        self.id
            .iter()
            .map(|at| place(at).expect("a sorting key has all of the id"))
            .map(value)
            .collect()
    }

    /// The value of a column in a key, where the key has it.
    pub fn value_of<'k>(&self, key: &'k Key, column: usize) -> Option<&'k [u8]> {
        Some(key.value(self.order_by.iter().position(|&at| at == column)?))
    }

    /// The values of a key as text, for people.
    pub fn key_texts<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = (usize, Vec<u8>)> + 'a {
        self.order_by.iter().zip(key.values()).map(|(&at, value)| {
            let mut text = Vec::new();
            self.scalar(at).write_text(value, &mut text);
            (at, text)
        })
    }
}
