//! Inserts every row of a block that its table accepts, and finds the cause if it accepts less: the
//! server, the size, a row, the whole table, or a view behind it.
//!
//! A pure plan: the flusher asks for the next step, does it, and says how it went.
//!
//! ```text
//!   too large or too slow -> less at a time, down to a row; kept for a while, then grown again
//!   refused, or a code nobody knows -> halves -> one row, a suspect
//!   as many refused in a row -> is a row known to be good taken? no: hold, and all of it again
//!   only suspects are left   -> the same; then each without the document that is named, or in turn
//!                               without each; then refused as a whole; and the same once more
//!   refused by a view -> halves -> one row, which lands with the view's errors passed over
//!   too much for a view -> less at a time; a row alone: after a few waits, refused by the view
//! ```
//!
//! So a refusal is about a row only if a row known to be good was accepted right before and right
//! after. Nothing of that is remembered from block to block: a table that refuses everything is
//! held as in an outage by every session. There is no budget of inserts, because giving up would
//! lose rows or stop the stream for ever; the plan is bounded by itself: see the tests.

use std::ops::Range;
use std::time::{Duration, Instant};

/// Why an INSERT failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InsertFault {
    /// The server is unreachable, or an operator has to fix something: no verdict about rows.
    Away,
    /// The same, with the connection lost amid the request: a proxy may have found it too large.
    Lost,
    /// Less at a time may be taken.
    Large,
    Rows(Blame),
    /// A materialized view refuses what the table accepts.
    View,
    /// The same, because of a limit: it may accept less at a time.
    LargeForView,
}

/// The cause that a refusal names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Blame {
    /// The index of the row among those sent.
    pub row: Option<usize>,
    pub column: BlamedColumn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlamedColumn {
    #[default]
    Unnamed,
    /// By its place in the order that the caller chose.
    Document(usize),
    /// One without which there is no row.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Insert {
        rows: Range<usize>,
        views: Views,
    },
    /// Insert this row with documents made empty. If it lands, keep what was made empty.
    Blank {
        row: usize,
        documents: Vec<usize>,
        views: Views,
    },
    /// Insert a row known to be good, under its own version.
    Probe(KnownGood),
    /// Nothing is left to try. These rows did not land; keep each in full, then the block is done.
    Done {
        refused: Vec<usize>,
    },
}

/// Whether the views of the table may refuse the INSERT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Views {
    Heard,
    /// Those views lack the rows. `all`: which of the rows is not known.
    PassedOver {
        all: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownGood {
    /// This row of the block has landed.
    Landed(usize),
    /// One that the table has.
    OfTable,
    /// The same of a table without versions, where it stands twice from then on.
    CopyOfTable,
}

/// Before the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    GoOn,
    /// Wait, as for a server that is away.
    Wait,
    /// The same: not even a row known to be good is taken.
    Hold,
}

/// Refused in a row before a row known to be good is tried: the whole and both halves.
const PROBE_AFTER: u32 = 3;
/// The same of a table without versions, where the answer is to hold.
const HOLD_AFTER: u32 = 16;
/// After this many holds, a table without versions is probed with a copy of one of its rows: a
/// duplicate is less harm than a stream that never goes on.
const HOLDS_BEFORE_COPY: u32 = 8;
/// Lost connections in a row before the size is doubted: the same block again is dropped as known
/// by tables that keep a log of blocks, and a part of it is not.
const LOST_MAX: u32 = 3;
/// After this many rows in a row refused by a view, the view accepts nothing: the rest of the block
/// is not probed.
const REFUSED_BY_VIEWS_MAX: u32 = 16;
/// How often to wait for a single row that is too much for a view: memory may be short for a while.
const VIEW_WAITS: u32 = 3;
/// Around a bad row at least so many are tried at a time.
const WINDOW_MIN: usize = 16;

/// How many rows at a time a table accepts. One for each table, across blocks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InsertFit {
    rows_max: Option<usize>,
    /// The size was grown and failed again: not before then.
    kept_until: Option<Instant>,
    keep: Duration,
    has_landed: bool,
}

const KEEP_MIN: Duration = Duration::from_secs(30);
const KEEP_MAX: Duration = Duration::from_secs(30 * 60);

impl InsertFit {
    /// The number of rows at a time; `None`: no limit.
    pub fn rows_max(&self) -> Option<usize> {
        self.rows_max
    }

