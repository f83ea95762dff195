//! What a session does before rows arrive: the tables, the publication, the slot, and whether going
//! on would skip a gap or a fork. Runs on the session's own thread; nothing is confirmed here.

use std::time::{Duration, Instant};

use super::old_rows;
use super::resume::{self, Parties, Resumed};
use super::slot_watch::SlotWatch;
use crate::clickhouse::own::repairs::{self, RepairRow};
use crate::clickhouse::own::sources::{self, SourceRow};
use crate::clickhouse::own::state::{self, StateRow};
use crate::clickhouse::tables::{self, TablesLook};
use crate::clickhouse::{self, Client, cluster, own};
use crate::config::{InitialBackfill, ServiceConfig};
use crate::delivery::alongside::{Alongside, StopLevel};
use crate::delivery::connecting::{application_name, known, startup_options, step};
use crate::delivery::member::Member;
use crate::delivery::session_state::SessionState;
use crate::delivery::table_set::TableSet;
use crate::delivery::target_tables::{Taken, mapping, shapes};
use crate::delivery::{source_check, source_look, unfilled};
use crate::error::{Error, ErrorKind, Result};
use crate::halt::Halt;
use crate::machines::recovery::GapStrategy;
use crate::mending::debt;
use crate::metrics::ServiceMetrics;
use crate::postgres;
use crate::postgres::failover_slot::{self, Mark};
use crate::postgres::primary::Primary;
use crate::postgres::publication::{self, Ensured, WantedPublication, WantedTable};
use crate::postgres::server::Server;
use crate::postgres::slot;
use crate::postgres::source_table::SourceTable;
use crate::postgres::sql::Sql;
use crate::postgres::stream::Stream;
use crate::services::mapping::Mapping;
use crate::threads::AcrossSessions;
use crate::wal::Lsn;

/// A running stream, and everything that the threads must know to take it over.
pub struct Prepared {
    pub stream: Stream,
    pub set: TableSet,
    /// The snapshot of the source, as it is recorded.
    pub source_row: SourceRow,
    /// The end of the WAL when the table was checked: earlier names and columns of it no longer
    /// matter.
    pub source_checked_at: Lsn,
    /// Target tables and ours, as they were found.
    pub tables: TablesLook,
    /// As it is recorded in ClickHouse.
    pub state: StateRow,
    /// The repair to run during the stream.
    pub repair: Option<RepairRow>,
    pub client: Client,
    /// How often the walsender must hear from us.
    pub status_every: Duration,
    /// Everything up to here is durable.
    pub resume: Lsn,
    /// No standby can have a copy of it yet.
    pub slot_is_new: bool,
    /// The server that streams, for all other queries to Postgres in this session.
    pub primary: Primary,
    /// Notes for an operator that stop nothing.
    pub notes: Vec<String>,
}

/// How long a walsender that was asked to end may take.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(10);

