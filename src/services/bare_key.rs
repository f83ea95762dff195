//! A row made of a sorting key alone.

use super::row::Row;
use super::source::Source;
use crate::wal::{Datum, PgTime};

/// A row made of a sorting key alone: what a tombstone needs when nothing else is known. Kept
/// small: a batch may look up a hundred thousand.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BareKey {
    /// Id, organization, project and environment, end to end.
    texts: Box<[u8]>,
    ends: [usize; 3],
    created_at: [u8; 8],
}

impl BareKey {
    pub fn new(
        id: &[u8],
        organization: &[u8],
        project: &[u8],
        environment: &[u8],
        created_at_millis: i64,
    ) -> BareKey {
        let since_2000 = PgTime::from_unix_millis(created_at_millis);
        let ends = [id.len(), id.len() + organization.len()];
        BareKey {
            texts: [id, organization, project, environment].concat().into(),
            ends: [ends[0], ends[1], ends[1] + project.len()],
            created_at: since_2000.0.to_be_bytes(),
        }
    }

    pub fn id(&self) -> &[u8] {
        &self.texts[..self.ends[0]]
    }

    pub fn row(&self, source: &Source) -> Row<'_> {
        let mut row = Row::of(source);
        let (key, [id, organization, project]) = (&source.key, self.ends);
        row.values[key.id] = Datum::Text(self.id());
        row.values[key.organization] = Datum::Text(&self.texts[id..organization]);
        row.values[key.project] = Datum::Text(&self.texts[organization..project]);
        row.values[key.environment] = Datum::Text(&self.texts[project..]);
        row.values[key.created_at] = Datum::Binary(&self.created_at);
        row
    }
}