    fn on_too_large(&mut self, rows: usize, now: Instant) {
        self.rows_max = Some((rows / 2).max(1));
        // Less has landed just before: the size it is, and not a server that was away.
        if std::mem::take(&mut self.has_landed) {
            self.keep = (self.keep * 2).clamp(KEEP_MIN, KEEP_MAX);
            self.kept_until = Some(now + self.keep);
        }
    }

    fn on_landed(&mut self, rows: usize, now: Instant) {
        let Some(max) = self.rows_max else { return };
        if rows < max || self.kept_until.is_some_and(|until| now < until) {
            // A smaller insert says nothing about a larger one.
            self.has_landed |= max <= rows;
            return;
        }
        self.has_landed = true;
        self.rows_max = Some(max.saturating_mul(2));
    }
}

#[derive(Debug)]
pub struct Salvage {
    documents: usize,
    /// A row may be written again: it is one by its version.
    can_repeat: bool,
    /// The last one is next.
    pending: Vec<Piece>,
    suspects: Vec<Suspect>,
    refused: Vec<usize>,
    /// Try a row known to be good.
    is_probing: bool,
    /// A row that has landed in this plan.
    landed: Option<usize>,
    /// A row known to be good was taken after the last refusal that is not judged.
    is_proven: bool,
    refused_in_a_row: u32,
    lost_in_a_row: u32,
    probe_at: u32,
    /// Anything has landed, of a table without versions.
    has_landed: bool,
    /// In a row, of a table without versions.
    holds: u32,
    /// While it is held, one row after the other is tried for all of them.
    scout: Option<usize>,
    /// Rows tried at a time while bad ones are being found.
    window: usize,
    landed_since_suspect: usize,
    refused_by_views: u32,
    waits_for_view: u32,
    /// A row alone was too much for a view: its limit is not one of size.
    is_view_beyond_size: bool,
}

#[derive(Debug, Clone)]
struct Piece {
    rows: Range<usize>,
    views: Views,
    /// Its other half was fine, so this one holds the fault: trying it as a whole is useless.
    is_doubted: bool,
    /// The other half is next.
    is_first: bool,
}

/// A row that was refused alone.
#[derive(Debug, Clone)]
struct Suspect {
    row: usize,
    /// Documents to be made empty, one set after the other; the last one is next.
    tries: Vec<Vec<usize>>,
    views: Views,
}

impl Salvage {
    /// For a block of `rows` with `documents` columns that may be blanked.
    pub fn of(rows: usize, documents: usize, can_repeat: bool) -> Salvage {
        let mut salvage = Salvage {
            documents,
            can_repeat,
            pending: Vec::new(),
            suspects: Vec::new(),
            refused: Vec::new(),
            is_probing: false,
            landed: None,
            is_proven: false,
            refused_in_a_row: 0,
            lost_in_a_row: 0,
            probe_at: PROBE_AFTER,
            has_landed: false,
            holds: 0,
            scout: None,
            window: usize::MAX,
            landed_since_suspect: 0,
            refused_by_views: 0,
            waits_for_view: 0,
            is_view_beyond_size: false,
        };
        salvage.push(0..rows, Views::Heard, false);
        salvage
    }

    /// Returns the same step until its outcome is reported.
    pub fn step(&self, fit: &InsertFit) -> Step {
        if self.is_probing {
            return Step::Probe(match self.landed {
                Some(row) => KnownGood::Landed(row),
                None if !self.can_repeat && HOLDS_BEFORE_COPY <= self.holds => {
                    KnownGood::CopyOfTable
                }
                None => KnownGood::OfTable,
            });
        }
        if let Some(row) = self.scout {
            return Step::Insert { rows: row..row + 1, views: Views::Heard };
        }
        if let Some(piece) = self.pending.last() {
            let most = self.window.min(fit.rows_max.unwrap_or(usize::MAX)).max(1);
            let end = piece.rows.end.min(piece.rows.start.saturating_add(most));
            return Step::Insert { rows: piece.rows.start..end, views: piece.views };
        }
        if let Some(suspect) = self.suspects.last() {
            let (row, views) = (suspect.row, suspect.views);
            return match suspect.tries.last() {
                Some(documents) if !documents.is_empty() => {
                    Step::Blank { row, documents: documents.clone(), views }
                }
                _ => Step::Insert { rows: row..row + 1, views },
            };
        }
        let mut refused = self.refused.clone();
        refused.sort_unstable();
        Step::Done { refused }
    }