/// `first` says that nothing about the process's start has been logged yet.
pub fn prepare(
    config: &ServiceConfig,
    metrics: &ServiceMetrics,
    shared: &SessionState,
    first: bool,
    memory: &AcrossSessions,
) -> Result<Prepared> {
    memory.last_seen.begin();
    let go_on = || shared.go_on();
    let owned = mapping(config);
    let mapping = &*owned;
    let (draining, abandoned) =
        (shared.halt(StopLevel::Draining), shared.halt(StopLevel::Abandoned));
    let (mut client, version) = connect_clickhouse(config, draining.clone())?;
    go_on()?;

    // Waits for a server that does not answer no longer than for one that falls silent later.
    let connect_timeout = config.postgres.connect_timeout.min(config.receive_timeout);
    let connect_deadline = || Instant::now() + connect_timeout;
    let application_name = application_name(config);
    let known = known(config, &mut client)?;
    memory.last_seen.set_known(known);
    let deadline = connect_deadline();
    let params = postgres::PostgresParams { halt: draining.clone(), ..config.postgres.clone() };
    let found = Primary::find(&params, &application_name, known, deadline, go_on);
    let (mut primary, mut sql) = found.inspect_err(|error| {
        if error.kind() == ErrorKind::Unreachable {
            memory.last_seen.set_away();
        }
    })?;
    // A draining session may still have to query.
    primary.set_halt(&abandoned);
    primary.set_patience(config.receive_timeout);
    sql.set_patience(config.receive_timeout);
    log::debug!("{}: the primary is `{}`", config.name.as_str(), primary.name());
    let server = Server::inspect(&mut sql, step())?;
    server.check_wal_level()?;
    // Another cluster creates no debt here; the lineage judges later whether to follow it.
    let here = primary.identity().system_identifier;
    let is_known = known.is_some_and(|known| known.system_identifier == here);
    if is_known {
        owe_for_source(&mut client, &mut sql, (config, mapping), &primary)?;
    }
    // Before creating anything on either side: a database without the table is not yet, or never,
    // the one to replicate, and trigger.dev's migrations may want to create the tables in
    // ClickHouse.
    let table = look_at_source(config, mapping, &mut sql, first)?;
    go_on()?;
    let (taken, tables) = prepare_tables(config, mapping, &mut client, &version, memory)?;
    let Taken { shapes, unfilled } = taken;
    let mut notes = unfilled::of_source(&table, mapping.source());
    notes.extend(unfilled);
    notes.extend(look_for_old_rows(config, mapping, &mut sql, &mut client)?);
    if first {
        notes.iter().for_each(|note| log::warn!("{}: {note}", config.name.as_str()));
    }
    go_on()?;
    ensure_publication(config, mapping, &mut sql, &table, is_known.then_some(&mut client))?;
    go_on()?;

    let options = startup_options(config, &application_name, sql.texts());
    let (mut connection, system) = primary.replication(&options, connect_deadline())?;
    connection.set_halt(&draining);
    // After the check of the table. Reading values again detects a change made just then.
    let source_checked_at = system.xlogpos;
    // First, so that nobody moves the slot between the verdict and the start of the stream.
    let freed = slot::terminate_stale_walsender(
        &mut sql,
        &config.slot,
        &application_name,
        Instant::now() + TAKE_OVER_TIMEOUT,
    )?;
    if let Some(pid) = freed {
        let service = config.name.as_str();
        log::warn!("{service}: ended stale walsender {pid} that held slot `{}`", config.slot);
    }
    let watch = SlotWatch {
        service: config.name.as_str(),
        slot: &config.slot,
        primary: &primary,
        application_name: &application_name,
        backend_pid: sql.about().backend_pid,
        interrupt: sql.interrupt(),
        receive_timeout: config.receive_timeout,
        shared,
    };
    // A slot that is being made must be given up by the server: see `slot_watch`.
    sql.set_halt(&abandoned);
    connection.set_halt(&abandoned);
    let resumed = std::thread::scope(|scope| {
        let _watching = watch.begin(scope);
        let parties = Parties {
            config,
            metrics,
            mapping,
            shapes: &shapes,
            client: &mut client,
            sql: &mut sql,
            connection: &mut connection,
            given_up: memory.undecodable.lock().given_up(),
            may_write: &go_on,
        };
        resume::resume(parties)
    });
    sql.set_halt(&draining);
    connection.set_halt(&draining);
    let resumed = resumed?;
    // Once more: a change since the first check is now recorded as the normal state, so no later
    // check would find it.
    ensure_publication(config, mapping, &mut sql, &table, is_known.then_some(&mut client))?;
    let Resumed { state, repair, slot_is_new, source } = resumed;
    memory.tables.on_recorded();
    if slot_is_new {
        memory.undecodable.lock().on_new_slot();
    }
    let resume = state.confirmed;
    let wanted = config.failover;
    let mark = failover_slot::ensure(&mut sql, &mut connection, &config.slot, wanted, step())?;
    memory.told.mark(config.name.as_str(), &config.slot, wanted, &mark);
    let mut stream = Stream::start(connection, &config.slot, &config.publication, config.binary)?;
    stream.set_halt(&abandoned);
    check_not_moved(&mut sql, &config.slot, resume)?;
    Ok(Prepared {
        stream,
        set: TableSet::new(vec![Member { mapping: owned, shapes, found: table }]),
        source_row: source,
        source_checked_at,
        tables,
        state,
        repair,
        client,
        status_every: status_every(config.ack_interval, server.wal_sender_timeout),
        resume,
        slot_is_new: slot_is_new || mark == Mark::Altered,
        primary,
        notes,
    })
}

