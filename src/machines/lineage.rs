//! Whether a stream may go on from where the last one ended, or would pass over a gap or a fork.
//!
//! A pure verdict, given at every start and reconnect, from the row of `walhouse_state`, the slot,
//! `IDENTIFY_SYSTEM` and the timeline history. It reads and writes nothing.
//!
//! ```text
//!               timeline 1 ----------+------- upper? ------- confirmed?     the dead branch
//!                                    | fork
//!               timeline 2           +------------------------------->      the live one
//! ```
//!
//! - ClickHouse holds no commit that ends above `upper`. A fork at or above it has spared them all,
//!   even where `confirmed` lies higher: an idle stream confirms WAL that holds no row of ours.
//!   Nothing above the server's own WAL was ever streamed, so while the timeline stays the same
//!   `upper` comes down to its end at each start: what a session that died had reserved ahead must
//!   not make a later fork look like a loss.
//! - A slot that is behind streams again, and nothing of that is confirmed before it arrives: if
//!   the stream has started over since, it comes under higher versions than before, and one that
//!   was cut short there would leave an old change on top.
//! - What the dead branch confirmed above the fork says nothing about the live one, so there the
//!   slot may be at the fork at most.
//!
//! [`super::recovery`] decides what follows from the verdict.
//!
//! Two standbys that were promoted separately may take the same timeline number, if no shared
//! archive showed the second one the first; the LSN where the timeline began distinguishes them. It
//! cannot detect two that forked at the very same LSN, and a server restored from a snapshot that
//! has since written past what was confirmed. Both keep the system identifier and the timeline.

use std::fmt;

use crate::error::{Error, ErrorKind};
use crate::wal::Lsn;

/// The row of `walhouse_state`: the position of the last stream of this service and slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineageState {
    pub system_identifier: u64,
    pub timeline: u32,
    /// Where the timeline began: 0 of the first one, and where that is not known.
    pub began: Lsn,
    pub confirmed: Lsn,
    /// Bounds the commits that may be in ClickHouse, on this timeline.
    pub upper_lsn: Lsn,
    /// Added to every LSN on the way to `_version`.
    pub shift: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub confirmed_flush: Lsn,
    pub restart_lsn: Lsn,
    /// Postgres has removed WAL that the slot needs; it can never be streamed from again.
    pub invalidated: bool,
}

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerTimeline {
    pub system_identifier: u64,
    pub timeline: u32,
    /// Where the timeline began: 0 of the first one, and where that is not known.
    pub began: Lsn,
    /// How far its WAL is flushed to disk; nothing above was ever streamed by it.
    pub wal_end: Lsn,
}

