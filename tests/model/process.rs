//! walhouse from its start to a stream: what it finds, what it concludes, what it writes first.

use super::World;
use super::clickhouse::Repair;
use super::session::Session;
use walhouse::machines::catalog::{self, WantedColumn};
use walhouse::machines::lineage::{self, LineageState, LineageVerdict};
use walhouse::machines::recovery::{self, Course, Debt, GapStrategy};
use walhouse::wal::Lsn;

#[derive(Debug)]
pub enum Process {
    Down,
    Starting(Starting),
    Running(Box<Session>),
}

/// It may die between any two steps.
#[derive(Debug)]
pub struct Starting {
    pub server: usize,
    pub epoch: u32,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// Write that a repair is owed.
    Owe {
        repair: bool,
        found: lineage::ServerTimeline,
    },
    /// Drop what cannot be used.
    DropSlot {
        repair: bool,
        found: lineage::ServerTimeline,
    },
    CreateSlot {
        then: Then,
        found: lineage::ServerTimeline,
    },
    Shift {
        repair: bool,
        found: lineage::ServerTimeline,
    },
    WriteRepair {
        repair: Repair,
        state: LineageState,
    },
    WriteState {
        state: LineageState,
        repair: Option<Repair>,
    },
    Stream {
        state: LineageState,
    },
}

#[derive(Debug, Clone, Copy)]
enum Then {
    Begin,
    StartOver { repair: bool },
}

const SKIPPED: Course = Course::StartOver { repair: false };

impl World {
    pub fn walhouse_is_up(&self) -> bool {
        !matches!(self.process, Process::Down)
    }

    /// One step of a start.
    pub fn start(&mut self) {
        let Process::Starting(starting) = std::mem::replace(&mut self.process, Process::Down)
        else {
            let (server, epoch) = (self.primary, self.primary().epoch);
            if let Some(step) = self.judge() {
                self.process = Process::Starting(Starting { server, epoch, step });
            }
            return;
        };
        let Starting { server, epoch, step } = starting;
        if self.servers[server].epoch != epoch || server != self.primary {
            return self.say(|| "walhouse: the server is gone".into());
        }
        self.process = match self.next_step(server, step) {
            Next::Step(step) => Process::Starting(Starting { server, epoch, step }),
            Next::Running(session) => Process::Running(session),
            Next::Ended => Process::Down,
        };
    }

    pub fn source_is_as_recorded(&self) -> bool {
        let server = &self.servers[self.primary];
        let Some((of, recorded)) = &self.clickhouse.source else { return true };
        *of != server.system_identifier || *recorded == server.catalog()
    }

    /// Whether the source may have hidden rows since the last look.
    fn may_hide_rows(&self) -> bool {
        let server = &self.servers[self.primary];
        let Some((of, recorded)) = &self.clickhouse.source else { return false };
        if *of != server.system_identifier || self.clickhouse.state.is_none() {
            return false;
        }
        let columns = [WantedColumn { name: "plain", is_optional: false }];
        catalog::judge(recorded, &server.catalog(), &columns).may_hide_rows()
    }

    pub fn owe_for_source(&mut self) {
        if self.may_hide_rows() && self.strategy != GapStrategy::Skip {
            self.owe();
        }
    }

    fn see_source(&mut self) {
        let server = &self.servers[self.primary];
        self.seen_source = Some((server.system_identifier, server.catalog()));
    }

