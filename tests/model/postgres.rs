//! A Postgres server: WAL, transactions with row locks, a table, and what a crash takes.

use std::collections::BTreeMap;

use walhouse::machines::catalog::{self, Catalog, CatalogColumn, CatalogPart, Publication, Table};
use walhouse::machines::lineage::{self, Slot, Switch};
use walhouse::machines::prng::Prng;
use walhouse::wal::Lsn;

pub type Key = u8;
pub const KEYS: Key = 6;

/// No two changes of a run write the same value, so a value tells where it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub plain: u32,
    /// Not in the stream of an update that left it alone.
    pub toast: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Insert { key: Key, row: Row },
    Update { from: Key, key: Key, row: Row, same_toast: bool },
    Delete { key: Key },
}

impl Change {
    /// What each key becomes.
    pub fn effects(self) -> impl Iterator<Item = (Key, Option<Row>)> {
        let (left, stays) = match self {
            Change::Insert { key, row } => (None, (key, Some(row))),
            Change::Update { from, key, row, .. } => {
                ((from != key).then_some((from, None)), (key, Some(row)))
            }
            Change::Delete { key } => (None, (key, None)),
        };
        left.into_iter().chain([stays])
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Change(Change),
    Commit,
    Abort,
    /// The table is taken out of its publication, or put in.
    Publish {
        id: u32,
        is_in: bool,
    },
    /// Its values are rewritten, or another table takes its name: this is what it holds then, as an
    /// index into [`Server::made`].
    Make {
        id: u32,
        contents: usize,
        is_other: bool,
    },
    /// A checkpoint, the running transactions, another table.
    Other,
}

#[derive(Debug, Clone, Copy)]
pub struct Record {
    pub start: u64,
    pub end: u64,
    pub xid: u32,
    pub what: What,
}

/// When a commit is on disk, and when it is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commits {
    AtOnce,
    /// synchronous_commit = off: seen before it is flushed.
    FlushedLater,
    /// A synchronous standby is slow: streamed before it is seen.
    SeenLater,
}

#[derive(Debug, Clone)]
pub struct Server {
    pub system_identifier: u64,
    pub timeline: u32,
    pub history: Vec<Switch>,
    begins_at: u64,
    pub wal: Vec<Record>,
    /// So many records are on disk.
    pub flushed: usize,
    /// Connections of an earlier one are dead.
    pub epoch: u32,
    pub(super) commits: Commits,
    pub(super) next_xid: u32,
    pub(super) open: BTreeMap<u32, Vec<Change>>,
    /// Open ones that have written a row, and wait for whoever has its key.
    pub(super) waiting: BTreeMap<u32, Key>,
    /// Committed, and not seen yet.
    pub(super) unseen: Vec<u32>,
    pub(super) table: BTreeMap<Key, Row>,
    /// What statements that are not streamed made of the table.
    pub(super) made: Vec<BTreeMap<Key, Row>>,
    pub slot: Option<Slot>,
    /// As a crash finds it.
    pub saved_slot: Option<Slot>,
}

impl Server {
    pub fn new(system_identifier: u64, begins_at: u64, commits: Commits) -> Server {
        Server {
            system_identifier,
            timeline: 1,
            history: Vec::new(),
            begins_at,
            wal: Vec::new(),
            flushed: 0,
            epoch: 0,
            commits,
            next_xid: 1,
            open: BTreeMap::new(),
            waiting: BTreeMap::new(),
            unseen: Vec::new(),
            table: BTreeMap::new(),
            made: Vec::new(),
            slot: None,
            saved_slot: None,
        }
    }

    /// What a standby that has the first `applied` records becomes when it is promoted.
    pub fn promoted(&self, applied: usize, timeline: u32, slot: Option<Slot>) -> Server {
        let mut new = Server { timeline, slot, saved_slot: slot, ..self.clone() };
        new.wal.truncate(applied);
        let switch_lsn = Lsn(new.insert_lsn());
        new.history.push(Switch { timeline: self.timeline, switch_lsn });
        new.recover();
        new
    }

    /// Crash and restart: what was not flushed never was.
    pub fn crash(&mut self, prng: &mut Prng) {
        self.wal.truncate(self.flushed);
        self.slot = self.saved_slot;
        self.recover();
        self.write(prng, 0, What::Other);
        self.flush();
    }

