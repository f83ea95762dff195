//! One row of the source.

use std::sync::Arc;

use super::plan::RelationPlan;
use super::source::Source;
use crate::wal::{Datum, Oid, Tuple, row_key};

/// One row of the source: a datum for each of [`Source::columns`].
#[derive(Debug)]
pub struct Row<'a> {
    pub values: Vec<Datum<'a>>,
    /// The type of each value, for the formats that depend on it.
    pub types: Vec<Option<Oid>>,
}

impl<'a> Row<'a> {
    pub fn of(source: &Source) -> Row<'a> {
        Row {
            values: vec![Datum::Null; source.columns.len()],
            types: vec![None; source.columns.len()],
        }
    }

    /// The key of the row for people.
    pub fn key_text(&self, source: &Source) -> Vec<u8> {
        let text = |&place: &usize| source.columns[place].text(self.values[place]);
        row_key::one_or_array(source.key.iter().map(text))
    }

    pub fn clear(&mut self) {
        self.values.fill(Datum::Null);
    }

    /// Only the values in the tuple, nothing of the row's earlier ones.
    pub fn load(&mut self, plan: &RelationPlan, tuple: &Tuple<'a>) {
        if !plan.is_whole || plan.check(tuple).is_err() {
            self.clear();
        }
        self.types.copy_from_slice(&plan.types);
        let values = &mut self.values;
        tuple.each(|column, datum| {
            if let Some(&Some(place)) = plan.places.get(column) {
                values[place] = datum;
            }
        });
        for place in plan.unknown.iter() {
            self.values[place] = Datum::Unchanged;
        }
    }
}

/// Some values of one row in the text output format, parsed once for all users; `None` is NULL.
pub type TextValues = Arc<[Option<Vec<u8>>]>;
