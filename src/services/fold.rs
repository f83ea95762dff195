//! Folds the changes of a batch: the latest row of each key, tombstones for deleted ones, and what
//! Postgres or ClickHouse must still provide before the rows are complete.
//!
//! Pure: it reads messages and says what is missing; it sends no query.

use std::borrow::Cow;

use hashbrown::HashMap;

use super::column_set::ColumnSet;
use super::plan::{NO_KEY, RelationPlan};
use super::row::Row;
use super::source::Source;
use crate::wal::pgoutput::{Message, Old};
use crate::wal::{Datum, DecodeError, Lsn, Tuple, row_key};

/// One INSERT, UPDATE or DELETE of the stream.
#[derive(Debug, Clone, Copy)]
pub struct FoldedChange<'a> {
    pub message: &'a [u8],
    pub lsn: Lsn,
    pub xid: u32,
    pub plan: &'a RelationPlan,
    /// ClickHouse may have a tombstone of the key that came before, with a position below this.
    pub ask_below: Option<Lsn>,
}

/// The resulting rows of a batch.
#[derive(Debug)]
pub struct Folded<'a> {
    pub entries: Vec<Entry<'a>>,
    pub inserts: u64,
    pub updates: u64,
    pub deletes: u64,
}

#[derive(Debug)]
pub struct Entry<'a> {
    /// See [`RelationPlan::key`].
    pub id: Cow<'a, [u8]>,
    pub lsn: Lsn,
    pub xid: u32,
    pub kind: EntryKind,
    /// A later change of the same key took its place.
    pub superseded: bool,
    /// For an `Insert`, see [`FoldedChange::ask_below`]. Not set if the batch itself removes the
    /// row later.
    pub ask_below: Option<Lsn>,
    plan: &'a RelationPlan,
    /// The new row; for a tombstone the old one; for a look-up only the key.
    image: Tuple<'a>,
    /// Where the columns are that the image leaves out.
    older: Older<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// The first row of its key: an INSERT, or an UPDATE that gave the row a new key.
    Insert,
    Update,
    /// The place that a row left when its sorting key changed. The row lives on under its key.
    Moved,
    Tombstone,
    /// A tombstone of which only the key is known: ClickHouse must be asked for its sorting key.
    LookUp,
}

#[derive(Debug, Clone, Copy)]
enum Older<'a> {
    Nowhere,
    Row(Tuple<'a>),
    Entry(usize),
}

pub fn fold<'a>(
    source: &Source,
    changes: impl IntoIterator<Item = FoldedChange<'a>>,
) -> Result<Folded<'a>, DecodeError> {
    let changes = changes.into_iter();
    // Most changes are of a row each.
    let (rows, _) = changes.size_hint();
    let entries = Vec::with_capacity(rows);
    let mut fold = Fold {
        source,
        latest: HashMap::with_capacity(rows),
        asked: HashMap::new(),
        folded: Folded { entries, inserts: 0, updates: 0, deletes: 0 },
    };
    for change in changes {
        fold.push(change)?;
    }
    Ok(fold.folded)
}

struct Fold<'a, 's> {
    source: &'s Source,
    /// The last entry of each id.
    latest: HashMap<Cow<'a, [u8]>, usize>,
    /// The entries with [`Entry::ask_below`], by id.
    asked: HashMap<Cow<'a, [u8]>, usize>,
    folded: Folded<'a>,
}

