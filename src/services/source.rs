//! The source table of a service, and how a relation's columns meet it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::wal::value::oid;
use crate::wal::{Datum, DecodeError, Oid, Relation, Tuple};

/// A table of Postgres and the columns of it that a mapping reads.
#[derive(Debug)]
pub struct Source {
    pub schema: &'static str,
    pub table: &'static str,
    pub columns: &'static [SourceColumn],
    /// That trigger.dev has and no target table takes.
    pub unread: &'static [&'static str],
    pub key: KeyColumns,
}

#[derive(Debug)]
pub struct SourceColumn {
    pub name: &'static str,
    pub kind: SourceKind,
    /// Older databases do not have it; it then reads as null.
    pub optional: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    Text,
    Int,
    Float,
    Bool,
    Timestamp,
    Json,
    TextArray,
}

/// Where the columns stand that identify a row, as indexes into [`Source::columns`].
#[derive(Debug, Clone, Copy)]
pub struct KeyColumns {
    pub id: usize,
    pub organization: usize,
    pub project: usize,
    pub environment: usize,
    pub created_at: usize,
}

impl KeyColumns {
    /// The columns that, beside the id, make the sorting key of the target table.
    pub fn sorting(&self) -> [usize; 4] {
        [self.organization, self.project, self.environment, self.created_at]
    }
}

impl SourceColumn {
    pub const fn new(name: &'static str, kind: SourceKind) -> SourceColumn {
        SourceColumn { name, kind, optional: false }
    }

    pub const fn optional(name: &'static str, kind: SourceKind) -> SourceColumn {
        SourceColumn { name, kind, optional: true }
    }
}

impl SourceKind {
    /// A type of Postgres that is accepted.
    pub fn sql(self) -> &'static str {
        match self {
            SourceKind::Text => "text",
            SourceKind::Int => "integer",
            SourceKind::Float => "double precision",
            SourceKind::Bool => "boolean",
            SourceKind::Timestamp => "timestamp(3)",
            SourceKind::Json => "jsonb",
            SourceKind::TextArray => "text[]",
        }
    }

    /// Of a type that reads as this built-in one, see [`Types`].
    pub fn accepts(self, reads_as: Oid) -> bool {
        let is = |oids: &[Oid]| oids.contains(&reads_as);
        match self {
            SourceKind::Text => is(&[oid::TEXT, oid::VARCHAR, oid::BPCHAR]),
            SourceKind::Int => is(&[oid::INT2, oid::INT4, oid::INT8]),
            SourceKind::Float => is(&[oid::FLOAT4, oid::FLOAT8]),
            SourceKind::Bool => is(&[oid::BOOL]),
            SourceKind::Timestamp => is(&[oid::TIMESTAMP, oid::TIMESTAMPTZ]),
            SourceKind::Json => is(&[oid::JSON, oid::JSONB]),
            SourceKind::TextArray => is(&[oid::TEXT_ARRAY, oid::VARCHAR_ARRAY]),
        }
    }
}

/// What a user's own types are underneath: for each, the built-in type whose values have the same
/// form on the wire. A domain reads as what it is over, an enum and `citext` as text, an array of
/// either as an array of text. What reads as none (a composite, a range) is not here: its binary
/// form is known to nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Types(HashMap<Oid, Oid>);

impl Types {
    pub fn reads_as(&self, type_oid: Oid) -> Option<Oid> {
        match type_oid < oid::FIRST_USER {
            true => Some(type_oid),
            false => self.0.get(&type_oid).copied(),
        }
    }
}

impl FromIterator<(Oid, Oid)> for Types {
    fn from_iter<I: IntoIterator<Item = (Oid, Oid)>>(types: I) -> Types {
        Types(types.into_iter().filter(|(type_oid, _)| oid::FIRST_USER <= *type_oid).collect())
    }
}

#[cfg(test)]
impl SourceKind {
    /// One of the types that are accepted.
    pub fn a_type(self) -> Oid {
        match self {
            SourceKind::Text => oid::TEXT,
            SourceKind::Int => oid::INT4,
            SourceKind::Float => oid::FLOAT8,
            SourceKind::Bool => oid::BOOL,
            SourceKind::Timestamp => oid::TIMESTAMP,
            SourceKind::Json => oid::JSONB,
            SourceKind::TextArray => oid::TEXT_ARRAY,
        }
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SourceKind::Text => "text or an enum",
            SourceKind::Int => "integer",
            SourceKind::Float => "double precision",
            SourceKind::Bool => "boolean",
            SourceKind::Timestamp => "timestamp",
            SourceKind::Json => "jsonb",
            SourceKind::TextArray => "text[]",
        })
    }
}

/// Names the columns of a source and their places, in one list.
macro_rules! source_columns {
    ($columns:ident, $($make:ident $place:ident $name:literal $kind:ident,)*) => {
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "names of places")]
        enum Place { $($place,)* }
        mod place {
            $(pub(super) const $place: usize = super::Place::$place as usize;)*
        }
        static $columns: &[$crate::services::source::SourceColumn] = &[
            $($crate::services::source::SourceColumn::$make(
                $name,
                $crate::services::source::SourceKind::$kind,
            ),)*
        ];
    };
}
pub(super) use source_columns;

/// How the columns of one version of the relation stand to the columns of the source.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// For each column of the relation: its place in [`Source::columns`].
    places: Vec<Option<usize>>,
    /// For each column of the source: the built-in type that its own reads as, where the relation
    /// has it.
    types: Vec<Option<Oid>>,
    /// Columns of the source that this version of the relation does not have as they are now.
    unknown: Places,
    /// Its rows have a value for each column of the source.
    is_whole: bool,
    /// The column of the relation that has the key.
    id_column: usize,
}

