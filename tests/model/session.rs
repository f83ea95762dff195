//! A stream that runs: changes become batches, batches land, what is durable is confirmed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::World;
use super::clickhouse::Version;
use super::mending::{Mending, Page};
use super::postgres::{Change, Key, Server};
use super::process::{Process, Reading};
use walhouse::machines::confirm::{Confirm, ConfirmParams, RecordedMarks};
use walhouse::machines::lineage::LineageState;
use walhouse::machines::progress::{BatchId, Cut, Progress};
use walhouse::machines::removals::{RemovalLimits, Removals};
use walhouse::wal::Lsn;

#[derive(Debug)]
pub struct Session {
    pub server: usize,
    epoch: u32,
    pub state: LineageState,
    pub progress: Progress,
    pub confirm: Confirm,
    pub removals: Removals,
    pub next_batch: BatchId,
    /// The stream comes slower than all else.
    is_slow: bool,
    /// Of the slot as it was found.
    pub restart_lsn: Lsn,
    /// So many records of the WAL were decoded.
    pub decoded: usize,
    /// Of the transaction that is being received.
    pub open: Option<Transaction>,
    pub gathering: Vec<Streamed>,
    pub batches: Vec<Batch>,
    /// The last version of each key in this stream.
    pub versions: BTreeMap<Key, u64>,
    pub mending: Option<Mending>,
    /// The source has changed: another session is to begin.
    pub ends: bool,
}

#[derive(Debug)]
pub struct Transaction {
    pub xid: u32,
    pub end: u64,
    pub changes: VecDeque<(u64, Change)>,
}

#[derive(Debug, Clone, Copy)]
pub struct Streamed {
    pub lsn: u64,
    pub xid: u32,
    pub commit_end: u64,
    pub change: Change,
    /// ClickHouse may have a tombstone of the key below this.
    pub ask_below: Option<Lsn>,
}

#[derive(Debug)]
pub struct Batch {
    pub cut: Cut,
    pub changes: Vec<Streamed>,
    /// For changes, by index: the version above a tombstone that ClickHouse has.
    pub outranking: Option<Vec<(usize, u64)>>,
    /// What it comes to, once others were asked.
    pub rows: Option<Vec<(Key, Version)>>,
    pub reading: Option<Reading>,
}

/// What may be done next.
#[derive(Debug, Clone, Copy)]
enum Act {
    Receive,
    Keepalive,
    Cut,
    Ask(usize),
    Resolve(usize),
    Land(usize),
    Record,
    Tell,
    BeginPage,
    ReadPage(usize),
    ComparePage(usize),
    LandPage(usize),
    RecordRepair,
    PassFence,
    LookAtSource,
}

impl Session {
    pub fn begin(world: &mut World, server: usize, state: LineageState) -> Option<Session> {
        let ahead_bytes = 100 * world.prng.below(3);
        let is_slow = world.once_in(2);
        let limits = RemovalLimits { generations: 1 + world.any(4), generation_bytes: 65 };
        let from = &world.servers[server];
        let slot = from.slot.filter(|slot| !slot.invalidated)?;
        let marks = RecordedMarks { confirmed: state.confirmed, upper_lsn: state.upper_lsn };
        let params =
            ConfirmParams { every: Duration::ZERO, retry_every: Duration::ZERO, ahead_bytes };
        Some(Session {
            server,
            epoch: from.epoch,
            state,
            progress: Progress::resume(state.confirmed),
            confirm: Confirm::resume(marks, params),
            removals: Removals::resume(state.confirmed, limits),
            next_batch: BatchId(0),
            is_slow,
            restart_lsn: slot.restart_lsn,
            decoded: from.wal.iter().take_while(|r| r.end <= slot.confirmed_flush.0).count(),
            open: None,
            gathering: Vec::new(),
            batches: Vec::new(),
            versions: BTreeMap::new(),
            mending: Mending::of(world, server, &state),
            ends: false,
        })
    }

    pub fn is_connected(&self, world: &World) -> bool {
        world.servers[self.server].epoch == self.epoch
    }

    /// Nothing is left to do.
    pub fn is_settled(&self, server: &Server) -> bool {
        self.decoded == server.flushed
            && self.open.is_none()
            && self.progress.is_idle()
            && self.mending.is_none()
    }