impl<'a> Fold<'a, '_> {
    fn push(&mut self, change: FoldedChange<'a>) -> Result<(), DecodeError> {
        fetch(change.message);
        match Message::parse(change.message)? {
            Message::Insert { new, .. } => {
                change.plan.check(&new)?;
                self.folded.inserts += 1;
                let id = change.plan.key(&new, None)?.ok_or(NO_KEY)?;
                self.supersede(&id);
                self.add(change, id, EntryKind::Insert, new, Older::Nowhere);
            }
            Message::Update { old, new, .. } => {
                change.plan.check(&new)?;
                self.folded.updates += 1;
                self.update(change, old, new)?;
            }
            Message::Delete { old, .. } => {
                self.folded.deletes += 1;
                self.delete(change, old)?;
            }
            Message::Begin { .. }
            | Message::Commit { .. }
            | Message::Relation(_)
            | Message::Truncate { .. }
            | Message::Ignored => {
                return Err(DecodeError::BadValue { context: "change that changes no row" });
            }
        }
        Ok(())
    }

    fn update(
        &mut self,
        change: FoldedChange<'a>,
        old: Old<'a>,
        new: Tuple<'a>,
    ) -> Result<(), DecodeError> {
        let plan = change.plan;
        let old_id = match old {
            Old::None => None,
            Old::Key(tuple) | Old::Row(tuple) => {
                plan.check(&tuple)?;
                Some(plan.key(&tuple, None)?.ok_or(NO_KEY)?)
            }
        };
        let id = match old {
            Old::None => plan.key(&new, None)?,
            Old::Key(tuple) | Old::Row(tuple) => plan.key(&new, Some(&tuple))?,
        };
        let id = id.ok_or(NO_KEY)?;
        if let Some(old_id) = old_id
            && old_id != id
        {
            return self.change_key(change, old_id, id, old, new);
        }

        let before = self.row_of(&id);
        let older = match (old, before) {
            (Old::Row(row), _) => Older::Row(row),
            (_, Some(entry)) => Older::Entry(entry),
            _ => Older::Nowhere,
        };
        // A row under another sorting key is another row to ClickHouse: the old one must go.
        let moved = match older {
            Older::Row(row) => self.sorting_differs(plan, &row, plan, &new),
            Older::Entry(entry) => {
                let before = &self.folded.entries[entry];
                self.sorting_differs(before.plan, &before.image, plan, &new)
            }
            Older::Nowhere => false,
        };
        self.supersede(&id);
        if moved {
            let id = id.clone();
            match older {
                Older::Row(row) => self.add(change, id, EntryKind::Moved, row, Older::Nowhere),
                Older::Entry(entry) => self.add_gone(change, id, EntryKind::Moved, entry),
                Older::Nowhere => unreachable!("nothing to have moved from"),
            }
        }
        self.add(change, id, EntryKind::Update, new, older);
        Ok(())
    }

    /// The key of a row changed: the row of the old key goes, one of the new key comes.
    fn change_key(
        &mut self,
        change: FoldedChange<'a>,
        old_id: Cow<'a, [u8]>,
        id: Cow<'a, [u8]>,
        old: Old<'a>,
        new: Tuple<'a>,
    ) -> Result<(), DecodeError> {
        let before = self.row_of(&old_id);
        let older = match (old, before) {
            (Old::Row(row), _) => Older::Row(row),
            (_, Some(entry)) => Older::Entry(entry),
            _ => Older::Nowhere,
        };
        self.remove(change, old_id, old)?;
        self.supersede(&id);
        self.add(change, id, EntryKind::Insert, new, older);
        Ok(())
    }

    fn delete(&mut self, change: FoldedChange<'a>, old: Old<'a>) -> Result<(), DecodeError> {
        let (Old::Key(tuple) | Old::Row(tuple)) = old else {
            return Err(NO_KEY);
        };
        change.plan.check(&tuple)?;
        let id = change.plan.key(&tuple, None)?.ok_or(NO_KEY)?;
        self.remove(change, id, old)
    }

    fn remove(
        &mut self,
        change: FoldedChange<'a>,
        id: Cow<'a, [u8]>,
        old: Old<'a>,
    ) -> Result<(), DecodeError> {
        let before = self.row_of(&id);
        self.supersede(&id);
        if let Some(entry) = self.asked.remove(&id) {
            // The tombstone covers the row wherever it was written. It may be in ClickHouse from an
            // earlier delivery, and is not to be outranked.
            self.folded.entries[entry].ask_below = None;
        }
        match (old, before) {
            (Old::Row(row), _) => self.add(change, id, EntryKind::Tombstone, row, Older::Nowhere),
            (Old::Key(_), Some(entry)) if self.is_known_from_its_start(entry) => {
                self.add_gone(change, id, EntryKind::Tombstone, entry);
            }
            // Also of a row that the batch only updates: it may have moved without our seeing it,
            // and ClickHouse knows where it still is.
            (Old::Key(key), _) => self.add(change, id, EntryKind::LookUp, key, Older::Nowhere),
            (Old::None, _) => return Err(NO_KEY),
        }
        Ok(())
    }

    /// Whether the batch saw every sorting key that the row has had.
    fn is_known_from_its_start(&self, entry: usize) -> bool {
        let mut at = &self.folded.entries[entry];
        loop {
            match (at.kind, at.older) {
                (EntryKind::Insert, _) | (_, Older::Row(_)) => return true,
                (_, Older::Entry(older)) => at = &self.folded.entries[older],
                (_, Older::Nowhere) => return false,
            }
        }
    }

    /// A row whose image the batch holds.
    fn add_gone(
        &mut self,
        change: FoldedChange<'a>,
        id: Cow<'a, [u8]>,
        kind: EntryKind,
        entry: usize,
    ) {
        let &Entry { plan, image, older, .. } = &self.folded.entries[entry];
        self.add(FoldedChange { plan, ..change }, id, kind, image, older);
    }

    fn add(
        &mut self,
        change: FoldedChange<'a>,
        id: Cow<'a, [u8]>,
        kind: EntryKind,
        image: Tuple<'a>,
        older: Older<'a>,
    ) {
        let FoldedChange { lsn, xid, plan, ask_below, .. } = change;
        self.latest.insert(id.clone(), self.folded.entries.len());
        let ask_below = ask_below.filter(|_| kind == EntryKind::Insert);
        if ask_below.is_some() {
            self.asked.insert(id.clone(), self.folded.entries.len());
        }
        let superseded = false;
        let entry = Entry { id, lsn, xid, kind, superseded, ask_below, plan, image, older };
        self.folded.entries.push(entry);
    }

    /// The live row that the batch already holds for this id.
    fn row_of(&self, id: &[u8]) -> Option<usize> {
        let entry = *self.latest.get(id)?;
        match self.folded.entries[entry].kind {
            EntryKind::Insert | EntryKind::Update => Some(entry),
            EntryKind::Moved | EntryKind::Tombstone | EntryKind::LookUp => None,
        }
    }

    fn supersede(&mut self, id: &[u8]) {
        if let Some(entry) = self.row_of(id) {
            self.folded.entries[entry].superseded = true;
        }
    }

    fn sorting_differs(
        &self,
        old_plan: &RelationPlan,
        old: &Tuple<'_>,
        new_plan: &RelationPlan,
        new: &Tuple<'_>,
    ) -> bool {
        self.source.sorting.iter().any(|&place| {
            match (old_plan.value(old, place), new_plan.value(new, place)) {
                (_, Some(Datum::Unchanged)) | (None, _) | (_, None) => false,
                (Some(old), Some(new)) => old != new,
            }
        })
    }
}

