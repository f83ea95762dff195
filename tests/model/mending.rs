//! The repair, beside the stream: pages of the table are read, compared and written, then the keys
//! of ClickHouse are looked up and deleted.

use std::ops::Range;

use super::World;
use super::clickhouse::{Origin, Version};
use super::postgres::{KEYS, Key, Server};
use super::process::Reading;
use super::session::{Session, land};
use walhouse::machines::lineage::LineageState;
use walhouse::machines::recovery::{fence_version, goes_on};
use walhouse::machines::repair::{
    Fate, Pieces, Stored, fate_of_key, fate_of_row, tombstone_version,
};
use walhouse::wal::Lsn;

const KEYS_PER_PAGE: Key = 2;
const PAGES: usize = (KEYS / KEYS_PER_PAGE) as usize;

#[derive(Debug)]
pub struct Mending {
    base: u64,
    /// Where the WAL ended, and who may not have ended yet, while a fence is waited for.
    fence: Option<(u64, u32)>,
    pass: Pass,
    pieces: Pieces,
    pub pages: Vec<Page>,
    /// A snapshot must have seen the end of every transaction below this.
    sees_below: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    Read,
    Prune,
}

#[derive(Debug)]
pub struct Page {
    piece: usize,
    /// Of ClickHouse, before Postgres was asked: the keys to prune.
    listed: Vec<(Key, Stored)>,
    /// Of Postgres.
    rows: Vec<(Key, super::postgres::Row)>,
    pub reading: Option<Reading>,
    pub writes: Option<Vec<(Key, Version)>>,
}

impl Mending {
    /// A repair that was recorded goes on.
    pub fn of(world: &World, server: usize, state: &LineageState) -> Option<Mending> {
        let repair = world.clickhouse.repair.filter(|repair| !repair.done)?;
        if !goes_on(repair.system_identifier, repair.shift, state) {
            return None;
        }
        let (pass, done) = match repair.read == PAGES {
            false => (Pass::Read, repair.read),
            true => (Pass::Prune, repair.pruned),
        };
        Some(Mending {
            base: repair.base,
            fence: (repair.base == 0)
                .then(|| (world.servers[server].insert_lsn(), world.servers[server].xmax())),
            pass,
            pieces: Pieces::new(world.now, vec![1; PAGES], done),
            pages: Vec::new(),
            sees_below: sees_below(world, server),
        })
    }

    pub fn may_begin_page(&self) -> bool {
        self.fence.is_none()
            && self.pages.len() < 2
            && self.pieces.done() + self.pages.len() < PAGES
    }

    /// What is older must be there to be compared and deleted, so the stream has to have come there.
    pub fn may_pass_fence(&self, server: &Server, flushed: Option<Lsn>) -> bool {
        self.fence.is_some_and(|(fence, below)| {
            below <= server.xmin() && flushed.is_none_or(|flushed| fence <= flushed.0)
        })
    }

    pub fn may_read(&self, server: &Server) -> bool {
        self.sees_below <= server.xmin()
    }
}

fn sees_below(world: &World, server: usize) -> u32 {
    if world.design.reads_see_the_stream { world.servers[server].xmax() } else { 0 }
}

fn keys_of(piece: usize) -> Range<Key> {
    let first = piece as Key * KEYS_PER_PAGE;
    first..first + KEYS_PER_PAGE
}

impl Session {
    pub fn pass_fence(&mut self, world: &mut World) {
        let Some(mending) = &mut self.mending else { return };
        let Some((fence, _)) = mending.fence.take() else { return };
        mending.base = fence_version(self.state.shift, Lsn(fence));
        if let Some(repair) = &mut world.clickhouse.repair {
            repair.base = mending.base;
        }
        world.say(|| format!("  the fence is at {fence}"));
    }

    pub fn begin_page(&mut self, world: &mut World) {
        let Some(mending) = &mut self.mending else { return };
        let Some(piece) = mending.pieces.take() else { return };
        let listed = match mending.pass {
            Pass::Read => Vec::new(),
            Pass::Prune => keys_of(piece)
                .filter_map(|key| Some((key, world.clickhouse.stored(key, None)?)))
                .collect(),
        };
        world.say(|| format!("  {:?} page {piece}: lists {listed:?}", mending.pass));
        mending.pages.push(Page { piece, listed, rows: vec![], reading: None, writes: None });
    }

    /// In a snapshot of its own, after which the insert LSN is asked for.
    pub fn read_page(&mut self, world: &mut World, at: usize) {
        let reading = self.read(world);
        let Some(mending) = &mut self.mending else { return };
        let page = &mut mending.pages[at];
        let table = world.servers[self.server].table();
        page.rows = table.range(keys_of(page.piece)).map(|(key, row)| (*key, *row)).collect();
        page.reading = Some(reading);
        world.say(|| format!("  page {} reads {:?} at {reading:?}", page.piece, page.rows));
    }

    pub fn compare_page(&mut self, world: &mut World, at: usize) {
        let Some(mending) = &mut self.mending else { return };
        let page = &mut mending.pages[at];
        let (base, design) = (mending.base, world.design);
        let mut writes = Vec::new();
        match mending.pass {
            Pass::Read => {
                for &(key, row) in &page.rows {
                    let stored = world.clickhouse.stored(key, Some(row));
                    if fate_of_row(base, stored) == Fate::Write {
                        let row = Some(row);
                        writes
                            .push((key, Version { version: base, row, origin: Origin::Repaired }));
                    }
                }
            }
            Pass::Prune => {
                let above = design.tombstones_above_base;
                let version = if above { tombstone_version(base) } else { base };
                // One lower, what was repaired at `base` is left alone.
                let base = if above { base } else { base - 1 };
                for &(key, stored) in &page.listed {
                    let is_in_postgres = page.rows.iter().any(|(found, _)| *found == key);
                    if fate_of_key(base, stored, is_in_postgres) == Fate::Delete {
                        writes
                            .push((key, Version { version, row: None, origin: Origin::Repaired }));
                    }
                }
            }
        }
        page.writes = Some(writes);
    }

    pub fn land_page(&mut self, world: &mut World, at: usize) {
        let Some(mending) = &mut self.mending else { return };
        let page = mending.pages.swap_remove(at);
        land(world, &page.writes.unwrap_or_default());
        world.read_has_landed = true;
        mending.pieces.on_done(page.piece);
        if mending.pass == Pass::Read && mending.pieces.is_done() {
            world.say(|| "  prunes".into());
            mending.pass = Pass::Prune;
            mending.pieces = Pieces::new(world.now, vec![1; PAGES], 0);
            mending.sees_below = sees_below(world, self.server);
        }
    }

    pub fn record_repair(&mut self, world: &mut World) {
        let Some(mending) = &self.mending else { return };
        let Some(repair) = &mut world.clickhouse.repair else { return };
        match mending.pass {
            Pass::Read => repair.read = mending.pieces.done(),
            Pass::Prune => {
                repair.read = PAGES;
                repair.pruned = mending.pieces.done();
                repair.done = mending.pieces.is_done();
            }
        }
        if repair.done {
            self.mending = None;
            world.say(|| "  repaired".into());
        }
    }
}
