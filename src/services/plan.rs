//! How the columns of a relation of the stream meet those of the source.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::column_set::ColumnSet;
use super::source::{Source, SourceColumn, SourceKind};
use crate::wal::value::oid;
use crate::wal::wire::Wire;
use crate::wal::{Datum, DecodeError, Oid, Relation, Tuple, row_key};

/// The underlying types of user-defined types: for each, the built-in type whose values have the
/// same form on the wire. A domain reads as its base type, an enum and `citext` as text, an array
/// of either as an array of text. A type without one (a composite, a range) is left out: its binary
/// form is unknown.
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

/// How the columns of one version of the relation stand to the columns of the source.
#[derive(Debug, PartialEq)]
pub struct RelationPlan {
    /// For each column of the relation: its place in [`Source::columns`].
    pub(super) places: Vec<Option<usize>>,
    /// For each column of the source: the built-in type that its own reads as, where the relation
    /// has it.
    pub(super) types: Vec<Option<Oid>>,
    /// Columns of the source that this version of the relation does not have as they are now.
    pub(super) unknown: ColumnSet,
    /// Its rows have a value for each column of the source.
    pub(super) is_whole: bool,
    /// The columns of the relation that have the key, in the order of [`Source::key`].
    key_columns: Vec<(usize, SourceColumn)>,
}

/// The relation does not have what the mapping needs.
#[derive(Debug, Clone, PartialEq)]
pub enum PlanError {
    MissingColumn { relation: String, column: Arc<str> },
    WrongType { relation: String, column: Arc<str>, expected: SourceKind, got: Oid },
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

/// A row that nothing identifies.
pub(super) const NO_KEY: DecodeError =
    DecodeError::BadValue { context: "row without its key columns" };

impl RelationPlan {
    /// For a relation that must have every column, each of its type.
    pub fn new(
        source: &Source,
        relation: &Relation,
        user: &Types,
    ) -> Result<RelationPlan, PlanError> {
        let (plan, refusal) = RelationPlan::match_up(source, relation, user);
        refusal.map_or(Ok(plan), Err)
    }

    /// For a version of the relation that is past: what its rows do not have is still to be read
    /// from the table as it is now. Only the key it must have.
    pub fn of_the_past(
        source: &Source,
        relation: &Relation,
        user: &Types,
    ) -> Result<RelationPlan, PlanError> {
        match RelationPlan::match_up(source, relation, user) {
            (plan, Some(refusal)) if source.key.iter().any(|place| plan.unknown.has(*place)) => {
                Err(refusal)
            }
            (plan, _) => Ok(plan),
        }
    }

    /// The plan, and the first reason why the relation is not as expected.
    fn match_up(
        source: &Source,
        relation: &Relation,
        user: &Types,
    ) -> (RelationPlan, Option<PlanError>) {
        let named = || format!("\"{}\".\"{}\"", relation.namespace, relation.name);
        let (mut unknown, mut refusal) = (ColumnSet::default(), None);
        let mut types = vec![None; source.columns.len()];
        let mut places = Vec::with_capacity(relation.columns.len());
        for column in &relation.columns {
            let mut place = source.columns.iter().position(|wanted| *wanted.name == *column.name);
            if let Some(at) = place {
                let wanted = &source.columns[at];
                let reads_as = user.reads_as(column.type_oid);
                if wanted.kind.accepts(column.type_oid, reads_as) {
                    types[at] = reads_as.or(Some(column.type_oid));
                } else {
                    refusal.get_or_insert_with(|| PlanError::WrongType {
                        relation: named(),
                        column: Arc::clone(&wanted.name),
                        expected: wanted.kind.clone(),
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
                    column: Arc::clone(&wanted.name),
                });
                unknown.add(at);
            }
        }
        let is_whole = types.iter().all(Option::is_some);
        // Without it the relation is refused.
        let column = |key: &usize| places.iter().position(|place| *place == Some(*key));
        let key_columns = source
            .key
            .iter()
            .map(|place| (column(place).unwrap_or(0), source.columns[*place].clone()));
        let key_columns = key_columns.collect();
        (RelationPlan { places, types, unknown, is_whole, key_columns }, refusal)
    }

    /// The columns whose values its rows do not have.
    pub fn unknown(&self) -> &ColumnSet {
        &self.unknown
    }

    /// The key of a tuple; what it leaves out is that of the `old` one. `None` if it has none.
    pub fn key<'a>(
        &self,
        tuple: &Tuple<'a>,
        old: Option<&Tuple<'a>>,
    ) -> Result<Option<Cow<'a, [u8]>>, DecodeError> {
        let datum = |tuple: &Tuple<'a>, column| tuple.datums().nth(column).ok_or(NO_KEY);
        self.join(|column| match (datum(tuple, column)?, old) {
            (Datum::Unchanged, Some(old)) => datum(old, column),
            (found, _) => Ok(found),
        })
    }

    /// The same of a tuple that was not read.
    pub fn key_at<'a>(
        &self,
        wire: &Wire<'a>,
        old: Option<&Wire<'a>>,
    ) -> Result<Option<Cow<'a, [u8]>>, DecodeError> {
        self.join(|column| match (Tuple::parse_one(wire, column)?, old) {
            (Datum::Unchanged, Some(old)) => Tuple::parse_one(old, column),
            (found, _) => Ok(found),
        })
    }

    fn join<'a>(
        &self,
        datum: impl Fn(usize) -> Result<Datum<'a>, DecodeError>,
    ) -> Result<Option<Cow<'a, [u8]>>, DecodeError> {
        let mut is_whole = true;
        let mut value = |(column, source): &(usize, SourceColumn)| match datum(*column)? {
            value @ (Datum::Text(_) | Datum::Binary(_)) => Ok(source.canonical(value)),
            Datum::Unchanged | Datum::Null => {
                is_whole = false;
                Ok(Cow::Borrowed(&b""[..]))
            }
        };
        let key = match self.key_columns.as_slice() {
            // Most keys: no memory is taken.
            [only] => value(only)?,
            several => {
                let values = several.iter().map(&mut value);
                row_key::join(values.collect::<Result<Vec<_>, _>>()?.into_iter())
            }
        };
        Ok(is_whole.then_some(key))
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
