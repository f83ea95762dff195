//! `walhouse_adoptions`: the clusters that operators have named to be followed.
//!
//! One row per service and slot counts: the latest. It holds for the very state that it was said
//! of: once the state has moved on, by following the named cluster or another, it says nothing any
//! more, so a name is good for one start over only.

use std::time::Instant;

use super::journal::Column::{Of, Time};
use super::journal::Table;
use super::state::StateRow;
use crate::clickhouse::Client;
use crate::error::Result;
use crate::machines::recovery::Adopted;

/// Between the system identifier and the oid of the database, in a table that was made before the
/// latter was known.
const DATABASE: &str = "/";

#[derive(Debug, Default)]
pub struct AdoptionRow {
    service: String,
    slot: String,
    /// The cluster, and the database where that is known.
    named: String,
    timeline: u32,
    state_revision: u64,
}

pub const TABLE: Table<AdoptionRow> = Table {
    name: "walhouse_adoptions",
    what: "what was adopted",
    columns: &[
        Of("service", "String", |row| &mut row.service),
        Of("slot", "String", |row| &mut row.slot),
        Of("system_identifier", "String COMMENT 'and the oid of the database'", |row| {
            &mut row.named
        }),
        Of("timeline", "UInt32", |row| &mut row.timeline),
        Of(
            "state_revision",
            "UInt64 COMMENT 'the revision in walhouse_state that it was said of'",
            |row| &mut row.state_revision,
        ),
        Time("adopted_at"),
    ],
    key: &["service", "slot", "state_revision"],
    version: "adopted_at",
};

/// What was adopted for this state; `None` if nothing was.
pub fn read(client: &mut Client, state: &StateRow, deadline: Instant) -> Result<Option<Adopted>> {
    let key = [state.service.as_str(), &state.slot, &state.revision.to_string()];
    let Some(row) = TABLE.latest(client, &key, deadline)? else { return Ok(None) };
    adopted(&row).map(Some).ok_or_else(|| TABLE.malformed(client, TABLE.what))
}

fn adopted(row: &AdoptionRow) -> Option<Adopted> {
    let (system_identifier, database) = match row.named.split_once(DATABASE) {
        Some((system_identifier, oid)) => (system_identifier, Some(oid.parse().ok()?)),
        None => (row.named.as_str(), None),
    };
    let system_identifier = system_identifier.parse().ok()?;
    Some(Adopted { system_identifier, timeline: row.timeline, database })
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
    let row = AdoptionRow {
        service: state.service.clone(),
        slot: state.slot.clone(),
        named: named(adopted),
        timeline: adopted.timeline,
        state_revision: state.revision,
    };
    TABLE.insert(client, vec![row], deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_another_shape_is_refused() {
        let row = |named: &str| AdoptionRow {
            named: named.to_owned(),
            timeline: 3,
            ..AdoptionRow::default()
        };
        for database in [None, Some(u32::MAX)] {
            let of = Adopted { system_identifier: u64::MAX, timeline: 3, database };
            assert_eq!(adopted(&row(&named(&of))), Some(of));
        }
        for other in ["7/x", "x", ""] {
            assert_eq!(adopted(&row(other)), None, "{other}");
        }
    }
}