    fn judge(&mut self) -> Option<Step> {
        self.see_source();
        if self.design.source_is_watched {
            if !self.design.debt_before_look {
                self.clickhouse.source = self.seen_source.clone();
            }
            self.owe_for_source();
        }
        if !self.primary().is_published() {
            self.say(|| "walhouse: the table is not published".into());
            return None;
        }
        let found = self.primary().identity();
        let slot = self.primary().slot;
        let state = self.clickhouse.state;
        if state.is_none() && self.clickhouse.repair.is_none() && self.design.tables_are_filled {
            self.owe_as(true);
        }
        let history = match &state {
            Some(_) => self.primary().history.clone(),
            None => Vec::new(),
        };
        let mut verdict = lineage::judge(state.as_ref(), slot.as_ref(), &found, &history);
        if let Some(state) = &state
            && lineage::depends_on_landed(&verdict, state, &found)
        {
            let highest = self.clickhouse.highest_version();
            verdict = lineage::judge_landed(verdict, state, &found, highest);
        }
        let course = recovery::course(&verdict, self.strategy, &found, self.adopted);
        let course = match self.design.source_is_watched && self.may_hide_rows() {
            true => recovery::course_of_hidden(course, self.strategy),
            false => course,
        };
        let is_due = self.owes_repair() || course == SKIPPED && self.repair_runs();
        let course = match self.design.debt_is_paid && is_due {
            true => recovery::course_in_debt(course, self.strategy, self.debt()),
            false => course,
        };
        self.say(|| format!("walhouse: {found:?} {slot:?} {state:?}"));
        self.say(|| format!("walhouse: {verdict}: {course:?}"));
        self.seen.push(name_of(&verdict));
        match course {
            Course::Begin => Some(Step::CreateSlot { then: Then::Begin, found }),
            Course::Continue { record } => {
                let state = record.or(state).expect("to go on there is a state");
                self.check_no_dead_row(&state);
                Some(Step::WriteState { state, repair: None })
            }
            Course::StartOver { repair } => Some(match self.design.debt_is_recorded {
                true => Step::Owe { repair, found },
                false => Step::DropSlot { repair, found },
            }),
            Course::Stop => {
                let is_ours = !matches!(
                    verdict,
                    LineageVerdict::ForeignCluster { .. }
                        | LineageVerdict::ForeignDatabase { .. }
                        | LineageVerdict::Diverged { why: lineage::Fork::Older, .. }
                );
                if is_ours && self.design.debt_is_recorded {
                    self.owe();
                }
                if self.once_in(4) {
                    self.adopt();
                }
                None
            }
        }
    }

    fn repair_runs(&self) -> bool {
        self.clickhouse.repair.is_some_and(|repair| !repair.done)
    }

    /// What was recorded of a start over, repair or not, is not of this state.
    fn owes_repair(&self) -> bool {
        let Some(repair) = self.clickhouse.repair else { return false };
        !self
            .clickhouse
            .state
            .is_some_and(|state| recovery::goes_on(repair.system_identifier, repair.shift, &state))
    }

    fn debt(&self) -> Debt {
        let is_fill = self.clickhouse.repair.is_some_and(|repair| repair.is_fill && !repair.done);
        if is_fill && self.clickhouse.state.is_none() {
            Debt::InitialBackfill
        } else {
            Debt::Repair
        }
    }

    fn owe(&mut self) {
        // What is owed already is not recorded again.
        if self.owes_repair() && self.debt() == Debt::InitialBackfill {
            return;
        }
        self.owe_as(false);
    }

    fn owe_as(&mut self, is_fill: bool) {
        // No state has this shift.
        let (system_identifier, shift, base) = (0, u64::MAX, 0);
        let (read, pruned, done) = (0, 0, false);
        self.clickhouse.repair =
            Some(Repair { system_identifier, shift, base, read, pruned, done, is_fill });
        self.say(|| "walhouse: a repair is owed".into());
    }

    fn next_step(&mut self, server: usize, step: Step) -> Next {
        Next::Step(match step {
            Step::Owe { repair, found } => {
                self.owe();
                Step::DropSlot { repair, found }
            }
            Step::DropSlot { repair, found } => {
                let slot = self.servers[server].slot;
                if let Some(slot) = slot.filter(|slot| !slot.invalidated) {
                    if !repair {
                        // What was hidden until now stays hidden.
                        let hidden = self.may_hide_rows();
                        let now = Lsn(self.servers[server].insert_lsn());
                        let from = if hidden { now } else { slot.confirmed_flush };
                        self.skipped = self.skipped.max(Some(from));
                    }
                    Step::Shift { repair, found }
                } else {
                    self.servers[server].set_slot(None);
                    Step::CreateSlot { then: Then::StartOver { repair }, found }
                }
            }
            Step::CreateSlot { then, found } => {
                // A first start brings no row that was there before its slot.
                let acts = match then {
                    Then::Begin => 0,
                    Then::StartOver { .. } => self.prng.below(6),
                };
                let (prng, next_value) = (&mut self.prng, &mut self.next_value);
                self.servers[server].create_slot(acts, prng, next_value);
                let slot = self.servers[server].slot.expect("it was created");
                self.say(|| format!("walhouse: created {slot:?}"));
                match then {
                    Then::Begin => {
                        let state = LineageState::adopting(&found, slot.confirmed_flush);
                        Step::WriteState { state, repair: None }
                    }
                    Then::StartOver { repair } => {
                        if !repair {
                            self.skipped = self.skipped.max(Some(slot.confirmed_flush));
                        }
                        Step::Shift { repair, found }
                    }
                }
            }
            Step::Shift { repair, found } => return self.start_over(server, repair, &found),
            Step::WriteRepair { repair, state } => {
                self.say(|| format!("walhouse: {repair:?}"));
                self.clickhouse.repair = Some(repair);
                if self.design.repair_row_first {
                    Step::WriteState { state, repair: None }
                } else {
                    Step::Stream { state }
                }
            }
            Step::WriteState { state, repair } => {
                self.say(|| format!("walhouse: {state:?}"));
                self.clickhouse.source = self.seen_source.clone();
                self.clickhouse.state = Some(state);
                self.adopted = None;
                match repair {
                    Some(repair) => Step::WriteRepair { repair, state },
                    None => Step::Stream { state },
                }
            }
            Step::Stream { state } => {
                return match Session::begin(self, server, state) {
                    Some(session) => Next::Running(Box::new(session)),
                    None => Next::Ended,
                };
            }
        })
    }

