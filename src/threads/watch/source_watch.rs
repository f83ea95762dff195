//! `source_watch/<service>`: checks, while the stream runs, whether the source is still as it was
//! when the session began, and how much WAL the slot retains. It notices changes that the stream
//! does not show within [`LOOK_EVERY`].
//!
//! Each check is a short session: a lasting one would hold up a smart shutdown of Postgres.
//!
//! A change that may have hidden rows is a debt, recorded before anything else is done about it;
//! then the session ends in order and starts again, and repairs. Until that start has recorded its
//! snapshot, any later one sees the difference again, so a kill in between costs nothing. A source
//! that a start would refuse is not recorded as the normal state, but ends the session likewise:
//! the start reports the error.

use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::retained;
use crate::clickhouse::Client;
use crate::clickhouse::own::sources::{self, SourceRow};
use crate::config::ServiceConfig;
use crate::delivery::alongside::{Alongside, StopLevel};
use crate::delivery::session_state::SessionState;
use crate::delivery::{source_check, source_look};
use crate::error::Result;
use crate::machines::lifecycle::LifecycleInput;
use crate::machines::recovery::GapStrategy;
use crate::mending::debt;
use crate::metrics::ServiceMetrics;
use crate::postgres::primary::Primary;
use crate::services::source::Source;
use crate::telling::tell;
use crate::threads::event::Event;

pub const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Connecting and asking. A session that ends waits for it.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

pub struct SourceWatch<'a> {
    pub config: &'a ServiceConfig,
    pub source: &'a Source,
    pub primary: &'a Primary,
    pub application_name: &'a str,
    pub shared: &'a SessionState,
    pub metrics: &'a ServiceMetrics,
    pub events: &'a Sender<Event>,
    /// As it is recorded.
    pub row: SourceRow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Same,
    /// The session has to begin again.
    Other,
}

/// Whether failing checks are worth a line: one now and then is not.
#[derive(Debug, Default)]
struct Sight {
    /// In a row.
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Nothing,
    Blind,
    SeesAgain,
}

impl Sight {
    /// This many in a row are logged, once.
    const FAILURES_TOLD: u32 = 4;

    fn on_look(&mut self, is_good: bool) -> News {
        let before = self.failures;
        self.failures = if is_good { 0 } else { before.saturating_add(1) };
        if self.failures == Sight::FAILURES_TOLD {
            News::Blind
        } else if is_good && Sight::FAILURES_TOLD <= before {
            News::SeesAgain
        } else {
            News::Nothing
        }
    }
}

/// Runs until the session ends, or is to begin again.
pub fn run(mut with: SourceWatch<'_>) {
    let service = with.config.name.as_str();
    let mut sight = Sight::default();
    loop {
        let seen = with.look();
        let news = sight.on_look(seen.is_ok());
        if news == News::SeesAgain {
            log::info!("{service}: the source can be inspected again");
        }
        match seen {
            Ok(Seen::Same) => {}
            Ok(Seen::Other) => {
                let again = Event::Lifecycle(LifecycleInput::BeginAgain);
                // The coordinator always reads its inbox.
                if with.events.send_timeout(again, LOOK_TIMEOUT).is_ok() {
                    return;
                }
            }
            Err(error) if news == News::Blind => {
                let line = format_args!(
                    "cannot inspect the source, {} times in a row: {error}; changes that the \
                     stream does not show go unnoticed meanwhile",
                    Sight::FAILURES_TOLD
                );
                tell(log::Level::Warn, service, line, error.hint_text());
            }
            // The next check, or the next start, sees it again.
            Err(error) => log::debug!("{service}: {error}"),
        }
        if with.shared.rest(Instant::now() + LOOK_EVERY) != StopLevel::Running {
            return;
        }
    }
}

impl SourceWatch<'_> {
    fn look(&mut self) -> Result<Seen> {
        let deadline = Instant::now() + LOOK_TIMEOUT;
        let mut sql = self.primary.sql(self.application_name, deadline)?;
        let kept = retained::look(&mut sql, &self.config.slot, self.metrics, deadline)?;
        if let Some(restart_lsn) = kept {
            self.shared.marks().set_restart_lsn(restart_lsn);
        }
        let now = source_look::ask(&mut sql, self.config, self.source, deadline)?;
        let publication = self.config.publication.as_str();
        let refusal = source_check::refusal(&mut sql, publication, self.source, deadline)?;
        drop(sql);
        let (service, slot) = (self.config.name.as_str(), self.config.slot.as_str());
        let judgement = source_look::judge(&self.row.catalog, &now, self.source);
        if judgement.may_hide_rows() {
            if self.config.gap_strategy == GapStrategy::Skip {
                // The start skips it, and says so.
                log::warn!("{service}: the source changed: {judgement}");
                return Ok(Seen::Other);
            }
            let timeout = self.config.clickhouse.request_timeout;
            let mut client = Client::connect(&self.config.clickhouse)?;
            debt::owe(&mut client, (service, slot), &judgement.to_string(), timeout)?;
            return Ok(Seen::Other);
        }
        if let Some(refusal) = refusal {
            log::info!("{service}: {refusal}; starting again");
            return Ok(Seen::Other);
        }
        if judgement.differs {
            let mut client = Client::connect(&self.config.clickhouse)?;
            let mut row = SourceRow { catalog: now, ..self.row.clone() };
            let deadline = Instant::now() + self.config.clickhouse.request_timeout;
            sources::write(&mut client, &mut row, deadline)?;
            self.row = row;
            for told in judgement.told {
                log::warn!("{service}: {told}");
            }
            log::debug!("{service}: the source changed in a way that hides no row");
        }
        Ok(Seen::Same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_fail_are_told_once_and_that_they_work_again() {
        let mut sight = Sight::default();
        let mut looks = |is_good: bool, count: usize| -> Vec<News> {
            (0..count).map(|_| sight.on_look(is_good)).filter(|n| *n != News::Nothing).collect()
        };
        assert_eq!(looks(false, 3), []);
        assert_eq!(looks(true, 2), []);
        assert_eq!(looks(false, 3), []);
        assert_eq!(looks(false, 9), [News::Blind]);
        assert_eq!(looks(true, 2), [News::SeesAgain]);
        assert_eq!(looks(false, 4), [News::Blind]);
    }
}