/// A line of the timeline history: `timeline` was left at `switch_lsn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    pub timeline: u32,
    pub switch_lsn: Lsn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineageVerdict {
    /// Neither state nor slot: create the slot, then record `State::adopting` it.
    FirstStart,
    /// A slot without state, from another replicator or from a start that was cut short: record
    /// this before the first flush, then stream from the slot.
    TakeOver {
        record: LineageState,
    },
    /// Stream from the slot; where there is something to record, after it was recorded.
    Continue {
        record: Option<LineageState>,
    },
    /// Changes between were never streamed to us.
    Gap {
        confirmed: Option<Lsn>,
        why: Gap,
    },
    /// ClickHouse holds, or may hold, rows that this server never had.
    Diverged {
        state: LineageState,
        server: ServerTimeline,
        why: Fork,
    },
    ForeignCluster {
        expected: u64,
        found: u64,
    },
    /// Another database of the same cluster, by their oids: what ClickHouse has is not in it.
    ForeignDatabase {
        expected: u32,
        found: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    SlotMissing,
    SlotInvalidated,
    /// Someone else moved it, or dropped it and created it again. Where a fork lies below what we
    /// confirmed, `held` is the fork.
    SlotAhead {
        confirmed_flush: Lsn,
        held: Lsn,
    },
    /// The slot would stream it, but it cannot be decoded.
    Undecodable {
        at: Lsn,
    },
    /// The publication lacks what was written before it, and no state says how far the slot was
    /// used.
    OlderThanPublication,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The server's timeline left ours here, below `upper`.
    Below { fork: Lsn },
    /// The server is on an older timeline than ClickHouse: an old primary that came back, or the
    /// wrong server.
    Older,
    /// The server's timeline does not descend from ours, whatever its number. The LSN where the two
    /// forked is unknown.
    NotAncestor,
    /// Same timeline, but less WAL than was confirmed or landed: restored from an earlier time.
    WentBack,
}

impl LineageState {
    /// Recorded when a slot is first used. An earlier replicator may have written to ClickHouse
    /// past what it confirmed, but never past the server's WAL.
    pub fn adopting(server: &ServerTimeline, confirmed_flush: Lsn) -> LineageState {
        LineageState {
            system_identifier: server.system_identifier,
            timeline: server.timeline,
            began: server.began,
            confirmed: confirmed_flush,
            upper_lsn: confirmed_flush.max(server.wal_end),
            shift: 0,
        }
    }
}

/// `history` is the server's, of the timelines before its own; it may be empty, where it is not
/// known, when the server is on the state's timeline.
///
/// The more serious verdict comes first: a fork is reported before a missing slot, because
/// accepting a gap forgets the state that shows the fork.
pub fn judge(
    state: Option<&LineageState>,
    slot: Option<&Slot>,
    server: &ServerTimeline,
    history: &[Switch],
) -> LineageVerdict {
    let Some(state) = state else {
        return match slot {
            None => LineageVerdict::FirstStart,
            Some(slot) if slot.invalidated => {
                LineageVerdict::Gap { confirmed: None, why: Gap::SlotInvalidated }
            }
            Some(slot) => LineageVerdict::TakeOver {
                record: LineageState::adopting(server, slot.confirmed_flush),
            },
        };
    };
    if server.system_identifier != state.system_identifier {
        let (expected, found) = (state.system_identifier, server.system_identifier);
        return LineageVerdict::ForeignCluster { expected, found };
    }
    let diverged = |why| LineageVerdict::Diverged { state: *state, server: *server, why };
    if state.timeline <= server.timeline && !is_of_branch(state, server, history) {
        return diverged(Fork::NotAncestor);
    }
    let held = if server.timeline == state.timeline {
        if server.wal_end < state.confirmed {
            return diverged(Fork::WentBack);
        }
        state.confirmed
    } else {
        // Timelines are numbered upwards, so a newer one is never in an older one's history.
        match fork(state.timeline, history) {
            _ if server.timeline < state.timeline => return diverged(Fork::Older),
            Some(fork) if fork < state.upper_lsn => return diverged(Fork::Below { fork }),
            Some(fork) => state.confirmed.min(fork),
            None => return diverged(Fork::NotAncestor),
        }
    };
    let gap = |why| LineageVerdict::Gap { confirmed: Some(state.confirmed), why };
    match slot {
        None => gap(Gap::SlotMissing),
        Some(slot) if slot.invalidated => gap(Gap::SlotInvalidated),
        Some(slot) if held < slot.confirmed_flush => {
            gap(Gap::SlotAhead { confirmed_flush: slot.confirmed_flush, held })
        }
        Some(slot) => {
            let upper = match server.timeline == state.timeline {
                // A session that died had reserved WAL that this server has not even written yet.
                true => state.upper_lsn.min(server.wal_end),
                false => state.upper_lsn,
            };
            let began = match server.timeline == state.timeline && server.began == Lsn(0) {
                true => state.began,
                false => server.began,
            };
            let (timeline, confirmed) = (server.timeline, slot.confirmed_flush);
            let record = LineageState { timeline, began, confirmed, upper_lsn: upper, ..*state };
            LineageVerdict::Continue { record: (record != *state).then_some(record) }
        }
    }
}

/// [`judge`] once more, where the database is known that ClickHouse's rows come from. A renamed
/// database keeps its oid; one that was created again under the name has another oid, and other
/// rows.
pub fn judge_database(
    verdict: LineageVerdict,
    recorded: Option<u32>,
    found: u32,
) -> LineageVerdict {
    match (verdict, recorded) {
        (LineageVerdict::ForeignCluster { .. }, _) => verdict,
        (_, Some(expected)) if expected != found => {
            LineageVerdict::ForeignDatabase { expected, found }
        }
        (_, Some(_) | None) => verdict,
    }
}

/// Whether [`judge_landed`] may change the verdict. Nothing above `upper` can have landed.
pub fn depends_on_landed(
    verdict: &LineageVerdict,
    state: &LineageState,
    server: &ServerTimeline,
) -> bool {
    goes_on_here(verdict, state, server) && server.wal_end < state.upper_lsn
}

fn goes_on_here(verdict: &LineageVerdict, state: &LineageState, server: &ServerTimeline) -> bool {
    state.timeline == server.timeline && matches!(verdict, LineageVerdict::Continue { .. })
}

/// [`judge`] once more, where a session may have ended between landing rows and recording it:
/// `highest_version` is what ClickHouse has. Rows that came from above the server's WAL are of a
/// time that it has gone back from.
pub fn judge_landed(
    verdict: LineageVerdict,
    state: &LineageState,
    server: &ServerTimeline,
    highest_version: u64,
) -> LineageVerdict {
    let goes_on = goes_on_here(&verdict, state, server);
    match goes_on && server.wal_end.0.saturating_add(state.shift) < highest_version {
        true => LineageVerdict::Diverged { state: *state, server: *server, why: Fork::WentBack },
        false => verdict,
    }
}

/// [`judge`] once more, if the stream from this slot has failed at `at` too often to be tried again
/// ([`super::undecodable`]).
pub fn judge_undecodable(
    verdict: LineageVerdict,
    state: Option<&LineageState>,
    at: Lsn,
) -> LineageVerdict {
    match verdict {
        LineageVerdict::TakeOver { .. } | LineageVerdict::Continue { .. } => {
            let confirmed = state.map(|state| state.confirmed);
            LineageVerdict::Gap { confirmed, why: Gap::Undecodable { at } }
        }
        // Verdicts that are more serious, or start on another slot anyway.
        verdict => verdict,
    }
}

/// Whether the state's timeline is the one of that number in the server's past: it began where that
/// began. If that is unknown they count as the same.
fn is_of_branch(state: &LineageState, server: &ServerTimeline, history: &[Switch]) -> bool {
    let began = match server.timeline == state.timeline {
        true => server.began,
        false => began(history, state.timeline),
    };
    began == Lsn(0) || state.began == Lsn(0) || began == state.began
}

/// Where `timeline` began: where the one before it was left; 0 if there is none.
pub fn began(history: &[Switch], timeline: u32) -> Lsn {
    let before = history.iter().rfind(|switch| switch.timeline < timeline);
    before.map_or(Lsn(0), |switch| switch.switch_lsn)
}

/// Where the server left `timeline` for good; `None` if it was never on it. This is not always the
/// LSN of its line: a standby that knows of a newer timeline and is promoted before it has come to
/// it writes that timeline's line below the one before (seen on Postgres 15: `1 0/400FDB0`, then `2
/// 0/40002D8`), and has nothing above the lower.
fn fork(timeline: u32, history: &[Switch]) -> Option<Lsn> {
    history.iter().find(|switch| switch.timeline == timeline)?;
    let later = history.iter().filter(|switch| timeline <= switch.timeline);
    later.map(|switch| switch.switch_lsn).min()
}

/// The prefix of the text of a fork, also in the stored reason of its repair.
pub const DIVERGED: &str = "diverged: ";
/// The same of a gap.
pub const GAP: &str = "gap: ";

impl LineageVerdict {
    /// The error of a service that must not go on without an operator.
    pub fn into_error(self, service: &str, slot: &str) -> Option<Error> {
        let (kind, hint) = match self {
            LineageVerdict::FirstStart
            | LineageVerdict::TakeOver { .. }
            | LineageVerdict::Continue { .. } => return None,
            LineageVerdict::Gap { why: Gap::OlderThanPublication, .. } => (
                ErrorKind::Lineage,
                format!(
                    "REPLICATION_GAP_STRATEGY is `halt`. Run: SELECT \
                     pg_drop_replication_slot('{slot}'); and start again, so that walhouse creates \
                     a slot after the publication; or set it to `repair`."
                ),
            ),
            LineageVerdict::Gap { .. }
            | LineageVerdict::Diverged {
                why: Fork::Below { .. } | Fork::WentBack | Fork::NotAncestor,
                ..
            } => (
                ErrorKind::Lineage,
                "REPLICATION_GAP_STRATEGY is `halt`. Set it to `repair` and start again: the table \
                 is compared with ClickHouse and what differs is mended. With `skip` it stays as \
                 it is."
                    .to_owned(),
            ),
            // Not halted for good: shutting the server down or correcting a DNS name fixes it.
            LineageVerdict::Diverged { why: Fork::Older, .. } => (
                ErrorKind::Setup,
                format!(
                    "This looks like an old primary that came back: stop it, or point DATABASE_URL \
                     at the new one. If this is the server to follow, run `walhouse adopt \
                     {service}`."
                ),
            ),
            LineageVerdict::ForeignCluster { .. } => (
                ErrorKind::Lineage,
                format!(
                    "Check DATABASE_URL first. If the cluster was replaced (pg_upgrade, dump and \
                     restore), run `walhouse adopt {service}` and start again: ClickHouse is then \
                     made equal to it."
                ),
            ),
            LineageVerdict::ForeignDatabase { .. } => (
                ErrorKind::Lineage,
                format!(
                    "Check the database that DATABASE_URL names first. If it is the one to follow \
                     from now on, run `walhouse adopt {service}` and start again: ClickHouse is \
                     then made equal to it, and rows that it does not have are marked as deleted."
                ),
            ),
        };
        let doing = format!("resume service `{service}` from slot `{slot}`");
        Some(Error::new(kind, doing).because(self.to_string()).hint(hint))
    }
}

/// The finding, as the cause of an error.
impl fmt::Display for LineageVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LineageVerdict::FirstStart => f.write_str("first start: neither state nor slot"),
            LineageVerdict::TakeOver { record } => {
                write!(f, "slot without state: taken over at {}", record.confirmed)
            }
            LineageVerdict::Continue { record: None } => f.write_str("same timeline as before"),
            LineageVerdict::Continue { record: Some(state) } => {
                write!(
                    f,
                    "timeline {} has every row, none above {}",
                    state.timeline, state.upper_lsn
                )
            }
            LineageVerdict::Gap { confirmed, why } => match (why, confirmed) {
                (Gap::SlotMissing, Some(at)) => {
                    write!(f, "{GAP}the slot is missing, expected one at {at} or below")
                }
                (Gap::SlotMissing, None) => write!(f, "{GAP}the slot is missing"),
                (Gap::SlotInvalidated, Some(at)) => {
                    write!(f, "{GAP}the slot was invalidated, expected WAL from {at} on")
                }
                (Gap::SlotInvalidated, None) => write!(f, "{GAP}the slot was invalidated"),
                (Gap::Undecodable { at }, _) => write!(
                    f,
                    "{GAP}the WAL at {at} cannot be decoded, three attempts ended there with the \
                     same error"
                ),
                (Gap::OlderThanPublication, _) => write!(
                    f,
                    "{GAP}the slot is older than its publication, or than what that was altered \
                     to last, and no state tells how far it was used",
                ),
                (Gap::SlotAhead { confirmed_flush, held }, _) => write!(
                    f,
                    "{GAP}the slot was moved or created again: expected it at {held} or below, \
                     got {confirmed_flush}"
                ),
            },
            LineageVerdict::Diverged { state, server, why } => match why {
                Fork::Below { fork } => {
                    let certain = if *fork < state.confirmed { "has" } else { "may have" };
                    write!(
                        f,
                        "{DIVERGED}timeline {} left timeline {} at {fork}, but ClickHouse \
                         {certain} been written up to {}",
                        server.timeline, state.timeline, state.upper_lsn
                    )
                }
                Fork::NotAncestor if state.timeline == server.timeline => write!(
                    f,
                    "{DIVERGED}expected timeline {} that began at {}, got one of that number that \
                     began at {}",
                    state.timeline, state.began, server.began
                ),
                Fork::Older | Fork::NotAncestor => write!(
                    f,
                    "{DIVERGED}expected timeline {} or a descendant of it, got timeline {}",
                    state.timeline, server.timeline
                ),
                Fork::WentBack if state.confirmed <= server.wal_end => write!(
                    f,
                    "{DIVERGED}the server went back in time: its WAL ends at {}, and ClickHouse \
                     has changes from above",
                    server.wal_end
                ),
                Fork::WentBack => write!(
                    f,
                    "{DIVERGED}the server went back in time: expected WAL up to {} at least, got \
                     {}",
                    state.confirmed, server.wal_end
                ),
            },
            LineageVerdict::ForeignCluster { expected, found } => {
                write!(f, "foreign cluster: expected system identifier {expected}, got {found}")
            }
            LineageVerdict::ForeignDatabase { expected, found } => write!(
                f,
                "foreign database: expected the one with oid {expected} of this cluster, got \
                 {found}"
            ),
        }
    }
}

#[cfg(test)]
mod tests;