    fn start_over(&mut self, server: usize, repair: bool, found: &lineage::ServerTimeline) -> Next {
        let Some(slot) = self.servers[server].slot else { return Next::Ended };
        let before = self.clickhouse.state;
        let highest = self.clickhouse.highest_version();
        let is_fill = self.owes_repair() && self.debt() == Debt::InitialBackfill;
        let state = match is_fill {
            true => recovery::begin_filling(highest, found, &slot),
            false => recovery::start_over(before.as_ref(), highest, found, &slot),
        };
        let mut state = state.expect("versions do not run out");
        if !self.design.shift_is_raised && !is_fill {
            state.shift = before.map_or(0, |before| before.shift) + 1;
        }
        let at_fence = self.owes_repair() && !is_fill || self.may_hide_rows();
        let waits = self.design.repairs_wait_at_a_fence && self.design.source_changes;
        let base = match at_fence && waits {
            true => 0,
            false => recovery::base_version(&state, &slot),
        };
        let LineageState { system_identifier, shift, .. } = state;
        let (read, pruned, done) = (0, 0, !repair);
        let row = Repair { system_identifier, shift, base, read, pruned, done, is_fill };
        Next::Step(match self.design.repair_row_first {
            true => Step::WriteRepair { repair: row, state },
            false => Step::WriteState { state, repair: Some(row) },
        })
    }

    /// Going on promises that this server wrote every value that ClickHouse has, but for what the
    /// stream is still to replace.
    fn check_no_dead_row(&mut self, state: &LineageState) {
        let mends = self.clickhouse.repair.is_some_and(|repair| !repair.done);
        if mends || self.skipped.is_some() {
            return;
        }
        let written: Vec<u32> = self.primary().values().collect();
        let to_come = self.primary().keys_changed_after(state.confirmed.0);
        for (key, row) in self.clickhouse.table() {
            let lives = written.contains(&row.plain) && written.contains(&row.toast);
            let lives = lives || to_come.contains(&key);
            self.check(lives, || format!("goes on from {state:?} with dead row {key}: {row:?}"));
        }
    }
}

enum Next {
    Step(Step),
    Running(Box<Session>),
    Ended,
}

fn name_of(verdict: &LineageVerdict) -> &'static str {
    match verdict {
        LineageVerdict::FirstStart => "FirstStart",
        LineageVerdict::TakeOver { .. } => "TakeOver",
        LineageVerdict::Continue { record: None } => "Continue",
        LineageVerdict::Continue { record: Some(_) } => "Continue recorded",
        LineageVerdict::Gap { why, .. } => match why {
            lineage::Gap::SlotMissing => "SlotMissing",
            lineage::Gap::SlotInvalidated => "SlotInvalidated",
            lineage::Gap::SlotAhead { .. } => "SlotAhead",
            lineage::Gap::Undecodable { .. } => "Undecodable",
            lineage::Gap::OlderThanPublication => "OlderThanPublication",
        },
        LineageVerdict::Diverged { why, .. } => match why {
            lineage::Fork::Below { .. } => "Below",
            lineage::Fork::Older => "Older",
            lineage::Fork::NotAncestor => "NotAncestor",
            lineage::Fork::WentBack => "WentBack",
        },
        LineageVerdict::ForeignCluster { .. } => "ForeignCluster",
        LineageVerdict::ForeignDatabase { .. } => "ForeignDatabase",
    }
}

/// A read of the table whose rows may land once two things are so.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// Nothing above was seen.
    pub insert_lsn: Lsn,
    pub is_flushed: bool,
}
