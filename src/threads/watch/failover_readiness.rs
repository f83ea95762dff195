//! `failover_readiness/<service>`: checks, while the stream runs, whether a failover would keep its
//! slot, and reports what is missing once, and again when it changes. The stream does not depend on
//! it: not even an error here ends the session.
//!
//! It reports only what two checks in a row have found: a restarting standby is not worth a line,
//! and one that has just connected reports itself every 10 s (`wal_receiver_status_interval`).

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::delivery::alongside::{Alongside, StopLevel};
use crate::delivery::session_state::SessionState;
use crate::error::Result;
use crate::postgres::failover_slot::{
    self, Failover, FailoverFinding, FindingWeight, Mark, UNSEEN,
};
use crate::postgres::primary::Primary;
use crate::telling::tell;

/// A standby that goes away, or a setting that stalls the stream, is reported within this time.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The second check of a finding.
const LOOK_AGAIN: Duration = Duration::from_secs(12);
/// The worker on a standby that copies slots rests up to 30 s.
const COPIED_AFTER: Duration = Duration::from_secs(60);
/// Connecting and asking. A session that ends waits for it.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

/// What has been reported already, across the sessions of a service.
#[derive(Debug, Default)]
pub struct Reported(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    too_old: bool,
    refused: bool,
    /// By the last check.
    found: Vec<FailoverFinding>,
    /// `None` before the first time.
    told: Option<Vec<FailoverFinding>>,
}

#[derive(Debug, PartialEq, Eq)]
enum News {
    Nothing,
    Complete,
    Missing(Vec<FailoverFinding>),
}

/// Whether another check could show more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sure {
    Yes,
    NotYet,
}

pub struct FailoverReadiness<'a> {
    pub service: &'a str,
    pub slot: &'a str,
    pub primary: &'a Primary,
    pub application_name: &'a str,
    /// The slot is new, or newly marked.
    pub is_new: bool,
    pub told: &'a Reported,
    pub shared: &'a SessionState,
}

/// Runs until the session ends.
pub fn run(with: &FailoverReadiness<'_>) {
    let copied_at = Instant::now() + COPIED_AFTER;
    loop {
        let is_new = with.is_new && Instant::now() < copied_at;
        let wait = match with.look(is_new) {
            Ok(None) => return,
            Ok(Some(found)) => match with.told.found(with.service, with.slot, found) {
                Sure::Yes => LOOK_EVERY,
                Sure::NotYet => LOOK_AGAIN,
            },
            Err(error) => {
                log::debug!("{}: {error}", with.service);
                LOOK_EVERY
            }
        };
        if with.shared.rest(Instant::now() + wait) != StopLevel::Running {
            return;
        }
    }
}

impl FailoverReadiness<'_> {
    /// `None` if there is nothing to check.
    fn look(&self, is_new: bool) -> Result<Option<Vec<FailoverFinding>>> {
        let deadline = Instant::now() + LOOK_TIMEOUT;
        let mut sql = self.primary.sql(self.application_name, deadline)?;
        let facts = failover_slot::look(&mut sql, self.slot, is_new, deadline)?;
        Ok(facts.map(|facts| failover_slot::judge(&facts)))
    }
}

impl Reported {
    /// Reports the result of marking the slot, before the stream begins.
    pub fn mark(&self, service: &str, slot: &str, wanted: Failover, mark: &Mark) {
        let mut memory = self.0.lock();
        match mark {
            Mark::AsWanted => {}
            Mark::Altered if wanted == Failover::On => {
                log::info!("{service}: slot `{slot}` is now marked for failover");
            }
            Mark::Altered => {
                log::info!("{service}: slot `{slot}` is no longer marked for failover")
            }
            Mark::Unknown => {
                if !std::mem::replace(&mut memory.too_old, true) {
                    log::debug!(
                        "{service}: this server has no failover slots, which came with Postgres 17"
                    );
                }
            }
            Mark::Refused { cause } => {
                if !std::mem::replace(&mut memory.refused, true) {
                    log::warn!("{service}: mark slot `{slot}` for failover: {cause}");
                }
            }
        }
    }

    fn found(&self, service: &str, slot: &str, found: Vec<FailoverFinding>) -> Sure {
        let (news, sure) = self.0.lock().on_found(found);
        match news {
            News::Nothing => {}
            News::Complete => log::info!(
                "{service}: failover: slot `{slot}` survives a promotion, as far as the primary \
                 can tell; check the rest yourself: {UNSEEN}"
            ),
            News::Missing(findings) => {
                for finding in findings {
                    let level = match finding.weight {
                        FindingWeight::Missing => log::Level::Warn,
                        FindingWeight::Stalls => log::Level::Error,
                    };
                    let line = format_args!("failover: {finding}");
                    tell(level, service, line, Some(&finding.hint));
                }
            }
        }
        sure
    }
}

impl Memory {
    fn on_found(&mut self, found: Vec<FailoverFinding>) -> (News, Sure) {
        let before = std::mem::replace(&mut self.found, found.clone());
        let is_certain = found.iter().all(|finding| before.contains(finding));
        if !is_certain {
            return (News::Nothing, Sure::NotYet);
        }
        let told = self.told.replace(found.clone());
        if found.is_empty() && told.as_ref().is_none_or(|told| !told.is_empty()) {
            return (News::Complete, Sure::Yes);
        }
        // A lasting state is not reported again.
        let told = told.unwrap_or_default();
        let new: Vec<FailoverFinding> = found.into_iter().filter(|f| !told.contains(f)).collect();
        let news = if new.is_empty() { News::Nothing } else { News::Missing(new) };
        (news, Sure::Yes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(text: &str) -> FailoverFinding {
        FailoverFinding {
            weight: FindingWeight::Missing,
            text: text.to_owned(),
            hint: String::new(),
        }
    }

    #[test]
    fn what_two_looks_have_found_is_told_once_and_again_when_it_came_back() {
        let mut memory = Memory::default();
        let (a, b) = (finding("a"), finding("b"));
        let told = |finding: &FailoverFinding| News::Missing(vec![finding.clone()]);
        let steps = [
            (vec![a.clone()], News::Nothing, Sure::NotYet),
            (vec![a.clone()], told(&a), Sure::Yes),
            (vec![a.clone()], News::Nothing, Sure::Yes),
            (vec![a.clone(), b.clone()], News::Nothing, Sure::NotYet),
            (vec![a.clone(), b.clone()], told(&b), Sure::Yes),
            (vec![b.clone()], News::Nothing, Sure::Yes),
            (vec![], News::Complete, Sure::Yes),
            (vec![], News::Nothing, Sure::Yes),
            (vec![b.clone()], News::Nothing, Sure::NotYet),
            (vec![], News::Nothing, Sure::Yes),
            (vec![b.clone()], News::Nothing, Sure::NotYet),
            (vec![b.clone()], told(&b), Sure::Yes),
        ];
        for (n, (found, news, sure)) in steps.into_iter().enumerate() {
            assert_eq!(memory.on_found(found), (news, sure), "step {n}");
        }
    }

    #[test]
    fn a_slot_that_lacks_nothing_is_told_of_at_once() {
        assert_eq!(Memory::default().on_found(vec![]), (News::Complete, Sure::Yes));
    }
}
