//! `walhouse_adoptions`: the clusters that operators have named to be followed.
//!
//! One row per service and slot counts: the latest. It holds for the very state that it was said
//! of: once the state has moved on, by following the named cluster or another, it says nothing any
//! more, so a name is good for one start over only.

use std::time::Instant;

use super::client::{Client, quote_bytes};
use super::cluster::{create_table, replacing};
use super::own_tables;
use super::state::StateRow;
use crate::error::Result;
use crate::machines::recovery::Adopted;

pub const ADOPTIONS_TABLE: &str = "walhouse_adoptions";
/// Between the system identifier and the oid of the database, in a table that was made before the
/// latter was known.
const DATABASE: &str = "/";

pub(super) fn ddl(client: &Client) -> String {
    format!(
        "{} (
    service String,
    slot String,
    system_identifier String COMMENT 'and the oid of the database',
    timeline UInt32,
    state_revision UInt64 COMMENT 'the revision in walhouse_state that it was said of',
    adopted_at DateTime64(3) DEFAULT now64(3)
) ENGINE = {}
ORDER BY (service, slot, state_revision)",
        create_table(client, ADOPTIONS_TABLE),
        replacing(client, "adopted_at")
    )
}

/// What was said of this state; `None` if nothing was.
pub fn read(client: &mut Client, state: &StateRow, deadline: Instant) -> Result<Option<Adopted>> {
    let sql = format!(
        "SELECT system_identifier, timeline FROM {} WHERE service = {} AND slot = {} AND \
         state_revision = {} ORDER BY adopted_at DESC LIMIT 1",
        client.qualified(ADOPTIONS_TABLE),
        quote_bytes(state.service.as_bytes()),
        quote_bytes(state.slot.as_bytes()),
        state.revision
    );
    let rows = client.query(&sql, deadline)?;
    let Some(row) = rows.first() else { return Ok(None) };
    parse(row)
        .map(Some)
        .ok_or_else(|| own_tables::malformed(client, ADOPTIONS_TABLE, "what was adopted"))
}

fn parse(row: &[Option<String>]) -> Option<Adopted> {
    let [named, timeline] = row else { return None };
    let (system_identifier, database) = match named.as_ref()?.split_once(DATABASE) {
        Some((system_identifier, oid)) => (system_identifier, Some(oid.parse().ok()?)),
        None => (named.as_deref()?, None),
    };
    Some(Adopted {
        system_identifier: system_identifier.parse().ok()?,
        timeline: timeline.as_ref()?.parse().ok()?,
        database,
    })
}

fn named(adopted: &Adopted) -> String {
    match adopted.database {
        Some(oid) => format!("{}{DATABASE}{oid}", adopted.system_identifier),
        None => adopted.system_identifier.to_string(),
    }
}

/// Says it of this state, and waits until ClickHouse has it.
pub fn write(
    client: &mut Client,
    state: &StateRow,
    adopted: &Adopted,
    deadline: Instant,
) -> Result<()> {
    const COLUMNS: [&str; 5] =
        ["service", "slot", "system_identifier", "timeline", "state_revision"];
    let values = [
        state.service.clone(),
        state.slot.clone(),
        named(adopted),
        adopted.timeline.to_string(),
        state.revision.to_string(),
    ];
    own_tables::insert(
        client,
        ADOPTIONS_TABLE,
        &COLUMNS,
        &[values.map(String::into_bytes).to_vec()],
        deadline,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_another_shape_is_refused() {
        let row = |values: [&str; 2]| values.map(|value| Some(value.to_owned()));
        for database in [None, Some(u32::MAX)] {
            let adopted = Adopted { system_identifier: u64::MAX, timeline: 3, database };
            assert_eq!(parse(&row([&named(&adopted), "3"])), Some(adopted));
        }
        assert_eq!(parse(&row(["7/x", "3"])), None);
        assert_eq!(parse(&row(["7", "-1"])), None);
        assert_eq!(parse(&[None, None]), None);
        assert_eq!(parse(&[]), None);
    }
}