    /// The same cluster from an earlier moment, on the same timeline.
    pub fn restore(&mut self, records: usize, slot: Option<Slot>) {
        self.wal.truncate(records);
        (self.slot, self.saved_slot) = (slot, slot);
        self.recover();
    }

    fn recover(&mut self) {
        self.epoch += 1;
        self.open.clear();
        self.waiting.clear();
        self.unseen.clear();
        self.table.clear();
        self.flush();
        for record in self.wal.clone() {
            match record.what {
                What::Commit => self.show(record.xid),
                What::Make { contents, .. } => self.table = self.made[contents].clone(),
                What::Change(_) | What::Abort | What::Publish { .. } | What::Other => {}
            }
        }
    }

    pub fn insert_lsn(&self) -> u64 {
        self.wal.last().map_or(self.begins_at, |record| record.end)
    }

    pub fn flushed_lsn(&self) -> u64 {
        self.end_of(self.flushed)
    }

    /// Of the first so many records.
    pub fn end_of(&self, records: usize) -> u64 {
        records.checked_sub(1).map_or(self.begins_at, |last| self.wal[last].end)
    }

    pub fn identity(&self) -> lineage::ServerTimeline {
        lineage::ServerTimeline {
            system_identifier: self.system_identifier,
            timeline: self.timeline,
            began: lineage::began(&self.history, self.timeline),
            wal_end: Lsn(self.flushed_lsn()),
        }
    }

    pub fn flush(&mut self) {
        self.flushed = self.wal.len();
    }

    /// As a snapshot taken now sees it; `insert_lsn` is not below any commit that is seen.
    pub fn table(&self) -> &BTreeMap<Key, Row> {
        &self.table
    }

    /// Whether a snapshot taken now sees what became of it.
    pub fn has_ended(&self, xid: u32) -> bool {
        !self.open.contains_key(&xid) && !self.unseen.contains(&xid)
    }

    /// Every transaction below this has ended in a snapshot taken now.
    pub fn xmin(&self) -> u32 {
        let running = self.open.keys().chain(&self.unseen);
        running.copied().min().unwrap_or(self.next_xid)
    }

    pub fn xmax(&self) -> u32 {
        self.next_xid
    }

    pub fn changes_of(&self, xid: u32) -> impl Iterator<Item = (u64, Change)> {
        self.wal.iter().filter_map(move |record| match record.what {
            What::Change(change) if record.xid == xid => Some((record.start, change)),
            _ => None,
        })
    }

    /// Of a transaction, what was written while the table was in its publication.
    pub fn published_changes_of(&self, xid: u32) -> impl Iterator<Item = (u64, Change)> {
        let is_published = |lsn: u64| self.is_published_before(lsn);
        self.changes_of(xid).filter(move |(lsn, _)| is_published(*lsn))
    }

    fn is_published_before(&self, lsn: u64) -> bool {
        let before = self.wal.iter().take_while(|record| record.start < lsn);
        let last = before.filter_map(|record| match record.what {
            What::Publish { is_in, .. } => Some(is_in),
            _ => None,
        });
        last.last().unwrap_or(true)
    }

    pub fn is_published(&self) -> bool {
        self.is_published_before(u64::MAX)
    }

    /// What a look at it finds.
    pub fn catalog(&self) -> Catalog {
        let (mut member, mut oid, mut filenode) = (1, 1, 1);
        for record in &self.wal {
            match record.what {
                What::Publish { id, .. } => member = id,
                What::Make { id, is_other: true, .. } => oid = id,
                What::Make { id, is_other: false, .. } => filenode = id,
                _ => {}
            }
        }
        let members = match self.is_published() {
            true => vec![catalog::Member { oid: member, version: 1, of: 1, options: "".into() }],
            false => Vec::new(),
        };
        let publication = Publication {
            name: "p".into(),
            oid: 1,
            version: 1,
            owner: 1,
            options: "".into(),
            members,
        };
        let column = CatalogColumn {
            name: "plain".into(),
            number: 1,
            version: filenode,
            type_oid: 1,
            is_missing: false,
            is_generated: false,
            default: None,
            hash: None,
            labels: Vec::new(),
        };
        let part = CatalogPart {
            name: "t".into(),
            oid: 1,
            filenode,
            is_logged: true,
            toast: 0,
            is_leaf: true,
            attached: None,
            is_born: true,
            is_empty: false,
        };
        let table = Table {
            name: "t".into(),
            oid,
            is_logged: true,
            in_schema: None,
            last_number: 1,
            columns: vec![column],
            parts: vec![part],
        };
        Catalog { database: 1, publications: vec![publication], tables: vec![table] }
    }

