//! The types of columns: single values, and what is built of them.

use std::fmt;
use std::sync::Arc;

use super::scalar::Scalar;

/// The type a column is sent as. ClickHouse casts it to the type of its table where that differs
/// (`String` to `LowCardinality(String)` or `JSON`, say).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnType {
    Of(Scalar),
    Nullable(Scalar),
    Array(Arc<ColumnType>),
    /// Elements by name.
    Tuple(Arc<[(Arc<str>, ColumnType)]>),
    /// Keys and values.
    Map(Arc<(ColumnType, ColumnType)>),
}

use ColumnType::{Array, Map, Nullable, Of, Tuple};

impl ColumnType {
    pub fn array(of: ColumnType) -> ColumnType {
        Array(Arc::new(of))
    }

    pub fn map(key: ColumnType, value: ColumnType) -> ColumnType {
        Map(Arc::new((key, value)))
    }

    pub fn tuple(elements: &[(&str, ColumnType)]) -> ColumnType {
        Tuple(elements.iter().map(|(name, of)| (Arc::from(*name), of.clone())).collect())
    }

    /// That of a column with single values, NULL or not.
    pub fn scalar(&self) -> Option<Scalar> {
        match self {
            Of(scalar) | Nullable(scalar) => Some(*scalar),
            Array(_) | Tuple(_) | Map(_) => None,
        }
    }

    pub fn is_nullable(&self) -> bool {
        matches!(self, Nullable(_))
    }

    /// How many lists a column of this type is in a Native block.
    pub fn lists(&self) -> usize {
        match self {
            Of(_) => 1,
            Nullable(_) => 2,
            Array(of) => 1 + of.lists(),
            Tuple(elements) => elements.iter().map(|(_, of)| of.lists()).sum(),
            Map(of) => 1 + of.0.lists() + of.1.lists(),
        }
    }
}

/// The name of the type, as in a Native block and in DDL.
impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Of(scalar) => f.write_str(&scalar.name()),
            Nullable(scalar) => write!(f, "Nullable({})", scalar.name()),
            Array(of) => write!(f, "Array({of})"),
            Map(of) => write!(f, "Map({}, {})", of.0, of.1),
            Tuple(elements) => {
                f.write_str("Tuple(")?;
                for (at, (name, of)) in elements.iter().enumerate() {
                    let separator = if at == 0 { "" } else { ", " };
                    write!(f, "{separator}{name} {of}")?;
                }
                f.write_str(")")
            }
        }
    }
}

impl From<Scalar> for ColumnType {
    fn from(scalar: Scalar) -> ColumnType {
        Of(scalar)
    }
}
