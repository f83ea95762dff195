//! What happens to the servers and to walhouse, and the calm in which everything must come right.

use super::World;
use super::postgres::{Commits, Server};
use super::process::Process;
use super::slots::Standby;
use walhouse::machines::prng::Prng;
use walhouse::machines::recovery::{Adopted, GapStrategy};
use walhouse::wal::Lsn;

impl World {
    pub fn turn(&mut self, faults: &mut u64) {
        if self.read_has_landed && self.once_in(8) {
            self.read_has_landed = false;
            *faults = faults.saturating_sub(1);
            if self.once_in(2) { self.crash() } else { self.promote() }
        }
        if 0 < *faults && self.once_in(14) {
            *faults -= 1;
            self.fault();
        }
        self.land_late();
        if self.once_in(4) {
            self.clickhouse.unmerged.clear();
        }
        match self.prng.below(13) {
            0..=4 => self.write(),
            5 | 6 => self.stray(),
            _ => {
                for _ in 0..1 + self.prng.below(4) {
                    self.walhouse();
                }
            }
        }
        let is_cut_off = match &self.process {
            Process::Running(session) => {
                session.server != self.primary || !session.is_connected(self)
            }
            Process::Down | Process::Starting(_) => false,
        };
        if is_cut_off && self.once_in(6) {
            self.end();
        }
    }

    fn write(&mut self) {
        // What was there before the first slot is nobody's promise.
        if self.clickhouse.state.is_some() || self.primary().slot.is_some() {
            let (server, prng) = (&mut self.servers[self.primary], &mut self.prng);
            server.act(prng, &mut self.next_value);
        }
    }

    /// Standbys follow; a server that nobody should write to is written to.
    fn stray(&mut self) {
        for standby in &mut self.standbys {
            let of = &self.servers[standby.of];
            if self.prng.below(2) == 0 {
                standby.receive(of, &mut self.prng);
            }
            if self.prng.below(2) == 0 {
                standby.sync_slot(of);
            }
        }
        if !self.strays.is_empty() && self.once_in(2) {
            let stray = self.any(self.strays.len());
            let server = &mut self.servers[self.strays[stray]];
            server.act(&mut self.prng, &mut self.next_value);
        }
    }

    fn end(&mut self) {
        if self.once_in(2) { self.kill() } else { self.stop() }
    }

    fn fault(&mut self) {
        if self.clickhouse.state.is_none() {
            // A slot that is lost before anything was recorded leaves a first start.
            match self.prng.below(3) {
                0 => self.invalidate_slot(),
                1 => self.crash(),
                _ => self.end(),
            }
            return;
        }
        match self.prng.below(if self.design.source_changes { 18 } else { 14 }) {
            14..=17 => self.alter(),
            0..=2 => self.promote(),
            3 => self.crash(),
            4 => self.go_to_stray(),
            5 => self.restore(),
            6 => self.found_cluster(),
            7 => self.invalidate_slot(),
            8..=10 => self.meddle_with_slot(),
            11 => self.adopt(),
            _ => self.end(),
        }
    }

    /// Statements of which the stream says nothing; some are undone after a while.
    fn alter(&mut self) {
        let is_published = self.primary().is_published();
        let what = self.prng.below(4);
        let (server, prng) = (&mut self.servers[self.primary], &mut self.prng);
        match what {
            0 | 1 => {
                self.next_value += 1;
                server.publish(prng, self.next_value, !is_published);
                if is_published && prng.below(2) == 0 {
                    for _ in 0..prng.below(12) {
                        server.act(prng, &mut self.next_value);
                    }
                    self.next_value += 1;
                    server.publish(prng, self.next_value, true);
                }
            }
            what => server.make(prng, &mut self.next_value, what == 2),
        }
        self.say(|| format!("weather: altered, {what}"));
    }

