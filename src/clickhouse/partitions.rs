//! The partitions of a target table: the pieces of a query over all of it. Parts are merged and
//! vanish; a partition stays, and so does an answer about it.

use std::time::{Duration, Instant};

use super::answer::Foreign;
use super::client::{Client, quote_bytes};
use super::refusal::Refusal;
use crate::error::{Error, ErrorKind, Result};
use crate::machines::portions::TooMuch;

/// A server that answers so soon is there, and the question before was too large for it.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// TOO_MANY_ROWS, TIMEOUT_EXCEEDED, TOO_SLOW and TOO_MANY_BYTES: limits of a user's profile.
const TOO_MUCH_READ: [u32; 4] = [158, 159, 160, 307];
const MEMORY_LIMIT_EXCEEDED: u32 = 241;
/// A server that says no to fewer ids than these does not do so for the length of the statement.
const IDS_OF_LONG_STATEMENT: usize = 5_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    pub id: String,
    pub rows: u64,
}

/// Answered from what ClickHouse knows of each part: no column is read.
pub fn partitions(client: &mut Client, table: &str, deadline: Instant) -> Result<Vec<Partition>> {
    let sql = format!(
        "SELECT _partition_id, toString(count()) FROM {} GROUP BY _partition_id \
         ORDER BY _partition_id",
        client.qualified(table)
    );
    let rows = client.query(&sql, &[table], deadline)?.into_iter();
    rows.map(|row| {
        let [id, rows] = <[Option<String>; 2]>::try_from(row).ok()?;
        Some(Partition { id: id?, rows: rows?.parse().ok()? })
    })
    .collect::<Option<_>>()
    .ok_or_else(|| {
        Error::new(ErrorKind::Protocol, format!("list the partitions of `{table}`"))
            .because("the answer does not hold what the query asks for")
    })
}

/// The condition that a row is in one of them; of none of them: that it is in the table.
pub fn is_in<'p>(partitions: impl IntoIterator<Item = &'p str>) -> String {
    let ids: Vec<String> = partitions.into_iter().map(|id| quote_bytes(id.as_bytes())).collect();
    match ids.as_slice() {
        [] => "true".to_owned(),
        [only] => format!("_partition_id = {only}"),
        several => format!("_partition_id IN ({})", several.join(", ")),
    }
}

/// Whether a question about so many ids was too much for a server that is well.
pub fn too_much(client: &mut Client, error: &Error, ids: usize, is_late: bool) -> Option<TooMuch> {
    let refusal = error.cause().and_then(|cause| cause.downcast_ref::<Refusal>());
    match refusal.map(|refusal| refusal.code) {
        Some(code) if TOO_MUCH_READ.contains(&code) => return Some(TooMuch::Scan),
        Some(MEMORY_LIMIT_EXCEEDED) => return Some(TooMuch::Statement),
        // Only if the statement was too long: otherwise a table or a privilege is missing.
        Some(_) if ids <= IDS_OF_LONG_STATEMENT => return None,
        Some(_) => {}
        None if error.kind() == ErrorKind::Unreachable => {}
        None => return None,
    }
    // A proxy that waits no longer than it does is late before we are.
    let foreign = error.cause().and_then(|cause| cause.downcast_ref::<Foreign>());
    let is_late = is_late || foreign.is_some_and(|foreign| foreign.is_of_time());
    let why = if is_late { TooMuch::Scan } else { TooMuch::Statement };
    client.ping(Instant::now() + GREETING_TIMEOUT).is_ok().then_some(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_named_by_their_ids() {
        assert_eq!(is_in([]), "true");
        assert_eq!(is_in(["202611"]), "_partition_id = '202611'");
        assert_eq!(is_in(["a'b", "all"]), "_partition_id IN ('a\\'b', 'all')");
    }
}
