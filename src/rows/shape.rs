//! Which of the written columns an existing target table accepts.

use std::collections::BTreeMap;

use super::ttl::Ttl;

/// What the existing table accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Columns that the table does not have are filled like the others and left out when encoding.
    pub present: Vec<bool>,
    /// Columns that accept no NULL but may get one.
    pub without_null: Vec<usize>,
    /// The type by which a JSON column is sent, where that is not `JSON` as such. As the table's
    /// own type its text is parsed under the settings of the INSERT, and is then what the table
    /// holds; from another one it is cast, with the cast's own rules.
    pub documents: BTreeMap<usize, String>,
    /// When the table drops rows by itself.
    pub ttl: Option<Ttl>,
}

impl Shape {
    /// Every NULL has a place, documents are of type `JSON`, and rows stay.
    pub fn of(present: Vec<bool>) -> Shape {
        Shape { present, without_null: Vec::new(), documents: BTreeMap::new(), ttl: None }
    }
}