    pub fn read(&mut self, world: &World) -> Reading {
        let insert_lsn = Lsn(world.servers[self.server].insert_lsn());
        if world.design.reads_are_reserved {
            self.confirm.on_batch(insert_lsn);
        }
        Reading { insert_lsn, is_flushed: !world.design.reads_are_flushed }
    }

    pub fn may_land(&self, world: &World, reading: Reading) -> bool {
        let reserved =
            !world.design.reads_are_reserved || self.confirm.reserved().covers(reading.insert_lsn);
        reserved && reading.is_flushed
    }

    fn acts(&self, world: &World) -> Vec<Act> {
        let mut acts = Vec::new();
        let server = &world.servers[self.server];
        let is_connected = self.is_connected(world);
        if is_connected {
            if self.open.is_some() || self.decoded < server.flushed {
                acts.extend([Act::Receive; 3].iter().take(if self.is_slow { 1 } else { 3 }));
            } else {
                acts.push(Act::Keepalive);
            }
            acts.push(Act::Tell);
        }
        if !self.gathering.is_empty() {
            acts.push(Act::Cut);
        }
        for (at, batch) in self.batches.iter().enumerate() {
            match (&batch.rows, batch.reading) {
                (None, _) if batch.outranking.is_none() => acts.push(Act::Ask(at)),
                (None, _) if self.can_resolve(world, at) => acts.push(Act::Resolve(at)),
                (None, _) => {}
                (Some(_), reading) => {
                    if self.confirm.reserved().covers(batch.cut.upper_lsn)
                        && reading.is_none_or(|reading| self.may_land(world, reading))
                    {
                        acts.push(Act::Land(at));
                    }
                }
            }
        }
        acts.push(Act::Record);
        if is_connected && world.design.source_is_watched && !world.source_is_as_recorded() {
            acts.push(Act::LookAtSource);
        }
        if let Some(mending) = &self.mending {
            let waits = world.design.fences_wait_for_the_stream;
            let flushed = waits.then(|| self.progress.flushed());
            if is_connected && mending.may_pass_fence(server, flushed) {
                acts.push(Act::PassFence);
            }
            if is_connected && mending.may_begin_page() {
                acts.push(Act::BeginPage);
            }
            for (at, page) in mending.pages.iter().enumerate() {
                match page {
                    Page { reading: None, .. } if is_connected && mending.may_read(server) => {
                        acts.push(Act::ReadPage(at));
                    }
                    Page { writes: Some(_), .. } => acts.extend([Act::LandPage(at); 2]),
                    Page { reading: Some(reading), .. } if self.may_land(world, *reading) => {
                        acts.extend([Act::ComparePage(at); 2]);
                    }
                    Page { .. } => {}
                }
            }
            acts.push(Act::RecordRepair);
        }
        acts
    }

    /// A batch that must ask waits until what it asks for can be answered.
    fn can_resolve(&self, world: &World, at: usize) -> bool {
        let (batch, server) = (&self.batches[at], &world.servers[self.server]);
        let raises = batch.outranking.iter().flatten();
        let mut raised = raises.map(|(at, _)| batch.changes[*at].xid);
        let is_seen = |xid: u32| self.is_connected(world) && server.has_ended(xid);
        if !raised.all(is_seen) {
            return false;
        }
        if !world.bare {
            return true;
        }
        let looks_up = batch.changes.iter().any(|streamed| match streamed.change {
            Change::Insert { .. } => false,
            Change::Update { from, key, .. } => from != key,
            Change::Delete { .. } => true,
        });
        let reads_again = batch.changes.iter().any(|streamed| streamed.change.leaves_toast_out());
        let are_seen = || batch.changes.iter().all(|streamed| server.has_ended(streamed.xid));
        (!looks_up || at == 0) && (!reads_again || self.is_connected(world) && are_seen())
    }