    pub fn publish(&mut self, prng: &mut Prng, id: u32, is_in: bool) {
        self.write(prng, 0, What::Publish { id, is_in });
        self.flush();
    }

    /// Waits for all who have touched the table, and lets nobody touch it meanwhile.
    pub fn make(&mut self, prng: &mut Prng, next_value: &mut u32, is_other: bool) {
        self.end_before(prng, u32::MAX);
        let mut made = BTreeMap::new();
        for key in 0..KEYS {
            let had = self.table.get(&key).copied();
            // Another table may have other rows.
            let is_there = if is_other { prng.below(2) == 0 } else { had.is_some() };
            if !is_there {
                continue;
            }
            *next_value += 2;
            let (plain, toast) = (*next_value - 1, *next_value);
            made.insert(key, Row { plain, toast: had.map_or(toast, |had| had.toast) });
        }
        *next_value += 1;
        self.made.push(made.clone());
        let contents = self.made.len() - 1;
        self.write(prng, 0, What::Make { id: *next_value, contents, is_other });
        self.flush();
        self.table = made;
    }

    /// The keys of all commits that end above this.
    pub fn keys_changed_after(&self, lsn: u64) -> Vec<Key> {
        let later = self.wal.iter().filter(|r| r.what == What::Commit && lsn < r.end);
        let changes = later.flat_map(|commit| self.changes_of(commit.xid));
        changes.flat_map(|(_, change)| change.effects()).map(|(key, _)| key).collect()
    }

    /// Every value that a change of this branch has written.
    pub fn values(&self) -> impl Iterator<Item = u32> {
        let changes = self.wal.iter().filter_map(|record| match record.what {
            What::Change(change) => Some(change),
            _ => None,
        });
        let rows = changes.flat_map(|change| change.effects().filter_map(|(_, row)| row));
        let made = self.wal.iter().filter_map(|record| match record.what {
            What::Make { contents, .. } => Some(&self.made[contents]),
            _ => None,
        });
        let rows = rows.chain(made.flat_map(|made| made.values().copied()));
        rows.flat_map(|row| [row.plain, row.toast])
    }

    pub fn write(&mut self, prng: &mut Prng, xid: u32, what: What) {
        let page_header = if prng.below(8) == 0 { 24 } else { 0 };
        let start = self.insert_lsn() + page_header;
        self.wal.push(Record { start, end: start + 24 + 8 * prng.below(12), xid, what });
    }

    /// Every transaction ends, and is flushed and seen.
    pub fn quiet(&mut self, prng: &mut Prng) {
        self.end_before(prng, u32::MAX);
        self.flush();
    }

    /// Transactions below `xid` end and are seen, and whoever they wait for.
    pub fn end_before(&mut self, prng: &mut Prng, xid: u32) {
        loop {
            let unseen = self.unseen.iter().copied().find(|unseen| *unseen < xid);
            let first = unseen.or_else(|| self.open.keys().copied().find(|open| *open < xid));
            let Some(mut next) = first else { return };
            while let Some(holder) = self.waits_for(next) {
                next = holder;
            }
            match self.open.contains_key(&next) {
                true => self.end(prng, next),
                false => {
                    self.unseen.retain(|unseen| *unseen != next);
                    self.show(next);
                }
            }
            self.wake(prng);
        }
    }

    pub(super) fn end(&mut self, prng: &mut Prng, xid: u32) {
        let changes = self.open.remove(&xid).expect("an open transaction ends");
        if changes.is_empty() {
            return;
        }
        if prng.below(5) == 0 {
            self.write(prng, xid, What::Abort);
            return;
        }
        self.write(prng, xid, What::Commit);
        match self.commits {
            Commits::AtOnce | Commits::FlushedLater => self.show(xid),
            Commits::SeenLater => self.unseen.push(xid),
        }
    }

    pub(super) fn show(&mut self, xid: u32) {
        let effects: Vec<_> = self.changes_of(xid).flat_map(|(_, c)| c.effects()).collect();
        for (key, row) in effects {
            match row {
                Some(row) => self.table.insert(key, row),
                None => self.table.remove(&key),
            };
        }
    }
}
