//! `primary_probe/<service>`: while a service waits to reconnect, checks whether Postgres has come
//! back, so that a long failover does not cost a long wait on top.
//!
//! It cuts a wait short only for news: there was no primary, and now there is; or another server is
//! the primary now. If the attempts fail on a server that is there all the time, the backoff
//! applies.
//!
//! The slot retains WAL meanwhile: it records how much.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, TryRecvError, bounded};
use parking_lot::Mutex;

use super::{retained, source_watch};
use crate::delivery::alongside::stopped;
use crate::halt::Halt;
use crate::machines::lifecycle::LifecycleInput;
use crate::metrics::ServiceMetrics;
use crate::postgres::PostgresParams;
use crate::postgres::primary::{KnownServer, Primary};
use crate::threads::event::Event;
use crate::threads::spawn_named;

const APPLICATION_NAME: &str = "walhouse-probe";
/// Each check is a short session on every host.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A primary is there; it is something else that the attempts fail on.
const LOOK_RARELY: Duration = Duration::from_secs(5);
/// It gives up on hanging servers after this time, and asks them again with the next check.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

/// What the last attempt knew of the server, for the probe.
#[derive(Debug, Default)]
pub struct LastSeen(Mutex<Sighting>);

#[derive(Debug, Default, Clone, Copy)]
struct Sighting {
    known: Option<KnownServer>,
    /// The attempt ended because there was no primary.
    away: bool,
}

impl LastSeen {
    /// An attempt begins, of which it is not known yet how far it will come.
    pub fn begin(&self) {
        self.0.lock().away = false;
    }

    pub fn set_known(&self, known: Option<KnownServer>) {
        self.0.lock().known = known;
    }

    pub fn set_away(&self) {
        self.0.lock().away = true;
    }
}

/// Ends its thread when it is dropped.
pub struct PrimaryProbe {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl PrimaryProbe {
    pub fn spawn(
        service: &str,
        params: &PostgresParams,
        slot: &str,
        last_seen: &LastSeen,
        metrics: Arc<ServiceMetrics>,
        events: Sender<Event>,
    ) -> PrimaryProbe {
        let (stop, stops) = bounded::<()>(0);
        let slot = slot.to_owned();
        let asked = stops.clone();
        let halt = Halt::when(move || asked.try_recv() == Err(TryRecvError::Disconnected));
        let params = PostgresParams { halt, ..params.clone() };
        let Sighting { known, away } = *last_seen.0.lock();
        let service = service.to_owned();
        let thread = spawn_named(format!("primary_probe/{service}"), move || {
            let mut before = if away { Look::Nobody } else { Look::First };
            let mut look_at_wal = Instant::now();
            loop {
                let go_on = || match stops.try_recv() {
                    Err(TryRecvError::Disconnected) => Err(stopped()),
                    Ok(()) | Err(TryRecvError::Empty) => Ok(()),
                };
                let deadline = Instant::now() + LOOK_TIMEOUT;
                let now = match Primary::find(&params, APPLICATION_NAME, known, deadline, go_on) {
                    Ok((primary, mut sql)) => {
                        if look_at_wal <= Instant::now() {
                            look_at_wal = Instant::now() + source_watch::LOOK_EVERY;
                            let looked = retained::look(&mut sql, &slot, &metrics, deadline);
                            if let Err(error) = looked {
                                log::debug!("{service}: {error}");
                            }
                        }
                        Look::Primary(primary.identity())
                    }
                    Err(_) => Look::Nobody,
                };
                if now.is_news_after(before) {
                    log::info!("{service}: there is a primary again; not waiting any longer");
                    // The coordinator outlives its probe.
                    let _ = events.send(Event::Lifecycle(LifecycleInput::PrimaryBack));
                    return;
                }
                before = now;
                let wait = if now == Look::Nobody { LOOK_EVERY } else { LOOK_RARELY };
                match stops.recv_timeout(wait) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        PrimaryProbe { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for PrimaryProbe {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the probe of the primary panicked");
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// The earlier state is unknown.
    First,
    Nobody,
    Primary(KnownServer),
}

impl Look {
    fn is_news_after(self, before: Look) -> bool {
        match (before, self) {
            (Look::Nobody, Look::Primary(_)) => true,
            (Look::Primary(before), Look::Primary(now)) => before != now,
            (Look::First, _) | (_, Look::Nobody | Look::First) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_primary_that_was_not_there_is_news() {
        let on = |timeline| Look::Primary(KnownServer { system_identifier: 1, timeline });
        for (before, now, expected) in [
            (Look::First, on(1), false),
            (Look::First, Look::Nobody, false),
            (Look::Nobody, Look::Nobody, false),
            (Look::Nobody, on(1), true),
            (on(1), on(1), false),
            (on(1), on(2), true),
            (on(1), Look::Nobody, false),
        ] {
            assert_eq!(now.is_news_after(before), expected, "{before:?}, {now:?}");
        }
    }
}
