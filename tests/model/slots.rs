//! The logical slot of a simulated server, and what standbys have of both.

use super::postgres::{Record, Server, What};
use walhouse::machines::lineage::Slot;
use walhouse::machines::prng::Prng;
use walhouse::wal::Lsn;

/// It has a prefix of the WAL of server `of`, and perhaps a copy of its slot.
#[derive(Debug, Clone, Copy)]
pub struct Standby {
    pub of: usize,
    pub applied: usize,
    pub slot: Option<Slot>,
}

impl Standby {
    pub fn receive(&mut self, primary: &Server, prng: &mut Prng) {
        let behind = primary.flushed - self.applied;
        // Mostly a few records are missing.
        let stays = if prng.below(3) == 0 { behind } else { behind.min(4) };
        self.applied += behind - prng.below(stays as u64 + 1) as usize;
    }

    /// As Postgres 17 does it: not while the slot is ahead of what was received.
    pub fn sync_slot(&mut self, primary: &Server) {
        let Some(slot) = primary.slot else {
            self.slot = None;
            return;
        };
        let received = self.applied.checked_sub(1).map_or(0, |last| primary.wal[last].end);
        if slot.confirmed_flush.0 <= received && !slot.invalidated {
            self.slot = Some(slot);
        }
    }
}

impl Server {
    /// Waits, as Postgres does, for every transaction that runs; others do `acts` things meanwhile.
    pub fn create_slot(&mut self, acts: u64, prng: &mut Prng, next_value: &mut u32) {
        let restart_lsn = Lsn(self.insert_lsn());
        self.write(prng, 0, What::Other);
        let running_below = self.xmax();
        for _ in 0..acts {
            self.act(prng, next_value);
        }
        self.end_before(prng, running_below);
        self.write(prng, 0, What::Other);
        self.flush();
        let confirmed_flush = Lsn(self.insert_lsn());
        self.slot = Some(Slot { confirmed_flush, restart_lsn, invalidated: false });
        self.saved_slot = self.slot;
    }

    /// What is confirmed to the slot, or what somebody else advances it to.
    pub fn advance_slot(&mut self, to: Lsn, prng: &mut Prng) {
        let Some(mut slot) = self.slot else { return };
        slot.confirmed_flush = slot.confirmed_flush.max(to);
        if prng.below(2) == 0 {
            slot.restart_lsn = slot.restart_lsn.max(self.restart_for(slot.confirmed_flush.0));
            self.saved_slot = Some(slot);
        }
        self.slot = Some(slot);
        if prng.below(4) == 0 {
            self.saved_slot = self.slot;
        }
    }

    pub fn set_slot(&mut self, slot: Option<Slot>) {
        (self.slot, self.saved_slot) = (slot, slot);
    }

    /// The last list of running transactions below all that is streamed after `confirmed`.
    fn restart_for(&self, confirmed: u64) -> Lsn {
        let is_past = |record: &&Record| match record.what {
            What::Commit => record.end <= confirmed,
            What::Abort => true,
            _ => false,
        };
        let past: Vec<u32> = self.wal.iter().filter(is_past).map(|record| record.xid).collect();
        let first = self
            .wal
            .iter()
            .find(|r| matches!(r.what, What::Change(_)) && !past.contains(&r.xid))
            .map_or(u64::MAX, |record| record.start);
        let mut lists = self.wal.iter().filter(|record| record.what == What::Other);
        let last = lists.rfind(|list| list.end <= first && list.end <= confirmed);
        Lsn(last.map_or(0, |list| list.start))
    }
}
