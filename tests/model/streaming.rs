//! What a stream brings, what a batch of it comes to, and what is recorded of it.

use super::World;
use super::clickhouse::{Origin, Version};
use super::postgres::{Change, Key, Row, What};
use super::process::Reading;
use super::session::{Session, Streamed, Transaction};
use walhouse::machines::confirm::RecordedMarks;
use walhouse::machines::lineage::LineageState;
use walhouse::machines::removals::{WalPlace, outranking};
use walhouse::wal::Lsn;

impl Session {
    pub fn receive(&mut self, world: &mut World) {
        let Some(open) = &mut self.open else {
            return self.decode(world);
        };
        let Some((lsn, change)) = open.changes.pop_front() else {
            let end = open.end;
            self.open = None;
            world.check_ok(self.progress.on_commit(Lsn(end)));
            self.confirm.on_flushed(self.progress.flushed());
            return;
        };
        let (xid, commit_end) = (open.xid, open.end);
        world.check_ok(self.progress.on_row());
        let restart_lsn = self.restart_lsn;
        world.check(restart_lsn.0 < lsn, || format!("{lsn} streamed from {restart_lsn}"));
        let (lsn, ask_below) = self.place(world, lsn, change);
        let streamed = Streamed { lsn, xid, commit_end, change, ask_below };
        world.say(|| format!("  streamed {streamed:?}"));
        let is_ordered = world.design.removals_are_remembered && ask_below.is_none();
        for (key, _) in change.effects() {
            let version = lsn + self.state.shift;
            let before = self.versions.insert(key, version).unwrap_or(0);
            let holds = before < version || !is_ordered;
            world.check(holds, || format!("key {key} goes back to {version}"));
        }
        self.gathering.push(streamed);
    }

    fn place(&mut self, world: &World, lsn: u64, change: Change) -> (u64, Option<Lsn>) {
        let (gone, come) = change.keys();
        let place = match come.filter(|_| world.design.removals_are_remembered) {
            Some(key) => self.removals.place(Lsn(lsn), &[key]),
            None => WalPlace::AsWritten,
        };
        let (lsn, ask_below) = match place {
            WalPlace::AsWritten => (lsn, None),
            WalPlace::Above(above) => (above.0, None),
            WalPlace::Ask { below } => (lsn, Some(below)),
        };
        if let Some(key) = gone {
            self.removals.on_removed(Lsn(lsn), &[key], self.next_batch);
        }
        (lsn, ask_below)
    }

    /// What ClickHouse has above rows that may have been removed there.
    pub fn ask(&mut self, world: &mut World, at: usize) {
        let changes = &self.batches[at].changes;
        let mut found = Vec::new();
        for (index, streamed) in changes.iter().enumerate() {
            let (Some(below), (_, Some(key))) = (streamed.ask_below, streamed.change.keys()) else {
                continue;
            };
            let mut later = changes[index + 1..].iter();
            let is_removed_later = later.any(|later| later.change.keys().0 == Some(key));
            if is_removed_later || !world.design.removals_are_asked_for {
                continue;
            }
            let shift = self.state.shift;
            let versions = world.clickhouse.versions_of(key);
            let version = outranking(streamed.lsn + shift, below.0 + shift, &versions);
            found.extend(version.map(|version| (index, version)));
        }
        world.say(|| format!("  asks, found {found:?}"));
        self.batches[at].outranking = Some(found);
    }

    /// A transaction is streamed when its commit is found.
    fn decode(&mut self, world: &mut World) {
        let server = &world.servers[self.server];
        while self.decoded < server.flushed {
            let record = server.wal[self.decoded];
            self.decoded += 1;
            if record.what == What::Commit {
                let changes = server.published_changes_of(record.xid).collect();
                self.open = Some(Transaction { xid: record.xid, end: record.end, changes });
                world.check_ok(self.progress.on_begin(Lsn(record.start)));
                return;
            }
        }
    }

    pub fn resolve(&mut self, world: &mut World, at: usize) {
        let mut rows: Vec<(Key, Version)> = Vec::new();
        let mut reads = false;
        let server = &world.servers[self.server];
        let outranking = self.batches[at].outranking.clone().unwrap_or_default();
        for (index, streamed) in self.batches[at].changes.iter().enumerate() {
            let version = streamed.lsn + self.state.shift;
            let raised = outranking.iter().find(|(raised, _)| *raised == index);
            reads |= raised.is_some() && world.design.rows_are_asked_for;
            let left_out = world.bare && streamed.change.leaves_toast_out();
            let before = |from, rows: &[(Key, Version)]| {
                let earlier = rows.iter().rev().find(|(key, _)| *key == from);
                earlier.and_then(|(_, version)| version.row)
            };
            for (key, row) in streamed.change.effects() {
                let mut origin = Origin::Streamed;
                let row = match (row, streamed.change) {
                    (None, _) => {
                        let is_placed = !world.bare
                            || world.clickhouse.rows.contains_key(&key)
                            || rows.iter().any(|(earlier, _)| *earlier == key);
                        if !is_placed {
                            continue;
                        }
                        None
                    }
                    (Some(row), Change::Update { from, .. }) if left_out => {
                        origin = Origin::ReadAgain;
                        let earlier = before(from, &rows).or_else(|| {
                            reads = true;
                            server.table().get(&key).copied()
                        });
                        let Some(Row { toast, .. }) = earlier else { continue };
                        Some(Row { toast, ..row })
                    }
                    (row, _) => row,
                };
                let is_there =
                    !world.design.rows_are_asked_for || server.table().contains_key(&key);
                let raised = raised.filter(|_| row.is_some() && is_there);
                let version = raised.map_or(version, |(_, raised)| *raised);
                rows.push((key, Version { version, row, origin }));
            }
        }
        self.batches[at].rows = Some(rows);
        if reads {
            self.batches[at].reading = Some(match world.design.values_read_again_wait {
                true => self.read(world),
                false => Reading { insert_lsn: Lsn(0), is_flushed: true },
            });
        }
    }

    pub fn record(&mut self, world: &mut World) {
        let Some(RecordedMarks { confirmed, upper_lsn: upper }) =
            self.confirm.next_write(world.now)
        else {
            return;
        };
        let waiting = self.batches.iter().flat_map(|batch| &batch.changes).chain(&self.gathering);
        let ends = waiting.map(|streamed| streamed.commit_end);
        let ends = ends.chain(self.open.as_ref().map(|open| open.end));
        // What was durable before may be streamed again.
        let lowest = ends.filter(|end| self.state.confirmed.0 < *end).min();
        world.check(lowest.is_none_or(|end| confirmed.0 < end), || {
            format!("{confirmed} confirmed, {lowest:?} is not durable")
        });
        let fails = world.once_in(8);
        if !fails || world.once_in(2) {
            let state = LineageState { confirmed, upper_lsn: upper, ..self.state };
            world.say(|| format!("  recorded {confirmed} upper {upper}"));
            world.clickhouse.state = Some(state);
        }
        if fails {
            self.confirm.on_write_failed(world.now);
        } else {
            self.confirm.on_written(world.now);
        }
    }
}

impl Change {
    /// The keys that it takes away and brings.
    fn keys(self) -> (Option<Key>, Option<Key>) {
        match self {
            Change::Insert { key, .. } => (None, Some(key)),
            Change::Update { from, key, .. } if from != key => (Some(from), Some(key)),
            Change::Update { .. } => (None, None),
            Change::Delete { key } => (Some(key), None),
        }
    }

    pub fn leaves_toast_out(self) -> bool {
        matches!(self, Change::Update { same_toast: true, .. })
    }
}