    /// One of the primary, or one that was left behind on an older branch.
    fn promote(&mut self) {
        if self.standbys.is_empty() {
            return;
        }
        let at = self.any(self.standbys.len());
        let mut standby = self.standbys.swap_remove(at);
        if self.prng.below(2) == 0 {
            standby.receive(&self.servers[standby.of], &mut self.prng);
        }
        let Standby { of, applied, slot } = standby;
        let timeline = self.free_timeline(of, applied);
        let new = self.servers[of].promoted(applied, timeline, slot);
        self.next_timeline = self.next_timeline.max(timeline + 1);
        self.say(|| format!("weather: {of} is left at {applied}: {:?}", new.identity()));
        self.say(|| format!("weather: {:?}, {slot:?}", new.history));
        if self.once_in(3) {
            self.say(|| "weather: the old primary lives on".into());
        } else {
            self.servers[self.primary].crash(&mut self.prng);
        }
        self.replace_primary(new);
        for standby in &mut self.standbys {
            if standby.of == of && standby.applied <= applied && self.prng.below(2) == 0 {
                standby.of = self.primary;
            }
        }
    }

    /// The number of what is promoted. Where no archive told it of the promotion before, it takes
    /// the same once more; but for two that left at one place, which nobody could tell apart.
    fn free_timeline(&mut self, of: usize, applied: usize) -> u32 {
        let taken = self.next_timeline - 1;
        let left_at = self.servers[of].end_of(applied);
        let is_twin = |server: &Server| {
            let identity = server.identity();
            (identity.timeline, identity.began) == (taken, Lsn(left_at))
        };
        let may_take = self.servers[of].timeline < taken && !self.servers.iter().any(is_twin);
        if may_take && self.once_in(3) {
            self.say(|| format!("weather: timeline {taken} for the second time"));
            return taken;
        }
        self.next_timeline
    }

    fn replace_primary(&mut self, new: Server) {
        self.strays.push(self.primary);
        self.primary = self.servers.len();
        self.servers.push(new);
        self.standbys.push(Standby { of: self.primary, applied: 0, slot: None });
        // It says so in its WAL.
        let (server, prng) = (&mut self.servers[self.primary], &mut self.prng);
        server.write(prng, 0, super::postgres::What::Other);
        server.flush();
    }

    fn crash(&mut self) {
        self.say(|| "weather: crash".into());
        self.servers[self.primary].crash(&mut self.prng);
    }

    /// An old primary came back, or the new one after that.
    fn go_to_stray(&mut self) {
        if self.strays.is_empty() {
            return;
        }
        let stray = self.any(self.strays.len());
        let stray = std::mem::replace(&mut self.strays[stray], self.primary);
        self.primary = stray;
        self.say(|| format!("weather: server {stray} is named"));
    }

    /// Looked at before it has written past what was confirmed: later nothing shows.
    fn restore(&mut self) {
        let Some(state) = self.clickhouse.state else { return };
        let server = &self.servers[self.primary];
        let identity = server.identity();
        if (state.system_identifier, state.timeline)
            != (identity.system_identifier, identity.timeline)
        {
            return;
        }
        let from = server.history.last().map_or(Lsn(0), |switch| switch.switch_lsn);
        let landed = self.clickhouse.highest_version().saturating_sub(state.shift);
        let is_early = |end: u64| from.0 < end && end < state.confirmed.0.max(landed);
        let early: Vec<usize> =
            (1..=server.wal.len()).filter(|count| is_early(server.wal[count - 1].end)).collect();
        let Some(&records) = early.get(self.prng.below(early.len() as u64) as usize) else {
            return;
        };
        let received = Lsn(server.wal[records - 1].end);
        let slot = server.slot.filter(|slot| slot.confirmed_flush <= received);
        self.end();
        self.process = Process::Down;
        self.say(|| format!("weather: back to {received}, {slot:?}"));
        self.servers[self.primary].restore(records, slot);
        self.standbys = vec![Standby { of: self.primary, applied: 0, slot: None }];
        self.strays.clear();
        self.start();
        if self.walhouse_is_up() && self.design.debt_is_recorded {
            self.start();
        }
    }

