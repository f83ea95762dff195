//! `table_watch/<service>`: checks whether the tables in ClickHouse are still those that the
//! session began with. If one was dropped, replaced or altered, the session ends: the next one
//! creates it again, uses the columns that exist, and owes a repair for what is gone. A service
//! without traffic would not notice otherwise.

use std::time::{Duration, Instant};

use crate::clickhouse::tables::{self, TablesLook};
use crate::clickhouse::{self, Client};
use crate::delivery::alongside::{Alongside, StopLevel};
use crate::delivery::session_state::SessionState;
use crate::error::{Error, ErrorKind, Result};

const LOOK_EVERY: Duration = Duration::from_secs(15);
/// A session that ends waits for it.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

pub struct TableWatch<'a> {
    pub service: &'a str,
    pub clickhouse: &'a clickhouse::ClickHouseParams,
    /// As the session found them.
    pub look: &'a TablesLook,
    pub shared: &'a SessionState,
}

/// Runs until the session ends, or has to.
pub fn run(with: &TableWatch<'_>) -> Result<()> {
    let mut client = Client::connect(with.clickhouse)?;
    // The second check in a row: the first may have come between a DROP and its CREATE.
    let mut other_before: Option<TablesLook> = None;
    while with.shared.rest(Instant::now() + LOOK_EVERY) == StopLevel::Running {
        let names: Vec<&str> = with.look.iter().map(|(name, _)| name.as_str()).collect();
        let found = match tables::look(&mut client, &names, Instant::now() + LOOK_TIMEOUT) {
            Ok(found) => found,
            Err(error) => {
                log::debug!("{}: {error}", with.service);
                continue;
            }
        };
        if found == *with.look {
            other_before = None;
        } else if other_before.as_ref() == Some(&found) {
            return Err(changed(with.look, &found));
        } else {
            other_before = Some(found);
        }
    }
    Ok(())
}

fn changed(before: &TablesLook, now: &TablesLook) -> Error {
    let is_other = |(name, look): &&(String, String)| {
        !now.iter().any(|(found, now)| found == name && now == look)
    };
    let names: Vec<&str> = before.iter().filter(is_other).map(|(name, _)| name.as_str()).collect();
    Error::new(ErrorKind::Setup, "look at the tables in ClickHouse")
        .because(format!("dropped, replaced or altered: `{}`", names.join("`, `")))
        .hint("The service starts again with the tables and columns that it finds.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_named() {
        let look = |tables: &[(&str, &str)]| -> TablesLook {
            tables.iter().map(|(name, look)| ((*name).to_owned(), (*look).to_owned())).collect()
        };
        let before = look(&[("a", "1: x"), ("b", "2: x"), ("c", "3: x"), ("d", "4: x")]);
        let now = look(&[("a", "1: x"), ("b", "9: x"), ("c", "3: y")]);
        let error = changed(&before, &now).to_string();
        assert!(error.ends_with("dropped, replaced or altered: `b`, `c`, `d`"), "{error}");
    }
}