    /// The step's rows are durable.
    pub fn on_landed(&mut self, fit: &mut InsertFit, now: Instant) {
        let step = self.step(fit);
        self.lost_in_a_row = 0;
        match step {
            Step::Probe(_) => self.on_probed(),
            Step::Insert { rows, .. } if self.scout.take().is_some() => {
                self.on_taken();
                self.landed = Some(rows.start);
                self.take_out(rows.start);
            }
            Step::Insert { rows, .. } if !self.pending.is_empty() => {
                fit.on_landed(rows.len(), now);
                if self.window <= rows.len() {
                    self.window = self.window.saturating_mul(2);
                }
                self.landed_since_suspect += rows.len();
                self.on_taken();
                let Some(mut piece) = self.pending.pop() else { return };
                if piece.views == Views::Heard {
                    (self.refused_by_views, self.waits_for_view) = (0, 0);
                    self.landed = Some(rows.start);
                }
                piece.rows.start = rows.end;
                let is_first = piece.is_first;
                if !piece.rows.is_empty() {
                    self.pending.push(piece);
                } else if is_first && let Some(other) = self.pending.last_mut() {
                    other.is_doubted = true;
                }
            }
            Step::Insert { .. } | Step::Blank { .. } => {
                self.on_taken();
                self.suspects.pop();
            }
            Step::Done { .. } => {}
        }
        self.go_on();
    }

    pub fn on_failed(&mut self, fault: InsertFault, fit: &mut InsertFit, now: Instant) -> NextStep {
        let step = self.step(fit);
        self.lost_in_a_row = if fault == InsertFault::Lost { self.lost_in_a_row + 1 } else { 0 };
        let then = match (step, fault) {
            (Step::Done { .. }, _) => NextStep::GoOn,
            (Step::Insert { rows, .. }, InsertFault::Large) if 1 < rows.len() => {
                fit.on_too_large(rows.len(), now);
                NextStep::GoOn
            }
            (Step::Insert { rows, .. }, InsertFault::Lost)
                if 1 < rows.len() && LOST_MAX <= self.lost_in_a_row =>
            {
                fit.on_too_large(rows.len(), now);
                NextStep::Wait
            }
            (_, InsertFault::Away | InsertFault::Lost | InsertFault::Large) => NextStep::Wait,
            (Step::Probe(_), InsertFault::View | InsertFault::LargeForView) => {
                // The table itself has taken it.
                self.on_probed();
                NextStep::GoOn
            }
            (Step::Probe(_), InsertFault::Rows(_)) => self.hold(),
            (Step::Insert { .. }, InsertFault::Rows(_)) if self.scout.is_some() => self.hold(),
            (Step::Insert { .. }, InsertFault::View | InsertFault::LargeForView)
                if self.scout.is_some() =>
            {
                // The table itself has taken it.
                self.scout = None;
                self.on_taken();
                NextStep::GoOn
            }
            (Step::Insert { rows, views }, InsertFault::View) if !self.pending.is_empty() => {
                self.on_view(rows, views)
            }
            (Step::Insert { rows, views }, InsertFault::LargeForView)
                if !self.pending.is_empty() =>
            {
                self.on_large_for_view(rows, views, fit, now)
            }
            (Step::Insert { rows, .. }, InsertFault::Rows(blame)) if !self.pending.is_empty() => {
                self.on_refused(rows, blame);
                NextStep::GoOn
            }
            (
                Step::Insert { views, .. } | Step::Blank { views, .. },
                InsertFault::View | InsertFault::LargeForView,
            ) => {
                let Some(suspect) = self.suspects.last_mut() else { return NextStep::GoOn };
                suspect.views = Views::PassedOver { all: false };
                if views == Views::Heard { NextStep::GoOn } else { NextStep::Wait }
            }
            (Step::Insert { .. } | Step::Blank { .. }, InsertFault::Rows(blame)) => {
                self.on_still_refused(blame);
                NextStep::GoOn
            }
        };
        self.go_on();
        then
    }

    /// No row is known to be good: the table is empty, or has no versions.
    pub fn on_none_known(&mut self) -> NextStep {
        self.hold()
    }

