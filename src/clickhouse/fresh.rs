//! Makes reads see what was acknowledged before, on whichever replica they run.
//!
//! A replica that we just switched to may not yet have fetched what another one accepted. So before
//! a SELECT its tables are brought up to date, once after each change of host, once per session,
//! and when another process may have written meanwhile (`Client::expect_others`): `SYSTEM SYNC
//! REPLICA` returns when the replica has fetched everything that was in the replication log at that
//! moment. If it cannot, the SELECT fails: a read never sees less than was acknowledged. Between
//! two sessions another process may have written through another host, and a load balancer may lead
//! to another replica.
//!
//! Where there are several hosts, each must have the same table: replicas of a table share one path
//! in ZooKeeper, and a table that is not replicated is on a single server, whose addresses show the
//! same UUID. Otherwise rows would go to one place and be looked for in another.

use std::time::Instant;

use super::connection::Connection;
use super::hosts::ReplicationKind;
use super::params::Quorum;
use super::refusal::Refusal;
use super::text::{of_ours, parse_rows};
use crate::error::{Error, ErrorKind, Result};

const ACCESS_DENIED: u32 = 497;
const TIMEOUT_EXCEEDED: u32 = 159;

const BEHIND_HINT: &str = "This replica lacks rows that another one has accepted, and walhouse \
                           does not read from it until it has them: see system.replication_queue \
                           and system.replicas there.";

/// Which server this is: a table that is not replicated is there alone.
pub(super) const SERVER: &str = "SELECT toString(serverUUID())";

/// How a SELECT is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    Plainly,
    /// Storage that replicas share: a setting makes the SELECT check it first.
    Shared,
}

/// Brings our tables that a SELECT reads up to date.
pub(super) fn before_select(
    to: &mut Connection,
    reads: &[&str],
    deadline: Instant,
) -> Result<Reading> {
    let mut reading = Reading::Plainly;
    for table in reads {
        match kind(to, table, deadline)? {
            Some(ReplicationKind::Replicated) if !to.hosts().is_fresh(table, to.generation()) => {
                sync(to, table, deadline)?;
            }
            Some(ReplicationKind::Shared) => reading = Reading::Shared,
            _ => {}
        }
    }
    Ok(reading)
}

/// Sees that the rows go where the others are.
pub(super) fn before_insert(to: &mut Connection, table: &str, deadline: Instant) -> Result<()> {
    // One host: there is no other place.
    match to.hosts().count() {
        1 => Ok(()),
        _ => kind(to, table, deadline).map(drop),
    }
}

/// `None`: there is no such table, as far as this user sees.
fn kind(to: &mut Connection, table: &str, deadline: Instant) -> Result<Option<ReplicationKind>> {
    if let Some(kind) = to.hosts().kind(table, to.generation()) {
        return Ok(Some(kind));
    }
    let ticket = to.hosts().ticket(to.generation());
    let sql = format!(
        "SELECT engine FROM system.tables WHERE {}",
        of_ours(&to.params().database, "name", &[table])
    );
    let Some(engine) = value(to, &sql, deadline)? else { return Ok(None) };
    let kind = ReplicationKind::of_engine(&engine);
    if 1 < to.hosts().count() {
        same_everywhere(to, table, &engine, deadline)?;
    }
    to.hosts().set_kind(table, kind, ticket);
    Ok(Some(kind))
}

