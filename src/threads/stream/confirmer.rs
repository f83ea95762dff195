//! `confirmer/<service>`: writes the state row to ClickHouse, and only then lets the wal_reader
//! confirm.
//!
//! It is a separate thread, so that neither the batcher nor the reader waits for ClickHouse.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};

use crate::clickhouse::Client;
use crate::clickhouse::own::state::{self, StateRow};
use crate::delivery::alongside::{Alongside, StopLevel};
use crate::delivery::outage::is_of_tables;
use crate::delivery::session_state::SessionState;
use crate::error::{Error, ErrorKind, Result};
use crate::halt::Halt;
use crate::machines::confirm::{Confirm, RecordedMarks};
use crate::machines::lifecycle::LifecycleInput;
use crate::machines::thinning::Thinning;
use crate::metrics::ServiceMetrics;
use crate::telling::tell_attempt;
use crate::threads::event::Event;

/// It is woken by every event, the end of the session included.
const NOTICE_EVERY: Duration = Duration::from_secs(5);
/// The last row of a session that was given up gets one short try: without it `upper` is only
/// looser than it could be.
const LAST_TRY: Duration = Duration::from_secs(1);

pub struct Confirmer<'a> {
    pub service: &'a str,
    pub client: Client,
    pub row: StateRow,
    pub machine: Confirm,
    pub request_timeout: Duration,
    /// From this failure in a row on it is called an outage.
    pub outage_after: u32,
    pub shared: &'a SessionState,
    pub metrics: &'a ServiceMetrics,
    pub events: &'a Sender<Event>,
    /// Set when no flush will begin any more.
    pub ending: &'a AtomicBool,
}

/// Runs until the session has ended and its last row is written, or given up.
pub fn run(mut with: Confirmer<'_>) -> Result<()> {
    let mut failures = Thinning::default();
    let mut told_of = with.machine.recorded().confirmed;
    with.metrics.on_confirmed(told_of);
    loop {
        let ending = with.ending.load(Ordering::Acquire);
        let now = Instant::now();
        with.machine.on_flushed(with.shared.marks().flushed());
        if let Some(upper) = with.shared.marks().upper() {
            with.machine.on_batch(upper);
        }
        if with.shared.marks().take_asked() {
            with.machine.on_reply_requested();
        }
        if ending {
            with.machine.on_end();
            if with.machine.is_settled() {
                return Ok(());
            }
        }
        let Some(marks) = with.machine.next_write(now) else {
            let confirmed = with.machine.recorded().confirmed;
            if with.shared.marks().received() <= confirmed {
                // A server that writes no WAL leaves nothing to confirm: that is not a delay.
                with.metrics.on_confirmed(confirmed);
            }
            let soon = now + NOTICE_EVERY;
            let wake_at = with.machine.deadline(now).map_or(soon, |at| at.min(soon));
            match with.shared.marks().wakes().recv_deadline(wake_at) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => unreachable!("position holds a sender"),
            }
        };
        match with.write(marks, now, ending) {
            Ok(()) => {
                let failed = failures.reset();
                if 0 < failed {
                    log::warn!("{}: state is recorded again", with.service);
                    if with.outage_after <= failed {
                        with.metrics.insert_outage.lower();
                    }
                }
                let recorded = with.machine.on_written(Instant::now());
                with.shared.set_reserved(with.machine.reserved());
                with.shared.marks().set_confirmed(recorded.confirmed);
                with.metrics.on_confirmed(recorded.confirmed);
                if told_of < recorded.confirmed && with.shared.marks().take_rows_flushed() {
                    // A full inbox has more important things in it.
                    let _ = with.events.try_send(Event::Lifecycle(LifecycleInput::Progressed));
                }
                told_of = recorded.confirmed;
            }
            // Overtaken: another attempt would not change that.
            Err(error) if error.kind() == ErrorKind::SlotBusy => return Err(error),
            // The next session makes the table again.
            Err(error) if is_of_tables(&error) => return Err(error),
            // Asked to give up: the end of the session comes next.
            Err(error) if error.kind() == ErrorKind::Stopped => {
                with.machine.on_write_failed(Instant::now());
            }
            Err(error) => {
                let is_said = failures.on_repeat();
                let is_outage = with.outage_after <= failures.times();
                if is_outage {
                    with.metrics.insert_outage.raise(error.to_string(), error.hint_text());
                }
                if is_said {
                    let level = if is_outage { log::Level::Error } else { log::Level::Warn };
                    let meanwhile = "nothing is confirmed or dropped meanwhile";
                    tell_attempt(level, (with.service, ""), &error, meanwhile, failures.times());
                }
                with.machine.on_write_failed(Instant::now());
                if ending && with.shared.stop_level() == StopLevel::Abandoned {
                    return Ok(());
                }
            }
        }
    }
}

impl Confirmer<'_> {
    fn write(&mut self, marks: RecordedMarks, now: Instant, ending: bool) -> Result<()> {
        let abandoned = self.shared.stop_level() == StopLevel::Abandoned;
        let mut timeout = self.request_timeout;
        if ending && abandoned {
            timeout = LAST_TRY;
            self.client.set_halt(&Halt::default());
        }
        self.row.confirmed = marks.confirmed;
        self.row.upper_lsn = marks.upper_lsn;
        match state::write_unless_overtaken(&mut self.client, &mut self.row, now + timeout)? {
            None => Ok(()),
            Some(by) => Err(self.overtaken(&by)),
        }
    }

    /// Another session has begun since, which cannot know what this one has flushed. If both stream
    /// the same history those are the same rows; if not, a repair is owed.
    fn overtaken(&mut self, by: &StateRow) -> Error {
        let history = |row: &StateRow| {
            (row.system_identifier.clone(), row.timeline, row.began, row.version_shift)
        };
        let mut error = Error::new(ErrorKind::SlotBusy, "record the state").because(format!(
            "another session has recorded a newer one, on timeline {}",
            by.timeline
        ));
        if history(by) != history(&self.row) {
            error = error.hint(
                "Two instances each saw a different primary. Shut the old one down: what its \
                 clients still write is lost.",
            );
            let reason = format!(
                "two sessions at once: one was still on timeline {}, and may have written last",
                self.row.timeline
            );
            let of = (self.service, self.row.slot.as_str());
            let owed =
                crate::mending::debt::owe(&mut self.client, of, &reason, self.request_timeout);
            if let Err(error) = owed {
                log::error!("{}: {error}", self.service);
            }
        }
        error
    }
}
