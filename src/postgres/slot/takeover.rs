//! A slot left active by a walsender of ours whose client is gone: end it instead of waiting.
//!
//! The caller holds the leader lock, so a walsender of our name is left over from an earlier
//! leader. It leaves any other alone.
//!
//! One that is stopped (SIGSTOP), or hangs in the kernel, does not get the request to end, and only
//! the host's own `kill` reaches it. Then the error names it, and the next attempt asks it again;
//! `wal_sender_timeout` does not help: the process itself would have to notice.

use std::thread;
use std::time::{Duration, Instant};

use super::super::sql::{Sql, SqlError, ident, literal};
use crate::error::{Error, ErrorKind, Result};

/// How often the slot is looked at while its walsender ends.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The process that holds a slot.
struct Holder {
    pid: i32,
    owner: Owner,
    application_name: String,
    client: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Ours,
    Other,
    /// Already gone from the list of sessions, so about to let go of the slot.
    Ending,
}

/// The process id that was ended, or `None` when the slot was free. Returns once the slot is
/// inactive. A holder that is not ours, or does not end in time, is an error of kind `SlotBusy`.
pub fn terminate_stale_walsender(
    sql: &mut Sql,
    slot: &str,
    application_name: &str,
    deadline: Instant,
) -> Result<Option<i32>> {
    let doing = format!("free slot `{slot}`");
    let mut ended = None;
    loop {
        let holder = holder(sql, slot, application_name, deadline);
        let Some(holder) = holder.map_err(|error| error.doing(&doing))? else { return Ok(ended) };
        match holder.owner {
            Owner::Other => return Err(not_ours(&doing, &holder)),
            // Another one of ours may have come in between: each is asked to end, once.
            Owner::Ours if ended != Some(holder.pid) => {
                terminate(sql, slot, &holder, deadline).map_err(|error| error.doing(&doing))?;
                ended = Some(holder.pid);
            }
            Owner::Ours | Owner::Ending => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left <= LOOK_EVERY {
            return Err(busy(&doing, &holder, "which was asked to end and has not").hint(format!(
                "If it persists: that process of Postgres is stopped or hangs, and no SQL can end \
                 it. On the database host run: kill -CONT {pid}, or else kill -KILL {pid}, which \
                 restarts Postgres.",
                pid = holder.pid
            )));
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Who streams from a slot.
#[derive(Debug)]
pub enum Held {
    ByNobody,
    /// By a walsender of our name.
    ByUs {
        pid: i32,
    },
    /// The error that a start would report.
    ByAnother(Error),
}

/// Ends no process.
pub fn held(sql: &mut Sql, slot: &str, application_name: &str, deadline: Instant) -> Result<Held> {
    let doing = format!("free slot `{slot}`");
    let holder = holder(sql, slot, application_name, deadline);
    Ok(match holder.map_err(|error| error.doing(&doing))? {
        None => Held::ByNobody,
        Some(holder) if holder.owner == Owner::Ours => Held::ByUs { pid: holder.pid },
        // A process that is ending, or that our role may not see.
        Some(holder) => Held::ByAnother(not_ours(&doing, &holder)),
    })
}

fn not_ours(doing: &str, holder: &Holder) -> Error {
    busy(doing, holder, "which is not ours").hint(format!(
        "Stop that consumer, or give this one a slot of its own. To end it: SELECT \
         pg_terminate_backend({});",
        holder.pid
    ))
}

fn holder(
    sql: &mut Sql,
    slot: &str,
    application_name: &str,
    deadline: Instant,
) -> std::result::Result<Option<Holder>, SqlError> {
    let rows = sql.try_rows(
        &format!(
            "SELECT s.active_pid, a.backend_type, coalesce(a.application_name, ''),
                    coalesce(host(a.client_addr), 'a local socket')
             FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
             WHERE s.slot_name = {} AND s.active_pid IS NOT NULL",
            literal(slot)
        ),
        deadline,
    )?;
    let Some(row) = rows.first() else { return Ok(None) };
    let name = row.required(2)?.to_owned();
    let owner = match row.text(1)? {
        None => Owner::Ending,
        Some("walsender") if name == application_name => Owner::Ours,
        Some(_) => Owner::Other,
    };
    Ok(Some(Holder {
        pid: row.parse(0)?,
        owner,
        application_name: name,
        client: row.required(3)?.to_owned(),
    }))
}

/// Only while that process still holds the slot: its number may have gone to another since.
fn terminate(
    sql: &mut Sql,
    slot: &str,
    holder: &Holder,
    deadline: Instant,
) -> std::result::Result<(), SqlError> {
    let statement = format!(
        "SELECT pg_terminate_backend(s.active_pid) FROM pg_replication_slots s
         JOIN pg_stat_activity a ON a.pid = s.active_pid
         WHERE s.slot_name = {} AND s.active_pid = {} AND a.application_name = {}",
        literal(slot),
        holder.pid,
        literal(&holder.application_name),
    );
    let role = ident(&sql.about().role);
    sql.try_rows(&statement, deadline).map(drop).map_err(|error| match error.is("42501") {
        true => error.with_hint(format!("Run: GRANT pg_signal_backend TO {role};")),
        false => error,
    })
}

fn busy(doing: &str, holder: &Holder, what: &str) -> Error {
    Error::new(ErrorKind::SlotBusy, doing).because(format!(
        "held by process {} with application name `{}` from {}, {what}",
        holder.pid, holder.application_name, holder.client
    ))
}
