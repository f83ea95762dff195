//! A model of everything around the decisions of failover and repair, run from a seed: servers that
//! fork, crash and go back, a slot, and a ClickHouse that keeps the highest version of a key.
//!
//! ```text
//!   postgres, clients, slots   WAL, transactions, what a crash takes, what a standby has
//!   weather                    what happens to them: writes, promotions, restores, meddling
//!   process                    a start: judge, have a slot, write the rows of its memory
//!   session, streaming         a stream: batches, reads of the table, confirmations
//!   mending                    the two passes of a repair, beside the stream
//!   clickhouse                 what is left of it
//! ```
//!
//! Whatever happens, in the end ClickHouse has what the surviving primary has. The decisions are
//! the real ones ([`walhouse::machines::lineage`], [`walhouse::machines::recovery`], [`walhouse::machines::repair`], [`walhouse::machines::confirm`],
//! [`walhouse::machines::progress`],
//! [`walhouse::machines::removals`]); [`Design`] says what is done around them, and how to do it wrong.
//!
//! With `source_changes` the publication loses its table for a while, and the table is rewritten or
//! swapped, of which the stream says nothing.
//!
//! What cannot be seen is not in the model: two timelines of one number that left at one place, and
//! a restored server that has written past what was confirmed before anyone looked.

use std::time::Instant;

use crate::clickhouse::{ClickHouse, Version};
use crate::postgres::{Commits, Key, Server};
use crate::process::Process;
use crate::slots::Standby;
use walhouse::machines::catalog::Catalog;
use walhouse::machines::prng::Prng;
use walhouse::machines::recovery::{Adopted, GapStrategy};
use walhouse::wal::Lsn;

mod clickhouse;
mod clients;
mod mending;
mod postgres;
mod process;
mod session;
mod slots;
mod streaming;
mod tests;
mod weather;

/// What is done around the decisions. Each `false` is a fault that the model must find.
#[derive(Debug, Clone, Copy)]
pub struct Design {
    /// A tombstone of the repair is one above the base version.
    pub tombstones_above_base: bool,
    /// What was read from the table lands once `upper` covers the snapshot.
    pub reads_are_reserved: bool,
    /// What was read from the table lands once the server has flushed what it saw.
    pub reads_are_flushed: bool,
    /// Both hold for values that the stream left out, too.
    pub values_read_again_wait: bool,
    /// A snapshot sees all that was streamed before its pass began.
    pub reads_see_the_stream: bool,
    /// Starting over raises the shift above all that ClickHouse has.
    pub shift_is_raised: bool,
    /// No insert of a dead session lands once another has begun.
    pub inserts_die_with_their_session: bool,
    /// The repair is recorded before the state it belongs to.
    pub repair_row_first: bool,
    /// That a repair is owed is recorded before anything is done about it.
    pub debt_is_recorded: bool,
    /// A repair row of another state than this means that there is a repair to begin.
    pub debt_is_paid: bool,
    /// A row under a key that was removed above it comes above the removal.
    pub removals_are_remembered: bool,
    /// Of removals that the session does not know, ClickHouse is asked.
    pub removals_are_asked_for: bool,
    /// And Postgres, whether it was not a later one.
    pub rows_are_asked_for: bool,
    /// The source is looked at at each start, and beside the stream.
    pub source_is_watched: bool,
    /// What is owed is recorded before the look that shows it.
    pub debt_before_look: bool,
    /// What is owed is read behind a fence.
    pub repairs_wait_at_a_fence: bool,
    /// And once the stream has come to the fence.
    pub fences_wait_for_the_stream: bool,
    /// The publication and the table change. No fault either way.
    pub source_changes: bool,
    /// A first start finds no tables, and fills those it makes. No fault either way.
    pub tables_are_filled: bool,
}