    /// Whether something was refused, so that no other INSERT may be merged with this one.
    pub fn is_salvaging(&self) -> bool {
        self.window < usize::MAX || 0 < self.refused_by_views || !self.suspects.is_empty()
    }

    fn on_taken(&mut self) {
        self.refused_in_a_row = 0;
        self.probe_at = PROBE_AFTER;
        self.holds = 0;
        self.is_proven = true;
        if !self.can_repeat && !std::mem::replace(&mut self.has_landed, true) {
            // Rows refused earlier may have been refused because the table refused everything.
            for row in std::mem::take(&mut self.refused) {
                let again = self.suspect(row, Views::Heard, BlamedColumn::Unnamed);
                self.suspects.insert(0, again);
            }
        }
    }

    fn on_probed(&mut self) {
        self.is_probing = false;
        self.refused_in_a_row = 0;
        // Where all rows of a large block are bad, this is not asked for each.
        self.probe_at = self.probe_at.saturating_mul(2);
        self.is_proven = true;
    }

    fn on_refused(&mut self, rows: Range<usize>, blame: Blame) {
        self.refused_in_a_row = self.refused_in_a_row.saturating_add(1);
        self.is_proven = false;
        let Some(piece) = self.pending.pop() else { return };
        let views = piece.views;
        // Columns that were not part of the INSERT are not suspects.
        self.push(rows.end..piece.rows.end, views, false);
        if rows.len() == 1 {
            let gap = std::mem::take(&mut self.landed_since_suspect);
            self.window = gap.max(WINDOW_MIN);
            self.suspects.push(self.suspect(rows.start, views, blame.column));
            return;
        }
        self.window = self.window.min(rows.len());
        match blame.row.filter(|row| *row < rows.len()) {
            Some(named) => {
                let named = rows.start + named;
                self.window = (2 * (named + 1 - rows.start)).max(WINDOW_MIN);
                self.push(named + 1..rows.end, views, false);
                self.push(named..named + 1, views, false);
                self.push(rows.start..named, views, false);
            }
            None => self.halve(rows, views),
        }
        self.is_probing = match self.can_repeat {
            true => self.probe_at <= self.refused_in_a_row,
            false => !self.has_landed && self.probe_at.max(HOLD_AFTER) <= self.refused_in_a_row,
        };
    }

    fn on_view(&mut self, rows: Range<usize>, views: Views) -> NextStep {
        self.is_proven = true;
        if views != Views::Heard {
            // It should have been passed over.
            return NextStep::Wait;
        }
        self.refused_by_views = self.refused_by_views.saturating_add(1);
        if REFUSED_BY_VIEWS_MAX <= self.refused_by_views {
            let passed_over = Views::PassedOver { all: true };
            self.pending.iter_mut().for_each(|piece| piece.views = passed_over);
            return NextStep::GoOn;
        }
        let Some(piece) = self.pending.pop() else { return NextStep::GoOn };
        self.push(rows.end..piece.rows.end, views, false);
        if rows.len() == 1 {
            self.push(rows, Views::PassedOver { all: false }, false);
        } else {
            self.window = self.window.min(rows.len());
            self.halve(rows, views);
        }
        NextStep::GoOn
    }

    /// A limit was met where the rows are pushed to a view.
    fn on_large_for_view(
        &mut self,
        rows: Range<usize>,
        views: Views,
        fit: &mut InsertFit,
        now: Instant,
    ) -> NextStep {
        if views != Views::Heard || self.is_view_beyond_size {
            return self.on_view(rows, views);
        }
        if 1 < rows.len() {
            self.refused_by_views = self.refused_by_views.saturating_add(1);
            fit.on_too_large(rows.len(), now);
            return NextStep::GoOn;
        }
        if self.waits_for_view < VIEW_WAITS {
            self.waits_for_view += 1;
            return NextStep::Wait;
        }
        // Sending less has not helped, so the limit of the table stays.
        self.is_view_beyond_size = true;
        *fit = InsertFit::default();
        self.on_view(rows, views)
    }

    /// Alone, after a row known to be good was taken.
    fn on_still_refused(&mut self, blame: Blame) {
        let Some(suspect) = self.suspects.last_mut() else { return };
        let tried = suspect.tries.pop().unwrap_or_default();
        if let BlamedColumn::Document(at) = blame.column
            && !tried.contains(&at)
            && suspect.tries.iter().all(|next| !next.contains(&at))
        {
            // Without one document another one is named.
            let mut next = tried;
            next.push(at);
            next.sort_unstable();
            suspect.tries.push(next);
        }
        if suspect.tries.is_empty() {
            self.refused.push(suspect.row);
            self.suspects.pop();
            self.is_proven = false;
        }
    }