/// Between the verdict and our stream the slot was free, and somebody may have moved it. We hold
/// the slot now, so nobody can move it; nothing streamed has been decoded yet.
fn check_not_moved(sql: &mut Sql, name: &str, judged: Lsn) -> Result<()> {
    let found = slot::inspect(sql, name, step())?.and_then(|slot| slot.confirmed_flush_lsn);
    if found == Some(judged) {
        return Ok(());
    }
    let found = found.map_or("gone".to_owned(), |lsn| lsn.to_string());
    Err(Error::new(ErrorKind::SlotBusy, format!("stream from slot `{name}`"))
        .because(format!("it was moved while the stream started: expected {judged}, got {found}"))
        .hint("Another consumer uses this slot: stop it, or give this service a slot of its own."))
}

/// At least three times within the walsender's patience.
fn status_every(ack_interval: Duration, wal_sender_timeout: Option<Duration>) -> Duration {
    match wal_sender_timeout {
        Some(timeout) => ack_interval.min(timeout / 3),
        None => ack_interval,
    }
}

/// And its version. Nothing is made there yet.
fn connect_clickhouse(config: &ServiceConfig, halt: Halt) -> Result<(Client, String)> {
    // Another process may have written since, and through another host.
    config.clickhouse.hosts.forget_fresh();
    let params = clickhouse::ClickHouseParams { halt, ..config.clickhouse.clone() };
    let mut client = Client::connect(&params)?;
    let version = client.ping(Instant::now() + config.clickhouse.request_timeout)?;
    Ok((client, version))
}

/// The columns of each target table. Creates missing ones, and missing tables of our own, if
/// allowed.
fn prepare_tables(
    config: &ServiceConfig,
    mapping: &dyn Mapping,
    client: &mut Client,
    version: &str,
    memory: &AcrossSessions,
) -> Result<(Taken, TablesLook)> {
    let deadline = || Instant::now() + config.clickhouse.request_timeout;
    memory.tables.begin(client, config)?;
    own::tables::ensure(client, config.create_tables, deadline())?;
    let names: Vec<&str> = mapping.targets().iter().map(|target| &*target.table).collect();
    let missing = tables::missing(client, &names, deadline())?;
    if !missing.is_empty() && config.create_tables {
        debt::owe_for_tables(client, config, &missing)?;
    }
    let taken = shapes(client, config, mapping, version, config.create_tables);
    let taken = taken.or_else(|error| memory.tables.refuse(client, config, error))?;
    let all: Vec<&str> = names.iter().copied().chain(own::tables::names()).collect();
    cluster::check_quorum(client, &all, deadline())?;
    let look = tables::look(client, &all, deadline())?;
    memory.tables.compare(client, config, mapping, &taken.shapes, &missing, &look)?;
    Ok((taken, look))
}

