//! Rows on their way to ClickHouse: target tables, keys, column buffers, order, and the Native
//! encoding.
//!
//! A [`target`] describes a table once, a [`block`] holds its rows by column, [`native`] is their
//! form on the wire.

pub mod as_json;
pub mod block;
pub mod column;
pub mod column_type;
pub mod key;
pub mod native;
pub mod order;
pub mod scalar;
pub mod shape;
pub mod stored;
pub mod target;
pub mod tombstone;
pub mod ttl;

pub use block::Block;
pub use column_type::ColumnType;
pub use scalar::Scalar;
pub use shape::Shape;
#[cfg(test)]
pub(crate) use target::columns;
pub use target::{ColumnSpec, Target};
