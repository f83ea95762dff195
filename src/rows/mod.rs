//! Rows on their way to ClickHouse: column buffers, order, and the Native encoding.

pub mod block;
pub mod column;
pub mod document;
pub mod native;
mod order;
pub mod stored;
mod stored_document;

pub use block::{Block, ColumnSpec, Shape};
pub use column::Kind;