/// The relation does not have what the mapping needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanError {
    MissingColumn { relation: String, column: &'static str },
    WrongType { relation: String, column: &'static str, expected: SourceKind, got: Oid },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::MissingColumn { relation, column } => {
                write!(f, "relation {relation} has no column `{column}`")
            }
            PlanError::WrongType { relation, column, expected, got } => {
                write!(
                    f,
                    "column `{column}` of relation {relation}: expected {expected}, \
                     got type oid {}",
                    got.0
                )
            }
        }
    }
}

impl std::error::Error for PlanError {}

impl Plan {
    /// For a relation that must have every column, each of its type.
    pub fn new(source: &Source, relation: &Relation, user: &Types) -> Result<Plan, PlanError> {
        let (plan, refusal) = Plan::match_up(source, relation, user);
        refusal.map_or(Ok(plan), Err)
    }

    /// For a version of the relation that is past: what its rows do not have is still to be read
    /// from the table as it is now. Only the key it must have.
    pub fn of_the_past(
        source: &Source,
        relation: &Relation,
        user: &Types,
    ) -> Result<Plan, PlanError> {
        match Plan::match_up(source, relation, user) {
            (plan, Some(refusal)) if plan.unknown.has(source.key.id) => Err(refusal),
            (plan, _) => Ok(plan),
        }
    }

    /// The plan, and the first reason why the relation is not what it should be.
    fn match_up(source: &Source, relation: &Relation, user: &Types) -> (Plan, Option<PlanError>) {
        let named = || format!("\"{}\".\"{}\"", relation.namespace, relation.name);
        let (mut unknown, mut refusal) = (Places::default(), None);
        let mut types = vec![None; source.columns.len()];
        let mut places = Vec::with_capacity(relation.columns.len());
        for column in &relation.columns {
            let mut place = source.columns.iter().position(|wanted| wanted.name == column.name);
            if let Some(at) = place {
                let wanted = &source.columns[at];
                let reads_as = user.reads_as(column.type_oid);
                if reads_as.is_some_and(|reads_as| wanted.kind.accepts(reads_as)) {
                    types[at] = reads_as;
                } else {
                    refusal.get_or_insert_with(|| PlanError::WrongType {
                        relation: named(),
                        column: wanted.name,
                        expected: wanted.kind,
                        got: column.type_oid,
                    });
                    unknown.add(at);
                    place = None;
                }
            }
            places.push(place);
        }
        for (at, (wanted, found)) in source.columns.iter().zip(&types).enumerate() {
            if found.is_none() && !wanted.optional && !unknown.has(at) {
                refusal.get_or_insert_with(|| PlanError::MissingColumn {
                    relation: named(),
                    column: wanted.name,
                });
                unknown.add(at);
            }
        }
        let is_whole = types.iter().all(Option::is_some);
        // Without it the relation is refused.
        let id_column = places.iter().position(|place| *place == Some(source.key.id)).unwrap_or(0);
        (Plan { places, types, unknown, is_whole, id_column }, refusal)
    }

    /// The columns whose values its rows do not have.
    pub fn unknown(&self) -> Places {
        self.unknown
    }

    pub fn id_column(&self) -> usize {
        self.id_column
    }

    pub fn type_of(&self, place: usize) -> Option<Oid> {
        self.types[place]
    }

    /// The tuple's values by place; columns that no mapping reads are passed over.
    pub fn values<'a>(&self, tuple: &Tuple<'a>) -> impl Iterator<Item = (usize, Datum<'a>)> {
        self.places.iter().zip(tuple.datums()).filter_map(|(place, datum)| Some(((*place)?, datum)))
    }

    pub fn value<'a>(&self, tuple: &Tuple<'a>, place: usize) -> Option<Datum<'a>> {
        self.values(tuple).find(|(at, _)| *at == place).map(|(_, datum)| datum)
    }

    /// A tuple of another width belongs to another version of the relation.
    pub fn check(&self, tuple: &Tuple<'_>) -> Result<(), DecodeError> {
        if tuple.columns() == self.places.len() {
            Ok(())
        } else {
            Err(DecodeError::BadValue { context: "tuple column count against its relation" })
        }
    }
}

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

    pub fn clear(&mut self) {
        self.values.fill(Datum::Null);
    }

    /// What the tuple has, and nothing of what the row held before.
    pub fn load(&mut self, plan: &Plan, tuple: &Tuple<'a>) {
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

/// Some values of one row in the text output format, for everybody who needs them; `None` is NULL.
pub type TextValues = Arc<[Option<Vec<u8>>]>;

/// A set of places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Places(u128);

impl Places {
    /// The first `count` places.
    pub fn first(count: usize) -> Places {
        let mut places = Places::default();
        (0..count).for_each(|place| places.add(place));
        places
    }

    pub fn add(&mut self, place: usize) {
        assert!(place < 128, "a source has fewer than 128 columns");
        self.0 |= 1 << place;
    }

    pub fn without(self, place: usize) -> Places {
        Places(self.0 & !(1 << place))
    }

    pub fn has(self, place: usize) -> bool {
        self.0 >> place & 1 == 1
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn union(self, other: Places) -> Places {
        Places(self.0 | other.0)
    }

    pub fn intersection(self, other: Places) -> Places {
        Places(self.0 & other.0)
    }

    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let place = rest.trailing_zeros();
            rest &= rest.checked_sub(1)?;
            Some(place as usize)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn places_are_given_as_they_were_added(
            mut added in proptest::collection::vec(0..128_usize, 0..20),
        ) {
            let mut places = Places::default();
            added.iter().for_each(|&place| places.add(place));
            added.sort_unstable();
            added.dedup();
            prop_assert_eq!(places.iter().collect::<Vec<_>>(), added);
        }
    }
}
