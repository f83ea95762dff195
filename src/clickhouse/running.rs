//! Inserts that are still running on the server although their client is gone.

use std::time::{Duration, Instant};

use super::client::{Client, quote_bytes};
use super::connection::QUERY_ID_PREFIX;
use crate::error::{Error, ErrorKind, Result};

/// A host that is left is often one that does not answer.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(5);

/// Our inserts into some tables, on all hosts.
#[derive(Debug, Default)]
pub struct Running {
    pub count: u64,
    /// Hosts that did not answer: what runs there is not known.
    pub unseen: Vec<String>,
}

/// Those that have been running for longer than this. Each server shows only its own: behind a load
/// balancer the others are not visible.
pub fn inserts_older_than(
    client: &mut Client,
    tables: &[&str],
    age: Duration,
    deadline: Instant,
) -> Result<Running> {
    let count = here(client, tables, age, deadline)?;
    let mut running = Running { count, unseen: Vec::new() };
    let current = client.endpoint().to_owned();
    let params = client.params().clone();
    for endpoint in params.hosts.all().iter().filter(|endpoint| **endpoint != current) {
        let found = Client::connect(&params.at(endpoint))
            .and_then(|mut other| here(&mut other, tables, age, deadline.min(soon())));
        match found {
            Ok(found) => running.count += found,
            Err(error) => {
                log::debug!("clickhouse: inserts at `{endpoint}` cannot be seen: {error}");
                running.unseen.push(endpoint.clone());
            }
        }
    }
    Ok(running)
}

fn soon() -> Instant {
    Instant::now() + OTHERS_TIMEOUT
}

fn here(client: &mut Client, tables: &[&str], age: Duration, deadline: Instant) -> Result<u64> {
    let tables: Vec<String> = tables.iter().map(|table| quote_bytes(table.as_bytes())).collect();
    let sql = format!(
        "SELECT toString(count()) FROM system.processes WHERE query_kind = 'Insert' AND \
         startsWith(query_id, {}) AND multiSearchAny(query, [{}]) AND elapsed > {:.3}",
        quote_bytes(QUERY_ID_PREFIX.as_bytes()),
        tables.join(", "),
        age.as_secs_f64()
    );
    let rows = client.query(&sql, &[], deadline)?;
    let count = rows.first().and_then(|row| row.first()?.as_ref()?.parse().ok());
    count.ok_or_else(|| {
        Error::new(ErrorKind::Protocol, "count running inserts")
            .because("the answer does not hold a number")
    })
}
