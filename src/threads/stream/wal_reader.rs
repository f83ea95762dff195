//! `wal_reader/<service>`: owns the replication socket.
//!
//! It reads large blocks and hands them on whole; it decodes only keepalives that ask for a reply.
//! While the batcher is full it reads nothing, and keeps sending status updates.

use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender};

use crate::delivery::alongside::{Alongside, StopLevel};
use crate::delivery::session_state::SessionState;
use crate::error::{Error, ErrorKind, Result};
use crate::machines::gather::Gather;
use crate::machines::status::{Due, StandbyStatus, StatusParams};
use crate::postgres::frames::Frames;
use crate::postgres::server_error::server_error;
use crate::postgres::stream::{ReadOutcome, Stream};
use crate::wal::Lsn;
use crate::wal::copy_both::{FromServer, StandbyStatusUpdate};

/// How often a stop, and a confirmation, is noticed while the stream is silent.
const NOTICE_EVERY: Duration = Duration::from_millis(25);
/// The same when it has been silent for a while and no confirmation is expected.
const NOTICE_EVERY_QUIET: Duration = Duration::from_millis(250);
const QUIET_AFTER: Duration = Duration::from_secs(1);
/// How long the server may take to acknowledge the end of the stream.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

pub struct WalReader<'a> {
    pub slot: &'a str,
    pub stream: Stream,
    pub params: StatusParams,
    pub shared: &'a SessionState,
}

/// Runs until the stream or the session ends. `frames` is closed as soon as no more will come;
/// `settled` closes when everything that can be confirmed has been.
pub fn run(mut with: WalReader<'_>, frames: Sender<Frames>, settled: &Receiver<()>) -> Result<()> {
    let now = Instant::now();
    let mut status = StandbyStatus::new(now, with.shared.marks().confirmed(), with.params);
    let mut gather = Gather::default();
    let resume = with.shared.marks().confirmed();
    let mut moved_at = now;
    while with.shared.stop_level() == StopLevel::Running {
        let now = with.report(&mut status)?;
        let is_quiet = QUIET_AFTER <= now.saturating_duration_since(moved_at)
            && with.shared.marks().received() <= status.confirmed();
        let notice = if is_quiet { NOTICE_EVERY_QUIET } else { NOTICE_EVERY };
        let wait = status.deadline(now).saturating_duration_since(now).min(notice);
        match with.stream.read(wait).map_err(|error| placed(error, resume))? {
            ReadOutcome::Nothing => {}
            ReadOutcome::Partial => status.on_heard(Instant::now()),
            ReadOutcome::Ended => {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!("stream from slot `{}`", with.slot),
                )
                .because("the server ended the stream: it is shutting down"));
            }
            ReadOutcome::Frames(block) => {
                moved_at = Instant::now();
                status.on_heard(moved_at);
                if asks_for_reply(&block) {
                    status.on_reply_requested();
                    with.shared.marks().ask();
                }
                let bytes = block.bytes_len();
                if !with.hand_on(block, &frames, &mut status)? {
                    break;
                }
                if let Some(pause) = gather.on_read(Instant::now(), bytes) {
                    std::thread::sleep(pause);
                }
            }
        }
    }
    drop(frames);
    with.drain(status, settled)
}

impl WalReader<'_> {
    /// Blocks until the batcher has room. False when the session ends instead.
    fn hand_on(
        &mut self,
        mut block: Frames,
        frames: &Sender<Frames>,
        status: &mut StandbyStatus,
    ) -> Result<bool> {
        let mut paused = false;
        loop {
            match frames.send_timeout(block, NOTICE_EVERY) {
                Ok(()) => {
                    if paused {
                        status.on_heard(Instant::now());
                    }
                    return Ok(true);
                }
                Err(SendTimeoutError::Disconnected(_)) => return Ok(false),
                Err(SendTimeoutError::Timeout(back)) => {
                    if self.shared.stop_level() != StopLevel::Running {
                        return Ok(false);
                    }
                    // The silence that follows is ours.
                    paused = true;
                    status.on_paused();
                    self.report(status)?;
                    block = back;
                }
            }
        }
    }

    /// Reads nothing more; keeps the walsender alive until the last confirmation is sent.
    fn drain(mut self, mut status: StandbyStatus, settled: &Receiver<()>) -> Result<()> {
        status.on_paused();
        loop {
            if self.shared.stop_level() == StopLevel::Abandoned {
                // A stream that is given up needs no ending; closing it frees the slot.
                break;
            }
            self.report(&mut status)?;
            match settled.recv_timeout(NOTICE_EVERY) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.report(&mut status)?;
        // The slot remembers what was reported; the next start makes up for an abrupt end.
        if let Err(error) = self.stream.finish(Instant::now() + FINISH_TIMEOUT) {
            log::debug!("end of the stream from slot `{}`: {error}", self.slot);
        }
        Ok(())
    }

    /// Sends updates that are due. Returns the moment of the check.
    fn report(&mut self, status: &mut StandbyStatus) -> Result<Instant> {
        let now = Instant::now();
        status.on_published(self.shared.marks().confirmed());
        match status.due(now) {
            Due::Nothing => {}
            Due::LinkDead => {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!("stream from slot `{}`", self.slot),
                )
                .because("no sign of life from the walsender within the receive timeout")
                .hint(
                    "If it is busy with a large transaction, as the log of Postgres would show, \
                     raise REPLICATION_RECEIVE_TIMEOUT_MS.",
                ));
            }
            Due::Update(update) => {
                let message = StandbyStatusUpdate {
                    written: self.shared.marks().received().max(update.confirmed),
                    flushed: update.confirmed,
                    applied: update.confirmed,
                    reply_requested: update.reply_requested,
                };
                self.stream.send_status(&message, SystemTime::now())?;
                status.on_sent(now, update);
            }
        }
        Ok(now)
    }
}

/// A decoding error of the server will recur from where this stream began, unless it names its LSN.
fn placed(error: Error, resume: Lsn) -> Error {
    if server_error(&error).is_some() { error.at(resume) } else { error }
}

fn asks_for_reply(block: &Frames) -> bool {
    // Malformed messages are the batcher's to refuse.
    block.messages().any(|data| {
        matches!(
            FromServer::parse(data),
            Ok(FromServer::PrimaryKeepalive { reply_requested: true, .. })
        )
    })
}
