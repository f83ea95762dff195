//! The tables of walhouse's own beside the target tables: made when they are missing, if that is
//! allowed.

use std::time::Instant;

use super::client::{Client, quote_bytes};
use super::tables::ensure_database;
use super::{adoptions, refused, repairs, state};
use crate::error::{Error, ErrorKind, Result};

type Ddl = fn(&Client) -> String;

const TABLES: [(&str, Ddl); 4] = [
    (state::STATE_TABLE, state::ddl),
    (repairs::REPAIRS_TABLE, repairs::ddl),
    (adoptions::ADOPTIONS_TABLE, adoptions::ddl),
    (refused::REFUSED_TABLE, refused::ddl),
];

/// One question, however many there are: it is asked at every reconnect.
pub fn ensure(client: &mut Client, create: bool, deadline: Instant) -> Result<()> {
    let names: Vec<String> = TABLES.iter().map(|(name, _)| quote_bytes(name.as_bytes())).collect();
    let sql = format!(
        "SELECT name FROM system.tables WHERE database = {} AND name IN ({})",
        quote_bytes(client.database().as_bytes()),
        names.join(", ")
    );
    let found = client.query(&sql, deadline)?;
    let is_there = |name: &str| found.contains(&vec![Some(name.to_owned())]);
    for (name, ddl) in TABLES.iter().filter(|(name, _)| !is_there(name)) {
        let ddl = ddl(client);
        if !create {
            let doing = format!("find table {}", client.qualified(name));
            return Err(Error::new(ErrorKind::Setup, doing)
                .because("it does not exist, and tables are not to be created")
                .hint(format!("Run: {ddl}")));
        }
        ensure_database(client, deadline)?;
        client.execute(&ddl, deadline)?;
    }
    Ok(())
}
