//! The partitions of a target table: what a question about all of it is cut into. Parts are merged
//! and vanish; a partition stays, and so does what was said of it.

use std::time::Instant;

use super::client::{Client, quote_bytes};
use crate::error::{Error, ErrorKind, Result};

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
    let rows = client.query(&sql, deadline)?.into_iter();
    rows.map(|row| {
        let [id, rows] = <[Option<String>; 2]>::try_from(row).ok()?;
        Some(Partition { id: id?, rows: rows?.parse().ok()? })
    })
    .collect::<Option<_>>()
    .ok_or_else(|| {
        Error::new(ErrorKind::Protocol, format!("list the partitions of `{table}`"))
            .because("the answer does not hold what was asked for")
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