    fn suspect(&self, row: usize, views: Views, column: BlamedColumn) -> Suspect {
        let all: Vec<usize> = (0..self.documents).collect();
        let mut tries = match column {
            BlamedColumn::Document(at) => vec![vec![at]],
            BlamedColumn::Unnamed if !all.is_empty() => {
                let each = all.iter().map(|&at| vec![at]);
                let all = (1 < all.len()).then(|| all.clone());
                each.chain(all).collect()
            }
            BlamedColumn::Unnamed | BlamedColumn::Other => Vec::new(),
        };
        // Once more, unchanged: the cause of the refusal may be fixed meanwhile, or over.
        tries.insert(0, Vec::new());
        tries.reverse();
        Suspect { row, tries, views }
    }

    fn halve(&mut self, rows: Range<usize>, views: Views) {
        let middle = rows.start + rows.len() / 2;
        self.push(middle..rows.end, views, false);
        self.push(rows.start..middle, views, true);
    }

    fn push(&mut self, rows: Range<usize>, views: Views, is_first: bool) {
        if !rows.is_empty() {
            self.pending.push(Piece { rows, views, is_doubted: false, is_first });
        }
    }

    /// Nothing is refused: all that has not landed is tried again.
    fn hold(&mut self) -> NextStep {
        let left = self.pending.drain(..).map(|piece| piece.rows);
        let suspects = self.suspects.drain(..).map(|suspect| suspect.row);
        let singles = suspects.chain(self.refused.drain(..)).map(|row| row..row + 1);
        let mut left: Vec<Range<usize>> = left.chain(singles).collect();
        left.sort_unstable_by_key(|rows| std::cmp::Reverse(rows.start));
        let holds = self.holds.saturating_add(1);
        *self = Salvage { holds, ..Salvage::of(0, self.documents, self.can_repeat) };
        // One row needs it, not all of them.
        self.is_probing = self.can_repeat;
        for rows in left {
            match self.pending.last_mut() {
                Some(behind) if behind.rows.start == rows.end => behind.rows.start = rows.start,
                _ => self.push(rows, Views::Heard, false),
            }
        }
        // From time to time do everything that can be done for a row, since a copy will probe the
        // table.
        if !self.can_repeat && !holds.is_multiple_of(HOLDS_BEFORE_COPY) {
            let rows: usize = self.pending.iter().map(|piece| piece.rows.len()).sum();
            let mut all = self.pending.iter().rev().flat_map(|piece| piece.rows.clone());
            self.scout = all.nth(holds as usize % rows.max(1));
        }
        NextStep::Hold
    }

    /// The row has landed, and those around it have not.
    fn take_out(&mut self, row: usize) {
        let Some(at) = self.pending.iter().position(|piece| piece.rows.contains(&row)) else {
            return;
        };
        let piece = self.pending.remove(at);
        for rows in [row + 1..piece.rows.end, piece.rows.start..row] {
            if !rows.is_empty() {
                self.pending.insert(at.min(self.pending.len()), Piece { rows, ..piece.clone() });
            }
        }
    }

    /// Does what follows without an INSERT.
    fn go_on(&mut self) {
        if self.is_probing {
            return;
        }
        while let Some(piece) = self.pending.last()
            && piece.is_doubted
            && 1 < piece.rows.len()
        {
            let Some(Piece { rows, views, .. }) = self.pending.pop() else { return };
            self.halve(rows, views);
        }
        let is_judging =
            self.pending.is_empty() && !(self.suspects.is_empty() && self.refused.is_empty());
        let is_begun = self.suspects.is_empty() || self.refused.is_empty();
        if is_judging && is_begun && !self.is_proven {
            if self.can_repeat {
                self.is_probing = true;
            } else if self.has_landed || !self.suspects.is_empty() && self.holds < HOLDS_BEFORE_COPY
            {
                // Writing it again would duplicate it. The rows of the block that succeed must be
                // enough.
                self.is_proven = true;
            } else {
                self.is_probing = true;
            }
        }
    }
}

#[cfg(test)]
mod tests;
