//! Our privileges in ClickHouse, for `walhouse check`. The trials leave nothing behind: statements
//! without rows try the privileges, and the trial table is always dropped.

use std::time::{Duration, Instant};

use super::client::{Client, quote_bytes, quote_name};
use super::insert_error::InsertError;
use super::tables::columns_ddl;
use crate::error::{Error, ErrorKind, Result};
use crate::rows::Target;

pub mod cluster;
pub mod judge;

/// How the names of trial tables begin.
const TRIAL_PREFIX: &str = "walhouse_check_";
/// The number of attempts to drop it, each with its own deadline.
const DROPS_MAX: u32 = 3;
const DROP_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClickHouseFacts {
    pub version: String,
    pub user: String,
    /// The setting `readonly` of the user.
    pub readonly: String,
    /// In ms since 1970.
    pub now_ms: i64,
    pub has_database: bool,
    /// Tables that a check has left behind when it was killed.
    pub leftovers: Vec<String>,
}

/// The server's answer about a privilege.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    Given,
    Denied,
    /// The server is too old to be asked.
    Unknown,
}

/// The outcome of the trial row.
#[derive(Debug)]
pub enum TrialRow {
    Taken,
    /// There was no table to try it with.
    NotMade(Error),
    Refused(Error),
    /// It could not be dropped: its name.
    Left(String, Error),
}

pub fn look(client: &mut Client, deadline: Instant) -> Result<ClickHouseFacts> {
    let version = client.ping(deadline)?;
    let database = quote_bytes(client.database().as_bytes());
    let rows = client.query(
        &format!(
            "SELECT currentUser(), toString(getSetting('readonly')), \
             toString(toUnixTimestamp64Milli(now64(3))), \
             toString((SELECT count() FROM system.databases WHERE name = {database}))"
        ),
        &[],
        deadline,
    )?;
    let row: Option<[Option<String>; 4]> =
        rows.into_iter().next().and_then(|row| row.try_into().ok());
    let facts = row.and_then(|[user, readonly, now_ms, databases]| {
        Some(ClickHouseFacts {
            version,
            user: user?,
            readonly: readonly?,
            now_ms: now_ms?.parse().ok()?,
            has_database: databases? != "0",
            leftovers: Vec::new(),
        })
    });
    let mut facts = facts.ok_or_else(|| {
        Error::new(ErrorKind::Protocol, "look at ClickHouse")
            .because("its answer is not what the query asks for")
    })?;
    // A check that runs right now still needs its own.
    let sql = format!(
        "SELECT name FROM system.tables WHERE database = {database} AND startsWith(name, {}) \
         AND metadata_modification_time < now() - INTERVAL 10 MINUTE",
        quote_bytes(TRIAL_PREFIX.as_bytes())
    );
    let left = client.query(&sql, &[], deadline)?;
    facts.leftovers = left.into_iter().flatten().flatten().collect();
    Ok(facts)
}

/// Whether our user has a privilege, such as `CREATE TABLE`, on a table or on all of our database.
pub fn grant(
    client: &mut Client,
    privilege: &str,
    table: Option<&str>,
    deadline: Instant,
) -> Result<Grant> {
    let on = match table {
        Some(table) => client.qualified(table),
        None => format!("{}.*", quote_name(client.database())),
    };
    grant_on(client, privilege, &on, deadline)
}

/// The same of anything, as GRANT writes it.
pub fn grant_on(
    client: &mut Client,
    privilege: &str,
    on: &str,
    deadline: Instant,
) -> Result<Grant> {
    let sql = format!("CHECK GRANT {privilege} ON {on}");
    match client.query(&sql, &[], deadline) {
        Ok(rows) => Ok(match rows.first().and_then(|row| row.first()?.as_deref()) {
            Some("1") => Grant::Given,
            Some("0") => Grant::Denied,
            _ => Grant::Unknown,
        }),
        // Older servers do not know the statement.
        Err(error) if error.kind() == ErrorKind::Setup => Ok(Grant::Unknown),
        Err(error) => Err(error),
    }
}

/// Tries to insert no row into these columns: the right to it and everything else but the row.
pub fn try_insert(
    client: &mut Client,
    table: &str,
    columns: &[&str],
    deadline: Instant,
) -> Result<()> {
    let names: Vec<String> = columns.iter().map(|name| quote_name(name)).collect();
    let (names, table) = (names.join(", "), client.qualified(table));
    // Zero rows selected from the table itself always have its types.
    client.execute(
        &format!("INSERT INTO {table} ({names}) SELECT {names} FROM {table} WHERE 0"),
        deadline,
    )
}

/// A name that nobody else uses.
pub fn trial_name() -> String {
    format!("{TRIAL_PREFIX}{:016x}", fastrand::u64(..))
}

/// Inserts `block` into a table called `name` that has the columns of the one that is there, or
/// that `like` would have; and drops it again. The right to drop it has to be known before.
pub fn try_block(
    client: &mut Client,
    name: &str,
    (like, is_there): (&Target, bool),
    columns: &[&str],
    block: &[u8],
    deadline: Instant,
) -> TrialRow {
    let table = client.qualified(name);
    // In memory, so that neither a path in ZooKeeper nor a disk of the real table is touched.
    let ddl = match is_there {
        true => {
            format!("CREATE TABLE {table} AS {} ENGINE = Memory", client.qualified(&like.table))
        }
        // Indices are the business of engines that keep rows.
        false => {
            format!("CREATE TABLE {table} ({}) ENGINE = Memory", columns_ddl(like).join(", "))
        }
    };
    let outcome = match client.execute(&ddl, deadline) {
        Err(error) => TrialRow::NotMade(error),
        Ok(()) => match client.insert(name, columns, &[("async_insert", "0")], block, deadline) {
            Ok(()) => TrialRow::Taken,
            Err(InsertError::Data(refusal)) => TrialRow::Refused(
                Error::new(ErrorKind::DataRefused, "insert a trial row").because(*refusal),
            ),
            Err(other) => TrialRow::Refused(other.into_error(name)),
        },
    };
    match drop_trial(client, name) {
        Ok(()) => outcome,
        Err(error) => TrialRow::Left(table, error),
    }
}

/// Also after a failed CREATE: possibly only its answer was lost.
fn drop_trial(client: &mut Client, name: &str) -> Result<()> {
    let sql = format!("DROP TABLE IF EXISTS {} SYNC", client.qualified(name));
    let mut tries = 1;
    loop {
        match client.execute(&sql, Instant::now() + DROP_TIMEOUT) {
            Err(error) if error.kind() == ErrorKind::Unreachable && tries < DROPS_MAX => tries += 1,
            outcome => return outcome,
        }
    }
}

/// The statement that makes room for a table as we make it, and keeps the one that is there.
pub fn set_aside(client: &Client, table: &str) -> String {
    let old = client.qualified(&format!("{table}_old"));
    format!("RENAME TABLE {} TO {old}", client.qualified(table))
}
