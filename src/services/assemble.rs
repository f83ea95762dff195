//! From folded changes to the blocks of the target tables.
//!
//! In two steps, with queries to the servers between them: [`wanted`] says what the batch lacks,
//! [`assemble`] builds the blocks from the answers. Neither queries a server itself.

use std::ops::Range;
use std::sync::Arc;

use hashbrown::HashMap;

use super::bare_row::BareRow;
use super::column_set::ColumnSet;
use super::fold::{EntryKind, Folded};
use super::mapping::{Mapping, Stamp, ValueError};
use super::notes::Notes;
use super::row::{Row, TextValues};
use super::utf8;
use crate::rows::key::{Key, LiveKey};
use crate::rows::target::Target;
use crate::rows::{Block, Shape, tombstone};
use crate::wal::{Datum, DecodeError, Lsn};

/// What a batch lacks.
#[derive(Debug, Default)]
pub struct Missing {
    /// Entries with TOASTed values that the stream did not send.
    pub rereads: Vec<usize>,
    /// The columns of those values, over all entries.
    pub places: ColumnSet,
    /// Tombstones of which only the key is known.
    pub lookups: Vec<usize>,
    pub updates: Updates,
}

/// Which of the columns that only a row's first version has an UPDATE writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Updates {
    /// Nothing: it is there.
    #[default]
    AsUpdates,
    /// All of it. While the table is being read as a whole, the UPDATE may be what has moved the
    /// row out of the reader's way.
    AsFirst,
}

impl Missing {
    pub fn is_empty(&self) -> bool {
        self.rereads.is_empty() && self.lookups.is_empty()
    }
}

/// The answers for [`Missing`].
#[derive(Debug, Default)]
pub struct Answers {
    /// By entry: the values of `Wanted::places`, in order, in text format. An entry that is not
    /// here is of a row that is gone, whose tombstone is still to come.
    pub values: HashMap<usize, TextValues>,
    /// By entry: every sorting key under which the first table has the row.
    pub keys: HashMap<usize, Vec<Key>>,
    /// For each entry without one: the rows that further tables still have, each with the index of
    /// its target.
    pub orphans: HashMap<usize, Vec<(usize, LiveKey)>>,
}

#[derive(Debug)]
pub struct Assembled {
    pub blocks: Vec<Block>,
    pub notes: Notes,
    /// Rows left out because Postgres no longer has them.
    pub rows_gone: u64,
    /// Tombstones left out because ClickHouse never had the row.
    pub tombstones_of_nothing: u64,
    /// Rows that ClickHouse may have a later tombstone for: see [`Entry::ask_below`].
    ///
    /// [`Entry::ask_below`]: crate::services::fold::Entry::ask_below
    pub asked: Vec<Asked>,
}

/// The outcome for an entry whose key may have been removed above it.
#[derive(Debug)]
pub struct Asked {
    pub entry: usize,
    /// A target, and a row of its block.
    pub rows: Vec<(usize, usize)>,
    kept: Range<usize>,
}

impl Assembled {
    /// Gives all that `self.asked[asked]` came to another version.
    pub fn set_version(&mut self, targets: &[Target], asked: usize, version: u64) {
        let Asked { rows, kept, .. } = &self.asked[asked];
        for &(target, row) in rows {
            self.blocks[target].set_u64(targets[target].version, row, version);
        }
        self.notes.kept[kept.clone()].iter_mut().for_each(|kept| kept.version = version);
    }
}

pub fn wanted(mapping: &dyn Mapping, folded: &Folded<'_>, updates: Updates) -> Missing {
    let mut wanted = Missing { updates, ..Missing::default() };
    let mut row = Row::of(mapping.source());
    let mut sorting = ColumnSet::default();
    mapping.source().placed().for_each(|place| sorting.add(place));
    for (index, entry) in folded.entries.iter().enumerate() {
        let needs = match entry.kind {
            EntryKind::LookUp => {
                wanted.lookups.push(index);
                continue;
            }
            EntryKind::Moved | EntryKind::Tombstone => {
                let unknown = folded.has_unchanged(index)
                    && !folded.load(index, &mut row).intersection(&sorting).is_empty();
                if unknown {
                    wanted.lookups.push(index);
                }
                continue;
            }
            EntryKind::Insert => mapping.needs(true),
            EntryKind::Update if entry.superseded => continue,
            EntryKind::Update => mapping.needs(updates == Updates::AsFirst),
        };
        if folded.has_unchanged(index) {
            let missing = folded.load(index, &mut row).intersection(&needs);
            if !missing.is_empty() {
                wanted.rereads.push(index);
                wanted.places.add_all(&missing);
            }
        }
    }
    wanted
}

/// For each target an empty block. `shapes` says which columns each target table has.
pub fn new_blocks(mapping: &dyn Mapping, shapes: &[Shape]) -> Vec<Block> {
    let targets = mapping.targets().iter().zip(shapes);
    targets.map(|(target, shape)| Block::new(&target.columns, shape)).collect()
}