pub const RIGHT: Design = Design {
    tombstones_above_base: true,
    reads_are_reserved: true,
    reads_are_flushed: true,
    values_read_again_wait: true,
    reads_see_the_stream: true,
    shift_is_raised: true,
    inserts_die_with_their_session: true,
    repair_row_first: true,
    debt_is_recorded: true,
    debt_is_paid: true,
    removals_are_remembered: true,
    removals_are_asked_for: true,
    rows_are_asked_for: true,
    source_is_watched: true,
    debt_before_look: true,
    repairs_wait_at_a_fence: true,
    fences_wait_for_the_stream: true,
    source_changes: false,
    tables_are_filled: false,
};

#[derive(Debug)]
pub struct World {
    pub prng: Prng,
    pub now: Instant,
    pub design: Design,
    pub strategy: GapStrategy,
    /// REPLICA IDENTITY DEFAULT: deletes bring the key alone, updates leave values out.
    pub bare: bool,
    pub servers: Vec<Server>,
    /// The one that DATABASE_URL names.
    pub primary: usize,
    pub standbys: Vec<Standby>,
    /// Servers that are not the primary, and may be again.
    pub strays: Vec<usize>,
    pub next_value: u32,
    pub next_timeline: u32,
    pub clickhouse: ClickHouse,
    pub process: Process,
    pub adopted: Option<Adopted>,
    /// What the start has seen of the source.
    pub seen_source: Option<(u64, Catalog)>,
    /// What was read from the table has landed lately: the worst time for a server to die.
    pub read_has_landed: bool,
    /// Where a stream started over without repair: what came before may differ.
    pub skipped: Option<Lsn>,
    /// Inserts of dead sessions that ClickHouse has not finished.
    pub late: Vec<Vec<(Key, Version)>>,
    /// The verdicts that were given.
    pub seen: Vec<&'static str>,
    steps: Option<Vec<String>>,
    broken: Option<String>,
}

impl World {
    pub fn primary(&mut self) -> &mut Server {
        &mut self.servers[self.primary]
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.prng.below(n) == 0
    }

    pub fn any(&mut self, count: usize) -> usize {
        self.prng.below(count as u64) as usize
    }

    pub fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(steps) = &mut self.steps {
            steps.push(what());
        }
    }

    pub fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            let what = what();
            self.say(|| format!("BROKEN: {what}"));
            self.broken = Some(what);
        }
    }

    /// Only a bug, of the model or of what it tests, makes this an error.
    pub fn check_ok<T>(&mut self, result: Result<T, impl std::fmt::Display>) -> Option<T> {
        result.map_err(|error| self.check(false, || error.to_string())).ok()
    }
}

/// One run. What went wrong, if anything did, and the steps if they are wanted.
pub fn run(
    seed: u64,
    now: Instant,
    design: Design,
    strategy: GapStrategy,
    steps_are_wanted: bool,
) -> (Result<Vec<&'static str>, String>, Vec<String>) {
    let mut prng = Prng::from_seed(seed);
    let commits = [Commits::AtOnce, Commits::FlushedLater, Commits::SeenLater];
    let commits = commits[prng.below(3) as usize];
    let mut world = World {
        now,
        design,
        strategy,
        bare: prng.below(4) != 0,
        servers: vec![Server::new(7, 1_000, commits)],
        primary: 0,
        standbys: vec![Standby { of: 0, applied: 0, slot: None }; 2],
        strays: Vec::new(),
        next_value: 0,
        next_timeline: 2,
        clickhouse: ClickHouse::default(),
        process: Process::Down,
        adopted: None,
        seen_source: None,
        read_has_landed: false,
        skipped: None,
        late: Vec::new(),
        seen: Vec::new(),
        steps: steps_are_wanted.then(Vec::new),
        broken: None,
        prng,
    };
    let turns = 40 + world.prng.below(160);
    let mut faults = 1 + world.prng.below(8);
    for _ in 0..turns {
        world.turn(&mut faults);
        if world.broken.is_some() {
            break;
        }
    }
    world.settle();
    let result = world.broken.map_or(Ok(world.seen), Err);
    (result, world.steps.unwrap_or_default())
}