    /// Another cluster takes the place of this one, with other rows.
    fn found_cluster(&mut self) {
        let system_identifier = self.primary().system_identifier + 1;
        let begins_at = 500 + self.prng.below(10_000);
        let commits = [Commits::AtOnce, Commits::FlushedLater, Commits::SeenLater];
        let commits = commits[self.any(3)];
        let mut new = Server::new(system_identifier, begins_at, commits);
        for _ in 0..30 {
            new.act(&mut self.prng, &mut self.next_value);
        }
        self.say(|| format!("weather: another cluster {:?}", new.identity()));
        self.standbys.clear();
        self.replace_primary(new);
    }

    /// An operator says that this is the server to follow.
    pub fn adopt(&mut self) {
        let identity = self.primary().identity();
        let (system_identifier, timeline) = (identity.system_identifier, identity.timeline);
        self.adopted = Some(Adopted { system_identifier, timeline, database: None });
        self.say(|| format!("weather: adopted {identity:?}"));
    }

    /// Postgres ends the walsender for it.
    fn invalidate_slot(&mut self) {
        if let Some(mut slot) = self.primary().slot {
            self.end();
            slot.invalidated = true;
            self.primary().set_slot(Some(slot));
            self.say(|| "weather: slot invalidated".into());
        }
    }

    /// Only while nobody holds it.
    fn meddle_with_slot(&mut self) {
        self.end();
        self.process = Process::Down;
        let (server, prng) = (&mut self.servers[self.primary], &mut self.prng);
        let what = match prng.below(3) {
            0 => {
                server.set_slot(None);
                "dropped"
            }
            1 => {
                server.create_slot(prng.below(6), prng, &mut self.next_value);
                "created again"
            }
            _ => {
                advance(server, prng);
                "advanced"
            }
        };
        self.say(|| format!("weather: slot {what}"));
    }

    /// The weather ends. Postgres finishes what it was at, and walhouse catches up.
    pub fn settle(&mut self) {
        self.say(|| "settles".into());
        for _ in 0..3_000 {
            if self.broken.is_some() {
                return;
            }
            self.servers[self.primary].quiet(&mut self.prng);
            if !self.primary().is_published() {
                self.next_value += 1;
                let (id, prng) = (self.next_value, &mut self.prng);
                self.servers[self.primary].publish(prng, id, true);
            }
            self.land_late();
            let was_up = self.walhouse_is_up();
            match &self.process {
                Process::Down | Process::Starting(_) => self.start(),
                Process::Running(session) if session.server != self.primary => self.stop(),
                Process::Running(session) if !session.is_connected(self) => self.stop(),
                Process::Running(session)
                    if self.late.is_empty()
                        && session.is_settled(&self.servers[self.primary])
                        && (!self.design.source_is_watched || self.source_is_as_recorded()) =>
                {
                    return self.check_all_is_there();
                }
                Process::Running(_) => self.walhouse(),
            }
            if !was_up && !self.walhouse_is_up() {
                let adopted = self.adopted;
                self.adopt();
                if adopted == self.adopted && self.strategy == GapStrategy::Halt {
                    return;
                }
            }
        }
        self.check(false, || "never settles".into());
    }

    fn check_all_is_there(&mut self) {
        let table = self.primary().table().clone();
        let found = self.clickhouse.table();
        let Some(skipped) = self.skipped else {
            return self.check(found == table, || format!("Postgres {table:?}\nFINAL {found:?}"));
        };
        let keys = self.primary().keys_changed_after(skipped.0);
        for key in keys {
            let (row, found) = (table.get(&key), found.get(&key));
            self.check(row == found, || format!("key {key}: Postgres {row:?}, FINAL {found:?}"));
        }
    }
}

fn advance(server: &mut Server, prng: &mut Prng) {
    let Some(slot) = server.slot else { return };
    let ends = server.wal[..server.flushed].iter().map(|record| record.end);
    let ahead: Vec<u64> = ends.filter(|end| slot.confirmed_flush.0 < *end).collect();
    if let Some(&to) = ahead.get(prng.below(ahead.len() as u64) as usize) {
        server.advance_slot(Lsn(to), prng);
    }
}