/// Writes the blocks of the entries in `part`; the parts may land in any order.
pub fn assemble(
    mapping: &dyn Mapping,
    folded: &Folded<'_>,
    wanted: &Missing,
    found: &Answers,
    shapes: &[Shape],
    shift: u64,
    part: Range<usize>,
) -> Result<Assembled, ValueError> {
    let blocks = new_blocks(mapping, shapes);
    assemble_into(blocks, mapping, folded, wanted, found, shift, part)
}

/// The same into blocks that are there already. `shift` is added to every LSN.
pub fn assemble_into(
    blocks: Vec<Block>,
    mapping: &dyn Mapping,
    folded: &Folded<'_>,
    wanted: &Missing,
    found: &Answers,
    shift: u64,
    part: Range<usize>,
) -> Result<Assembled, ValueError> {
    let targets = mapping.targets();
    let mut assembled = Assembled {
        blocks,
        notes: Notes::default(),
        rows_gone: 0,
        tombstones_of_nothing: 0,
        asked: Vec::new(),
    };
    let mut others = targets.iter().zip(&assembled.blocks).skip(1);
    let deletes = others.all(|(target, block)| takes_deletes(target, block.shape()));
    let before = |index: &usize| *index < part.start;
    let mut rereads = wanted.rereads.iter().copied().skip_while(before).peekable();
    let mut lookups = wanted.lookups.iter().copied().skip_while(before).peekable();
    let mut row = Row::of(mapping.source());

    for (index, entry) in folded.entries.iter().enumerate().take(part.end).skip(part.start) {
        // An LSN of the stream may be anything; wrapped around, its row would lose to older ones.
        let version =
            entry.lsn.0.checked_add(shift).ok_or_else(|| version_error(targets, entry.lsn))?;
        let placed = |error| ValueError { lsn: entry.lsn, ..error };
        let stamp = |row, first| Stamp { version, deleted: false, row, first };
        let stamp = match entry.kind {
            EntryKind::Insert => stamp(!entry.superseded, true),
            EntryKind::Update if entry.superseded => continue,
            EntryKind::Update => stamp(true, wanted.updates == Updates::AsFirst),
            // The values of the first version belong to the key, which stays.
            EntryKind::Moved => Stamp { version, deleted: true, row: true, first: false },
            EntryKind::Tombstone | EntryKind::LookUp => {
                Stamp { version, deleted: true, row: true, first: deletes }
            }
        };
        let Assembled { blocks, notes, asked, .. } = &mut assembled;
        if lookups.next_if_eq(&index).is_some() {
            let keys = found.keys.get(&index).map_or(&[][..], Vec::as_slice);
            for key in keys {
                let bare = BareRow::new(mapping.source(), &targets[0], key);
                let row = bare.row(mapping.source());
                mapping.append(&row, stamp, blocks, notes).map_err(placed)?;
            }
            let orphans = found.orphans.get(&index).filter(|_| stamp.first);
            for (target, live) in orphans.into_iter().flatten() {
                tombstone::append(&targets[*target], &mut blocks[*target], live, version);
            }
            assembled.tombstones_of_nothing += u64::from(keys.is_empty() && orphans.is_none());
            continue;
        }
        folded.load(index, &mut row);
        if rereads.next_if_eq(&index).is_some() {
            let Some(values) = found.values.get(&index) else {
                assembled.rows_gone += 1;
                continue;
            };
            for (place, value) in wanted.places.iter().zip(values.iter()) {
                if row.values[place] == Datum::Unchanged {
                    row.values[place] = value.as_deref().map_or(Datum::Null, Datum::Text);
                }
            }
        }
        if entry.ask_below.is_none() {
            utf8::append(mapping, &row, stamp, blocks, notes).map_err(placed)?;
            continue;
        }
        let (before, kept) = (blocks.iter().map(Block::rows).collect::<Vec<_>>(), notes.kept.len());
        utf8::append(mapping, &row, stamp, blocks, notes).map_err(placed)?;
        let rows = blocks.iter().zip(before).enumerate();
        let rows =
            rows.flat_map(|(at, (block, before))| (before..block.rows()).map(move |row| (at, row)));
        let kept = kept..notes.kept.len();
        asked.push(Asked { entry: index, rows: rows.collect(), kept });
    }
    Ok(assembled)
}

fn version_error(targets: &[Target], lsn: Lsn) -> ValueError {
    let column = targets.first().map(|target| Arc::clone(&target.columns[target.version].name));
    let column = column.unwrap_or_else(|| "".into());
    let cause = DecodeError::BadValue { context: "LSN of a change plus the version shift" };
    ValueError { column, cause, lsn }
}

/// Whether the table can hold a tombstone at all (a payload table made by another tool cannot).
pub fn takes_deletes(target: &Target, shape: &Shape) -> bool {
    shape.present[target.version] && shape.present[target.is_deleted]
}
