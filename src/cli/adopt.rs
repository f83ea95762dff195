//! `walhouse adopt <service>`: names the cluster, and the database in it, that the service is to
//! follow from now on.
//!
//! It only records the name, for the state that is recorded now; the next session that finds that
//! very database, cluster and timeline starts over on it. So nothing happens to another one that
//! the URL may lead to by then, and a service that streams again meanwhile is not led away.

use std::time::{Duration, Instant};

use crate::clickhouse::own::{self, adoptions, databases, state};
use crate::clickhouse::{Client, tables};
use crate::config::ServiceConfig;
use crate::error::Result;
use crate::machines::recovery::Adopted;
use crate::postgres::primary::Primary;
use crate::postgres::server::{self, Server};

const SQL_TIMEOUT: Duration = Duration::from_secs(30);

/// Reports what was found and done, in sentences for the operator.
pub fn adopt(config: &ServiceConfig) -> Result<String> {
    let service = config.name.as_str();
    let deadline = || Instant::now() + config.clickhouse.request_timeout;
    let mut client = Client::connect(&config.clickhouse)?;
    client.ping(deadline())?;
    // Where nothing was recorded nothing is made either.
    let is_new = !tables::missing(&mut client, &[state::TABLE.name], deadline())?.is_empty();
    let state = match is_new {
        true => None,
        false => state::TABLE.read(&mut client, service, &config.slot, deadline())?,
    };
    let Some(state) = state else {
        return Ok(format!(
            "{service}: nothing to adopt: slot `{}` has no recorded state yet; just start \
             walhouse.",
            config.slot
        ));
    };
    let sql_deadline = Instant::now() + SQL_TIMEOUT;
    let (_, mut sql) =
        Primary::find(&config.postgres, "walhouse/adopt", None, sql_deadline, || Ok(()))?;
    let server = Server::inspect(&mut sql, sql_deadline)?;
    let database = server::database(&mut sql, sql_deadline)?;
    let (system_identifier, timeline) = (server.system_identifier, server.timeline);
    let found = Adopted { system_identifier, timeline, database: Some(database.oid) };
    own::tables::ensure(&mut client, config.create_tables, deadline())?;
    let of = databases::TABLE.read(&mut client, service, &config.slot, deadline())?;
    let is_same_database = of.as_ref().is_none_or(|of| of.oid == database.oid);
    if (system_identifier.to_string().as_str(), timeline)
        == (state.system_identifier.as_str(), state.timeline)
        && is_same_database
    {
        return Ok(format!(
            "{service}: nothing to adopt: database `{}` of cluster {system_identifier} on timeline \
             {timeline} is the one it follows.",
            database.name
        ));
    }
    adoptions::write(&mut client, &state, &found, deadline())?;
    Ok(format!(
        "{service}: adopted database `{}` of cluster {system_identifier} on timeline {timeline}, \
         instead of {}cluster {} on {}.\nStart walhouse now: the whole table is then compared, and \
         ClickHouse made equal to it; rows that it does not have are marked as deleted. If the \
         service was still streaming, stop it and run this again.",
        database.name,
        of.map_or(String::new(), |of| format!("`{}` of ", of.name)),
        state.system_identifier,
        state.timeline
    ))
}
