//! Takes the traces of a service out of Postgres: the slot, and with it the WAL that it keeps, and
//! the publication if that is asked for. For `walhouse teardown`, on its main thread.
//!
//! It holds the leader lock meanwhile, so that it cannot drop the slot of a running stream: that
//! leader would see a gap, and create the slot again. What is recorded in ClickHouse stays: a
//! service that is turned on again detects the gap by it, and repairs the table.

use std::thread;
use std::time::{Duration, Instant};

use crate::config::ServiceConfig;
use crate::delivery::connecting::application_name;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::primary::Primary;
use crate::postgres::publication;
use crate::postgres::slot::{self, SlotVerdict};
use crate::postgres::sql::Sql;
use crate::threads::lock_keeper::LeaderLock;

/// A step against Postgres or the lock takes this long at most.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a walsender that was terminated may take to end.
const WALSENDER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than all steps together, whatever TTL the service gives the lock.
const LOCK_TERM_MIN: Duration = Duration::from_secs(150);

/// What there is to drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removable {
    /// The server, as `host:port`.
    pub server: String,
    pub slot: Option<FoundSlot>,
    pub publication: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundSlot {
    /// `None` while the slot is invalidated: then it keeps nothing.
    pub retained_bytes: Option<u64>,
    pub active: bool,
}

/// What was dropped; the bytes are those that the slot kept in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    pub slot: Option<FoundSlot>,
    pub publication: bool,
}

/// Looks, and changes nothing.
pub fn look(config: &ServiceConfig) -> Result<Removable> {
    let (primary, mut sql) = connect(config)?;
    let slot = find_slot(config, &mut sql)?;
    let publication = publication::exists(&mut sql, &config.publication, step())?;
    Ok(Removable { server: primary.name(), slot, publication })
}

/// Waits for the leader lock, at most as long as a leader that died may have left it, and drops.
/// Calls `waiting` once if another instance has it.
pub fn drop(
    config: &ServiceConfig,
    with_publication: bool,
    waiting: impl FnOnce(Duration),
) -> Result<Dropped> {
    let mut lock = LeaderLock::of(config);
    acquire(config, &mut lock, waiting)?;
    let dropped = drop_locked(config, with_publication);
    let released = lock.release(Instant::now() + STEP_TIMEOUT);
    let dropped = dropped?;
    released?;
    Ok(dropped)
}

fn acquire(
    config: &ServiceConfig,
    lock: &mut LeaderLock,
    waiting: impl FnOnce(Duration),
) -> Result<()> {
    let patience = config.lock.term + config.lock.retry_every;
    let until = Instant::now() + patience;
    let mut waiting = Some(waiting);
    while !lock.try_acquire(LOCK_TERM_MIN.max(config.lock.term), step())? {
        if until <= Instant::now() {
            let service = config.name.as_str();
            return Err(Error::new(ErrorKind::SlotBusy, format!("tear down service `{service}`"))
                .because("another instance holds the leader lock, and extends it")
                .hint(format!(
                    "Stop walhouse, and trigger.dev's own replication, wherever service \
                     `{service}` is on, and run this again."
                )));
        }
        if let Some(waiting) = waiting.take() {
            waiting(patience);
        }
        thread::sleep(config.lock.retry_every);
    }
    Ok(())
}

fn drop_locked(config: &ServiceConfig, with_publication: bool) -> Result<Dropped> {
    let (_, mut sql) = connect(config)?;
    let found = find_slot(config, &mut sql)?;
    if found.is_some() {
        // A stream that has ended may have left its walsender.
        slot::terminate_stale_walsender(
            &mut sql,
            &config.slot,
            &application_name(config),
            Instant::now() + WALSENDER_TIMEOUT,
        )?;
        slot::drop(&mut sql, &config.slot, step())?;
    }
    let publication = match with_publication {
        true => publication::drop(&mut sql, &config.publication, step())
            .map_err(|error| of_the_publication_alone(error, config, found))?,
        false => false,
    };
    Ok(Dropped { slot: found, publication })
}

/// An error about the publication must also say that the slot is gone.
fn of_the_publication_alone(
    error: Error,
    config: &ServiceConfig,
    slot: Option<FoundSlot>,
) -> Error {
    match (slot, error.hint_text()) {
        (Some(_), Some(hint)) => {
            let hint = format!("Slot `{}` is dropped. {hint}", config.slot);
            error.hint(hint)
        }
        _ => error,
    }
}

fn connect(config: &ServiceConfig) -> Result<(Primary, Sql)> {
    Primary::find(&config.postgres, "walhouse/teardown", None, step(), || Ok(()))
}

/// A slot of that name that is not one of walhouse's kind is left alone.
fn find_slot(config: &ServiceConfig, sql: &mut Sql) -> Result<Option<FoundSlot>> {
    let name = &config.slot;
    let Some(state) = slot::inspect(sql, name, step())? else { return Ok(None) };
    let what = match slot::verdict(sql, &state) {
        SlotVerdict::Usable
        | SlotVerdict::InCreation
        | SlotVerdict::TwoPhase
        | SlotVerdict::Invalidated { .. } => None,
        SlotVerdict::Physical => Some("it is a physical slot".to_owned()),
        SlotVerdict::WrongPlugin { plugin } => Some(format!("its plugin is `{plugin}`")),
        SlotVerdict::OtherDatabase { database } => {
            Some(format!("it belongs to database `{database}`"))
        }
        SlotVerdict::Temporary => Some("it is temporary, and ends with its session".to_owned()),
        SlotVerdict::OnStandby => Some("it is a standby's copy".to_owned()),
    };
    if let Some(what) = what {
        return Err(Error::new(ErrorKind::Setup, format!("drop slot `{name}`"))
            .because(format!("{what}, so it is not walhouse's"))
            .hint("Correct `*_REPLICATION_SLOT_NAME` or `DATABASE_URL`."));
    }
    let retained = slot::retained(sql, name, step())?;
    Ok(Some(FoundSlot {
        retained_bytes: retained.as_ref().and_then(slot::Retained::bytes),
        active: state.active,
    }))
}

fn step() -> Instant {
    Instant::now() + STEP_TIMEOUT
}