/// Prefetches the message: parsing walks it by dependent loads. The loads here are independent.
#[inline]
fn fetch(bytes: &[u8]) {
    const LINE: usize = 64;
    std::hint::black_box(bytes.iter().step_by(LINE).fold(0, |all, byte| all ^ byte));
}

impl<'a> Folded<'a> {
    /// Loads an entry's columns into `row`, and says which the batch does not hold.
    pub fn load<'r>(&self, entry: usize, row: &mut Row<'r>) -> ColumnSet
    where
        'a: 'r,
    {
        let mut at = &self.entries[entry];
        fetch(at.image.bytes());
        row.load(at.plan, &at.image);
        if !self.has_unchanged(entry) {
            return ColumnSet::default();
        }
        // A column that this version of the relation lacks may have changed meanwhile: no older
        // value may stand in for it.
        let mut unknown = at.plan.unknown().clone();
        let mut missing = missing(row);
        while !missing.is_empty() {
            let lacks =
                |place: usize, had: Datum<'_>| had == Datum::Unchanged && !unknown.has(place);
            match at.older {
                Older::Nowhere => break,
                Older::Row(tuple) => {
                    fill(row, at.plan, &tuple, lacks);
                    missing = self::missing(row);
                    break;
                }
                Older::Entry(older) => {
                    at = &self.entries[older];
                    fill(row, at.plan, &at.image, lacks);
                    unknown.add_all(at.plan.unknown());
                    missing = self::missing(row);
                }
            }
        }
        missing
    }

    /// The key of an entry as Postgres prints it, column by column.
    pub fn key_texts(&self, source: &Source, entry: usize) -> Vec<Vec<u8>> {
        let Entry { id, plan, image, .. } = &self.entries[entry];
        let known = row_key::split(id, source.key.len());
        let text = |(&place, known): (&usize, &[u8])| match plan.value(image, place) {
            Some(datum @ (Datum::Text(_) | Datum::Binary(_))) => {
                source.columns[place].text(datum).into_owned()
            }
            // It was left out, as only texts are.
            _ => known.to_vec(),
        };
        source.key.iter().zip(known).map(text).collect()
    }

    pub fn has_unchanged(&self, entry: usize) -> bool {
        let Entry { image, plan, .. } = &self.entries[entry];
        image.has_unchanged() || !plan.unknown().is_empty()
    }
}

/// Sets the places whose present value `replace` says may go.
fn fill<'a>(
    row: &mut Row<'a>,
    plan: &RelationPlan,
    tuple: &Tuple<'a>,
    replace: impl Fn(usize, Datum<'_>) -> bool,
) {
    for (place, datum) in plan.values(tuple) {
        if replace(place, row.values[place]) {
            row.values[place] = datum;
            row.types[place] = plan.type_of(place);
        }
    }
    for place in plan.unknown().iter() {
        if replace(place, row.values[place]) {
            row.values[place] = Datum::Unchanged;
        }
    }
}

fn missing(row: &Row<'_>) -> ColumnSet {
    let mut places = ColumnSet::default();
    for (place, datum) in row.values.iter().enumerate() {
        if *datum == Datum::Unchanged {
            places.add(place);
        }
    }
    places
}
