//! How far the server is and how much WAL the slot keeps there, for whoever watches: looked at by
//! the watch beside the stream, and while a service waits to reconnect by its probe of the primary.

use std::time::Instant;

use crate::error::Result;
use crate::metrics::{ServerWal, ServiceMetrics};
use crate::overview::RetainedWal;
use crate::postgres::slot;
use crate::postgres::sql::Sql;
use crate::wal::Lsn;

/// By whoever has a session at hand. Returns the slot's `restart_lsn`.
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

/// As a person sees it, but for what takes more than one look.
pub fn shown(retained: &slot::Retained) -> RetainedWal {
    RetainedWal {
        bytes: retained.bytes(),
        limit_bytes: retained.limit_bytes,
        // Below zero the next checkpoint may end the slot.
        left_bytes: retained.safe_bytes.map(|left| u64::try_from(left).unwrap_or(0)),
        ..RetainedWal::default()
    }
}
