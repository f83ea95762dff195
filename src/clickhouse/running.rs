//! Inserts that are still running on the server although whoever sent them has gone.

use std::time::{Duration, Instant};

use super::client::{Client, QUERY_ID_PREFIX, quote_bytes};
use crate::error::{Error, ErrorKind, Result};

/// How many inserts of ours into these tables have been running for longer than this. Each server
/// tells of its own only: behind a balancer the others are not seen.
pub fn inserts_older_than(
    client: &mut Client,
    tables: &[&str],
    age: Duration,
    deadline: Instant,
) -> Result<u64> {
    let tables: Vec<String> = tables.iter().map(|table| quote_bytes(table.as_bytes())).collect();
    let sql = format!(
        "SELECT toString(count()) FROM system.processes WHERE query_kind = 'Insert' AND \
         startsWith(query_id, {}) AND multiSearchAny(query, [{}]) AND elapsed > {:.3}",
        quote_bytes(QUERY_ID_PREFIX.as_bytes()),
        tables.join(", "),
        age.as_secs_f64()
    );
    let rows = client.query(&sql, deadline)?;
    let count = rows.first().and_then(|row| row.first()?.as_ref()?.parse().ok());
    count.ok_or_else(|| {
        Error::new(ErrorKind::Protocol, "count running inserts")
            .because("the answer does not hold a number")
    })
}
