//! `wal_watch/<service>`: looks, while the stream runs, how far the server is and how much WAL the
//! slot keeps there, for whoever watches. Beside the stream, because it is of no concern to it: not
//! even an error here ends the session.
//!
//! Each look is a short session: one that stays would hold up a smart shutdown of Postgres. While
//! a service waits to reconnect, its lookout looks in its stead.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::metrics::{ServerWal, ServiceMetrics};
use crate::postgres::primary::Primary;
use crate::postgres::slot;
use crate::postgres::sql::Sql;
use crate::threads::shared::{Pace, Shared};
use crate::threads::stream::position::Position;
use crate::wal::Lsn;

pub const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Connecting and asking. A session that ends waits for it.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

pub struct WalWatch<'a> {
    pub service: &'static str,
    pub slot: &'a str,
    pub primary: &'a Primary,
    pub application_name: &'a str,
    pub shared: &'a Shared,
    pub position: &'a Position,
    pub metrics: &'a ServiceMetrics,
}

/// Runs until the session ends.
pub fn run(with: &WalWatch<'_>) {
    loop {
        if let Err(error) = with.look() {
            log::debug!("{}: {error}", with.service);
        }
        if with.shared.rest(Instant::now() + LOOK_EVERY) != Pace::Running {
            return;
        }
    }
}

impl WalWatch<'_> {
    fn look(&self) -> Result<()> {
        let deadline = Instant::now() + LOOK_TIMEOUT;
        let mut sql = self.primary.sql(self.application_name, deadline)?;
        if let Some(restart_lsn) = look(&mut sql, self.slot, self.metrics, deadline)? {
            self.position.set_restart_lsn(restart_lsn);
        }
        Ok(())
    }
}

/// One look, by whoever has a session at hand. Returns the slot's `restart_lsn`.
pub fn look(
    sql: &mut Sql,
    slot: &str,
    metrics: &ServiceMetrics,
    deadline: Instant,
) -> Result<Option<Lsn>> {
    let retained = slot::retained(sql, slot, deadline)?;
    if let Some(retained) = &retained {
        metrics.on_server_wal(ServerWal {
            lsn: retained.flushed,
            retained_bytes: retained.bytes(),
            // Below zero the next checkpoint may end the slot.
            left_bytes: retained.safe_bytes.map(|left| u64::try_from(left).unwrap_or(0)),
            limit_bytes: retained.limit_bytes,
        });
    }
    Ok(retained.and_then(|retained| retained.restart_lsn))
}
