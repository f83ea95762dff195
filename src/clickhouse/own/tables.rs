//! All tables of walhouse's own: made when they are missing, if that is allowed.

use std::time::Instant;

use super::{adoptions, backfills, databases, refused, repairs, sources, state};
use crate::clickhouse::client::Client;
use crate::clickhouse::cluster;
use crate::clickhouse::tables::{ensure_database, missing};
use crate::error::{Error, ErrorKind, Result};

type Ddl = fn(&Client) -> String;

const TABLES: [(&str, Ddl); 7] = [
    (state::TABLE.name, |client| state::TABLE.ddl(client)),
    (databases::TABLE.name, |client| databases::TABLE.ddl(client)),
    (sources::TABLE.name, |client| sources::TABLE.ddl(client)),
    (repairs::TABLE.name, |client| repairs::TABLE.ddl(client)),
    (backfills::TABLE.name, |client| backfills::TABLE.ddl(client)),
    (adoptions::TABLE.name, |client| adoptions::TABLE.ddl(client)),
    (refused::TABLE.name, |client| refused::TABLE.ddl(client)),
];

/// One query for all of them, since it runs at every reconnect.
pub fn ensure(client: &mut Client, create: bool, deadline: Instant) -> Result<()> {
    let missing = missing(client, &TABLES.map(|(name, _)| name), deadline)?;
    for (name, ddl) in TABLES.iter().filter(|(name, _)| missing.contains(name)) {
        let ddl = ddl(client);
        if !create {
            return Err(absent(client, name, &ddl));
        }
        ensure_database(client, deadline)?;
        cluster::create(client, &ddl, deadline)?;
    }
    Ok(())
}

pub fn names() -> [&'static str; 7] {
    TABLES.map(|(name, _)| name)
}

/// Those that are missing, for callers that only read: an older version did not create all of them.
pub fn absent_names(client: &mut Client, deadline: Instant) -> Result<Vec<&'static str>> {
    missing(client, &names(), deadline)
}

/// The error of [`ensure`] for each of these, if none may be created.
pub fn absences(client: &Client, missing: &[&str]) -> Vec<Error> {
    let absences = TABLES.iter().filter(|(name, _)| missing.contains(name));
    absences.map(|(name, ddl)| absent(client, name, &ddl(client))).collect()
}

fn absent(client: &Client, name: &str, ddl: &str) -> Error {
    Error::new(ErrorKind::Setup, format!("find table {}", client.qualified(name)))
        .because("it does not exist, and REPLICATION_CREATE_TABLES=0 forbids creating it")
        .hint(format!("Run: {ddl}"))
}
