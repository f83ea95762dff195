//! Reads see what was acknowledged before, on whichever replica they run.
//!
//! A replica that has just become ours may not yet have fetched what another one has taken. So
//! before a SELECT the tables that it reads are brought up to date, once for each host that is
//! moved to, each session, and where another process may have written meanwhile
//! ([`Client::expect_others`]): `SYSTEM SYNC REPLICA` returns when the replica has fetched all that
//! stood in the replication log when it was asked. That it cannot is a failure of the SELECT: less
//! than was acknowledged is not read. Between two sessions another process may have written
//! through another host, and a balancer may have another replica behind the one address.
//!
//! Where there are several hosts, each must have the same table: replicas of one have one path in
//! ZooKeeper, and what is not replicated is on one server alone, whose addresses share its UUID.
//! Otherwise rows would go to one place and be looked for in another.

use std::time::Instant;

use super::client::Client;
use super::cluster::{SERVER, of_ours, without_quorum};
use super::hosts::ReplicationKind;
use super::params::Quorum;
use super::refusal::Refusal;
use super::text::parse_rows;
use crate::error::{Error, ErrorKind, Result};

const ACCESS_DENIED: u32 = 497;
const TIMEOUT_EXCEEDED: u32 = 159;

const BEHIND_HINT: &str = "This replica lacks rows that another one has accepted, and walhouse \
                           does not read from it until it has them: see system.replication_queue \
                           and system.replicas there.";

/// How a SELECT is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    Plainly,
    /// From storage that replicas share: it has to be told to look there first.
    Shared,
}

/// Brings the tables of ours that a SELECT reads up to date.
pub(super) fn before_select(
    client: &mut Client,
    reads: &[&str],
    deadline: Instant,
) -> Result<Reading> {
    let mut reading = Reading::Plainly;
    for table in reads {
        match kind(client, table, deadline)? {
            Some(ReplicationKind::Replicated)
                if !client.hosts().is_fresh(table, client.generation()) =>
            {
                sync(client, table, deadline)?;
            }
            Some(ReplicationKind::Shared) => reading = Reading::Shared,
            _ => {}
        }
    }
    Ok(reading)
}

/// Sees that the rows go where the others are.
pub(super) fn before_insert(client: &mut Client, table: &str, deadline: Instant) -> Result<()> {
    // One host: there is no other place.
    match client.hosts().count() {
        1 => Ok(()),
        _ => kind(client, table, deadline).map(drop),
    }
}

/// `None`: there is no such table, as far as this user sees.
fn kind(client: &mut Client, table: &str, deadline: Instant) -> Result<Option<ReplicationKind>> {
    if let Some(kind) = client.hosts().kind(table, client.generation()) {
        return Ok(Some(kind));
    }
    let ticket = client.hosts().ticket(client.generation());
    let sql =
        format!("SELECT engine FROM system.tables WHERE {}", of_ours(client, "name", &[table]));
    let Some(engine) = value(client, &sql, deadline)? else { return Ok(None) };
    let kind = ReplicationKind::of_engine(&engine);
    if 1 < client.hosts().count() {
        same_everywhere(client, table, &engine, deadline)?;
    }
    client.hosts().set_kind(table, kind, ticket);
    Ok(Some(kind))
}

/// A table of this name may be another one on another host.
fn same_everywhere(
    client: &mut Client,
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
            of_ours(client, "table", &[table])
        ),
    };
    let identity = value(client, &identity, deadline)?.unwrap_or_default();
    let is_for_others = client.params().quorum.is_some_and(Quorum::asks_for_others);
    let error = if kind == ReplicationKind::Plain && is_for_others {
        without_quorum(client, table, engine)
    } else if client.hosts().is_known_as(table, &identity) {
        return Ok(());
    } else {
        let doing = format!("use {} at `{}`", client.qualified(table), client.endpoint());
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
    client.leave("its tables are not those of the other hosts");
    Err(error)
}

fn sync(client: &mut Client, table: &str, deadline: Instant) -> Result<()> {
    let ticket = client.hosts().ticket(client.generation());
    let sql = format!("SYSTEM SYNC REPLICA {} LIGHTWEIGHT", client.qualified(table));
    // The server waits for as long; what it says then is better than no answer.
    let left = deadline.saturating_duration_since(Instant::now()).as_secs();
    if left < 2 {
        let doing = format!("bring {} up to date", client.qualified(table));
        return Err(Error::new(ErrorKind::Unreachable, doing)
            .because("less than a second is left for it")
            .hint("Raise `request_timeout` in *_REPLICATION_CLICKHOUSE_URL."));
    }
    let timeout = (left - 1).to_string();
    let outcome = client.select_here(&sql, &[("receive_timeout", &timeout)], deadline);
    match outcome {
        Ok(_) => {}
        Err(error) if is_denied(&error) && client.hosts().count() == 1 => {
            log::warn!(
                "clickhouse: the user may not SYSTEM SYNC REPLICA {}: behind a load balancer, \
                 walhouse may miss rows that another replica has accepted",
                client.qualified(table)
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
                client.leave("its replica does not catch up");
            }
            let doing =
                format!("bring {} up to date at `{}`", client.qualified(table), client.endpoint());
            let hint = error.hint_text().unwrap_or(BEHIND_HINT).to_owned();
            return Err(Error::new(error.kind(), doing).because(error).hint(hint));
        }
    }
    client.hosts().set_fresh(table, ticket);
    Ok(())
}

fn is_denied(error: &Error) -> bool {
    code_of(error) == Some(ACCESS_DENIED)
}

fn code_of(error: &Error) -> Option<u32> {
    let refusal = error.cause().and_then(|cause| cause.downcast_ref::<Refusal>());
    refusal.map(|refusal| refusal.code)
}

fn value(client: &mut Client, sql: &str, deadline: Instant) -> Result<Option<String>> {
    let answer = client.select_here(sql, &[], deadline)?;
    let rows = parse_rows(&answer).unwrap_or_default();
    let bytes = rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}
