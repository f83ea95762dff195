//! The end of the server's WAL and how much of it the slot retains, for the metrics: read by the
//! watch during the stream, and by the probe of the primary while a service waits to reconnect.

use std::time::Instant;

use crate::error::Result;
use crate::metrics::{ServerWal, ServiceMetrics};
use crate::overview::RetainedWal;
use crate::postgres::slot;
use crate::postgres::sql::Sql;
use crate::wal::Lsn;

/// Called by any thread that has a session open. Returns the slot's `restart_lsn`.
pub fn look(
    sql: &mut Sql,
    slot: &str,
    metrics: &ServiceMetrics,
    deadline: Instant,
) -> Result<Option<Lsn>> {
    let retained = slot::retained(sql, slot, deadline)?;
    if let Some(retained) = &retained {
        metrics.on_server_wal(ServerWal { lsn: retained.flushed, retained: shown(retained) });
    }
    Ok(retained.and_then(|retained| retained.restart_lsn))
}

/// As shown to people, except for what needs more than one reading.
pub fn shown(retained: &slot::Retained) -> RetainedWal {
    RetainedWal {
        bytes: retained.bytes(),
        limit_bytes: retained.limit_bytes,
        // Below zero the next checkpoint may end the slot.
        left_bytes: retained.safe_bytes.map(|left| u64::try_from(left).unwrap_or(0)),
        ..RetainedWal::default()
    }
}