/// A table of this name may be another one on another host.
fn same_everywhere(
    to: &mut Connection,
    table: &str,
    engine: &str,
    deadline: Instant,
) -> Result<()> {
    let kind = ReplicationKind::of_engine(engine);
    let identity = match kind {
        ReplicationKind::Shared | ReplicationKind::Elsewhere => return Ok(()),
        ReplicationKind::Plain => SERVER.to_owned(),
        ReplicationKind::Replicated => format!(
            "SELECT zookeeper_path FROM system.replicas WHERE {}",
            of_ours(&to.params().database, "table", &[table])
        ),
    };
    let identity = value(to, &identity, deadline)?.unwrap_or_default();
    let is_for_others = to.params().quorum.is_some_and(Quorum::asks_for_others);
    let doing = format!("use {} at `{}`", to.qualified(table), to.endpoint());
    let error = if kind == ReplicationKind::Plain && is_for_others {
        without_quorum(doing, engine)
    } else if to.hosts().is_known_as(table, &identity) {
        return Ok(());
    } else {
        let error = Error::new(ErrorKind::Setup, doing).because(match kind {
            ReplicationKind::Plain => {
                format!("it is a {engine}, and its rows are on another server")
            }
            _ => {
                format!("it is not a replica of the one at another host, but has path `{identity}`")
            }
        });
        error.hint(
            "Make the tables replicas of each other on every host, or name only one host in \
             *_REPLICATION_CLICKHOUSE_URL.",
        )
    };
    // Back to where the rows are, once that is there again.
    to.leave("its tables are not those of the other hosts");
    Err(error)
}

/// A table that an insert with a quorum must not go to.
pub(super) fn without_quorum(doing: String, engine: &str) -> Error {
    Error::new(ErrorKind::Setup, doing)
        .because(format!("inserts require a quorum, and its engine is {engine}"))
        .hint("Make it Replicated on every host, or unset REPLICATION_CLICKHOUSE_INSERT_QUORUM.")
}

fn sync(to: &mut Connection, table: &str, deadline: Instant) -> Result<()> {
    let ticket = to.hosts().ticket(to.generation());
    let sql = format!("SYSTEM SYNC REPLICA {} LIGHTWEIGHT", to.qualified(table));
    // The server waits for as long; what it says then is better than no answer.
    let left = deadline.saturating_duration_since(Instant::now()).as_secs();
    if left < 2 {
        let doing = format!("bring {} up to date", to.qualified(table));
        return Err(Error::new(ErrorKind::Unreachable, doing)
            .because("less than a second is left for it")
            .hint("Raise `request_timeout` in *_REPLICATION_CLICKHOUSE_URL."));
    }
    let timeout = (left - 1).to_string();
    let outcome = to.select(&sql, &[("receive_timeout", &timeout)], deadline);
    match outcome {
        Ok(_) => {}
        Err(error) if is_denied(&error) && to.hosts().count() == 1 => {
            log::warn!(
                "clickhouse: the user may not SYSTEM SYNC REPLICA {}: behind a load balancer, \
                 walhouse may miss rows that another replica has accepted",
                to.qualified(table)
            );
        }
        Err(error) if is_denied(&error) => {
            return Err(error.hint(
                "Run as an administrator: GRANT SYSTEM SYNC REPLICA ON <database>.*; it is \
                 required with several hosts.",
            ));
        }
        Err(error) => {
            if code_of(&error) == Some(TIMEOUT_EXCEEDED) {
                // Another replica may have all of it.
                to.leave("its replica does not catch up");
            }
            let doing = format!("bring {} up to date at `{}`", to.qualified(table), to.endpoint());
            let hint = error.hint_text().unwrap_or(BEHIND_HINT).to_owned();
            return Err(Error::new(error.kind(), doing).because(error).hint(hint));
        }
    }
    to.hosts().set_fresh(table, ticket);
    Ok(())
}

fn is_denied(error: &Error) -> bool {
    code_of(error) == Some(ACCESS_DENIED)
}

fn code_of(error: &Error) -> Option<u32> {
    let refusal = error.cause().and_then(|cause| cause.downcast_ref::<Refusal>());
    refusal.map(|refusal| refusal.code)
}

fn value(to: &mut Connection, sql: &str, deadline: Instant) -> Result<Option<String>> {
    let answer = to.select(sql, &[], deadline)?;
    let rows = parse_rows(&answer).unwrap_or_default();
    let bytes = rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}
