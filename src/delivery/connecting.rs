//! The parameters of connections to Postgres: names, options, deadlines, the known server.

use std::time::{Duration, Instant};

use crate::clickhouse::own::state::StateRow;
use crate::clickhouse::own::{adoptions, state};
use crate::clickhouse::{Client, tables};
use crate::config::ServiceConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::machines::lineage;
use crate::machines::recovery::Adopted;
use crate::postgres::connection::StartupOptions;
use crate::postgres::primary::KnownServer;
use crate::postgres::sql::{OUTPUT_SETTINGS, Texts};

/// A step against Postgres takes at most this long, in addition to the time to connect.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// The deadline of a step against Postgres.
pub fn step() -> Instant {
    Instant::now() + STEP_TIMEOUT
}

/// The name under which Postgres shows our sessions; it is how a stale walsender is known as ours.
pub fn application_name(config: &ServiceConfig) -> String {
    application_name_of(&config.slot)
}

/// Cut as Postgres cuts it, so that we search for the name that it shows.
pub fn application_name_of(slot: &str) -> String {
    const BYTES_MAX: usize = 63;
    let mut name = format!("walhouse/{slot}");
    // The name of a slot is ASCII, so any place is a boundary.
    name.truncate(name.floor_char_boundary(BYTES_MAX));
    name
}

/// Parameters of the replication connection.
pub fn startup_options(
    config: &ServiceConfig,
    application_name: &str,
    texts: Texts,
) -> StartupOptions {
    StartupOptions {
        application_name: application_name.to_owned(),
        replication: true,
        // The same as for ordinary SQL, so that a value reads the same streamed and read again.
        options: OUTPUT_SETTINGS
            .iter()
            .chain(&[("client_encoding", texts.client_encoding())])
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        receive_timeout: config.receive_timeout,
    }
}

/// The server that ClickHouse's rows came from last; `None` before the first stream.
pub fn known(config: &ServiceConfig, client: &mut Client) -> Result<Option<KnownServer>> {
    let deadline = || Instant::now() + config.clickhouse.request_timeout;
    let tables = [state::TABLE.name, adoptions::TABLE.name];
    let missing = tables::missing(client, &tables, deadline())?;
    if missing.contains(&state::TABLE.name) {
        return Ok(None);
    }
    let row = state::TABLE.read(client, config.name.as_str(), &config.slot, deadline())?;
    let Some(row) = row else { return Ok(None) };
    // An operator may have named another one since, on whatever timeline.
    if missing.is_empty()
        && let Some(adopted) = adoptions::read(client, &row, deadline())?
    {
        let Adopted { system_identifier, timeline, .. } = adopted;
        return Ok(Some(KnownServer { system_identifier, timeline }));
    }
    let state = in_numbers(&row)?;
    Ok(Some(KnownServer { system_identifier: state.system_identifier, timeline: state.timeline }))
}

/// The numbers of a state row.
pub fn in_numbers(row: &StateRow) -> Result<lineage::LineageState> {
    Ok(lineage::LineageState {
        system_identifier: row.system_identifier.parse().map_err(|_| {
            Error::new(ErrorKind::Protocol, format!("read the state of slot `{}`", row.slot))
                .because("its system identifier is not a number")
        })?,
        timeline: row.timeline,
        began: row.began,
        confirmed: row.confirmed,
        upper_lsn: row.upper_lsn,
        shift: row.version_shift,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_application_name_is_as_long_as_postgres_shows_it() {
        assert_eq!(application_name_of("runs"), "walhouse/runs");
        let shown = application_name_of(&"x".repeat(63));
        assert_eq!(shown, format!("walhouse/{}", "x".repeat(54)));
    }
}