    fn step(&mut self, world: &mut World) {
        if self.is_connected(world) {
            let flushed = Lsn(world.servers[self.server].flushed_lsn());
            let of_batches = self.batches.iter_mut().flat_map(|batch| &mut batch.reading);
            let pages = self.mending.iter_mut().flat_map(|mending| &mut mending.pages);
            for reading in of_batches.chain(pages.flat_map(|page| &mut page.reading)) {
                reading.is_flushed |= reading.insert_lsn <= flushed;
            }
        }
        let acts = self.acts(world);
        match acts[world.any(acts.len())] {
            Act::Receive => self.receive(world),
            Act::Keepalive => {
                self.progress.on_keepalive(Lsn(world.servers[self.server].flushed_lsn()));
                self.confirm.on_flushed(self.progress.flushed());
            }
            Act::Cut => {
                let cut = self.progress.on_batch_cut();
                self.confirm.on_batch(cut.upper_lsn);
                self.next_batch = BatchId(cut.id.0 + 1);
                let changes = std::mem::take(&mut self.gathering);
                world.say(|| format!("  {cut:?}"));
                let outranking = None;
                self.batches.push(Batch { cut, changes, outranking, rows: None, reading: None });
            }
            Act::Ask(at) => self.ask(world, at),
            Act::Resolve(at) => self.resolve(world, at),
            Act::Land(at) => {
                let batch = self.batches.remove(at);
                let rows = batch.rows.unwrap_or_default();
                land(world, &rows);
                world.read_has_landed |= batch.reading.is_some();
                world.check_ok(self.progress.on_flushed(batch.cut.id));
                self.confirm.on_flushed(self.progress.flushed());
                let in_flight = self.batches.iter().map(|batch| batch.cut.id);
                self.removals.on_durable_below(in_flight.min().unwrap_or(self.next_batch));
            }
            Act::Record => self.record(world),
            Act::Tell => {
                let confirmed = self.confirm.recorded().confirmed;
                world.servers[self.server].advance_slot(confirmed, &mut world.prng);
                if let Some(slot) = world.servers[self.server].slot.filter(|_| world.once_in(3)) {
                    self.removals.on_restart_lsn(slot.restart_lsn);
                }
            }
            Act::BeginPage => self.begin_page(world),
            Act::ReadPage(at) => self.read_page(world, at),
            Act::ComparePage(at) => self.compare_page(world, at),
            Act::LandPage(at) => self.land_page(world, at),
            Act::RecordRepair => self.record_repair(world),
            Act::PassFence => self.pass_fence(world),
            Act::LookAtSource => self.ends = true,
        }
    }
}

pub fn land(world: &mut World, rows: &[(Key, Version)]) {
    for &(key, version) in rows {
        world.say(|| format!("  landed {key} {version:?}"));
        let inserted = world.clickhouse.insert(key, version);
        world.check_ok(inserted);
    }
}

impl World {
    /// One step of whatever the process is at.
    pub fn walhouse(&mut self) {
        match std::mem::replace(&mut self.process, Process::Down) {
            Process::Running(mut session) => {
                session.step(self);
                let ends = session.ends;
                self.process = Process::Running(session);
                if ends {
                    self.owe_for_source();
                    self.stop();
                }
            }
            process @ (Process::Down | Process::Starting(_)) => {
                self.process = process;
                self.start();
            }
        }
    }

    /// What was under way may land in part.
    pub fn kill(&mut self) {
        let Process::Running(session) = std::mem::replace(&mut self.process, Process::Down) else {
            return;
        };
        self.say(|| "walhouse: killed".into());
        for batch in &session.batches {
            let may_land = session.confirm.reserved().covers(batch.cut.upper_lsn)
                && batch.reading.is_none_or(|reading| session.may_land(self, reading));
            if let Some(rows) = batch.rows.as_ref().filter(|_| may_land) {
                self.die_landing(rows);
            }
        }
        for page in session.mending.iter().flat_map(|mending| &mending.pages) {
            if let Some(writes) = &page.writes {
                self.die_landing(writes);
            }
        }
    }

    fn die_landing(&mut self, rows: &[(Key, Version)]) {
        if self.design.inserts_die_with_their_session {
            let landed = self.any(rows.len() + 1);
            land(self, &rows[..landed]);
        } else if self.once_in(2) {
            self.late.push(rows.to_vec());
        }
    }

    pub fn land_late(&mut self) {
        if !self.late.is_empty() && self.once_in(10) {
            let at = self.any(self.late.len());
            let rows = self.late.remove(at);
            self.say(|| "of a dead session:".into());
            land(self, &rows);
        }
    }

    /// The last state row has an exact `upper`.
    pub fn stop(&mut self) {
        let Process::Running(mut session) = std::mem::replace(&mut self.process, Process::Down)
        else {
            return;
        };
        self.say(|| "walhouse: stops".into());
        session.confirm.on_end();
        while !session.confirm.is_settled() {
            session.record(self);
        }
        if session.is_connected(self) {
            let confirmed = session.confirm.recorded().confirmed;
            self.servers[session.server].advance_slot(confirmed, &mut self.prng);
        }
    }
}