/// Before the first start: rows that existing tables lack. If configured, the backfill is recorded
/// as owed, and the session begins with it.
fn look_for_old_rows(
    config: &ServiceConfig,
    mapping: &dyn Mapping,
    sql: &mut Sql,
    client: &mut Client,
) -> Result<Option<String>> {
    let (service, timeout) = (config.name.as_str(), config.clickhouse.request_timeout);
    let deadline = || Instant::now() + timeout;
    // A repair that is recorded, for tables that were just made among others, compares all of them.
    if config.initial_backfill == InitialBackfill::Off {
        // An operator has said so.
        return Ok(None);
    }
    let is_first = state::TABLE.read(client, service, &config.slot, deadline())?.is_none()
        && repairs::TABLE.read(client, service, &config.slot, deadline())?.is_none();
    if !is_first {
        return Ok(None);
    }
    let has_slot = slot::inspect(sql, &config.slot, step())?.is_some();
    let lacking = old_rows::look(&config.name, mapping, sql, client, has_slot, timeout)?;
    let Some(lacking) = lacking else { return Ok(None) };
    if config.initial_backfill == InitialBackfill::Existing {
        debt::owe_existing(client, config, &mapping.targets()[0].table)?;
        return Ok(None);
    }
    Ok(Some(format!("{}. {}", lacking.text, lacking.hint)))
}

/// Records a pending repair if the source differs from the recorded snapshot and rows may have been
/// hidden. Before anything that may refuse the start: its cause may be undone, and then nothing
/// shows the change any more.
fn owe_for_source(
    client: &mut Client,
    sql: &mut Sql,
    of: (&ServiceConfig, &dyn Mapping),
    primary: &Primary,
) -> Result<()> {
    let (config, service) = (of.0, of.0.name.as_str());
    let (of_debt, timeout) = ((service, config.slot.as_str()), config.clickhouse.request_timeout);
    // Missing ones are created later, and then there is nothing left to compare.
    let own = [sources::TABLE.name, repairs::TABLE.name];
    if !tables::missing(client, &own, Instant::now() + timeout)?.is_empty() {
        return Ok(());
    }
    let system_identifier = primary.identity().system_identifier.to_string();
    let recorded = source_look::recorded(client, config)?;
    let look = source_look::look(recorded, sql, of, (&system_identifier, true), step())?;
    for told in &look.judgement.told {
        log::warn!("{service}: {told}");
    }
    // A skip is judged once more when it happens.
    if !look.judgement.may_hide_rows() || config.gap_strategy == GapStrategy::Skip {
        return Ok(());
    }
    debt::owe(client, of_debt, &look.judgement.to_string(), timeout)
}

fn look_at_source(
    config: &ServiceConfig,
    mapping: &dyn Mapping,
    sql: &mut Sql,
    first: bool,
) -> Result<SourceTable> {
    let (table, old_row) = source_check::table(sql, mapping.source(), step())?;
    if let Some(note) = old_row.note()
        && first
    {
        log::info!("{}: {note}", config.name.as_str());
    }
    Ok(table)
}

/// `known` is the pending repair if there is a recorded state.
fn ensure_publication(
    config: &ServiceConfig,
    mapping: &dyn Mapping,
    sql: &mut Sql,
    table: &SourceTable,
    known: Option<&mut Client>,
) -> Result<()> {
    let columns = source_check::published_columns(table, mapping.source());
    let tables = [WantedTable { table, columns: &columns }];
    let publication = &config.publication;
    let wanted = WantedPublication { publication, tables: &tables, widen: false };
    if publication::ensure(sql, &wanted, step())? == Ensured::Existing {
        return Ok(());
    }
    let (service, name) = (config.name.as_str(), &config.publication);
    let Some(client) = known else {
        log::info!("{service}: publication `{name}` created");
        return Ok(());
    };
    log::warn!(
        "{service}: publication `{name}` was missing, and was created again: what was written \
         without it was not streamed"
    );
    if config.gap_strategy == GapStrategy::Skip {
        return Ok(());
    }
    let reason = format!("publication `{name}` was dropped, and made again");
    debt::owe(client, (service, &config.slot), &reason, config.clickhouse.request_timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walsender_hears_from_us_three_times_within_its_patience() {
        let s = Duration::from_secs;
        assert_eq!(status_every(s(10), Some(s(60))), s(10));
        assert_eq!(status_every(s(10), Some(s(3))), s(1));
        assert_eq!(status_every(s(10), None), s(10));
    }
}
